//! Training with a stash, through the command: the same run, and refusals before anything is written.

use super::*;
use crate::train::{Place, finish, numbers, signal, snapshot};
use std::process::Command;

#[test]
fn a_run_is_the_same_with_any_exact_stash() {
    let place = Place::videos();
    fs::create_dir(place.path("scratch")).unwrap();
    let folder = format!("stash.folder={}", place.path("scratch").display());
    for ranks in ["--ranks=1", "--ranks=2"] {
        let want = place.train(&format!("ram{ranks}"), &[ranks]);
        let file = place.train(&format!("disk{ranks}"), &[ranks, "stash.where=disk", &folder]);
        let again = place.train(&format!("again{ranks}"), &[ranks, "stash.keep_attention=false"]);
        let rounded =
            place.train(&format!("rounded{ranks}"), &[ranks, "stash.dtype=bf16", "stash.where=disk", &folder]);
        assert_eq!(numbers(&file), numbers(&want));
        assert_eq!(numbers(&again), numbers(&want));
        assert_ne!(numbers(&rounded), numbers(&want));
    }
    assert_eq!(fs::read_dir(place.path("scratch")).unwrap().count(), 0);
}

#[test]
fn the_default_folder_is_the_systems() {
    let place = Place::videos();
    let mut command = place.command("run", &["stash.where=disk"]);
    let error = crate::train::fail(command.env("TMPDIR", "/no/such/folder"));
    assert!(error.starts_with("stash.folder: no scratch file can be made in /no/such/folder: No such file"), "{error}");
}

#[test]
fn a_run_without_room_is_refused_before_it_starts() {
    let place = Place::videos();
    let before = snapshot(&place.path(""));
    let folder = format!("stash.folder={}", place.path("").display());
    // 20 tokens of width 24 a clip, twice, and 3 heads' statistic: 4080 bytes a block, here in 4096 blocks of 2^20
    // clips.
    let args = ["--ranks=2", "stash.where=disk", "train.batch=1048576", "model.num_layers=4096", &folder];
    let error = place.error("refused", &args);
    assert!(error.starts_with("stash.folder: 16320.00 GiB are needed in ") && error.contains(" are free; "), "{error}");
    let error = place.error("refused", &["--ranks=2", "stash.where=disk", "stash.folder=/proc"]);
    assert!(error.starts_with("stash.folder: no scratch file can be made in /proc: "), "{error}");
    assert!(snapshot(&place.path("")) == before && !place.path("refused").exists());
}

#[test]
fn a_file_that_cannot_be_reserved_stops_the_run() {
    let place = Place::videos();
    let folder = format!("stash.folder={}", place.path("").display());
    let command = place.command("run", &["--ranks=2", "stash.where=disk", &folder]);
    // The kernel then refuses files of more than 8 KiB, as a full disk or a quota would.
    let mut limited = Command::new("sh");
    limited
        .args(["-c", "trap '' XFSZ; ulimit -f 16; exec \"$0\" \"$@\""])
        .arg(command.get_program())
        .args(command.get_args());
    let error = crate::train::fail(limited.env_remove("RUST_LOG"));
    assert!(error.starts_with("rank ") && error.contains("for the scratch file in "), "{error}");
    assert!(
        error.contains("reserving ") && error.contains("File too large") && error.contains("stash.keep_attention"),
        "{error}"
    );
}

#[test]
fn a_killed_run_leaves_nothing_and_harms_no_other() {
    let place = Place::videos();
    fs::create_dir(place.path("scratch")).unwrap();
    let folder = format!("stash.folder={}", place.path("scratch").display());
    let args = ["stash.where=disk", &folder, "parallel.ranks=2", "train.heldout_every=0"];
    let (killed, lives) = (place.start("killed", &args, 2), place.start("lives", &args, 2));
    signal(killed.id(), "KILL");
    finish(killed);
    assert_eq!(fs::read_dir(place.path("scratch")).unwrap().count(), 0);
    // The next start in the same folder, with the other run alive.
    place.train("next", &[args[0], args[1], args[2]]);
    let steps = place.metrics("lives").len();
    wait_until("the other run goes on", || place.metrics("lives").len() > steps + 2);
    signal(lives.id(), "INT");
    assert!(finish(lives).status.success());
}
