//! `longreel plan` against `longreel train --rehearse`, which measures what plan predicts; and what plan says and
//! refuses.

mod decoding;
mod latents;
mod lora;
mod search;
mod time;
mod wan;

use crate::train::{Place, fail, longreel, snapshot, succeed, text};
use longreel::allocator::SPARE;
use longreel::data::write::write_video;
use serde_json::Value;
use std::fs;
use std::process::Command;

/// 8192 tokens of width 128 where nothing else is said.
const MEDIUM: &[&str] = &[
    "data.frames=4",
    "data.height=256",
    "data.width=128",
    "data.prefetch=1",
    "model.patch_size=[1,4,4]",
    "model.num_attention_heads=4",
    "model.attention_head_dim=32",
    "model.num_layers=4",
    "model.ffn_dim=512",
    "train.batch=1",
    "train.tile=512",
];

fn plan(place: &Place, args: &[&str]) -> Command {
    let mut command = longreel();
    command.arg("plan").arg(place.path("config.toml")).args(["--tflops", "1", "--bandwidth", "10"]);
    for arg in args {
        command.args(if arg.starts_with("--") { vec![*arg] } else { vec!["--set", arg] });
    }
    command
}

fn planned(place: &Place, args: &[&str]) -> Value {
    serde_json::from_slice(&succeed(plan(place, args).arg("--json")).stdout).unwrap()
}

/// The most bytes that a part has in any phase of a plan.
fn part(plan: &Value, name: &str) -> u64 {
    let phases = plan["phases"].as_array().unwrap().iter();
    phases.filter_map(|phase| phase["parts"][name].as_u64()).max().unwrap_or(0)
}

/// What a rehearsal prints: predicted and measured MiB, by what they are of.
fn rehearsed(place: &Place, args: &[&str]) -> Vec<(String, [f64; 2])> {
    let before = snapshot(&place.path(""));
    let output = succeed(&mut place.command("rehearsed", &[&["--rehearse"], args].concat()));
    assert!(text(&output.stderr).contains("attention is not computed"), "{}", text(&output.stderr));
    assert_eq!(snapshot(&place.path("")), before, "a rehearsal saves nothing");
    let row = |line: &str| {
        let (what, numbers) = line.split_once(" predicted ").expect("predicted");
        let gib = |part: &str| part.rsplit(' ').next().unwrap().parse::<f64>().unwrap();
        let numbers = numbers.split(" GiB").take(2).map(|part| 1024.0 * gib(part));
        (what.to_owned(), numbers.collect::<Vec<f64>>().try_into().unwrap())
    };
    text(&output.stdout).lines().map(row).collect()
}

/// 128 x 256 pixels for MEDIUM.
fn large_clips() -> Place {
    let place = Place::videos();
    let (frames, height, width) = (4, 256, 128);
    let grey = vec![128; frames * height * width * 3];
    for clip in ["clips/large.mp4", "heldout/large.mp4"] {
        write_video(&place.path(clip), &grey, height, width, 12.0).unwrap();
    }
    place
}

/// Predicted and measured, of buffers and of the process; `shared` MiB are counted for each rank, though ranks may
/// share them.
fn check(case: &[&str], what: &str, [predicted, measured]: [f64; 2], shared: f64) {
    // Kept panels and tiles are not followed one by one: some MiB. The process has freed memory too: of the 64 MiB that
    // the allocator may keep (SPARE) up to 32 MiB, and where a frozen network's weights of many sizes are packed for
    // adapters up to 45, where bf16 is multiplied as f32. Without SPARE there too it is below 32.
    let freed = if case.contains(&"lora.rank=16") { (SPARE >> 20) as f64 } else { 32.0 };
    let margin = if what.contains("peak") { (0.05 * measured).max(freed) } else { (0.03 * measured).max(4.0) };
    // A plan counts a block as still being copied in forward and while the head is at work; a fast disk may be done
    // with it.
    let copied = case.iter().any(|key| key.starts_with("stash.where=disk") || key.starts_with("stash.dtype=bf16"));
    let forward = what.contains("forward") || what.contains("head and loss");
    // In backward a block that is read ahead may still be on its way, where the machine is busy.
    let share = if forward { 0.15 } else { 0.05 };
    let written = if copied { share * predicted } else { 0.0 };
    let fits = predicted - measured <= shared.max(written + margin) && measured - predicted <= margin;
    assert!(fits, "{case:?}: {what} predicted {predicted}, measured {measured} MiB");
}

