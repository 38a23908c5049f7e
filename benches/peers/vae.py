"""diffusers' AutoencoderKLWan on the CPU, encoding or decoding one clip with random weights of the real widths.

    python vae.py --half encode --frames 17 --height 256 --width 448

Prints a JSON line; the seconds are medians over --runs, after one run that does not count. Only the half in question is
in memory. Needs: torch==2.11.0, diffusers==0.42.1.
"""
import argparse
import json
import os
import resource
import time

import diffusers
import torch

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
for name, default in {"frames": 17, "height": 256, "width": 448, "runs": 1, "threads": os.cpu_count()}.items():
    parser.add_argument(f"--{name}", type=int, default=default)
parser.add_argument("--half", choices=["encode", "decode"], default="encode")
parser.add_argument("--kind", choices=["2.1", "2.2"], default="2.1")
parser.add_argument("--dtype", choices=["f32", "bf16"], default="f32")
a = parser.parse_args()
torch.set_num_threads(a.threads)
torch.manual_seed(0)

kind = dict(f32=torch.float32, bf16=torch.bfloat16)[a.dtype]
config = {} if a.kind == "2.1" else dict(
    base_dim=160, decoder_base_dim=256, z_dim=48, is_residual=True, in_channels=12, out_channels=12, patch_size=2,
    scale_factor_spatial=16, latents_mean=[0.0] * 48, latents_std=[1.0] * 48)
vae = diffusers.AutoencoderKLWan(**config).to(kind).eval()
side, encode = (8 if a.kind == "2.1" else 16), a.half == "encode"
if encode:
    vae.decoder = vae.post_quant_conv = None
    x = torch.randn(1, 3, a.frames, a.height, a.width, dtype=kind)
else:
    vae.encoder = vae.quant_conv = None
    x = torch.randn(1, vae.config.z_dim, 1 + (a.frames - 1) // 4, a.height // side, a.width // side, dtype=kind)


def run():
    start = time.perf_counter()
    with torch.no_grad():
        vae.encode(x) if encode else vae.decode(x)
    return time.perf_counter() - start


# What clears the caches between calls counts the layers of both halves, of which one is not there.
vae._cached_conv_counts = {half: sum(isinstance(m, diffusers.models.autoencoders.autoencoder_kl_wan.WanCausalConv3d)
                                     for m in getattr(vae, half).modules()) if getattr(vae, half) is not None else 0
                           for half in ("encoder", "decoder")}
run()
seconds = sorted(run() for _ in range(a.runs))[a.runs // 2]
print(json.dumps({
    "peer": "diffusers AutoencoderKLWan", "torch": torch.__version__, "diffusers": diffusers.__version__,
    "preload": os.environ.get("LD_PRELOAD", ""), "half": a.half, "kind": a.kind, "frames": a.frames, "height": a.height,
    "width": a.width, "dtype": a.dtype, "threads": a.threads, "fwd_s": round(seconds, 3),
    "peak_rss_gib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 3)}))
