#!/usr/bin/env python3
"""Golden files for `longreel forward`, made by diffusers' WanTransformer3DModel; and the way back.

    make.py write OUT_DIR                      the fixtures beside this script (seconds)
    make.py check CHECKPOINT [--longreel BIN]  does a checkpoint of longreel's load into diffusers and compute the same?

Made with diffusers 0.42.1, torch 2.11.0, accelerate 1.15.0, safetensors 0.8.0, Python 3.11. The environment of
benches/peers/setup.sh has them; the least that will do is

    python3 -m venv venv
    venv/bin/pip install torch==2.11.0 diffusers==0.42.1 accelerate==1.15.0 safetensors==0.8.0 numpy

What a case holds
    transformer/           what `save_pretrained` writes: config.json and safetensors, whole or in shards with an index
    inputs.safetensors     hidden_states [B, C, T, H, W], timestep [B], encoder_hidden_states [B, L, text_dim]
    expected.safetensors   sample [B, C', T, H, W]; loss = mean(sample^2); grad.NAME for every parameter; and
                           bf16_error.sample, bf16_error.grad: how far diffusers' own bf16 run is from all that

Every number of `expected` is computed in float64 from the stored float32 (or bfloat16) weights and rounded to float32
once, so it carries no rounding of anybody's order of summation. Two things stay in float32 as diffusers has them,
because they are part of its arithmetic and not rounding noise: the angles of the timestep's sinusoid, and the cosines
and sines of RoPE.

Nothing is at an initial value that could hide an error: no parameter is zero, no norm weight is one, gates are of
order one.
"""
import argparse
import contextlib
import json
import pathlib
import shutil
import subprocess
import sys
import tempfile

import torch
from diffusers import WanTransformer3DModel
from diffusers.models import embeddings
from diffusers.utils import logging
from safetensors.torch import load_file, save_file

# name -> (config, input [B, C, T, H, W], text length L, timesteps, stored dtype, largest shard or None)
CASES = {
    # Two samples at different (integer) timesteps; 5 x 3 x 5 = 75 tokens by patches of 1 x 2 x 2; the head dim's RoPE
    # split is unequal (8 + 4 + 4).
    "batch": (dict(patch_size=(1, 2, 2), num_attention_heads=3, attention_head_dim=16, in_channels=4, out_channels=4,
                   text_dim=24, freq_dim=32, ffn_dim=72, num_layers=2, cross_attn_norm=True),
              (2, 4, 5, 6, 10), 7, torch.tensor([7, 981]), torch.float32, None),
    # Patches in time too, other channels out than in, no norm before cross-attention, weights in shards with an index.
    # 3 x 5 x 7 = 105 tokens; 5 heads of 8 divide over neither 2 nor 3 ranks.
    "shards": (dict(patch_size=(2, 2, 2), num_attention_heads=5, attention_head_dim=8, in_channels=3, out_channels=5,
                    text_dim=16, freq_dim=24, ffn_dim=56, num_layers=2, cross_attn_norm=False),
               (1, 3, 6, 10, 14), 5, torch.tensor([500.0]), torch.float32, "120KB"),
    # 7 x 13 x 11 = 1001 tokens of one latent each: many tiles and attention blocks, all ragged at the end. A fractional
    # timestep, a head dim that RoPE splits into equal thirds, an eps large enough to be seen.
    "long": (dict(patch_size=(1, 1, 1), num_attention_heads=4, attention_head_dim=24, in_channels=2, out_channels=2,
                  text_dim=8, freq_dim=16, ffn_dim=40, num_layers=1, cross_attn_norm=True, eps=1e-2),
             (1, 2, 7, 13, 11), 3, torch.tensor([123.456]), torch.float32, None),
    # Weights stored in bfloat16, all but those diffusers keeps in float32. 7 x 7 = 49 tokens of one frame: an image.
    "bf16": (dict(patch_size=(1, 2, 2), num_attention_heads=3, attention_head_dim=8, in_channels=3, out_channels=3,
                  text_dim=8, freq_dim=16, ffn_dim=32, num_layers=2, cross_attn_norm=True),
             (2, 3, 1, 14, 14), 4, torch.tensor([0.5, 999.75]), torch.bfloat16, None),
}