#[test]
fn each_phase_of_a_rehearsal_has_the_buffers_that_the_plan_says() {
    let place = large_clips();
    let disk = format!("stash.folder={}", place.path("").display());
    let cases: [&[&str]; 4] = [
        &[],
        &["train.dtype=bf16", "parallel.head_groups=2"],
        &["stash.where=disk", &disk, "stash.keep_attention=false"],
        &["stash.dtype=bf16", "train.batch=2"],
    ];
    for case in cases {
        let rows = rehearsed(&place, &[MEDIUM, case].concat());
        let again = if case.contains(&"stash.keep_attention=false") { 2 } else { 0 };
        assert_eq!(rows.len(), 13 + again, "{rows:?}");
        rows.into_iter().for_each(|(what, both)| check(case, &what, both, 0.0));
    }
}

#[test]
fn ranks_together_have_what_the_plan_says() {
    let place = large_clips();
    let cases: [&[&str]; 4] = [
        &["--ranks=2"],
        &["--ranks=4", "parallel.ring=2", "train.dtype=bf16"],
        &["--ranks=2", "parallel.zero=3"],
        // One step, which finds nothing that one before it left: 80 MiB of packed panels are fresh pages.
        &["--ranks=2", "model.patch_size=[1,2,2]", "model.num_layers=1", "train.steps=1"],
    ];
    for case in cases {
        let case = [MEDIUM, case].concat();
        let rows = rehearsed(&place, &case);
        assert_eq!(rows.len(), 2, "{rows:?}");
        // Ranks that take turns at a small run's work use the same kept panels, so all may have what the plan counts
        // for one.
        let plan = planned(&place, &case);
        let others = plan["ranks"].as_array().unwrap().len() as u64 - 1;
        let kept = |phase: &Value| phase["parts"]["packed panels and weights, kept"].as_u64().unwrap();
        let kept = plan["phases"].as_array().unwrap().iter().map(kept).max().unwrap();
        let shared = (others * kept) as f64 / f64::from(1 << 20);
        rows.into_iter().for_each(|(what, both)| check(&case, &what, both, shared));
    }
}

/// Units of 12 MiB, so that one unit more or less is beyond the margin. (What the process holds beside its buffers is
/// no matter here.)
#[test]
fn ranks_of_stage_3_have_the_unit_at_work_and_the_parts_of_the_next() {
    let place = large_clips();
    let wide = ["parallel.zero=3", "model.patch_size=[1,16,16]", "model.num_attention_heads=16", "model.ffn_dim=2048"];
    let rows = rehearsed(&place, &[MEDIUM, &["--ranks=2"], &wide].concat());
    let (what, both) = &rows[0];
    assert_eq!(what, "in use at most:");
    check(&wide, what, *both, 0.0);
}

#[test]
fn steps_of_other_optimizers_need_what_the_plan_says() {
    let place = large_clips();
    let wide = ["model.patch_size=[1,16,16]", "model.num_attention_heads=16", "model.ffn_dim=2048"];
    for optimizer in ["train.optimizer=adamw8", "train.optimizer=muon"] {
        let rows = rehearsed(&place, &[MEDIUM, &wide, &[optimizer]].concat());
        let used: Vec<_> = rows.into_iter().filter(|(what, _)| what.starts_with("in use")).collect();
        assert!(used.iter().any(|(what, _)| what.contains("optimizer")), "{used:?}");
        used.into_iter().for_each(|(what, both)| check(&[optimizer], &what, both, 0.0));
    }
}

