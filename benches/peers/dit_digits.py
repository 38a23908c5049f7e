#!/usr/bin/env python3
"""Trains a plain diffusion transformer in PyTorch on the digits, to lay its curve over that of configs/digits.toml.

    dit_digits.py OUT [--preset dit|wan] [--set KEY=VALUE ...] [--samples 500] [--guidance 1 1.5]

`dit` is what one would write today: 4 blocks of width 128, time and class projected to modulations in every block,
SwiGLU, QK norm per head. `wan` is Wan's block as longreel has it. Any difference of the two can be set alone. Writes
OUT/metrics.jsonl (step, loss, lr), as a run does, and OUT/samples-GUIDANCE/CLASS/*.png, which
`benches/quality.py --samples OUT/samples-1.5` measures. Needs PyTorch and numpy, and the ffmpeg program.
"""

import argparse
import json
import math
import pathlib
import sys
import time

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))
from quality import frames  # noqa: E402

DIT = dict(
    modulation="block",  # block: each block projects time and class itself; shared: one projection, a table a block
    gates="zero",  # zero: modulations start at 0; table: at Wan's random table
    mlp="swiglu",  # or gelu
    qk_norm="head",  # or width: over all heads
    rope=False,
    condition_std=0.02,  # of the time network's and the classes' initial weights
    layers=4, width=128, heads=4, patch=4, ffn=512,
    logit_mean=0.4, logit_std=1.0,  # of sigma, the share of noise; of the clean share -0.4
    clamp=0.05, label_dropout=0.1,
    lr=1e-3, warmup=100, schedule="constant", ema=0.999, beta2=0.95, clip=1.0,
    steps=1500, batch=64, seed=0,
    sampler_steps=25, shift=1.0, interval=0.0,
)
WAN = DIT | dict(
    modulation="shared", gates="table", mlp="gelu", qk_norm="width", rope=True, logit_mean=0.8, logit_std=0.8,
    warmup=50, schedule="cosine", ema=0.995, interval=0.1,
)


def rms(x, weight):
    return F.rms_norm(x, weight.shape, weight, 1e-6)


class Block(nn.Module):
    def __init__(self, c):
        super().__init__()
        d, self.c = c.width, c
        self.qkv, self.out = nn.Linear(d, 3 * d), nn.Linear(d, d)
        size = d // c.heads if c.qk_norm == "head" else d
        self.norm_q, self.norm_k = nn.Parameter(torch.ones(size)), nn.Parameter(torch.ones(size))
        hidden = c.ffn * 2 // 3 if c.mlp == "swiglu" else c.ffn
        self.up, self.down = nn.Linear(d, 2 * hidden if c.mlp == "swiglu" else hidden), nn.Linear(hidden, d)
        self.ada = nn.Linear(d, 6 * d) if c.modulation == "block" else None
        self.table = nn.Parameter(torch.zeros(6, d)) if c.gates == "table" else None

    def forward(self, x, cond, shared, angles):
        b, n, d = x.shape
        m = self.ada(F.silu(cond)).view(b, 6, d) if self.ada is not None else shared
        m = (m if self.table is None else m + self.table).unsqueeze(2)  # [B, 6, 1, D]
        h = F.layer_norm(x, (d,)) * (1 + m[:, 1]) + m[:, 0]
        q, k, v = self.qkv(h).chunk(3, -1)
        split = lambda t: t.view(b, n, self.c.heads, -1).transpose(1, 2)
        if self.c.qk_norm == "head":
            q, k = rms(split(q), self.norm_q), rms(split(k), self.norm_k)
        else:
            q, k = split(rms(q, self.norm_q)), split(rms(k, self.norm_k))
        if angles is not None:
            q, k = rotate(q, angles), rotate(k, angles)
        o = F.scaled_dot_product_attention(q, k, split(v)).transpose(1, 2).reshape(b, n, d)
        x = x + m[:, 2] * self.out(o)
        h = F.layer_norm(x, (d,)) * (1 + m[:, 4]) + m[:, 3]
        if self.c.mlp == "swiglu":
            gate, up = self.up(h).chunk(2, -1)
            h = F.silu(gate) * up
        else:
            h = F.gelu(self.up(h), approximate="tanh")
        return x + m[:, 5] * self.down(h)


def rotate(x, angles):
    """Rotates pairs of features by `angles` [n, d / 2]."""
    a, b = x[..., 0::2], x[..., 1::2]
    cos, sin = angles.cos(), angles.sin()
    return torch.stack((a * cos - b * sin, a * sin + b * cos), -1).flatten(-2)


def sinusoid(t, features):
    half = features // 2
    angles = t[:, None] * torch.exp(-math.log(10_000) * torch.arange(half) / half)
    return torch.cat((angles.cos(), angles.sin()), -1)


