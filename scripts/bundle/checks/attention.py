"""Attention: every flash kernel against softmax(scale q kᵀ) v and its gradients in f64.

Inputs lie as tokens have them, `[B, S, H, d]`, and are given by strides; results are `[B, H, S, d]`.
"""

import math
from collections import namedtuple

import torch

from checks.case import Case, Launch, Result, ceil

# logits: 0 for normal inputs; else the greatest logit is about this, or, below 0, each.
Shape = namedtuple("Shape", "batch heads queries keys logits", defaults=(0,))

BF16, PARTIAL, F32 = "bf16", "partial_bf16", "f32"
DIMS = (64, 96, 128)

Truth = namedtuple("Truth", "o lse delta dq dk dv dq_size dk_size")


def truth(q, k, v, d_o, scale, sizes=False, rows=2048):
    """All of attention's results in f64, `rows` queries at a time.

    `sizes`: the greatest sums of absolute terms of dq and dk, as of huge terms even a zero has an error. With one key
    dS itself is a zero, the difference of two equal terms.
    """
    q, k, v, d_o = (x.double() for x in (q, k, v, d_o))
    o, dq = torch.empty_like(q), torch.empty_like(q)
    lse = torch.empty(q.shape[:3], dtype=torch.float64, device=q.device)
    delta, dk, dv = torch.empty_like(lse), torch.zeros_like(k), torch.zeros_like(v)
    dk_terms, dq_size = torch.zeros_like(k) if sizes else None, 0.0
    for first in range(0, q.shape[2], rows):
        at = (slice(None), slice(None), slice(first, first + rows))
        p = q[at] @ k.mT * scale
        lse[at] = torch.logsumexp(p, -1)
        p = torch.exp(p - lse[at][..., None])
        o[at] = p @ v
        delta[at] = (o[at] * d_o[at]).sum(-1)
        dv += p.mT @ d_o[at]
        dp = d_o[at] @ v.mT
        ds = p * (dp - delta[at][..., None]) * scale
        dq[at] = ds @ k
        dk += ds.mT @ q[at]
        if sizes:
            terms = ds.abs() if k.shape[2] > 1 else p * dp.abs() * scale
            dq_size = max(dq_size, float((terms @ k.abs()).max()))
            dk_terms += terms.mT @ q[at].abs()
    return Truth(o, lse, delta, dq, dk, dv, dq_size, float(dk_terms.max()) if sizes else 0.0)