/// Of the matrices of blocks Muon has the momentum alone; a rank of ZeRO has its part of that, and of the room that
/// making them orthogonal takes.
#[test]
fn ranks_share_what_muon_needs() {
    let place = Place::videos();
    let plan = |more: &[&str]| planned(&place, &[MEDIUM, more].concat());
    let moments = |more: &[&str]| part(&plan(more), "optimizer moments");
    let matrices = 4 * (4 * 128 * 128 + 2 * 128 * 512);
    let all = plan(&[])["trained"].as_u64().unwrap();
    assert_eq!(moments(&[]), 8 * all);
    let muon = "train.optimizer=muon";
    assert_eq!(moments(&[muon]), 8 * all - 4 * matrices);
    assert_eq!(moments(&[muon, "--ranks=2"]), moments(&[muon]), "each rank has all without ZeRO");
    for zero in ["parallel.zero=1", "parallel.zero=3"] {
        let (share, whole) = (2 * moments(&[muon, "--ranks=2", zero]), moments(&[muon]));
        assert!(share.abs_diff(whole) <= 32, "{zero}: {share} and {whole}");
    }
    let room = |more: &[&str]| part(&plan(more), "matrices being orthogonalised");
    assert_eq!(room(&[]), 0);
    // Its part of the block's values and steps, and whatever the ranks, the matrix at work.
    let (one, two) = (room(&[muon]), room(&[muon, "--ranks=2"]));
    let (sharded, more) =
        (room(&[muon, "--ranks=2", "parallel.zero=1"]), room(&[muon, "--ranks=4", "parallel.zero=1"]));
    assert!(one > two && two > sharded && sharded > more, "{one} {two} {sharded} {more}");
    assert!(more > 4 * (2 * 128 * 512 + 3 * 128 * 128), "{more}");
}

/// MEDIUM's blocks stash x and o of 8192 x 128 numbers and a statistic of 4 x 8192.
#[test]
fn a_plan_for_a_gpu_tells_its_memory_from_its_hosts() {
    let place = Place::videos();
    let gpu = |more: &[&str]| planned(&place, &[MEDIUM, &["train.device=cuda", "train.dtype=f32"], more].concat());
    let host = |plan: &Value, what: &str| plan["host"][what].as_u64();
    let block = |element: u64| 8192 * 128 * 2 * element + 4 * 8192 * 4;
    let ram = gpu(&[]);
    assert_eq!(host(&ram, "stash, pinned"), Some(4 * block(4)));
    assert_eq!(host(&ram, "frames and prefetch queue"), Some(2 * 4 * 256 * 128 * 3));
    let names = |plan: &Value| -> Vec<String> {
        let phases = plan["phases"].as_array().unwrap().iter();
        phases.flat_map(|phase| phase["parts"].as_object().unwrap().keys().cloned().collect::<Vec<_>>()).collect()
    };
    assert!(names(&ram).iter().all(|name| !name.contains("packed") && !name.contains("queue")), "{:?}", names(&ram));
    assert!(names(&planned(&place, MEDIUM)).iter().any(|name| name.contains("packed")));
    assert_eq!(host(&planned(&place, MEDIUM), "stash, pinned"), None);
    assert_eq!(host(&gpu(&["stash.dtype=bf16"]), "stash, pinned"), Some(4 * block(2)));
    let disk = gpu(&["stash.where=disk"]);
    assert_eq!(disk["disk"][0].as_u64(), Some(4 * block(4)));
    assert_eq!((host(&disk, "stash, pinned"), host(&disk, "stash: staging, pinned")), (None, Some(64 << 20)));
    assert_eq!(disk["per_rank"], ram["per_rank"], "where blocks go to is no matter to the GPU");
    let two = gpu(&["parallel.ranks=2"]);
    assert!(two["per_rank"].as_u64() < ram["per_rank"].as_u64());
}

