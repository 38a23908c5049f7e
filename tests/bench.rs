//! Tests `longreel bench` on tiny shapes: every kind runs, says what it measured and refuses what it cannot; and the
//! scripts of benches/ that put it beside PyTorch, without PyTorch.

use crate::train::{fail, longreel, succeed, text};
use longreel::simd::{self, Isa};
use serde_json::{Value, json};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

const ATTENTION: &[&str] = &["attention", "--tokens", "70", "--heads", "2", "--head-dim", "16", "--runs", "2"];
const LINEAR: &[&str] = &["linear", "--tokens", "70", "--in", "32", "--out", "48", "--runs", "2", "--tile", "32"];
const SHAPE: &[&str] = &["--frames", "4", "--height", "32", "--width", "32", "--heads", "3", "--head-dim", "16"];

fn bench(args: &[&str]) -> Command {
    let mut command = longreel();
    command.arg("bench").args(args);
    command
}

/// The one line that `--json` prints.
fn measured(args: &[&str]) -> Value {
    let out = text(&succeed(bench(args).arg("--json")).stdout);
    assert_eq!(out.lines().count(), 1, "{out}");
    serde_json::from_str(&out).unwrap()
}

fn number(result: &Value, key: &str) -> f64 {
    result[key].as_f64().unwrap_or_else(|| panic!("no number {key} in {result}"))
}

/// Checks the facts, and for each pass that seconds, GFLOP/s and share belong to `flop`.
fn check(result: &Value, facts: Value, passes: &[(&str, f64)]) {
    for (key, value) in facts.as_object().unwrap() {
        assert_eq!(&result[key], value, "{key} in {result}");
    }
    for (key, flop) in passes {
        let [seconds, rate, share] = ["s", "gflops", "share"].map(|part| number(result, &format!("{key}_{part}")));
        assert!(seconds > 0.0 && seconds < 60.0, "{result}");
        assert!((seconds * rate * 1e9 / flop - 1.0).abs() < 1e-6, "{key}: {flop} operations in {result}");
        assert!((share * number(result, "peak_gflops") / rate - 1.0).abs() < 1e-6 && share < 3.0, "{key} in {result}");
    }
    assert!((0.001..4.0).contains(&number(result, "peak_rss_gib")), "{result}");
}

#[test]
fn bench_attention_runs_in_both_dtypes_on_every_isa() {
    for path in Isa::ALL.into_iter().filter(|path| path.is_available()) {
        for dtype in ["f32", "bf16"] {
            let args = [ATTENTION, &["--dtype", dtype, "--path", path.name(), "--threads", "1"]].concat();
            let facts = json!({
                "what": "attention", "tokens": 70, "heads": 2, "head_dim": 16, "dtype": dtype,
                "threads": 1, "path": path.name(),
            });
            let flop = 4.0 * 70.0 * 70.0 * 32.0;
            check(&measured(&args), facts, &[("fwd", flop), ("fwdbwd", 3.5 * flop)]);
        }
    }
    let best = measured(&[ATTENTION, &["--threads", "3"]].concat());
    assert_eq!((&best["path"], &best["threads"]), (&json!(Isa::best().name()), &json!(3)));
}

#[test]
fn bench_linear_counts_its_operations() {
    for dtype in ["f32", "bf16"] {
        let facts = json!({"what": "linear", "tokens": 70, "in": 32, "out": 48, "dtype": dtype, "tile": 32});
        let flop = 2.0 * 70.0 * 32.0 * 48.0;
        check(&measured(&[LINEAR, &["--dtype", dtype]].concat()), facts, &[("fwd", flop), ("fwdbwd", 3.0 * flop)]);
    }
}

