//! Tests processes that find each other by torchrun's variables and exchange small messages: what can go wrong has one
//! clear error, and no process waits for ever. Ranks are threads here, or this test binary again ([`child`]) where a
//! process must die; sockets are real.

use super::fails;
use crate::train::{finish, signal, text};
use longreel::parallel::{ControlPlane, Limits, Secret, TorchrunEnv};
use longreel::{Error, Result};
use std::io::{Read, Write};
use std::net::TcpListener;
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

const JOINING: Duration = Duration::from_millis(1500);
pub const SECRET: &str = "sixteen bytes or more";

pub fn limits() -> Limits {
    Limits { joining: JOINING, silence: Duration::from_secs(5), ..Limits::default() }
}

/// A port that was free a moment ago, below those that the system gives to programs that ask for any.
pub fn free_port() -> u16 {
    use std::sync::atomic::{AtomicU16, Ordering};
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let start = (std::process::id() % 900) as u16 * 20;
    loop {
        let port = 12_000 + (start + NEXT.fetch_add(1, Ordering::Relaxed)) % 18_000;
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}

pub fn job(rank: usize, size: usize, port: u16) -> TorchrunEnv {
    TorchrunEnv { rank, size, local: rank, host: "127.0.0.1".into(), port, secret: Secret::Text(SECRET.into()) }
}

/// Runs `work` on jobs, each a thread, under a watchdog.
pub fn on_all<T, F>(jobs: Vec<TorchrunEnv>, limits: Limits, work: F) -> Vec<Result<T>>
where
    T: Send + 'static,
    F: Fn(ControlPlane) -> Result<T> + Clone + Send + 'static,
{
    let start = |job: TorchrunEnv| {
        let (work, (send, receive)) = (work.clone(), mpsc::channel());
        thread::spawn(move || send.send(ControlPlane::join(&job, limits).and_then(work)));
        receive
    };
    let all: Vec<_> = jobs.into_iter().map(start).collect();
    all.into_iter().map(|one| one.recv_timeout(Duration::from_secs(30)).expect("a rank hangs")).collect()
}

pub fn messages<T>(outcomes: Vec<Result<T>>) -> Vec<String> {
    outcomes.into_iter().map(|outcome| fails(outcome).to_string()).collect()
}

fn variables(changed: &[(&str, Option<&str>)]) -> Result<TorchrunEnv> {
    let usual =
        [("RANK", "2"), ("WORLD_SIZE", "4"), ("LOCAL_RANK", "0"), ("MASTER_ADDR", "b7"), ("MASTER_PORT", "29500")];
    let get = |name: &str| match changed.iter().find(|(n, _)| *n == name) {
        Some((_, value)) => value.map(str::to_owned),
        None => usual.iter().find(|(n, _)| *n == name).map(|(_, value)| value.to_string()),
    };
    TorchrunEnv::from(get)
}

#[test]
fn torchrun_env_is_read_from_the_environment() {
    let job = variables(&[]).unwrap();
    let secret = Secret::Missing;
    assert_eq!(job, TorchrunEnv { rank: 2, size: 4, local: 0, host: "b7".into(), port: 29500, secret });
    assert_eq!(variables(&[("MASTER_ADDR", Some("[fe80::1]"))]).unwrap().host, "fe80::1");
    assert_eq!(variables(&[("MASTER_ADDR", Some("::1"))]).unwrap().host, "::1");
    // torchrun itself listens at the port: the next one is ours.
    assert_eq!(variables(&[("TORCHELASTIC_USE_AGENT_STORE", Some("True"))]).unwrap().port, 29501);
    assert_eq!(variables(&[("TORCHELASTIC_USE_AGENT_STORE", Some("False"))]).unwrap().port, 29500);
}

#[test]
fn a_secret_is_the_environments_or_on_one_machine_a_file() {
    let secret = |changed: &[(&str, Option<&str>)]| variables(changed).unwrap().secret;
    let text = ("LONGREEL_JOB_SECRET", Some("0123456789abcdef"));
    assert_eq!(secret(&[text]), Secret::Text("0123456789abcdef".into()));
    assert_eq!(format!("{:?}", secret(&[text])), "Text(..)", "it is not printed");
    let file = ("LONGREEL_JOB_SECRET_FILE", Some("/shared/secret"));
    assert_eq!(secret(&[file]), Secret::File("/shared/secret".into()));
    assert_eq!(secret(&[("LONGREEL_JOB_SECRET", Some(" ")), file]), Secret::File("/shared/secret".into()));
    for one_machine in [
        ("MASTER_ADDR", "localhost"),
        ("MASTER_ADDR", "127.0.0.3"),
        ("MASTER_ADDR", "::1"),
        ("LOCAL_WORLD_SIZE", "4"), // as torchrun --standalone has it, whatever it calls the machine
    ] {
        let Secret::File(path) = secret(&[(one_machine.0, Some(one_machine.1))]) else { panic!("{one_machine:?}") };
        assert!(path.starts_with(std::env::temp_dir()), "{path:?}");
    }
    assert_eq!(secret(&[("LOCAL_WORLD_SIZE", Some("2"))]), Secret::Missing);
    let both = fails(variables(&[text, file])).to_string();
    assert!(both.contains("LONGREEL_JOB_SECRET and LONGREEL_JOB_SECRET_FILE are both set"), "{both}");
    let short = fails(variables(&[("LONGREEL_JOB_SECRET", Some("guess me"))])).to_string();
    assert!(short.contains("rank 2 failed: LONGREEL_JOB_SECRET has 8 bytes"), "{short}");
    // Without one nobody meets, and each process says so.
    for rank in [0, 1] {
        let outcome =
            ControlPlane::join(&TorchrunEnv { secret: Secret::Missing, ..job(rank, 2, free_port()) }, limits());
        let said = fails(outcome).to_string();
        assert!(said.contains("set LONGREEL_JOB_SECRET to the same random text"), "{said}");
        assert_eq!(said.starts_with("rank 1 failed: "), rank == 1, "{said}");
    }
}

#[test]
fn ranks_meet_by_a_file_that_rank_0_makes() {
    let folder = tempfile::tempdir().unwrap();
    let (path, port) = (folder.path().join("secret"), free_port());
    let job = |rank| TorchrunEnv { secret: Secret::File(path.clone()), ..job(rank, 3, port) };
    let outcomes = on_all([2, 0, 1].map(job).into(), limits(), |party| {
        let all = party.exchange(b"")?.len();
        party.finish_together(Ok(()))?;
        Ok(all)
    });
    assert!(outcomes.into_iter().all(|outcome| outcome.unwrap() == 3));
}

#[test]
fn a_missing_or_mistyped_variable_is_named() {
    for name in ["RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"] {
        for value in [None, Some(""), Some(" ")] {
            let error = fails(variables(&[(name, value)])).to_string();
            assert!(error.contains(&format!("{name} is missing")), "{error}");
        }
    }
    for name in ["RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_PORT"] {
        for value in ["x", "-1", "1.5", "99999999999999999999"] {
            let error = fails(variables(&[(name, Some(value))])).to_string();
            assert!(error.contains(&format!("{name} is \"{value}\"")), "{error}");
        }
    }
    let cases = [
        ("RANK", "4", "RANK is 4, but WORLD_SIZE is 4: processes are numbered from 0 to 3"),
        ("WORLD_SIZE", "0", "WORLD_SIZE is 0"),
        ("LOCAL_RANK", "4", "LOCAL_RANK is 4, but WORLD_SIZE is 4"),
        ("MASTER_PORT", "0", "MASTER_PORT is 0"),
        ("MASTER_PORT", "65536", "MASTER_PORT is \"65536\""),
    ];
    for (name, value, expected) in cases {
        let error = fails(variables(&[(name, Some(value))])).to_string();
        assert!(error.contains(expected), "{error}");
    }
    // What one process alone can know is its own error, so that it says so itself.
    assert!(matches!(fails(variables(&[("LOCAL_RANK", None)])), Error::Rank { rank: 2, .. }));
    let last = [("TORCHELASTIC_USE_AGENT_STORE", Some("True")), ("MASTER_PORT", Some("65535"))];
    assert!(refusal!(Environment, variables(&last)).contains("choose a lower port"));
}

#[test]
fn exchange_gives_every_rank_all_messages_in_rank_order() {
    for size in 1..=5 {
        let port = free_port();
        // The last one first, and rank 0 in the middle, each after the one before has at least begun.
        let mut jobs: Vec<TorchrunEnv> = (0..size).rev().map(|rank| job(rank, size, port)).collect();
        jobs.rotate_left(size / 2);
        let ranks: Vec<usize> = jobs.iter().map(|job| job.rank).collect();
        let outcomes = on_all(jobs, limits(), |party| {
            assert!(party.is_reporter() == (party.rank() == 0));
            let mut seen = vec![];
            for round in 0..3 {
                // Uneven, one of them empty, one as long as may be.
                let length = [0, 1, 1000, 64 << 10, 3][(party.rank() + round) % 5];
                seen.push(party.exchange(&vec![party.rank() as u8; length])?);
            }
            party.finish_together(Ok(()))?;
            Ok((party.rank(), party.size(), seen))
        });
        for (rank, outcome) in ranks.into_iter().zip(outcomes) {
            let (own, all, seen) = outcome.unwrap();
            assert_eq!((own, all), (rank, size));
            for (round, given) in seen.iter().enumerate() {
                let lengths = |rank: usize| [0, 1, 1000, 64 << 10, 3][(rank + round) % 5];
                let expected: Vec<Vec<u8>> = (0..size).map(|rank| vec![rank as u8; lengths(rank)]).collect();
                assert_eq!(given, &expected);
            }
        }
    }
}

#[test]
fn ranks_meet_by_name_and_by_ipv6_and_when_rank_0_comes_last() {
    for host in ["localhost", "127.0.0.1", "::1"] {
        if host == "::1" && TcpListener::bind(("::1", 0)).is_err() {
            println!("skipped: this machine has no IPv6");
            continue;
        }
        let port = free_port();
        let named = |rank| TorchrunEnv { host: host.into(), ..job(rank, 2, port) };
        // Rank 0 starts when something has been refused at the port: the other has come too early.
        let (send, early) = mpsc::channel();
        let other = named(1);
        thread::spawn(move || send.send(ControlPlane::join(&other, limits()).and_then(|party| party.exchange(b"one"))));
        assert!(early.recv_timeout(Duration::from_millis(200)).is_err(), "it must wait for rank 0");
        let party = ControlPlane::join(&named(0), limits()).unwrap();
        assert_eq!(party.exchange(b"zero").unwrap(), [b"zero".to_vec(), b"one".to_vec()], "{host}");
        assert!(early.recv_timeout(Duration::from_secs(20)).unwrap().is_ok());
    }
}

#[test]
fn two_processes_of_one_rank_are_an_error_of_all() {
    let port = free_port();
    for said in messages(on_all(vec![job(0, 3, port), job(1, 3, port), job(1, 3, port)], limits(), |_| Ok(()))) {
        assert!(said.contains("two processes have RANK=1: each needs its own"), "{said}");
    }
    // Two of rank 0: the second finds the port taken.
    let port = free_port();
    let said = messages(on_all(vec![job(0, 2, port), job(0, 2, port)], limits(), |_| Ok(())));
    assert!(said.iter().any(|said| said.contains(&format!("cannot listen at 127.0.0.1:{port}"))), "{said:?}");
}

#[test]
fn another_world_size_on_one_process_is_an_error_of_all() {
    let port = free_port();
    for said in messages(on_all(vec![job(0, 2, port), job(1, 3, port)], limits(), |_| Ok(()))) {
        assert!(
            said.contains("WORLD_SIZE is 3 at rank 1 and 2 at rank 0: start all processes with the same"),
            "{said}"
        );
    }
}

#[test]
fn port_in_use_is_an_error_and_its_listener_is_not_taken_for_rank_0() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    let said = fails(ControlPlane::join(&job(0, 2, port), limits())).to_string();
    assert!(
        said.contains(&format!("rank 0 cannot listen at 127.0.0.1:{port}"))
            && said.contains("choose a free MASTER_PORT"),
        "{said}"
    );
    thread::spawn(move || {
        for stream in taken.incoming().flatten() {
            let _ = (&stream).write_all(b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n");
        }
    });
    let error = fails(ControlPlane::join(&job(1, 2, port), limits()));
    assert!(matches!(error, Error::Rank { rank: 1, .. }), "its own to tell: {error}");
    assert!(error.to_string().contains("what listens there"), "{error}");
}

#[test]
fn a_rank_0_that_cannot_be_reached_is_given_up_in_time_by_its_address() {
    let port = free_port();
    let began = Instant::now();
    let said = fails(ControlPlane::join(&job(1, 2, port), limits())).to_string();
    let took = began.elapsed();
    assert!(said.contains(&format!("rank 1 did not reach rank 0 at 127.0.0.1:{port} within 1.5 s")), "{said}");
    assert!(took >= JOINING - Duration::from_millis(200) && took < JOINING + Duration::from_secs(5), "{took:?}");
    let nowhere = TorchrunEnv { host: "no-such-machine.invalid".into(), ..job(1, 2, port) };
    let said = fails(ControlPlane::join(&nowhere, limits())).to_string();
    assert!(said.contains("MASTER_ADDR no-such-machine.invalid has no address"), "{said}");
}

#[test]
fn missing_ranks_are_named_to_all_that_have_come() {
    let port = free_port();
    for said in messages(on_all(vec![job(0, 4, port), job(2, 4, port)], limits(), |_| Ok(()))) {
        assert!(said.contains("of 4 processes 2 did not come") && said.contains("within 1.5 s: rank 1, 3;"), "{said}");
    }
}

#[test]
fn a_failing_rank_stops_all_others_with_its_message() {
    for failing in 0..3 {
        let port = free_port();
        let jobs = (0..3).map(|rank| job(rank, 3, port)).collect();
        let outcomes = on_all(jobs, limits(), move |party| {
            let work = match party.rank() == failing {
                true => Err(Error::Environment("no room on the disk".into())),
                false => party.exchange(b"").map(|_| ()),
            };
            party.finish_together(work)
        });
        for (rank, said) in messages(outcomes).into_iter().enumerate() {
            let expected = "no room on the disk";
            let expected = if rank == failing { expected.into() } else { format!("rank {failing} failed: {expected}") };
            assert_eq!(said, expected);
        }
    }
}

#[test]
fn a_rank_that_ends_while_others_wait_for_it_is_an_error_of_all() {
    for ending in 0..3 {
        let port = free_port();
        let jobs = (0..3).map(|rank| job(rank, 3, port)).collect();
        let outcomes = on_all(jobs, limits(), move |party| {
            let work = if party.rank() == ending { Ok(()) } else { party.exchange(b"").map(|_| ()) };
            party.finish_together(work)
        });
        for said in messages(outcomes) {
            assert!(said.contains(&format!("rank {ending} failed: it ended while rank ")), "{said}");
        }
    }
}

#[test]
fn too_long_message_is_an_error_before_it_is_sent() {
    let port = free_port();
    let outcomes = on_all(vec![job(0, 2, port), job(1, 2, port)], limits(), |party| {
        let said = fails(party.exchange(&vec![0; (64 << 10) + 1])).to_string();
        assert!(said.contains("65537 bytes are too many"), "{said}");
        party.exchange(b"short")
    });
    assert!(outcomes.into_iter().all(|outcome| outcome.is_ok()));
}

/// A process of rank `rank`, which joins, exchanges once, says so, and then does `work`.
fn process(rank: usize, size: usize, port: u16, work: &str) -> std::process::Child {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "parallel::bootstrap::child", "--ignored", "--nocapture"]);
    command.env("RANK", rank.to_string()).env("WORLD_SIZE", size.to_string()).env("LOCAL_RANK", rank.to_string());
    command.env("MASTER_ADDR", "127.0.0.1").env("MASTER_PORT", port.to_string()).env("LONGREEL_TEST_WORK", work);
    command.env("TMPDIR", env!("CARGO_TARGET_TMPDIR")); // where the job's secret is then
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

