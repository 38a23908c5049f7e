//! Model files that claim more than they hold: each is one error that names the file, before anything is allocated for
//! the claim.

use longreel::files::{Header, Tensors};
use longreel::model::{Model, ModelConfig};
use longreel::observe::process::memory;
use serde_json::{Value, json};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

/// A small model's config.json, with `key` set to `value`.
fn config(key: &str, value: Value) -> Value {
    let mut config = ModelConfig { num_attention_heads: 2, attention_head_dim: 8, ..ModelConfig::default() }.to_json();
    for (small, size) in [("ffn_dim", 32), ("num_layers", 1), ("text_dim", 0), ("in_channels", 3), ("out_channels", 3)]
    {
        config[small] = size.into();
    }
    config[key] = value;
    config
}

#[test]
fn sizes_beyond_any_model_are_an_error_that_names_the_key() {
    ModelConfig::from_json(&config("num_layers", 2.into())).unwrap();
    let most = u64::MAX;
    for (key, value) in [
        ("num_layers", json!(2147483647u64)),
        ("num_layers", json!(most)),
        ("num_attention_heads", json!(most)),
        ("ffn_dim", json!(1u64 << 63)),
        ("in_channels", json!(1u64 << 40)),
        ("out_channels", json!(most)),
        ("text_dim", json!(most)),
        ("freq_dim", json!(most - 1)),
        ("num_classes", json!(most)),
        ("rope_max_seq_len", json!(most)),
        ("patch_size", json!([1u64 << 33, 1u64 << 33, 4])),
    ] {
        let error = refusal!(Config, ModelConfig::from_json(&config(key, value.clone())));
        assert!(error.contains(key) && error.contains("must be at most"), "{key} = {value}: {error}");
    }
    // Each size is one that a model may have; all together are not.
    let mut all = config("num_layers", 4096.into());
    all["num_attention_heads"] = 4096.into();
    all["ffn_dim"] = (1 << 20).into();
    let error = refusal!(Config, ModelConfig::from_json(&all));
    assert!(error.contains("parameters; it must be at most 1099511627776"), "{error}");
    let wan = ModelConfig::default();
    let listed: usize = Model::shapes(&wan).iter().map(|(_, shape)| shape.iter().product::<usize>()).sum();
    assert_eq!(Model::count_of(&wan), listed);
}

#[test]
fn a_config_with_two_billion_layers_is_one_line_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    std::fs::create_dir(at("model")).unwrap();
    std::fs::write(at("model/config.json"), config("num_layers", 2147483647u64.into()).to_string()).unwrap();
    longreel::files::write_tensors(
        &at("model/diffusion_pytorch_model.safetensors"),
        [("proj_out.bias", vec![1], [0f32])],
    )
    .unwrap();
    let toml = "[data]\npath = \"clips\"\nframes = 1\nheight = 16\nwidth = 16\n[model]\nfrom = \"model\"\n[run]\nout = \"run\"\n";
    std::fs::write(at("run.toml"), toml).unwrap();
    for args in [
        &["forward", "model", "inputs.safetensors", "-o", "out.safetensors"][..],
        &["train", "run.toml"],
        &["plan", "run.toml"],
    ] {
        let begun = Instant::now();
        let output =
            Command::new(env!("CARGO_BIN_EXE_longreel")).args(args).current_dir(folder.path()).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(begun.elapsed() < Duration::from_secs(5), "{args:?}: {:?}", begun.elapsed());
        assert_eq!((output.status.code(), said.lines().count()), (Some(1), 1), "{args:?}: {said}");
        assert!(said.contains("model: num_layers is 2147483647; it must be at most 4096"), "{args:?}: {said}");
        assert!(said.contains("model: model: ") || said.contains("model/config.json: "), "{args:?}: {said}");
    }
    // As many layers as a model may have, where the weights hold none of them: found by names, before any is allocated.
    std::fs::write(at("model/config.json"), config("num_layers", 4096.into()).to_string()).unwrap();
    let folder = longreel::model::folder::Folder::open(&at("model")).unwrap();
    let network = ModelConfig::of(&folder).unwrap();
    let error = refusal!(Shape, folder.check(&Model::shapes(&network)));
    assert!(
        error.contains("diffusion_pytorch_model.safetensors: does not fit") && error.contains("missing"),
        "{error}"
    );
}

/// A safetensors file whose header is `json`, and `data` bytes of zeros after it.
fn safetensors(json: &str, data: usize) -> Vec<u8> {
    [&(json.len() as u64).to_le_bytes()[..], json.as_bytes(), &vec![0; data]].concat()
}

#[test]
fn a_header_that_claims_more_than_any_disk_holds_is_refused_by_name() {
    let json = |end: u64| format!(r#"{{"a":{{"dtype":"U8","shape":[{end}],"data_offsets":[0,{end}]}}}}"#);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.safetensors");
    for (end, why) in
        [(u64::MAX, "damaged"), (1 << 61, "damaged"), ((1 << 61) - 1, "was cut short"), (9, "was cut short")]
    {
        std::fs::write(&path, safetensors(&json(end), 8)).unwrap();
        let error = refusal!(Data, Tensors::open(&path));
        assert!(error.contains("a.safetensors: ") && error.contains(why), "{end}: {error}");
    }
    // A header of 100 MB is in proportion to nothing here.
    std::fs::write(&path, [&99_999_999u64.to_le_bytes()[..], b"{}"].concat()).unwrap();
    let error = refusal!(Data, Tensors::open(&path));
    assert!(error.contains("a.safetensors: was cut short: its header has 99999999 bytes"), "{error}");
}

#[test]
fn no_change_of_a_header_makes_the_reader_panic() {
    let json = r#"{"__metadata__":{"format":"pt"},"a":{"dtype":"F32","shape":[2,1],"data_offsets":[0,8]},"b":{"dtype":"BF16","shape":[],"data_offsets":[8,10]}}"#;
    let good = safetensors(json, 10);
    assert_eq!(Header::read(&good[..], good.len() as u64).unwrap().tensors.len(), 2);
    let mut refused = 0;
    super::mutated::mutated(&good, 20_000, |bytes| {
        refused += usize::from(Header::read(bytes, bytes.len() as u64).is_err());
    });
    assert!((5_000..20_000).contains(&refused), "{refused} of 20000 are refused");
}

#[test]
fn text_files_longer_than_such_a_text_are_refused_unread() {
    let folder = tempfile::tempdir().unwrap();
    let sparse = |name: &str| {
        let file = std::fs::File::create(folder.path().join(name)).unwrap();
        file.set_len(10 << 30).unwrap(); // of holes: takes no room
    };
    let refused = |path: &Path| longreel::model::folder::Folder::open(path).unwrap_err().to_string();
    sparse("config.json");
    let error = refused(folder.path());
    assert!(error.contains("config.json") && error.contains("at most 1048576"), "{error}");
    std::fs::write(folder.path().join("config.json"), "{}").unwrap();
    sparse("diffusion_pytorch_model.safetensors.index.json");
    let error = refused(folder.path());
    assert!(error.contains("index.json") && error.contains("at most 67108864"), "{error}");
    assert!(memory().now < 4 << 30, "10 GiB were read");
}
