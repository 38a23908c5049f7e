//! What `longreel forward` does with input it cannot use: one clear error, exit code not 0, no panic, no hang, and no
//! output touched. Each test spoils a copy of a golden case in one way.

use super::{case, forward};
use safetensors::{Dtype, SafeTensors, tensor::TensorView};
use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use tempfile::TempDir;

/// A copy of the smallest case that a test may spoil.
struct Spoilt {
    dir: TempDir,
}

impl Spoilt {
    fn new(name: &str) -> Self {
        let dir = TempDir::new().unwrap();
        fs::create_dir(dir.path().join("transformer")).unwrap();
        for file in fs::read_dir(case(name).join("transformer")).unwrap() {
            let file = file.unwrap();
            fs::copy(file.path(), dir.path().join("transformer").join(file.file_name())).unwrap();
        }
        fs::copy(case(name).join("inputs.safetensors"), dir.path().join("inputs.safetensors")).unwrap();
        Self { dir }
    }

    fn path(&self, file: &str) -> PathBuf {
        self.dir.path().join(file)
    }

    /// Changes one key of config.json.
    fn config(self, key: &str, value: serde_json::Value) -> Self {
        let path = self.path("transformer/config.json");
        let mut config: serde_json::Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        config[key] = value;
        fs::write(&path, config.to_string()).unwrap();
        self
    }

    /// Rewrites a file's tensors: `edit` sees (name, dtype, shape, bytes) of all of them.
    fn tensors(self, file: &str, edit: impl FnOnce(&mut BTreeMap<String, (Dtype, Vec<usize>, Vec<u8>)>)) -> Self {
        let path = self.path(file);
        let bytes = fs::read(&path).unwrap();
        let mut all = SafeTensors::deserialize(&bytes)
            .unwrap()
            .tensors()
            .into_iter()
            .map(|(name, v)| (name, (v.dtype(), v.shape().to_vec(), v.data().to_vec())))
            .collect();
        edit(&mut all);
        let views = all.iter().map(|(n, (dtype, shape, b))| (n, TensorView::new(*dtype, shape.clone(), b).unwrap()));
        fs::write(&path, safetensors::serialize(views, None).unwrap()).unwrap();
        self
    }

    /// Replaces an input by zeros of another shape.
    fn input(self, name: &str, shape: &[usize]) -> Self {
        self.tensors("inputs.safetensors", |all| {
            let zeros = vec![0; 4 * shape.iter().product::<usize>()];
            all.insert(name.into(), (Dtype::F32, shape.to_vec(), zeros));
        })
    }

    /// Cuts a file to half its length.
    fn halve(self, file: &str) -> Self {
        let path = self.path(file);
        let bytes = fs::read(&path).unwrap();
        fs::write(&path, &bytes[..bytes.len() / 2]).unwrap();
        self
    }

    /// Takes a file away.
    fn without(self, file: &str) -> Self {
        fs::remove_file(self.path(file)).unwrap();
        self
    }

    /// The run fails with a message that holds all of `words`, does not panic, and leaves an older output alone.
    fn refused(&self, flags: &[&str], words: &[&str]) {
        let out = self.path("out.safetensors");
        fs::write(&out, "older").unwrap();
        let (model, inputs) = (self.path("transformer"), self.path("inputs.safetensors"));
        let mut args = vec![model.to_str().unwrap(), inputs.to_str().unwrap(), "--force", "-o", out.to_str().unwrap()];
        args.extend(flags);
        let (ok, said) = forward(&args);
        assert!(!ok, "{words:?}: accepted, and said {said:?}");
        assert!(!said.contains("panicked"), "{words:?}: {said}");
        for word in words {
            assert!(said.contains(word), "no {word:?} in: {said}");
        }
        assert_eq!(fs::read_to_string(&out).unwrap(), "older", "{words:?}: the older output is gone");
        let left = fs::read_dir(self.dir.path()).unwrap().filter(|f| {
            let name = f.as_ref().unwrap().file_name();
            !["transformer", "inputs.safetensors", "out.safetensors"].contains(&name.to_str().unwrap())
        });
        assert_eq!(left.count(), 0, "{words:?}: temporary files are left");
    }
}

const WEIGHTS: &str = "transformer/diffusion_pytorch_model.safetensors";

#[test]
fn the_unspoilt_case_is_accepted() {
    let spoilt = Spoilt::new("bf16");
    let out = spoilt.path("out.safetensors");
    let (ok, said) = forward(&[
        spoilt.path("transformer").to_str().unwrap(),
        spoilt.path("inputs.safetensors").to_str().unwrap(),
        "-o",
        out.to_str().unwrap(),
    ]);
    assert!(ok && out.exists(), "{said}");
}