class Attention(Case):
    """Forward, and backward given f32 lse and delta, as the trainer does it."""

    def __init__(self, device, kind, d, shape, exact=True):
        """`exact`: backward is given the true lse and delta; without it, the forward kernel's own, for timing."""
        super().__init__(
            device,
            f"attention {kind} d{d} {shape.batch}x{shape.heads} {shape.queries}x{shape.keys}"
            + (f" logits {shape.logits}" if shape.logits else ""),
        )
        self.kind, self.d, self.shape = kind, d, shape
        self.end = "f32" if kind == F32 else f"{kind}_d{d}"
        self.scale = float(torch.tensor(1 / math.sqrt(d)))  # as f32 has it
        dtype = torch.float32 if kind == F32 else torch.bfloat16
        out = torch.bfloat16 if kind == BF16 else torch.float32
        b, h, sq, sk, logits = shape
        deviation = math.sqrt(logits / 4) if logits > 0 else 1
        shift = math.sqrt(-logits / math.sqrt(d)) if logits < 0 else 0
        normal = lambda s, deviation=1: device.normal(b, s, h, d, dtype=dtype, deviation=deviation)
        q, k = normal(sq, deviation), normal(sk, deviation)
        q += shift
        k -= shift
        if logits > 0 and sk > 1:  # keys in equal pairs, so that the softmax has more than one share
            k[:, 1::2] = k[:, 0 : sk - 1 : 2]
        inputs = self.place(shape, [q, k, normal(sk), normal(sq)])
        self.q, self.k, self.v, self.d_o = (x.transpose(1, 2) for x in inputs)
        self.o = self.output(b, h, sq, d, dtype=out)
        self.lse = self.output(b, h, sq, dtype=torch.float64 if kind == PARTIAL else torch.float32)
        self.dq = self.output(b, h, sq, d, dtype=out)
        self.dk, self.dv = (self.output(b, h, sk, d, dtype=out) for _ in range(2))
        if exact:
            self.truth = truth(self.q, self.k, self.v, self.d_o, self.scale, sizes=logits != 0 or sk == 1)
            given, delta = self.truth.lse, self.truth.delta
        else:
            self.launches(forward_only=True)[0].run()
            given, delta = self.lse, (self.o.float() * self.d_o.float()).sum(-1)
        self.given_lse, self.given_delta = (device.tensor(x, dtype=torch.float32) for x in (given, delta))

    def place(self, shape, inputs):
        """Where the inputs `[B, S, H, d]` lie: one after another."""
        return inputs

    def launches(self, forward_only=False):
        b, h, sq, sk, _ = self.shape
        blocks = (1, 1, 1) if self.kind == F32 else (128, 128, 128) if self.d == 64 else (128, 64, 64)
        inputs = dict(q=self.q, k=self.k, v=self.v)
        shapes = dict(queries=sq, keys=sk, scale=self.scale, **{f"{name}_at": strides(x) for name, x in inputs.items()})
        if self.kind == F32:
            shapes["d"] = self.d
        name = f"flash_forward_{self.end}"
        launch = self.device.launch
        each = b * h * self.d  # elements of a row of all heads
        forward = Launch(
            name,
            lambda: launch(name, (ceil(sq, blocks[0]), h, b), o=self.o, lse=self.lse, **inputs, **shapes),
            each * ((sq + 2 * sk) * self.q.itemsize + sq * self.o.itemsize),
        )
        if forward_only:
            return [forward]
        back = dict(
            **inputs, **shapes, d_o=self.d_o, d_o_at=strides(self.d_o), lse=self.given_lse, delta=self.given_delta
        )
        kv, by_q = f"flash_backward_kv_{self.end}", f"flash_backward_q_{self.end}"
        read = each * (2 * sq + 2 * sk) * self.q.itemsize
        return [
            forward,
            Launch(
                kv,
                lambda: launch(kv, (ceil(sk, blocks[1]), h, b), dk=self.dk, dv=self.dv, **back),
                read + 2 * each * sk * self.o.itemsize,
            ),
            Launch(
                by_q,
                lambda: launch(by_q, (ceil(sq, blocks[2]), h, b), dq=self.dq, **back),
                read + each * sq * self.o.itemsize,
            ),
        ]

    def results(self):
        """A result in bf16 is rounded once, after probabilities that were. Of huge logits, tensor cores may cut sums
        off at 2^-21 of the greatest term, and backward makes P from an lse in f32.
        """
        size, true = abs(self.shape.logits), self.truth
        if self.kind == F32:
            o = gradient = max(4e-6, 2e-7 * size)
        else:
            o, gradient = 4e-3, 4e-3 + size * 2**-21
        forward, kv, by_q = (launch.kernel for launch in self.launches())
        return [
            Result(forward, "o", self.o, true.o, o),
            Result(forward, "lse", self.lse, true.lse, 2e-6),
            Result(by_q, "dq", self.dq, true.dq, gradient, true.dq_size),
            Result(kv, "dk", self.dk, true.dk, gradient, true.dk_size),
            Result(kv, "dv", self.dv, true.dv, gradient),
        ]


def strides(x):
    return x.stride()[:3]


def cases(small):
    """(kernels' common end, what makes the case) of all shapes: fewer tiles than slots, more, uneven, single rows,
    extreme logits.
    """
    few = [Shape(1, 2, 131, 205), Shape(2, 1, 1, 1), Shape(1, 1, 40, 100, 1e4), Shape(1, 1, 40, 100, -400)]
    many = few + [
        Shape(1, 1, 131, 77),
        Shape(1, 1, 128, 128),
        Shape(1, 1, 1, 200),
        Shape(1, 1, 65, 1),
        Shape(1, 1, 70, 333),
        Shape(1, 1, 40, 100, 100),
        Shape(2, 3, 1000, 1333),
        Shape(1, 2, 4096, 4099),
    ]
    shapes = few if small else many
    plain = [
        (24, Shape(1, 2, 9, 131)),
        (200, Shape(1, 1, 40, 3)),
        (64, Shape(2, 1, 1, 1)),
        (64, Shape(1, 1, 20, 40, 1e4)),
    ]
    if not small:
        plain += [(64, Shape(1, 1, 20, 40, -400)), (256, Shape(1, 2, 300, 517))]
    flash = [(kind, d, shape) for kind in (BF16, PARTIAL) for d in DIMS for shape in shapes]
    for kind, d, shape in flash + [(F32, d, shape) for d, shape in plain]:
        end = "f32" if kind == F32 else f"{kind}_d{d}"
        kernels = [f"flash_{part}_{end}" for part in ("forward", "backward_kv", "backward_q")]
        yield kernels, lambda device, kind=kind, d=d, shape=shape: Attention(device, kind, d, shape)
