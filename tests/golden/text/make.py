#!/usr/bin/env python3
"""Golden files of text encoders: tiny ones with random weights, of transformers' own classes, and a tokenizer.

    make.py OUT_DIR

Hidden states are computed in float64 from the stored weights and rounded to float32 once. No parameter is zero, no
norm's weight is one. One thread, fixed seeds: two runs write the same bytes. Needs
torch==2.11.0, transformers==5.24.0, diffusers==0.42.1, sentencepiece==0.2.3 and ftfy==6.3.1.
"""
import io
import json
import math
import pathlib
import sys

import numpy as np
import sentencepiece as spm
import torch
from diffusers.pipelines.wan.pipeline_wan import prompt_clean
from safetensors.torch import save_file
from sentencepiece import sentencepiece_model_pb2
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import (
    BertConfig,
    BertModel,
    PreTrainedTokenizerFast,
    T5Config,
    T5EncoderModel,
    UMT5Config,
    UMT5EncoderModel,
)
from transformers.models.t5.modeling_t5 import T5LayerNorm
from transformers.models.umt5.modeling_umt5 import UMT5LayerNorm

torch.set_num_threads(1)

CORPUS = """A red fox trots through fresh snow in a birch forest at golden hour.
Two anthropomorphic cats in comfy boxing gear fight intensely on a spotlighted stage.
A cinematic tracking shot: the camera pans slowly over the harbour, boats rocking, gulls crying.
Close-up of an old clockmaker's hands; gears, springs & brass glint under a desk lamp.
Ein Zug fährt durch die Berge, während die Sonne untergeht. Über den Gleisen liegt Nebel.
Une femme marche sous la pluie; ses talons résonnent sur les pavés mouillés.
一只可爱的小猫在草地上奔跑，阳光明媚，画面清晰。
色调艳丽，过曝，静态，细节模糊不清，字幕，风格，作品，画作，画面，静止
夜の街を歩く女性、ネオンが濡れた道路に映る。
Поезд мчится через заснеженный лес, луна светит ярко.
The quick brown fox jumps over the lazy dog 0123456789.
worst quality, low quality, blurry, jpeg artifacts, watermark, text
""".splitlines()

TEXTS = ["A red fox trots through fresh snow.", "", " ", "  two   spaces,\ttabs\nand lines  ",
         "一只可爱的小猫在草地上奔跑，阳光明媚。",
         "Ｆｕｌｌ－ｗｉｄｔｈ ａｎｄ ﬁ ligature ①②",
         "caf\u00e9 cafe\u0301 \u00c5ngstr\u00f6m", "emoji 🦊❄️ and rare ⴰⵣⵓⵍ",
         "&lt;b&gt;AT&amp;amp;T&lt;/b&gt; &quot;quoted&quot;",
         "mojibake: âœ” schÃ¶n", "zero\u200bwidth\u00a0nbsp\u3000ideographic",
         "</s> <pad> <extra_id_0> literal", "a cat " * 400]


def gen(seed):
    return torch.Generator().manual_seed(seed)


def randomise(model, seed):
    """Every parameter gets a value of its own, of a size that keeps activations of order one, rounded to bfloat16."""
    g = gen(seed)
    with torch.no_grad():
        for name, p in model.named_parameters():
            noise = torch.randn(p.shape, generator=g, dtype=torch.float32)
            if name.endswith("bias"):
                value = 0.2 * noise
            elif "norm" in name.lower():
                value = 1 + 0.2 * noise
            elif "relative_attention_bias" in name:
                value = 0.7 * noise
            elif "shared" in name or "embeddings" in name:
                value = noise
            else:
                value = noise / math.sqrt(p.numel() / p.shape[0])
            p.copy_(value.to(torch.bfloat16).float())


def save(path, tensors, metadata=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors = {name: (t.float() if t.dtype == torch.float64 else t).detach().contiguous().clone()
               for name, t in tensors.items()}
    save_file(tensors, path, metadata=metadata)


def json_write(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, ensure_ascii=False, indent=1) + "\n")


