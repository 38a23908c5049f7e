//! Tests `longreel verify`, and going on from a chosen checkpoint.

use super::*;
use crate::train::{fail, longreel, numbers, succeed, text};

#[test]
fn verify_says_a_line_for_each_checkpoint() {
    let place = Place::pictures();
    place.train("run", &["train.steps=3", "train.checkpoint_every=1"]);
    let verify = |path: &Path| text(&succeed(longreel().arg("verify").arg(path)).stdout);
    let report = verify(&place.path("run"));
    let lines: Vec<&str> = report.lines().collect();
    assert_eq!(lines.len(), 3, "{report}");
    for (line, step) in lines.iter().zip(1..) {
        assert!(line.starts_with(&format!("step-0000000{step}  whole: 5 files, ")) && line.ends_with(" KiB"), "{line}");
    }
    assert_eq!(verify(&place.checkpoint("run", 2, "")), format!("{}\n", lines[1]));
    let error = fail(longreel().arg("verify").arg(place.path("clips")));
    assert!(error.contains("clips: holds no checkpoint"), "{error}");
    // Three damages in two checkpoints, all of them told.
    for (step, file) in [(1, "optimizer.safetensors"), (1, "ema/config.json"), (3, "state.json")] {
        fs::write(place.checkpoint("run", step, file), "{}").unwrap();
    }
    let output = finish(spawn(longreel().arg("verify").arg(place.path("run"))));
    let report = text(&output.stdout);
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(report.lines().count(), 6, "{report}");
    assert!(report.contains("step-00000002  whole") && report.matches("  DAMAGED\n").count() == 2, "{report}");
    assert!(text(&output.stderr).contains("2 of 3 checkpoints are damaged"), "{}", text(&output.stderr));
}

#[test]
fn a_damaged_checkpoint_is_not_gone_on_from_nor_sampled() {
    let place = Place::pictures();
    place.train("run", &["train.steps=3", "train.checkpoint_every=1"]);
    let model = "diffusion_pytorch_model.safetensors";
    for (part, sampled) in [
        ("optimizer.safetensors".to_owned(), false),
        (format!("transformer/{model}"), false),
        (format!("ema/{model}"), true),
    ] {
        let [old, new] = [2, 3].map(|step| place.checkpoint("run", step, &part));
        let good = fs::read(&new).unwrap();
        fs::copy(old, &new).unwrap();
        for ranks in ["--ranks=1", "--ranks=2"] {
            let error = place.error("run", &["train.steps=4", "--resume", ranks, "parallel.zero=3"]);
            assert!(error.contains(&format!("step-00000003/{part}: is damaged, or another file")), "{error}");
        }
        assert_eq!(place.metrics("run").len(), 3, "nothing was trained");
        let mut sample = longreel();
        sample
            .arg("sample")
            .arg(place.path("run"))
            .args(["--count=1", "--steps=1", "--force", "-o"])
            .arg(place.path("x.png"));
        if sampled {
            assert!(fail(&mut sample).contains(&part));
        } else {
            succeed(&mut sample); // it reads the average alone
        }
        fs::write(&new, good).unwrap();
    }
    place.train("run", &["train.steps=4", "--resume"]);
}

#[test]
fn a_run_goes_on_from_the_step_that_was_chosen() {
    let place = Place::pictures();
    let args = ["train.checkpoint_every=2", "train.keep=9"];
    let straight = place.train("straight", &[&args[..], &["train.steps=8"]].concat());
    place.train("run", &[&args[..], &["train.steps=6"]].concat());
    let error = place.error("run", &["--resume", "--step=3"]);
    assert!(error.contains("run: no checkpoint of step 3; there are 2, 4, 6"), "{error}");
    let resumed = place.train("run", &[&args[..], &["train.steps=8", "--resume", "--step=2"]].concat());
    assert_eq!(numbers(&resumed), numbers(&straight));
    assert_eq!(place.checkpoints("run"), [2, 4, 6, 8]);
    // Those of the history that was left are kept, and still whole.
    assert_eq!(entries(&place.path("run/earlier-1/checkpoints")), ["step-00000004", "step-00000006"]);
    succeed(longreel().arg("verify").arg(place.path("run/earlier-1")));
}

/// As 0.1.0 wrote them: no checksums, and no line of the state's own.
#[test]
fn a_checkpoint_without_checksums_loads_with_a_line_saying_so() {
    let place = Place::pictures();
    let straight = place.train("straight", &["train.steps=4", "train.checkpoint_every=2"]);
    place.train("run", &["train.steps=2"]);
    place.forget_sums("run", 2);
    let report = text(&succeed(longreel().arg("verify").arg(place.path("run"))).stdout);
    assert_eq!(report, "step-00000002  has no checksums; its files can be opened, nothing more is known\n");
    let output = succeed(&mut place.command("run", &["train.steps=4", "--resume"]));
    let stderr = text(&output.stderr);
    assert_eq!(stderr.matches("step-00000002: has no checksums (it was saved by longreel ").count(), 1, "{stderr}");
    assert_eq!(numbers(&place.metrics("run")), numbers(&straight));
    let report = text(&succeed(longreel().arg("verify").arg(place.path("run"))).stdout);
    assert!(report.ends_with(" KiB\n") && report.contains("step-00000004  whole"), "{report}");
    fs::write(place.checkpoint("run", 2, "optimizer.safetensors"), "short").unwrap();
    fail(longreel().arg("verify").arg(place.path("run")));
}

/// Ranks on machines with file systems of their own, for which other folders stand in.
#[test]
fn ranks_that_read_different_bytes_find_out() {
    use candle_core::DType;
    use longreel::model::{Model, ModelConfig};
    use longreel::parallel::run_threads;
    use longreel::state::weights::TrainState;
    let place = Place::pictures();
    place.train("one", &["train.steps=1"]);
    place.train("other", &["train.steps=1", "train.lr=0.5"]);
    let config = RunConfig::load(&place.path("config.toml"), &[]).unwrap();
    let load = |runs: [&str; 2], zero: usize| {
        run_threads(2, 1, |comm| {
            let folder = RunFolder::new(place.path(runs[comm.rank()]));
            let checkpoint = folder.to_resume(None)?.unwrap();
            let network = ModelConfig::from_json(checkpoint.transformer()?.config())?;
            let model = Model::init(&network, DType::F32, false, 1)?;
            TrainState::new(model, &options!(config.state(); zero), comm)?.load(&checkpoint)
        })
    };
    for zero in 0..4 {
        load(["one", "one"], zero).unwrap();
        // Sharded, each has read its own tensors, and only together they are no file that was saved.
        let error = load(["one", "other"], zero).unwrap_err().to_string();
        let told =
            ["ranks 0 and 1 have read different bytes of tensor ", "is damaged, or another file was put in its place"];
        assert!(told.iter().any(|told| error.contains(told)) && error.contains(".safetensors"), "{zero}: {error}");
    }
}