/// In f32 a GPU's attention is for checks, in bf16 it has kernels for heads of 64 to 128; what a run would refuse, its
/// plan refuses too.
#[test]
fn a_plan_for_a_gpu_refuses_what_it_cannot_train() {
    let place = Place::videos();
    let refused = |more: &[&str]| fail(&mut plan(&place, &[MEDIUM, &["train.device=cuda"], more].concat()));
    let error = refused(&["train.dtype=f32", "data.frames=5"]);
    assert!(
        error.contains("f32 on a GPU is for checks of up to 8192 tokens a rank, and this one has 10240"),
        "{error}"
    );
    assert!(error.contains("set train.dtype = \"bf16\""), "{error}");
    let error = refused(&[]);
    assert!(error.contains("bf16 on a GPU has heads of 64, 96 or 128 features, the network's have 32"), "{error}");
    let heads = ["model.num_attention_heads=2", "model.attention_head_dim=64"];
    planned(&place, &[MEDIUM, &["train.device=cuda", "data.frames=5"], &heads].concat());
}

#[test]
fn settings_change_the_need_as_they_should() {
    let place = Place::videos();
    fs::remove_dir_all(place.path("clips")).unwrap(); // a plan needs none
    let need = |more: &[&str]| planned(&place, &[MEDIUM, more].concat())["per_rank"].as_u64().unwrap();
    let deep = "model.num_layers=12"; // enough blocks for a stash elsewhere to pay
    let most = need(&[deep]);
    let changes = [
        "stash.where=disk",
        "stash.dtype=bf16",
        "stash.keep_attention=false",
        "parallel.head_groups=4",
        "--ranks=4",
        "data.frames=2",
    ];
    for less in changes {
        assert!(need(&[deep, less]) < most, "{less}: {} of {most}", need(&[deep, less]));
    }
    let two = planned(&place, &[MEDIUM, &["--ranks=2"]].concat());
    let parameters = two["parameters"].as_f64().unwrap();
    assert_eq!(two["sent"][2]["bytes"].as_f64().unwrap(), 4.0 * parameters); // half of it twice
    let mesh = &planned(&place, &[MEDIUM, &["--ranks=16", "parallel.data=2"]].concat())["mesh"];
    assert_eq!(mesh, &serde_json::json!({"data": 2, "ulysses": 4, "ring": 2})); // 4 heads
    let words = text(&succeed(&mut plan(&place, &[MEDIUM, &["--ranks=16", "parallel.data=2"]].concat())).stdout);
    assert!(words.contains("\n16 ranks: data 2 x Ulysses 4 x ring 2\n"), "{words}");
    let (n, d) = (8192.0, 128.0);
    assert_eq!(two["flop"]["attention"].as_f64().unwrap(), 4.0 * 3.5 * 4.0 * n * n * d);
}

#[test]
fn the_longest_clip_fits_and_one_more_frame_does_not() {
    let place = Place::videos();
    let memory: u64 = 400 << 20;
    let result = planned(&place, &[MEDIUM, &["--memory=400MiB"]].concat());
    let frames = result["longest_tokens"].as_u64().unwrap() / 2048;
    let need = |frames: u64| {
        let frames = format!("data.frames={frames}");
        planned(&place, &[MEDIUM, &[frames.as_str()]].concat())["per_rank"].as_u64().unwrap()
    };
    assert!(need(frames) <= memory && need(frames + 1) > memory, "{frames} frames: {}", need(frames));
    let mut small = plan(&place, &[MEDIUM, &["--memory=200MiB"]].concat());
    let out = text(&succeed(&mut small).stdout);
    assert!(out.contains("what would change it") && out.contains("longest clip"), "{out}");
}

