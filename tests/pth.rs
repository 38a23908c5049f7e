//! Files that `torch.save` wrote: read as PyTorch reads them, and refused, never more, where they are damaged or claim
//! what they do not hold.
//!
//! `views.pth` is of `golden/text/make.py`; archives are written here by hand.

use longreel::files::{PthTensors, WeightFile};
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use tempfile::TempDir;

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/text").join(name)
}

fn whole(file: &PthTensors, name: &str) -> Vec<f32> {
    let mut values = vec![0.0; file.shapes()[name].iter().product()];
    file.read_f32_at(name, 0, &mut values).unwrap();
    values
}

#[test]
fn views_of_storages_are_read_in_their_order() {
    let file = PthTensors::open(&golden("views.pth")).unwrap();
    let base: Vec<f32> = (0..24u8).map(f32::from).collect();
    for name in ["plain", "half", "double", "bf16"] {
        assert_eq!((file.shapes()[name].as_slice(), whole(&file, name)), (&[4, 6][..], base.clone()), "{name}");
    }
    let turned: Vec<f32> = (0..24).map(|i| base[i % 4 * 6 + i / 4]).collect();
    assert_eq!((file.shapes()["turned"].as_slice(), whole(&file, "turned")), (&[6, 4][..], turned.clone()));
    assert_eq!(whole(&file, "part"), [8.0, 9.0, 10.0, 14.0, 15.0, 16.0]);
    assert_eq!((whole(&file, "parameter"), whole(&file, "scalar")), (base[12..18].to_vec(), vec![0.5]));
    let permuted: Vec<f32> = (0..24).map(|i| base[i / 3 % 2 * 12 + i % 3 * 4 + i / 6]).collect();
    assert_eq!((file.shapes()["permuted"].as_slice(), whole(&file, "permuted")), (&[4, 2, 3][..], permuted));
    assert!(!file.shapes().contains_key("epoch"));
    let mut some = [0.0; 5];
    file.read_f32_at("plain", 7, &mut some).unwrap();
    assert_eq!(some, base[7..12]);
    file.read_f32_at("turned", 7, &mut some).unwrap();
    assert_eq!(some, turned[7..12]);
    assert!(refusal!(Data, file.read_f32_at("plain", 20, &mut some)).contains("[4, 6]"));
    assert!(refusal!(Data, file.read_f32_at("ints", 0, &mut some[..3])).contains("I64"));
    assert!(refusal!(Data, file.read_f32_at("none", 0, &mut some)).contains("no tensor `none`"));
}

// ---- archives by hand ---------------------------------------------------------------------------------------------

/// The bytes of a pickle of one f32 tensor "x" in storage 0: its offset, shape and strides.
fn pickle(offset: u32, shape: &[u32], strides: &[u32]) -> Vec<u8> {
    let text = |text: &str| [&b"X"[..], &(text.len() as u32).to_le_bytes(), text.as_bytes()].concat();
    let int = |x: u32| [&b"J"[..], &x.to_le_bytes()].concat();
    let tuple = |items: &[u32]| [&b"("[..], &items.iter().flat_map(|&x| int(x)).collect::<Vec<u8>>(), b"t"].concat();
    [
        b"\x80\x02}".to_vec(),
        text("x"),
        b"ctorch._utils\n_rebuild_tensor_v2\n((".to_vec(),
        text("storage"),
        b"ctorch\nFloatStorage\n".to_vec(),
        text("0"),
        text("cpu"),
        int(4),
        b"tQ".to_vec(),
        int(offset),
        tuple(shape),
        tuple(strides),
        b"\x89)tRs.".to_vec(),
    ]
    .concat()
}

/// An entry of an archive: its name, its contents, and where its local header lies at the least.
type Entry<'a> = (&'a str, &'a [u8], u64);

