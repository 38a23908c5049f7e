"""What is done to each row of activations: LayerNorm, RMSNorm with RoPE, gates; and the sums over rows (sum_runs)."""

from collections import namedtuple

import torch

from checks.case import RUN, THREADS, Case, Launch, Result, ceil, name_of

EPS = 1e-6
WHOLE = 1 << 62  # tokens, where samples do not matter

# `n` rows from row `start` on of samples of `tokens` rows.
Tile = namedtuple("Tile", "n start tokens width")

# Bounds of results: of what is rounded to bf16 once, of what is f32 all along, of sums of f32.
BOUND = {torch.bfloat16: 4e-3, torch.float32: 2e-6}
SUM_BOUND = 4e-6


class OfRows(Case):
    """A case over a tile, whose activations are of one type."""

    def __init__(self, device, op, dtype, tile, more=""):
        super().__init__(device, f"{op} {name_of(dtype)} {tile.n}x{tile.width}{more}")
        self.dtype, self.tile, self.type, self.runs = dtype, tile, name_of(dtype), ceil(tile.n, RUN)
        rows = torch.arange(tile.n, device=device.where) + tile.start
        self.sample, self.token = rows // tile.tokens, rows % tile.tokens
        self.first, self.samples = tile.start // tile.tokens, int(self.sample[-1]) + 1
        self.touched = self.samples - self.first  # samples of the tile

    def activations(self, deviation=1):
        return self.device.normal(self.tile.n, self.tile.width, dtype=self.dtype, deviation=deviation)

    def moved(self, times):
        """Bytes of as many tensors of the tile."""
        return times * self.tile.n * self.tile.width * self.dtype.itemsize

    def sum_runs(self, parts, gradient, stride, which, count, samples):
        """Launches of sum_runs, into `gradient` of the tile's first sample."""
        width = self.tile.width
        run = lambda: self.device.launch(
            "sum_runs",
            (ceil(width, THREADS), samples),
            parts=parts,
            gradient=gradient,
            stride=stride,
            runs=self.runs,
            which=which,
            count=count,
            width=width,
        )
        return Launch("sum_runs", run, 4 * width * samples * (self.runs + 2))

    def summed(self, terms):
        """Sums over the rows of each sample: `[samples, width]`."""
        sums = torch.zeros(self.samples, self.tile.width, dtype=torch.float64, device=terms.device)
        return sums.index_add_(0, self.sample, terms)


class LayerNorm(OfRows):
    """With a modulation of each sample (adaLN), with weights, or with nothing."""

    def __init__(self, device, dtype, tile, affine):
        super().__init__(device, "layer_norm", dtype, tile, f" {affine}")
        self.affine, width = affine, tile.width
        self.one = 1.0 if affine == "modulation" else 0.0
        self.modulated = affine == "modulation"
        self.x, self.dy = self.activations(3), self.activations()
        self.m = device.normal(self.samples if self.modulated else 1, 2, width)  # shift, scale
        self.y, self.dx = (self.output(tile.n, width, dtype=dtype) for _ in range(2))
        self.saved = self.output(tile.n, 2)
        self.parts = self.output(self.touched if self.modulated else 1, self.runs, 2, width)
        self.dm = self.output(*self.m.shape, begin=torch.ones_like(self.m))  # gradients are added to what is there

    def launches(self):
        n, start, tokens, width = self.tile
        stride = 2 * width if self.modulated else 0
        rows, first = ((start, tokens), self.first) if self.modulated else ((0, WHOLE), 0)
        samples = self.touched if self.modulated else 1
        scale = (None if self.affine == "nothing" else self.m[0, 1], stride)
        launch, end = self.device.launch, self.type
        same = dict(x=self.x, rows=rows, width=width)
        forward, backward, columns = (f"layer_norm_{part}_{end}" for part in ("forward", "backward", "columns"))
        return [
            Launch(
                forward,
                lambda: launch(
                    forward, (n,), y=self.y, scale=scale, shift=(self.m[0, 0], stride), one=self.one, eps=EPS, **same
                ),
                self.moved(2),
            ),
            Launch(
                backward,
                lambda: launch(
                    backward, (n,), dy=self.dy, dx=self.dx, saved=self.saved, scale=scale, one=self.one, eps=EPS, **same
                ),
                self.moved(3),
            ),
            Launch(
                columns,
                lambda: launch(
                    columns,
                    (ceil(width, THREADS), self.runs, samples),
                    dy=self.dy,
                    saved=self.saved,
                    parts=self.parts,
                    n=n,
                    **same,
                ),
                self.moved(2),
            ),
            self.sum_runs(self.parts, self.dm[first:, 1], stride, 0, 2, samples),
            self.sum_runs(self.parts, self.dm[first:, 0], stride, 1, 2, samples),
        ]

    def results(self):
        x, dy, m = self.x.double(), self.dy.double(), self.m.double()
        sample = self.sample if self.modulated else torch.zeros_like(self.sample)
        a = 1.0 if self.affine == "nothing" else self.one + m[sample, 1]
        b = 0.0 if self.affine == "nothing" else m[sample, 0]
        centred = x - x.mean(1, keepdim=True)
        r = 1 / (centred.square().mean(1, keepdim=True) + EPS).sqrt()
        xhat, g = centred * r, dy * a
        dx = r * (g - g.mean(1, keepdim=True) - xhat * (g * xhat).mean(1, keepdim=True))
        if self.modulated:
            sums = [self.summed(dy), self.summed(dy * xhat)]
        else:
            sums = [dy.sum(0, keepdim=True), (dy * xhat).sum(0, keepdim=True)]
        forward, backward, columns, adding, _ = (launch.kernel for launch in self.launches())
        bound = BOUND[self.dtype]
        return [Result(forward, "y", self.y, xhat * a + b, bound), Result(backward, "dx", self.dx, dx, bound)] + [
            Result(kernel, "dscale, dshift", self.dm, 1 + torch.stack(sums, 1), SUM_BOUND)
            for kernel in (columns, adding)
        ]


