//! Tests atomic files, safetensors and model folders: what is written comes back, and whatever is wrong is named.

use crate::train::FILES_LIMITED;
use longreel::files::{NewFolder, Tensors, atomic_write, remove_leftovers, write_tensors};
use longreel::model::folder::{Folder, write_folder};
use proptest::prelude::*;
use safetensors::Dtype;
use safetensors::tensor::TensorView;
use serde_json::json;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use tempfile::{TempDir, tempdir};

const WEIGHTS: &str = "diffusion_pytorch_model.safetensors";
const INDEX: &str = "diffusion_pytorch_model.safetensors.index.json";

fn names(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).unwrap();
    let mut names: Vec<_> = entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// A model folder of two tensors.
fn model() -> (TempDir, PathBuf) {
    let temp = tempdir().unwrap();
    let dir = temp.path().join("model");
    let tensors = [("a.weight", vec![2, 3], vec![1., -2., 3.5, 0., 1e-40, f32::MAX]), ("b", vec![1], vec![7.])];
    write_folder(&dir, &json!({"num_layers": 2}), tensors).unwrap();
    (temp, dir)
}

/// Splits the model's tensors into two shards with an index.
fn sharded() -> (TempDir, PathBuf) {
    let (temp, dir) = model();
    std::fs::remove_file(dir.join(WEIGHTS)).unwrap();
    write_tensors(&dir.join("s1.safetensors"), [("a.weight", vec![2, 3], [0f32; 6])]).unwrap();
    write_tensors(&dir.join("s2.safetensors"), [("b", vec![1], [7f32])]).unwrap();
    index(&dir, &[("a.weight", "s1.safetensors"), ("b", "s2.safetensors")]);
    (temp, dir)
}

fn index(dir: &Path, map: &[(&str, &str)]) {
    let map: BTreeMap<_, _> = map.iter().copied().collect();
    std::fs::write(dir.join(INDEX), json!({"metadata": {}, "weight_map": map}).to_string()).unwrap();
}

fn error(dir: &Path) -> String {
    refusal!(Data, Folder::open(dir))
}

#[test]
fn a_model_folder_round_trips() {
    let (_temp, dir) = model();
    assert_eq!(names(&dir), ["config.json", WEIGHTS]);
    let folder = Folder::open(&dir).unwrap();
    assert_eq!(folder.config()["num_layers"], 2);
    assert_eq!(folder.names().collect::<Vec<_>>(), ["a.weight", "b"]);
    assert_eq!(folder.shape("a.weight").unwrap(), [2, 3]);
    assert_eq!(folder.dtype("b").unwrap(), Dtype::F32);
    assert_eq!(folder.read_f32("a.weight").unwrap(), [1., -2., 3.5, 0., 1e-40, f32::MAX]);
    folder.check(&[("b".into(), vec![1]), ("a.weight".into(), vec![2, 3])]).unwrap();
    // As the reference implementation reads it.
    let bytes = std::fs::read(dir.join(WEIGHTS)).unwrap();
    let (header, metadata) = safetensors::SafeTensors::read_metadata(&bytes).unwrap();
    assert_eq!(metadata.metadata().as_ref().unwrap()["format"], "pt");
    assert_eq!(header % 8, 0);
    let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    assert_eq!(tensors.tensor("b").unwrap().data(), 7f32.to_le_bytes());
}

#[test]
fn shards_are_read_through_their_index() {
    let (_temp, dir) = sharded();
    let folder = Folder::open(&dir).unwrap();
    assert_eq!(folder.names().collect::<Vec<_>>(), ["a.weight", "b"]);
    assert_eq!(folder.read_f32("b").unwrap(), [7.]);
    // A variant's index is found where it is the only one.
    std::fs::rename(dir.join(INDEX), dir.join("diffusion_pytorch_model.fp16.safetensors.index.json")).unwrap();
    assert_eq!(Folder::open(&dir).unwrap().read_f32("b").unwrap(), [7.]);
}