#[test]
#[ignore = "run by process"]
fn child() {
    let Ok(work) = std::env::var("LONGREEL_TEST_WORK") else { return };
    let outcome = TorchrunEnv::from(|name| std::env::var(name).ok()).and_then(|job| {
        let silence = Duration::from_secs(2);
        let party =
            ControlPlane::join(&job, Limits { joining: Duration::from_secs(30), silence, ..Limits::default() })?;
        let ended = party.exchange(b"").and_then(|_| {
            println!("met");
            match work.as_str() {
                "wait" => thread::sleep(Duration::from_secs(60)), // to be killed or stopped
                "idle" => thread::sleep(Duration::from_secs(5)),  // longer than silence, but it lives
                _ => {}
            }
            party.exchange(b"").map(|_| ())
        });
        let ended = party.finish_together(ended);
        if let (Err(e), true) = (&ended, party.is_reporter()) {
            eprintln!("error: {e}");
        }
        ended
    });
    std::process::exit(i32::from(outcome.is_err()));
}

/// Waits until a process has met the others.
fn met(process: &mut std::process::Child) {
    let mut said = String::new();
    let out = process.stdout.as_mut().unwrap();
    while !said.contains("met") {
        let mut byte = [0];
        assert_eq!(out.read(&mut byte).unwrap(), 1, "it ended: {said}");
        said.push(byte[0] as char);
    }
}

