//! `longreel status`: how far runs are, how they go, and whether a process is at work in them.

use clap::Args;
use serde_json::{Value, json};
use std::path::PathBuf;
use std::time::Duration;

use crate::files::gib;
use crate::observe::lock::Holder;
use crate::observe::status::{Activity, RunStatus};
use crate::terminal::{self, clock, rate};
use crate::{Error, Result};

/// Say how far runs are and how they go: three lines each.
#[derive(Debug, Args)]
pub struct StatusArgs {
    /// Folders of runs
    #[arg(required = true, value_name = "RUN", value_parser = super::path())]
    pub runs: Vec<PathBuf>,
    /// Print a line of JSON for each run instead
    #[arg(long)]
    pub json: bool,
}

/// Runs the command.
pub fn run(args: &StatusArgs) -> Result<()> {
    let mut failed = vec![];
    for root in &args.runs {
        match RunStatus::read(root) {
            Ok(status) if args.json => super::print_json(json(&status))?,
            Ok(status) => super::print(text(&status))?,
            Err(e) => failed.push(e.to_string()),
        }
    }
    match failed.is_empty() {
        true => Ok(()),
        false => Err(Error::Checkpoint(failed.join("\n  "))), // after all that could be read
    }
}

/// Three lines, and one for each note.
fn text(status: &RunStatus) -> String {
    let indented = |parts: Vec<String>| format!("\n  {}", parts.join("  "));
    let mut text = format!("{}: {}", terminal::name(&status.root), activity(status));
    text += &indented(progress(status));
    text += &indented(kept(status));
    for note in &status.notes {
        text += &format!("\n  note: {}", terminal::name(note));
    }
    text
}

fn activity(status: &RunStatus) -> String {
    let name = status.activity.name();
    match (&status.holder, status.activity) {
        (Some(Holder { host, pid, since, .. }), _) => {
            let [host, since] = [host, since].map(terminal::name);
            format!("{name} (process {pid} on {host}, since {since})")
        }
        (None, Activity::Killed) => format!("{name} (no process is at work, and none has ended the run)"),
        (None, Activity::Stopped) => format!("{name} before its last step (no process is at work)"),
        _ => name.to_owned(),
    }
}

/// Where the run is and how it goes.
fn progress(status: &RunStatus) -> Vec<String> {
    let of = status.steps.map_or(String::new(), |steps| format!(" of {steps}"));
    let Some(last) = &status.last else { return vec![format!("step 0{of}"), "no step is measured yet".to_owned()] };
    let mut parts = vec![format!("step {}{of}", last.step)];
    if let Some((epoch, all)) = status.epochs() {
        let all = all.map_or(String::new(), |all| format!(" of {}", terminal::epoch(all)));
        parts.push(format!("epoch {}{all}", terminal::epoch(epoch)));
    }
    parts.push(format!("loss {:.4}", last.loss));
    if let Some((step, loss)) = status.heldout {
        parts.push(format!("held-out {loss:.4} (step {step})"));
    }
    parts.push(format!("{} tokens/s", rate(last.tokens_per_s)));
    parts.extend(status.left().map(|left| format!("ETA {}", clock(left))));
    parts
}

/// Memory, and what is saved.
fn kept(status: &RunStatus) -> Vec<String> {
    let peak = status.last.as_ref().map_or(0, |last| last.peak_rss);
    let memory = if peak > 0 { format!("memory {} at the peak", gib(peak)) } else { "memory not known".to_owned() };
    let checkpoint = match &status.checkpoint {
        Some(saved) => format!("checkpoint of step {}{}", saved.step, ago(saved.age)),
        None => "no checkpoint".to_owned(),
    };
    let last = status.last_age.filter(|_| status.last.is_some() && status.is_alive());
    let mut parts = vec![memory, checkpoint];
    parts.extend(last.map(|age| format!("last step{}", ago(Some(age)))));
    parts
}

fn ago(age: Option<Duration>) -> String {
    age.map_or(String::new(), |age| format!(", {} ago", clock(age)))
}

/// The same for programs. What is not known is null.
fn json(status: &RunStatus) -> Value {
    let last = status.last.as_ref();
    let seconds = |time: Option<Duration>| time.map(|time| time.as_secs_f64());
    json!({
        "run": status.root.to_string_lossy(), "state": status.activity.name(), "process": status.holder,
        "step": last.map_or(0, |last| last.step), "steps": status.steps,
        "epoch": status.epochs().map(|(epoch, _)| epoch), "epochs": status.epochs().and_then(|(_, all)| all),
        "loss": last.map(|last| last.loss),
        "heldout": status.heldout.map(|(_, loss)| loss), "heldout_step": status.heldout.map(|(step, _)| step),
        "lr": last.map(|last| last.lr), "grad_norm": last.map(|last| last.grad_norm),
        "tokens_per_s": last.map(|last| last.tokens_per_s),
        "seconds_per_step": status.pace, "seconds_left": seconds(status.left()),
        "seconds_since_step": last.and(seconds(status.last_age)), "peak_rss": last.map(|last| last.peak_rss),
        "checkpoint": status.checkpoint.as_ref().map(|saved| json!({
            "step": saved.step, "folder": saved.folder.to_string_lossy(), "seconds_ago": seconds(saved.age),
        })),
        "notes": status.notes,
    })
}
