//! Training from code: own clips, a hook after each step, what comes back.

use super::snapshot;
use longreel::config::{Label, RunConfig};
use longreel::data::{Augment, Clips, Dataset, FrameRegion};
use longreel::observe::metrics;
use longreel::train::{Start, Trainer};
use std::ops::{ControlFlow, Range};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

const CONFIG: &str = r#"
[data]
path = "drawn"
label = "folder"
frames = 4
height = 16
width = 24
[model]
patch_size = [2, 8, 8]
num_attention_heads = 2
attention_head_dim = 8
num_layers = 1
ffn_dim = 32
freq_dim = 16
num_classes = 2
[train]
steps = 6
batch = 3
lr = 0.01
[parallel]
ranks = 2
"#;

/// Clips of two brightnesses that drift to the right; `left` frames may be asked for before it fails.
struct Drawn {
    left: AtomicUsize,
}

impl Drawn {
    fn clips(left: usize) -> Arc<dyn Clips> {
        Arc::new(Self { left: AtomicUsize::new(left) })
    }
}

impl Clips for Drawn {
    fn count(&self) -> usize {
        5
    }

    fn frames(&self, clip: usize, frames: Range<usize>) -> Result<Vec<u8>, String> {
        self.left
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(frames.len()))
            .map_err(|_| "the camera is off".to_owned())?;
        let pixel = |t: usize, i: usize| (40 * clip + 3 * (i % 24) + 5 * t + i / (24 * 16)) as u8;
        Ok(frames.flat_map(|t| (0..16 * 24).flat_map(move |i| [pixel(t, i), pixel(t, i) / 2, 7])).collect())
    }

    fn classes(&self) -> Vec<String> {
        vec!["even".to_owned(), "odd".to_owned()]
    }

    fn class(&self, clip: usize) -> Option<usize> {
        Some(clip % 2)
    }

    fn caption(&self, clip: usize) -> Option<String> {
        (clip > 0).then(|| format!("clip {clip}"))
    }

    fn rate(&self) -> Option<f64> {
        Some(12.0)
    }
}

fn config(out: &Path, sets: &[&str]) -> RunConfig {
    let sets: Vec<String> = sets.iter().map(|&set| set.to_owned()).collect();
    let mut config = RunConfig::parse(CONFIG, Path::new("library.toml"), &sets).unwrap();
    config.run.out = out.to_owned();
    config
}

#[test]
fn a_hook_sees_each_step_and_stops_the_run_after_the_one_it_says() {
    let folder = tempfile::tempdir().unwrap();
    let (whole, parts) = (folder.path().join("whole"), folder.path().join("parts"));
    let done = Trainer::new(config(&whole, &[])).clips(Drawn::clips(usize::MAX)).run().unwrap();
    assert_eq!((done.step, done.finished, done.checkpoint.is_dir()), (6, true, true));

    let mut seen = vec![];
    let stopped = Trainer::new(config(&parts, &[]))
        .clips(Drawn::clips(usize::MAX))
        .on_step(|record| {
            seen.push((record.step, record.loss));
            if record.step == 2 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        })
        .run()
        .unwrap();
    assert_eq!((stopped.step, stopped.finished), (2, false));
    assert!(stopped.checkpoint.ends_with("checkpoints/step-00000002") && stopped.checkpoint.is_dir());

    let resumed = Trainer::new(config(&parts, &[]))
        .clips(Drawn::clips(usize::MAX))
        .start(Start::Last)
        .on_step(|record| {
            seen.push((record.step, record.loss));
            ControlFlow::Continue(())
        })
        .run()
        .unwrap();
    assert_eq!((resumed.step, resumed.finished), (6, true));
    let recorded: Vec<(u64, f64)> =
        metrics::read(&whole.join("metrics.jsonl")).unwrap().iter().map(|r| (r.step, r.loss)).collect();
    // serde_json reads a number to within a step of its last bit.
    let same = |(ours, read): (&(u64, f64), &(u64, f64))| ours.0 == read.0 && (ours.1 - read.1).abs() < 1e-15 * read.1;
    assert!(seen.len() == 6 && seen.iter().zip(&recorded).all(same), "{seen:?}, {recorded:?}");
    let weights = |folder: &Path| snapshot(&folder.join("transformer")).into_values().collect::<Vec<_>>();
    assert!(weights(&resumed.checkpoint) == weights(&done.checkpoint), "the weights differ");

    let again = Trainer::new(config(&parts, &[])).clips(Drawn::clips(usize::MAX)).start(Start::Last).run().unwrap();
    assert_eq!(again, resumed, "nothing is left to do");
}

