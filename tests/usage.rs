//! The command line as such: exit codes, errors printed once, logging, and Ctrl-C. What commands do is tested
//! elsewhere.

use longreel::cli;
use std::io::{BufRead, BufReader};
use std::process::{Command, Output, Stdio};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

fn longreel(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_longreel")).args(args).env_remove("RUST_LOG").output().unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

#[test]
fn wrong_usage_is_code_2() {
    for args in [
        &[][..],
        &["fly"],
        &["train"],
        &["train", "a.toml", "--ranks", "0"],
        &["train", "a.toml", "--ranks", "two"],
        &["train", "a.toml", "--set"],
        &["sample", "run"],
        &["sample", "run", "-o", "x.mp4", "--sampler", "ddim"],
        &["sample", "run", "-o", "x.mp4", "--count", "-1"],
        &["forward", "model"],
        &["forward", "model", "in", "-o", "out", "--dtype", "f64"],
    ] {
        let output = longreel(args);
        assert_eq!(output.status.code(), Some(2), "{args:?}");
        assert!(output.stdout.is_empty() && stderr(&output).contains("--help"), "{args:?}");
    }
}

#[test]
fn help_and_version_go_to_stdout() {
    let version = longreel(&["--version"]);
    assert!(version.status.success());
    assert_eq!(String::from_utf8_lossy(&version.stdout).trim(), format!("longreel {}", env!("CARGO_PKG_VERSION")));
    for command in ["train", "sample", "encode", "decode", "forward", "scan", "bench"] {
        let help = longreel(&[command, "--help"]);
        assert!(
            help.status.success() && String::from_utf8_lossy(&help.stdout).contains("Usage: longreel "),
            "{command}"
        );
    }
}

#[cfg(not(feature = "cuda"))]
#[test]
fn a_gpu_is_refused_by_the_commands_of_a_build_without_cuda() {
    for args in [
        &["forward", "model", "inputs", "-o", "out"][..],
        &["sample", "run", "-o", "sample.png"],
        &["bench", "attention", "--tokens", "8"],
        &["bench", "step", "--layers", "1"],
    ] {
        let output = longreel(&[args, &["--device", "cuda"]].concat());
        let wanted = "error: --device is \"cuda\", but this longreel was built without CUDA: build it with";
        assert!(
            output.status.code() == Some(1) && stderr(&output).starts_with(wanted),
            "{args:?}: {}",
            stderr(&output)
        );
    }
}

#[test]
fn errors_are_printed_once_with_code_1() {
    let output = longreel(&["train", "no/such.toml"]);
    assert_eq!(output.status.code(), Some(1));
    let whole = std::env::current_dir().unwrap().join("no/such.toml");
    let expected =
        format!("error: no/such.toml: No such file or directory (os error 2); that is {}\n", whole.display());
    assert_eq!(stderr(&output), expected);
    assert!(output.stdout.is_empty());
    let temp = tempfile::tempdir().unwrap();
    let path = temp.path().join("run.toml");
    std::fs::write(&path, "[data]\npaht = 'x'\n").unwrap();
    let output = longreel(&["train", path.to_str().unwrap(), "--set", "data.frames=3"]);
    assert_eq!(output.status.code(), Some(1));
    let expected = format!("error: {}:2: unknown key `paht` in [data]; the nearest known is `path`\n", path.display());
    assert_eq!(stderr(&output), format!("{expected}  2 | paht = 'x'\n"));
    // --ranks is a key like any other, checked with the rest.
    std::fs::write(&path, "[data]\npath='x'\nframes=1\nheight=8\nwidth=8\n[model]\nfrom='m'\n[parallel]\ndata=2\n")
        .unwrap();
    let output = longreel(&["train", path.to_str().unwrap(), "--ranks", "3"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("parallel.data = 2: must divide parallel.ranks = 3"), "{}", stderr(&output));
}

#[test]
fn a_malformed_log_filter_is_named() {
    let mut command = Command::new(env!("CARGO_BIN_EXE_longreel"));
    let output = command.args(["train", "x.toml"]).env("RUST_LOG", "longreel=loud").output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(stderr(&output).starts_with("error: RUST_LOG=longreel=loud: "), "{}", stderr(&output));
}

#[test]
fn a_reader_that_is_gone_is_no_panic() {
    for args in [&["--help"][..], &["sample", "--help"]] {
        let mut child = Command::new(env!("CARGO_BIN_EXE_longreel"))
            .args(args)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        drop(child.stdout.take());
        let output = child.wait_with_output().unwrap();
        assert!(!stderr(&output).contains("panicked"), "{}", stderr(&output));
        assert!(output.status.code().is_some());
    }
    // Commands print through `cli::print`, which reports it for `main` to be quiet about.
    let mut child = test_binary("usage::child_prints").stdout(Stdio::piped()).spawn().unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    assert!(lines.map_while(Result::ok).any(|line| line.contains("numbers:"))); // and drops the reader
    let output = child.wait_with_output().unwrap();
    assert!(stderr(&output).contains("pipe closed"), "{}", stderr(&output));
}

fn test_binary(test: &str) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", test, "--ignored", "--nocapture"]).env("LONGREEL_TEST_CHILD", "1").stderr(Stdio::piped());
    command
}

#[test]
#[ignore = "run by a_reader_that_is_gone_is_no_panic"]
fn child_prints() {
    if std::env::var("LONGREEL_TEST_CHILD").is_err() {
        return;
    }
    cli::print("numbers:").unwrap();
    let broken = (0..1_000_000).map(cli::print).find_map(std::result::Result::err);
    let longreel::Error::Io { source, .. } = broken.expect("the pipe is closed") else { panic!("not an I/O error") };
    assert_eq!(source.kind(), std::io::ErrorKind::BrokenPipe);
    eprintln!("pipe closed");
    std::process::exit(0); // the test harness itself would trip over stdout
}

#[test]
fn ctrl_c_asks_once_and_ends_the_second_time() {
    for (signal, twice) in [("INT", false), ("TERM", false), ("INT", true)] {
        let mut child = test_binary("usage::child_waits_for_ctrl_c")
            .env("LONGREEL_TEST_IGNORE", if twice { "1" } else { "0" })
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut wait_for =
            |text: &str| assert!(lines.any(|l| l.unwrap().contains(text)), "the child ended before `{text}`");
        let kill = || {
            let killed = Command::new("sh").args(["-c", &format!("kill -{signal} {}", child.id())]).status().unwrap();
            assert!(killed.success());
        };
        wait_for("waiting");
        kill();
        wait_for("asked to stop");
        if twice {
            kill();
        }
        let output = child.wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(if twice { 130 } else { 0 }));
        assert_eq!(stderr(&output).matches("stopping after this step").count(), 1);
    }
}

#[test]
#[ignore = "run by ctrl_c_asks_once_and_ends_the_second_time"]
fn child_waits_for_ctrl_c() {
    if std::env::var("LONGREEL_TEST_CHILD").is_err() {
        return;
    }
    let deadline = Instant::now() + Duration::from_secs(60);
    let wait = |done: &dyn Fn() -> bool| {
        while !done() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(5));
        }
    };
    let flag = cli::catch_interrupts().unwrap();
    assert!(!cli::interrupted().load(Ordering::SeqCst));
    println!("waiting");
    wait(&|| flag.load(Ordering::SeqCst));
    assert!(cli::interrupted().load(Ordering::SeqCst), "no signal came");
    println!("asked to stop");
    if std::env::var("LONGREEL_TEST_IGNORE").as_deref() == Ok("1") {
        wait(&|| false); // a step that never ends
    }
}
