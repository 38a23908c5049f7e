"""A stand-in for the GPU: the very kernels, run on the CPU by the emulator of kernels/host, as they are compiled for
sm_90a (wgmma).

It proves that the checks are right before there is a GPU, and shows nothing of speed. An access beyond a tensor, a
race in shared memory and the like end the process with the emulator's message (docs/gpu.md).
"""

import ctypes
import hashlib
import os
import pathlib
import subprocess

from checks.declarations import Problem

ROOT = pathlib.Path(__file__).resolve().parents[3]
OUT = ROOT / "target/emulated-kernels"


def built(sources, out=OUT, optimise="-O2"):
    """The kernels and the emulator as a library, which is kept under the hash of its sources."""
    texts = hashlib.sha256()
    for path in sorted(path for path in sources.rglob("*") if path.is_file()):
        texts.update(f"{path.relative_to(sources)}\n".encode() + path.read_bytes())
    library = out / f"{texts.hexdigest()[:16]}.so"
    if library.exists():
        return library
    out.mkdir(parents=True, exist_ok=True)
    made = out / f"{library.stem}.{os.getpid()}"
    host = sources / "host"
    command = [
        "c++",
        "-std=c++20",
        optimise,
        "-fPIC",
        "-shared",
        "-DWGMMA",
        "-Wno-unknown-pragmas",
        str(host / "driver/ours.cpp"),
        str(host / "library.cpp"),
        "-o",
        str(made),
    ]
    try:
        done = subprocess.run(command, capture_output=True, text=True)
    except OSError as error:
        raise Problem(f"the emulator needs a C++20 compiler as c++: {error}") from error
    if done.returncode:
        raise Problem(f"the emulator does not compile: {done.stderr}")
    made.rename(library)
    return library


class Module:
    """As cupy.RawModule."""

    def __init__(self, library):
        self.library = library

    def get_function(self, name):
        return Function(self.library, name)


class Function:
    """As cupy.RawKernel: `args` are arrays of one element, which are passed by value."""

    max_dynamic_shared_size_bytes = 48 << 10

    def __init__(self, library, name):
        self.library, self.name = library, name

    def __call__(self, grid, block, args, *, shared_mem=0):
        if shared_mem > self.max_dynamic_shared_size_bytes:
            raise Problem(f"{self.name}: {shared_mem} bytes of shared memory were not asked for")
        if any(array.size != 1 for array in args):
            raise Problem(f"{self.name}: only arrays of one element are passed by value")
        pointers = (ctypes.c_void_p * len(args))(*(array.__array_interface__["data"][0] for array in args))
        if self.library.run_kernel(
            self.name.encode(), (ctypes.c_uint * 3)(*grid), (ctypes.c_uint * 3)(*block), shared_mem, pointers
        ):
            raise Problem(f"the emulator has no kernel {self.name}: kernels/host/driver/ours.cpp lacks its file")


def emulator(folder, kernels, structs, seed):
    """The emulator as a device, whose tensors end at a page that must not be touched."""
    import torch  # the rest of this file needs only Python

    from checks.device import Device

    library = ctypes.CDLL(str(built(folder)))
    library.guarded.restype = ctypes.c_void_p
    library.guarded.argtypes = [ctypes.c_size_t]

    def allocate(count):
        return torch.frombuffer((ctypes.c_uint8 * count).from_address(library.guarded(count)), dtype=torch.uint8)

    module = Module(library)
    return Device("cpu", folder, kernels, structs, lambda _: module, seed, exact=True, allocate=allocate)
