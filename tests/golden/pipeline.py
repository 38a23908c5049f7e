#!/usr/bin/env python3
"""Golden files of a whole pipeline of Wan 2.1's text to video, and a LoRA that longreel trained in diffusers.

    pipeline.py write                                 the fixtures beside this script: pipeline/
    pipeline.py assemble DIR                          the tiny pipeline as a folder that diffusers and longreel load
    pipeline.py check PIPELINE LORA [--longreel BIN]  does diffusers sample with the LoRA what longreel's network does?

The pipeline is diffusers' WanPipeline with the tiny VAE of vae/vae21 and the tiny text encoder and tokenizer of text/,
and a transformer with random weights. Results are of the whole pipeline in float32, as users run it. One thread, fixed
seeds: two runs write the same bytes. Needs what wan.py needs, and what text/make.py needs for the tokenizer.

What pipeline/ holds
    model_index.json, scheduler/, transformer/   the parts that are not in vae/ and text/
    prompts.json             the prompt, and what guidance leads away from
    expected.safetensors     prompt_embeds, negative_prompt_embeds [tokens, 32]; latents_start, latents_end [1, 3, 2, 4,
                             6] of 4 steps at guidance 4; video [1, 5, 3, 32, 48] in 0..1
"""
import argparse
import json
import pathlib
import shutil
import subprocess
import tempfile
import types

import torch
from diffusers import AutoencoderKLWan, UniPCMultistepScheduler, WanPipeline, WanTransformer3DModel
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, UMT5EncoderModel
from wan import BASE, gen, randomise, save, save_model, vector_error

HERE = pathlib.Path(__file__).parent
PROMPTS = {"prompt": "A red fox trots through fresh snow.", "negative_prompt": "worst quality, blurry"}
CALL = PROMPTS | dict(height=32, width=48, num_frames=5, num_inference_steps=4, guidance_scale=4.0,
                      max_sequence_length=512, return_dict=False)
PARTS = {"vae": HERE / "vae/vae21/vae", "text_encoder": HERE / "text/text_encoder",
         "tokenizer": HERE / "text/tokenizer"}


def write():
    out = HERE / "pipeline"
    shutil.rmtree(out, ignore_errors=True)
    model = WanTransformer3DModel(**(BASE | dict(text_dim=32, in_channels=3, out_channels=3)))
    randomise(model, 92)
    save_model(model.eval(), out / "transformer")
    scheduler = UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True,
                                        num_train_timesteps=1000, flow_shift=3.0)
    pipe = WanPipeline(tokenizer=AutoTokenizer.from_pretrained(PARTS["tokenizer"]),
                       text_encoder=UMT5EncoderModel.from_pretrained(PARTS["text_encoder"], dtype=torch.float32),
                       vae=AutoencoderKLWan.from_pretrained(PARTS["vae"], torch_dtype=torch.float32),
                       scheduler=scheduler, transformer=model)
    pipe.save_config(out)
    scheduler.save_config(out / "scheduler")
    pipe.set_progress_bar_config(disable=True)
    (out / "prompts.json").write_text(json.dumps(PROMPTS, indent=1) + "\n")
    start = torch.randn(1, 3, 2, 4, 6, generator=gen(91))
    with torch.no_grad():
        embeds = pipe.encode_prompt(**PROMPTS, max_sequence_length=512, device="cpu")
        result = {"latents_start": start}
        for name, kind in (("latents_end", "latent"), ("video", "pt")):
            result[name] = pipe(**CALL, latents=start.clone(), output_type=kind)[0]
        for name, padded in zip(("prompt_embeds", "negative_prompt_embeds"), embeds, strict=True):
            result[name] = padded[0, :int((padded[0].abs().sum(-1) > 0).sum())]
    save(out / "expected.safetensors", result)


