"""Judges what scripts/check-cuda.sh compiled, by ptxas' report and the machine code; prints the table of docs/gpu.md.

    check_cuda.py FOLDER yes|no ARCHITECTURE...
"""

import pathlib
import re
import sys

import wgmma_hazards

# Per block, and per SM: shared memory with the 1 KiB a block that the GPU keeps; registers and threads are the same for
# both.
SHARED = {"sm_80": (163 << 10, 164 << 10), "sm_90": (227 << 10, 228 << 10), "sm_90a": (227 << 10, 228 << 10)}
REGISTERS, THREADS, BLOCKS = 65536, 2048, 32

# Products on tensor cores: mma.sync, or wgmma where there is one.
HMMA, HGMMA = r"\bHMMA\.16816\.F32\.BF16\b", r"\bHGMMA\.64x\d+x16\.F32\.BF16\b"


def needed(arch):
    """What the machine code of a flash kernel in bf16 must hold: name -> pattern."""
    common = {"cp.async": r"\bLDGSTS\b"}
    if arch == "sm_90a":
        return common | {
            "wgmma": HGMMA,
            "fence between threads' and wgmma's views of memory": r"\bFENCE\.VIEW\.ASYNC\b",
        }
    return common | {"mma.sync": HMMA, "ldmatrix": r"\bLDSM\.16\.M88\.4\b", "ldmatrix.trans": r"\bLDSM\.16\.MT88\.4\b"}


def launches():
    """name -> (threads, shared bytes), as kernels/launch.h has them."""
    text = pathlib.Path("kernels/launch.h").read_text()
    rows = re.findall(r"^KERNEL\((\w+), (\d+), (\d+)\)$", text, re.M)
    if len(rows) != len(re.findall(r"^KERNEL\(", text, re.M)):
        sys.exit("check-cuda: kernels/launch.h has a line that cannot be read")
    return {name: (int(threads), int(shared)) for name, threads, shared in rows}


def reports(folder):
    """name -> (registers, spilled bytes, static shared bytes), of all of an architecture's kernels."""
    found = {}
    for log in sorted(folder.glob("*.log")):
        for part in log.read_text().split("Compiling entry function '")[1:]:
            name = part.split("'")[0]
            stores, loads = re.search(r"(\d+) bytes spill stores, (\d+) bytes spill loads", part).groups()
            registers = int(re.search(r"Used (\d+) registers", part)[1])
            static = re.search(r"(\d+) bytes smem", part)
            found[name] = (registers, int(stores) + int(loads), int(static[1]) if static else 0)
    return found


def machine_code(folder):
    """name -> its machine code."""
    found = {}
    for sass in sorted(folder.glob("*.sass")):
        for part in sass.read_text().split("Function : ")[1:]:
            found[part.split()[0]] = part
    return found


def hazards(folder, arch):
    """What is wrong with wgmma's registers, in ptxas' words and in the machine code."""
    logs = {log.stem: wgmma_hazards.serialised(log.read_text()) for log in sorted(folder.glob("*.log"))}
    found = [f"{name}.cu ({arch}): {line}" for name, lines in logs.items() for line in lines]
    for sass in sorted(folder.glob("*.sass")):
        for name, instructions in wgmma_hazards.functions(sass.read_text()).items():
            found += [f"{name} ({arch}): {line}" for line in wgmma_hazards.hazards(instructions)]
    return found


def blocks_of_sm(arch, threads, registers, shared):
    """How many blocks an SM holds at once: a warp's registers come in units of 256."""
    per_warp = -(-registers * 32 // 256) * 256
    return min(
        BLOCKS, THREADS // threads, REGISTERS // (per_warp * (threads // 32)), SHARED[arch][1] // (shared + 1024)
    )


def main(folder, docs, architectures):
    expected, errors, rows = launches(), [], {}
    for arch in architectures:
        compiled, code = reports(folder / arch), machine_code(folder / arch)
        errors += hazards(folder / arch, arch)
        for name in sorted(set(expected) ^ set(compiled)):
            errors.append(f"{name} ({arch}) is {'only compiled' if name in compiled else 'only in kernels/launch.h'}")
        for name in (name for name in expected if name in compiled):
            (threads, shared), (registers, spilled, static) = expected[name], compiled[name]
            most = SHARED[arch][0]
            if spilled:
                errors.append(f"{name} ({arch}) spills {spilled} bytes of registers")
            if shared + static > most:
                errors.append(f"{name} ({arch}) needs {shared + static} bytes of shared memory; a block has {most}")
            if static:
                errors.append(f"{name} ({arch}) has {static} bytes of static shared memory; launch.h says all")
            blocks = blocks_of_sm(arch, threads, registers, shared)
            if blocks == 0:
                errors.append(f"{name} ({arch}) with {threads} threads of {registers} registers does not fit an SM")
            if name.startswith("flash_") and "bf16" in name:
                for what, pattern in needed(arch).items():
                    if not re.search(pattern, code.get(name, "")):
                        errors.append(f"{name} ({arch}) has no {what} instruction")
            products = len(re.findall(HGMMA if arch == "sm_90a" else HMMA, code.get(name, "")))
            rows.setdefault(name, [f"`{name}`", threads, shared]).extend([products or "-", registers, blocks])

    heads = "".join(f" {arch}: products | registers | blocks an SM |" for arch in architectures)
    lines = [f"| kernel | threads | shared bytes |{heads}", "|---" * (3 + 3 * len(architectures)) + "|"]
    lines += ["| " + " | ".join(str(cell) for cell in row) + " |" for row in rows.values()]
    print("\n".join(lines))
    if errors:
        sys.exit("\n".join(f"check-cuda: {error}" for error in errors))
    if docs == "yes":
        page = pathlib.Path("docs/gpu.md")
        text = page.read_text()
        begin, end = "<!-- table:kernels -->", "<!-- /table -->"
        before, rest = text.split(begin)
        page.write_text(before + begin + "\n\n" + "\n".join(lines) + "\n\n" + end + rest.split(end, 1)[1])
    print(f"check-cuda: {len(rows)} kernels compile for {', '.join(architectures)}: no warning, no spill, no hazard")


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]), sys.argv[2], sys.argv[3:])