#[test]
fn bench_vae_reports_both_halves() {
    for (half, dtype, flop) in [("encode", "f32", 5.0e6), ("decode", "bf16", 8.0e6)] {
        let size = ["--frames", "5", "--height", "32", "--width", "16", "--threads", "2"];
        let result = measured(&[&["vae", "--half", half, "--dtype", dtype][..], &size].concat());
        let facts = json!({"what": "vae", "half": half, "kind": "2.1", "frames": 5, "height": 32, "dtype": dtype, "threads": 2});
        let done = number(&result, "fwd_s") * number(&result, "fwd_gflops") * 1e9;
        check(&result, facts, &[("fwd", done)]);
        // Counted from the layers, for each pixel; the first frame's are counted as the others'.
        assert!((done / (5.0 * 32.0 * 16.0 * flop) - 1.0).abs() < 0.1, "{result}");
    }
    let stages = measured(&["vae", "--stages", "--height", "32", "--width", "16", "--threads", "2"]);
    for (side, channels) in [(1, 96.0), (2, 192.0), (4, 384.0), (8, 384.0)] {
        let [seconds, rate] = ["s", "gflops"].map(|what| number(&stages, &format!("side_{side}_{what}")));
        let flop = 2.0 * 2.0 * 27.0 * channels * channels * f64::from(512 / (side * side));
        assert!((seconds * rate * 1e9 / flop - 1.0).abs() < 1e-6, "{stages}");
    }
    let error = fail(&mut bench(&["vae", "--frames", "6"]));
    assert!(error.contains("frames"), "{error}");
}

#[test]
fn bench_text_counts_its_products_and_scores() {
    let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/text/text_encoder");
    let model = model.to_str().unwrap();
    let result = measured(&["text", "--model", model, "--prompts", "3", "--tokens", "7", "--threads", "2"]);
    let facts =
        json!({"what": "text", "layers": 3, "dim": 32, "prompts": 3, "tokens": 7, "dtype": "f32", "threads": 2});
    let layer = 4.0 * 32.0 * 48.0 + 3.0 * 32.0 * 40.0 + 2.0 * 32.0 + 32.0 * 6.0; // products, norms, biases
    let scores = 3.0 * 2.0 * 7.0 * 48.0;
    check(&result, facts, &[("fwd", 2.0 * 21.0 * (3.0 * layer + 32.0 + scores))]);
    for part in ["reading_s", "packing_s", "attention_s"] {
        assert!((1e-9..=number(&result, "fwd_s")).contains(&number(&result, part)), "{part} in {result}");
    }
}

#[test]
fn bench_block_and_step_report_their_speed() {
    let (n, d) = (1024.0, 48.0);
    let (attention, linears) = (4.0 * n * n * d, 2.0 * n * (6.0 * d * d + 2.0 * 4.0 * d * d));
    let facts = json!({"tokens": 1024, "dim": 48, "heads": 3, "head_dim": 16, "dtype": "bf16", "layers": 1});
    let both = 3.5 * attention + 3.0 * linears;
    check(
        &measured(&[&["block", "--runs", "9"], SHAPE].concat()),
        facts,
        &[("fwd", attention + linears), ("fwdbwd", both)],
    );

    let ends = 3.0 * 2.0 * n * 128.0 * d;
    for (ranks, warmup) in [(1, "1"), (3, "0")] {
        let more = ["--layers", "2", "--steps", "1", "--threads", "2", "--dtype", "f32"];
        let setting = ["--ranks", &ranks.to_string(), "--warmup", warmup];
        let result = measured(&[&["step"], SHAPE, &more, &setting].concat());
        let facts = json!({
            "what": "step", "tokens": 1024, "layers": 2, "dim": 48, "heads": 3, "head_dim": 16, "dtype": "f32",
            "ranks": ranks, "threads": 2,
        });
        check(&result, facts, &[("step", 2.0 * both + ends)]);
        let [step, attention, update] = ["step_s", "attention_s", "update_s"].map(|key| number(&result, key));
        assert!(attention > 0.0 && update > 0.0 && attention + update < step, "{result}");
        assert!((number(&result, "tokens_per_s") * step / 1024.0 - 1.0).abs() < 1e-6, "{result}");
        assert!((0.5..2.0).contains(&number(&result, "loss")), "{result}");
    }
}

#[test]
fn bench_peak_reports_the_machine() {
    let peak = measured(&["peak", "--threads", "2"]);
    assert_eq!((&peak["path"], &peak["threads"]), (&json!(Isa::best().name()), &json!(2)));
    for key in ["f32_gflops_1", "f32_gflops", "bf16_gflops_1", "bf16_gflops", "copy_gb_s"] {
        assert!((0.1..20_000.0).contains(&number(&peak, key)), "{peak}");
    }
}

