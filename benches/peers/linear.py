"""PyTorch's nn.Linear on the CPU, forward and forward+backward.

    python linear.py --tokens 8192 --in 384 --out 1536

Prints a JSON line for each dtype; weights, input and gradients are all of that dtype. GFLOP/s counts 2 N in out forward
and 3 times that for forward+backward (the gradients of input, weight and bias); the seconds are medians over --runs,
after one run that does not count. Needs: torch==2.11.0.
"""
import argparse
import json
import os
import resource
import time

import torch

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
for name, default in {"tokens": 8192, "in": 384, "out": 1536, "runs": 5, "threads": os.cpu_count()}.items():
    parser.add_argument(f"--{name}", type=int, default=default)
parser.add_argument("--dtype", choices=["f32", "bf16"], help="one only (default: both)")
a = parser.parse_args()
inner = getattr(a, "in")
torch.set_num_threads(a.threads)


def median(f):
    f()
    times = []
    for _ in range(a.runs):
        start = time.perf_counter()
        f()
        times.append(time.perf_counter() - start)
    return sorted(times)[len(times) // 2]


for dtype in ("f32", "bf16") if a.dtype is None else (a.dtype,):
    kind = dict(f32=torch.float32, bf16=torch.bfloat16)[dtype]
    layer = torch.nn.Linear(inner, a.out, dtype=kind)
    x = torch.randn(a.tokens, inner, dtype=kind, requires_grad=True)
    g = torch.randn(a.tokens, a.out, dtype=kind)
    with torch.no_grad():
        forward = median(lambda: layer(x))
    both = median(lambda: layer(x).backward(g))
    flop = 2 * a.tokens * inner * a.out
    print(json.dumps({
        "peer": "torch nn.Linear", "torch": torch.__version__, "preload": os.environ.get("LD_PRELOAD", ""),
        "threads": a.threads, "dtype": dtype, "tokens": a.tokens, "in": inner, "out": a.out,
        "fwd_s": round(forward, 6), "fwd_gflops": round(flop / forward / 1e9, 1),
        "fwdbwd_s": round(both, 6), "fwdbwd_gflops": round(3 * flop / both / 1e9, 1),
        "peak_rss_gib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 3)}))
