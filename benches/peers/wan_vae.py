#!/usr/bin/env python3
"""Times diffusers' AutoencoderKLWan on one CPU and, in turn, longreel on the same random weights.

    wan_vae.py [--size 17x256x448] [--what encode,decode] [--dtype f32] [--rounds 3] [--kind 2.1] [--longreel PATH]

The VAE has the real widths and random weights; both sides read the same folder and inputs, and the first results are
compared. Prints a line of JSON for each measurement: seconds (medians over rounds, longreel and diffusers in turn),
their ratio, and each process' peak memory. longreel's time is the whole process, reading weights included; diffusers'
is the call alone, after one untimed call, with its weights loaded.
"""
import argparse
import json
import os
import pathlib
import re
import statistics
import subprocess
import sys
import tempfile
import time

KINDS = {
    "2.1": {},
    "2.2": dict(base_dim=160, decoder_base_dim=256, z_dim=48, is_residual=True, in_channels=12, out_channels=12, patch_size=2,
                scale_factor_spatial=16, latents_mean=[0.0] * 48, latents_std=[1.0] * 48),
}


def child(folder, inputs, output, dtype, what, rounds):
    """diffusers' side: a process of its own, so that its peak memory is its own. Answers a line for each line it reads."""
    import resource

    import torch
    from diffusers import AutoencoderKLWan
    from safetensors.torch import load_file, save_file

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    kind = {"f32": torch.float32, "bf16": torch.bfloat16}[dtype]
    vae = AutoencoderKLWan.from_pretrained(folder, torch_dtype=kind).eval()
    x = next(iter(load_file(inputs).values())).to(kind)
    with torch.no_grad():
        run = (lambda: vae.encode(x).latent_dist.parameters) if what == "encode" else (lambda: vae.decode(x).sample)
        first = True
        for _ in sys.stdin:
            start = time.perf_counter()
            y = run()
            seconds = time.perf_counter() - start
            if first:
                save_file({"moments" if what == "encode" else "decoded": y.float().contiguous()}, output)
                first = False
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
            print(json.dumps({"seconds": seconds, "peak": peak}), flush=True)


def make(folder, kind):
    import torch
    from diffusers import AutoencoderKLWan

    torch.manual_seed(0)
    vae = AutoencoderKLWan(**KINDS[kind])
    vae.save_pretrained(folder)
    return vae.config.z_dim, 16 if kind == "2.2" else 8


def longreel(program, folder, inputs, output, dtype):
    start = time.perf_counter()
    command = ["/usr/bin/time", "-v", program, "forward", folder, inputs, "-o", output, "--force", "--dtype", dtype]
    run = subprocess.run(command, check=True, capture_output=True, text=True)
    seconds = time.perf_counter() - start
    peak = int(re.search(r"Maximum resident set size \(kbytes\): (\d+)", run.stderr)[1]) * 1024
    return {"seconds": seconds, "peak": peak}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--size", default="17x256x448", help="frames x height x width in pixels")
    parser.add_argument("--what", default="encode,decode")
    parser.add_argument("--dtype", default="f32", help="longreel's arithmetic")
    parser.add_argument("--peer-dtype", default="f32", help="diffusers' dtype")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--kind", default="2.1", choices=KINDS)
    parser.add_argument("--longreel", default="target/release/longreel")
    parser.add_argument("--child", nargs=5, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        child(*args.child, args.rounds)
        return
    import torch
    from safetensors.torch import load_file, save_file

    frames, height, width = map(int, args.size.split("x"))
    with tempfile.TemporaryDirectory() as scratch:
        scratch = pathlib.Path(scratch)
        folder = scratch / "vae"
        z, scale = make(folder, args.kind)
        generator = torch.Generator().manual_seed(1)
        pixels = (torch.rand(1, 3, frames, height, width, generator=generator) * 255).round() / 127.5 - 1
        latents = torch.randn(1, z, 1 + (frames - 1) // 4, height // scale, width // scale, generator=generator)
        mean, std = (torch.tensor(json.loads((folder / "config.json").read_text())[name]).view(1, -1, 1, 1, 1)
                     for name in ("latents_mean", "latents_std"))
        for what in args.what.split(","):
            encode = what == "encode"
            ours, theirs = scratch / "ours.safetensors", scratch / "theirs.safetensors"
            save_file({"pixels": pixels} if encode else {"latents": latents}, ours)
            save_file({"x": pixels if encode else latents * std + mean}, theirs)  # diffusers' decoder takes them unscaled
            command = [sys.executable, __file__, "--child", folder, theirs, scratch / "want.safetensors", args.peer_dtype, what]
            peer = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

            def ask():
                peer.stdin.write("\n")
                peer.stdin.flush()
                return json.loads(peer.stdout.readline())

            warm, here, there = args.rounds > 1 and ask(), [], []
            for _ in range(args.rounds):
                here.append(longreel(args.longreel, folder, ours, scratch / "got.safetensors", args.dtype))
                there.append(ask())
            peer.stdin.close()
            peer.wait()
            name = "moments" if encode else "decoded"
            got, want = (load_file(scratch / f"{side}.safetensors")[name].double() for side in ("got", "want"))
            off = ((got - want).norm() / want.norm()).item()
            seconds = [statistics.median(run["seconds"] for run in side) for side in (here, there)]
            peaks = [max(run["peak"] for run in side) for side in (here, there + ([warm] if warm else []))]
            print(json.dumps({
                "what": what, "kind": args.kind, "size": args.size, "dtype": args.dtype, "peer_dtype": args.peer_dtype,
                "longreel_seconds": round(seconds[0], 2), "diffusers_seconds": round(seconds[1], 2),
                "times_as_fast": round(seconds[1] / seconds[0], 2), "longreel_peak_gb": round(peaks[0] / 1e9, 2),
                "diffusers_peak_gb": round(peaks[1] / 1e9, 2), "difference": float(f"{off:.1e}")}), flush=True)


if __name__ == "__main__":
    main()
