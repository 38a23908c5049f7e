"""Dropout of an adapter's input: the elements that kernels/dropout.cu sets to zero, and those that it adds."""

import torch

from checks.case import THREADS, Case, Launch, Result, ceil
from checks.patches import chacha8

DRAWN = 32  # elements of a block of words


class Dropout(Case):
    """`n` rows of `width` elements, of the tokens from `token` on, into another array and added to one."""

    def __init__(self, device, n, width, token, rate):
        super().__init__(device, f"dropout {rate} of {n} x {width}")
        self.n, self.width, self.token = n, width, token
        self.least, self.scale = round(rate * 65536), float(torch.tensor(1 / (1 - rate)))
        self.key = [int(word) for word in device.integers(1 << 32, 8, dtype=torch.int64)]
        self.x, self.begin = device.normal(n, width), device.normal(n, width)
        self.y, self.sum = self.output(n, width), self.output(n, width, begin=self.begin)

    def launches(self):
        def launch(y, add):
            self.device.launch(
                "dropout",
                (ceil(self.n * ceil(self.width, DRAWN), THREADS),),
                x=self.x,
                y=y,
                key=(self.key,),
                token=self.token,
                n=self.n,
                width=self.width,
                least=self.least,
                scale=self.scale,
                add=add,
            )

        numbers = self.n * self.width
        return [
            Launch("dropout", lambda: launch(self.y, 0), 8 * numbers),
            Launch("dropout", lambda: launch(self.sum, 1), 12 * numbers),
        ]

    def results(self):
        """y has the bits of one product in f32."""
        blocks = ceil(self.width, DRAWN)
        streams = (torch.arange(self.n) + self.token).repeat_interleave(blocks)
        words = chacha8(self.key, streams, torch.arange(blocks).repeat(self.n))
        drawn = torch.stack([words & 0xFFFF, words >> 16], -1).view(self.n, -1)[:, : self.width]
        kept = (drawn >= self.least).to(self.device.where)
        y = torch.where(kept, self.x * self.scale, 0.0)
        return [
            Result("dropout", "y", self.y, y, 0),
            Result("dropout", "sum", self.sum, self.begin.double() + y.double(), 2e-7),
        ]


def cases(small):
    """(kernels, what makes the case): rows of less than a block, of many, and tokens beyond 2^32."""
    for n, width, token in [(1, 1, 0), (33, 70, 7), (40, 64, 1 << 33)] + ([] if small else [(20_001, 1537, 99)]):
        yield ["dropout"], lambda d, n=n, w=width, t=token: Dropout(d, n, w, t, 0.3)
