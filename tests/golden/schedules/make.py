#!/usr/bin/env python3
"""Golden sigmas, timesteps and trajectories of the schedulers that Wan is sampled with, of diffusers' own classes.

    make.py OUT_DIR

Trajectories are of v = a x + b sin(t / 300), computed in float64 and rounded to float32 once; the schedulers hold their
sigmas in float32. Fixed seeds: two runs write the same bytes. Needs torch==2.11.0 and diffusers==0.42.1.
"""
import math
import pathlib
import sys

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, UniPCMultistepScheduler
from safetensors.torch import save_file


def unipc(shift):
    return UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, num_train_timesteps=1000,
                                   flow_shift=shift)


def euler(shift):
    return FlowMatchEulerDiscreteScheduler(shift=shift)


def main(out):
    tensors = {}
    for shift in (1.0, 3.0, 5.0, 12.0):
        for steps in (4, 10, 50):
            for name, make in (("unipc", unipc), ("euler", euler)):
                scheduler = make(shift)
                scheduler.set_timesteps(steps)
                tensors[f"{name}.shift{shift:g}.steps{steps}.sigmas"] = scheduler.sigmas.double()
                tensors[f"{name}.shift{shift:g}.steps{steps}.timesteps"] = scheduler.timesteps
    g = torch.Generator().manual_seed(71)
    x0, a, b = (torch.randn(2, 3, 4, generator=g, dtype=torch.float64) for _ in range(3))
    tensors["path.start"], tensors["path.a"], tensors["path.b"] = x0, a, b
    for name, make in (("unipc", unipc), ("euler", euler)):
        for steps in (4, 10):
            scheduler, x = make(3.0), x0.clone()
            scheduler.set_timesteps(steps)
            for t in scheduler.timesteps:
                v = a * x + b * math.sin(float(t) / 300)
                x = scheduler.step(v, t, x, return_dict=False)[0]
            tensors[f"path.{name}.steps{steps}.end"] = x
    tensors = {n: (t.float() if t.is_floating_point() else t).contiguous() for n, t in tensors.items()}
    out.mkdir(parents=True, exist_ok=True)
    save_file(tensors, out / "schedules.safetensors")


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))
