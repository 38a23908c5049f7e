//! Tests the stash alone: contents and order of copies, what is in flight, rounding, and the scratch file.

use super::*;
use std::os::unix::fs::MetadataExt;
use std::sync::atomic::{AtomicBool, AtomicUsize};

const F32: [DType; 2] = [DType::F32; 2];

/// Puts `blocks` blocks and takes them all; each must come back with its bits, rounded or not.
fn round_trip(stash: &mut Stash, step: u64, blocks: usize, rows: usize, dtypes: [DType; 2], settings: &StashOptions) {
    let what = |i: usize| 1000 * step + i as u64;
    stash.begin(blocks, &shapes(rows, 24, dtypes)).unwrap();
    for i in 0..blocks {
        stash.put(i, residuals(what(i), rows, 24, dtypes)).unwrap();
    }
    for i in (0..blocks).rev() {
        let mut want = residuals(what(i), rows, 24, dtypes);
        want.attention = want.attention.filter(|_| settings.keep_attention);
        let got = stash.take(i).unwrap();
        assert_eq!(got.x.dtype(), dtypes[0]);
        assert!(got.attention.iter().all(|attention| attention.o.dtype() == dtypes[1]));
        sleep(Duration::from_micros(200)); // what is read meanwhile must not land here
        let rounded = settings.dtype == Compute::Bf16;
        assert!(all_bits(&got, false) == all_bits(&want, rounded), "step {step}, block {i} of {blocks}, {settings:?}");
    }
}

#[test]
fn stash_returns_residuals_however_late_copies_are() {
    let folder = tempfile::tempdir().unwrap();
    let all = [ram(), bf16(ram()), disk(folder.path()), bf16(disk(folder.path()))];
    let all = all.into_iter().flat_map(|s| [s.clone(), options!(s; keep_attention: false)]);
    for settings in all {
        let mut stash = Stash::open_with(&settings, 0, late()).unwrap();
        // Shapes and dtypes change from step to step, up and down.
        let mixed = [DType::F32, DType::BF16];
        for (step, (blocks, rows, dtypes)) in
            [(9, 33, F32), (9, 33, F32), (2, 7, mixed), (12, 50, [DType::F64; 2]), (1, 33, F32), (5, 8, mixed)]
                .into_iter()
                .enumerate()
        {
            round_trip(&mut stash, step as u64, blocks, rows, dtypes, &settings);
        }
    }
}

#[test]
fn a_block_larger_than_a_chunk_comes_back() {
    let folder = tempfile::tempdir().unwrap();
    for settings in [bf16(ram()), disk(folder.path()), bf16(disk(folder.path()))] {
        let mut stash = Stash::open(&settings, 0, &Device::Cpu).unwrap();
        round_trip(&mut stash, 0, 3, 100_003, F32, &settings); // 2.4 million values
    }
}

#[test]
fn writes_may_end_out_of_order() {
    let folder = tempfile::tempdir().unwrap();
    let (started, hooked) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let (there, overtaken) = (started.clone(), hooked.clone());
    // Every even block waits until the odd one after it is done with, or nearly.
    let hook: Hook = Arc::new(move |copy| {
        if let Copy::Write(i) = copy {
            there.fetch_max(i, Ordering::SeqCst);
            if i % 2 == 0 && i < 8 {
                wait_until("the next block overtakes", || there.load(Ordering::SeqCst) > i);
                sleep(Duration::from_millis(5));
                overtaken.fetch_add(1, Ordering::SeqCst);
            }
        }
        Ok(())
    });
    let settings = disk(folder.path());
    let mut stash = Stash::open_with(&settings, 0, hook).unwrap();
    round_trip(&mut stash, 0, 9, 20, F32, &settings);
    assert_eq!((started.load(Ordering::SeqCst), hooked.load(Ordering::SeqCst)), (8, 4));
}

