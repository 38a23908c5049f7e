//! How `run.sh` ends: by itself within its time, by signals; and the report of whatever there is by then.

use super::{Machine, each};
use crate::train::text;
use rustix::process::{Pid, Signal, kill_process};
use std::fs::{self, DirEntry};
use std::os::unix::process::ExitStatusExt;
use std::thread::sleep;
use std::time::{Duration, Instant};

/// Waits until the stand-in for longreel has been called so.
fn wait_for(machine: &Machine, call: &str) {
    let start = Instant::now();
    while !fs::read_to_string(machine.path("stand-in/calls")).is_ok_and(|calls| calls.contains(call)) {
        assert!(start.elapsed() < Duration::from_secs(60), "nobody called {call}");
        sleep(Duration::from_millis(20));
    }
}

/// Processes that a machine's `run.sh` has started, their numbers and command lines: their environment names its
/// folders.
fn processes(machine: &Machine) -> Vec<(String, String)> {
    let words = machine.path("stand-in").into_os_string().into_string().unwrap();
    let read = |entry: &fs::DirEntry, name| fs::read_to_string(entry.path().join(name)).unwrap_or_default();
    let found = fs::read_dir("/proc").unwrap().map(|entry| entry.unwrap());
    let found = found.filter(|entry| read(entry, "environ").contains(&words));
    let told = |entry| (DirEntry::file_name(&entry).into_string().unwrap(), read(&entry, "cmdline").replace('\0', " "));
    found.map(told).collect()
}

/// Nothing is left of a `run.sh` that ended, but for a moment a `sleep` of a second.
fn nothing_is_left(machine: &Machine) {
    let start = Instant::now();
    while start.elapsed() < Duration::from_secs(2) && !processes(machine).is_empty() {
        sleep(Duration::from_millis(50));
    }
    assert_eq!(processes(machine), []);
}

#[test]
fn a_signal_in_the_middle_leaves_a_report_and_no_process() {
    let machine = Machine::new().wrong("hang-step");
    for (signal, name, code) in
        [(Signal::TERM, "SIGTERM", 143), (Signal::INT, "SIGINT", 130), (Signal::HUP, "SIGHUP", 129)]
    {
        let _ = fs::remove_file(machine.path("stand-in/calls"));
        let child = machine.run_sh(&["attention", "step"]).spawn().unwrap();
        wait_for(&machine, "bench step");
        let start = Instant::now();
        assert!(!processes(&machine).is_empty());
        kill_process(Pid::from_child(&child), signal).unwrap();
        let done = child.wait_with_output().unwrap();
        assert!(start.elapsed() < Duration::from_secs(20), "{:?}", start.elapsed());
        assert_eq!(done.status.code(), Some(code), "{}", text(&done.stderr));
        let report = machine.report();
        assert_eq!(report["attention"].as_array().unwrap().len(), 4);
        let ended = format!("step: ended by {name}, at a step of 8192 tokens");
        assert!(machine.failures().contains(&ended), "{:?}", machine.failures());
        assert!(text(&done.stderr).contains(&ended), "{}", text(&done.stderr));
        assert!(text(&done.stdout).contains("## Constants of this GPU"), "{}", text(&done.stdout));
        nothing_is_left(&machine);
    }
}

#[test]
fn what_was_measured_before_a_sudden_end_is_in_the_report() {
    let machine = Machine::new().wrong("hang-attention"); // at the second shape
    let mut child = machine.run_sh(&["attention"]).spawn().unwrap();
    wait_for(&machine, "--head-dim 128");
    kill_process(Pid::from_child(&child), Signal::KILL).unwrap();
    assert_eq!(child.wait().unwrap().signal(), Some(9));
    assert_eq!(each(&machine.report(), "attention", "head_dim"), [64]);
    assert!(machine.read("out/report.md").contains("| 512 tokens, 12 x 64 | longreel |"));
    for (number, _) in processes(&machine) {
        let _ = kill_process(Pid::from_raw(number.parse().unwrap()).unwrap(), Signal::KILL); // it may have ended by now
    }
    for name in machine.read("stand-in/env").lines().filter_map(|line| line.strip_prefix("TMPDIR=")) {
        fs::remove_dir_all(name).unwrap(); // nobody was left to do it
    }
}

