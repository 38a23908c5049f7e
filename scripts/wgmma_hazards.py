"""Finds registers of wgmma that the machine code touches while products may be at work with them.

    cuobjdump --dump-sass KERNEL.cubin >KERNEL.sass
    wgmma_hazards.py KERNEL.sass|KERNEL.log...

HGMMA reads and writes its registers until a WARPGROUP.DEPBAR has waited for its group, and needs those that were
written before to be fenced by a WARPGROUP.ARRIVE (PTX ISA: wgmma.fence, wgmma.wait_group). Neither the compiler's order
of the source nor the hardware enforces it. In a log of ptxas, a line that says that products are serialised, or that a
fence or a wait was injected (C7508 to C7519), is an error, too.

Prints a line a kernel and one for each hazard; exits with 1 if there is one. Code is read from top to bottom: a branch
between a product and its wait is an error, as what comes next is not known.
"""

import re
import sys

HGMMA = re.compile(r"HGMMA\.64x(\d+)x\d+\S* R(\d+), (?:R(\d+), )?u?gdesc")
SERIALISED = re.compile(r".*\bC75(?:0[89]|1\d)\b.*")

# Instructions without a register as their result, but for those whose first operand shows it.
NO_RESULT = (
    "BRA",
    "BRX",
    "BSSY",
    "BSYNC",
    "CALL",
    "EXIT",
    "FCHK",
    "NANOSLEEP",
    "NOP",
    "R2P",
    "RET",
    "WARPSYNC",
    "YIELD",
)
JUMPS = ("BRA", "BRX", "CALL", "EXIT", "JMP", "RET")


def functions(sass):
    """name -> its instructions (address, opcode, operands), of a text that cuobjdump --dump-sass wrote."""
    found = {}
    for part in sass.split("Function : ")[1:]:
        lines = re.findall(r"^\s+/\*([0-9a-f]{4,5})\*/\s+(?:@!?U?P\w+\s+)?(\S+)\s*(.*?)\s*;", part, re.M)
        found[part.split()[0]] = [(int(at, 16), opcode, operands) for at, opcode, operands in lines]
    return found


def results(opcode, operands):
    """The registers that an instruction writes, of all but HGMMA."""
    base = opcode.split(".")[0]
    if base in NO_RESULT or base.endswith("SETP"):
        return set()
    match = re.match(r"(?:!?P[T\d], )*R(\d+)\b", operands)
    if not match:
        return set()
    words = 1
    wide = r"\.(64|WIDE)\b|^F2F\.F64|^[FI]2[FI]\.([US]64|F64)|^CS2R$"
    if re.search(wide, opcode) or base in ("DADD", "DFMA", "DMUL"):
        words = 2
    if ".128" in opcode or re.search(r"LDSM\.16\.MT?88\.4", opcode) or base in ("HMMA", "IMMA"):
        words = 4
    return set(range(int(match[1]), int(match[1]) + words))


def operands_read(opcode, operands):
    """The registers that an instruction may read: all that it names but its result, those of pairs and fours whole."""
    written = results(opcode, operands)
    read = set()
    named = list(re.finditer(r"\bR(\d+)(\.64)?", operands))
    if written and named:
        named = named[1:]  # the first is the result, which may be named again
    for match in named:
        words = 2 if match[2] or opcode[0] == "D" else 4 if ".128" in opcode else 2 if ".64" in opcode else 1
        read |= set(range(int(match[1]), int(match[1]) + words))
    return read


def products(instructions):
    return sum(opcode.startswith("HGMMA") for _, opcode, _ in instructions)


def hazards(instructions):
    """What is wrong with a kernel, a line each."""
    found = []
    written = None  # since the last fence; None: there was none
    groups, group = [], []  # committed, and not yet: pairs of accumulators and left operands
    for at, opcode, operands in instructions:
        say = lambda what: found.append(f"{at:#x} {opcode} {operands}: {what}")
        busy = [pair for pairs in [*groups, group] for pair in pairs]
        if opcode == "WARPGROUP.ARRIVE":
            written = set()
        elif opcode.startswith("WARPGROUP.DEPBAR"):
            if group:
                say("waits, but the products before it are of no group")
            left = int(operands.split(",")[1], 16)
            groups = groups[-left:] if left else []
        elif opcode.startswith("HGMMA"):
            match = HGMMA.match(f"{opcode} {operands}")
            if not match:
                say("is a product that this check cannot read")
                continue
            columns, first, a = match.groups()
            sums = set(range(int(first), int(first) + int(columns) // 2))
            left = set(range(int(a), int(a) + 4)) if a else set()
            if written is None or written & (sums | left):
                say("takes registers that were written with no fence since")
            written = (written or set()) - sums - left  # said once
            if left & set().union(*(sums for sums, _ in busy)):
                say("takes the sums of a product that is not waited for")
            group.append((sums, left))
            if "gsb" in operands:
                groups, group = [*groups, group], []
        else:
            target = results(opcode, operands)
            if busy and opcode.split(".")[0] in JUMPS:
                say("leaves the code that this check can follow, with products at work")
            if any(target & (sums | left) for sums, left in busy):
                say("writes a register that a product has")
                target = set()  # said once
            if any(operands_read(opcode, operands) & sums for sums, _ in busy):
                say("reads sums of a product that is not waited for")
            if written is not None:
                written |= target
    if groups or group:
        found.append("ends with products that nothing waits for")
    return found


def serialised(log):
    """Lines of ptxas that say that products do not run as they are written."""
    return SERIALISED.findall(log)


def main(paths):
    errors = 0
    for path in paths:
        with open(path, encoding="utf-8") as file:
            text = file.read()
        if path.endswith(".log"):
            lines = serialised(text)
            errors += len(lines)
            print(f"{path}: {len(lines)} products that ptxas changed", *lines, sep="\n  ")
            continue
        for name, instructions in functions(text).items():
            if products(instructions):
                lines = hazards(instructions)
                errors += len(lines)
                print(f"{name}: {products(instructions)} products, {len(lines)} hazards", *lines, sep="\n  ")
    return errors


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]) > 0)