#[test]
fn missing_and_cut_files_are_refused_by_name() {
    Spoilt::new("bf16").without("inputs.safetensors").refused(&[], &["inputs.safetensors"]);
    Spoilt::new("bf16").without("transformer/config.json").refused(&[], &["config.json"]);
    Spoilt::new("bf16").without(WEIGHTS).refused(&[], &["diffusion_pytorch_model"]);
    let shard = "diffusion_pytorch_model-00002-of-00002.safetensors";
    Spoilt::new("shards").without(&format!("transformer/{shard}")).refused(&[], &[shard]);
    Spoilt::new("bf16").halve("inputs.safetensors").refused(&[], &["inputs.safetensors"]);
    Spoilt::new("bf16").halve("transformer/config.json").refused(&[], &["config.json"]);
    Spoilt::new("bf16").halve(WEIGHTS).refused(&[], &["diffusion_pytorch_model.safetensors"]);
    Spoilt::new("shards").halve(&format!("transformer/{shard}")).refused(&[], &[shard]);
    Spoilt::new("shards")
        .halve("transformer/diffusion_pytorch_model.safetensors.index.json")
        .refused(&[], &["index.json"]);
}

#[test]
fn missing_inputs_are_refused_by_name() {
    for name in ["hidden_states", "timestep", "encoder_hidden_states"] {
        let spoilt = Spoilt::new("bf16").tensors("inputs.safetensors", |all| drop(all.remove(name)));
        spoilt.refused(&[], &[name, "inputs.safetensors"]);
    }
}

#[test]
fn inputs_of_another_shape_are_refused_with_it() {
    let spoilt = |name, shape| Spoilt::new("bf16").input(name, shape);
    spoilt("hidden_states", &[2, 4, 1, 14, 14]).refused(&[], &["hidden_states", "4", "3"]); // channels
    spoilt("hidden_states", &[2, 3, 1, 15, 14]).refused(&[], &["hidden_states", "15"]); // a patch that does not divide
    spoilt("hidden_states", &[2, 3, 14, 14]).refused(&[], &["hidden_states"]); // no frames
    spoilt("hidden_states", &[2, 3, 0, 14, 14]).refused(&[], &["hidden_states", "0"]); // no tokens
    spoilt("timestep", &[3]).refused(&[], &["timestep", "3"]); // another batch
    spoilt("timestep", &[2, 48]).refused(&[], &["timestep", "48"]); // neither one a clip nor one a token
    spoilt("encoder_hidden_states", &[3, 4, 8]).refused(&[], &["encoder_hidden_states", "3"]); // another batch
    spoilt("encoder_hidden_states", &[2, 4, 9]).refused(&[], &["encoder_hidden_states", "9", "8"]); // another width
    spoilt("encoder_hidden_states", &[2, 0, 8]).refused(&[], &["encoder_hidden_states"]); // no words at all
}

#[test]
fn weights_that_do_not_fit_the_config_are_refused_by_name() {
    let key = "blocks.1.attn1.norm_q.weight";
    Spoilt::new("bf16").tensors(WEIGHTS, |all| drop(all.remove(key))).refused(&[], &[key]);
    Spoilt::new("bf16")
        .tensors(WEIGHTS, |all| drop(all.insert("blocks.2.norm".into(), (Dtype::F32, vec![1], vec![0; 4]))))
        .refused(&[], &["blocks.2.norm"]);
    Spoilt::new("bf16")
        .tensors(WEIGHTS, |all| drop(all.insert(key.into(), (Dtype::F32, vec![23], vec![0; 92]))))
        .refused(&[], &[key, "23", "24"]);
    Spoilt::new("bf16")
        .tensors(WEIGHTS, |all| drop(all.insert(key.into(), (Dtype::I64, vec![24], vec![0; 192]))))
        .refused(&[], &[key, "I64"]);
    Spoilt::new("bf16").config("num_layers", 3.into()).refused(&[], &["blocks.2."]);
}

#[test]
fn configs_we_have_no_network_for_are_refused_by_key() {
    Spoilt::new("bf16").config("added_kv_proj_dim", 8.into()).refused(&[], &["added_kv_proj_dim"]);
    Spoilt::new("bf16").config("image_dim", 8.into()).refused(&[], &["image_dim"]);
    Spoilt::new("bf16").config("patch_size", serde_json::json!([1, 2])).refused(&[], &["patch_size"]);
    Spoilt::new("bf16").config("num_attention_heads", 0.into()).refused(&[], &["num_attention_heads"]);
    Spoilt::new("bf16").config("ffn_dim", "wide".into()).refused(&[], &["config.json"]);
}

#[test]
fn no_ranks_or_more_than_tokens_are_refused() {
    Spoilt::new("bf16").refused(&["--ranks", "0"], &["ranks"]);
    Spoilt::new("bf16")
        .input("hidden_states", &[2, 3, 1, 2, 4])
        .refused(&["--ranks", "3"], &["3", "ranks", "2", "tokens"]);
}

#[test]
fn flags_nobody_knows_are_refused() {
    Spoilt::new("bf16").refused(&["--dtype", "f8"], &["f8", "bf16"]);
    Spoilt::new("bf16").refused(&["--rank", "2"], &["--rank"]);
}

#[test]
fn an_output_folder_that_is_not_there_is_refused_by_name() {
    let spoilt = Spoilt::new("bf16");
    let out = spoilt.path("nowhere/out.safetensors");
    let (ok, said) = forward(&[
        spoilt.path("transformer").to_str().unwrap(),
        spoilt.path("inputs.safetensors").to_str().unwrap(),
        "-o",
        out.to_str().unwrap(),
    ]);
    assert!(!ok && said.contains("nowhere") && !said.contains("panicked"), "{said}");
}