#[test]
fn own_clips_come_whole_in_parts_and_mirrored() {
    let mut config = config(Path::new("none"), &[]).data.clips();
    config.flip = true;
    let clips = Drawn::clips(usize::MAX);
    (config.stride, config.fps) = (6, Some(3.0)); // of files; own clips have frames of their own
    let dataset = Dataset::of_clips(&config, &clips).unwrap();
    assert_eq!((dataset.len(), dataset.classes().len(), dataset.rate()), (5, 2, Some(12.0)));
    let clip = dataset.clip(3);
    assert_eq!((clip.class, clip.rate, clip.caption.as_deref()), (Some(1), Some(12.0), Some("clip 3")));
    assert_eq!(dataset.clip(0).caption, None);
    let whole = dataset.frames(&clip, &Augment::PLAIN, 0..4).unwrap();
    assert_eq!(whole.data, clips.frames(3, 0..4).unwrap());
    let part = dataset.region(&clip, &Augment::PLAIN, &FrameRegion { frames: 1..3, lines: 8..16 }).unwrap();
    for (i, n) in [1, 2].into_iter().enumerate() {
        assert_eq!(part.frame(i), &whole.frame(n)[8 * 24 * 3..]);
    }
    let mirrored = dataset.frames(&clip, &Augment { flip: true, ..Augment::PLAIN }, 0..4).unwrap();
    let (first, last) = (&whole.data[..3], &mirrored.data[23 * 3..24 * 3]);
    assert_eq!(first, last);
    assert_ne!(whole.data, mirrored.data);
}

#[test]
fn clips_that_fail_or_do_not_fit_are_errors_that_name_them() {
    let folder = tempfile::tempdir().unwrap();
    let failing = Trainer::new(config(folder.path(), &["train.steps=50"])).clips(Drawn::clips(17)).run();
    let message = failing.unwrap_err().to_string();
    assert!(message.contains("the camera is off") && message.contains("clip "), "{message}");
    assert!(!message.contains("scan --decode"), "{message}");

    struct Wrong;
    impl Clips for Wrong {
        fn count(&self) -> usize {
            1
        }
        fn frames(&self, _: usize, frames: Range<usize>) -> Result<Vec<u8>, String> {
            Ok(vec![0; frames.len()])
        }
        fn class(&self, _: usize) -> Option<usize> {
            Some(2)
        }
    }
    let wrong: Arc<dyn Clips> = Arc::new(Wrong);
    let data = config(folder.path(), &[]).data.clips();
    let message = Dataset::of_clips(&data, &wrong).unwrap_err().to_string();
    assert!(message.contains("clip 0 is of class 2"), "{message}");

    struct Short;
    impl Clips for Short {
        fn count(&self) -> usize {
            1
        }
        fn frames(&self, _: usize, frames: Range<usize>) -> Result<Vec<u8>, String> {
            Ok(vec![0; frames.len()])
        }
    }
    let short: Arc<dyn Clips> = Arc::new(Short);
    let message = Dataset::of_clips(&data, &short).unwrap_err().to_string();
    assert!(message.contains("clip 0 has no class"), "{message}");
    let data = options!(data; label: Label::None);
    let dataset = Dataset::of_clips(&data, &short).unwrap();
    let message = dataset.frames(&dataset.clip(0), &Augment::PLAIN, 0..2).unwrap_err().to_string();
    assert!(message.contains("clip 0: it gave 2 bytes for 2 frames") && message.contains("2304"), "{message}");
}
