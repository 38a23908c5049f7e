"""Whether the kernels are right: every case, repetitions for equal bits, a long sequence, addresses beyond 2^31
elements.
"""

import traceback

import torch

from checks import arrays, attention, conv, dropout, far, patches, rows
from checks.case import error
from checks.declarations import Problem
from checks.sdpa import BACKENDS, sdpa_gradients

REPETITIONS = 200
LONG = 131072


class Broken(Exception):
    """The GPU does nothing any more: an error of a kernel stays with the process."""


def guarded(device, report, title, action):
    """Runs an action, whose error is a line of the report and ends only what it was of."""
    try:
        action()
    except Exception as problem:
        message = str(problem) if isinstance(problem, Problem) else traceback.format_exc(limit=-3)
        report.line("error", case=title, message=message.strip()[-1500:])
        try:
            device.synchronize()
        except RuntimeError as lost:
            raise Broken(f"{title}: {lost}") from lost
    finally:
        device.release()


def check(device, report, case):
    """Runs a case and compares all its results."""
    case.run()
    for result in case.results():
        found = error(result)
        report.line(
            "check",
            case=case.title,
            kernel=result.kernel,
            what=result.what,
            error=found.error,
            most=found.most,
            norm=found.norm,
            bound=result.bound,
            passed=found.passed,
        )
    if device.spoiled():
        report.line("error", case=case.title, message="bytes before or after a tensor were written")


def bits(device, report, case, repetitions):
    """The same bits each time, from poisoned outputs."""
    case.run()
    first = case.bits()
    same = 0
    for _ in range(repetitions):
        case.run()
        same += all(torch.equal(a, b) for a, b in zip(first, case.bits()))
    report.line("bits", case=case.title, repetitions=repetitions, same=same, passed=same == repetitions)


def long(device, report, d, tokens):
    """A long sequence against f64, beside what other implementations make of it."""
    case = attention.Attention(device, attention.BF16, d, attention.Shape(1, 1, tokens, tokens))
    check(device, report, case)
    truth = [case.truth.o, case.truth.dq, case.truth.dk, case.truth.dv]
    ours = [case.o, case.dq, case.dk, case.dv]
    norms = lambda got, true: max(
        float((a.double() - b.double()).norm() / b.double().norm()) for a, b in zip(got, true)
    )
    report.line("long", case=case.title, who="longreel", what="o, dq, dk, dv", norm=norms(ours, truth))
    for name, backend in BACKENDS:
        try:
            theirs = sdpa_gradients(case, backend)
        except RuntimeError as problem:
            report.line("skipped", what=f"{case.title}, {name}", why=str(problem).splitlines()[0])
            continue
        report.line("long", case=case.title, who=name, what="o, dq, dk, dv", norm=norms(theirs, truth))
        between = norms(ours, theirs)
        report.line(
            "check",
            case=case.title,
            kernel=f"flash, all of bf16_d{d}",
            what=f"||x - {name}|| / ||{name}||",
            error=between,
            most=None,
            norm=between,
            bound=1e-2,
            passed=between <= 1e-2,
        )


def run(device, report, chosen, small):
    """Everything, of the chosen kernels."""
    rooms = (attention, rows, arrays, patches, dropout, conv)
    for kernels, make in (case for room in rooms for case in room.cases(small)):
        if not chosen & set(kernels) or not set(kernels) <= set(device.kernels):
            continue
        if not report.reaches(f"a case of {kernels[0]}", 2):
            continue
        guarded(device, report, kernels[0], lambda: check(device, report, make(device)))
    flash = lambda end: bool(chosen & {f"flash_{part}_{end}" for part in ("forward", "backward_kv", "backward_q")})
    repetitions = 3 if small else REPETITIONS
    shape = attention.Shape(1, 2, 67, 131) if small else attention.Shape(1, 4, 1000, 1333)
    for kind, d in [(kind, d) for kind in (attention.BF16, attention.PARTIAL) for d in attention.DIMS]:
        if flash(f"{kind}_d{d}") and report.reaches(f"repetitions of {kind} d{d}", 5):
            guarded(
                device,
                report,
                f"repetitions of {kind} d{d}",
                lambda: bits(device, report, attention.Attention(device, kind, d, shape), repetitions),
            )
    for d in (128, 64) if not small else (64,):
        tokens = LONG if not small else 200
        if flash(f"bf16_d{d}") and report.reaches(f"{tokens} tokens of d{d}", 1 if small else 20):
            guarded(device, report, f"{tokens} tokens of d{d}", lambda: long(device, report, d, tokens))
    if not small:
        for kernels, gib, make in far.cases():
            title = f"2^31 elements of {kernels[0]}"
            if not chosen & set(kernels) or not report.reaches(title, 10):
                continue
            if (free := device.free()) < gib << 30:
                report.line("skipped", what=title, why=f"it takes {gib} GiB of memory, {free / 2**30:.0f} are free")
            else:
                guarded(device, report, title, lambda: check(device, report, make(device)))
