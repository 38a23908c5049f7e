//! Tests where ranks come from: what launchers say in the environment, and what a build can do about it.

use crate::train::{Place, fail, longreel, text};
use longreel::parallel::{Launch, LauncherEnv};
use std::process::Command;

fn placed(variables: &[(&str, &str)]) -> Option<(usize, usize, &'static str)> {
    let get = |name: &str| variables.iter().find(|(n, _)| *n == name).map(|(_, value)| value.to_string());
    LauncherEnv::from(get).map(|p| (p.rank, p.size, p.launcher))
}

#[test]
fn launcher_is_recognised_by_its_variables() {
    assert_eq!(placed(&[]), None);
    let ompi = [("OMPI_COMM_WORLD_SIZE", "4"), ("OMPI_COMM_WORLD_RANK", "2"), ("PMIX_RANK", "2")];
    assert_eq!(placed(&ompi), Some((2, 4, "mpirun")));
    assert_eq!(placed(&[("PMI_SIZE", "3"), ("PMI_RANK", "0")]), Some((0, 3, "mpiexec")));
    let slurm = [("SLURM_JOB_ID", "7"), ("SLURM_NTASKS", "8"), ("SLURM_PROCID", "5"), ("SLURM_STEP_NUM_TASKS", "8")];
    assert_eq!(placed(&slurm), Some((5, 8, "srun")));
    // A batch script itself, or a shell of salloc, has an allocation and is no task of a step.
    assert_eq!(placed(&slurm[..3]), None);
    // mpirun within a job: Slurm started its daemons only, one a machine.
    assert_eq!(placed(&[&slurm[..], &ompi].concat()), Some((2, 4, "mpirun")));
    let torchrun = [("RANK", "1"), ("WORLD_SIZE", "8"), ("MASTER_ADDR", "a"), ("MASTER_PORT", "29500")];
    assert_eq!(placed(&torchrun), Some((1, 8, "torchrun")));
    for missing in 0..4 {
        let others: Vec<_> = torchrun.iter().enumerate().filter(|(i, _)| *i != missing).map(|(_, v)| *v).collect();
        assert_eq!(placed(&others), None, "one of the four alone may be anybody's");
    }
    // srun or mpirun has started a torchrun on each machine; or a script has handed the numbers of ranks on in other
    // names.
    for outer in [&slurm[..], &ompi] {
        assert_eq!(placed(&[outer, &torchrun].concat()), Some((1, 8, "torchrun")));
    }
    let same = [("RANK", "5"), ("WORLD_SIZE", "8"), ("MASTER_ADDR", "a"), ("MASTER_PORT", "29500")];
    let told = if cfg!(feature = "nccl") { "torchrun" } else { "srun" };
    assert_eq!(placed(&[&slurm[..], &same].concat()), Some((5, 8, told)));
    // Of one process it is none; nonsense is none too, but to be refused, not trained N times.
    assert_eq!(placed(&[&[("WORLD_SIZE", "1")][..], &torchrun].concat()), None);
    assert_eq!(placed(&[&[("WORLD_SIZE", "many")][..], &torchrun].concat()), Some((1, 0, "torchrun")));
    // Alone after all, or told nonsense.
    assert_eq!(placed(&[("OMPI_COMM_WORLD_SIZE", "1"), ("OMPI_COMM_WORLD_RANK", "0")]), None);
    assert_eq!(placed(&[("PMI_SIZE", "many"), ("PMI_RANK", "0")]), None);
}

#[test]
fn without_a_launcher_ranks_are_threads_as_many_as_asked_for() {
    let launch = Launch::threads();
    assert_eq!(launch.processes(), None);
    assert_eq!((launch.ranks(None, "--ranks").unwrap(), launch.ranks(Some(3), "--ranks").unwrap()), (1, 3));
    assert_eq!(launch.ranks_here(3), 3);
    assert_eq!(launch.rank0_first(|| Ok(7)).unwrap(), 7);
    assert_eq!(launch.run(3, |comm| Ok((comm.rank(), comm.size()))).unwrap(), [(0, 3), (1, 3), (2, 3)]);
    let mut reported = None;
    let outcome = launch.run_to_exit(|_| longreel::bail!(Data, "no"), |outcome| reported = Some(outcome.is_err()));
    assert_eq!((outcome.unwrap_err().to_string(), reported), ("no".to_owned(), Some(true)));
}

