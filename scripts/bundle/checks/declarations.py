"""Reads from kernels/ how each kernel is declared and launched: its parameters, threads and shared memory.

Whoever launches a kernel by this names its arguments as the kernel does, so that none can be left out, exchanged or
passed as another type. Only Python's standard library is needed.
"""

import ctypes
import re

SCALARS = {
    "int": ctypes.c_int,
    "i64": ctypes.c_longlong,
    "u32": ctypes.c_uint,
    "u64": ctypes.c_ulonglong,
    "float": ctypes.c_float,
    "double": ctypes.c_double,
}


class Problem(Exception):
    """What is wrong, in one line."""


class Parameter:
    """A kernel's parameter: its name, and its type as the source has it, without const."""

    def __init__(self, text):
        match = re.fullmatch(r"(?:const )?([\w ]+?)\s*(\*?)\s*(\w+)", " ".join(text.split()))
        if not match:
            raise Problem(f"the parameter {text.strip()!r} cannot be read")
        self.type, pointer, self.name = match.groups()
        self.pointer = bool(pointer)

    def __str__(self):
        return f"{self.type}{'*' * self.pointer} {self.name}"


class Kernel:
    """A kernel of launch.h: the stem of its file, its parameters, its threads and bytes of shared memory a block."""

    def __init__(self, name, threads, shared):
        self.name, self.threads, self.shared = name, threads, shared
        self.file = self.parameters = None


def read(folder):
    """(name -> Kernel, name -> ctypes.Structure) of a folder that is laid out as kernels/."""
    header = folder / "launch.h"
    if not header.is_file():
        raise Problem(f"{folder} has no launch.h: --cubins names the folder that scripts/bundle/cubins.sh has written")
    text = header.read_text()
    rows = re.findall(r"^KERNEL\((\w+), (\d+), (\d+)\)$", text, re.M)
    if not rows or len(rows) != len(re.findall(r"^KERNEL\(", text, re.M)):
        raise Problem(f"{header} has a line that cannot be read")
    kernels = {name: Kernel(name, int(threads), int(shared)) for name, threads, shared in rows}
    structs = {}
    for path in sorted(folder.glob("*.cu*")):
        if path.suffix not in (".cu", ".cuh"):
            continue
        source = re.sub(r"//.*", "", path.read_text())
        structs.update(structures(source))
        for name, parameters in declared(source).items():
            if name not in kernels:
                raise Problem(f"{path} has the kernel {name}, and launch.h does not")
            kernels[name].file = path.stem
            kernels[name].parameters = [Parameter(part) for part in parameters.split(",")]
    for kernel in kernels.values():
        if kernel.parameters is None:
            raise Problem(f"launch.h has {kernel.name}, and no file of {folder} declares it")
    return kernels, structs


def declared(source):
    """name -> parameters, as text, of the kernels of a file, those that its macros make included."""
    macro = re.compile(r"^#define (\w+)\(([^)]*)\)((?:.*\\\n)*.*)$", re.M)
    macros = {name: (inner.split(","), body.replace("\\\n", "\n")) for name, inner, body in macro.findall(source)}
    text = macro.sub("", source)
    uses = re.compile(rf"^\s*({'|'.join(macros)})\(([^()]*)\);?$", re.M) if macros else None
    while uses and (found := uses.search(text)):
        inner, body = macros[found[1]]
        values = dict(zip((name.strip() for name in inner), (value.strip() for value in found[2].split(","))))
        body = re.sub(r"\b\w+\b", lambda word: values.get(word[0], word[0]), body)
        text = text[: found.start()] + re.sub(r"\s*##\s*", "", body) + text[found.end() :]
    kernel = re.compile(r'extern "C" __global__ void __launch_bounds__\([^)]*\)\s*(\w+)\(([^)]*)\)')
    return dict(kernel.findall(text))


def structures(source):
    """name -> ctypes.Structure of the plain structs of a file: those whose fields are numbers, arrays of them, or
    pointers.
    """
    found = {}
    for name, body in re.findall(r"^struct (\w+) \{\n(.*?)^\};", source, re.M | re.S):
        fields = []
        for kind, pointer, names in re.findall(
            r"^\s*(?:const )?(\w+)(\*?) ([^;{}()]+);", body.split("__device__")[0], re.M
        ):
            base = ctypes.c_void_p if pointer else SCALARS.get(kind)
            for field in names.split(","):
                match = re.fullmatch(r"\s*(\w+)(?:\[(\d+)\])?\s*", field)
                label, length = match.groups() if match else (field, None)
                fields.append((label, base * int(length) if match and base and length else match and base))
        if fields and all(base for _, base in fields):
            found[name] = type(name, (ctypes.Structure,), {"_fields_": fields})
    return found