#[test]
fn what_overruns_is_ended_and_what_has_no_time_does_not_begin() {
    let machine = Machine::new().wrong("hang-tests").wrong("hang-demo");
    let start = Instant::now();
    let done = machine.run_sh(&["checks", "attention"]).env("BUDGET", "15").env("TESTS", "hangs").output().unwrap();
    assert!(start.elapsed() < Duration::from_secs(30), "{:?}", start.elapsed());
    assert_eq!(done.status.code(), Some(1), "{}", text(&done.stderr));
    let report = machine.report();
    assert_eq!(each(&report, "checks", "state"), ["out of time"]);
    assert_eq!(report["demo"]["state"], "out of time");
    assert_eq!(machine.failures().last().unwrap(), "attention: no time was left");
    nothing_is_left(&machine);
}

#[test]
fn a_command_that_nothing_ends_does_not_keep_the_report() {
    let machine = Machine::new().wrong("hang-step");
    let child = machine.run_sh(&["step"]).env("BUDGET", "20").spawn().unwrap();
    wait_for(&machine, "bench step");
    let stop = |(number, _): &(String, String)| {
        kill_process(Pid::from_raw(number.parse().unwrap()).unwrap(), Signal::STOP).unwrap()
    };
    processes(&machine).iter().filter(|(_, command)| command.starts_with("timeout ")).for_each(stop);
    let done = child.wait_with_output().unwrap();
    assert_eq!(done.status.code(), Some(124), "{}", text(&done.stderr));
    let expected = "step: ended by its budget of 20 s, at a step of 8192 tokens";
    assert!(machine.failures().contains(&expected.to_owned()), "{:?}", machine.failures());
    nothing_is_left(&machine);
}

#[test]
fn a_length_that_would_not_end_in_time_does_not_begin() {
    let machine = Machine::new().wrong("slow-step"); // each step "takes" 9 s
    let done = machine.run_sh(&["step"]).env("BUDGET", "120").env("STEP_FRAMES", "8 16 32").output().unwrap();
    assert_eq!(done.status.code(), Some(0), "{}", text(&done.stderr));
    let steps: Vec<_> =
        machine.read("stand-in/calls").lines().filter(|call| call.contains("bench step")).map(str::to_owned).collect();
    assert!(steps[0].contains("--steps 2 --warmup 1") && steps[1].contains("--steps 1 --warmup 0"), "{steps:?}");
    assert_eq!(each(&machine.report(), "step", "tokens"), [8192, 16384, 32768]);

    let machine = Machine::new().wrong("slow-step");
    machine.run_sh(&["step"]).env("BUDGET", "120").env("STEP_FRAMES", "8 64").output().unwrap();
    let [failure] = &machine.failures()[..] else { panic!("{:?}", machine.failures()) };
    assert!(failure.starts_with("a step of 65536 tokens: not begun: it would take about 577 s, and 1"), "{failure}");
    assert_eq!(each(&machine.report(), "step", "tokens"), [8192]);
}

#[test]
fn a_length_that_does_not_fit_ends_the_part_with_its_reason() {
    let machine = Machine::new().wrong("large-step");
    let done = machine.run(&["step"]);
    assert_eq!(done.status.code(), Some(1), "{}", text(&done.stderr));
    let expected = "a step of 131072 tokens: FAILED: error: the GPU has no room: CUDA_ERROR_OUT_OF_MEMORY";
    assert_eq!(machine.failures(), [expected]);
    assert_eq!(each(&machine.report(), "step", "tokens"), [8192, 32768]);
}

#[test]
fn results_of_several_folders_and_lines_that_were_cut_off() {
    let machine = Machine::new();
    let folders = ["first", "second"].map(|name| machine.path(name));
    for folder in &folders {
        fs::create_dir(folder).unwrap();
    }
    let [first, second] = &folders;
    let step = |seconds: f64| format!("{{\"what\": \"step\", \"tokens\": 8192, \"step_s\": {seconds}}}\n");
    fs::write(
        first.join("results.jsonl"),
        step(1.0) + "{\"what\": \"check\", \"name\": \"a\", \"state\": \"passed\"}\n",
    )
    .unwrap();
    fs::write(second.join("results.jsonl"), step(2.0) + "{\"what\": \"demo\", \"sta").unwrap();
    let done = machine.run(&["report", first.to_str().unwrap(), second.to_str().unwrap()]);
    assert!(done.status.success(), "{}", text(&done.stderr));
    let report = machine.report();
    assert_eq!(each(&report, "step", "step_s"), [2.0], "of what was measured twice, the last counts");
    assert_eq!(each(&report, "checks", "name"), ["a"]);
    assert_eq!((&report["lines_cut_off"], report["demo"].is_null()), (&1.into(), true));
    assert!(!machine.path("stand-in/calls").exists(), "a report needs no longreel");
    let done = machine.run(&["report", "/nowhere"]);
    assert_eq!(done.status.code(), Some(2));
    assert_eq!(text(&done.stderr), "run.sh: report: there is no folder /nowhere\n");
}
