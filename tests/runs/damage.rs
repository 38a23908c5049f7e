//! Checkpoints that are not what was saved: every such one is an error that names the file.

use super::*;
use longreel::Result;
use longreel::state::checkpoint::Checkpoint;
use longreel::state::named::NamedModel;
use longreel::state::optimizer::OptimizerKind;

const MODEL: &str = "diffusion_pytorch_model.safetensors";

/// Reads all of a checkpoint as a resumed run does.
fn load(run: &RunFolder, step: Option<u64>) -> Result<u64> {
    let checkpoint = run.to_resume(step)?.expect("a checkpoint");
    for folder in [checkpoint.transformer()?, checkpoint.ema()?] {
        folder.check(&parameters())?;
        folder.read_f32("a")?; // the others are read by the check
        folder.tensors().check_read()?;
    }
    let optimizer = checkpoint.optimizer(OptimizerKind::AdamW, &parameters())?;
    ["m.a", "m.b.c", "v.a", "v.b.c"].iter().try_for_each(|name| optimizer.read_f32(name).map(drop))?;
    optimizer.check_read()?;
    Ok(checkpoint.state().step)
}

fn dir(run: &RunFolder, step: u64) -> std::path::PathBuf {
    run.root().join(format!("checkpoints/step-{step:08}"))
}

/// All files of a checkpoint but state.json.
fn files() -> Vec<String> {
    let models = ["transformer", "ema"].map(|part| [format!("{part}/config.json"), format!("{part}/{MODEL}")]);
    models.into_iter().flatten().chain(["optimizer.safetensors".to_owned()]).collect()
}

/// The error of loading step 2 must name `file`, and `verify` must say the same.
fn found(run: &RunFolder, file: &str, what: &str) {
    let error = load(run, None).expect_err(what).to_string();
    assert!(error.contains(&format!("step-00000002/{file}: ")), "{what} {file}: {error}");
    let verified = crate::train::finish(spawn(crate::train::longreel().arg("verify").arg(run.root())));
    let report = crate::train::text(&verified.stdout);
    assert!(verified.status.code() == Some(1) && report.contains("step-00000002  DAMAGED\n"), "{report}");
    assert!(
        report.contains(&format!("step-00000002/{file}: ")) && report.contains("step-00000001  whole: 5 files"),
        "{report}"
    );
    assert_eq!(load(run, Some(1)).unwrap(), 1, "an older one is there to go on from");
}

#[test]
fn every_file_swapped_shortened_lengthened_edited_or_missing_is_named() {
    for file in files() {
        let (_temp, run) = run(&[1, 2]);
        assert_eq!(load(&run, None).unwrap(), 2);
        let path = dir(&run, 2).join(&file);
        let good = fs::read(&path).unwrap();
        let mut flipped = good.clone();
        *flipped.last_mut().unwrap() ^= 1;
        let mut cases = vec![
            ("one bit", flipped),
            ("shorter", good[..good.len() - 1].to_vec()),
            ("longer", [&good[..], b" "].concat()),
            ("empty", vec![]),
        ];
        if file.ends_with("safetensors") {
            // The same tensors of another step: whole in itself, and of the right size.
            cases.push(("older", fs::read(dir(&run, 1).join(&file)).unwrap()));
        }
        for (what, bytes) in cases {
            fs::write(&path, bytes).unwrap();
            found(&run, &file, what);
        }
        fs::remove_file(&path).unwrap();
        found(&run, &file, "missing");
        fs::write(&path, good).unwrap();
        assert_eq!(load(&run, None).unwrap(), 2, "{file} is as it was again");
    }
}

#[test]
fn weights_in_the_place_of_the_average_are_found() {
    let (_temp, run) = run(&[1, 2]);
    let path = |part: &str| dir(&run, 2).join(part).join(MODEL);
    fs::copy(path("transformer"), path("ema")).unwrap();
    found(&run, &format!("ema/{MODEL}"), "the weights");
}

#[test]
fn every_byte_of_the_state_counts() {
    let (_temp, run) = run(&[1, 2]);
    let path = dir(&run, 2).join("state.json");
    let good = fs::read(&path).unwrap();
    for at in 0..good.len() {
        let mut bytes = good.clone();
        bytes[at] = if bytes[at] == b'7' { b'8' } else { b'7' };
        fs::write(&path, bytes).unwrap();
        let error = load(&run, None).unwrap_err().to_string();
        assert!(error.contains("step-00000002/state.json: "), "byte {at}: {error}");
    }
    // Edited with care: a key more, the checksum's line gone, files no more listed.
    let text = String::from_utf8(good.clone()).unwrap();
    let line = text.lines().find(|line| line.starts_with("  \"crc32c\"")).unwrap();
    for edited in [
        text.replace("  \"step\"", "  \"mine\": 1,\n  \"step\""),
        text.replace("\"position\": 6", "\"position\": 9"),
        text.replace(&format!(",\n{line}"), ""),
        text.clone() + "\n",
    ] {
        assert_ne!(edited, text);
        fs::write(&path, edited).unwrap();
        found(&run, "state.json", "edited");
    }
    // Of another step, whole in itself.
    fs::copy(dir(&run, 1).join("state.json"), &path).unwrap();
    let error = load(&run, None).unwrap_err().to_string();
    assert!(error.contains("step-00000002/state.json: is of step 1: the folder was renamed"), "{error}");
    fs::write(&path, good).unwrap();
    assert_eq!(load(&run, None).unwrap(), 2);
}

