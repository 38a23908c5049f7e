//! `longreel lora`: what is shown, converted and merged, against diffusers' results and the bytes of the base.

use super::{CASES, golden, open, values};
use longreel::files::Tensors;
use longreel::lora::{AdapterFile, Form};
use safetensors::{Dtype, SafeTensors, tensor::TensorView};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use tempfile::TempDir;

/// Runs `longreel`: did it succeed, what did it print, what did it say?
pub(super) fn longreel(args: &[&str]) -> (bool, String, String) {
    let out = Command::new(env!("CARGO_BIN_EXE_longreel")).args(args).output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (out.status.success(), text(&out.stdout), text(&out.stderr))
}

pub(super) fn succeed(args: &[&str]) -> String {
    let (ok, printed, said) = longreel(args);
    assert!(ok, "{args:?}: {said}");
    printed
}

pub(super) fn fail(args: &[&str]) -> String {
    let (ok, _, said) = longreel(args);
    assert!(!ok && !said.contains("panicked"), "{args:?}: {said}");
    said
}

pub(super) fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// The base of a case, its inputs.
fn base(case: &str) -> (PathBuf, PathBuf) {
    let own = if golden(case).join("transformer").is_dir() { case } else { "t2v" };
    (golden(own).join("transformer"), golden(own).join("inputs.safetensors"))
}

fn sample(path: &Path) -> Vec<f32> {
    Tensors::open(path).unwrap().read_f32("sample").unwrap()
}

fn error(got: &[f32], want: &[f32]) -> f64 {
    let difference: f64 = got.iter().zip(want).map(|(g, w)| f64::from(g - w).powi(2)).sum();
    (difference / want.iter().map(|w| f64::from(*w).powi(2)).sum::<f64>()).sqrt()
}

/// Copies a model's tensors under other names and types to one file.
fn copied(base: &Path, to: &Path, dtype: Dtype, name: impl Fn(&str) -> String) {
    let bytes = fs::read(base.join("diffusion_pytorch_model.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let converted = file.tensors().into_iter().map(|(key, view)| {
        let values = view.data().chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap()));
        let data: Vec<u8> = match dtype {
            Dtype::BF16 => values.flat_map(|x| half::bf16::from_f32(x).to_le_bytes()).collect(),
            Dtype::F16 => values.flat_map(|x| half::f16::from_f32(x).to_le_bytes()).collect(),
            Dtype::F64 => values.flat_map(|x| f64::from(x).to_le_bytes()).collect(),
            _ => view.data().to_vec(),
        };
        (name(&key), view.shape().to_vec(), data)
    });
    let all: Vec<_> = converted.collect();
    let views = all.iter().map(|(name, shape, data)| (name, TensorView::new(dtype, shape.clone(), data).unwrap()));
    safetensors::serialize_to_file(views, None, to).unwrap();
}

#[test]
fn a_merged_model_computes_what_the_adapted_one_does() {
    for case in CASES.into_iter().filter(|case| *case != "i2v") {
        let (base, inputs) = base(case);
        let dir = TempDir::new().unwrap();
        let (merged, out) = (dir.path().join("merged"), dir.path().join("out.safetensors"));
        let lora = golden(case).join("comfy_alpha.safetensors");
        let printed = succeed(&["lora", "merge", text(&base), text(&lora), "-o", text(&merged)]);
        assert!(printed.contains("0 (0.0 %) are as before, since f32 is too coarse"), "{printed}");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "nothing else is left");
        succeed(&["forward", text(&merged), text(&inputs), "-o", text(&out)]);
        let expected = sample(&golden(case).join("expected.safetensors"));
        let off = error(&sample(&out), &expected);
        assert!(off < 2e-6, "{case}: {off:.1e}");
        // Half of it, then the other half; and backwards.
        let half = format!("{}:0.5", text(&lora));
        let twice = dir.path().join("twice");
        succeed(&["lora", "merge", text(&base), &half, &half, "-o", text(&twice)]);
        let weights = "diffusion_pytorch_model.safetensors";
        let [once, both] = [&merged, &twice].map(|folder| values(&folder.join(weights)));
        for ((name, _, one), (_, _, two)) in once.iter().zip(&both) {
            assert!(one.iter().zip(two).all(|(a, b)| (a - b).abs() <= 1e-6 * a.abs().max(0.1)), "{case} {name}");
        }
        let back = dir.path().join("back");
        succeed(&["lora", "merge", text(&merged), &format!("{}:-1", text(&lora)), "-o", text(&back)]);
        for ((name, _, a), (_, _, b)) in values(&back.join(weights)).iter().zip(&values(&base.join(weights))) {
            assert!(a.iter().zip(b).all(|(a, b)| (a - b).abs() < 1e-6), "{case} {name}");
        }
    }
}

