//! `longreel report`: one file, with everything within.

use super::*;
use crate::train::{fail, succeed, text};
use std::process::Command;
use tempfile::TempDir;

fn report(runs: &[PathBuf], out: &Path) -> Command {
    let mut command = longreel();
    command.arg("report").args(runs).arg("-o").arg(out);
    command
}

#[test]
fn a_report_holds_curves_and_clips_and_loads_nothing() {
    let place = TempDir::new().unwrap();
    let (run, out) = (place.path().join("run"), place.path().join("report.html"));
    make_run(&run, 20, 0.001);
    succeed(&mut report(std::slice::from_ref(&run), &out));
    let html = fs::read_to_string(&out).unwrap();
    assert_eq!(html.matches("data:video/mp4;base64,").count(), 4);
    assert!(html.contains("\"last_step\":20") && html.contains("default-src 'none'; script-src 'sha256-"));
    assert!(!html.contains("src=\"/") && !html.contains("href=\"/"), "it asks a server for something");
    assert!(!html.contains(&*place.path().to_string_lossy()), "it says where the run was");
    let error = fail(&mut report(std::slice::from_ref(&run), &out));
    assert!(error.contains("--force"), "{error}");
    let error = fail(&mut report(&[place.path().join("run/samples")], &place.path().join("other.html")));
    assert!(error.contains("there is no run"), "{error}");
}

#[test]
fn what_a_report_has_no_room_for_is_said() {
    let place = TempDir::new().unwrap();
    let (run, out) = (place.path().join("run"), place.path().join("report.html"));
    make_run(&run, 20, 0.001);
    let large = fs::File::create(run.join("samples/step-00000015-0.mp4")).unwrap();
    large.set_len(longreel::observe::MOST_MEDIA + 1).unwrap();
    let done = succeed(&mut report(&[run], &out));
    assert!(text(&done.stderr).contains("1 clip or picture left out"), "{}", text(&done.stderr));
    let html = fs::read_to_string(&out).unwrap();
    assert!(html.contains("\"left_out\":1") && html.matches("data:video/mp4;base64,").count() == 4);
}
