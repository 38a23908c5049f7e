"""The VAE's kernels: frames made ready, the neighbourhoods of output pixels as a matrix's rows, softmax of rows."""

from collections import namedtuple

import torch

from checks.case import THREADS, Case, Launch, Result, ceil, name_of
from checks.rows import BOUND

# A convolution as `Taps` of kernels/conv.cu has it, its channels in units, and the rows of frames and output.
Conv = namedtuple("Conv", "frames rows columns row column stride width channels out_width out_height height")

# What a gather's units are made of, by their bytes.
UNITS = {16: torch.uint8, 4: torch.int32, 2: torch.int16}


class Pack(Case):
    def __init__(self, device, dtype, n, channels, factored, silu):
        super().__init__(device, f"conv_pack {name_of(dtype)} {n}x{channels}" + " silu" * silu)
        self.dtype, self.n, self.channels, self.silu = dtype, n, channels, silu
        self.x = device.normal(n, channels, deviation=3)
        self.x[0] = 0  # a norm of 0
        self.factors = device.normal(channels, deviation=2) if factored else None
        self.y = self.output(n, channels, dtype=dtype)

    def launches(self):
        name, size = f"conv_pack_{name_of(self.dtype)}", 4 + self.dtype.itemsize
        run = lambda: self.device.launch(
            name,
            (ceil(self.n, THREADS // 32),),
            x=self.x,
            y=self.y,
            factors=self.factors,
            n=self.n,
            channels=self.channels,
            silu=int(self.silu),
        )
        return [Launch(name, run, size * self.n * self.channels)]

    def results(self):
        y = self.x.double()
        if self.factors is not None:
            y = y / y.norm(dim=1, keepdim=True).clamp_min(1e-12) * self.factors.double()
        if self.silu:
            y = torch.nn.functional.silu(y)
        return [Result(f"conv_pack_{name_of(self.dtype)}", "y", self.y, y, BOUND[self.dtype])]


class Gather(Case):
    """All output pixels from number `first` on, in units of `size` bytes."""

    def __init__(self, device, size, conv, first=0):
        super().__init__(device, f"conv_gather_{size} {conv.rows}x{conv.columns} of {conv.width}x{conv.channels}")
        self.size, self.conv, self.first, dtype = size, conv, first, UNITS[size]
        self.each = size // dtype.itemsize  # elements of a unit
        self.m = conv.out_width * conv.out_height - first
        self.units = ceil(conv.rows * conv.columns * conv.channels, 8) * 8
        shape = (conv.height + 2, conv.width, conv.channels * self.each)
        below = 256 if dtype == torch.uint8 else 1 << 15
        self.x = [device.integers(below, *shape, dtype=dtype) for _ in range(conv.frames)]
        self.a = self.output(self.m, conv.frames, self.units * self.each, dtype=dtype)

    def launches(self):
        conv, name, n = self.conv, f"conv_gather_{self.size}", self.m * self.conv.frames * self.units
        launch = lambda: self.device.launch(
            name,
            (ceil(n, THREADS),),
            oldest=self.x[0],
            middle=self.x[min(1, conv.frames - 1)],
            newest=self.x[-1],
            a=self.a,
            first=self.first,
            taps=(*conv[:9], self.units),
            n=n,
        )
        return [Launch(name, launch, self.a.nbytes + sum(x.nbytes for x in self.x))]

    def results(self):
        conv, found = self.conv, torch.zeros_like(self.a)
        pixel = torch.arange(self.m, device=self.a.device) + self.first
        at, channels = 0, conv.channels * self.each
        for dy in range(conv.rows):
            for dx in range(conv.columns):
                y = pixel // conv.out_width * conv.stride + conv.row + dy
                x = pixel % conv.out_width * conv.stride + conv.column + dx - 1
                inside = ((x >= 0) & (x < conv.width)).unsqueeze(1)
                for i, frame in enumerate(self.x):
                    values = frame[y, x.clamp(0, conv.width - 1)]
                    found[:, i, at : at + channels] = torch.where(inside, values, torch.zeros_like(values))
                at += channels
        return [Result(f"conv_gather_{self.size}", "a", self.a, found, 0)]


class Softmax(Case):
    def __init__(self, device, dtype, n, width):
        super().__init__(device, f"softmax {name_of(dtype)} {n}x{width}")
        self.dtype, self.n, self.width = dtype, n, width
        self.x, self.y = device.normal(n, width, deviation=4), self.output(n, width, dtype=dtype)

    def launches(self):
        name, size = f"softmax_{name_of(self.dtype)}", 4 + self.dtype.itemsize
        run = lambda: self.device.launch(name, (self.n,), x=self.x, y=self.y, width=self.width, scale=0.7)
        return [Launch(name, run, size * self.n * self.width)]

    def results(self):
        truth = (0.7 * self.x.double()).softmax(1)
        return [Result(f"softmax_{name_of(self.dtype)}", "y", self.y, truth, BOUND[self.dtype])]


CAUSAL, HALVING = Conv(3, 3, 3, 0, 0, 1, 5, 3, 5, 4, 4), Conv(1, 3, 3, 1, 1, 2, 7, 2, 3, 3, 6)
DOUBLING, TIMES = Conv(1, 2, 2, 1, 0, 1, 4, 5, 4, 3, 3), Conv(2, 1, 1, 1, 1, 1, 3, 1, 3, 2, 2)


def cases(small):
    """(kernels, what makes the case)."""
    for dtype in (torch.float32, torch.bfloat16):
        for n, channels in [(1, 3), (23, 96)] + ([] if small else [(70_001, 384)]):
            for factored, silu in ((False, False), (True, False), (True, True)):
                given = (dtype, n, channels, factored, silu)
                yield [f"conv_pack_{name_of(dtype)}"], lambda d, given=given: Pack(d, *given)
        for n, width in [(1, 1), (3, 257)] + ([] if small else [(1000, 14_400)]):
            yield [f"softmax_{name_of(dtype)}"], lambda d, given=(dtype, n, width): Softmax(d, *given)
    for size in UNITS:
        for conv in (CAUSAL, HALVING, DOUBLING, TIMES):
            yield [f"conv_gather_{size}"], lambda d, s=size, c=conv: Gather(d, s, c, 2)


def timed(small):
    """What makes cases whose launches are timed: the widest frames of the 2.1 decoder, a tile of them gathered."""
    wide = CAUSAL if small else Conv(3, 3, 3, 0, 0, 1, 832, 12, 832, 7, 7)
    yield lambda d: Gather(d, 16, wide)
    for dtype in (torch.float32, torch.bfloat16):
        yield lambda d, t=dtype: Pack(d, t, 23 if small else 832 * 480, 96, True, True)
        yield lambda d, t=dtype: Softmax(d, t, 3 if small else 4096, 257 if small else 6240)