#[test]
fn at_most_two_blocks_are_in_flight() {
    let folder = tempfile::tempdir().unwrap();
    let (gate, put) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let open = gate.clone();
    let hook: Hook = Arc::new(move |_| {
        wait_until("the gate opens", || open.load(Ordering::SeqCst));
        Ok(())
    });
    let (count, settings) = (put.clone(), disk(folder.path()));
    let forward = std::thread::spawn(move || {
        let mut stash = Stash::open_with(&settings, 0, hook).unwrap();
        stash.begin(6, &shapes(4, 8, F32)).unwrap();
        for i in 0..6 {
            stash.put(i, residuals(i as u64, 4, 8, F32)).unwrap();
            count.fetch_add(1, Ordering::SeqCst);
        }
        stash.take(5).map(|_| ())
    });
    wait_until("two blocks are put", || put.load(Ordering::SeqCst) == 2);
    sleep(Duration::from_millis(100));
    assert_eq!(put.load(Ordering::SeqCst), 2, "a third block was taken in while two are being written");
    gate.store(true, Ordering::SeqCst);
    forward.join().unwrap().unwrap();
    assert_eq!(put.load(Ordering::SeqCst), 6);
}

#[test]
fn one_block_is_read_ahead_and_no_more() {
    let folder = tempfile::tempdir().unwrap();
    let (seen, hook) = recorder();
    let reads = || -> Vec<usize> {
        let seen = seen.lock();
        seen.iter().filter_map(|copy| if let Copy::Read(i) = copy { Some(*i) } else { None }).collect()
    };
    let mut stash = Stash::open_with(&disk(folder.path()), 0, hook).unwrap();
    stash.begin(5, &shapes(4, 8, F32)).unwrap();
    for i in 0..5 {
        assert!(reads().is_empty());
        stash.put(i, residuals(i as u64, 4, 8, F32)).unwrap();
    }
    for i in (0..5).rev() {
        wait_until("the block is read ahead", || reads().last() == Some(&i));
        sleep(Duration::from_millis(20));
        assert_eq!(reads(), (i..5).rev().collect::<Vec<_>>());
        stash.take(i).unwrap();
    }
}

#[test]
fn steps_use_the_same_file_and_buffers_again() {
    let folder = tempfile::tempdir().unwrap();
    let settings = disk(folder.path());
    let mut stash = Stash::open(&settings, 0, &Device::Cpu).unwrap();
    let mut seen = vec![];
    for step in 0..4 {
        round_trip(&mut stash, step, 6, 40, F32, &settings);
        let files = scratch_files(folder.path());
        assert_eq!(files.len(), 1);
        let data = files[0].metadata().unwrap();
        seen.push((data.ino(), data.len(), data.blocks()));
        assert!(data.blocks() * 512 >= data.len(), "not all of it is allocated");
        // There is no name that a crash could leave behind, or that another run could remove.
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    }
    assert!(seen.iter().all(|s| *s == seen[0]), "{seen:?}");
    let other = Stash::open(&settings, 1, &Device::Cpu).unwrap();
    assert_eq!(scratch_files(folder.path()).len(), 2, "a rank has a file of its own");
    drop((stash, other));
    assert_eq!(scratch_files(folder.path()).len(), 0, "the files are gone");
}

#[test]
fn bf16_and_keep_attention_halve_the_file() {
    let folder = tempfile::tempdir().unwrap();
    let length = |settings: StashOptions| {
        let mut stash = Stash::open(&settings, 0, &Device::Cpu).unwrap();
        stash.begin(4, &shapes(1024, 512, F32)).unwrap();
        scratch_files(folder.path())[0].metadata().unwrap().len()
    };
    let (x, lse) = (4 * 1024 * 512 * 4, 4 * 2 * 1024 * 4);
    let d = disk(folder.path());
    assert_eq!(length(d.clone()), 2 * x + lse);
    assert_eq!(length(bf16(d.clone())), x + lse);
    assert_eq!(length(options!(d.clone(); keep_attention: false)), x);
    assert_eq!(length(bf16(options!(d; keep_attention: false))), x / 2);
}

#[test]
fn aborted_step_does_not_spoil_the_next() {
    let folder = tempfile::tempdir().unwrap();
    for settings in [ram(), bf16(ram()), disk(folder.path())] {
        let mut stash = Stash::open_with(&settings, 0, late()).unwrap();
        for (put, take) in [(3, 0), (9, 0), (9, 4)] {
            stash.begin(9, &shapes(9, 24, F32)).unwrap();
            for i in 0..put {
                stash.put(i, residuals(500 + i as u64, 9, 24, F32)).unwrap();
            }
            for i in (9 - take..9).rev() {
                stash.take(i).unwrap();
            }
            round_trip(&mut stash, 1, 7, 13, F32, &settings);
        }
    }
}
