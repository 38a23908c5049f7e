//! Threads and processes that are not to be had, or never come: a clear end.

use crate::train::{Place, fail, longreel, text};
use longreel::parallel::Limits;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::time::Duration;

#[test]
fn the_time_for_joining_is_the_environments() {
    let limits = |value: Option<&str>| {
        Limits::from(|name| (name == "LONGREEL_JOIN_SECONDS").then(|| value.map(str::to_owned))?)
    };
    assert_eq!(limits(None).unwrap(), Limits::default());
    assert_eq!(limits(Some("")).unwrap(), Limits::default());
    let day = Duration::from_secs(86_400);
    assert_eq!(limits(Some(" 86400 ")).unwrap(), Limits { joining: day, starting: day, ..Limits::default() });
    for bad in ["0", "-1", "86401", "1.5", "soon"] {
        let said = refusal!(Config, limits(Some(bad)));
        assert!(said.starts_with(&format!("LONGREEL_JOIN_SECONDS is \"{bad}\": ")), "{said}");
    }
}

#[test]
fn an_absurd_number_of_threads_in_the_environment_is_an_error_and_none_is_not() {
    let place = Place::pictures();
    let scan = |threads: &str| {
        let mut command = longreel();
        command
            .arg("scan")
            .arg(place.path("clips"))
            .args(["--frames", "1", "--height", "16", "--width", "16", "--no-sheet"])
            .env("RAYON_NUM_THREADS", threads);
        command
    };
    for bad in ["1000000000", "many", "-3"] {
        let error = fail(&mut scan(bad));
        assert!(
            error.contains(&format!("RAYON_NUM_THREADS is \"{bad}\": it is a number of threads, 1 to 4096")),
            "{error}"
        );
        let error = fail(place.command("run", &[]).env("RAYON_NUM_THREADS", bad));
        assert!(error.contains("RAYON_NUM_THREADS is "), "{error}");
    }
    for good in ["0", "1", "3"] {
        let output = scan(good).output().unwrap();
        assert!(output.status.success(), "{}", text(&output.stderr));
    }
    assert!(!place.path("run").exists());
}

/// The command under a limit of `prlimit`.
fn limited(limit: &str, command: &Command) -> Command {
    let mut limited = Command::new("prlimit");
    limited.arg(limit).arg(command.get_program()).args(command.get_args());
    limited
}

/// The limit does not count for root, so that it is tried as another user, who must be able to read the program.
#[test]
fn a_limit_on_the_users_threads_is_named_wherever_it_is_reached() {
    let place = Place::videos();
    fs::set_permissions(place.path(""), fs::Permissions::from_mode(0o777)).unwrap();
    let as_user = |command: &mut Command| {
        if rustix::process::geteuid().is_root() {
            command.uid(65_534).gid(65_534);
        }
        command.current_dir("/").status().is_ok_and(|status| status.success())
    };
    let program = longreel().get_program().to_owned();
    if !as_user(Command::new("test").arg("-x").arg(&program)) {
        return println!("skipped: another user cannot read {program:?}");
    }
    // Threads are refused for the pool of all, for ranks, for their pools, and for what decodes and watches.
    for most in [1, 2, 4, 5, 6, 7, 9, 10] {
        let mut command = limited(&format!("--nproc={most}"), &place.command("run", &["--ranks=3"]));
        if rustix::process::geteuid().is_root() {
            command.uid(65_534).gid(65_534);
        }
        let error = fail(command.current_dir("/"));
        assert!(error.contains("cannot start "), "{most}: {error}");
        let limit = format!("the user may have {most} processes and threads (RLIMIT_NPROC, ulimit -u)");
        assert!(error.contains(&limit) && error.contains("use fewer ranks or threads"), "{most}: {error}");
    }
}
