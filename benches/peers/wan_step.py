"""One training step of diffusers' WanTransformer3DModel on the CPU: forward, backward, AdamW.

    python wan_step.py --frames 8 --height 64 --width 64 --dtype bf16
    torchrun --nproc_per_node 2 wan_step.py --frames 8 --height 64 --width 64 --dtype bf16     # DeepSpeed-Ulysses, gloo

Sizes are of the latent (16 channels, patches of 1 x 2 x 2): tokens = frames * height/2 * width/2. Prints one JSON line;
step_s is the median over --steps, after one step that does not count; threads are those of a rank, peak_rss_gib is the
sum over ranks. bf16 is autocast: weights and optimizer stay in f32. Needs: torch==2.11.0 diffusers==0.42.1 accelerate,
and for torchrun deepspeed==0.19.8.
"""
import argparse
import json
import os
import resource
import time

os.environ.setdefault("DS_ACCELERATOR", "cpu")
import diffusers
import torch
import torch.nn.functional as F
from diffusers.models.transformers import transformer_wan as wan

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
threads = max(1, (os.cpu_count() or 1) // world)
sizes = dict(frames=8, height=64, width=64, layers=4, heads=6, head_dim=64, steps=3, threads=threads)
for name, default in sizes.items():
    parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=default)
parser.add_argument("--dtype", choices=["f32", "bf16"], default="bf16")
parser.add_argument("--no-checkpointing", action="store_true", help="keep activations instead of recomputing blocks")
parser.add_argument("--math", action="store_true", help="attention as plain products, its matrix in memory")
a = parser.parse_args()

torch.set_num_threads(a.threads)
torch.manual_seed(0)
dim = a.heads * a.head_dim
model = wan.WanTransformer3DModel(
    patch_size=(1, 2, 2), num_attention_heads=a.heads, attention_head_dim=a.head_dim, in_channels=16, out_channels=16,
    text_dim=64, freq_dim=256, ffn_dim=4 * dim, num_layers=a.layers, cross_attn_norm=True)
if not a.no_checkpointing:
    model.enable_gradient_checkpointing()
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)

if world > 1:  # sequence parallelism: each rank holds frames / world frames
    import deepspeed
    import torch.distributed as dist
    from deepspeed.sequence.layer import DistributedAttention

    if a.frames % world:
        raise SystemExit(f"{a.frames} frames do not split over {world} ranks")
    deepspeed.init_distributed(dist_backend="gloo")

    class Local(torch.nn.Module):  # [B, S, h, d], as DistributedAttention hands it over
        def forward(self, q, k, v, *_, **__):
            q, k, v = (t.transpose(1, 2) for t in (q, k, v))
            return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).contiguous()

    ulysses, plain = DistributedAttention(Local(), dist.group.WORLD, 2, 1), wan.dispatch_attention_fn

    def attention(q, k, v, **kwargs):
        if q.shape[1] != k.shape[1]:
            return plain(q, k, v, **kwargs)  # cross-attention is token-local
        return ulysses(q.contiguous(), k.contiguous(), v.contiguous(), batch_dim_idx=0)

    wan.dispatch_attention_fn = attention
    whole = model.rope.forward

    def rope(x):  # the positions of this rank's frames, not of the first ones
        b, c, f, h, w = x.shape
        return tuple(r.chunk(world, dim=1)[rank] for r in whole(torch.empty(b, c, f * world, h, w)))

    model.rope.forward = rope

if a.math:
    torch.backends.cuda.enable_flash_sdp(False)  # the CPU's too

x = torch.randn(1, 16, a.frames // world, a.height, a.width)
text, timestep = torch.randn(1, 16, 64), torch.tensor([500])
times = []
for _ in range(a.steps + 1):
    start = time.perf_counter()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=a.dtype == "bf16"):
        y = model(x, timestep, text).sample
        loss = F.mse_loss(y.float(), x)
    loss.backward()
    if world > 1:
        for p in model.parameters():
            dist.all_reduce(p.grad)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    times.append(time.perf_counter() - start)

memory = torch.tensor(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, dtype=torch.float64)
if world > 1:
    dist.all_reduce(memory)  # of all ranks together
if rank == 0:
    tokens = a.frames * (a.height // 2) * (a.width // 2)
    step = sorted(times[1:])[len(times[1:]) // 2]
    print(json.dumps(dict(
        peer="diffusers Wan" + (" + DeepSpeed-Ulysses" if world > 1 else ""), diffusers=diffusers.__version__,
        torch=torch.__version__, preload=os.environ.get("LD_PRELOAD", ""), ranks=world, threads=a.threads,
        dtype=a.dtype, checkpointing=not a.no_checkpointing, tokens=tokens, layers=a.layers, dim=dim, heads=a.heads,
        head_dim=a.head_dim, step_s=round(step, 4), tokens_per_s=round(tokens / step, 1),
        peak_rss_gib=round(memory.item(), 3), loss=round(loss.item(), 5))))
if world > 1:
    dist.barrier()
    dist.destroy_process_group()
