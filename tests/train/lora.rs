//! Training of adapters over a frozen network: resumed to the bit, on any ranks and in any stage of ZeRO, with dropout;
//! what a checkpoint holds, what is exported and sampled from, and that the frozen network stays as it was.

use super::resume::until;
use super::{Place, difference, numbers, snapshot};
use longreel::lora::{AdapterFile, Form};
use longreel::model::folder::Folder;
use longreel::observe::metrics::Record;
use longreel::state::adapters::{AdapterRecord, base_sha256};
use safetensors::SafeTensors;
use std::collections::BTreeMap;
use std::fs;
use std::process::Command;

const PARTS: [&str; 4] = [
    "adapter/diffusion_pytorch_model.safetensors",
    "adapter_ema/diffusion_pytorch_model.safetensors",
    "optimizer.safetensors",
    "lora.safetensors",
];

/// A place with a trained network `base`, whose head is no longer zero, and a config that starts from it.
fn place() -> Place {
    let place = Place::videos();
    place.train("base", &["train.steps=2", "train.heldout_every=0", "train.lr=0.05", "train.warmup=0"]);
    let config = fs::read_to_string(place.path("config.toml")).unwrap();
    let (before, rest) = config.split_once("[model]").unwrap();
    let (_, after) = rest.split_once("[train]").unwrap();
    let base = place.checkpoint("base", 2, "transformer");
    let config = format!("{before}[model]\nfrom = \"{}\"\n[train]{after}", base.display());
    fs::write(place.path("config.toml"), config).unwrap();
    place
}

/// The arguments of a run of new adapters.
fn lora<'a>(args: &[&'a str]) -> Vec<&'a str> {
    [&["lora.rank=3", "lora.alpha=5"], args].concat()
}

fn train(place: &Place, out: &str, args: &[&str]) -> Vec<Record> {
    place.train(out, &lora(args))
}

fn same(place: &Place, a: &str, b: &str, step: u64) {
    for part in PARTS {
        let [a, b] = [a, b].map(|run| fs::read(place.checkpoint(run, step, part)).unwrap());
        if part.starts_with("lora") {
            // Its header has the run's name in it.
            let [a, b] = [&a, &b].map(|bytes| SafeTensors::deserialize(bytes).unwrap());
            let [a, b] = [a, b].map(|file| file.iter().map(|(n, v)| (n.to_owned(), v.data().to_vec())).collect());
            let [a, b]: [BTreeMap<String, Vec<u8>>; 2] = [a, b];
            assert!(a == b, "{part} differs");
            continue;
        }
        assert!(a == b, "{part} differs");
    }
}

#[test]
fn adapters_resume_to_the_bit_and_leave_the_base_as_it_was() {
    let place = place();
    let before = snapshot(&place.path("base"));
    let common = ["train.steps=6", "train.checkpoint_every=3", "train.accumulate=2", "lora.dropout=0.1"];
    for (run, args) in [("one", &[][..]), ("two", &["--ranks=2", "parallel.zero=3", "train.dtype=bf16"])] {
        let args = [&common[..], args].concat();
        let straight = train(&place, run, &args);
        let again = format!("{run} again");
        until(&place, run, &again, 3);
        let resumed = train(&place, &again, &[&args[..], &["--resume"]].concat());
        assert_eq!(numbers(&resumed), numbers(&straight), "{run}");
        same(&place, run, &again, 6);
        assert!(straight[5].loss.is_finite() && straight[5].grad_norm > 0.0);
    }
    // Other ranks than before: the same but for rounding.
    until(&place, "one", "other ranks", 3);
    let resumed = train(&place, "other ranks", &[&common[..], &["--resume", "--ranks=3"]].concat());
    assert!(difference(&resumed, &place.metrics("one")) < 1e-5);
    assert!(snapshot(&place.path("base")) == before, "the frozen network changed");
    // Only adapters are saved.
    let saved = Folder::open(&place.checkpoint("one", 6, "adapter")).unwrap();
    assert!(saved.names().all(|name| name.contains(".lora_")), "{:?}", saved.names().collect::<Vec<_>>());
    assert!(!place.checkpoint("one", 6, "transformer").exists());
}

/// All stages of ZeRO and meshes take the same steps, but for rounding; and a run goes on in another.
#[test]
fn adapters_train_the_same_in_every_stage() {
    let place = place();
    let how = |data: usize, ranks: usize, zero: usize| {
        [
            format!("parallel.ranks={ranks}"),
            format!("parallel.data={data}"),
            format!("train.batch={}", 4 / data),
            format!("parallel.zero={zero}"),
        ]
    };
    let run = |out: &str, how: &[String], args: &[&str]| {
        let how: Vec<&str> = how.iter().map(String::as_str).collect();
        train(&place, out, &[&how[..], args].concat())
    };
    let common = ["train.steps=4", "train.checkpoint_every=2", "lora.dropout=0.2", "stash.where=disk"];
    let straight = run("straight", &how(1, 1, 0), &common);
    for (i, (data, ranks, zero)) in [(1, 2, 1), (2, 2, 2), (1, 3, 3), (2, 4, 3)].into_iter().enumerate() {
        let out = format!("run {i}");
        let other = run(&out, &how(data, ranks, zero), &common);
        let apart = difference(&other, &straight);
        assert!(apart < 1e-5, "{data} x {ranks}, stage {zero}: {apart}");
        until(&place, &out, &format!("{out} on"), 2);
        let resumed = run(&format!("{out} on"), &how(1, 1, 0), &[&common[..], &["--resume"]].concat());
        let apart = difference(&resumed, &straight);
        assert!(apart < 1e-5, "{data} x {ranks}, stage {zero}, then one rank: {apart}");
    }
}

