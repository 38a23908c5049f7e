//! Memory that cannot be had while a run goes: one line of error, and the last checkpoint is good.

use super::*;

/// Larger than the networks of other tests: what the held-out loss needs is asked of the system, and nobody else had it
/// before.
const LARGE: &[&str] = &[
    "data.height=24",
    "data.width=48",
    "model.patch_size=[1,4,4]",
    "model.num_attention_heads=4",
    "model.attention_head_dim=16",
    "model.num_layers=1",
    "train.batch=1",
    "train.tile=0",
    "train.checkpoint_every=3",
    // Long after the third step: seconds.
    if cfg!(debug_assertions) { "train.heldout_every=40" } else { "train.heldout_every=1500" },
    "train.steps=1000000",
];

#[test]
fn memory_that_cannot_be_had_ends_the_run_with_one_line_and_a_good_checkpoint() {
    let place = Place::videos();
    let mut child = place.command("run", LARGE).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let checkpoint = place.path("run/checkpoints/step-00000003/state.json");
    let start = Instant::now();
    while !checkpoint.exists() {
        assert!(start.elapsed() < Duration::from_secs(60) && child.try_wait().unwrap().is_none(), "no checkpoint");
        std::thread::sleep(Duration::from_millis(2));
    }
    // What it has stays; nothing more is given.
    let limit = Command::new("prlimit").args(["--as=1", "--pid", &child.id().to_string()]).status().unwrap();
    assert!(limit.success(), "the tests need util-linux's prlimit");
    let error = error_of(&finish(child));
    assert!(error.starts_with("memory is short: ") && error.contains(" GiB more could not be had"), "{error}");
    assert!(error.contains("checkpoints that were saved are good") && error.contains("`longreel plan "), "{error}");

    // The run goes on from its last checkpoint.
    let last =
        fs::read_dir(place.path("run/checkpoints")).unwrap().map(|entry| entry.unwrap().file_name()).max().unwrap();
    let step: u64 = last.to_str().unwrap().strip_prefix("step-").unwrap().parse().unwrap();
    let steps = format!("train.steps={}", step + 2);
    let args: Vec<&str> = LARGE.iter().copied().filter(|arg| !arg.starts_with("train.steps")).collect();
    succeed(&mut place.command("run", &[&["--resume", steps.as_str()], &args[..]].concat()));
}
