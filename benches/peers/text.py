"""transformers' UMT5EncoderModel on the CPU, all prompts in one batch without padding: what suits it best.

    python text.py --model runs/text-umt5-4 --prompts 20 --tokens 60

Prints a JSON line; the seconds are medians over --runs, after one run that does not count, and without loading, which
is told apart. Needs: torch==2.11.0, transformers.
"""
import argparse
import json
import os
import resource
import time

import torch
import transformers

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
for name, default in {"prompts": 20, "tokens": 60, "runs": 1, "threads": os.cpu_count()}.items():
    parser.add_argument(f"--{name}", type=int, default=default)
parser.add_argument("--model", required=True)
parser.add_argument("--dtype", choices=["f32", "bf16"], default="f32")
a = parser.parse_args()
torch.set_num_threads(a.threads)

start = time.perf_counter()
kind = dict(f32=torch.float32, bf16=torch.bfloat16)[a.dtype]
model = transformers.UMT5EncoderModel.from_pretrained(a.model, dtype=kind).eval()
load = time.perf_counter() - start
ids = torch.arange(a.prompts * a.tokens).mul(2654435761).remainder(model.config.vocab_size).view(a.prompts, a.tokens)


def run():
    start = time.perf_counter()
    with torch.no_grad():
        model(ids)
    return time.perf_counter() - start


run()
seconds = sorted(run() for _ in range(a.runs))[a.runs // 2]
print(json.dumps({
    "peer": "transformers UMT5EncoderModel", "torch": torch.__version__, "transformers": transformers.__version__,
    "preload": os.environ.get("LD_PRELOAD", ""), "layers": model.config.num_layers, "dim": model.config.d_model,
    "prompts": a.prompts, "tokens": a.tokens, "dtype": a.dtype, "threads": a.threads, "load_s": round(load, 3),
    "fwd_s": round(seconds, 3), "peak_rss_gib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 3)}))
