"""Stands in for torch in tests of the GPU bundle: what benches/peers/attention.py calls, and a count of imports in
$STAND_IN/torch."""
import contextlib
import os

with open(os.path.join(os.environ["STAND_IN"], "torch"), "a") as count:
    count.write(f"imported with LD_LIBRARY_PATH={os.environ.get('LD_LIBRARY_PATH')}\n")
__version__ = "stand-in"
float32, bfloat16 = "f32", "bf16"


class Tensor:
    def backward(self, gradient):
        pass


def randn(shape, **_):
    return Tensor()


def randn_like(_):
    return Tensor()


def set_num_threads(_):
    pass


no_grad = contextlib.nullcontext


class cuda:
    @staticmethod
    def synchronize():
        pass