def randomise(model, generator):
    """Gives every parameter a value of its own, of a size that keeps activations and gates of order one."""
    with torch.no_grad():
        for name, p in model.named_parameters():
            noise = torch.randn(p.shape, generator=generator)
            if name.endswith("bias"):
                p.copy_(0.2 * noise)
            elif "norm" in name:
                p.copy_(1 + 0.2 * noise)
            elif name.endswith("scale_shift_table"):
                p.copy_(0.4 * noise)
            else:
                p.copy_(noise / (p.numel() / p.shape[0]) ** 0.5)  # by fan-in


@contextlib.contextmanager
def float64():
    """Makes `.float()` mean double: diffusers calls it before norms and modulation, which would otherwise fall back to
    float32 in a float64 run. The sinusoid of the timestep keeps the true one."""
    true_float, sinusoid = torch.Tensor.float, embeddings.get_timestep_embedding

    def in_float32(*args, **kwargs):
        torch.Tensor.float = true_float
        try:
            return sinusoid(*args, **kwargs)
        finally:
            torch.Tensor.float = torch.Tensor.double

    torch.Tensor.float, embeddings.get_timestep_embedding = torch.Tensor.double, in_float32
    try:
        yield
    finally:
        torch.Tensor.float, embeddings.get_timestep_embedding = true_float, sinusoid


def run(model, inputs, dtype):
    """Forward and backward: ({"sample", "loss", "grad.NAME"} in float64)."""
    model.zero_grad(set_to_none=True)
    given = (inputs["hidden_states"].to(dtype), inputs["timestep"], inputs["encoder_hidden_states"].to(dtype))
    sample = model(*given).sample
    loss = sample.double().square().mean()
    loss.backward()
    out = {"sample": sample, "loss": loss.reshape(1)}
    out |= {f"grad.{name}": p.grad for name, p in model.named_parameters()}
    return {name: t.detach().double().contiguous() for name, t in out.items()}


def error(got, want, names):
    """Norm of the difference over the norm, of the named tensors taken as one vector."""
    difference = sum((got[n] - want[n]).square().sum() for n in names)
    return (difference / sum(want[n].square().sum() for n in names)).sqrt().item()


def write(out):
    for seed, (name, (config, shape, length, timestep, stored, shard)) in enumerate(CASES.items()):
        case = out / name
        shutil.rmtree(case, ignore_errors=True)
        generator = torch.Generator().manual_seed(seed)
        model = WanTransformer3DModel(**config)
        randomise(model, generator)
        model.save_pretrained(case / "transformer", **({"max_shard_size": shard} if shard else {}))
        if stored != torch.float32:  # through from_pretrained, which knows what stays in float32
            mixed = WanTransformer3DModel.from_pretrained(case / "transformer", torch_dtype=stored)
            mixed.register_to_config(_name_or_path="wan-tiny")  # else the path of this machine
            mixed.save_pretrained(case / "transformer")
        inputs = {
            "hidden_states": torch.randn(shape, generator=generator),
            "timestep": timestep,
            "encoder_hidden_states": torch.randn(shape[0], length, config["text_dim"], generator=generator),
        }
        save_file(inputs, case / "inputs.safetensors")

        load = lambda dtype: WanTransformer3DModel.from_pretrained(case / "transformer", torch_dtype=dtype).eval()
        with float64():
            want = run(load(torch.float32).double(), inputs, torch.float64)
        single = run(load(torch.float32), inputs, torch.float32)
        half = run(load(torch.bfloat16), inputs, torch.bfloat16)
        grads = [n for n in want if n.startswith("grad.")]
        expected = {n: t.float() for n, t in want.items()}
        expected["bf16_error.sample"] = torch.tensor([error(half, want, ["sample"])])
        expected["bf16_error.grad"] = torch.tensor([error(half, want, grads)])
        save_file(expected, case / "expected.safetensors")

        worst = max(grads, key=lambda n: error(single, want, [n]))
        size = sum(f.stat().st_size for f in case.rglob("*") if f.is_file())
        print(f"{name}: {size / 1e6:.2f} MB, loss {want['loss'].item():.4f}; diffusers itself is off float64 by\n"
              f"  f32  sample {error(single, want, ['sample']):.1e}, gradient {error(single, want, grads):.1e}, "
              f"worst {error(single, want, [worst]):.1e} ({worst[5:]})\n"
              f"  bf16 sample {error(half, want, ['sample']):.1e}, gradient {error(half, want, grads):.1e}")


