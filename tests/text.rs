//! Text encoders against transformers: UMT5 by each of its names, T5, BERT; tokenizing; what their files may not be.
//!
//! The golden files and their story are in `golden/text/make.py`.

use candle_core::Tensor;
use longreel::simd::Isa;
use longreel::text::{TextConfig, TextEncoder, TextModel, bucket, clean};
use safetensors::{Dtype, SafeTensors, tensor::TensorView};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use tempfile::TempDir;

mod damaged;
mod hashes;

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/text").join(name)
}

/// A tensor's shape and values.
type Values = (Vec<usize>, Vec<f64>);

fn read(path: &Path) -> BTreeMap<String, Values> {
    let bytes = fs::read(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let values = |view: &TensorView| {
        let data = view.data();
        let values = match view.dtype() {
            Dtype::F32 => data.as_chunks::<4>().0.iter().map(|&b| f32::from_le_bytes(b).into()).collect(),
            Dtype::I64 => data.as_chunks::<8>().0.iter().map(|&b| i64::from_le_bytes(b) as f64).collect(),
            other => panic!("{other:?}"),
        };
        (view.shape().to_vec(), values)
    };
    SafeTensors::deserialize(&bytes).unwrap().tensors().into_iter().map(|(name, view)| (name, values(&view))).collect()
}

/// Runs `longreel forward`: the last hidden state, or what it said.
fn forward(model: &Path, inputs: &Path, flags: &[&str]) -> Result<Values, String> {
    let dir = TempDir::new().unwrap();
    let out = dir.path().join("out.safetensors");
    let mut command = Command::new(env!("CARGO_BIN_EXE_longreel"));
    let run = command.arg("forward").arg(model).arg(inputs).arg("-o").arg(&out).args(flags).output().unwrap();
    match run.status.success() {
        true => Ok(read(&out).remove("last_hidden_state").unwrap()),
        false => Err(String::from_utf8_lossy(&run.stderr).into_owned()),
    }
}

/// Norm of the difference over the norm.
fn error(got: &[f64], want: &[f64]) -> f64 {
    assert_eq!(got.len(), want.len());
    let difference: f64 = got.iter().zip(want).map(|(g, w)| (g - w).powi(2)).sum();
    (difference / want.iter().map(|w| w * w).sum::<f64>()).sqrt()
}

/// The ids of each row, without padding.
fn ids(case: &BTreeMap<String, Values>) -> Vec<Vec<u32>> {
    let (shape, ids) = &case["input_ids"];
    let rows = ids.chunks_exact(shape[1]).zip(case["attention_mask"].1.chunks_exact(shape[1]));
    rows.map(|(ids, mask)| ids.iter().zip(mask).filter(|(_, m)| **m == 1.0).map(|(&id, _)| id as u32).collect())
        .collect()
}

fn flat(tensor: &Tensor) -> Vec<f64> {
    tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap().into_iter().map(f64::from).collect()
}

/// A row's real part in a golden file.
fn wanted(case: &BTreeMap<String, Values>, row: usize, n: usize) -> &[f64] {
    let (shape, values) = &case["last_hidden_state"];
    &values[row * shape[1] * shape[2]..][..n * shape[2]]
}

// ---- agreement ----------------------------------------------------------------------------------------------------

/// Folder by folder and file by file as users have them: the same bits from each.
#[test]
fn umt5_agrees_with_transformers_by_each_of_its_names() {
    let (inputs, want) = (golden("encode.safetensors"), read(&golden("encode.safetensors")));
    let want = &want["last_hidden_state"];
    let mut first = None;
    for model in ["", "text_encoder", "text_encoder/model.safetensors", "models_t5_original.pth"] {
        let got = forward(&golden(model), &inputs, &[]).unwrap_or_else(|e| panic!("{model}: {e}"));
        assert_eq!(got.0, want.0);
        let off = error(&got.1, &want.1);
        assert!(off < 1e-5, "{model}: off by {off:.1e}");
        for (row, n) in [1, 7, 150, 160].into_iter().enumerate() {
            let padding = &got.1[row * 160 * 32..(row + 1) * 160 * 32][n * 32..];
            assert!(padding.iter().all(|&x| x == 0.0), "{model}: row {row}");
        }
        assert!(*first.get_or_insert_with(|| got.clone()) == got, "{model}: other bits");
        println!("{model}: off by {off:.1e}");
    }
}

#[test]
fn t5_and_bert_agree_with_transformers() {
    for model in ["t5", "t5_gated", "bert"] {
        let inputs = golden(model).join("encode.safetensors");
        let (got, want) = (forward(&golden(model), &inputs, &[]).unwrap(), read(&inputs));
        let off = error(&got.1, &want["last_hidden_state"].1);
        assert!(off < 1e-5, "{model}: off by {off:.1e}");
    }
}

#[test]
fn every_instruction_set_agrees_in_f32_and_nearly_in_bf16() {
    for (model, inputs) in [("text_encoder", "encode.safetensors"), ("bert", "bert/encode.safetensors")] {
        let case = read(&golden(inputs));
        let texts = ids(&case);
        for isa in Isa::ALL.into_iter().filter(|isa| isa.is_available()) {
            for bf16 in [false, true] {
                let model = TextModel::open(&golden(model)).unwrap().with_isa(isa).with_bf16(bf16);
                let got: Vec<f64> = model.encode_ids(&texts, &mut |_, _| ()).unwrap().iter().flat_map(flat).collect();
                let want: Vec<f64> =
                    (0..texts.len()).flat_map(|row| wanted(&case, row, texts[row].len())).copied().collect();
                let off = error(&got, &want);
                let range = if bf16 { 1e-4..3e-2 } else { 0.0..1e-5 };
                assert!(range.contains(&off), "{isa:?}, bf16 {bf16}: off by {off:.1e}");
            }
        }
    }
}

/// More texts than one run of rows takes, of many lengths: each is as if it were alone.
#[test]
fn texts_do_not_see_one_another() {
    let model = TextModel::open(&golden("text_encoder")).unwrap();
    let texts: Vec<Vec<u32>> =
        (0..40u32).map(|i| (0..=(i * 37) % 301).map(|j| (i * 13 + j * 7) % 512).collect()).collect();
    assert!(texts.iter().map(Vec::len).sum::<usize>() > 4096);
    let mut steps = vec![];
    let all = model.encode_ids(&texts, &mut |done, of| steps.push((done, of))).unwrap();
    assert!(steps.windows(2).all(|pair| pair[1].0 == pair[0].0 + 1 && pair[0].1 == pair[1].1));
    assert!(steps.len() > 7 && steps.last().is_some_and(|(done, of)| done == of), "{steps:?}");
    for (text, got) in texts.iter().zip(&all) {
        let alone = model.encode_ids(std::slice::from_ref(text), &mut |_, _| ()).unwrap();
        assert!(flat(&alone[0]) == flat(got));
    }
}

#[test]
fn buckets_are_those_of_transformers() {
    let case = read(&golden("encode.safetensors"));
    let (distances, buckets) = (&case["buckets.distance"].1, &case["buckets"].1);
    assert_eq!(distances.len(), 401);
    for (&distance, &want) in distances.iter().zip(buckets) {
        assert_eq!(bucket(distance as isize) as f64, want, "{distance}");
    }
}

// ---- captions -----------------------------------------------------------------------------------------------------

#[derive(serde::Deserialize)]
struct Tokenized {
    text: String,
    cleaned: String,
    ids: Vec<u32>,
}

fn tokenized() -> Vec<Tokenized> {
    serde_json::from_str(&fs::read_to_string(golden("tokenize.json")).unwrap()).unwrap()
}

#[test]
fn captions_have_the_ids_of_the_pipelines() {
    let encoder = TextEncoder::open(&golden("")).unwrap();
    let (mut of_ftfy, mut same) = (vec![], 0);
    for Tokenized { text, ids, .. } in tokenized() {
        assert!(ids.len() <= encoder.max_tokens());
        match encoder.ids(&text).unwrap() == ids {
            true => same += 1,
            false => of_ftfy.push(text),
        }
    }
    // The repair of mojibake is ftfy's alone.
    assert_eq!((of_ftfy, same), (vec!["mojibake: âœ” schÃ¶n".to_owned()], 12));
    let long = "a cat ".repeat(400);
    let (ids, count) = (encoder.ids(&long).unwrap(), encoder.token_counts(&[long, String::new()]).unwrap());
    assert_eq!((ids.len(), ids[511], count[1]), (512, 1, 1));
    assert!(count[0] > 1000, "{count:?}");
}

/// What ftfy makes besides, the tokenizer makes too: full width, ligatures, composition.
#[test]
fn captions_are_cleaned_as_the_pipelines_do() {
    let other: Vec<String> =
        tokenized().into_iter().filter(|row| clean(&row.text) != row.cleaned).map(|row| row.text).collect();
    let of_ftfy = ["一只可爱", "Ｆｕｌｌ", "caf\u{e9}", "mojibake"];
    assert!(other.len() == 4 && other.iter().zip(of_ftfy).all(|(text, start)| text.starts_with(start)), "{other:?}");
    for (caption, want) in [
        ("\u{201c}It\u{2019}s\u{201d}\u{a0}&amp;lt; \r\n\u{2003}now\u{85}", "\"It's\" < now"),
        ("a &eacute; &#39;b&#x27; &nosuch; &", "a é 'b' &nosuch; &"),
        ("<i>&ldquo;x&rdquo;</i>", "<i>\u{201c}x\u{201d}</i>"),
        ("&ldquo;x&rdquo; \u{feff}y\u{7}", "\"x\" y"),
    ] {
        assert_eq!(clean(caption), want, "{caption:?}");
    }
}

/// All that embeddings depend on is in the hash, and nothing else.
#[test]
fn the_hash_is_of_the_encoder_and_its_tokenizer() {
    let hash = |path: &Path| TextEncoder::open(path).unwrap().sha256().unwrap();
    let folder = hash(&golden(""));
    assert_eq!(folder, hash(&golden("text_encoder")));
    let (_dir, wan) = wan_folder();
    assert_eq!(folder, hash(&wan));
    let tokenizer = wan.join("google/umt5-xxl/tokenizer.json");
    let text = fs::read_to_string(&tokenizer).unwrap();
    fs::write(&tokenizer, text + "\n").unwrap();
    assert_ne!(folder, hash(&wan));
}

/// Captions come through a pipeline's folder and through Wan's own, whose config.json is the transformer's.
#[test]
fn captions_are_encoded_alone_and_unpadded() {
    let (_dir, wan) = wan_folder();
    let captions = ["A red fox trots through fresh snow.".to_owned(), String::new()];
    let encoder = TextEncoder::open(&golden("")).unwrap();
    let got = encoder.encode(&captions, &mut |_, _| ()).unwrap();
    let shapes: Vec<&[usize]> = got.iter().map(Tensor::dims).collect();
    assert_eq!((shapes, encoder.features()), (vec![&[23, 32][..], &[1, 32]], 32));
    let others = TextEncoder::open(&wan).unwrap().encode(&captions, &mut |_, _| ()).unwrap();
    assert!(got.iter().zip(&others).all(|(a, b)| flat(a) == flat(b)));
}

/// Wan's own repository: the encoder's `.pth`, the tokenizer below, and a config.json of another network.
fn wan_folder() -> (TempDir, PathBuf) {
    let dir = TempDir::new().unwrap();
    let path = dir.path().to_owned();
    fs::create_dir_all(path.join("google/umt5-xxl")).unwrap();
    fs::copy(golden("models_t5_original.pth"), path.join("models_t5_umt5-xxl-enc-bf16.pth")).unwrap();
    fs::copy(golden("tokenizer/tokenizer.json"), path.join("google/umt5-xxl/tokenizer.json")).unwrap();
    fs::write(path.join("config.json"), r#"{"_class_name": "WanModel"}"#).unwrap();
    (dir, path)
}

/// The published sizes: 5,680,910,336 parameters, and MiniLM's.
#[test]
fn published_configs_are_understood() {
    let config =
        |json: &str| TextConfig::from_json(&serde_json::from_str(json).unwrap(), Path::new("config.json")).unwrap();
    let xxl = config(
        r#"{"model_type": "umt5", "d_ff": 10240, "d_kv": 64, "d_model": 4096, "feed_forward_proj": "gated-gelu",
            "num_heads": 64, "num_layers": 24, "vocab_size": 256384, "layer_norm_epsilon": 1e-6}"#,
    );
    assert_eq!((xxl.parameters(), xxl.max_tokens), (5_680_910_336, 512));
    let minilm = config(
        r#"{"model_type": "bert", "hidden_act": "gelu", "hidden_size": 384, "intermediate_size": 1536,
            "max_position_embeddings": 512, "num_attention_heads": 12, "num_hidden_layers": 6, "type_vocab_size": 2,
            "vocab_size": 30522, "layer_norm_eps": 1e-12}"#,
    );
    assert_eq!((minilm.parameters(), minilm.max_tokens), (22_565_376, 512)); // without the pooler's 147,840
}
