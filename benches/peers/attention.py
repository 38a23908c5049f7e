"""PyTorch's scaled_dot_product_attention, forward and forward+backward, on the CPU or with --device cuda on a GPU.

    python attention.py --tokens 8192 --heads 6 --head-dim 64
    python attention.py --device cuda --tokens 8192 131072 --head-dim 64 128 --dtype bf16 --backend flash cudnn

Prints a JSON line for each shape, dtype and backend; what one of them cannot do is a line with "error", and exit code
1. GFLOP/s counts 4 N^2 d H forward and 3.5 times that for forward+backward; the seconds are medians over --runs, after
one run that does not count. Needs: torch==2.11.0.
"""
import argparse
import contextlib
import json
import os
import resource
import sys
import time

import torch
import torch.nn.functional as F

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
for name, default in dict(tokens=8192, head_dim=64).items():
    parser.add_argument(f"--{name.replace('_', '-')}", type=int, nargs="+", default=[default])
for name, default in dict(heads=6, runs=5, threads=os.cpu_count()).items():
    parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=default)
parser.add_argument("--dtype", choices=["f32", "bf16"], help="one only (default: both)")
parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
parser.add_argument("--backend", choices=["default", "flash", "cudnn"], nargs="+", default=["default"],
                    help="PyTorch's own choice, FlashAttention, or cuDNN")
a = parser.parse_args()
torch.set_num_threads(a.threads)


def backend(name):
    """A context in which attention is computed so, or not at all."""
    if name == "default":
        return contextlib.nullcontext()
    from torch.nn.attention import SDPBackend, sdpa_kernel

    return sdpa_kernel({"flash": SDPBackend.FLASH_ATTENTION, "cudnn": SDPBackend.CUDNN_ATTENTION}[name])


def done():
    if a.device == "cuda":
        torch.cuda.synchronize()


def median(f):
    f()
    done()
    times = []
    for _ in range(a.runs):
        start = time.perf_counter()
        f()
        done()
        times.append(time.perf_counter() - start)
    return sorted(times)[len(times) // 2]


def measure(tokens, dim, dtype, name):
    shape, kind = (1, a.heads, tokens, dim), dict(f32=torch.float32, bf16=torch.bfloat16)[dtype]
    q, k, v = (torch.randn(shape, dtype=kind, device=a.device, requires_grad=True) for _ in range(3))
    g = torch.randn_like(q)
    with backend(name):
        with torch.no_grad():
            forward = median(lambda: F.scaled_dot_product_attention(q, k, v))
        both = median(lambda: F.scaled_dot_product_attention(q, k, v).backward(g))
    flop = 4 * tokens**2 * dim * a.heads
    return dict(
        fwd_s=round(forward, 6), fwd_gflops=round(flop / forward / 1e9, 1),
        fwdbwd_s=round(both, 6), fwdbwd_gflops=round(3.5 * flop / both / 1e9, 1),
        peak_rss_gib=round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 3))


failed = False
for tokens in a.tokens:
    for dim in a.head_dim:
        for dtype in ("f32", "bf16") if a.dtype is None else (a.dtype,):
            for name in a.backend:
                line = dict(
                    peer="torch sdpa",
                    torch=torch.__version__,
                    preload=os.environ.get("LD_PRELOAD", ""),
                    threads=a.threads,
                    device=a.device,
                    backend=name,
                    dtype=dtype,
                    tokens=tokens,
                    heads=a.heads,
                    head_dim=dim,
                )
                try:
                    line |= measure(tokens, dim, dtype, name)
                except (RuntimeError, MemoryError) as error:  # no such backend here, or no room
                    line["error"], failed = str(error).strip().split("\n")[0], True
                    print(f"attention.py: {tokens} x {dim}, {name}: {error}", file=sys.stderr)
                print(json.dumps(line), flush=True)
sys.exit(failed)
