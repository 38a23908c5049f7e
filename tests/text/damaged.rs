//! What is said of text encoders, tokenizers and inputs that cannot be used.

use longreel::text::{TextEncoder, TextModel};
use safetensors::{Dtype, SafeTensors, tensor::TensorView};
use serde_json::{Value, json};
use std::fs;
use std::path::Path;
use tempfile::TempDir;

use super::{forward, golden};

/// A copy of the golden pipeline.
fn pipeline() -> TempDir {
    let dir = TempDir::new().unwrap();
    for part in ["text_encoder/config.json", "text_encoder/model.safetensors", "tokenizer/tokenizer.json"] {
        let to = dir.path().join(part);
        fs::create_dir_all(to.parent().unwrap()).unwrap();
        fs::copy(golden(part), to).unwrap();
    }
    dir
}

/// Changes the JSON file `path`.
fn change(path: &Path, change: impl FnOnce(&mut Value)) {
    let mut json = serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap();
    change(&mut json);
    fs::write(path, json.to_string()).unwrap();
}

/// Writes the golden weights again, with what `change` makes of them.
fn rewrite(path: &Path, change: impl FnOnce(&mut Vec<(String, Dtype, Vec<usize>, Vec<u8>)>)) {
    let bytes = fs::read(golden("text_encoder/model.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let mut all: Vec<_> = file
        .tensors()
        .into_iter()
        .map(|(name, view)| (name, view.dtype(), view.shape().to_vec(), view.data().to_vec()))
        .collect();
    change(&mut all);
    let views =
        all.iter().map(|(name, dtype, shape, data)| (name, TensorView::new(*dtype, shape.clone(), data).unwrap()));
    safetensors::serialize_to_file(views, None, path).unwrap();
}

fn open(path: &Path) -> longreel::Result<()> {
    TextEncoder::open(path).map(drop)
}

#[test]
fn a_missing_part_of_a_folder_is_named() {
    for (part, reason) in [
        ("text_encoder/config.json", "has no config.json"),
        ("text_encoder/model.safetensors", "none of model.safetensors.index.json, model.safetensors"),
        ("tokenizer/tokenizer.json", "tokenizer is missing"),
        ("tokenizer", "tokenizer is missing"),
    ] {
        let dir = pipeline();
        let path = dir.path().join(part);
        if path.is_dir() {
            fs::remove_dir_all(path).unwrap()
        } else {
            fs::remove_file(path).unwrap()
        }
        let said = refusal!(Data, open(dir.path()));
        assert!(said.contains(reason), "{part}: {said}");
    }
    let dir = pipeline();
    fs::rename(dir.path().join("tokenizer/tokenizer.json"), dir.path().join("tokenizer/spiece.model")).unwrap();
    assert!(refusal!(Data, open(dir.path())).contains("spiece.model is not enough"));
    fs::remove_dir_all(dir.path().join("text_encoder")).unwrap();
    assert!(refusal!(Data, open(dir.path())).contains("holds no text encoder"));
    fs::write(dir.path().join("model_index.json"), "{}").unwrap();
    assert!(refusal!(Data, open(dir.path())).contains("pipeline without the folder text_encoder"));
    assert!(matches!(open(&dir.path().join("nowhere")), Err(longreel::Error::Io { .. })));
    for name in ["models_t5_a.pth", "models_t5_b.pth"] {
        fs::write(dir.path().join(name), "").unwrap();
    }
    assert!(refusal!(Data, open(dir.path())).contains("several text encoders: models_t5_a.pth, models_t5_b.pth"));
}

/// Of an ids' range, of another end token, of none; and one that is no tokenizer.
#[test]
fn a_tokenizer_that_does_not_fit_the_encoder_is_refused() {
    let dir = pipeline();
    let config = dir.path().join("text_encoder/config.json");
    change(&config, |json| json["eos_token_id"] = json!(2));
    assert!(refusal!(Data, open(dir.path())).contains("must be the end token, [2]"));
    let dir = pipeline();
    let tokenizer = dir.path().join("tokenizer/tokenizer.json");
    change(&tokenizer, |json| json["post_processor"] = Value::Null);
    assert!(refusal!(Data, open(dir.path())).contains("makes an empty caption to []"));
    let small = dir.path().join("text_encoder");
    for name in ["config.json", "model.safetensors"] {
        fs::copy(golden("bert").join(name), small.join(name)).unwrap();
    }
    fs::copy(golden("tokenizer/tokenizer.json"), &tokenizer).unwrap();
    let said = refusal!(Data, open(dir.path()));
    assert!(said.contains("483 tokens with ids up to 482, the encoder knows 64"), "{said}");
    for text in ["", "{}", "{\"version\": \"1.0\"}", "[1, 2]"] {
        fs::write(&tokenizer, text).unwrap();
        assert!(refusal!(Data, open(dir.path())).contains("is no tokenizer"), "{text}");
    }
}

/// One of a smaller vocabulary has only ids that the encoder knows, too, as T5's has for UMT5.
#[test]
fn a_tokenizer_of_far_fewer_tokens_is_of_another_model() {
    let dir = pipeline();
    let weights = dir.path().join("text_encoder/model.safetensors");
    let with_rows = |rows: usize| {
        change(&dir.path().join("text_encoder/config.json"), |json| json["vocab_size"] = json!(rows));
        rewrite(&weights, |all| {
            let (_, dtype, shape, data) = all.iter_mut().find(|(name, ..)| name == "shared.weight").unwrap();
            let row = data.len() / shape[0];
            assert_eq!((*dtype, row), (Dtype::BF16, 64));
            shape[0] = rows;
            data.resize(rows * row, 0);
        });
        open(dir.path())
    };
    with_rows(640).unwrap();
    let said = refusal!(Data, with_rows(660));
    let reason = "483 tokens with ids up to 482, the encoder knows 660; they are of different models";
    assert!(said.contains(reason), "{said}");
}

#[test]
fn eight_bits_and_wrong_weights_are_refused_by_name() {
    let dir = pipeline();
    let weights = dir.path().join("text_encoder/model.safetensors");
    let query = "encoder.block.1.layer.0.SelfAttention.q.weight";
    rewrite(&weights, |all| {
        let (_, dtype, _, data) = all.iter_mut().find(|(name, ..)| name == query).unwrap();
        *dtype = Dtype::F8_E4M3;
        data.truncate(data.len() / 2);
    });
    let said = refusal!(Data, open(dir.path()));
    assert!(said.contains("8-bit floats") && said.contains(query), "{said}");
    for extra in ["scaled_fp8", "encoder.block.0.layer.0.SelfAttention.q.scale_weight"] {
        rewrite(&weights, |all| all.push((extra.into(), Dtype::F32, vec![1], vec![0; 4])));
        assert!(refusal!(Data, open(dir.path())).contains(&format!("8-bit floats (`{extra}`")));
    }
    fs::write(&weights, b"GGUF\x03\0\0\0").unwrap();
    assert!(refusal!(Data, open(dir.path())).contains("GGUF"));
    fs::write(&weights, &fs::read(golden("text_encoder/model.safetensors")).unwrap()[..50_000]).unwrap();
    assert!(refusal!(Data, open(dir.path())).contains("cut short"));
    rewrite(&weights, |all| all.retain(|(name, ..)| name != query));
    let said = refusal!(Shape, open(dir.path()));
    assert!(said.contains("1 missing") && said.contains(query), "{said}");
    rewrite(&weights, |all| all.push(("visual.weight".into(), Dtype::F32, vec![1], vec![0; 4])));
    assert!(refusal!(Shape, open(dir.path())).contains("1 not known (`visual.weight`)"));
    let nan = half::bf16::NAN.to_le_bytes();
    rewrite(&weights, |all| all.iter_mut().for_each(|(_, _, _, data)| data[..2].copy_from_slice(&nan)));
    let model = TextModel::open(dir.path()).unwrap();
    let said = refusal!(Data, model.encode_ids(&[vec![0]], &mut |_, _| ()));
    assert!(said.contains("shared.weight") && said.contains("damaged"), "{said}");
}

#[test]
fn checkpoints_of_other_networks_are_no_text_encoder() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    let dir = TempDir::new().unwrap();
    for (name, from) in [
        ("vae.safetensors", "vae/vae21/vae/diffusion_pytorch_model.safetensors"),
        ("vae.pth", "vae/vae21/original.pth"),
        ("transformer.safetensors", "tokens/transformer/diffusion_pytorch_model.safetensors"),
        ("lora.safetensors", "lora/t2v/comfy.safetensors"),
    ] {
        fs::copy(root.join(from), dir.path().join(name)).unwrap();
        let said = refusal!(Data, open(&dir.path().join(name)));
        assert!(said.contains(&format!("{name}: is no text encoder of T5's kind")), "{said}");
    }
    for folder in ["vae/vae21/vae", "tokens/transformer"] {
        let said = refusal!(Data, open(&root.join(folder)));
        assert!(said.contains("has no weights of a text encoder"), "{said}");
    }
}

/// T5's other half and a tokenizer in the file are passed over; the embedding may have either name, or both.
#[test]
fn what_is_beside_the_encoder_in_a_file_is_passed_over() {
    let dir = pipeline();
    let weights = dir.path().join("text_encoder/model.safetensors");
    let encoded = || TextModel::open(dir.path()).unwrap().encode_ids(&[vec![5, 6, 1]], &mut |_, _| ()).unwrap();
    let want = super::flat(&encoded()[0]);
    rewrite(&weights, |all| {
        all.push(("spiece_model".into(), Dtype::U8, vec![3], vec![1, 2, 3]));
        all.push(("decoder.block.0.layer.0.SelfAttention.q.weight".into(), Dtype::F32, vec![1], vec![0; 4]));
        all.push(("lm_head.weight".into(), Dtype::F32, vec![1], vec![0; 4]));
        // As early releases of transformers 5 wrote it: zeros.
        all.push(("encoder.embed_tokens.weight".into(), Dtype::BF16, vec![512, 32], vec![0; 2 * 512 * 32]));
    });
    assert!(super::flat(&encoded()[0]) == want);
    rewrite(&weights, |all| {
        let shared = all.iter_mut().find(|(name, ..)| name == "shared.weight").unwrap();
        shared.0 = "encoder.embed_tokens.weight".into();
    });
    assert!(super::flat(&encoded()[0]) == want);
}

#[test]
fn configs_of_other_networks_are_refused() {
    let dir = pipeline();
    let config = dir.path().join("text_encoder/config.json");
    for (key, value, reason) in [
        ("model_type", json!("clip_text_model"), "`clip_text_model`; text encoders are of umt5"),
        ("model_type", Value::Null, "model_type is not said"),
        ("feed_forward_proj", json!("gated-silu"), "gated-silu"),
        ("relative_attention_num_buckets", json!(64), "64 buckets over 128"),
        ("num_layers", json!(1_000_000_000), "sizes"),
        ("num_heads", json!(0), "sizes"),
        ("layer_norm_epsilon", json!(-1.0), "epsilon"),
        ("d_model", json!("wide"), "not a text encoder's config"),
    ] {
        fs::copy(golden("text_encoder/config.json"), &config).unwrap();
        change(&config, |json| json[key] = value.clone());
        let said = refusal!(Data, open(dir.path()));
        assert!(said.contains(reason), "{key} = {value}: {said}");
    }
    change(&config, |json| {
        *json = serde_json::from_str(&fs::read_to_string(golden("bert/config.json")).unwrap()).unwrap()
    });
    assert!(refusal!(Shape, open(dir.path())).contains("missing"));
    change(&config, |json| json["position_embedding_type"] = json!("relative_key"));
    assert!(refusal!(Data, open(dir.path())).contains("absolute"));
}

#[test]
fn inputs_that_cannot_be_encoded_are_refused() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("in.safetensors");
    let said = |ids: (&[usize], &[i64]), mask: (&[usize], &[i64]), flags: &[&str]| {
        let bytes = |values: &[i64]| values.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<u8>>();
        let data = [bytes(ids.1), bytes(mask.1)];
        let view = |shape: &[usize], data| TensorView::new(Dtype::I64, shape.to_vec(), data).unwrap();
        let tensors = [("input_ids", view(ids.0, &data[0])), ("attention_mask", view(mask.0, &data[1]))];
        safetensors::serialize_to_file(tensors, None, &path).unwrap();
        forward(&golden("text_encoder"), &path, flags)
    };
    let mask: (&[usize], &[i64]) = (&[2, 2], &[1, 1, 1, 0]);
    for (ids, mask, flags, reason) in [
        ((&[2, 2][..], &[1, 512, 1, 1][..]), mask, &[][..], "knows 512"),
        ((&[2, 2], &[1, -1, 1, 1]), mask, &[], "no token's id"),
        ((&[4], &[1, 1, 1, 1]), mask, &[], "[B, L] is wanted"),
        ((&[2, 2], &[1, 1, 1, 1]), (&[2, 1], &[1, 1]), &[], "[2, 2]"),
        ((&[2, 2], &[1, 1, 1, 1]), (&[2, 2], &[0, 1, 1, 1]), &[], "padding comes last"),
        ((&[0, 2], &[]), (&[0, 2], &[]), &[], "at least one"),
        ((&[2, 2], &[1, 1, 1, 1]), mask, &["--grads"], "frozen"),
        ((&[2, 2], &[1, 1, 1, 1]), mask, &["--ranks", "2"], "one rank"),
        ((&[2, 2], &[1, 1, 1, 1]), mask, &["--tile", "16"], "VAE"),
    ] {
        let said = said(ids, mask, flags).unwrap_err();
        assert!(said.contains(reason), "{ids:?} {mask:?} {flags:?}: {said}");
    }
    let (shape, values) = said((&[2, 2], &[1, 1, 1, 1]), (&[2, 2], &[1, 0, 0, 0]), &[]).unwrap(); // one is empty
    assert!(shape == [2, 2, 32] && values[..32].iter().any(|x| *x != 0.0) && values[32..].iter().all(|x| *x == 0.0));
}
