//! Tests what goes wrong with a stash: one clear error, on every later call and from all ranks, and no hang.

use super::engine::{Case, gradients};
use super::*;
use longreel::bail;
use longreel::engine::stash::check_room;

const F32: [DType; 2] = [DType::F32; 2];

#[test]
fn a_folder_that_cannot_be_used_is_named() {
    // Nobody, not even root, can make a file in /proc.
    for folder in ["/no/such/folder", "/proc", "/dev/null"] {
        let settings = disk(Path::new(folder));
        let all = [error(Stash::open(&settings, 0, &Device::Cpu)), error(check_room(&settings, 1, &shapes(1, 1, F32)))];
        for message in all {
            let start = format!("stash.folder: no scratch file can be made in {folder}: ");
            assert!(
                message.starts_with(&start) && message.ends_with("; name a folder that can be written to"),
                "{message}"
            );
        }
    }
}

#[test]
fn lack_of_disk_space_is_an_error_before_anything_is_written() {
    let folder = tempfile::tempdir().unwrap();
    for (rows, width) in [(1 << 24, 1 << 20), (usize::MAX, usize::MAX)] {
        let mut stash = Stash::open(&disk(folder.path()), 3, &Device::Cpu).unwrap();
        let absurd = shapes(rows, width, F32);
        let message = error(stash.begin(10, &absurd));
        let place = folder.path().display().to_string();
        assert!(message.starts_with("rank 3: stash.folder: ") && message.contains(&place), "{message}");
        assert!(
            message.contains(" GiB are needed in ") && message.contains(" are free; name another stash.folder"),
            "{message}"
        );
        for less in ["stash.dtype = \"bf16\"", "stash.keep_attention = false", "a smaller train.batch"] {
            assert!(message.contains(less), "{message}");
        }
        assert_eq!(scratch_files(folder.path())[0].metadata().unwrap().len(), 0);
        assert!(
            message.ends_with(&error(check_room(&disk(folder.path()), 10, &absurd)).split("free; ").nth(1).unwrap())
        );
        // What is set already is not advised.
        let settings = bf16(options!(disk(folder.path()); keep_attention: false));
        let message = error(check_room(&settings, 10, &absurd));
        assert!(message.ends_with("or need less: a smaller train.batch, or smaller clips"), "{message}");
    }
    check_room(&disk(folder.path()), 10, &shapes(10, 10, F32)).unwrap();
    check_room(&ram(), 10, &shapes(usize::MAX, usize::MAX, F32)).unwrap();
}

/// A hook that fails, by error or by panic, at one copy.
fn failing(at: Copy, panics: bool) -> Hook {
    Arc::new(move |copy| {
        if copy == at && panics {
            panic!("a bad copy");
        }
        if copy == at {
            bail!(Environment, "a bad copy")
        }
        Ok(())
    })
}

#[test]
fn a_copy_that_fails_fails_every_later_call() {
    let folder = tempfile::tempdir().unwrap();
    for panics in [false, true] {
        for at in [Copy::Write(0), Copy::Write(2), Copy::Write(5), Copy::Read(5), Copy::Read(2), Copy::Read(0)] {
            let mut stash = Stash::open_with(&disk(folder.path()), 7, failing(at, panics)).unwrap();
            let mut step = || -> Result<()> {
                stash.begin(6, &shapes(4, 8, F32))?;
                for i in 0..6 {
                    stash.put(i, residuals(i as u64, 4, 8, F32))?;
                }
                (0..6).rev().try_for_each(|i| stash.take(i).map(|_| ()))
            };
            let (Copy::Write(i) | Copy::Read(i)) = at;
            let how = if panics { "a copy panicked: " } else { "" };
            let want = format!("rank 7, block {i}: {how}a bad copy");
            assert_eq!(error(step()), want);
            assert_eq!(error(step()), want);
            assert_eq!(error(stash.put(0, residuals(0, 4, 8, F32))), want);
            assert_eq!(error(stash.take(0)), want);
        }
    }
}

#[test]
fn one_ranks_failure_ends_all() {
    let folder = tempfile::tempdir().unwrap();
    for panics in [false, true] {
        for at in [Copy::Write(1), Copy::Read(3), Copy::Read(0)] {
            let hook = |rank| if rank == 1 { failing(at, panics) } else { late() };
            let message = error(gradients(&Case::new(3), &disk(folder.path()), &hook));
            assert!(message.starts_with("rank 1, block ") && message.ends_with("a bad copy"), "{message}");
        }
    }
}

#[test]
fn truncated_scratch_file_is_an_error_on_all_ranks() {
    let folder = tempfile::tempdir().unwrap();
    let place = folder.path().to_owned();
    let hook = |rank| -> Hook {
        let place = place.clone();
        Arc::new(move |copy| {
            if rank == 1 && copy == Copy::Read(2) {
                scratch_files(&place).iter().for_each(|file| file.set_len(0).unwrap());
            }
            Ok(())
        })
    };
    let message = error(gradients(&Case::new(2), &disk(folder.path()), &hook));
    // Whichever rank reads first.
    let want = format!(
        "reading the scratch file in {}: failed to fill whole buffer; something else has cut it short",
        place.display()
    );
    assert!(message.starts_with("rank ") && message.contains(", block ") && message.ends_with(&want), "{message}");
}

#[test]
fn stash_misuse_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    for settings in [ram(), disk(folder.path())] {
        let mut stash = Stash::open(&settings, 0, &Device::Cpu).unwrap();
        stash.begin(2, &shapes(4, 8, F32)).unwrap();
        assert!(error(stash.take(1)).contains("block 1 was not put, or was taken twice"));
        assert!(error(stash.take(9)).contains("block 9"));
        assert!(error(stash.put(2, residuals(0, 4, 8, F32))).contains("block 2 of 2"));
        stash.put(0, residuals(0, 4, 8, F32)).unwrap();
        stash.take(0).unwrap();
        assert!(error(stash.take(0)).contains("block 0 was not put, or was taken twice"));
    }
    // A shape that was not announced would not fit its place.
    let mut stash = Stash::open(&disk(folder.path()), 0, &Device::Cpu).unwrap();
    stash.begin(1, &shapes(4, 8, F32)).unwrap();
    stash.put(0, residuals(0, 4, 9, F32)).unwrap();
    let message = error(stash.take(0));
    assert!(message.contains("block 0: stash: a tensor of [4, 9] F32 was put where [4, 8] F32"), "{message}");
}
