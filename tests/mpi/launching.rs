//! The files of examples/launch and the script of two hosts: what they start trains.

use super::*;
use crate::train::{Place, longreel};
use std::fs;
use std::os::unix::fs::PermissionsExt;

fn repository(file: &str) -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(file)
}

/// A folder of commands of ours, for the PATH.
fn commands(place: &Place, scripts: &[(&str, &str)]) -> String {
    fs::create_dir_all(place.path("bin")).unwrap();
    for (name, text) in scripts {
        fs::write(place.path("bin").join(name), format!("#!/usr/bin/env bash\nset -euo pipefail\n{text}\n")).unwrap();
        fs::set_permissions(place.path("bin").join(name), fs::Permissions::from_mode(0o755)).unwrap();
    }
    format!("{}:{}", place.path("bin").display(), std::env::var("PATH").unwrap())
}

#[test]
fn the_batch_script_of_slurm_trains_resumes_and_goes_back_into_the_queue() {
    let place = Place::videos();
    let config = fs::read_to_string(place.path("config.toml")).unwrap();
    let out = place.path("run").display().to_string();
    fs::write(place.path("config.toml"), config.replace("[run]\n", &format!("[run]\nout = \"{out}\"\n"))).unwrap();
    // srun as it is to this script: its flags, then a command, which is started as tasks that have Slurm's variables.
    let srun = r#"
        args=("$@"); flags=()
        while [[ ${args[0]} == --* ]]; do flags+=("${args[0]}"); args=("${args[@]:1}"); done
        echo "srun ${flags[*]}"
        export SLURM_STEP_NUM_TASKS=$SLURM_NTASKS SLURM_PROCID=0
        exec mpirun -n "$SLURM_NTASKS" "${args[@]}""#;
    let path = commands(&place, &[("srun", srun), ("scontrol", r#"echo "scontrol $*""#)]);
    let submit = |steps: &str| {
        let config = fs::read_to_string(place.path("config.toml")).unwrap();
        fs::write(place.path("config.toml"), config.replace("steps = 4\n", &format!("steps = {steps}\n"))).unwrap();
        let mut command = Command::new("bash");
        command.arg(repository("examples/launch/slurm.sbatch")).arg(place.path("config.toml")).envs(ENVIRONMENT);
        command.env("PATH", &path).env("LONGREEL", longreel().get_program());
        command.envs([
            ("SLURM_JOB_ID", "77"),
            ("SLURM_NTASKS", "2"),
            ("SLURM_PROCID", "0"),
            ("SLURM_CPUS_PER_TASK", "1"),
        ]);
        let output = run(&mut command);
        assert!(output.status.success(), "{}", text(&output.stderr));
        text(&output.stdout)
    };
    assert_eq!(submit("4"), "srun --mpi=pmix --cpus-per-task=1 --kill-on-bad-exit=1\n");
    assert_eq!(place.metrics("run").len(), 4);
    // As if its time had been up after step 4 of 6.
    let config = fs::read_to_string(place.path("config.toml")).unwrap();
    fs::write(place.path("config.toml"), config.replace("steps = 4\n", "steps = 4\nkeep = 1\n")).unwrap();
    assert!(!submit("6").contains("scontrol"), "it has gone on to the end");
    assert_eq!(place.metrics("run").len(), 6, "from where it was");
    fs::rename(place.checkpoint("run", 6, ""), place.path("run/checkpoints/step-00000005")).unwrap();
    let quiet = commands(&place, &[("srun", "true")]);
    assert_eq!(quiet, path);
    assert!(submit("6").contains("scontrol requeue 77"), "it ended before its last step");
}

#[test]
fn the_job_of_kubernetes_starts_as_many_ranks_as_it_has_workers() {
    let yaml = fs::read_to_string(repository("examples/launch/mpijob.yaml")).unwrap();
    let launcher = &yaml[yaml.find("    Launcher:").unwrap()..yaml.find("    Worker:").unwrap()];
    assert!(launcher.contains("command: [\"mpirun\"]"));
    let arguments: Vec<String> = launcher
        .lines()
        .skip_while(|line| line.trim() != "args:")
        .skip(1)
        .map_while(|line| line.trim().strip_prefix("- "))
        .map(|argument| argument.trim_matches('"').to_owned())
        .collect();
    let number = |key: &str| -> usize {
        let value = yaml.lines().find_map(|line| line.trim().strip_prefix(key)?.strip_prefix(": "));
        value.unwrap().parse().unwrap()
    };
    let workers = &yaml[yaml.find("    Worker:").unwrap()..];
    let replicas: usize = workers.lines().nth(1).unwrap().split_once(": ").unwrap().1.parse().unwrap();
    assert_eq!(arguments[..2], ["-n".to_owned(), (replicas * number("slotsPerWorker")).to_string()]);
    // The same command trains here.
    let place = Place::videos();
    let here = |argument: &String| match argument.as_str() {
        "longreel" => longreel().get_program().to_str().unwrap().to_owned(),
        "/runs/config.toml" => place.path("config.toml").display().to_string(),
        other => other.to_owned(),
    };
    let mut command = Command::new("mpirun");
    command.args(arguments.iter().map(here)).envs(ENVIRONMENT);
    let output = run(command.args(["--set", &format!("run.out={}", place.path("run").display())]));
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert!(text(&output.stderr).contains("2 ranks are processes; hosts: 1,"));
    assert_eq!(place.metrics("run").len(), 4);
}

#[test]
fn shell_scripts_are_sound() {
    let check =
        |file: &str| Command::new("shellcheck").arg("-x").arg(repository(file)).current_dir(repository(".")).output();
    let bundle = [
        "scripts/gpu-bundle.sh",
        "scripts/bundle/ffmpeg.sh",
        "scripts/nvcc.sh",
        "scripts/bundle/run.sh",
        "scripts/gpu-rehearsal.sh",
        "kernels/host/driver/build.sh",
    ];
    for file in ["examples/launch/slurm.sbatch", "scripts/two-hosts.sh"].iter().chain(&bundle) {
        let output = check(file).expect("shellcheck, which scripts/setup.sh installs");
        assert!(output.status.success(), "{}", text(&output.stdout));
    }
}

#[test]
fn two_hosts_train_as_one_and_a_cut_between_them_stops_both() {
    let mut command = Command::new(repository("scripts/two-hosts.sh"));
    command.arg(longreel().get_program()).env_remove("RUST_LOG").current_dir(repository("."));
    let output = command.output().unwrap();
    let said = text(&output.stdout) + &text(&output.stderr);
    println!("{said}"); // "skipped: ..." is to be seen where the machine has no namespaces
    assert!(output.status.success(), "{said}");
    assert!(said.contains("two hosts: all is well") || said.contains("two hosts: skipped: "), "{said}");
}
