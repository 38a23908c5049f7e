"""How fast the kernels are, beside ceilings that are measured in the same process: a large product, a large copy.

Times are medians of CUDA events. Buffers take turns and are larger than L2 together, everything is warmed up, and
launches wait in a queue until the first event, so that nothing of Python is in them.
"""

import math
import statistics
import time

import torch

from checks import arrays, attention, conv, dropout, patches, rows
from checks.case import ceil
from checks.sdpa import BACKENDS, sdpa

ENOUGH = 512 << 20  # bytes of which at least take turns: several times the L2 of an H100 or H200, 50 or 60 MB
WIDTH = 1536  # of all heads, and of rows: the smaller Wan model's


def elapsed(device, calls, count, turn):
    """Seconds of `count` calls in turn, from number `turn` on."""
    chosen = [calls[(turn + i) % len(calls)] for i in range(count)]
    if device.emulated:
        start = time.perf_counter()
        for call in chosen:
            call()
        return time.perf_counter() - start
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    torch.cuda._sleep(2_000_000)  # a millisecond, in which launches queue up
    start.record()
    for call in chosen:
        call()
    end.record()
    torch.cuda.synchronize()
    return start.elapsed_time(end) / 1e3


def median(device, calls, samples=15, longest=4.0):
    """The median seconds of a call, of which several take turns; at least three samples, and no more than take
    `longest` seconds.
    """
    for call in calls:
        call()
    once = elapsed(device, calls, 1, 0)
    count = max(1, min(100, math.ceil(2e-3 / max(once, 1e-9))))  # calls of a sample: of some milliseconds
    samples = max(3, min(samples, int(longest / (count * once))))
    return statistics.median(elapsed(device, calls, count, i * count) / count for i in range(samples))


def peaks(device, report, small):
    """TFLOP/s of a product of bf16, and GB/s of a copy, counting bytes read and written."""
    n, size = (64, 1 << 16) if small else (8192, 2 << 30)
    sets = [[torch.randn(n, n, device=device.where).bfloat16() for _ in range(3)] for _ in range(2)]
    seconds = median(device, [lambda a=a, b=b, c=c: torch.matmul(a, b, out=c) for a, b, c in sets])
    product = 2 * n**3 / seconds / 1e12
    report.line("peak", what=f"product of bf16, {n}^3", rate=product, unit="TFLOP/s", seconds=seconds)
    sets = [[torch.randint(255, (size,), dtype=torch.uint8, device=device.where) for _ in range(2)] for _ in range(2)]
    seconds = median(device, [lambda a=a, b=b: b.copy_(a) for a, b in sets])
    copy = 2 * size / seconds / 1e9
    report.line("peak", what=f"copy of {size} bytes", rate=copy, unit="GB/s", seconds=seconds)
    return product, copy


def time_attention(device, report, peak, d, tokens, heads):
    """Forward and backward by our kernels and by torch's, in TFLOP/s by 4 N^2 D and 10 N^2 D.

    Our backward is given delta, rowsum(do * o); torch's makes it itself, which is a pass over o and do.
    """
    shape = attention.Shape(1, heads, tokens, tokens)
    size = 8 * tokens * heads * d * 2  # bytes of q, k, v, o and their gradients
    sets = min(8, ceil(ENOUGH, size))
    cases = [attention.Attention(device, attention.BF16, d, shape, exact=False) for _ in range(sets)]
    done = {}

    def line(who, part, calls, count):
        seconds = median(device, calls, samples=7)
        rate = count * tokens**2 * heads * d / seconds / 1e12
        report.line(
            "time",
            what=f"attention {part} d{d} {tokens}",
            who=who,
            d=d,
            tokens=tokens,
            heads=heads,
            part=part,
            seconds=seconds,
            rate=rate,
            unit="TFLOP/s",
            share=rate / peak,
        )
        done[who, part] = seconds

    ours = [[device.prepared(launch.run) for launch in case.launches()] for case in cases]
    line("longreel", "forward", [calls[0] for calls in ours], 4)
    line("longreel", "backward", [lambda kv=kv, q=q: (kv(), q()) for _, kv, q in ours], 10)
    line("longreel", "dk and dv alone", [calls[1] for calls in ours], 8)
    line("longreel", "dq alone", [calls[2] for calls in ours], 6)
    for name, backend in BACKENDS:
        try:
            theirs = [sdpa(case, backend) for case in cases]
            line(name, "forward", [forward for forward, _, _ in theirs], 4)
            line(name, "backward", [backward for _, _, backward in theirs], 10)
        except RuntimeError as problem:
            report.line("skipped", what=f"{name} d{d} {tokens}", why=str(problem).splitlines()[0])