# Rows' heads of `d` features are turned by their tokens' places in a grid, of which the rank's first is `first`.
Turn = namedtuple("Turn", "grid first d")


class RmsRope(OfRows):
    def __init__(self, device, dtype, tile, turn=None):
        super().__init__(device, "rms_rope", dtype, tile, f" turned by {turn.d}" if turn else "")
        width = tile.width
        self.x, self.dy, self.weight = self.activations(3), self.activations(), device.normal(width)
        self.y, self.dx = (self.output(tile.n, width, dtype=dtype) for _ in range(2))
        self.saved, self.parts = self.output(tile.n), self.output(self.runs, width)
        self.dw = self.output(width, begin=torch.ones_like(self.weight))
        self.rope, self.angle = (None, 1, 1, 1, 0, 2), None
        if turn:
            axes = [self.angles(length, dims) for length, dims in zip(turn.grid, axis_dims(turn.d))]
            self.rope = (
                device.tensor(torch.cat([table(a).view(-1) for a in axes]).float()),
                *turn.grid,
                turn.first,
                turn.d,
            )
            token = turn.first + self.token
            t, h, w = turn.grid
            places = (token // (h * w), token // w % h, token % w)
            self.angle = torch.cat([a[place] for a, place in zip(axes, places)], 1).repeat(1, width // turn.d)

    def angles(self, positions, dims):
        """`[positions, dims / 2]`, in f64."""
        rate = 10000.0 ** (-torch.arange(0, dims, 2, dtype=torch.float64, device=self.device.where) / max(dims, 1))
        return torch.arange(positions, dtype=torch.float64, device=self.device.where)[:, None] * rate

    def launches(self):
        n, start, tokens, width = self.tile
        same = dict(x=self.x, rope=self.rope, rows=(start, tokens), width=width)
        launch = self.device.launch
        forward, backward, columns = (f"rms_rope_{part}_{self.type}" for part in ("forward", "backward", "columns"))
        return [
            Launch(
                forward, lambda: launch(forward, (n,), y=self.y, weight=self.weight, eps=EPS, **same), self.moved(2)
            ),
            Launch(
                backward,
                lambda: launch(
                    backward, (n,), dy=self.dy, dx=self.dx, saved=self.saved, weight=self.weight, eps=EPS, **same
                ),
                self.moved(3),
            ),
            Launch(
                columns,
                lambda: launch(
                    columns,
                    (ceil(width // 2, THREADS), self.runs),
                    dy=self.dy,
                    saved=self.saved,
                    parts=self.parts,
                    n=n,
                    **same,
                ),
                self.moved(2),
            ),
            self.sum_runs(self.parts, self.dw, 0, 0, 1, 1),
        ]

    def turned(self, x, sign):
        if self.angle is None:
            return x
        cos, sin = self.angle.cos(), sign * self.angle.sin()
        even, odd = x[:, 0::2], x[:, 1::2]
        return torch.stack([even * cos - odd * sin, odd * cos + even * sin], 2).view_as(x)

    def results(self):
        x, weight = self.x.double(), self.weight.double()
        r = 1 / (x.square().mean(1, keepdim=True) + EPS).sqrt()
        back, xhat = self.turned(self.dy.double(), -1), x * r
        g = back * weight
        dx = r * (g - xhat * (g * xhat).mean(1, keepdim=True))
        forward, backward, columns, adding = (launch.kernel for launch in self.launches())
        bound = BOUND[self.dtype]
        return [
            Result(forward, "y", self.y, self.turned(xhat * weight, 1), bound),
            Result(backward, "dx", self.dx, dx, bound),
        ] + [Result(kernel, "dw", self.dw, 1 + (back * xhat).sum(0), SUM_BOUND) for kernel in (columns, adding)]


def axis_dims(d):
    """Features of a head that belong to time, height, width."""
    side = 2 * (d // 6)
    return d - 2 * side, side, side


def table(angles):
    return torch.stack([angles.cos(), angles.sin()], -1)


class Gate(OfRows):
    """out = x + gate y, with the second of three rows of each sample as its gate."""

    def __init__(self, device, dtype, tile):
        super().__init__(device, "gate", dtype, tile)
        self.x, self.y, self.d_out = self.activations(), self.activations(2), self.activations()
        self.gates = device.normal(self.samples, 3, tile.width)
        self.out, self.dy = (self.output(tile.n, tile.width, dtype=dtype) for _ in range(2))
        self.parts = self.output(self.touched, self.runs, tile.width)
        self.dgates = self.output(*self.gates.shape, begin=torch.ones_like(self.gates))

    def launches(self):
        n, start, tokens, width = self.tile
        columns, launch = ceil(width, THREADS), self.device.launch
        same = dict(y=self.y, gate=(self.gates[0, 1], 3 * width), rows=(start, tokens), n=n, width=width)
        forward, backward = (f"gate_{part}_{self.type}" for part in ("forward", "backward"))
        return [
            Launch(
                forward, lambda: launch(forward, (columns, self.runs), x=self.x, out=self.out, **same), self.moved(3)
            ),
            Launch(
                backward,
                lambda: launch(
                    backward, (columns, self.runs, self.touched), d_out=self.d_out, dy=self.dy, parts=self.parts, **same
                ),
                self.moved(3),
            ),
            self.sum_runs(self.parts, self.dgates[self.first :, 1], 3 * width, 0, 1, self.touched),
        ]

    def results(self):
        x, y, d_out, gate = self.x.double(), self.y.double(), self.d_out.double(), self.gates[self.sample, 1].double()
        dgates = torch.ones(self.gates.shape, dtype=torch.float64, device=x.device)
        dgates[:, 1] += self.summed(y * d_out)
        forward, backward, adding = (launch.kernel for launch in self.launches())
        bound = BOUND[self.dtype]
        return [
            Result(forward, "out", self.out, x + gate * y, bound),
            Result(backward, "dy", self.dy, d_out * gate, bound),
        ] + [Result(kernel, "dgate", self.dgates, dgates, SUM_BOUND) for kernel in (backward, adding)]


def cases(small):
    """(kernels, what makes the case): one row, several samples and runs, rows longer than a block is wide, a rank's
    tile.
    """
    one, uneven, wide = Tile(1, 0, 1, 8), Tile(131, 50, 70, 354), Tile(3, 5, 2, 1100)
    tiles = [one, uneven, wide] if small else [one, uneven, wide, Tile(5000, 3000, 2500, 1536)]
    turns = [(uneven, Turn((5, 3, 9), 41, 118)), (Tile(5, 2, 4, 16), Turn((1, 2, 2), 0, 8))]
    if not small:
        turns.append((Tile(5000, 100, 6000, 1536), Turn((7, 30, 52), 4000, 128)))
    parts = ("forward", "backward", "columns")
    for dtype in (torch.float32, torch.bfloat16):
        end = name_of(dtype)
        norms = [f"layer_norm_{part}_{end}" for part in parts] + ["sum_runs"]
        turned = [f"rms_rope_{part}_{end}" for part in parts] + ["sum_runs"]
        gates = [f"gate_forward_{end}", f"gate_backward_{end}", "sum_runs"]
        for tile in tiles:
            for affine in ("nothing", "weights", "modulation"):
                yield norms, lambda d, t=dtype, tile=tile, affine=affine: LayerNorm(d, t, tile, affine)
            yield gates, lambda d, t=dtype, tile=tile: Gate(d, t, tile)
            yield turned, lambda d, t=dtype, tile=tile: RmsRope(d, t, tile)
        for tile, turn in turns:
            yield turned, lambda d, t=dtype, tile=tile, turn=turn: RmsRope(d, t, tile, turn)
