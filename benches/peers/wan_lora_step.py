"""One LoRA step of diffusers' WanTransformer3DModel with peft on the CPU: forward, backward, AdamW of the adapters.

    python wan_lora_step.py --frames 21 --height 60 --width 26 --heads 12 --head-dim 128 --ffn-dim 8960 \
        --text 64 --text-dim 4096 --layers 2 --lora 32

Adapters of all linear layers of all blocks in f32, over a frozen network with random weights in --dtype, with gradient
checkpointing. Sizes are of the latent, as in wan_step.py. Prints one JSON line; step_s is the median over --steps,
after one step that does not count. Needs: torch==2.11.0 diffusers==0.42.1 accelerate peft==0.21.2.
"""
import argparse
import json
import os
import resource
import time

import diffusers
import peft
import torch
import torch.nn.functional as F
from diffusers import WanTransformer3DModel

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
sizes = dict(frames=8, height=64, width=64, layers=4, heads=6, head_dim=64, ffn_dim=1536, text=16, text_dim=64, lora=32,
             steps=3, threads=os.cpu_count() or 1)
for name, default in sizes.items():
    parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=default)
parser.add_argument("--dtype", choices=["f32", "bf16"], default="bf16")
a = parser.parse_args()

torch.set_num_threads(a.threads)
torch.manual_seed(0)
dtype = torch.bfloat16 if a.dtype == "bf16" else torch.float32
torch.set_default_dtype(dtype)  # so that no copy of the network in f32 counts as its memory
model = WanTransformer3DModel(
    patch_size=(1, 2, 2), num_attention_heads=a.heads, attention_head_dim=a.head_dim, in_channels=16, out_channels=16,
    text_dim=a.text_dim, freq_dim=256, ffn_dim=a.ffn_dim, num_layers=a.layers, cross_attn_norm=True)
torch.set_default_dtype(torch.float32)
model.requires_grad_(False)
targets = ["to_q", "to_k", "to_v", "to_out.0", "ffn.net.0.proj", "ffn.net.2"]
model.add_adapter(peft.LoraConfig(r=a.lora, lora_alpha=a.lora, target_modules=targets))
trained = [p for p in model.parameters() if p.requires_grad]
for p in trained:
    p.data = p.data.float()
model.enable_gradient_checkpointing()
model.train()
optimizer = torch.optim.AdamW(trained, lr=1e-4, fused=True)

x = torch.randn(1, 16, a.frames, a.height, a.width)
text, timestep = torch.randn(1, a.text, a.text_dim, dtype=dtype), torch.tensor([500])
times = []
for _ in range(a.steps + 1):
    start = time.perf_counter()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=a.dtype == "bf16"):
        y = model(x.to(dtype), timestep, text).sample
        loss = F.mse_loss(y.float(), x)
    loss.backward()
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    times.append(time.perf_counter() - start)

tokens = a.frames * (a.height // 2) * (a.width // 2)
step = sorted(times[1:])[len(times[1:]) // 2]
print(json.dumps(dict(
    peer="diffusers Wan + peft", diffusers=diffusers.__version__, peft=peft.__version__, torch=torch.__version__,
    preload=os.environ.get("LD_PRELOAD", ""), ranks=1, threads=a.threads, dtype=a.dtype, checkpointing=True,
    tokens=tokens, layers=a.layers, dim=a.heads * a.head_dim, heads=a.heads, head_dim=a.head_dim, lora=a.lora,
    trained=sum(p.numel() for p in trained), step_s=round(step, 4), tokens_per_s=round(tokens / step, 1),
    peak_rss_gib=round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 3), loss=round(loss.item(), 5))))
