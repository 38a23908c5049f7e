#!/usr/bin/env python3
"""Libraries to link against in place of CUDA's: the names of all functions that cudarc may call, and nothing behind
them.

    scripts/bundle/stubs.py FOLDER

A program that was linked against them finds the real ones where it runs, by the sonames they have there. cuBLAS alone
would be a download of half a gigabyte, and libcuda comes with a driver only.
"""
import json
import re
import subprocess
import sys
from pathlib import Path

# cudarc's module, the library, its soname.
LIBRARIES = [
    ("driver", "cuda", "libcuda.so.1"),
    ("cublas", "cublas", "libcublas.so.13"),
    ("cublaslt", "cublasLt", "libcublasLt.so.13"),
    ("curand", "curand", "libcurand.so.10"),
    ("nvrtc", "nvrtc", "libnvrtc.so.13"),
    (None, "cudart", "libcudart.so.13"),  # named by Candle's build script, called by nothing of ours
]

folder = Path(sys.argv[1])
folder.mkdir(parents=True, exist_ok=True)
metadata = json.loads(
    subprocess.check_output(["cargo", "metadata", "--format-version", "1", "--locked", "--all-features"])
)
[cudarc] = [Path(p["manifest_path"]).parent for p in metadata["packages"] if p["name"] == "cudarc"]
for module, name, soname in LIBRARIES:
    functions = []
    if module:
        text = (cudarc / "src" / module / "sys" / "mod.rs").read_text()
        functions = sorted(set(re.findall(r"^ +fn (\w+)\(", text, re.MULTILINE)))
        assert functions, f"{module}: cudarc declares its functions otherwise than it did"
    source = "".join(f"void {function}(void) {{}}\n" for function in functions)
    command = ["cc", "-shared", "-fPIC", f"-Wl,-soname,{soname}", "-x", "c", "-", "-o", str(folder / f"lib{name}.so")]
    subprocess.run(command, input=source.encode(), check=True)