#[test]
fn what_cannot_be_planned_is_refused() {
    let place = Place::videos();
    let error = fail(&mut plan(&place, &[MEDIUM, &["--memory=1MiB"]].concat()));
    assert!(error.starts_with("--memory 0.0010 GiB is too small for any clip") && error.contains("needs"), "{error}");
    let error = fail(&mut plan(&place, &[MEDIUM, &["parallel.head_groups=5"]].concat()));
    assert!(error.contains("parallel.head_groups = 5"), "{error}");
    let error = fail(&mut plan(&place, &["data.frames=3"]));
    assert!(error.contains("data.frames"), "{error}");
    let long =
        ["train.device=cuda", "train.dtype=f32", "train.batch=1000000", "train.tile=1048576", "model.ffn_dim=4096"];
    let error = fail(&mut plan(&place, &[MEDIUM, &long].concat()));
    assert!(
        error.contains("a tile of 1048576 rows of up to 4096 elements") && error.contains("to 0 or to 524288 at most"),
        "{error}"
    );
    let bad = plan(&place, &["--memory=lots"]).output().unwrap();
    assert!(bad.status.code() == Some(2) && text(&bad.stderr).contains("80GiB"), "{}", text(&bad.stderr));
}

#[test]
fn clips_beyond_the_last_step_are_not_counted() {
    let place = Place::videos();
    let frames = |args: &[&str]| {
        let json = planned(&place, &[MEDIUM, args].concat());
        json["phases"][0]["parts"]["frames and prefetch queue"].as_u64().unwrap()
    };
    let clip = 4 * 256 * 128 * 3;
    let steps = |n: u64| frames(&[&format!("train.steps={n}"), "data.prefetch=3"]);
    assert_eq!([1, 2, 4, 1000].map(steps), [1, 2, 4, 4].map(|clips| clips * clip));
    assert_eq!(frames(&["train.steps=1", "train.accumulate=2"]), 2 * clip);
}

#[test]
fn the_config_of_a_million_tokens_is_what_it_says() {
    let config = concat!(env!("CARGO_MANIFEST_DIR"), "/configs/million.toml");
    let mut command = longreel();
    command.args(["plan", config, "--tflops", "1", "--bandwidth", "10", "--json"]);
    let json: Value = serde_json::from_slice(&succeed(&mut command).stdout).unwrap();
    assert_eq!(json["tokens"], 292 * 45 * 80);
    assert!(json["tokens"].as_u64().unwrap() >= 1 << 20);
    assert_eq!(json["ranks"].as_array().unwrap().len(), 2);
    assert!(json["disk"][0].as_u64().unwrap() > 190 << 20, "the stash is not on disk");
    let clip = 292 * 720 * 1280 * 3;
    assert_eq!(json["phases"][0]["parts"]["frames and prefetch queue"], clip / 2, "a rank has more than its half");
}

#[test]
fn the_configs_for_large_images_are_planned() {
    let repository = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    let planned = |name: &str, args: &[&str]| -> Value {
        let mut command = longreel();
        command.arg("plan").arg(repository.join("configs").join(name)).args(["--tflops=1", "--bandwidth=10", "--json"]);
        serde_json::from_slice(&succeed(command.args(args)).stdout).unwrap()
    };
    let part = |plan: &Value, name: &str| plan["phases"][0]["parts"][name].as_u64().unwrap();
    for (name, tokens, bytes, images) in
        [("image-4k.toml", 32_400, 3840 * 2160 * 3, 3), ("image-16k.toml", 518_400, 15360 * 8640 * 3, 2)]
    {
        let one = planned(name, &["--ranks=1"]);
        assert_eq!(one["tokens"].as_u64(), Some(tokens));
        assert_eq!(part(&one, "frames and prefetch queue"), images * bytes);
        // A rank of four holds a quarter of the lines, and where a line of patches is shared, that one too.
        let quarter = part(&planned(name, &["--ranks=4", "--set=parallel.head_groups=1"]), "frames and prefetch queue")
            as f64
            / (images * bytes) as f64;
        assert!((0.25..0.26).contains(&quarter), "{name}: {quarter}");
        assert!(planned(name, &[])["per_rank"].as_u64().unwrap() < 4 << 30);
    }
}
