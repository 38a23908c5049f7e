//! Tests ranks as processes under mpirun: the collectives give the bits that threads give, so do runs; and whatever
//! happens to one process, all end, soon, with what it was.
//!
//! Ranks of a collective's test are this test binary again, started by mpirun on [`child`], an ignored test that runs
//! what `LONGREEL_TEST_WORK` names.

mod collectives;
mod failures;
mod launching;
mod runs;

use crate::train::{finish, text};
use longreel::parallel::{Launch, Limits};
use longreel::{Error, Result, bail};
use std::path::Path;
use std::process::{Command, Output, Stdio};

/// For Open MPI in a container: as root, with more processes than processors, which it then does not bind them to.
pub const ENVIRONMENT: [(&str, &str); 4] = [
    ("OMPI_ALLOW_RUN_AS_ROOT", "1"),
    ("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1"),
    ("OMPI_MCA_rmaps_base_oversubscribe", "1"),
    ("OMPI_MCA_hwloc_base_binding_policy", "none"),
];

/// `mpirun -n ranks PROGRAM ARGS`, as `command` has them.
pub fn mpirun(ranks: usize, command: &Command) -> Command {
    let mut launcher = Command::new("mpirun");
    launcher.args(["-n", &ranks.to_string()]).envs(ENVIRONMENT).env_remove("RUST_LOG");
    launcher.arg(command.get_program()).args(command.get_args());
    launcher
}

/// Runs a command to its end; one that hangs fails the test.
pub fn run(command: &mut Command) -> Output {
    finish(command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap())
}

/// The one error of a job that failed as it should.
pub fn error_of(output: &Output) -> String {
    let stderr = text(&output.stderr);
    assert!(!output.status.success(), "{stderr}");
    assert!(!stderr.contains("panicked at"), "{stderr}");
    let errors: Vec<&str> = stderr.lines().filter_map(|line| line.strip_prefix("error: ")).collect();
    assert_eq!(errors.len(), 1, "{stderr}");
    errors[0].to_owned()
}

/// Runs `work` on `ranks` processes, which may leave files in `folder`.
fn on_processes(ranks: usize, work: &str, folder: &Path) -> Output {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "mpi::child", "--ignored", "--nocapture"]);
    run(mpirun(ranks, &command).env("LONGREEL_TEST_WORK", work).env("LONGREEL_TEST_FOLDER", folder))
}

#[test]
#[ignore = "run by on_processes"]
fn child() {
    let (Ok(work), Some(folder)) = (std::env::var("LONGREEL_TEST_WORK"), std::env::var_os("LONGREEL_TEST_FOLDER"))
    else {
        return;
    };
    let folder = Path::new(&folder);
    let (name, detail) = work.split_once(' ').unwrap_or((&work, ""));
    let number = |text: &str| text.parse().unwrap_or_else(|e| panic!("{text}: {e}"));
    // Parts of a few bytes, so that every message goes in parts, and every reduction in pieces.
    let message = if name == "collectives" { number(detail) } else { Limits::default().message };
    let outcome = Launch::from_environment(Limits { message, ..Limits::default() }).and_then(|launch| {
        let work = |launch: &Launch| match name {
            "collectives" => collectives::save(launch, folder),
            "waiting" => collectives::waiting(launch),
            "long" => collectives::long(launch),
            "failing" => failures::failing(launch, detail, folder),
            _ => bail!(Config, "no such work: {name}"),
        };
        let report = |outcome: &Result<()>| {
            if let Err(e) = outcome {
                eprintln!("error: {e}");
            }
        };
        launch.run_to_exit(work, report)
    });
    std::process::exit(i32::from(outcome.map_err(|e: Error| e.to_string()).is_err()));
}
