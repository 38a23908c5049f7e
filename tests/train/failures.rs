//! Runs that break on the way: one clear error from all ranks together, and the last good checkpoint as it was.

use super::{Place, error_of, fail, finish, longreel, snapshot};
use longreel::files::write_tensors;
use longreel::model::folder::Folder;
use longreel::model::{Model, ModelConfig};
use std::fs;
use std::process::Command;

#[test]
fn numbers_that_are_not_finite_stop_the_run() {
    let place = Place::videos();
    for (run, ranks) in [("one", "--ranks=1"), ("two", "--ranks=2")] {
        place.train(run, &["train.steps=2", ranks]);
        let before = snapshot(&place.path(run).join("checkpoints"));
        // Step 3 throws the weights far out; step 4 sees it.
        let args = ["train.steps=9", "train.lr=1e30", "train.checkpoint_every=0", "--resume", ranks];
        let error = place.error(run, &args);
        assert!(error.starts_with("step 4: the "), "{error}");
        assert!(error.contains("; the run stops here, the last good checkpoint is untouched"), "{error}");
        assert!(snapshot(&place.path(run).join("checkpoints")) == before);
        assert_eq!(place.metrics(run).len(), 3, "no record of the bad step");
        assert_eq!(place.train(run, &["train.steps=4", "--resume", ranks]).len(), 4, "with a sane rate it goes on");
    }
}

#[test]
fn weights_that_are_not_finite_are_never_saved() {
    let place = Place::videos();
    place.train("run", &["train.steps=1"]);
    let before = snapshot(&place.path("run/checkpoints"));
    // Beyond f32 at once: the update itself makes infinities, and a checkpoint is due before the next step could see
    // them.
    let args = ["train.steps=9", "train.lr=1e60", "train.checkpoint_every=1", "train.heldout_every=0", "--resume"];
    let error = place.error("run", &[&args[..], &["train.keep=1"]].concat());
    assert!(error.starts_with("step 2: ") && error.contains("patch_embedding.weight"), "{error}");
    assert!(snapshot(&place.path("run/checkpoints")) == before);
}

#[test]
fn the_first_bad_tensor_is_named() {
    let place = Place::videos();
    place.train("run", &["train.steps=1"]);
    let folder = Folder::open(&place.checkpoint("run", 1, "transformer")).unwrap();
    let shapes = Model::shapes(&ModelConfig::from_json(folder.config()).unwrap());
    fs::create_dir(place.path("bad")).unwrap();
    fs::write(place.path("bad/config.json"), folder.config().to_string()).unwrap();
    let tensors = shapes.into_iter().map(|(name, shape)| {
        let mut values = folder.read_f32(&name).unwrap();
        // The last bias spoils the loss, and through it every gradient.
        if name == "proj_out.bias" {
            values[5] = f32::NAN;
        }
        (name, shape, values)
    });
    write_tensors(&place.path("bad/diffusion_pytorch_model.safetensors"), tensors).unwrap();
    let config = fs::read_to_string(place.path("config.toml")).unwrap();
    let (start, end) = (config.find("[model]").unwrap(), config.find("[train]").unwrap());
    fs::write(place.path("config.toml"), format!("{}[model]\n{}", &config[..start], &config[end..])).unwrap();
    let from = format!("model.from={}", place.path("bad").display());
    let error = place.error("new", &[&from, "--ranks=2"]);
    assert!(error.starts_with("step 1: the gradient of patch_embedding.weight is NaN"), "{error}");
    assert!(!place.path("new/checkpoints").exists());
}

#[test]
fn a_clip_that_breaks_while_training_is_named() {
    let place = Place::videos();
    let child = place.start("run", &["parallel.ranks=2", "train.heldout_every=0"], 2);
    let file = place.path("clips/b.mp4");
    let whole = fs::read(&file).unwrap();
    fs::write(&file, &whole[..whole.len() / 3]).unwrap();
    let error = error_of(&finish(child));
    assert!(error.contains("b.mp4, clip ") && error.contains("it was fine when the dataset was opened"), "{error}");
}

/// What an error says where `ulimit -f 64` stands in for a full disk.
pub const FILES_LIMITED: &str =
    "nothing was overwritten: this process may write files of 32768 bytes at most: raise the limit (`ulimit -f`)";

#[test]
fn a_full_disk_leaves_the_last_checkpoint() {
    let place = Place::videos();
    place.train("run", &["train.steps=2"]);
    let before = snapshot(&place.path("run/checkpoints"));
    // A limit on file sizes stands in for the disk: enough for the metrics, too little for a model.
    let command = place.command("run", &["train.steps=4", "--ranks=2", "--resume"]);
    let mut limited = Command::new("sh");
    limited.args(["-c", "trap '' XFSZ; ulimit -f 64; exec \"$@\"", "sh"]);
    let error = fail(limited.arg(command.get_program()).args(command.get_args()));
    assert!(error.contains(FILES_LIMITED), "{error}");
    assert!(error.contains("checkpoints/") && error.contains(".safetensors"), "{error}");
    assert!(snapshot(&place.path("run/checkpoints")) == before);
    assert_eq!(place.checkpoints("run"), [2], "something half-written is left");
    let steps = place.train("run", &["train.steps=4", "--resume"]);
    assert_eq!(steps.len(), 4);
}

#[test]
fn a_full_disk_while_a_picture_is_written_leaves_the_old_one() {
    let place = Place::pictures();
    place.train("run", &["train.steps=1"]);
    fs::write(place.path("mine.png"), "mine").unwrap();
    let before = snapshot(&place.path(""));
    // A picture of a megabyte where files may have 32 KiB; lines arrive from two ranks.
    let mut limited = Command::new("sh");
    limited.args(["-c", "trap '' XFSZ; ulimit -f 64; exec \"$@\"", "sh"]).arg(longreel().get_program());
    limited.arg("sample").arg(place.path("run")).args(["--count=1", "--steps=1", "--height=512", "--width=768"]);
    limited.args(["--ranks=2", "--force", "-o"]).arg(place.path("mine.png"));
    let error = fail(&mut limited);
    assert!(error.contains("mine.png: ") && error.contains(FILES_LIMITED), "{error}");
    assert!(snapshot(&place.path("")) == before, "something has changed, or a temporary file is left");
}
