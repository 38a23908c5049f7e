#!/usr/bin/env python3
"""Golden files for fine-tuning Wan: LoRA in every form of file, and transformers with a timestep for each token or with
other channels in than out.

    wan.py write OUT_DIR                              the fixtures beside this script: lora/, tokens/, channels/
    wan.py check TRANSFORMER LORA [--longreel BIN]    does a LoRA file load into diffusers, and as longreel reads it?

Tiny networks with random weights, of diffusers' own class, adapted by peft. Results are computed in float64 from the
stored float32 weights and rounded to float32 once; the angles of the timestep's sinusoid and RoPE's cosines stay in
float32, as they are part of the arithmetic. Nothing is at an initial value that could hide an error. One thread, fixed
seeds: two runs write the same bytes. Needs torch==2.11.0, diffusers==0.42.1, peft==0.21.2, accelerate==1.15.0,
transformers==5.24.0, safetensors==0.8.0, numpy.

What a case of lora/ holds
    comfy.safetensors        Wan's names, the scale folded into B, no alpha
    comfy_alpha.safetensors  Wan's names, lora_down and lora_up, alpha tensors
    kohya.safetensors        lora_unet_ names, alpha tensors
    diffusers.safetensors    diffusers' names, scales in the header
    expected.safetensors     sample, loss = mean(sample^2), grad.NAME of every A and B, scale.LAYER
    transformer/, inputs.safetensors   the base, where it is not that of lora/t2v
lora/report.json says what diffusers makes of each file: the error of its sample, or why it refuses.
"""
import argparse
import contextlib
import json
import math
import pathlib
import shutil
import subprocess
import tempfile
import warnings

import torch
from safetensors.torch import load_file, save_file

warnings.filterwarnings("ignore")
import diffusers  # noqa: E402
import peft  # noqa: E402
from diffusers import WanPipeline, WanTransformer3DModel  # noqa: E402
from diffusers.models import embeddings  # noqa: E402
from peft import LoraConfig  # noqa: E402

torch.set_num_threads(1)
torch.use_deterministic_algorithms(True)
diffusers.utils.logging.set_verbosity_error()

BASE = dict(patch_size=(1, 2, 2), num_attention_heads=2, attention_head_dim=16, in_channels=4, out_channels=4,
            text_dim=16, freq_dim=16, ffn_dim=40, num_layers=2, cross_attn_norm=True, eps=1e-6)
FORMS = ("diffusers", "comfy", "comfy_alpha", "kohya")
LINEARS = ["attn1.to_q", "attn1.to_k", "attn1.to_v", "attn1.to_out.0", "attn2.to_q", "attn2.to_k", "attn2.to_v",
           "attn2.to_out.0", "ffn.net.0.proj", "ffn.net.2"]
TO_ORIGINAL = [("attn1.to_out.0", "self_attn.o"), ("attn2.to_out.0", "cross_attn.o"),
               ("attn2.add_k_proj", "cross_attn.k_img"), ("attn2.add_v_proj", "cross_attn.v_img"),
               ("attn1.to_", "self_attn."), ("attn2.to_", "cross_attn."),
               ("ffn.net.0.proj", "ffn.0"), ("ffn.net.2", "ffn.2"),
               ("condition_embedder.time_embedder.linear_1", "time_embedding.0"),
               ("condition_embedder.time_embedder.linear_2", "time_embedding.2"),
               ("condition_embedder.text_embedder.linear_1", "text_embedding.0"),
               ("condition_embedder.text_embedder.linear_2", "text_embedding.2"),
               ("condition_embedder.time_proj", "time_projection.1"), ("proj_out", "head.head")]


def gen(seed):
    return torch.Generator().manual_seed(seed)


def randomise(model, seed):
    """Every parameter gets a value of its own, of a size that keeps activations of order one."""
    g = gen(seed)
    with torch.no_grad():
        for name, p in model.named_parameters():
            noise = torch.randn(p.shape, generator=g, dtype=torch.float32)
            if name.endswith("bias"):
                value = 0.2 * noise
            elif "norm" in name:
                value = 1 + 0.2 * noise
            elif name.endswith("scale_shift_table"):
                value = 0.4 * noise
            else:
                value = noise / math.sqrt(p.numel() / p.shape[0])
            p.copy_(value)