def transformer_folder(checkpoint):
    for folder in (checkpoint, checkpoint / "transformer"):
        if (folder / "config.json").is_file():
            return folder
    sys.exit(f"{checkpoint}: neither it nor its folder transformer/ holds a config.json")


def load_strictly(folder, config):
    """The checkpoint as a diffusers model: not one key missing, left over or of another shape.

    Diffusers has no Wan without text. For a checkpoint without, it is given a cross-attention whose output projection
    is zero, which adds nothing; all other keys are held to the same strictness."""
    if config.get("text_dim"):
        model, info = WanTransformer3DModel.from_pretrained(folder, output_loading_info=True)
        bad = {k: v for k, v in info.items() if v}
        if bad:
            sys.exit(f"{folder}: diffusers reports {bad}")
        return model
    known = WanTransformer3DModel.load_config(folder)
    model = WanTransformer3DModel.from_config({**known, "text_dim": 1, "cross_attn_norm": False})
    weights = {}
    for file in sorted(folder.glob("diffusion_pytorch_model*.safetensors")):
        weights |= load_file(file)
    missing, unexpected = model.load_state_dict(weights, strict=False)
    missing = [k for k in missing if ".attn2." not in k and "text_embedder" not in k]
    if missing or unexpected:
        sys.exit(f"{folder}: missing {missing}, unexpected {unexpected}")
    with torch.no_grad():
        for block in model.blocks:
            block.attn2.to_out[0].weight.zero_()
            block.attn2.to_out[0].bias.zero_()
    return model


def check(checkpoint, binary, sizes):
    """Loads a checkpoint with diffusers, runs it and `longreel forward` on the same random inputs, compares."""
    folder = transformer_folder(checkpoint)
    config = json.loads((folder / "config.json").read_text())
    model = load_strictly(folder, config).float().eval()
    patch, generator = config["patch_size"], torch.Generator().manual_seed(0)
    shape = [2, config["in_channels"], *(n * p for n, p in zip(sizes, patch))]
    inputs = {"hidden_states": torch.randn(shape, generator=generator), "timestep": torch.tensor([250.0, 875.5])}
    text = torch.randn(2, 5, config.get("text_dim") or 1, generator=generator)
    if config.get("text_dim"):
        inputs["encoder_hidden_states"] = text
    with torch.no_grad():
        want = model(inputs["hidden_states"], inputs["timestep"], text).sample
    with tempfile.TemporaryDirectory() as tmp:
        given, made = f"{tmp}/inputs.safetensors", f"{tmp}/out.safetensors"
        save_file(inputs, given)
        subprocess.run([binary, "forward", str(folder), given, "-o", made], check=True)
        got = load_file(made)["sample"]
    off = error({"sample": got.double()}, {"sample": want.double()}, ["sample"])
    count = sum(p.numel() for p in model.parameters())
    idle = "" if config.get("text_dim") else ", beside a cross-attention that adds nothing"
    print(f"{folder} loads into diffusers' WanTransformer3DModel{idle} ({count} parameters); "
          f"its sample {list(want.shape)} and longreel's differ by {off:.1e} (relative)")
    if not off < 1e-5:
        sys.exit("that is more than 1e-5")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True)
    verbs.add_parser("write", help="write the golden files").add_argument("out", type=pathlib.Path)
    verb = verbs.add_parser("check", help="compare a checkpoint in diffusers and in longreel")
    verb.add_argument("checkpoint", type=pathlib.Path, help="a checkpoint, or its transformer folder")
    verb.add_argument("--longreel", default="target/release/longreel", help="the binary (default: %(default)s)")
    verb.add_argument("--patches", type=int, nargs=3, default=(3, 5, 7), help="patches in time, height, width")
    a = parser.parse_args()
    logging.disable_progress_bar()
    torch.set_num_threads(1)  # one order of summation, whatever the machine
    if a.verb == "write":
        write(a.out)
    else:
        check(a.checkpoint, a.longreel, a.patches)


if __name__ == "__main__":
    main()
