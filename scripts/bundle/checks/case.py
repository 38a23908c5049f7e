"""What all checks share: a case is a kernel's inputs, its launches, and what they must make of them."""

import math
from collections import namedtuple

import torch

# As kernels/common.cuh and rows.cuh have them: threads of a block, rows of a run.
THREADS, RUN = 256, 64

# A launch: the kernel, a function that launches it, and the bytes that it must move, each input read once, each output
# written once.
Launch = namedtuple("Launch", "kernel run bytes")

# A result beside what it must be. Its error is the greater of ||result - truth|| / ||truth|| and a third of the
# greatest error as a share of the greatest true value. Where all of the truth is below `scale`, as terms of that size
# have cancelled each other, it is a third of the greatest error as a share of `scale`. A bound of 0 wants equal values.
Result = namedtuple("Result", "kernel what got truth bound scale", defaults=(0.0,))

Error = namedtuple("Error", "error most norm passed")


class Case:
    """To be derived from: `launches()` and `results()` are the kernels' own.

    Outputs are poisoned, or set to what they begin with, before each run.
    """

    def __init__(self, device, title):
        self.device, self.title, self.outputs = device, title, []

    def output(self, *shape, dtype=torch.float32, begin=None):
        """A tensor that the launches write; `begin` is what it holds before."""
        made = self.device.empty(*shape, dtype=dtype)
        self.outputs.append((made, begin))
        return made

    def run(self):
        for tensor, begin in self.outputs:
            if begin is None:
                self.device.poison(tensor)
            else:
                tensor.copy_(begin)
        for launch in self.launches():
            launch.run()
        self.device.synchronize()

    def bits(self):
        """Copies of all outputs, as bytes."""
        return [tensor.view(-1).view(torch.uint8).clone() for tensor, _ in self.outputs]


def error(result):
    """The error of a result, in f64; NaN where the result has one."""
    if result.got.shape != result.truth.shape:
        return Error(math.inf, math.inf, math.inf, False)
    if result.bound == 0 and torch.equal(result.got, result.truth):
        return Error(0.0, 0.0, 0.0, True)
    truth = result.truth.double()
    off = (result.got.double() - truth).abs()
    size, length = float(truth.abs().max()), float(truth.norm())
    most = float(off.max()) / (max(size, result.scale) or 1)
    norm = float(off.norm()) / (length or 1)
    whole = most / 3 if result.scale > size else max(norm, most / 3)
    if math.isnan(most):  # which `max` may pass over
        whole = most
    return Error(whole, most, norm, 0 < result.bound >= whole)


def ceil(n, of):
    return -(-n // of)


def name_of(dtype):
    return {torch.float32: "f32", torch.bfloat16: "bf16"}[dtype]
