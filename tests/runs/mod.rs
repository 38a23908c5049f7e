//! A run's folder: one process at a time in it; checkpoints that are what was saved, or an error; and nothing lost,
//! whenever a process is killed.

mod again;
mod beside;
mod damage;
mod kills;
mod lock;
mod verify;

use crate::train::{Place, finish, signal};
use longreel::config::RunConfig;
use longreel::state::checkpoint::{RunFolder, Saving, State};
use longreel::state::optimizer::OptimizerKind;
use serde_json::json;
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use tempfile::{TempDir, tempdir};

fn config() -> RunConfig {
    let text = "[data]\npath='x'\nframes=1\nheight=8\nwidth=8\n[model]\npatch_size=[1,8,8]\nnum_attention_heads=1\n\
                attention_head_dim=8\nnum_layers=1\nffn_dim=8\n[run]\nseed=5\n";
    RunConfig::parse(text, Path::new("test.toml"), &[]).unwrap()
}

fn parameters() -> Vec<(String, Vec<usize>)> {
    vec![("a".into(), vec![2, 2]), ("b.c".into(), vec![3])]
}

/// Writes every part with values that tell part and step.
fn parts(saving: &Saving, step: u64) {
    let config = json!({"_class_name": "WanTransformer3DModel"});
    let names = parameters();
    let pieces = |base: f32| [Ok((0..7).map(|i| base + step as f32 + i as f32 / 8.0).collect::<Vec<f32>>())];
    saving.transformer(&config, &names, pieces(1000.0)).unwrap();
    saving.ema(&config, &names, pieces(2000.0)).unwrap();
    saving.optimizer(OptimizerKind::AdamW, &names, pieces(3000.0).into_iter().chain(pieces(4000.0))).unwrap();
}

/// Saves the checkpoint of `step` of a run.
fn save_of(name: &str, run: &RunFolder, step: u64, keep: usize) -> longreel::Result<()> {
    let saving = run.begin(step)?;
    parts(&saving, step);
    let state =
        State { run: Some(name.to_owned()), ..State::new(config().to_toml()?, config().run.seed, step, 3 * step) };
    saving.finish(&state, keep).map(drop)
}

fn save(run: &RunFolder, step: u64, keep: usize) {
    save_of("one", run, step, keep).unwrap();
}

/// A run with checkpoints of `steps`.
fn run(steps: &[u64]) -> (TempDir, RunFolder) {
    let temp = tempdir().unwrap();
    let run = RunFolder::new(temp.path().join("run"));
    run.create(&config().to_toml().unwrap()).unwrap();
    steps.iter().for_each(|&step| save(&run, step, 99));
    (temp, run)
}

/// What a folder holds, hidden or not.
fn entries(folder: &Path) -> Vec<String> {
    let Ok(entries) = fs::read_dir(folder) else { return vec![] };
    let mut names: Vec<_> = entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// A run that was killed once it had done `steps` steps, before its first checkpoint.
fn killed_early(place: &Place, out: &str, steps: usize) {
    let child = place.start(out, &["train.checkpoint_every=0"], steps);
    signal(child.id(), "KILL");
    finish(child);
    assert_eq!(entries(&place.path(out).join("checkpoints")), Vec::<String>::new());
}

/// Starts a command, its output kept.
fn spawn(command: &mut Command) -> std::process::Child {
    command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}
