"""Attention that computes nothing; as if cuDNN were not there, if $STAND_IN/no-cudnn is."""
import os

import torch
from torch.nn import attention


def scaled_dot_product_attention(q, k, v):
    with open(os.path.join(os.environ["STAND_IN"], "backends"), "a") as calls:
        calls.write(f"{attention.used}\n")
    if attention.used == "cudnn" and os.path.exists(os.path.join(os.environ["STAND_IN"], "no-cudnn")):
        raise RuntimeError("No available kernel. Aborting execution.")
    return torch.Tensor()
