"""Flat arrays and copies: GELU, casts, AdamW and its norm, sums, the ring's merge, an all-to-all's rows."""

import math

import torch

from checks.case import THREADS, Case, Launch, Result, ceil, name_of
from checks.rows import BOUND

RUN_OF_NORM = 64 * THREADS  # elements of a block of norm_squared
EACH = 8 * THREADS  # of a cast


class Gelu(Case):
    """In its tanh form. Some inputs are far out, where the function is 0 or x."""

    def __init__(self, device, dtype, n):
        super().__init__(device, f"gelu {name_of(dtype)} {n}")
        self.dtype, self.n = dtype, n
        self.x, self.dy = device.normal(n, dtype=dtype, deviation=2), device.normal(n, dtype=dtype)
        self.x[::97] *= 20
        self.y, self.dx = self.output(n, dtype=dtype), self.output(n, dtype=dtype)

    def launches(self):
        launch, n, grid, size = self.device.launch, self.n, (ceil(self.n, THREADS),), self.dtype.itemsize
        forward, backward = (f"gelu_{part}_{name_of(self.dtype)}" for part in ("forward", "backward"))
        return [
            Launch(forward, lambda: launch(forward, grid, x=self.x, y=self.y, n=n), 2 * n * size),
            Launch(backward, lambda: launch(backward, grid, x=self.x, dy=self.dy, dx=self.dx, n=n), 3 * n * size),
        ]

    def results(self):
        x, dy = self.x.double(), self.dy.double()
        c = math.sqrt(2 / math.pi)
        t = torch.tanh(c * (x + 0.044715 * x**3))
        slope = 0.5 * (1 + t) + 0.5 * x * (1 - t * t) * c * (1 + 3 * 0.044715 * x * x)
        forward, backward = (launch.kernel for launch in self.launches())
        bound, found = BOUND[self.dtype], []
        for what, some in ((" near 0", x.abs() < 8), (" far out", x.abs() >= 8)):
            if some.any():
                # 1 - sigmoid, of a sigmoid near 1, is off by half of the last place of 1, which x^3 then multiplies.
                found += [
                    Result(forward, "y" + what, self.y[some], (0.5 * x * (1 + t))[some], bound, 1),
                    Result(backward, "dx" + what, self.dx[some], (dy * slope)[some], max(4e-6, bound), 1),
                ]
        return found