/// Freed tensors stay with the process: after the first steps none is fetched from the system anew. Of some thousands,
/// were nothing kept. Two ranks meet otherwise in each of the first steps, so that a little more is in use at once than
/// before.
#[test]
fn steady_step_makes_few_page_faults() {
    for (ranks, frames, warmup) in [("1", "8", "2"), ("2", "4", "16")] {
        let shape = ["step", "--frames", frames, "--height", "32", "--width", "32", "--layers", "2"];
        let step =
            measured(&[&shape[..], &["--ranks", ranks, "--threads", "1", "--warmup", warmup, "--steps", "5"]].concat());
        assert!(number(&step, "faults") <= 20.0, "{step}");
    }
}

#[test]
fn bench_prints_a_table_without_json() {
    for (args, words) in [
        (ATTENTION, &["attention: tokens 70, heads 2", "GFLOP/s", "forward+backward", "peak", "memory at most"][..]),
        (&["peak"], &["f32, one thread, GFLOP/s", "copying memory, GB/s"]),
    ] {
        let table = text(&succeed(&mut bench(args)).stdout);
        assert!(words.iter().all(|word| table.contains(word)) && !table.contains('{'), "{table}");
        assert!(table.lines().count() < 10 && table.lines().all(|line| line.len() <= 100), "{table}");
    }
}

/// A CPU of any age, as far as this one (or a mask on the whole test run) goes.
#[test]
fn masked_features_are_not_used() {
    assert!(Isa::allowed().is_ok(), "{} of the tests themselves", simd::CPU_VARIABLE);
    for newest in Isa::ALL.into_iter().filter(|&path| path >= Isa::Portable && path.is_available()) {
        let masked = |args: &[&str]| {
            let mut command = bench(args);
            command.env(simd::CPU_VARIABLE, newest.name());
            command
        };
        let best = succeed(&mut masked(&[ATTENTION, &["--json"]].concat()));
        assert_eq!(serde_json::from_slice::<Value>(&best.stdout).unwrap()["path"], newest.name());
        let here: Vec<_> = Isa::ALL.into_iter().filter(|&path| path <= newest).map(Isa::name).collect();
        let error = fail(&mut masked(&["attention", "--path", "mmx"]));
        assert!(error.ends_with(&format!("this CPU can run {}", here.join(", "))), "{error}");
        for newer in Isa::ALL.into_iter().filter(|&path| path > newest) {
            let error = fail(&mut masked(&["attention", "--path", newer.name()]));
            assert!(error.contains("this CPU lacks its features"), "{error}");
        }
    }
    for wrong in ["mmx", "tiles", "AVX2"] {
        let output = bench(ATTENTION).env(simd::CPU_VARIABLE, wrong).output().unwrap();
        let expected = format!(
            "error: LONGREEL_CPU=\"{wrong}\": must be one of portable, avx2, avx512, avx512-bf16, amx, or unset\n"
        );
        assert_eq!((text(&output.stderr), output.status.code()), (expected, Some(2)));
    }
}

/// Where nothing is masked: bf16's instructions are slower than f32's on Intel's CPUs, but for AMX's.
#[test]
fn intels_without_amx_widen_bf16() {
    let cpu = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let has = |word: &str| cpu.split_whitespace().any(|other| other == word);
    if !has("avx512_bf16") || has("amx_bf16") {
        return;
    }
    let best = succeed(bench(&[ATTENTION, &["--json"]].concat()).env_remove(simd::CPU_VARIABLE));
    let path = if has("GenuineIntel") { "avx512" } else { "avx512-bf16" };
    assert_eq!(serde_json::from_slice::<Value>(&best.stdout).unwrap()["path"], path);
}

#[test]
fn unmeasurable_bench_is_an_error() {
    let available: Vec<_> = Isa::ALL.into_iter().filter(|path| path.is_available()).map(Isa::name).collect();
    let available = available.join(", ");
    let no_path = format!("--path mmx: no such path; this CPU can run {available}");
    for (args, expected) in [
        (&["attention", "--path", "mmx"][..], no_path.as_str()),
        (&["attention", "--tokens", "8", "--head-dim", "12"], "the head dim is 12; it must be a multiple of 8"),
        (&["peak", "--device", "cuda"], "--device is \"cuda\", but this longreel was built without CUDA"),
        (&["step", "--height", "9"], "height 9 is not a multiple of the patch's 2"),
        (&["block", "--head-dim", "4"], "attention_head_dim is 4"),
        (
            &["step", "--ranks", "3", "--frames", "1", "--height", "2", "--width", "4"],
            "3 sequence-parallel ranks cannot share",
        ),
    ] {
        let error = fail(&mut bench(args));
        assert!(error.contains(expected), "{args:?}: {error}");
    }
    for path in Isa::ALL.into_iter().filter(|path| !path.is_available()) {
        let error = fail(&mut bench(&["attention", "--path", path.name()]));
        let expected = format!("--path {}: this CPU lacks its features; it can run {available}", path.name());
        assert!(error.ends_with(&expected), "{error}");
    }
    for args in
        [&["attention", "--tokens", "0"][..], &["linear", "--dtype", "f64"], &["attention", "--threads", "none"]]
    {
        let output = bench(args).output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{args:?}");
        assert_eq!(text(&output.stderr).matches("error: ").count(), 1, "{args:?}");
    }
}