def norm64(self, x):
    """The norm without its rounding to float32."""
    return self.weight * (x * torch.rsqrt(x.double().pow(2).mean(-1, keepdim=True) + self.variance_epsilon))


def make_tokenizer(folder):
    """A unigram model as umT5's is: ids 0 <pad>, 1 </s>, 2 <s>, 3 <unk>, byte pieces, sentinels at the end."""
    model = io.BytesIO()
    spm.SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS), model_writer=model, vocab_size=480, model_type="unigram",
        character_coverage=1.0, pad_id=0, eos_id=1, bos_id=2, unk_id=3, byte_fallback=True, num_threads=1,
        split_digits=True, minloglevel=2,
        hard_vocab_limit=False)
    proto = sentencepiece_model_pb2.ModelProto.FromString(model.getvalue())
    pieces = [(p.piece, float(np.float32(p.score))) for p in proto.pieces]
    pieces += [(f"<extra_id_{i}>", 0.0) for i in range(3)]
    tok = Tokenizer(models.Unigram(pieces, unk_id=3, byte_fallback=True))
    tok.normalizer = normalizers.Sequence([normalizers.Precompiled(proto.normalizer_spec.precompiled_charsmap),
                                           normalizers.Replace(Regex(" {2,}"), " ")])
    tok.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always")
    tok.decoder = decoders.Metaspace(replacement="▁", prepend_scheme="always")
    tok.post_processor = processors.TemplateProcessing(single="$A </s>", pair="$A </s> $B </s>",
                                                       special_tokens=[("</s>", 1)])
    special = ("<pad>", "</s>", "<s>", "<unk>", "<extra_id_0>", "<extra_id_1>", "<extra_id_2>")
    tok.add_special_tokens([AddedToken(t, special=True) for t in special])
    fast = PreTrainedTokenizerFast(tokenizer_object=tok, pad_token="<pad>", eos_token="</s>", bos_token="<s>",
                                   unk_token="<unk>")
    folder.mkdir(parents=True, exist_ok=True)
    fast.save_pretrained(folder)
    return fast


def tokenize(tok, path):
    rows = []
    for text in TEXTS:
        cleaned = prompt_clean(text)
        ids = tok(cleaned, padding="max_length", max_length=512, truncation=True, add_special_tokens=True,
                  return_attention_mask=True)
        n = sum(ids["attention_mask"])
        rows.append({"text": text, "cleaned": cleaned, "ids": ids["input_ids"][:n], "length": n})
    json_write(path, rows)


def wan_name(n):
    if n == "shared.weight":
        return "token_embedding.weight"
    if n == "encoder.final_layer_norm.weight":
        return "norm.weight"
    n = n.replace("encoder.block.", "blocks.")
    n = n.replace("layer.0.layer_norm", "norm1").replace("layer.1.layer_norm", "norm2")
    n = n.replace("layer.0.SelfAttention.relative_attention_bias", "pos_embedding.embedding")
    n = n.replace("layer.0.SelfAttention.", "attn.").replace("layer.1.DenseReluDense.wi_0", "ffn.gate.0")
    return n.replace("layer.1.DenseReluDense.wi_1", "ffn.fc1").replace("layer.1.DenseReluDense.wo", "ffn.fc2")


def hidden(model, ids, mask):
    """The last hidden state in float64, zero beyond each row's end; padded with a mask or alone, it is the same."""
    wide = type(model)(model.config).double().eval()
    wide.load_state_dict(model.state_dict())
    with torch.no_grad():
        padded = wide(input_ids=ids, attention_mask=mask).last_hidden_state
        for row, n in enumerate(mask.sum(1).tolist()):
            alone = wide(input_ids=ids[row:row + 1, :n]).last_hidden_state[0]
            assert (padded[row, :n] - alone).abs().max() < 1e-12
    return padded * mask[..., None]