def assemble(folder):
    shutil.copytree(HERE / "pipeline", folder, ignore=shutil.ignore_patterns("expected.*", "prompts.json"))
    for name, part in PARTS.items():
        shutil.copytree(part, folder / name)


def sampled(pipe, start):
    """The latents that the pipeline makes of `start`, and what its network gave at each call."""
    outputs = []
    inner = pipe.transformer.forward

    def forward(*args, **kwargs):
        given = inner(*args, **kwargs)
        outputs.append(given[0].clone())
        return given

    pipe.transformer.forward = forward
    try:
        return pipe(**CALL, latents=start.clone(), output_type="latent")[0], outputs
    finally:
        pipe.transformer.forward = inner


def check(folder, lora, binary):
    """Samples the same noise with diffusers' network and LoRA, and with longreel's, by one scheduler."""
    pipe = WanPipeline.from_pretrained(folder, torch_dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    start = torch.randn(1, pipe.transformer.config.in_channels, 2, 4, 6, generator=gen(95))
    with tempfile.TemporaryDirectory() as tmp, torch.no_grad():
        tmp = pathlib.Path(tmp)

        def ours(hidden_states, timestep, encoder_hidden_states, **_):
            given = {"hidden_states": hidden_states, "timestep": timestep.float(),
                     "encoder_hidden_states": encoder_hidden_states}
            save_file({name: t.contiguous().clone() for name, t in given.items()}, tmp / "in.safetensors")
            subprocess.run([binary, "forward", str(folder / "transformer"), str(tmp / "in.safetensors"), "-o",
                            str(tmp / "out.safetensors"), "--force", "--lora", str(lora)], check=True)
            return (load_file(tmp / "out.safetensors")["sample"],)

        base, _ = sampled(pipe, start)
        theirs, pipe.transformer.forward = pipe.transformer.forward, types.MethodType(
            lambda self, *args, **kwargs: ours(*args, **kwargs), pipe.transformer)
        want, wanted = sampled(pipe, start)
        pipe.transformer.forward = theirs
        print(f"longreel: the LoRA changes the sample by {vector_error(want, base):.1e}")
        worst = 0.0
        for form in ("comfy", "diffusers"):
            file = tmp / f"{form}.safetensors"
            subprocess.run([binary, "lora", "convert", str(lora), "-o", str(file), "--form", form], check=True,
                           stdout=subprocess.DEVNULL)
            for name, path in ((f"as {form}", file),) + (((f"{lora.name} itself", lora),) if form == "comfy" else ()):
                pipe.load_lora_weights(str(path), adapter_name="check")
                got, outputs = sampled(pipe, start)
                pipe.unload_lora_weights()
                first, end = vector_error(outputs[0], wanted[0]), vector_error(got, want)
                worst = max(worst, first, end)
                print(f"{name}: the network's first output differs by {first:.1e}, the sample by {end:.1e}")
        back, _ = sampled(pipe, start)
        assert torch.equal(back, base), "the LoRA stays in diffusers' network"
    if worst > 1e-4 or vector_error(want, base) < 1e-3:
        raise SystemExit("that is more than 1e-4, or the LoRA changes nothing")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True)
    verbs.add_parser("write", help="write the golden files")
    verb = verbs.add_parser("assemble", help="make a pipeline's folder of the golden files")
    verb.add_argument("folder", type=pathlib.Path, help="the folder, which must not exist")
    verb = verbs.add_parser("check", help="compare samples with a LoRA in diffusers and in longreel")
    verb.add_argument("pipeline", type=pathlib.Path, help="a diffusers pipeline's folder")
    verb.add_argument("lora", type=pathlib.Path, help="the LoRA file")
    verb.add_argument("--longreel", default="target/release/longreel", help="the binary (default: %(default)s)")
    a = parser.parse_args()
    if a.verb == "write":
        write()
    elif a.verb == "assemble":
        assemble(a.folder)
    else:
        check(a.pipeline, a.lora, a.longreel)


if __name__ == "__main__":
    main()