/// A checkpoint's files are read back, go on as `lora.from`, and give the samples that the run itself gives.
#[test]
fn exported_adapters_are_those_that_are_sampled() {
    let place = place();
    train(
        &place,
        "run",
        &["train.steps=2", "lora.export=[\"comfy\", \"diffusers\"]", "train.lr=0.05", "train.warmup=0"],
    );
    let open = |name: &str| AdapterFile::open(&place.checkpoint("run", 2, name)).unwrap();
    let (comfy, diffusers) = (open("lora.safetensors"), open("lora_diffusers.safetensors"));
    assert_eq!((comfy.form, diffusers.form), (Form::Comfy, Form::Diffusers));
    assert_eq!(diffusers.adapter.modules[0].scale(), 5.0 / 3.0);
    assert_eq!(comfy.adapter.modules.len(), diffusers.adapter.modules.len());
    assert!(diffusers.adapter.modules.iter().any(|module| module.b.iter().any(|&b| b != 0.0)));

    // From the file, no step: what is saved is what was read.
    let from = format!("lora.from={}", place.checkpoint("run", 2, "lora_diffusers.safetensors").display());
    place.train("next", &[&from, "train.steps=1", "train.lr=0", "train.ema=0"]);
    let next = AdapterFile::open(&place.checkpoint("next", 1, "lora.safetensors")).unwrap();
    for (ours, theirs) in next.adapter.modules.iter().zip(&comfy.adapter.modules) {
        assert_eq!((&ours.name, &ours.a), (&theirs.name, &theirs.a));
        assert!(ours.b.iter().zip(&theirs.b).all(|(a, b)| (a - b).abs() <= 1e-6 * b.abs()));
    }

    let sample = |from: &std::path::Path, out: &str| {
        let out = place.path(out);
        let done = Command::new(env!("CARGO_BIN_EXE_longreel"))
            .args(["sample", from.to_str().unwrap(), "-o", out.to_str().unwrap(), "--count=1", "--ranks=2"])
            .output()
            .unwrap();
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
        fs::read(out).unwrap()
    };
    let [with, again, without] =
        [("run", "a.png"), ("next", "b.png"), ("base", "c.png")].map(|(run, out)| sample(&place.path(run), out));
    assert!(with == again, "the same adapters give other samples");
    assert!(with != without, "the adapters are not in the samples");
}

#[test]
fn what_adapters_cannot_go_on_from_is_refused() {
    let place = place();
    train(&place, "run", &["train.steps=1"]);
    let refused = |out: &str, args: &[&str]| place.error(out, &lora(args));
    let said = refused("run", &["train.steps=2", "--resume", "lora.rank=4"]);
    assert!(said.contains("[lora] has other layers, ranks or scales"), "{said}");
    let said = refused("other", &["lora.targets=[\"to_qq\"]"]);
    assert!(said.contains("\"to_qq\" is no linear layer") && said.contains("blocks.0.attn1.to_q"), "{said}");
    let said = place.error("other", &[&format!("model.from={}", place.path("run").display())]);
    assert!(said.contains("names a run of adapters (LoRA)"), "{said}");
    // Another network in the base's place.
    let weights = place.checkpoint("base", 2, "transformer/diffusion_pytorch_model.safetensors");
    fs::copy(place.checkpoint("base", 2, "ema/diffusion_pytorch_model.safetensors"), &weights).unwrap();
    fs::remove_file(place.checkpoint("base", 2, "state.json")).unwrap();
    let said = refused("run", &["train.steps=2", "--resume"]);
    assert!(said.contains("has other weights than the network that the adapters were trained on"), "{said}");
}

/// The frozen network is known by the hash of its weights, wherever they lie, in the checkpoint and in the LoRA file.
#[test]
fn the_base_is_known_by_its_sha256() {
    let place = place();
    train(&place, "run", &["train.steps=1"]);
    let record = AdapterRecord::of(&Folder::open(&place.checkpoint("run", 1, "adapter")).unwrap()).unwrap();
    let sha256 = record.base.sha256.clone().unwrap();
    let lora = fs::read(place.checkpoint("run", 1, "lora.safetensors")).unwrap();
    let (_, header) = SafeTensors::read_metadata(&lora).unwrap();
    assert_eq!(header.metadata().as_ref().unwrap()["longreel.base_sha256"], sha256);

    let (base, copy) = (place.checkpoint("base", 2, "transformer"), place.path("copy"));
    fs::create_dir(&copy).unwrap();
    for file in ["config.json", "diffusion_pytorch_model.safetensors"] {
        fs::copy(base.join(file), copy.join(file)).unwrap();
    }
    let hash = || base_sha256(Folder::open(&copy).unwrap().tensors(), None).unwrap();
    assert_eq!(hash(), sha256);
    record.check_sha256("copy", &sha256).unwrap();
    let weights = copy.join("diffusion_pytorch_model.safetensors");
    let mut bytes = fs::read(&weights).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(&weights, bytes).unwrap();
    let said = record.check_sha256("copy", &hash()).unwrap_err().to_string();
    assert!(said.contains("copy: has other weights than the network that the adapters were trained on"), "{said}");
    assert!(said.contains(&sha256) && said.contains("lora.from"), "{said}");

    // A checkpoint of before has none, and is read as it was.
    let mut json = record.to_json();
    assert!(json["base"].as_object_mut().unwrap().remove("sha256").is_some());
    let older: AdapterRecord = serde_json::from_value(json.clone()).unwrap();
    assert_eq!((&older.base.sha256, older.to_json()), (&None, json));
    older.check_sha256("copy", &hash()).unwrap();
    assert_eq!(older.base.weights, record.base.weights);
}
