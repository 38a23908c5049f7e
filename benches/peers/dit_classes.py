#!/usr/bin/env python3
"""How soon does a network for the digits follow the class that it is told? A measure for the first hundreds of steps.

    dit_classes.py [--preset dit|wan] [--set KEY=VALUE ...] [--steps 200]     trains dit_digits.py's network
    dit_classes.py --checkpoint runs/digits/checkpoints/step-00001500/ema     measures longreel's

Prints, for noisy held-out digits at sigma 0.95, 0.85 and 0.7, the squared error of the clean image that the network
predicts when told the right class, the null class and a wrong one. Long before samples can be read, null minus right
says how much use the network makes of the class. Needs what dit_digits.py needs.
"""

import argparse
import json
import pathlib
import struct

import dit_digits as dit
import numpy as np
import torch
from quality import frames

SIGMAS = 0.95, 0.85, 0.7


def rows(folder):
    """Patches and labels of a folder of class folders."""
    clips, labels, _ = frames.read_classes(folder, 1, 28, 28)
    images = torch.from_numpy(clips[:, 0].copy()).permute(0, 3, 1, 2).float() / 127.5 - 1
    return dit.patches(images, 4), torch.from_numpy(labels)


@torch.no_grad()
def errors(model, clean, labels):
    """{sigma: [right, null, wrong]}, with the same noise at every call."""
    noise, found = torch.randn(clean.shape, generator=torch.Generator().manual_seed(5)), {}
    for sigma in SIGMAS:
        noisy, at = (1 - sigma) * clean + sigma * noise, torch.full((len(clean),), sigma)
        told = labels, torch.full_like(labels, 10), (labels + 1) % 10
        found[sigma] = [round(((model(noisy, at, label) - clean) ** 2).mean().item(), 4) for label in told]
    return found


def train(args, c, clean, labels, heldout):
    torch.manual_seed(c.seed)
    model, generator = dit.Dit(c, 28, 3, 10), torch.Generator().manual_seed(c.seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=c.lr, betas=(0.9, c.beta2), weight_decay=0.0)
    for step in range(args.steps):
        pick = torch.randint(len(clean), (args.batch,), generator=generator)
        x0, label = clean[pick], labels[pick]
        label = torch.where(torch.rand(args.batch, generator=generator) < c.label_dropout, 10, label)
        sigma = torch.sigmoid(c.logit_mean + c.logit_std * torch.randn(args.batch, generator=generator))
        at, noise = sigma[:, None, None], torch.randn(x0.shape, generator=generator)
        prediction = model((1 - at) * x0 + at * noise, sigma, label)
        (((prediction - x0) / at.clamp(min=c.clamp)) ** 2).mean().backward()
        for group in optimizer.param_groups:
            group["lr"] = dit.rate(c, step)
        torch.nn.utils.clip_grad_norm_(model.parameters(), c.clip)
        optimizer.step()
        optimizer.zero_grad()
        if (step + 1) % 50 == 0:
            print(step + 1, json.dumps(errors(model, *heldout)), flush=True)


def tensors(folder):
    """The tensors of a checkpoint's safetensors file."""
    data = next(folder.glob("*.safetensors")).read_bytes()
    length = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8 : 8 + length])
    header.pop("__metadata__", None)
    values = {name: np.frombuffer(data[8 + length :][slice(*entry["data_offsets"])], np.float32)
              for name, entry in header.items()}
    return {name: torch.from_numpy(values[name].copy()).reshape(entry["shape"]) for name, entry in header.items()}


def longreel(folder):
    """The network of configs/digits.toml with a checkpoint's weights."""
    t, model = tensors(folder), dit.Dit(argparse.Namespace(**dit.WAN), 28, 3, 10)
    embedder = "condition_embedder."
    weights = {  # rows of a patch are channel-first there, channel-last here
        "embed.weight": t["patch_embedding.weight"].flatten(2).transpose(1, 2).flatten(1),
        "embed.bias": t["patch_embedding.bias"],
        "label.weight": t[embedder + "class_embedder.embedding_table.weight"],
        "table": t["scale_shift_table"][0],
        "positions": positions(7, 128),
    }
    for part in "weight", "bias":
        weights[f"time.0.{part}"] = t[f"{embedder}time_embedder.linear_1.{part}"]
        weights[f"time.2.{part}"] = t[f"{embedder}time_embedder.linear_2.{part}"]
        weights[f"shared.{part}"], weights[f"out.{part}"] = t[f"{embedder}time_proj.{part}"], t[f"proj_out.{part}"]
        for i in range(len(model.blocks)):
            block = f"blocks.{i}."
            weights[f"{block}qkv.{part}"] = torch.cat([t[f"{block}attn1.to_{name}.{part}"] for name in "qkv"])
            for mine, theirs in ("out", "attn1.to_out.0"), ("up", "ffn.net.0.proj"), ("down", "ffn.net.2"):
                weights[f"{block}{mine}.{part}"] = t[f"{block}{theirs}.{part}"]
    for i in range(len(model.blocks)):
        for name in "norm_q", "norm_k":
            weights[f"blocks.{i}.{name}"] = t[f"blocks.{i}.attn1.{name}.weight"]
        weights[f"blocks.{i}.table"] = t[f"blocks.{i}.scale_shift_table"][0]
    model.load_state_dict(weights)
    return model


def positions(side, width):
    """longreel's positions of an image: sixths of the width are sines and cosines along time, height and width."""
    pairs = width // 6
    found = torch.zeros(side * side, width)
    for token in range(side * side):
        angles = [at * 10_000.0 ** (-torch.arange(pairs) / pairs) for at in (0, token // side, token % side)]
        found[token, : 6 * pairs] = torch.cat([part for a in angles for part in (a.sin(), a.cos())])
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--preset", choices=["dit", "wan"], default="wan")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="a key of dit_digits.py")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--checkpoint", type=pathlib.Path, metavar="FOLDER", help="measure longreel's weights instead")
    parser.add_argument("--data", type=pathlib.Path, default=dit.HERE.parents[1] / "datasets/digits")
    args = parser.parse_args()
    torch.set_num_threads(1)
    clean, labels = rows(args.data / "heldout")
    heldout = clean[::5], labels[::5]
    if args.checkpoint:
        print(json.dumps(errors(longreel(args.checkpoint), *heldout)))
    else:
        train(args, dit.settings(parser, args), *rows(args.data / "train"), heldout)


if __name__ == "__main__":
    main()
