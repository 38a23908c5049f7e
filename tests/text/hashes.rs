//! Hashes of encoders are remembered: a file that is as it was is not read again, one that changed is, and a damaged
//! memory is no memory.

use longreel::files::KnownHashes;
use longreel::text::TextEncoder;
use longreel::vae::VaeWeights;
use serde_json::Value;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tempfile::TempDir;

use super::golden;

/// A copy of the golden encoder, and a folder for what is remembered.
fn place() -> (TempDir, PathBuf, PathBuf) {
    let dir = TempDir::new().unwrap();
    let (pipeline, memory) = (dir.path().join("pipeline"), dir.path().join("memory"));
    for part in ["text_encoder/config.json", "text_encoder/model.safetensors", "tokenizer/tokenizer.json"] {
        let to = pipeline.join(part);
        fs::create_dir_all(to.parent().unwrap()).unwrap();
        fs::copy(golden(part), to).unwrap();
    }
    fs::create_dir(&memory).unwrap();
    (dir, pipeline, memory)
}

/// Waits until files that were just written are old enough to be remembered.
fn let_age() {
    std::thread::sleep(Duration::from_millis(4100));
}

/// The hash by what `memory` knows, which learns it.
fn remembered(pipeline: &Path, memory: &Path) -> String {
    let known = KnownHashes::open(memory);
    let hash = TextEncoder::open(pipeline).unwrap().sha256_known(&known).unwrap();
    known.save();
    hash
}

/// Replaces every hash in the memory by another: who believes it has not read the files.
fn plant(memory: &Path) {
    let path = memory.join("models.json");
    let mut json: Value = serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
    let models = json.as_object_mut().unwrap();
    assert_eq!(models.len(), 1);
    models.values_mut().for_each(|known| known["sha256"] = "0".repeat(64).into());
    fs::write(path, json.to_string()).unwrap();
}

#[test]
fn a_file_is_hashed_again_once_it_changed_and_not_before() {
    let (_dir, pipeline, memory) = place();
    let read = || TextEncoder::open(&pipeline).unwrap().sha256().unwrap();
    let whole = read();
    assert_eq!(remembered(&pipeline, &memory), whole);
    let_age();
    assert_eq!(remembered(&pipeline, &memory), whole);
    assert_eq!(remembered(&pipeline, &memory), whole);
    plant(&memory);
    let planted = remembered(&pipeline, &memory);
    assert_ne!(planted, whole, "the weights were read again");

    // Of the same length, written in place.
    let weights = pipeline.join("text_encoder/model.safetensors");
    let mut bytes = fs::read(&weights).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(&weights, &bytes).unwrap();
    let changed = read();
    assert_ne!(changed, whole);
    assert_eq!(remembered(&pipeline, &memory), changed);
    // Another file under the name, with the old one's contents and times.
    let times = fs::metadata(&weights).unwrap().modified().unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    let other = pipeline.join("other");
    fs::write(&other, &bytes).unwrap();
    fs::File::options().write(true).open(&other).unwrap().set_modified(times).unwrap();
    fs::rename(&other, &weights).unwrap();
    assert_eq!(remembered(&pipeline, &memory), whole);
    // The tokenizer is no part of what is remembered: its own text is always read.
    let_age();
    remembered(&pipeline, &memory);
    let tokenizer = pipeline.join("tokenizer/tokenizer.json");
    fs::write(&tokenizer, fs::read_to_string(&tokenizer).unwrap() + "\n").unwrap();
    assert_eq!(remembered(&pipeline, &memory), read());
}

#[test]
fn a_damaged_memory_is_no_memory_and_is_written_anew() {
    let (_dir, pipeline, memory) = place();
    let file = memory.join("models.json");
    let whole = TextEncoder::open(&pipeline).unwrap().sha256().unwrap();
    let_age();
    remembered(&pipeline, &memory);
    let good = fs::read_to_string(&file).unwrap();
    for bad in [good[..good.len() / 2].to_owned(), "[]".to_owned(), String::new(), good.replace("sha256", "sha1")] {
        fs::write(&file, &bad).unwrap();
        assert_eq!(remembered(&pipeline, &memory), whole, "{bad}");
        assert_eq!(fs::read_to_string(&file).unwrap(), good);
    }
    // What is no hash is not believed; bytes that are no text are no memory.
    plant(&memory);
    fs::write(&file, fs::read_to_string(&file).unwrap().replace("00000000", "0000000X")).unwrap();
    assert_eq!(remembered(&pipeline, &memory), whole);
    assert_eq!(fs::read_to_string(&file).unwrap(), good);
    fs::write(&file, [0xff, 0xfe, 0xfd]).unwrap();
    assert_eq!(remembered(&pipeline, &memory), whole);
    // A folder in its place cannot be written over, and does no harm; nor does it that there is no folder.
    fs::remove_file(&file).unwrap();
    fs::create_dir(&file).unwrap();
    assert_eq!(remembered(&pipeline, &memory), whole);
    assert_eq!(remembered(&pipeline, &memory.join("nowhere")), whole);
    assert!(!memory.join("nowhere").exists());
}

#[test]
fn the_hash_of_a_vae_is_remembered_too() {
    let dir = TempDir::new().unwrap();
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/vae/vae21/vae");
    for file in ["config.json", "diffusion_pytorch_model.safetensors"] {
        fs::copy(golden.join(file), dir.path().join(file)).unwrap();
    }
    let memory = TempDir::new().unwrap();
    let hash = || {
        let known = KnownHashes::open(memory.path());
        let hash = VaeWeights::open(dir.path()).unwrap().encoder_hash_known(&known).unwrap();
        known.save();
        hash
    };
    let_age();
    let whole = VaeWeights::open(dir.path()).unwrap().encoder_hash().unwrap();
    assert_eq!([hash(), hash()], [whole.clone(), whole]);
    plant(memory.path());
    assert_eq!(hash(), "0".repeat(64), "the weights were read again");
}