#[test]
fn what_was_put_in_later_is_found() {
    let (_temp, run) = run(&[1, 2]);
    for file in
        ["transformer/diffusion_pytorch_model.safetensors.index.json", "ema/model.bin", "notes.txt", "vae/config.json"]
    {
        let path = dir(&run, 2).join(file);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, "{}").unwrap();
        found(&run, file, "more");
        fs::remove_file(path).unwrap();
    }
    fs::remove_dir(dir(&run, 2).join("vae")).unwrap();
    fs::write(dir(&run, 2).join(".DS_Store"), "").unwrap(); // what desktops and network file systems leave is not meant
    assert_eq!(load(&run, None).unwrap(), 2);
    // An average where none was saved.
    let saving = run.begin(3).unwrap();
    parts(&saving, 3);
    fs::remove_dir_all(dir(&run, 2)).unwrap();
    saving.finish(&State::new(config().to_toml().unwrap(), config().run.seed, 3, 0), 9).unwrap();
    fs::create_dir(dir(&run, 3).join("more")).unwrap(); // an empty folder holds nothing that is read
    assert_eq!(load(&run, None).unwrap(), 3);
}

#[test]
fn a_checkpoint_without_its_state_is_an_error_with_the_way_out() {
    let (_temp, run) = run(&[1, 2]);
    fs::remove_file(dir(&run, 2).join("state.json")).unwrap();
    for error in [load(&run, None).unwrap_err(), Checkpoint::open(run.root()).unwrap_err()] {
        let error = error.to_string();
        assert!(error.contains("step-00000002: has no state.json"), "{error}");
        assert!(
            error.contains("remove that folder, or choose an older one, ") && error.contains("--resume --step 1"),
            "{error}"
        );
    }
    let error = load(&run, Some(2)).unwrap_err().to_string();
    assert!(error.contains("no checkpoint of step 2; there are 1"), "{error}");
    assert_eq!(load(&run, Some(1)).unwrap(), 1);
    // Saving goes on, and never removes what it does not know.
    save(&run, 3, 1);
    assert_eq!(entries(&run.root().join("checkpoints")), ["step-00000002", "step-00000003"]);
    fs::remove_dir_all(dir(&run, 2)).unwrap();
    assert_eq!(load(&run, None).unwrap(), 3);
}

#[test]
fn checkpoints_of_two_runs_in_one_folder_are_found() {
    let (_temp, run) = run(&[1]);
    save_of("two", &run, 2, 9).unwrap();
    let error = load(&run, None).unwrap_err().to_string();
    assert!(
        error.contains("step-00000002 is of the run two, but ") && error.contains("step-00000001 of the run one"),
        "{error}"
    );
    fs::remove_dir_all(dir(&run, 1)).unwrap();
    assert_eq!(load(&run, None).unwrap(), 2);
}

#[test]
fn a_part_named_alone_is_checked_as_the_checkpoints() {
    let (_temp, run) = run(&[1, 2]);
    let part = dir(&run, 2).join("ema");
    NamedModel::opened(&part).unwrap().1.tensors().check_read().unwrap();
    fs::copy(dir(&run, 1).join("ema").join(MODEL), part.join(MODEL)).unwrap();
    let error = NamedModel::opened(&part).unwrap().1.tensors().check_read().unwrap_err().to_string();
    assert!(error.contains("is damaged, or another file was put in its place"), "{error}");
}

#[test]
fn tensors_read_in_any_order_or_by_several_make_one_checksum() {
    let (_temp, run) = run(&[1]);
    let open = || run.to_resume(None).unwrap().unwrap().optimizer(OptimizerKind::AdamW, &parameters()).unwrap();
    let (one, two) = (open(), open());
    ["v.b.c", "m.a"].iter().for_each(|name| drop(one.read_f32(name).unwrap()));
    ["m.b.c", "v.a", "m.a"].iter().for_each(|name| drop(two.read_f32(name).unwrap()));
    let (a, b) = (one.sums(), two.sums());
    assert!(a.len() == 5 && a.contains(&None) && b.contains(&None));
    let both: Vec<_> = a.iter().zip(&b).map(|(a, b)| a.or(*b)).collect();
    assert!(both.iter().all(Option::is_some));
    one.check_sums(&both).unwrap();
    let mut wrong = both;
    wrong[3] = wrong[3].map(|sum| sum ^ 1);
    assert!(one.check_sums(&wrong).is_err());
    assert!(one.summed(0).starts_with("the header of ") && one.summed(1).starts_with("tensor `m.a` of "));
}