#[test]
fn a_file_is_merged_into_a_file_of_its_kind() {
    let (base, _) = base("t2v");
    let dir = TempDir::new().unwrap();
    let at = |name: &str| dir.path().join(name);
    let naming = |key: &str| {
        let original = longreel::model::names::original_parameter(key).unwrap();
        format!("model.diffusion_model.{original}")
    };
    copied(&base, &at("base.safetensors"), Dtype::BF16, naming);
    fs::copy(base.join("config.json"), at("config.json")).unwrap();
    let lora = golden("t2v").join("kohya.safetensors");
    let small = format!("{}:0.001", text(&lora));
    let printed =
        succeed(&["lora", "merge", text(&at("base.safetensors")), &small, "-o", text(&at("out.safetensors"))]);
    let words: Vec<&str> = printed.split_whitespace().collect();
    let after = |word: &str| words[words.iter().position(|w| *w == word).unwrap() + 1].parse::<u64>().unwrap();
    let (changed, swallowed) = (after("of"), after("change,"));
    assert!(swallowed > changed / 2 && swallowed < changed, "{printed}");
    let [old, new] = ["base.safetensors", "out.safetensors"].map(|name| values(&at(name)));
    assert_eq!(
        old.iter().map(|t| (&t.0, &t.1)).collect::<Vec<_>>(),
        new.iter().map(|t| (&t.0, &t.1)).collect::<Vec<_>>()
    );
    let adapter = open("t2v", "kohya").unwrap().adapter;
    let (mut differ, mut same) = (0, 0);
    for ((key, _, old), (_, _, new)) in old.iter().zip(&new) {
        let name = longreel::model::names::parameter(key.strip_prefix("model.diffusion_model.").unwrap()).unwrap();
        let module = name.strip_suffix(".weight").and_then(|layer| adapter.module(layer));
        let Some(module) = module else {
            assert_eq!(old, new, "{key}");
            continue;
        };
        for (i, (old, new)) in old.iter().zip(new).enumerate() {
            let (row, column) = (i / module.inner, i % module.inner);
            let mut delta = 0f32;
            for r in 0..module.rank {
                let scale = (0.001 * module.scale()) as f32;
                delta += scale * module.b[row * module.rank + r] * module.a[r * module.inner + column];
            }
            assert_eq!(half::bf16::from_f32(old + delta).to_f32(), *new, "{key} {i}");
            differ += u64::from(old + delta != *old);
            same += u64::from(old + delta != *old && old == new);
        }
    }
    assert_eq!((changed, swallowed), (differ, same));
    assert_eq!(
        Tensors::open(&at("out.safetensors")).unwrap().dtype("model.diffusion_model.head.head.bias").unwrap(),
        Dtype::BF16
    );
    let said = fail(&["lora", "merge", text(&at("base.safetensors")), text(&lora), "-o", text(&at("out.safetensors"))]);
    assert!(said.contains("exists already"), "{said}");
}

#[test]
fn converting_there_and_back_gives_the_same_bytes() {
    let dir = TempDir::new().unwrap();
    let at = |name: &str| dir.path().join(name);
    let lora = golden("t2v_mixed").join("diffusers.safetensors");
    let convert = |from: &Path, to: &str, form: &str| {
        let printed = succeed(&["lora", "convert", text(from), "--form", form, "-o", text(&at(to))]);
        assert_eq!(printed.trim(), text(&at(to)));
    };
    convert(&lora, "comfy", "comfy");
    convert(&at("comfy"), "kohya", "kohya");
    convert(&at("kohya"), "diffusers", "diffusers");
    convert(&at("diffusers"), "again", "comfy");
    assert!(fs::read(at("comfy")).unwrap() == fs::read(at("again")).unwrap());
    assert_eq!(AdapterFile::open(&at("kohya")).unwrap().form, Form::Kohya);
    let said = fail(&["lora", "convert", text(&lora), "-o", text(&at("comfy"))]);
    assert!(said.contains("exists already"), "{said}");
    succeed(&["lora", "convert", text(&lora), "-o", text(&at("comfy")), "--force"]);
    let said = fail(&[
        "lora",
        "convert",
        text(&golden("t2v_attention_only").join("comfy.safetensors")),
        "-o",
        text(&at("x")),
        "--form=kohya",
    ]);
    assert!(said.contains("all ten layers") && !at("x").exists(), "{said}");
}

#[test]
fn a_lora_is_shown() {
    for case in CASES {
        for (form, word) in [("comfy", "ComfyUI's form"), ("kohya", "kohya's form"), ("diffusers", "diffusers' form")] {
            let path = golden(case).join(format!("{form}.safetensors"));
            let printed = succeed(&["lora", "show", text(&path)]);
            assert_eq!(printed, succeed(&["show", text(&path)]), "`show` knows a LoRA");
            assert!(printed.contains(word) && printed.contains("24 wide"), "{printed}");
            assert_eq!(printed.contains("I2V"), case == "i2v", "{printed}");
        }
    }
    let printed = succeed(&["lora", "show", text(&golden("t2v_mixed").join("comfy_alpha.safetensors"))]);
    for line in [
        "  rank      2, 4, 8",
        "  scale     1.5, 2.5, 0.25 (alpha / rank; alpha: alpha tensors)",
        "  layers    20: attn1.to_k (2), attn1.to_out.0 (2)",
        "24 wide, 2 blocks",
        "parameters in f32",
    ] {
        assert!(printed.contains(line), "no {line:?} in:\n{printed}");
    }
    assert!(fail(&["lora", "show", text(&golden("t2v").join("inputs.safetensors"))]).contains("not a LoRA file"));
    assert!(fail(&["lora", "show", "nowhere.safetensors"]).contains("nowhere.safetensors"));
}

#[test]
fn a_lora_for_another_model_changes_nothing() {
    let dir = TempDir::new().unwrap();
    let out = dir.path().join("out");
    let base = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/tokens/transformer");
    let lora = golden("t2v").join("comfy.safetensors");
    let said = fail(&["lora", "merge", text(&base), text(&lora), "-o", text(&out)]);
    assert!(said.contains("24 wide") && said.contains("the model's 32") && said.contains(text(&lora)), "{said}");
    for scale in ["x", "nan", ""] {
        let said = fail(&["lora", "merge", text(&base), &format!("{}:{scale}", text(&lora)), "-o", text(&out)]);
        assert!(!said.is_empty() && !out.exists(), "{said}");
    }
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
}
