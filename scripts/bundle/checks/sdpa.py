"""Attention by torch: its scaled_dot_product_attention, with the backend named."""

import warnings

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

BACKENDS = [("SDPA, flash", SDPBackend.FLASH_ATTENTION), ("SDPA, cuDNN", SDPBackend.CUDNN_ATTENTION)]


def sdpa(case, backend):
    """(forward, its result with a graph, backward) of an attention case by torch, the backend being named."""
    inputs = [x.detach().requires_grad_() for x in (case.q, case.k, case.v)]

    def forward():
        with sdpa_kernel(backend), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # why a backend cannot: the error says enough
            return F.scaled_dot_product_attention(*inputs, scale=case.scale)

    result = forward()

    def backward():
        return torch.autograd.grad(result, inputs, case.d_o, retain_graph=True)

    def only_forward():
        with torch.no_grad():
            forward()

    return only_forward, result, backward


def sdpa_gradients(case, backend):
    _, result, backward = sdpa(case, backend)
    return [result.detach(), *backward()]