def rows(lengths, vocab, seed):
    ids = torch.randint(3, vocab, (len(lengths), max(lengths)), generator=gen(seed))
    mask = torch.zeros_like(ids)
    for row, n in enumerate(lengths):
        ids[row, n - 1], ids[row, n:], mask[row, :n] = 1, 0, 1
    return ids, mask


def make_umt5(out):
    config = UMT5Config(vocab_size=512, d_model=32, d_kv=8, d_ff=40, num_layers=3, num_heads=6,
                        relative_attention_num_buckets=32, relative_attention_max_distance=128, dropout_rate=0.0,
                        layer_norm_epsilon=1e-6, feed_forward_proj="gated-gelu", tie_word_embeddings=False,
                        attn_implementation="eager")
    model = UMT5EncoderModel(config).eval()
    randomise(model, 31)
    state = {n: t.to(torch.bfloat16) for n, t in model.state_dict().items() if n != "encoder.embed_tokens.weight"}
    (out / "text_encoder").mkdir(parents=True, exist_ok=True)
    config.save_pretrained(out / "text_encoder")
    save(out / "text_encoder/model.safetensors", state, {"format": "pt"})
    torch.save({wan_name(n): t for n, t in state.items()}, out / "models_t5_original.pth")
    ids, mask = rows([1, 7, 150, 160], 480, 32)  # beyond 128 tokens all distances share the last bucket
    distances = torch.arange(-200, 201)
    buckets = model.encoder.block[0].layer[0].SelfAttention._relative_position_bucket(distances)
    save(out / "encode.safetensors", {
        "input_ids": ids, "attention_mask": mask, "last_hidden_state": hidden(model, ids, mask),
        "buckets.distance": distances, "buckets": buckets})


def make_small(out):
    """T5 with ReLU, T5 with a gate (as mT5), and BERT."""
    sizes = dict(vocab_size=64, d_model=20, d_kv=4, d_ff=28, num_layers=2, num_heads=3, dropout_rate=0.0,
                 attn_implementation="eager")
    bert = BertConfig(vocab_size=64, hidden_size=24, num_hidden_layers=2, num_attention_heads=3, intermediate_size=44,
                      max_position_embeddings=40, type_vocab_size=2, attn_implementation="eager")
    for name, model in (("t5", T5EncoderModel(T5Config(feed_forward_proj="relu", **sizes))),
                        ("t5_gated", T5EncoderModel(T5Config(feed_forward_proj="gated-gelu", **sizes))),
                        ("bert", BertModel(bert))):
        model.eval()
        randomise(model, 41)
        model.config.save_pretrained(out / name)
        state = {n: t for n, t in model.state_dict().items() if n != "encoder.embed_tokens.weight"}
        save(out / name / "model.safetensors", state, {"format": "pt"})
        ids, mask = rows([1, 7, 36], 64, 42)
        save(out / name / "encode.safetensors", {"input_ids": ids, "attention_mask": mask,
                                                 "last_hidden_state": hidden(model, ids, mask)})


def make_views(out):
    """Tensors that are no whole storages in their order, as a state dict may have them."""
    base = torch.arange(24, dtype=torch.float32).view(4, 6)
    views = {"plain": base, "turned": base.t(), "part": base[1:3, 2:5], "parameter": torch.nn.Parameter(base[2]),
             "scalar": torch.tensor(0.5), "half": base.half(), "double": base.double(), "bf16": base.bfloat16(),
             "ints": torch.arange(3), "epoch": 7, "permuted": base.view(2, 3, 4).permute(2, 0, 1)}
    torch.save(views, out / "views.pth")


def main(out):
    UMT5LayerNorm.forward = T5LayerNorm.forward = norm64
    tokenize(make_tokenizer(out / "tokenizer"), out / "tokenize.json")
    make_umt5(out)
    make_small(out)
    make_views(out)


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))