#[test]
fn other_float_types_are_widened() {
    let temp = tempdir().unwrap();
    let path = temp.path().join("t.safetensors");
    // More elements than one piece of the conversion, and not a multiple of it.
    let values: Vec<f32> = (0..70_001).map(|i| (i as f32 - 35_000.0) / 64.0).collect();
    let bf16: Vec<u8> = values.iter().flat_map(|&x| half::bf16::from_f32(x).to_le_bytes()).collect();
    let f16: Vec<u8> = values.iter().flat_map(|&x| half::f16::from_f32(x).to_le_bytes()).collect();
    let f64s: Vec<u8> = values.iter().flat_map(|&x| (x as f64 * 1.1).to_le_bytes()).collect();
    let shape = vec![values.len()];
    let view = |dtype, bytes| TensorView::new(dtype, shape.clone(), bytes).unwrap();
    let ints = vec![0u8; 8];
    let int = TensorView::new(Dtype::I64, vec![1], &ints).unwrap();
    let all = [("f16", view(Dtype::F16, &f16)), ("bf16", view(Dtype::BF16, &bf16)), ("f64", view(Dtype::F64, &f64s))];
    safetensors::serialize_to_file(all.into_iter().chain([("i64", int)]), None, &path).unwrap();
    let tensors = Tensors::open(&path).unwrap();
    let same = |name, expected: &dyn Fn(f32) -> f32| {
        let read = tensors.read_f32(name).unwrap();
        assert!(read.iter().zip(&values).all(|(&r, &v)| r == expected(v)) && read.len() == values.len(), "{name}");
    };
    same("bf16", &|x| half::bf16::from_f32(x).to_f32());
    same("f16", &|x| half::f16::from_f32(x).to_f32());
    same("f64", &|x| (x as f64 * 1.1) as f32);
    let message = refusal!(Data, tensors.read_f32("i64"));
    assert!(message.contains("t.safetensors: tensor `i64` is I64; f32, bf16, f16 or f64 is needed"), "{message}");
}

#[test]
fn incomplete_model_folder_error_names_what_is_missing() {
    let (temp, dir) = model();
    assert!(error(&temp.path().join("nowhere")).contains("nowhere: is not a folder"));
    assert!(error(temp.path()).contains("has no config.json, so it is not a model folder"));
    std::fs::rename(&dir, temp.path().join("transformer")).unwrap();
    assert!(error(temp.path()).contains("name the folder `transformer` in it"));
    let dir = temp.path().join("transformer");
    for (text, expected) in
        [("{", "config.json: not JSON: "), ("[1]", "config.json: must be a JSON object"), ("", "not JSON")]
    {
        std::fs::write(dir.join("config.json"), text).unwrap();
        assert!(error(&dir).contains(expected), "{text}");
    }
    std::fs::write(dir.join("config.json"), "{}").unwrap();
    std::fs::rename(dir.join(WEIGHTS), dir.join("diffusion_pytorch_model.bin")).unwrap();
    assert!(error(&dir).contains("diffusion_pytorch_model.bin only; save the model as safetensors"));
    std::fs::remove_file(dir.join("diffusion_pytorch_model.bin")).unwrap();
    assert!(error(&dir).contains("has neither diffusion_pytorch_model.safetensors nor"));
}

#[test]
fn an_index_that_does_not_fit_its_shards_is_refused() {
    let (_temp, dir) = sharded();
    let refused = |map: &[(&str, &str)], expected: &str| {
        index(&dir, map);
        let message = error(&dir);
        assert!(message.contains(INDEX) && message.contains(expected), "{message}");
    };
    refused(&[("b", "s3.safetensors")], "names the shard s3.safetensors, which is not there");
    refused(&[("c", "s2.safetensors")], "says tensor `c` is in s2.safetensors, but it is not");
    refused(&[("b", "../s2.safetensors")], "must be the name of a file beside the index");
    refused(&[("b", "/etc/passwd")], "must be the name of a file beside the index");
    for text in ["{}", "{\"weight_map\": {\"b\": 3}}", "{\"weight_map\": []}", "no json"] {
        std::fs::write(dir.join(INDEX), text).unwrap();
        assert!(error(&dir).contains(INDEX), "{text}");
    }
    index(&dir, &[("a.weight", "s1.safetensors"), ("b", "s2.safetensors")]);
    let shard = dir.join("s2.safetensors");
    let bytes = std::fs::read(&shard).unwrap();
    std::fs::write(&shard, &bytes[..bytes.len() - 1]).unwrap();
    assert!(error(&dir).contains("s2.safetensors: was cut short"));
}