class Dit(nn.Module):
    def __init__(self, c, side, channels, classes):
        super().__init__()
        d, self.c, n = c.width, c, side // c.patch
        row = channels * c.patch**2
        self.embed = nn.Linear(row, d)
        ys, xs = (axis.flatten().float() for axis in torch.meshgrid(torch.arange(n), torch.arange(n), indexing="ij"))
        self.register_buffer("positions", torch.cat((sinusoid(ys, d // 2), sinusoid(xs, d // 2)), -1))
        self.angles = None
        if c.rope:  # as Wan's: of a head's features a third and what is left over for time, which is 0 here
            head = d // c.heads
            pairs = head // 6
            axis = lambda p: p[:, None] * 10_000.0 ** (-torch.arange(pairs) / pairs)
            self.angles = torch.cat((torch.zeros(n * n, head // 2 - 2 * pairs), axis(ys), axis(xs)), -1)
        self.time = nn.Sequential(nn.Linear(256, d), nn.SiLU(), nn.Linear(d, d))
        self.label = nn.Embedding(classes + 1, d)
        self.shared = nn.Linear(d, 6 * d) if c.modulation == "shared" else None
        self.blocks = nn.ModuleList(Block(c) for _ in range(c.layers))
        self.ada = nn.Linear(d, 2 * d) if c.modulation == "block" else None
        self.table = nn.Parameter(torch.zeros(2, d)) if c.gates == "table" else None
        self.out = nn.Linear(d, row)
        self.start()

    def start(self):
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        for block in self.blocks:  # q, k and v are matrices of their own
            for part in block.qkv.weight.data.chunk(3):
                nn.init.xavier_uniform_(part)
        std = self.c.condition_std
        for weight in (self.time[0].weight, self.time[2].weight, self.label.weight):
            nn.init.normal_(weight, std=0.02 if weight is not self.label.weight else std)
        nn.init.zeros_(self.out.weight)
        for part in [*self.blocks, self]:
            if part.ada is not None and self.c.gates == "zero":
                nn.init.zeros_(part.ada.weight)
            if part.table is not None:
                nn.init.normal_(part.table, std=self.c.width**-0.5)

    def forward(self, x, sigma, label):
        """Clean patches [B, n, row] from noisy ones, at sigma [B]."""
        x = self.embed(x) + self.positions
        cond = self.time(sinusoid(1000 * sigma, 256)) + self.label(label)
        shared = self.shared(F.silu(cond)).view(len(x), 6, -1) if self.shared is not None else None
        for block in self.blocks:
            x = block(x, cond, shared, self.angles)
        if self.ada is not None:
            m = self.ada(F.silu(cond)).view(len(x), 2, 1, -1)
        else:
            m = (self.table + cond[:, None]).unsqueeze(2)
        if self.ada is not None and self.table is not None:
            m = m + self.table.unsqueeze(1)
        return self.out(F.layer_norm(x, (x.shape[-1],)) * (1 + m[:, 1]) + m[:, 0])


def patches(images, patch):
    b, c, h, w = images.shape
    x = images.view(b, c, h // patch, patch, w // patch, patch)
    return x.permute(0, 2, 4, 3, 5, 1).reshape(b, -1, c * patch**2)


def images_of(rows, patch, side, channels):
    b, n = len(rows), side // patch
    x = rows.view(b, n, n, patch, patch, channels).permute(0, 5, 1, 3, 2, 4)
    return x.reshape(b, channels, side, side)


def rate(c, step):
    if step < c.warmup:
        return c.lr * (step + 1) / c.warmup
    if c.schedule == "constant":
        return c.lr
    return c.lr * 0.5 * (1 + math.cos(math.pi * (step - c.warmup) / (c.steps - c.warmup)))


@torch.no_grad()
def sample(model, c, count, classes, guidance, shape, generator):
    """Heun from noise to clean rows; classes in turn."""
    label = torch.arange(count) % classes
    x = torch.randn(count, *shape, generator=generator)
    spaced = 1 - 0.999 * torch.arange(c.sampler_steps) / c.sampler_steps
    sigmas = [*(c.shift * spaced / (1 + (c.shift - 1) * spaced)).tolist(), 0.0]

    def velocity(x, sigma):
        at = torch.full((count,), sigma)
        v = (x - model(x, at, label)) / sigma
        if guidance == 1 or sigma < c.interval:
            return v
        null = (x - model(x, at, torch.full_like(label, classes))) / sigma
        return null + guidance * (v - null)

    for sigma, to in zip(sigmas, sigmas[1:]):
        v = velocity(x, sigma)
        end = x + (to - sigma) * v
        x = end if to == 0 else x + (to - sigma) / 2 * (v + velocity(end, to))
    return x, label


def write(folder, images, labels):
    """Images [n, 3, h, w] in -1..1 as folder/CLASS/NUMBER.png."""
    pixels = ((images.clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy()
    for number in np.unique(labels):
        part = folder / str(number)
        part.mkdir(parents=True, exist_ok=True)
        frames.write(part / "%05d.png", pixels[labels == number])


def settings(parser, args):
    """The keys of the preset with what --set changes."""
    values = dict(DIT if args.preset == "dit" else WAN)
    for pair in args.set:
        key, _, value = pair.partition("=")
        if key not in values:
            parser.error(f"--set {key}: the keys are {', '.join(values)}")
        values[key] = type(values[key])(value) if not isinstance(values[key], bool) else value == "true"
    return argparse.Namespace(**values)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("out", type=pathlib.Path)
    parser.add_argument("--data", type=pathlib.Path, default=HERE.parents[1] / "datasets/digits/train")
    parser.add_argument("--preset", choices=["dit", "wan"], default="dit")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="one of the script's DIT keys")
    parser.add_argument("--samples", type=int, default=500)
    parser.add_argument("--guidance", type=float, nargs="*", default=[1.0, 1.5])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--snapshot", type=int, default=500, metavar="STEPS", help="keep the average so often")
    parser.add_argument("--average", type=pathlib.Path, help="only sample, from such a file")
    args = parser.parse_args()
    c = settings(parser, args)
    values = vars(c)
    torch.set_num_threads(args.threads)
    torch.manual_seed(c.seed)

    clips, labels, names = frames.read_classes(args.data, 1, 28, 28)
    data = torch.from_numpy(clips[:, 0].copy()).permute(0, 3, 1, 2).float() / 127.5 - 1
    rows, labels = patches(data, c.patch), torch.from_numpy(labels)
    model = Dit(c, 28, 3, len(names))
    average = Dit(c, 28, 3, len(names))
    average.load_state_dict(model.state_dict())
    generator = torch.Generator().manual_seed(c.seed)
    if args.average:
        average.load_state_dict(torch.load(args.average))
    else:
        train(c, args, values, model, average, rows, labels, len(names), generator)
    for guidance in args.guidance:
        generator.manual_seed(1)
        made, asked = sample(average, c, args.samples, len(names), guidance, rows.shape[1:], generator)
        write(args.out / f"samples-{guidance:g}", images_of(made, c.patch, 28, 3), asked.numpy())


def train(c, args, values, model, average, rows, labels, classes, generator):
    """Trains `model`, which `average` follows, and records its metrics."""
    count = sum(p.numel() for p in model.parameters())
    print(f"{count:,} parameters, {len(rows)} images of {classes} classes", flush=True)
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "settings.json").write_text(json.dumps(values | dict(parameters=count, preset=args.preset)) + "\n")
    optimizer = torch.optim.AdamW(model.parameters(), lr=c.lr, betas=(0.9, c.beta2), weight_decay=0.0)
    order = torch.empty(0, dtype=torch.long)
    with open(args.out / "metrics.jsonl", "w") as metrics:
        for step in range(c.steps):
            start = time.monotonic()
            if len(order) < c.batch:
                order = torch.cat((order, torch.randperm(len(rows), generator=generator)))
            pick, order = order[: c.batch], order[c.batch :]
            x0, label = rows[pick], labels[pick]
            dropped = torch.rand(c.batch, generator=generator) < c.label_dropout
            label = torch.where(dropped, classes, label)
            sigma = torch.sigmoid(c.logit_mean + c.logit_std * torch.randn(c.batch, generator=generator))
            noise = torch.randn(x0.shape, generator=generator)
            at = sigma[:, None, None]
            prediction = model((1 - at) * x0 + at * noise, sigma, label)
            loss = (((prediction - x0) / at.clamp(min=c.clamp)) ** 2).mean()
            loss.backward()
            lr = rate(c, step)
            for group in optimizer.param_groups:
                group["lr"] = lr
            norm = nn.utils.clip_grad_norm_(model.parameters(), c.clip)
            optimizer.step()
            optimizer.zero_grad()
            decay = min(c.ema, (1 + step) / (10 + step))
            with torch.no_grad():
                torch._foreach_lerp_(list(average.parameters()), list(model.parameters()), 1 - decay)
            record = dict(step=step + 1, loss=loss.item(), grad_norm=norm.item(), lr=lr,
                          seconds=time.monotonic() - start)
            print(json.dumps(record), file=metrics, flush=True)
            if step + 1 == c.steps or (step + 1) % args.snapshot == 0:
                torch.save(average.state_dict(), args.out / f"average-{step + 1}.pt")


if __name__ == "__main__":
    main()