class Cast(Case):
    """Between f32 and bf16: the very bits of torch's cast. `skip`: elements by which arrays begin after an aligned
    place.
    """

    def __init__(self, device, n, skip=0):
        super().__init__(device, f"casts {n}" + (f" from element {skip}" if skip else ""))
        self.n = n
        values = device.normal(n + skip)
        values[: n // 2] *= 10.0 ** (torch.arange(n // 2, device=device.where) % 74 - 37)  # of all sizes
        if n >= 8:
            ties = [1.00390625, 1.01171875, -1.00390625, 3.4e38, float("inf"), -float("inf"), 1e-40, -0.0]
            values[skip : skip + 8] = torch.tensor(ties, device=device.where)
        self.f32, self.bf16 = values[skip:], device.tensor(values, dtype=torch.bfloat16)[skip:]
        self.down = self.output(n + skip, dtype=torch.bfloat16)
        self.up = self.output(n + skip)
        self.skip = skip

    def launches(self):
        launch, n, grid, skip = self.device.launch, self.n, (ceil(self.n, EACH),), self.skip
        return [
            Launch("to_bf16", lambda: launch("to_bf16", grid, x=self.f32, y=self.down[skip:], n=n), 6 * n),
            Launch("to_f32", lambda: launch("to_f32", grid, x=self.bf16, y=self.up[skip:], n=n), 6 * n),
        ]

    def results(self):
        bits = lambda x: x.contiguous().view(torch.int16 if x.dtype == torch.bfloat16 else torch.int32)
        return [
            Result("to_bf16", "y", bits(self.down[self.skip :]), bits(self.f32.bfloat16()), 0),
            Result("to_f32", "y", bits(self.up[self.skip :]), bits(self.bf16.float()), 0),
        ]


class AdamW(Case):
    """One step, with clipping, two ranges without weight decay, and the moving average, or without it."""

    def __init__(self, device, n, averaged):
        super().__init__(device, f"adamw {n}" + (" with average" if averaged else ""))
        self.n, beta1, beta2, step = n, 0.9, 0.95, 7
        self.grads = device.normal(n)
        begin = [
            device.normal(n),
            device.normal(n, deviation=0.1),
            device.normal(n, deviation=0.1).square_(),
            device.normal(n),
        ]
        self.begin = begin if averaged else begin[:3]
        self.now = [self.output(n, begin=x) for x in self.begin]
        self.step = [
            float(torch.tensor(x))
            for x in (
                beta1,
                beta2,
                1 - beta1,
                1 - beta2,
                0.37,
                3e-3 / (1 - beta1**step),
                1 / math.sqrt(1 - beta2**step),
                1e-8,
                3e-3 * 0.1,
                1 - 0.999,
            )
        ]
        self.ranges = [(n // 7, n // 3), (n // 2, n // 2 + 1)] if n > 7 else []
        self.no_decay = device.tensor([x for pair in self.ranges for x in pair] or [0, 0])

    def launches(self):
        params, m, v, *average = self.now
        run = lambda: self.device.launch(
            "adamw",
            (ceil(self.n, THREADS),),
            params=params,
            grads=self.grads,
            m=m,
            v=v,
            average=average[0] if average else None,
            n=self.n,
            step=self.step,
            no_decay=self.no_decay,
            ranges=len(self.ranges),
        )
        return [Launch("adamw", run, 4 * self.n * (2 * len(self.now) + 1))]

    def results(self):
        beta1, beta2, rest1, rest2, scale, rate, inv_std, eps, decay, average = self.step
        params, m, v = (x.double() for x in self.begin[:3])
        grad = scale * self.grads.double()
        m, v = beta1 * m + rest1 * grad, beta2 * v + rest2 * grad**2
        decays = torch.full_like(params, decay)
        for start, end in self.ranges:
            decays[start:end] = 0
        params = params - decays * params - rate * m / (v.sqrt() * inv_std + eps)
        results = [("params", params, 1), ("m", m, 0.1), ("v", v, 0.01)]
        if len(self.begin) == 4:
            old = self.begin[3].double()
            results.append(("average", old + average * (params - old), 1))
        return [Result("adamw", what, got, true, 3e-7, size) for got, (what, true, size) in zip(self.now, results)]


class NormSquared(Case):
    """Sums of squares in f64, a block's each."""

    def __init__(self, device, n):
        super().__init__(device, f"norm_squared {n}")
        self.n, self.values = n, device.normal(n)
        self.parts = self.output(ceil(n, RUN_OF_NORM), dtype=torch.float64)

    def launches(self):
        run = lambda: self.device.launch(
            "norm_squared", self.parts.shape, values=self.values, parts=self.parts, n=self.n
        )
        return [Launch("norm_squared", run, 4 * self.n)]

    def results(self):
        padded = torch.zeros(len(self.parts) * RUN_OF_NORM, dtype=torch.float64, device=self.values.device)
        padded[: self.n] = self.values.double()
        return [Result("norm_squared", "parts", self.parts, padded.square().view(-1, RUN_OF_NORM).sum(1), 1e-13)]


class AddAssign(Case):
    def __init__(self, device, n):
        super().__init__(device, f"add_assign {n}")
        self.n, self.begin, self.y = n, device.normal(n), device.normal(n)
        self.x = self.output(n, begin=self.begin)

    def launches(self):
        run = lambda: self.device.launch("add_assign", (ceil(self.n, THREADS),), x=self.x, y=self.y, n=self.n)
        return [Launch("add_assign", run, 12 * self.n)]

    def results(self):
        return [Result("add_assign", "x", self.x, self.begin.double() + self.y.double(), 1.2e-7)]


class RingMerge(Case):
    """Two shares of a softmax become one; `apart` is how far their lse are from each other."""

    def __init__(self, device, rows, d, apart):
        super().__init__(device, f"ring_merge {rows}x{d}" + (f" apart {apart}" if apart else ""))
        self.rows, self.d = rows, d
        third = torch.arange(rows, device=device.where) % 3
        self.begin, self.more = device.normal(rows, d), device.normal(rows, d)
        self.lse_begin = device.normal(rows, dtype=torch.float64) + apart * third
        self.more_lse = device.normal(rows, dtype=torch.float64)
        self.more_lse += apart
        self.o, self.lse = (
            self.output(rows, d, begin=self.begin),
            self.output(rows, dtype=torch.float64, begin=self.lse_begin),
        )

    def launches(self):
        run = lambda: self.device.launch(
            "ring_merge",
            (ceil(self.rows, THREADS // 32),),
            o=self.o,
            lse=self.lse,
            more=self.more,
            more_lse=self.more_lse,
            rows=self.rows,
            d=self.d,
        )
        return [Launch("ring_merge", run, self.rows * (12 * self.d + 24))]

    def results(self):
        lse = torch.logaddexp(self.lse_begin, self.more_lse)
        a, b = (torch.exp(x - lse)[:, None] for x in (self.lse_begin, self.more_lse))
        truth = a * self.begin.double() + b * self.more.double()
        return [Result("ring_merge", "o", self.o, truth, 3e-7, 1), Result("ring_merge", "lse", self.lse, lse, 1e-15, 1)]


class CopyRows(Case):
    """Packs heads `first` to `first + some` of `[B, N, M, row]` as a message `[B, some, N, row]`, and weaves that into
    rows `before` on of `[B, some, total, row]`, of which the rest is left alone.
    """

    UNITS = {16: torch.uint8, 4: torch.int32, 2: torch.int16}

    def __init__(self, device, size, units, batch=2, n=37, heads=5, first=1, some=3, before=11, total=61):
        super().__init__(device, f"copy_rows_{size} {batch}x{n}x{heads}, {units} pieces a row")
        self.size, self.units, self.sizes = size, units, (batch, n, heads, first, some, before, total)
        dtype = self.UNITS[size]
        self.each = units * size // dtype.itemsize  # elements of a row
        below = 256 if dtype == torch.uint8 else 1 << 15
        self.x = device.integers(below, batch, n, heads, self.each, dtype=dtype)
        self.message = self.output(batch, some, n, self.each, dtype=dtype)
        self.out = self.output(batch, some, total, self.each, dtype=dtype)

    def launches(self):
        batch, n, heads, first, some, before, total = self.sizes
        units, kernel = self.units, f"copy_rows_{self.size}"
        blocks = min(ceil(n * units, THREADS), 65535)
        places = lambda *strides: ([stride * units for stride in strides],)
        message = places(some * n, n, 1)

        def copy(source, to, from_at, to_at):
            arguments = {"from": source, "to": to}
            self.device.launch(
                kernel,
                (batch * some, blocks),
                from_at=from_at,
                to_at=to_at,
                count1=some,
                count2=n,
                units=units,
                **arguments,
            )

        moved = 2 * batch * some * n * units * self.size
        return [
            Launch(
                kernel, lambda: copy(self.x[:, :, first:], self.message, places(n * heads, 1, heads), message), moved
            ),
            Launch(
                kernel,
                lambda: copy(self.message, self.out[:, :, before:], message, places(some * total, total, 1)),
                moved,
            ),
        ]

    def results(self):
        _, n, _, first, some, before, _ = self.sizes
        packed = self.x[:, :, first : first + some].transpose(1, 2)
        woven = torch.full_like(self.out.view(torch.uint8), 0xFF).view(self.out.dtype).view(self.out.shape)
        woven[:, :, before : before + n] = packed
        kernel = f"copy_rows_{self.size}"
        return [Result(kernel, "message", self.message, packed, 0), Result(kernel, "out", self.out, woven, 0)]


def cases(small):
    """(kernels, what makes the case)."""
    lengths = [1, 4099] if small else [1, 4099, 3_000_017]
    for dtype in (torch.float32, torch.bfloat16):
        names = [f"gelu_{part}_{name_of(dtype)}" for part in ("forward", "backward")]
        for n in lengths:
            yield names, lambda d, t=dtype, n=n: Gelu(d, t, n)
    for n in lengths:
        for averaged in (True, False):
            yield ["adamw"], lambda d, n=n, averaged=averaged: AdamW(d, n, averaged)
        yield ["add_assign"], lambda d, n=n: AddAssign(d, n)
    for n in lengths + [RUN_OF_NORM + 1]:
        yield ["norm_squared"], lambda d, n=n: NormSquared(d, n)
    for n, skip in [(1, 0), (EACH, 0), (2 * EACH + 13, 0), (2 * EACH + 13, 1)] + ([] if small else [(3_000_017, 0)]):
        yield ["to_bf16", "to_f32"], lambda d, n=n, skip=skip: Cast(d, n, skip)
    for rows, width, apart in [(1, 1, 0), (70, 96, 2), (33, 100, 1e4)] + ([] if small else [(10_001, 128, 3)]):
        yield ["ring_merge"], lambda d, r=rows, w=width, a=apart: RingMerge(d, r, w, a)
    for size, units in ((16, 16), (4, 3), (2, 1)):
        yield [f"copy_rows_{size}"], lambda d, s=size, u=units: CopyRows(d, s, u)
        if not small:
            yield [f"copy_rows_{size}"], lambda d, s=size, u=units: CopyRows(d, s, u, 1, 70_001, 12, 3, 4, 19, 80_000)
