"""Memory and launches: on a GPU by torch and CuPy, or on the CPU by the emulator (emulated.py).

Every tensor that a kernel gets comes from here. It is full of NaN until it is written, and lies between bytes that
nobody may write: `spoiled` says whether somebody did.
"""

import ctypes

import numpy
import torch

from checks.declarations import SCALARS, Problem

PAD = 512  # bytes before and after a tensor; its alignment, too
POISON = 0xFF  # NaN in every floating type

# What a kernel's pointer may point to; a float2 is two neighbours, a Sixteen that many bytes.
DTYPES = {
    "float": torch.float32,
    "float2": torch.float32,
    "double": torch.float64,
    "bf16": torch.bfloat16,
    "i64": torch.int64,
    "u8": torch.uint8,
    "u32": torch.int32,
    "unsigned short": torch.int16,
    "Sixteen": torch.uint8,
}


class Device:
    """Loads kernels by `module_of`, which makes of a cubin's path what cupy.RawModule is, and launches them."""

    def __init__(self, where, folder, kernels, structs, module_of, seed, exact=False, allocate=None):
        """`exact`: tensors are allocations of their own, without pads, so that a memory checker sees their ends.
        `allocate` makes a tensor of so many bytes; by default torch does.
        """
        self.where, self.folder, self.kernels, self.structs, self.module_of = where, folder, kernels, structs, module_of
        self.pad = 0 if exact else PAD
        self.allocate = allocate or (lambda count: torch.empty(count, dtype=torch.uint8, device=where))
        self.generator = torch.Generator(device=where).manual_seed(seed)
        self.functions, self.buffers, self.launched, self.recorded = {}, [], set(), None

    @property
    def emulated(self):
        return self.where == "cpu"

    # ---- memory ---------------------------------------------------------------------------------------------------

    def empty(self, *shape, dtype=torch.float32):
        """A poisoned tensor."""
        count = max(1, torch.Size(shape).numel()) * dtype.itemsize
        buffer = self.allocate(count + 2 * self.pad)
        buffer.fill_(POISON)
        if self.pad:
            self.buffers.append((buffer, count))
        return buffer[self.pad : self.pad + count].view(dtype).view(shape)

    def tensor(self, values, dtype=None):
        """A copy of a tensor, or of numbers."""
        values = torch.as_tensor(values)
        made = self.empty(*values.shape, dtype=dtype or values.dtype)
        return made.copy_(values)

    def normal(self, *shape, dtype=torch.float32, deviation=1.0):
        """Normal numbers, rounded to `dtype`."""
        return self.empty(*shape, dtype=dtype).normal_(0, deviation, generator=self.generator)

    def integers(self, below, *shape, dtype=torch.uint8):
        """Whole numbers in 0..below."""
        return self.empty(*shape, dtype=dtype).random_(0, below, generator=self.generator)

    def poison(self, tensor):
        tensor.view(-1).view(torch.uint8).fill_(POISON)

    def release(self):
        """Forgets all tensors; nobody may use them any more."""
        self.buffers = []
        if not self.emulated:
            torch.cuda.empty_cache()

    def spoiled(self):
        """Whether anything around a tensor was written."""
        for buffer, count in self.buffers:
            if not bool((buffer[: self.pad] == POISON).all() and (buffer[self.pad + count :] == POISON).all()):
                return True
        return False

    def free(self):
        """Bytes of memory that are free."""
        return 1 << 62 if self.emulated else torch.cuda.mem_get_info()[0]

    def synchronize(self):
        if not self.emulated:
            torch.cuda.synchronize()

    # ---- launches -------------------------------------------------------------------------------------------------

    def launch(self, name, grid, **arguments):
        """Launches a kernel on a grid, given all its arguments by their names: tensors, numbers, and tuples for
        structs.
        """
        kernel = self.kernels.get(name)
        if kernel is None:
            raise Problem(f"launch.h has no kernel {name}")
        names = [parameter.name for parameter in kernel.parameters]
        if set(arguments) != set(names):
            raise Problem(f"{name} takes {', '.join(names)}, not {', '.join(arguments)}")
        packed = tuple(by_value(self.packed(p, arguments[p.name], name)) for p in kernel.parameters)
        if name not in self.functions:
            function = self.module_of(str(self.folder / f"{kernel.file}.cubin")).get_function(name)
            if kernel.shared > 0:
                function.max_dynamic_shared_size_bytes = kernel.shared
            self.functions[name] = function
        function, grid, block = self.functions[name], tuple((*grid, 1, 1)[:3]), (kernel.threads, 1, 1)
        if self.recorded is not None:
            self.recorded.append(lambda: function(grid, block, packed, shared_mem=kernel.shared))
            return
        function(grid, block, packed, shared_mem=kernel.shared)
        self.launched.add(name)

    def prepared(self, run):
        """The launches of `run`, with their arguments packed, as one function: what is left to do in Python is short
        beside a kernel.
        """
        self.recorded = []
        try:
            run()
            calls = self.recorded
        finally:
            self.recorded = None

        def launch():
            for call in calls:
                call()

        return launch

    def packed(self, parameter, value, kernel):
        """An argument as the kernel takes it."""
        if parameter.pointer:
            wanted = DTYPES.get(parameter.type)
            if value is not None and value.dtype != wanted:
                raise Problem(f"{kernel}: {parameter.name} is {value.dtype}, {parameter} wants {wanted}")
            return ctypes.c_void_p(address(value))
        if parameter.type in SCALARS:
            return SCALARS[parameter.type](value)
        made = self.structs[parameter.type]()
        if len(value) != len(made._fields_):
            raise Problem(f"{kernel}: {parameter} has {len(made._fields_)} fields, not {len(value)}")
        for (field, kind), part in zip(made._fields_, value):
            if kind is ctypes.c_void_p:
                part = address(part)
            elif isinstance(part, (tuple, list)):
                part = kind(*part)
            setattr(made, field, part)
        return made


def address(tensor):
    return None if tensor is None else tensor.data_ptr()


def by_value(argument):
    """What CuPy passes to a kernel by value: an array of one element, of any type."""
    return numpy.frombuffer(bytearray(bytes(argument)), dtype=f"V{ctypes.sizeof(argument)}")


def gpu(folder, kernels, structs, seed, exact):
    """The GPU, if there is one; CuPy launches on the stream that torch computes on, the default one."""
    try:
        import cupy
    except ImportError as error:
        raise Problem(f"CuPy loads the kernels: {error}") from error
    if not torch.cuda.is_available():
        raise Problem("torch sees no GPU")
    modules = {}

    def module_of(path):
        if path not in modules:
            modules[path] = cupy.RawModule(path=path)
        return modules[path]

    return Device("cuda", folder, kernels, structs, module_of, seed, exact)