/// A process as a launcher starts it, without the launcher.
fn as_rank(mut command: Command, rank: usize) -> Command {
    command.env("OMPI_COMM_WORLD_SIZE", "4").env("OMPI_COMM_WORLD_RANK", rank.to_string());
    command
}

#[test]
fn single_process_command_under_a_launcher_is_an_error() {
    let scan = || {
        let mut command = longreel();
        command.args(["scan", "."]);
        command
    };
    let error = fail(&mut as_rank(scan(), 0));
    assert!(error.contains("mpirun started 4 processes of a command that is the work of one"), "{error}");
    let other = as_rank(scan(), 3).output().unwrap();
    assert_eq!((other.status.code(), text(&other.stderr).as_str()), (Some(1), ""), "one rank speaks for all");
    // So are wrong usage and a wrong log filter.
    for (command, first) in [(&["train"][..], true), (&["train"], false), (&["scan", ".", "--no"], false)] {
        let output = as_rank(longreel(), usize::from(!first)).args(command).output().unwrap();
        assert_eq!((output.status.code(), output.stderr.is_empty()), (Some(2), !first), "{command:?}");
    }
}

#[cfg(not(feature = "mpi"))]
#[test]
fn build_without_mpi_under_mpirun_is_an_error() {
    let place = Place::pictures();
    let error = fail(&mut as_rank(place.command("run", &[]), 0));
    assert!(error.contains("mpirun started 4 processes of a longreel that was built without MPI"), "{error}");
    assert!(error.contains("--features mpi") && error.contains("--ranks 4"), "{error}");
    let other = as_rank(place.command("run", &[]), 2).output().unwrap();
    assert_eq!((other.status.code(), text(&other.stderr).as_str()), (Some(1), ""));
    assert!(!place.path("run").exists());
}

#[cfg(feature = "mpi")]
#[test]
fn a_launcher_of_another_mpi_is_refused() {
    // What the environment says and what MPI sees differ, as under `srun --mpi=none`.
    let place = Place::pictures();
    let as_task = |rank: &str| {
        let mut command = place.command("run", &[]);
        command.env("SLURM_STEP_NUM_TASKS", "2").env("SLURM_PROCID", rank).envs(crate::mpi::ENVIRONMENT);
        command
    };
    let error = fail(&mut as_task("0"));
    assert!(error.contains("srun started 2 processes, but MPI sees 1: use the launcher of the MPI"), "{error}");
    assert_eq!(as_task("1").output().unwrap().status.code(), Some(1));
    assert!(!place.path("run").exists());
}

/// A process as torchrun starts it, on a port where nobody is.
fn as_torchruns(place: &Place, rank: &str, changed: &[(&str, &str)]) -> Command {
    let mut command = place.command("run", &[]);
    command.env("RANK", rank).env("WORLD_SIZE", "2").env("LOCAL_RANK", rank);
    command.env("MASTER_ADDR", "127.0.0.1").env("MASTER_PORT", "9").envs(changed.iter().copied());
    command
}

#[cfg(not(feature = "nccl"))]
#[test]
fn build_without_nccl_under_torchrun_is_an_error() {
    let place = Place::pictures();
    let error = fail(&mut as_torchruns(&place, "0", &[]));
    assert!(error.contains("torchrun started 2 processes of a longreel that was built without NCCL"), "{error}");
    assert!(error.contains("--features nccl") && error.contains("--ranks 2"), "{error}");
    let other = as_torchruns(&place, "1", &[]).output().unwrap();
    assert_eq!((other.status.code(), text(&other.stderr).as_str()), (Some(1), ""), "one rank speaks for all");
    assert!(!place.path("run").exists());
}

#[test]
fn bad_torchrun_variable_is_reported_by_its_own_process() {
    let place = Place::pictures();
    for (rank, name, value, expected) in [
        ("0", "WORLD_SIZE", "two", "WORLD_SIZE is \"two\": it must be a whole number"),
        ("0", "MASTER_PORT", "x", "MASTER_PORT is \"x\""),
        ("0", "RANK", "first", "RANK is \"first\""),
        ("1", "LOCAL_RANK", "", "rank 1 failed: LOCAL_RANK is missing"),
    ] {
        let error = fail(&mut as_torchruns(&place, rank, &[(name, value)]));
        assert!(error.contains(expected), "{error}");
    }
    assert!(!place.path("run").exists());
}
