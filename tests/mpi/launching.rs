//! Tests that what the files of examples/launch and the script of two hosts start trains.

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
fn the_batch_script_for_gpus_gives_each_task_its_rank_and_each_job_a_secret_of_its_own() {
    let place = Place::pictures();
    // Tasks one after the other, each with Slurm's variables; what stands for longreel says what it was given.
    let srun = r#"
        while [[ $1 == --* ]]; do shift; done
        for task in 0 1 2 3; do SLURM_PROCID=$task SLURM_LOCALID=$((task % 2)) "$@"; done"#;
    let said = r#"echo "$RANK $WORLD_SIZE $LOCAL_RANK $MASTER_ADDR $MASTER_PORT $LONGREEL_JOB_SECRET $*""#;
    let nodes = r#"[[ "$*" == "show hostnames a[1-2]" ]]; echo a1; echo a2"#;
    let path = commands(&place, &[("srun", srun), ("scontrol", nodes), ("told", said)]);
    let submit = || -> Vec<Vec<String>> {
        let mut command = Command::new("bash");
        command.arg(repository("examples/launch/torchrun.sbatch")).arg("run config.toml").env("PATH", &path);
        command.env("LONGREEL", "told").env("SLURM_JOB_ID", "1234567").env("SLURM_JOB_NODELIST", "a[1-2]");
        let output = run(command.env("SLURM_NTASKS", "4"));
        assert!(output.status.success(), "{}", text(&output.stderr));
        text(&output.stdout).lines().map(|line| line.split(' ').map(str::to_owned).collect()).collect()
    };
    let [first, second] = [submit(), submit()];
    assert_eq!(first.len(), 4);
    let names = ["RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT", "LONGREEL_JOB_SECRET"];
    for (rank, task) in first.iter().enumerate() {
        let get = |name: &str| names.iter().position(|known| *known == name).map(|i| task[i].clone());
        let job = longreel::parallel::TorchrunEnv::from(get).unwrap();
        assert_eq!((job.rank, job.size, job.local, job.host.as_str(), job.port), (rank, 4, rank % 2, "a1", 24_567));
        assert_eq!(task[6..], ["train", "run", "config.toml"]);
        assert!(task[5].len() == 64 && task[5] == first[0][5], "all of a job have the same");
    }
    assert_ne!(first[0][5], second[0][5], "and those of another job another");
}

#[test]
fn the_job_of_kubernetes_with_gpus_tells_its_pods_their_ranks_and_its_secret() {
    let yaml = fs::read_to_string(repository("examples/launch/indexed-job.yaml")).unwrap();
    let lines: Vec<&str> = yaml.lines().map(|line| line.split(" #").next().unwrap().trim()).collect();
    let after =
        |line: &str| lines[lines.iter().position(|l| *l == line).unwrap_or_else(|| panic!("{line}")) + 1..].to_vec();
    let value =
        |name: &str| after(&format!("- name: {name}"))[0].strip_prefix("value: ").unwrap().trim_matches('"').to_owned();
    let pods = value("WORLD_SIZE");
    assert!(lines.contains(&format!("completions: {pods}").as_str()));
    assert!(lines.contains(&format!("parallelism: {pods}").as_str()));
    let get = |name: &str| match name {
        "RANK" => Some("0".into()),
        "LONGREEL_JOB_SECRET" => Some("0123456789abcdef".into()),
        "WORLD_SIZE" | "LOCAL_RANK" | "MASTER_ADDR" | "MASTER_PORT" => Some(value(name)),
        _ => None,
    };
    let job = longreel::parallel::TorchrunEnv::from(get).unwrap();
    assert_eq!((job.size, job.host.as_str()), (2, "longreel-0.longreel"));
    assert_eq!(after("- name: LONGREEL_JOB_SECRET")[..2], ["valueFrom:", "secretKeyRef:"], "not in this file");
    assert!(after("- name: RANK")[2].ends_with("['batch.kubernetes.io/job-completion-index']"));
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
    assert!(text(&output.stderr).contains("ranks are processes: 2; hosts: 1;"));
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
        "scripts/bundle/pack.sh",
        "scripts/bundle/run.sh",
        "scripts/bundle/start.sh",
        "scripts/bundle/parts.sh",
        "scripts/gpu-rehearsal.sh",
        "kernels/host/driver/build.sh",
    ];
    for file in ["examples/launch/slurm.sbatch", "examples/launch/torchrun.sbatch", "scripts/two-hosts.sh"]
        .iter()
        .chain(&bundle)
    {
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