@contextlib.contextmanager
def float64():
    """Makes `.float()` mean double, so that a float64 run has no float32 step; the sinusoid keeps the true one."""
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


def save(path, tensors, metadata=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    as_float = lambda t: t.float() if t.dtype == torch.float64 else t  # noqa: E731
    save_file({name: as_float(t.detach()).contiguous().clone() for name, t in tensors.items()}, path, metadata=metadata)
    if metadata and len(metadata) > 1:  # the writer orders metadata at random: the same entries, sorted
        raw = path.read_bytes()
        n = int.from_bytes(raw[:8], "little")
        header = json.loads(raw[8:8 + n])
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        path.write_bytes(len(text).to_bytes(8, "little") + text + raw[8 + n:])


def save_model(model, folder):
    folder.mkdir(parents=True, exist_ok=True)
    model.save_config(folder)
    save(folder / "diffusion_pytorch_model.safetensors", model.state_dict(), {"format": "pt"})


def vector_error(got, want):
    return ((got.double() - want.double()).norm() / want.double().norm()).item()


def widen(model):
    wide = type(model).from_config(model.config).double()
    wide.load_state_dict({n: t.double() for n, t in model.state_dict().items()})
    wide.rope = model.rope  # cosines and sines stay float32
    return wide


def predict(model, inputs):
    given = dict(inputs)
    step = given.pop("timestep")
    return model(timestep=step, return_dict=False, **{n: t.double() for n, t in given.items()})[0]


def run(model, inputs):
    model.zero_grad(set_to_none=True)
    sample = predict(model, inputs)
    loss = sample.square().mean()
    loss.backward()
    return sample, loss


def make_transformer(folder, config, inputs, seed):
    model = WanTransformer3DModel(**config)
    randomise(model, seed)
    save_model(model, folder / "transformer")
    save(folder / "inputs.safetensors", inputs)
    wide = widen(model)
    with float64():
        sample, loss = run(wide, inputs)
    grads = {f"grad.{n}": p.grad for n, p in wide.named_parameters()}
    save(folder / "expected.safetensors", {"sample": sample, "loss": loss.reshape(1), **grads})


def make_transformers(out):
    g = gen(41)
    rand = lambda *shape: torch.randn(*shape, generator=g)  # noqa: E731
    for shape in [(2, 12, 3, 6, 8), (2, 512, 16), (2, 5, 20), (1, 12, 2, 6, 8), (1, 512, 16), (2, 5, 20)]:
        rand(*shape)  # of cases that are not kept here
    # Wan 2.2 TI2V-5B: a timestep for every token, 0 where the first frame is given, and any others
    step = torch.tensor([[321.5], [900.0]]).repeat(1, 3 * 3 * 4)
    step[0, :12] = 0
    step[1, ::5] = 123.0
    make_transformer(out / "tokens", BASE, {"hidden_states": rand(2, 4, 3, 6, 8), "timestep": step,
                                            "encoder_hidden_states": rand(2, 7, 16)}, 44)
    # Wan 2.2 I2V-A14B: more channels in than out, no image embedder
    make_transformer(out / "channels", BASE | dict(in_channels=12, num_layers=1), {
        "hidden_states": rand(1, 12, 2, 6, 8), "timestep": torch.tensor([900.0]),
        "encoder_hidden_states": rand(1, 7, 16)}, 45)


def original_module(name):
    for ours, theirs in TO_ORIGINAL:
        if ours in name:
            return name.replace(ours, theirs)
    raise KeyError(name)


def load_into(path, model):
    """As WanPipeline.load_lora_weights does, without a pipeline."""
    state, metadata = WanPipeline.lora_state_dict(str(path), return_lora_metadata=True)
    state = WanPipeline._maybe_expand_t2v_lora_for_i2v(model, state)
    assert all("lora" in k for k in state), "Invalid LoRA checkpoint"
    WanPipeline.load_lora_into_transformer(state, model, adapter_name="golden", metadata=metadata)


def make_lora(out, name, config, inputs, seed, targets, rank, alpha, ranks=None, alphas=None):
    folder = out / "lora" / name
    model = WanTransformer3DModel(**config)
    shares_base = name.startswith("t2v_") and config["num_layers"] == 2
    randomise(model, 52 if shares_base else seed)
    if not shares_base:
        save_model(model, folder / "transformer")
        save(folder / "inputs.safetensors", inputs)
    settings = LoraConfig(r=rank, lora_alpha=alpha, target_modules=targets, rank_pattern=ranks or {},
                          alpha_pattern=alphas or {}, init_lora_weights=False)
    wide = widen(model)
    wide.requires_grad_(False)
    wide.add_adapter(settings, adapter_name="golden")
    g = gen(seed + 1)
    lora = {}
    with torch.no_grad():
        for n, p in wide.named_parameters():
            if ".lora_" in n:
                value = torch.randn(p.shape, generator=g) * (0.5 / math.sqrt(p.shape[1]))
                p.copy_(value)
                lora[n.replace(".golden", "")] = value
    scale = {n: m.scaling["golden"] for n, m in wide.named_modules() if isinstance(m, peft.tuners.lora.LoraLayer)}
    with float64():
        sample, loss = run(wide, inputs)
    grads = {"grad." + n.replace(".golden", ""): p.grad for n, p in wide.named_parameters() if p.requires_grad}
    assert set(grads) == {"grad." + n for n in lora}
    save(folder / "expected.safetensors", {"sample": sample, "loss": loss.reshape(1), **grads,
                                           **{f"scale.{n}": torch.tensor([s]) for n, s in scale.items()}})
    fields = ("r", "lora_alpha", "rank_pattern", "alpha_pattern", "bias", "lora_bias", "use_dora", "use_rslora",
              "lora_dropout", "init_lora_weights")
    meta = {k: settings.to_dict()[k] for k in fields} | {"target_modules": sorted(targets)}
    meta = {f"transformer.{k}": v for k, v in meta.items()}
    save(folder / "diffusers.safetensors", {f"transformer.{n}": t for n, t in lora.items()},
         {"format": "pt", "lora_adapter_metadata": json.dumps(meta, indent=2, sort_keys=True)})
    comfy, comfy_alpha, kohya = {}, {}, {}
    for n, t in lora.items():
        module, part = n.split(".lora_")
        theirs, side = original_module(module), part[0]
        r = t.shape[0] if side == "A" else t.shape[1]
        direction = "down" if side == "A" else "up"
        comfy[f"diffusion_model.{theirs}.lora_{side}.weight"] = t * scale[module] if side == "B" else t
        comfy_alpha[f"diffusion_model.{theirs}.lora_{direction}.weight"] = t
        comfy_alpha[f"diffusion_model.{theirs}.alpha"] = torch.tensor(scale[module] * r)
        key = "lora_unet_" + theirs.replace(".", "_")
        kohya[f"{key}.lora_{direction}.weight"] = t
        kohya[f"{key}.alpha"] = torch.tensor(scale[module] * r)
    save(folder / "comfy.safetensors", comfy, {"format": "pt"})
    save(folder / "comfy_alpha.safetensors", comfy_alpha, {"format": "pt"})
    save(folder / "kohya.safetensors", kohya, {"ss_network_dim": str(rank), "ss_network_alpha": str(alpha),
                                               "ss_network_module": "networks.lora_wan",
                                               "ss_base_model_version": "wan"})
    report = {}
    for form in FORMS:
        try:
            again = widen(model)
            load_into(folder / f"{form}.safetensors", again)
            again = again.double()
            with torch.no_grad(), float64():
                report[form] = {"relative error against expected": vector_error(predict(again, inputs), sample)}
        except Exception as e:  # noqa: BLE001
            report[form] = {"refused": f"{type(e).__name__}: {str(e)[:200]}"}
    return report


def make_loras(out):
    g = gen(51)
    rand = lambda *shape: torch.randn(*shape, generator=g)  # noqa: E731
    t2v = {"hidden_states": rand(2, 4, 3, 6, 8), "timestep": torch.tensor([7.5, 981.0]),
           "encoder_hidden_states": rand(2, 7, 16)}
    small = BASE | dict(num_attention_heads=3, attention_head_dim=8, ffn_dim=36)
    cases = {
        "t2v": (small, t2v, 52, LINEARS, 4, 4),
        "t2v_scaled": (small, t2v, 54, LINEARS, 4, 6),
        "t2v_mixed": (small, t2v, 56, LINEARS, 4, 6, {r"^blocks.1.ffn.net.0.proj": 2, r"^blocks.0.attn1.to_q": 8},
                      {r"^blocks.1.ffn.net.0.proj": 5, r"^blocks.0.attn1.to_q": 2}),
        "t2v_attention_only": (small, t2v, 58, ["to_q", "to_k", "to_v", "to_out.0"], 3, 3),
        "t2v_everything": (small | dict(num_layers=1), t2v, 60, LINEARS + [
            "condition_embedder.time_embedder.linear_1", "condition_embedder.time_embedder.linear_2",
            "condition_embedder.time_proj", "condition_embedder.text_embedder.linear_1",
            "condition_embedder.text_embedder.linear_2", "proj_out"], 3, 3),
        "i2v": (small | dict(in_channels=12, image_dim=20, added_kv_proj_dim=24, num_layers=1), {
            "hidden_states": rand(1, 12, 2, 6, 8), "timestep": torch.tensor([500.0]),
            "encoder_hidden_states": rand(1, 512, 16), "encoder_hidden_states_image": rand(1, 5, 20)}, 62,
            LINEARS + ["attn2.add_k_proj", "attn2.add_v_proj"], 2, 2),
    }
    report = {name: make_lora(out, name, *case) for name, case in cases.items()}
    (out / "lora" / "report.json").write_text(json.dumps(report, indent=1) + "\n")


def write(out):
    for part in ("lora", "tokens", "channels"):
        shutil.rmtree(out / part, ignore_errors=True)
    make_transformers(out)
    make_loras(out)


def merged(folder, lora):
    """diffusers' transformer with the file's adapters, as a plain state dict."""
    model = WanTransformer3DModel.from_pretrained(folder)
    load_into(lora, model)
    plain = [(n, p) for n, p in model.named_parameters() if ".lora_" not in n]
    weights = {n.replace(".base_layer", ""): p.detach().clone() for n, p in plain}
    for name, module in model.named_modules():
        if isinstance(module, peft.tuners.lora.LoraLayer):
            weights[f"{name}.weight"] += module.get_delta_weight("golden")
    return weights


def check(folder, lora, binary):
    """Adds the adapters to the weights with diffusers and peft, and with `longreel lora merge`, and compares."""
    want = merged(folder, lora)
    with tempfile.TemporaryDirectory() as tmp:
        subprocess.run([binary, "lora", "merge", str(folder), str(lora), "-o", f"{tmp}/merged"], check=True)
        got = load_file(f"{tmp}/merged/diffusion_pytorch_model.safetensors")
    assert set(got) == set(want), set(got) ^ set(want)
    worst = max(vector_error(got[n], want[n]) for n in want)
    base = load_file(folder / "diffusion_pytorch_model.safetensors")
    changed = sum(not torch.equal(base[n], want[n]) for n in want)
    print(f"{lora} loads into diffusers and changes {changed} tensors; longreel's merge is off by {worst:.1e} at most")
    if not (changed and worst < 1e-6):
        raise SystemExit("that is more than 1e-6, or nothing has changed")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True)
    verbs.add_parser("write", help="write the golden files").add_argument("out", type=pathlib.Path)
    verb = verbs.add_parser("check", help="compare a LoRA file in diffusers and in longreel")
    verb.add_argument("transformer", type=pathlib.Path, help="a diffusers transformer folder, float32")
    verb.add_argument("lora", type=pathlib.Path, help="the LoRA file")
    verb.add_argument("--longreel", default="target/release/longreel", help="the binary (default: %(default)s)")
    a = parser.parse_args()
    if a.verb == "write":
        write(a.out)
    else:
        check(a.transformer, a.lora, a.longreel)


if __name__ == "__main__":
    main()
