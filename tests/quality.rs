//! benches/quality.py: its measures against values known by hand, and what it cannot measure is an error that says why.

use crate::train::text;
use std::fs;
use std::path::Path;
use std::process::{Command, Output};

fn python(script: &str, args: &[&str]) -> Output {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join(script);
    Command::new("python3").arg("-B").arg(script).args(args).output().expect("python3 runs")
}

#[test]
fn measures_are_those_known_by_hand() {
    if !Command::new("python3").args(["-c", "import numpy"]).output().expect("python3 runs").status.success() {
        eprintln!("skipped: python3 has no numpy (apt-get install python3-numpy)");
        return;
    }
    let done = python("tests/quality/measures.py", &[]);
    assert!(done.status.success() && text(&done.stdout) == "ok\n", "{}", text(&done.stderr));
}

#[test]
fn a_folder_that_is_no_run_and_a_run_without_classes_are_errors() {
    let folder = tempfile::tempdir().unwrap();
    let run = folder.path().to_str().unwrap();
    let error = |wanted: &str| {
        let done = python("benches/quality.py", &[run]);
        assert_eq!(done.status.code(), Some(1));
        let said = text(&done.stderr);
        assert!(said.starts_with("error: ") && said.contains(run) && said.contains(wanted), "{said}");
        assert_eq!(said.lines().count(), 1, "{said}");
    };
    error("not a run's folder");
    let config = |data: &str| {
        let text = format!("[data]\nframes = 1\nheight = 8\nwidth = 8\npath = \"x\"\n{data}\n[model]\n");
        fs::write(folder.path().join("config.toml"), text).unwrap();
    };
    config("");
    error("no classes");
    config("label = \"folder\"");
    error("no held-out clips");
    fs::write(folder.path().join("config.toml"), "[data\n").unwrap();
    error("config.toml");
}
