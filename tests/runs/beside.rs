//! Commands that read a run's checkpoints while it trains and removes them.

use super::*;
use crate::train::{longreel, succeed, text};
use longreel::state::checkpoint::Checkpoint;
use std::sync::atomic::{AtomicBool, Ordering};

#[test]
fn sampling_and_verifying_beside_a_run_that_prunes_never_miss_a_file() {
    let place = Place::pictures();
    let args = ["train.checkpoint_every=1", "train.keep=1", "train.sample_every=0"];
    let child = place.start("run", &args, 3);
    for i in 0..6 {
        let output = place.path(&format!("{i}.png"));
        succeed(longreel().arg("sample").arg(place.path("run")).args(["--count=1", "--steps=1", "-o"]).arg(output));
        let verified = succeed(longreel().arg("verify").arg(place.path("run")));
        assert!(!text(&verified.stdout).contains("DAMAGED"), "{}", text(&verified.stdout));
    }
    signal(child.id(), "TERM");
    let output = finish(child);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let stderr = text(&output.stderr);
    assert!(!stderr.contains("could not be removed"), "{stderr}");
}

/// The same as fast as it goes: each checkpoint is gone a moment after it came.
#[test]
fn a_reader_gets_a_whole_checkpoint_whatever_is_removed_meanwhile() {
    let (_temp, folder) = run(&[1]);
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            (2..150).for_each(|step| save(&folder, step, 1));
            done.store(true, Ordering::SeqCst);
        });
        let mut read = 0;
        while !done.load(Ordering::SeqCst) {
            let (checkpoint, ema) = Checkpoint::open_with(folder.root(), Checkpoint::ema).unwrap();
            let first = ema.read_f32("a").unwrap()[0];
            assert_eq!(first, 2000.0 + checkpoint.state().step as f32);
            ema.tensors().check_read().unwrap();
            read += 1;
        }
        assert!(read > 10, "{read}");
    });
    // One that was named, and is gone, is told.
    let path = folder.root().join("checkpoints/step-00000149");
    let gone = Checkpoint::open_with(&path, |checkpoint| {
        fs::rename(checkpoint.dir(), folder.root().join("elsewhere")).unwrap();
        checkpoint.ema()
    });
    let message = gone.unwrap_err().to_string();
    assert!(message.contains("step-00000149: was removed while it was opened"), "{message}");
}

#[test]
fn forward_beside_a_run_reads_what_it_has_opened() {
    let (_temp, folder) = run(&[1]);
    let part = folder.root().join("checkpoints/step-00000001/transformer");
    let (_, model) = longreel::state::named::NamedModel::opened(&part).unwrap();
    save(&folder, 2, 1);
    assert!(!part.exists());
    assert_eq!(model.read_f32("b.c").unwrap()[0], 1001.5);
    model.tensors().check_read().unwrap();
}
