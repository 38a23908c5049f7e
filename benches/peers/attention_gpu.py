"""PyTorch's scaled_dot_product_attention on a GPU, forward and forward+backward.

    python attention_gpu.py --tokens 8192 --heads 12 --head-dim 64 --dtype bf16

Prints a JSON line with the keys of `longreel bench attention --json`. GFLOP/s counts 4 N^2 d H forward and 3.5 times that for
forward+backward; the seconds are medians over --runs, after one run that does not count, each waited for.
"""
import argparse
import json
import time

import torch
import torch.nn.functional as F

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
for name, default in dict(tokens=8192, heads=12, head_dim=64, runs=5).items():
    parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=default)
parser.add_argument("--dtype", choices=["f32", "bf16"], default="bf16")
a = parser.parse_args()


def median(f):
    f()
    torch.cuda.synchronize()
    times = []
    for _ in range(a.runs):
        start = time.perf_counter()
        f()
        torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return sorted(times)[len(times) // 2]


shape, kind = (1, a.heads, a.tokens, a.head_dim), dict(f32=torch.float32, bf16=torch.bfloat16)[a.dtype]
q, k, v = (torch.randn(shape, dtype=kind, device="cuda", requires_grad=True) for _ in range(3))
g = torch.randn_like(q)
with torch.no_grad():
    forward = median(lambda: F.scaled_dot_product_attention(q, k, v))
both = median(lambda: F.scaled_dot_product_attention(q, k, v).backward(g))
flop = 4 * a.tokens**2 * a.head_dim * a.heads
print(json.dumps(dict(
    peer="torch sdpa", torch=torch.__version__, gpu=torch.cuda.get_device_name(), dtype=a.dtype, tokens=a.tokens, heads=a.heads,
    head_dim=a.head_dim, fwd_s=round(forward, 6), fwd_gflops=round(flop / forward / 1e9, 1), fwdbwd_s=round(both, 6),
    fwdbwd_gflops=round(3.5 * flop / both / 1e9, 1))))