#[test]
fn a_process_that_is_killed_or_stopped_half_way_stops_the_others() {
    for (lost, how) in [(2, "KILL"), (0, "KILL"), (1, "STOP")] {
        let port = free_port();
        let start = |rank| process(rank, 3, port, if rank == lost { "wait" } else { "go" });
        let mut all: Vec<_> = (0..3).map(start).collect();
        met(&mut all[lost]);
        signal(all[lost].id(), how);
        let mut victim = all.remove(lost);
        let told: Vec<_> = all.into_iter().map(finish).collect();
        victim.kill().unwrap();
        victim.wait().unwrap();
        let mut errors = String::new();
        for output in told {
            assert_eq!(output.status.code(), Some(1), "{}", text(&output.stderr));
            errors += &text(&output.stderr);
        }
        assert_eq!(errors.matches("error: ").count(), 1, "{errors}");
        let why = if how == "STOP" { "nothing was heard from it for 2 s" } else { "it ended or was killed" };
        assert!(errors.contains(&format!("error: rank {lost} failed: {why}")), "{errors}");
    }
}

#[test]
fn a_process_that_is_long_at_work_is_waited_for() {
    let port = free_port();
    let all: Vec<_> = (0..2).map(|rank| process(rank, 2, port, if rank == 1 { "idle" } else { "go" })).collect();
    for output in all.into_iter().map(finish) {
        assert!(output.status.success(), "{}", text(&output.stderr));
    }
}
