//! Data that overlaps with what a run writes or holds out: what is trained on, in clips and files.

use super::{Place, longreel, succeed, text};
use std::fs;

/// What the run in `out` says of its data.
fn said(place: &Place, out: &str, args: &[&str]) -> String {
    text(&succeed(&mut place.command(out, args)).stderr)
}

#[test]
fn a_run_below_its_data_never_trains_on_itself() {
    let place = Place::pictures();
    // In a class folder's place, where its name would be a class.
    let args = ["train.steps=3", "train.sample_every=1"];
    let first = said(&place, "clips/run", &args);
    assert!(first.contains("clips: 6 clips of 6 files"), "{first}");
    assert!(
        place.path("clips/run/samples/step-00000003-0.png").is_file() && place.path("clips/run/loss.png").is_file()
    );
    let resumed = said(&place, "clips/run", &["train.steps=4", "--resume"]);
    assert!(resumed.contains("clips: 6 clips of 6 files"), "{resumed}");
    assert!(resumed.contains("clips/run is not used: it is this run's own folder (run.out)"), "{resumed}");
    // Nor on another run.
    let other = said(&place, "elsewhere", &["train.steps=1"]);
    assert!(other.contains("clips: 6 clips of 6 files"), "{other}");
    assert!(other.contains("clips/run is not used: it is the folder of a run"), "{other}");

    let clips = place.path("clips");
    let error = place.error("clips", &[]);
    assert!(error.starts_with(&format!("data.path is {}, where the run in run.out", clips.display())), "{error}");
    let samples = format!("data.heldout={}", place.path("elsewhere").display());
    let error = place.error("elsewhere", &["--resume", "train.steps=2", &samples]);
    assert!(error.starts_with("data.heldout is "), "{error}");
}

#[test]
fn held_out_clips_are_not_trained_on_or_said_to_be() {
    let place = Place::videos();
    let set = |key: &str, name: &str| format!("data.{key}={}", place.path(name).display());
    fs::create_dir(place.path("clips/val")).unwrap();
    fs::rename(place.path("clips/b.mp4"), place.path("clips/val/b.mp4")).unwrap();
    let inside = said(&place, "inside", &[&set("heldout", "clips/val"), "train.steps=1"]);
    assert!(inside.contains("clips: 4 clips of 2 files") && inside.contains("val: 2 clips of 1 file\n"), "{inside}");
    assert!(inside.contains("clips/val is not used: it is held out (data.heldout)"), "{inside}");
    let around = [set("path", "clips/val"), set("heldout", "clips")];
    let around = said(&place, "around", &[&around[0], &around[1], "train.steps=1"]);
    assert!(around.contains("val: 2 clips of 1 file\n") && around.contains("clips: 4 clips of 2 files"), "{around}");
    assert!(around.contains("clips/val is not used: it is trained on (data.path)"), "{around}");

    fs::copy(place.path("clips/a.mp4"), place.path("heldout/e.mp4")).unwrap();
    fs::hard_link(place.path("clips/c.mp4"), place.path("clips/f.mp4")).unwrap();
    let both = said(&place, "both", &["train.steps=1"]);
    let name = |name: &str| place.path(name).display().to_string();
    let line = format!(
        "1 of 2 held-out files are trained on too, so the held-out loss is partly a training loss: {} = {}",
        name("heldout/e.mp4"),
        name("clips/a.mp4")
    );
    assert!(both.contains(&line), "{both}");
    let line = format!(
        "the data holds files more than once, and their clips count as often: {} = {}",
        name("clips/c.mp4"),
        name("clips/f.mp4")
    );
    assert!(both.contains(&line), "{both}");
    let scan = || {
        let mut scan = longreel();
        scan.arg("scan").arg("--config").arg(place.path("config.toml")).arg("--no-sheet");
        scan
    };
    assert!(text(&succeed(&mut scan()).stderr).contains(&line));
    // A scan with the config leaves out what training leaves out.
    let config = fs::read_to_string(place.path("config.toml")).unwrap();
    fs::write(place.path("config.toml"), config.replace(&name("heldout"), &name("clips/val"))).unwrap();
    let report = text(&succeed(&mut scan()).stdout);
    assert!(report.contains("3 files used") && report.contains("val: it is held out (data.heldout)"), "{report}");
}
