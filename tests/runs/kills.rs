//! Kills at every system call of a save that changes files: the run's folder opens as the older checkpoint or as the
//! newer one, whole, and the next save leaves nothing behind.

use super::*;
use longreel::state::checkpoint::Checkpoint;
use longreel::state::optimizer::OptimizerKind;

/// System calls between which something on disk is different.
const CALLS: [&str; 8] = ["write", "fsync", "mkdir", "rename", "renameat2", "unlink", "unlinkat", "rmdir"];

/// Reads the whole checkpoint that a run's folder opens as; its step.
fn whole(run: &RunFolder) -> u64 {
    let checkpoint = Checkpoint::open(run.root()).unwrap();
    let step = checkpoint.state().step;
    for (folder, base) in [(checkpoint.transformer().unwrap(), 1000.0), (checkpoint.ema().unwrap(), 2000.0)] {
        assert_eq!(folder.read_f32("b.c").unwrap()[0], base + step as f32 + 0.5);
        folder.tensors().check_read().unwrap();
    }
    checkpoint.optimizer(OptimizerKind::AdamW, &parameters()).unwrap().check_read().unwrap();
    step
}

/// Saves checkpoint `step` in a process of its own that is killed when it makes `call` for the time `when`; whether it
/// got to the end.
fn save_until(run: &RunFolder, step: u64, call: &str, when: usize) -> bool {
    let mut traced = Command::new("strace");
    traced.args(["-f", "-qq", "-o", "/dev/null", "-e", &format!("trace={call}")]);
    traced.args(["-e", &format!("inject={call}:signal=KILL:when={when}")]);
    traced.arg(std::env::current_exe().unwrap());
    traced.args(["--exact", "runs::kills::child_saves", "--ignored", "--nocapture", "--test-threads=1"]);
    traced.env("LONGREEL_TEST_RUN", run.root()).env("LONGREEL_TEST_STEP", step.to_string());
    let output = finish(spawn(&mut traced));
    output.status.success() && String::from_utf8_lossy(&output.stdout).contains("saved")
}

#[test]
#[ignore = "run by save_until"]
fn child_saves() {
    let (Ok(root), Ok(step)) = (std::env::var("LONGREEL_TEST_RUN"), std::env::var("LONGREEL_TEST_STEP")) else {
        return;
    };
    save(&RunFolder::new(root), step.parse().unwrap(), 1);
    println!("saved");
}

/// Kills at every call in turn, each the first time, the second, and so on until a save gets to the end; the steps that
/// the folder opened as, of each call in order.
fn at_every_call(old: u64, new: u64) -> Vec<u64> {
    let mut all = vec![];
    for call in CALLS {
        let mut opened = vec![];
        loop {
            let (_temp, folder) = run(&[old]);
            let when = opened.len() + 1;
            let ended = save_until(&folder, new, call, when);
            opened.push(whole(&folder));
            // The next process: first what it clears at its start, then a save.
            folder.remove_leftovers().unwrap();
            assert_eq!(whole(&folder), *opened.last().unwrap(), "clearing has changed something, {call} {when}");
            let all = folder.root().join("checkpoints");
            assert!(entries(&all).iter().all(|name| name.starts_with("step-")), "{call} {when}");
            save(&folder, 9, 1);
            assert_eq!(entries(&all), ["step-00000009"], "{call} {when}");
            if ended {
                break;
            }
            assert!(when < 200, "it never ends");
        }
        assert!(opened.is_sorted() && *opened.last().unwrap() == new, "{call}: {opened:?}");
        all.extend(&opened[..opened.len() - 1]); // but for the one that got to the end
    }
    all
}

#[test]
fn a_kill_at_any_call_leaves_the_older_or_the_newer_checkpoint() {
    let opened = at_every_call(1, 2);
    assert!(opened.len() > 40, "{opened:?}"); // calls that were there to be killed at
    // Both are there for a while: the newer one comes before the older one goes.
    assert!(opened.iter().filter(|&&step| step == 2).count() > 5 && opened.contains(&1), "{opened:?}");
}

/// One of the same step is replaced by an exchange of names.
#[test]
fn a_kill_while_one_of_the_same_step_is_replaced_leaves_one() {
    let opened = at_every_call(2, 2);
    assert!(opened.len() > 40 && opened.iter().all(|&step| step == 2), "{opened:?}");
}

/// Where a file system cannot exchange names, there is an instant without one: the next start gives it back.
#[test]
fn what_was_about_to_be_replaced_comes_back() {
    let (_temp, folder) = run(&[2]);
    let all = folder.root().join("checkpoints");
    let [aside, new] = ["AbCdEf", "GhIjKl"].map(|random| all.join(format!(".step-00000002-{random}.longreel-tmp")));
    fs::create_dir(&aside).unwrap();
    fs::create_dir(&new).unwrap();
    fs::write(new.join("state.json"), "half").unwrap();
    fs::rename(all.join("step-00000002"), aside.join("step-00000002")).unwrap();
    folder.remove_leftovers().unwrap();
    assert_eq!(entries(&all), ["step-00000002"]);
    assert_eq!(whole(&folder), 2);
    // A checkpoint that was about to be removed does not.
    fs::rename(all.join("step-00000002"), &aside).unwrap();
    folder.remove_leftovers().unwrap();
    assert_eq!(entries(&all), Vec::<String>::new());
}

/// After a power cut a name is there only if the folder that it is in was synced: those that a save makes, too.
#[test]
fn every_folder_on_the_way_is_synced() {
    let temp = tempdir().unwrap();
    let folder = RunFolder::new(temp.path().join("runs/a"));
    let log = temp.path().join("calls");
    let mut traced = Command::new("strace");
    traced.args(["-f", "-y", "-qq", "-e", "trace=fsync,mkdir", "-o"]).arg(&log).arg(std::env::current_exe().unwrap());
    traced.args(["--exact", "runs::kills::child_saves", "--ignored", "--nocapture", "--test-threads=1"]);
    traced.env("LONGREEL_TEST_RUN", folder.root()).env("LONGREEL_TEST_STEP", "1");
    assert!(finish(spawn(&mut traced)).status.success());
    let calls = fs::read_to_string(log).unwrap();
    for made in ["", "/runs", "/runs/a", "/runs/a/checkpoints"] {
        let synced = format!("<{}{made}>)", temp.path().display());
        assert!(
            calls.lines().any(|call| call.contains("fsync(") && call.contains(&synced) && call.ends_with("= 0")),
            "{made}: {calls}"
        );
    }
}