fn compare(args: &[&str]) -> Output {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/compare.py");
    Command::new("python3").arg("-B").arg(script).args(args).output().expect("python3 runs")
}

/// A file of results of one work: (ours, theirs) forward and (ours, theirs) forward+backward, a round each.
fn results(path: PathBuf, tokens: usize, rounds: &[[f64; 4]]) -> String {
    let side = |fwd: f64, both: f64, tokens: usize| {
        let shape = json!({"tokens": tokens, "heads": 6, "head_dim": 64, "dtype": "bf16", "threads": 2});
        let mut result = shape.as_object().unwrap().clone();
        result.extend([("fwd_s".to_owned(), json!(fwd)), ("fwdbwd_s".to_owned(), json!(both))]);
        Value::Object(result)
    };
    let pairs: Vec<Value> = rounds
        .iter()
        .map(|r| json!({"load": 0.1, "ours": side(r[0], r[2], 8192), "theirs": side(r[1], r[3], tokens)}))
        .collect();
    let work =
        json!({"date": "2026-01-02", "commit": "abc", "cpu": "A CPU", "processors": 2, "torch": "9", "pairs": pairs});
    let all = json!({"quick": false, "works": {"attention-8192x6x64-bf16": work}});
    fs::write(&path, all.to_string()).unwrap();
    path.to_str().unwrap().to_owned()
}

#[test]
fn the_comparison_takes_the_median_of_ratios() {
    let folder = tempfile::tempdir().unwrap();
    // The medians are 1 and 3, their ratio is 3; the median of the ratios is 2.
    let rounds = [[1.0, 2.0, 2.0, 3.0], [0.5, 3.0, 2.0, 3.2], [4.0, 4.0, 2.0, 3.4]];
    let file = results(folder.path().join("results.json"), 8192, &rounds);
    let done = compare(&["--report", "--json", &file]);
    assert!(done.status.success(), "{}", text(&done.stderr));
    let table = text(&done.stdout);
    let rows: Vec<&str> = table.lines().filter(|line| line.starts_with("| attention")).collect();
    let work = "| attention, 8192 tokens, 6 heads of 64, bf16, ";
    let expected = [
        "forward | 1 s | 3 s | 2.00 (1.00 to 6.00) | 2 | yes |",
        "forward+backward | 2 s | 3.2 s | 1.60 (1.50 to 1.70) | 1.7 | no |",
    ];
    assert_eq!(rows, expected.map(|row| format!("{work}{row}")));
    assert!(table.contains("A CPU, 2 processors; 2026-01-02; commit abc; PyTorch 9; medians of at least 3 rounds"));

    let other = results(folder.path().join("other.json"), 4096, &rounds);
    for (args, expected) in [
        (&["--report", "--json", &other][..], "not the same work: tokens is 8192 in ours and 4096 in theirs"),
        (&["--report", "--json", "/nowhere.json"], "/nowhere.json"),
        (&["--report", "--json", &file, "--rows", "linear"], "has none of these rows"),
        (&["--report"], "name the file of results with --json"),
        (&["--rows", "fly"], "--rows fly: no such row; --list has all"),
        (&["--pairs", "0"], "--pairs must be at least 1"),
    ] {
        let failed = compare(args);
        let error = text(&failed.stderr);
        assert!(!failed.status.success() && error.contains(expected), "{args:?}: {error}");
        assert!(error.starts_with("compare.py: ") && error.lines().count() == 1, "{error}");
    }
    let list = text(&compare(&["--list"]).stdout);
    assert_eq!(list.lines().count(), 40);
    assert!(list.contains("step-32768-2ranks-bf16-step"), "{list}");
}