#[test]
fn every_truncation_and_damage_is_an_error_with_the_files_name() {
    let (_temp, dir) = model();
    let path = dir.join(WEIGHTS);
    let good = std::fs::read(&path).unwrap();
    for length in 0..good.len() {
        std::fs::write(&path, &good[..length]).unwrap();
        let message = error(&dir);
        assert!(message.contains(WEIGHTS) && message.contains("cut short"), "{length} bytes: {message}");
    }
    let longer = [&good[..], b"more"].concat();
    let huge = [&u64::MAX.to_le_bytes()[..], &good[8..]].concat();
    let text = b"<!DOCTYPE html><html>not found</html>".to_vec();
    for bytes in [longer, huge, text] {
        std::fs::write(&path, bytes).unwrap();
        let message = error(&dir);
        assert!(message.contains(WEIGHTS) && (message.contains("damaged") || message.contains("not a safetensors")));
    }
    // The header's numbers do not fit each other.
    let header = |entry: &str| {
        let json = format!("{{\"a\":{entry}}}");
        [&(json.len() as u64).to_le_bytes()[..], json.as_bytes(), &[0; 8]].concat()
    };
    for entry in [
        r#"{"dtype":"F32","shape":[3],"data_offsets":[0,8]}"#,
        r#"{"dtype":"F32","shape":[2],"data_offsets":[4,12]}"#,
        r#"{"dtype":"F32","shape":[2],"data_offsets":[8,0]}"#,
        r#"{"dtype":"F99","shape":[2],"data_offsets":[0,8]}"#,
        r#"{"dtype":"F32","shape":[4294967296,4294967296,4294967296],"data_offsets":[0,8]}"#,
        r#"{"dtype":"F32","shape":[1],"data_offsets":[0,4]}"#,
    ] {
        std::fs::write(&path, header(entry)).unwrap();
        let message = error(&dir);
        assert!(message.contains(WEIGHTS) && message.contains("damaged"), "{entry}: {message}");
    }
    std::fs::write(&path, header(r#"{"dtype":"F32","shape":[2],"data_offsets":[0,8]}"#)).unwrap();
    let folder = Folder::open(&dir).unwrap();
    // Windows short while it is open: an error still, where a memory map would end the process.
    std::fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(67).unwrap();
    let message = refusal!(Data, folder.read_f32("a"));
    assert!(message.contains("cut short while it was read (tensor `a`)"), "{message}");
}

#[test]
fn missing_extra_and_misshapen_tensors_are_counted_and_named() {
    let (_temp, dir) = model();
    let folder = Folder::open(&dir).unwrap();
    let mut expected: Vec<_> = (0..6).map(|i| (format!("block.{i}"), vec![1])).collect();
    expected.push(("a.weight".into(), vec![3, 2]));
    let message = refusal!(Shape, folder.check(&expected));
    assert!(
        message.contains(
            "does not fit the model of 7 tensors: 6 missing (`block.0`, `block.1`, `block.2`, `block.3`, ...)"
        )
    );
    assert!(
        message.contains("; 1 not known (`b`); 1 of another shape (`a.weight` is [2, 3], not [3, 2])"),
        "{message}"
    );
    for (name, call) in [
        ("shape", folder.shape("zz").map(|_| ())),
        ("dtype", folder.dtype("zz").map(|_| ())),
        ("read", folder.read_f32("zz").map(|_| ())),
    ] {
        assert!(refusal!(Data, call).contains("has no tensor `zz` among its 2"), "{name}");
    }
}

#[test]
fn nothing_is_overwritten_by_a_new_folder() {
    let (temp, dir) = model();
    let before = std::fs::read(dir.join(WEIGHTS)).unwrap();
    let message = refusal!(Config, write_folder(&dir, &json!({}), [("x", vec![1], [0f32])]));
    assert!(message.contains("exists already"), "{message}");
    assert_eq!(std::fs::read(dir.join(WEIGHTS)).unwrap(), before);
    assert_eq!(names(temp.path()), ["model"], "no temporary folder is left");
    // Values that do not fill their shape, and names given twice.
    for tensors in [vec![("x", vec![2], [0f32])], vec![("x", vec![1], [0f32]), ("x", vec![1], [0f32])]] {
        let message = refusal!(Shape, write_folder(&temp.path().join("new"), &json!({}), tensors));
        assert!(message.contains("tensor `x`"), "{message}");
    }
    assert_eq!(names(temp.path()), ["model"]);
    // An empty folder gives way; so do missing parents.
    std::fs::create_dir(temp.path().join("empty")).unwrap();
    write_folder(&temp.path().join("empty"), &json!({}), [("x", vec![1], [0f32])]).unwrap();
    write_folder(&temp.path().join("a/b/c"), &json!({}), [("x", vec![1], [0f32])]).unwrap();
    Folder::open(&temp.path().join("a/b/c")).unwrap();
}

#[test]
fn a_failed_write_leaves_the_old_file() {
    let temp = tempdir().unwrap();
    let path = temp.path().join("f");
    atomic_write(&path, |out| out.write_all(b"old")).unwrap();
    let message = atomic_write(&path, |out| {
        out.write_all(b"new")?;
        Err(std::io::Error::other("midway"))
    });
    assert!(message.unwrap_err().to_string().ends_with("f: midway"));
    assert_eq!(std::fs::read(&path).unwrap(), b"old");
    assert_eq!(names(temp.path()), ["f"]);
    atomic_write(&path, |out| out.write_all(b"newer")).unwrap();
    assert_eq!(std::fs::read(&path).unwrap(), b"newer");
    // Readable by others as far as the umask allows, unlike temporary files by default.
    use std::os::unix::fs::PermissionsExt;
    std::fs::write(temp.path().join("plain"), b"").unwrap();
    let mode = |name: &str| std::fs::metadata(temp.path().join(name)).unwrap().permissions().mode();
    assert_eq!(mode("f"), mode("plain"));
    for bad in ["missing/f", "f/g"] {
        let message = atomic_write(&temp.path().join(bad), |_| Ok(())).unwrap_err().to_string();
        assert!(message.contains(bad), "{message}");
    }
    assert!(refusal!(Config, atomic_write(Path::new("/"), |_| Ok(()))).contains("not a name"));
}

/// A new file takes the old one's name, not its place: nobody can find half of it, not even a reader that has the old
/// one open.
#[test]
fn reader_of_a_replaced_file_still_reads_all_of_it() {
    let temp = tempdir().unwrap();
    let path = temp.path().join("f");
    atomic_write(&path, |out| out.write_all(b"old")).unwrap();
    let mut open = std::fs::File::open(&path).unwrap();
    atomic_write(&path, |out| out.write_all(b"newer")).unwrap();
    let mut read = vec![];
    std::io::Read::read_to_end(&mut open, &mut read).unwrap();
    assert_eq!(read, b"old");
    assert_eq!(std::fs::read(&path).unwrap(), b"newer");
    assert_eq!(names(temp.path()), ["f"]);
}

#[test]
fn leftovers_of_a_killed_run_are_removed_and_nothing_else() {
    let temp = tempdir().unwrap();
    std::fs::write(temp.path().join("mine"), b"").unwrap();
    std::fs::write(temp.path().join(".hidden"), b"").unwrap();
    let half = NewFolder::begin(&temp.path().join("step-1")).unwrap();
    std::fs::write(half.path().join("part"), b"part").unwrap();
    std::mem::forget(half); // as if the process was killed
    assert_eq!(names(temp.path()).len(), 3);
    remove_leftovers(temp.path()).unwrap();
    assert_eq!(names(temp.path()), [".hidden", "mine"]);
    remove_leftovers(&temp.path().join("nowhere")).unwrap();
}

/// A file-size limit in a child process stands in for a full disk: the system refuses to write on.
#[test]
fn a_full_disk_leaves_the_old_file() {
    let (temp, dir) = model();
    let before = std::fs::read(dir.join(WEIGHTS)).unwrap();
    let child = Command::new("sh")
        .args([
            "-c",
            "trap '' XFSZ; ulimit -f 64; exec \"$0\" --exact files::child_fills_the_disk --ignored --nocapture",
        ])
        .arg(std::env::current_exe().unwrap())
        .env("LONGREEL_TEST_FOLDER", temp.path())
        .env("LONGREEL_TEST_EXPECTED", FILES_LIMITED)
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&child.stdout);
    assert!(child.status.success() && text.contains("both refused"), "{text}");
    assert_eq!(std::fs::read(dir.join(WEIGHTS)).unwrap(), before);
    assert_eq!(names(temp.path()), ["model"], "no half folder is left");
    assert_eq!(names(&dir), ["config.json", WEIGHTS], "no half file is left");
}

#[test]
#[ignore = "run by a_full_disk_leaves_the_old_file"]
fn child_fills_the_disk() {
    let Ok(root) = std::env::var("LONGREEL_TEST_FOLDER") else { return };
    let root = Path::new(&root);
    let expected = std::env::var("LONGREEL_TEST_EXPECTED").unwrap();
    let big = || [("x", vec![1 << 20], vec![1f32; 1 << 20])];
    for refused in
        [write_tensors(&root.join("model").join(WEIGHTS), big()), write_folder(&root.join("new"), &json!({}), big())]
    {
        let message = refused.unwrap_err().to_string();
        assert!(message.contains(&expected), "{message}");
    }
    println!("both refused");
}

/// The same on a disk that really is full, where the system lets us mount a small one.
#[test]
fn a_small_disk_leaves_the_old_file() {
    let (_temp, dir) = model();
    let before = std::fs::read(dir.join(WEIGHTS)).unwrap();
    let script = "mount -t tmpfs -o size=64k tmpfs \"$LONGREEL_TEST_FOLDER\" && echo mounted && \
                  cp -r \"$1\" \"$LONGREEL_TEST_FOLDER/model\" && \
                  \"$0\" --exact files::child_fills_the_disk --ignored --nocapture && \
                  cmp \"$1\"/*.safetensors \"$LONGREEL_TEST_FOLDER\"/model/*.safetensors && ls -A \"$LONGREEL_TEST_FOLDER\"";
    let mounted = tempdir().unwrap();
    let child = Command::new("unshare")
        .args(["-rm", "sh", "-c", script])
        .args([&std::env::current_exe().unwrap(), &dir])
        .env("LONGREEL_TEST_FOLDER", mounted.path())
        .env("LONGREEL_TEST_EXPECTED", "nothing was overwritten: make room and try again")
        .output();
    let Ok(child) = child else { return }; // no `unshare` here
    let text = String::from_utf8_lossy(&child.stdout);
    if text.contains("mounted") {
        assert!(child.status.success() && text.contains("both refused") && text.ends_with("\nmodel\n"), "{text}");
    }
    assert_eq!(std::fs::read(dir.join(WEIGHTS)).unwrap(), before);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn tensors_round_trip(shapes in proptest::collection::btree_map("[a-z.\"\\\\☃0-9]{1,8}", proptest::collection::vec(0..5usize, 0..4), 0..6)) {
        let temp = tempdir().unwrap();
        let path = temp.path().join("t");
        let value = |name: &str, i: usize| f32::from_bits(((name.len() as u32 + 1) * 0x0123_4567) ^ i as u32);
        let tensors: Vec<(&String, Vec<usize>, Vec<f32>)> = shapes.iter()
            .map(|(n, s)| (n, s.clone(), (0..s.iter().product()).map(|i| value(n, i)).collect())).collect();
        write_tensors(&path, tensors.iter().map(|(n, s, d)| (n, s.clone(), d.as_slice()))).unwrap();
        let read = Tensors::open(&path).unwrap();
        prop_assert!(read.names().eq(shapes.keys()));
        for (name, shape, data) in &tensors {
            prop_assert_eq!(read.shape(name).unwrap(), shape.as_slice());
            let bits = |d: &[f32]| d.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
            prop_assert_eq!(bits(&read.read_f32(name).unwrap()), bits(data));
        }
    }

    /// One byte changed anywhere in the header: an error or another reading, never a panic.
    #[test]
    fn damaged_safetensors_never_panic(at in any::<prop::sample::Index>(), byte in any::<u8>()) {
        let (_temp, dir) = model();
        let path = dir.join(WEIGHTS);
        let mut bytes = std::fs::read(&path).unwrap();
        let place = at.index(bytes.len());
        bytes[place] = byte;
        std::fs::write(&path, bytes).unwrap();
        if let Ok(folder) = Folder::open(&dir) {
            for name in folder.names() {
                let _ = folder.read_f32(name);
            }
        }
    }
}
