"""Cases whose elements are numbered beyond 2^31, where an index of 32 bits would come round.

All of them in f64 would not fit, so the first, the middle and the last elements are compared.
"""

import torch

from checks import arrays, attention, rows
from checks.case import Result

FAR = 1 << 31
SOME = 1 << 20  # elements of each piece that is compared


def pieces(n, some):
    return [slice(0, some), slice(n // 2, n // 2 + some), slice(n - some, n)]


class FarArrays:
    """For a case of flat arrays, whose names are `arrays`: its results, of pieces."""

    def results(self):
        whole, found = {name: getattr(self, name) for name in self.arrays}, []
        for piece in pieces(self.n, SOME):
            for name, array in whole.items():
                setattr(self, name, [x[piece] for x in array] if isinstance(array, list) else array[piece])
            found += super().results()
        vars(self).update(whole)
        return found


class FarGelu(FarArrays, arrays.Gelu):
    arrays = ("x", "dy", "y", "dx")


class FarAdd(FarArrays, arrays.AddAssign):
    arrays = ("x", "begin", "y")


class FarCast(FarArrays, arrays.Cast):
    arrays = ("f32", "bf16", "down", "up")


class FarAdamW(FarArrays, arrays.AdamW):
    """All have the one decay: ranges without it are checked by the shorter ones."""

    arrays = ("grads", "begin", "now")

    def __init__(self, device, n):
        super().__init__(device, n, averaged=True)
        self.ranges = []


class FarGate(rows.Gate):
    """Without the sums over rows, which are of runs of 64 in any case."""

    def results(self):
        found, (forward, backward, _) = [], (launch.kernel for launch in self.launches())
        for piece in pieces(self.tile.n, SOME // self.tile.width):
            x, y, d_out = (v[piece].double() for v in (self.x, self.y, self.d_out))
            gate = self.gates[self.sample[piece], 1].double()
            found += [
                Result(forward, "out", self.out[piece], x + gate * y, rows.BOUND[self.dtype]),
                Result(backward, "dy", self.dy[piece], d_out * gate, rows.BOUND[self.dtype]),
            ]
        return found


class FarAttention(attention.Attention):
    """Rows of q, k, v and d_o are so far apart that the last begin beyond 2^31 elements."""

    def place(self, shape, inputs):
        apart = FAR // (max(shape.queries, shape.keys) - 2) // 8 * 8
        wide = sum(x.shape[2] * x.shape[3] for x in inputs)
        assert wide <= apart
        buffer = self.device.empty(max(shape.queries, shape.keys) * apart, dtype=torch.bfloat16)
        placed, column = [], 0
        for x in inputs:
            b, s, h, d = x.shape
            view = buffer.as_strided((b, s, h, d), (0, apart, d, 1), buffer.storage_offset() + column)
            placed.append(view.copy_(x))
            column += h * d
        return placed


def cases():
    """(kernels, GiB of memory, what makes the case)."""
    bf16, n = torch.bfloat16, FAR + SOME + 77
    for d in attention.DIMS:
        kernels = [f"flash_{part}_bf16_d{d}" for part in ("forward", "backward_kv", "backward_q")]
        yield kernels, 8, lambda device, d=d: FarAttention(device, attention.BF16, d, attention.Shape(1, 2, 1030, 1029))
    yield ["gelu_forward_bf16", "gelu_backward_bf16"], 20, lambda d: FarGelu(d, bf16, n)
    yield ["to_bf16", "to_f32"], 60, lambda d: FarCast(d, n)
    yield ["add_assign"], 40, lambda d: FarAdd(d, n)
    yield (
        ["copy_rows_2"],
        40,
        lambda d: arrays.CopyRows(d, 2, 128, 1, FAR // 1536 + 99, 12, 0, 12, 7, FAR // 1536 + 200),
    )
    width = 1536
    yield (
        ["gate_forward_bf16", "gate_backward_bf16"],
        30,
        lambda d: FarGate(d, bf16, rows.Tile(FAR // width + 2000, 0, 1 << 20, width)),
    )
    yield ["adamw"], 90, lambda d: FarAdamW(d, n)