/// Writes entries without compression, in zip64's form.
fn archive(path: &Path, entries: &[Entry], method: u16) {
    let file = File::create(path).unwrap();
    let (mut at, mut directory) = (0u64, vec![]);
    for (name, contents, least) in entries {
        at = at.max(*least);
        let common = |out: &mut Vec<u8>, sizes: u32, extra: u16| {
            out.extend([45u16, 0, method, 0, 0].iter().flat_map(|x| x.to_le_bytes()));
            out.extend([0, sizes, sizes].iter().flat_map(|x| x.to_le_bytes()));
            out.extend([name.len() as u16, extra].iter().flat_map(|x| x.to_le_bytes()));
        };
        let mut local = b"PK\x03\x04".to_vec();
        common(&mut local, contents.len() as u32, 0);
        local.extend(name.as_bytes());
        local.extend(*contents);
        file.write_all_at(&local, at).unwrap();
        directory.extend(b"PK\x01\x02\x2d\x00");
        common(&mut directory, u32::MAX, 28);
        directory.extend([0; 10]);
        directory.extend(u32::MAX.to_le_bytes());
        directory.extend(name.as_bytes());
        directory.extend([1u16, 24].iter().flat_map(|x| x.to_le_bytes()));
        directory.extend([contents.len() as u64, contents.len() as u64, at].iter().flat_map(|x| x.to_le_bytes()));
        at += local.len() as u64;
    }
    let (size, count) = (directory.len() as u64, entries.len() as u64);
    directory.extend(b"PK\x06\x06");
    directory.extend(44u64.to_le_bytes());
    directory.extend([45, 0, 45, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    directory.extend([count, count, size, at].iter().flat_map(|x| x.to_le_bytes()));
    directory.extend(b"PK\x06\x07\0\0\0\0");
    directory.extend((at + size).to_le_bytes());
    directory.extend(1u32.to_le_bytes());
    directory.extend(b"PK\x05\x06\0\0\0\0");
    directory.extend([0xff; 12]);
    directory.extend([0, 0]);
    file.write_all_at(&directory, at).unwrap();
}

/// A `.pth` of four elements, 1 to 4, with this pickle.
fn pth(dir: &TempDir, pickle: &[u8]) -> PathBuf {
    let path = dir.path().join("x.pth");
    let storage: Vec<u8> = [1f32, 2.0, 3.0, 4.0].iter().flat_map(|x| x.to_le_bytes()).collect();
    archive(&path, &[("x/data.pkl", pickle, 0), ("x/byteorder", b"little", 0), ("x/data/0", &storage, 0)], 0);
    path
}

/// The 11 GB of a real encoder are beyond what zip counts in 32 bits; holes in a file take no room.
#[test]
fn storages_beyond_four_gigabytes_are_read_where_they_lie() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("large.pth");
    let storage: Vec<u8> = [1f32, 2.0, 3.0, 4.0].iter().flat_map(|x| x.to_le_bytes()).collect();
    let program = pickle(0, &[2, 2], &[1, 2]);
    archive(&path, &[("x/data.pkl", &program, 0), ("x/data/0", &storage, 5 << 30)], 0);
    assert!(fs::metadata(&path).unwrap().len() > 5 << 30);
    let tensors = PthTensors::open(&path).unwrap();
    assert_eq!(whole(&tensors, "x"), [1.0, 3.0, 2.0, 4.0]);
    let mut part = [0.0; 2];
    tensors.read_f32_at("x", 1, &mut part).unwrap();
    assert_eq!(part, [3.0, 2.0]);
}

#[test]
fn claims_beyond_the_file_are_refused_before_anything_is_allocated() {
    let dir = TempDir::new().unwrap();
    assert_eq!(whole(&PthTensors::open(&pth(&dir, &pickle(1, &[3], &[1]))).unwrap(), "x"), [2.0, 3.0, 4.0]);
    let most = i32::MAX as u32;
    for (offset, shape, strides) in [
        (0, &[5][..], &[1][..]),
        (2, &[3], &[1]),
        (most, &[1], &[1]),
        (0, &[2], &[4]),
        (0, &[most, most, most], &[1, 1, 1]),
        (0, &[most, most], &[0, 0]), // repeated elements, as many as are claimed
        (0, &[2, 2], &[most, most]),
        (u32::MAX, &[1], &[1]), // -1
        (0, &[2, 2], &[1]),
    ] {
        let said = refusal!(Data, PthTensors::open(&pth(&dir, &pickle(offset, shape, strides))));
        assert!(said.contains("x.pth: cannot be read as a PyTorch file"), "{offset} {shape:?} {strides:?}: {said}");
    }
    assert!(whole(&PthTensors::open(&pth(&dir, &pickle(0, &[0, most], &[most, 1]))).unwrap(), "x").is_empty());
}

#[test]
fn archives_that_are_no_state_dict_are_refused_with_their_reason() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("x.pth");
    let good = pickle(0, &[4], &[1]);
    let replaced = |from: &str, to: &str| {
        let at = good.windows(from.len()).position(|part| part == from.as_bytes()).unwrap();
        [&good[..at], to.as_bytes(), &good[at + from.len()..]].concat()
    };
    for (program, reason) in [
        (replaced("FloatStorage", "ComplexFloatStorage"), "ComplexFloatStorage"),
        (b"\x80\x02cos\nsystem\nX\x02\0\0\0lsR.".to_vec(), "holds no dict of tensors"), // not run
        (b"\x80\x02}.".to_vec(), "holds no dict of tensors"),
        (b"\x80\x02i".to_vec(), "0x69"),
        (b"X\xff\xff\xff\xffabc".to_vec(), "damaged"), // 4 GB of text
        (b"\x80\x02}(K\x01K\x02u".to_vec(), "damaged"),
        (b"t.".to_vec(), "damaged"),
        (b"\x80\x02\x86.".to_vec(), "damaged"),
        (b"h\x05.".to_vec(), "damaged"),
        // Nested a million deep; and doubled at each of a hundred thousand steps.
        ([&b"]"[..], &vec![0x85; 1_000_000], b"."].concat(), "holds no dict"),
        ([&b"]"[..], &b"q\x01h\x01\x86".repeat(100_000), b"."].concat(), "holds no dict"),
        (vec![b'N'; 5 << 20], "at most 4194304"),
    ] {
        let said = refusal!(Data, PthTensors::open(&pth(&dir, &program)));
        assert!(said.contains(reason), "{reason}: {said}");
    }
    let storage = [0; 16];
    for (entries, method, reason) in [
        (&[("x/data.pkl", &good[..], 0), ("x/data/0", &storage, 0)][..], 8, "compressed"),
        (&[("x/data.pkl", &good, 0)], 0, "data/0, which is not there"),
        (&[("x/data/0", &storage, 0)], 0, "not one archive"),
        (&[("x/data.pkl", &good, 0), ("y/data.pkl", &good, 0)], 0, "not one archive"),
        (&[("x/data.pkl", &good, 0), ("x/data/0", &storage, 0), ("x/byteorder", b"big", 0)], 0, "little-endian"),
    ] {
        archive(&path, entries, method);
        let said = refusal!(Data, PthTensors::open(&path));
        assert!(said.contains(reason), "{reason}: {said}");
    }
    for (bytes, reason) in [
        (&b"GGUF\x03\0\0\0and more"[..], "GGUF"),
        (b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.", "before 1.6"),
        (b"", "too few"),
    ] {
        fs::write(&path, bytes).unwrap();
        let said = refusal!(Data, WeightFile::open(&path));
        assert!(said.contains(reason), "{reason}: {said}");
    }
    assert!(refusal!(Data, WeightFile::open(dir.path())).contains("is not a file"));
}

/// Whatever byte is another: an error, or tensors that can be read.
#[test]
fn no_damaged_byte_is_more_than_an_error() {
    let dir = TempDir::new().unwrap();
    let (path, good) = (dir.path().join("x.pth"), fs::read(golden("views.pth")).unwrap());
    let (mut refused, mut read) = (0, 0);
    for i in 0..good.len() {
        for change in [0x01, 0x80, 0xff] {
            let mut bytes = good.clone();
            bytes[i] ^= change;
            fs::write(&path, &bytes).unwrap();
            let Ok(file) = PthTensors::open(&path) else {
                refused += 1;
                continue;
            };
            for (name, shape) in file.shapes() {
                let count: usize = shape.iter().product();
                assert!(count <= good.len(), "byte {i}: {shape:?}");
                let _ = file.read_f32_at(&name, 0, &mut vec![0.0; count]);
            }
            read += 1;
        }
    }
    assert!(refused > 300 && read > 300, "{refused} refused, {read} read");
    for length in 0..good.len() {
        fs::write(&path, &good[..length]).unwrap();
        assert!(PthTensors::open(&path).is_err(), "cut to {length}");
    }
}