def others(small):
    """(what makes a case, whose launches are timed): the sizes are those of a long tile of a 1.3B model."""
    n, width = (96, 64) if small else (65536, WIDTH)
    turn = rows.Turn((4, 4, 8), 0, 32) if small else rows.Turn((16, 64, 64), 0, 128)
    tile, numbers = rows.Tile(n, 0, n, width), n * width
    for dtype in (torch.bfloat16, torch.float32):
        yield lambda d, t=dtype: rows.LayerNorm(d, t, tile, "modulation")
        yield lambda d, t=dtype: rows.RmsRope(d, t, tile, turn)
        yield lambda d, t=dtype: rows.Gate(d, t, tile)
        yield lambda d, t=dtype: arrays.Gelu(d, t, numbers)
    yield lambda d: arrays.Cast(d, numbers)
    yield lambda d: arrays.AdamW(d, numbers, True)
    yield lambda d: arrays.NormSquared(d, numbers)
    yield lambda d: arrays.AddAssign(d, numbers)
    yield lambda d: arrays.RingMerge(d, numbers // 128 or 1, 128, 2)
    for size, units in ((16, 16), (4, 64), (2, 128)):
        yield lambda d, s=size, u=units: arrays.CopyRows(d, s, u, 1, n // 4 * 3, 12, 0, 6, 0, n)
    yield lambda d: patches.Patches(
        d, *(((8, 16, 16), (1, 2, 2), 0, 64) if small else ((81, 480, 832), (1, 2, 2), 0, 8_000_000))
    )
    yield lambda d: dropout.Dropout(d, n, width, 0, 0.1)
    yield from conv.timed(small)


def time_others(device, report, copy, chosen, make):
    """GB/s of what is bound by memory: bytes that must be moved, over the time, as a share of the copy's."""
    case = make(device)
    if not chosen & {launch.kernel for launch in case.launches()}:
        return
    cases = [case, make(device)]  # each of hundreds of megabytes
    case.run()
    cases[1].run()
    for i, first in enumerate(case.launches()):
        if first.kernel not in chosen or not report.reaches(f"time of {first.kernel}", 1):
            continue
        seconds = median(device, [device.prepared(case.launches()[i].run) for case in cases], longest=1.0)
        rate = first.bytes / seconds / 1e9
        report.line(
            "time", what=first.kernel, who=case.title, seconds=seconds, rate=rate, unit="GB/s", share=rate / copy
        )


def run(device, report, chosen, small, guarded):
    """The ceilings, then attention from the shortest sequences on, then the rest."""
    if not report.reaches("the ceilings", 5):
        return
    found = []
    guarded(device, report, "ceilings", lambda: found.extend(peaks(device, report, small)))
    if not found:
        return
    product, copy = found
    width, lengths = (128, (160,)) if small else (WIDTH, (8192, 32768, 131072))
    for tokens in lengths:
        for d in (128, 64, 96):
            if not chosen & {f"flash_{part}_bf16_d{d}" for part in ("forward", "backward_kv", "backward_q")}:
                continue
            seconds = 3 + 16 * 14 * tokens**2 * width / 200e12
            if report.reaches(f"attention d{d} {tokens}", 1 if small else seconds):
                guarded(
                    device,
                    report,
                    f"attention d{d} {tokens}",
                    lambda: time_attention(device, report, product, d, tokens, max(1, width // d)),
                )
    for make in others(small):
        if report.reaches("times of what is bound by memory", 2):
            guarded(device, report, "times", lambda: time_others(device, report, copy, chosen, make))
