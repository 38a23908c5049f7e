#!/usr/bin/env python3
"""Writes a UMT5 encoder of XXL's widths with random weights in bfloat16, as transformers would, to measure on.

    text_model.py OUT_DIR --layers 4      3.7 GB with four layers, 11.4 GB with all 24

Rows of one block of random numbers repeat, so that it takes no longer than the disk does. Needs torch.
"""
import argparse
import json
import pathlib

import torch

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("out", type=pathlib.Path)
parser.add_argument("--layers", type=int, default=4)
parser.add_argument("--quick", action="store_true", help="tiny widths")
a = parser.parse_args()

vocab, d, d_kv, heads, ff = (1000, 32, 8, 4, 48) if a.quick else (256384, 4096, 64, 64, 10240)
inner = heads * d_kv
config = dict(architectures=["UMT5EncoderModel"], model_type="umt5", vocab_size=vocab, d_model=d, d_kv=d_kv, d_ff=ff,
              num_layers=a.layers, num_decoder_layers=a.layers, num_heads=heads, relative_attention_num_buckets=32,
              relative_attention_max_distance=128, layer_norm_epsilon=1e-6, feed_forward_proj="gated-gelu",
              is_encoder_decoder=True, dropout_rate=0.0, pad_token_id=0, eos_token_id=1, tie_word_embeddings=True)
shapes = {"shared.weight": [vocab, d]}
for i in range(a.layers):
    layer = f"encoder.block.{i}.layer"
    for part, shape in (("q", [inner, d]), ("k", [inner, d]), ("v", [inner, d]), ("o", [d, inner]),
                        ("relative_attention_bias", [32, heads])):
        shapes[f"{layer}.0.SelfAttention.{part}.weight"] = shape
    shapes[f"{layer}.0.layer_norm.weight"] = shapes[f"{layer}.1.layer_norm.weight"] = [d]
    for part, shape in (("wi_0", [ff, d]), ("wi_1", [ff, d]), ("wo", [d, ff])):
        shapes[f"{layer}.1.DenseReluDense.{part}.weight"] = shape
shapes["encoder.final_layer_norm.weight"] = [d]

header, at = {"__metadata__": {"format": "pt"}}, 0
for name, shape in shapes.items():
    size = 2 * torch.Size(shape).numel()
    header[name] = dict(dtype="BF16", shape=shape, data_offsets=[at, at + size])
    at += size
text = json.dumps(header).encode()
text += b" " * (-len(text) % 8)
noise = torch.randn(1 << 22, generator=torch.Generator().manual_seed(0))

a.out.mkdir(parents=True)
with open(a.out / "model.safetensors", "wb") as file:
    file.write(len(text).to_bytes(8, "little") + text)
    for name, shape in shapes.items():
        norm, left = "norm" in name, torch.Size(shape).numel()
        block = 1 + 0.1 * noise if norm else noise * (1.0 if "shared" in name else shape[-1] ** -0.5)
        block = block.to(torch.bfloat16).view(torch.int16).numpy()
        while left:
            left -= file.write(block[:left].tobytes()) // 2
# Last: a folder with a config is whole.
(a.out / "config.json").write_text(json.dumps(config, indent=1) + "\n")
