//! The bundle for a machine with a GPU: what `pack.sh` puts into it, and what its `run.sh` does there, with stand-ins
//! for longreel, its GPU tests, torch and the kernels' checks (tests/bundle/). The true ones run on an emulated driver:
//! scripts/gpu-rehearsal.sh.

mod ends;
mod trouble;

use serde_json::Value;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use tempfile::TempDir;

use crate::train::text;

pub fn repository(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

/// A small repository with the bundle in it, an empty folder for results, and one that tells the stand-ins what goes
/// wrong.
pub struct Machine {
    temp: TempDir,
}

impl Machine {
    /// Packs the stand-ins.
    pub fn new() -> Self {
        let machine = Self { temp: TempDir::new().unwrap() };
        for folder in
            ["tree/configs", "tree/datasets/bbb", "tree/tests/golden", "out", "stand-in", "libraries", "cubins"]
        {
            fs::create_dir_all(machine.path(folder)).unwrap();
        }
        fs::write(machine.path("tree/configs/demo.toml"), "").unwrap();
        fs::write(machine.path("tree/configs/film.toml"), "").unwrap();
        fs::write(machine.path("libraries/libffmpeg.so.1"), "").unwrap();
        fs::write(machine.path("cubins/adamw.cubin"), "").unwrap();
        let packed = machine.pack(&[], &repository("tests/bundle/longreel"));
        assert!(packed.status.success(), "{}", text(&packed.stderr));
        // The kernels' checks have tests of their own.
        fs::copy(repository("tests/bundle/kernels.py"), machine.path("tree/target/bundle/kernels.py")).unwrap();
        fs::create_dir_all(machine.path("tree/target/bundle/cubins")).unwrap();
        machine
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.temp.path().join(name)
    }

    /// Packs `longreel` and the stand-in for its GPU tests.
    pub fn pack(&self, more: &[&str], longreel: &Path) -> Output {
        let mut command = Command::new(repository("scripts/bundle/pack.sh"));
        command.args(more).args([longreel, &repository("tests/bundle/gpu-tests")]);
        command.args(["libraries", "cubins", "tree/target/bundle"].map(|name| self.path(name))).output().unwrap()
    }

    /// Says what goes wrong.
    pub fn wrong(self, name: &str) -> Self {
        fs::write(self.path("stand-in").join(name), "").unwrap();
        self
    }

    /// `run.sh` in an environment of nothing but the results' folder and the Python that these tests found.
    pub fn run_sh(&self, parts: &[&str]) -> Command {
        let python = Command::new("python3").args(["-c", "import sys; print(sys.executable)"]).output().unwrap();
        let mut command = Command::new(self.path("tree/target/bundle/run.sh"));
        command.env_clear().args(parts).env("OUT", self.path("out")).env("STAND_IN", self.path("stand-in"));
        command.env("PYTHON", text(&python.stdout).trim()).env("PYTHONPATH", repository("tests/bundle/packages"));
        command.env("ATTENTION_TOKENS", "512 1024").stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    pub fn run(&self, parts: &[&str]) -> Output {
        self.run_sh(parts).output().unwrap()
    }

    pub fn report(&self) -> Value {
        serde_json::from_str(&self.read("out/report.json")).unwrap()
    }

    pub fn read(&self, name: &str) -> String {
        fs::read_to_string(self.path(name)).unwrap_or_else(|e| panic!("{name}: {e}"))
    }

    /// Names and reasons of what failed, a line each.
    pub fn failures(&self) -> Vec<String> {
        let words = |line: &Value| format!("{}: {}", line["name"].as_str().unwrap(), line["why"].as_str().unwrap());
        self.report()["failures"].as_array().unwrap().iter().map(words).collect()
    }
}

/// The values of `key` in an array of a report.
pub fn each(report: &Value, array: &str, key: &str) -> Vec<Value> {
    report[array].as_array().unwrap().iter().map(|line| line[key].clone()).collect()
}

#[test]
fn all_parts_leave_a_report_of_few_files() {
    let machine = Machine::new();
    let done = machine.run(&[]);
    assert_eq!(done.status.code(), Some(1), "one of the tests fails: {}", text(&done.stderr));
    let report = machine.report();
    assert_eq!(machine.failures(), [""; 0]);
    assert_eq!(each(&report, "parts", "name"), ["kernels", "checks", "attention", "step"]);
    assert_eq!(report["kernels"].as_array().unwrap().len(), 3);
    let tests = ["attention_is_right", "gradients_are_right", "ranks_agree", "hangs"];
    assert_eq!(each(&report, "checks", "name"), tests);
    assert_eq!(each(&report, "checks", "state"), ["passed", "FAILED", "skipped", "passed"]);
    assert_eq!(each(&report, "checks", "why"), ["", "off by \"1e-3\"", "one GPU is one rank", ""]);
    let demo = &report["demo"];
    assert_eq!((&demo["state"], &demo["first_loss"], &demo["last_loss"]), (&"passed".into(), &2.into(), &1.into()));
    assert_eq!(each(&report, "attention", "tokens"), [512, 512, 1024, 1024]);
    assert_eq!(each(&report, "attention_torch", "backend"), ["flash", "cudnn"].repeat(4));
    assert_eq!(each(&report, "step", "tokens"), [8192, 32768, 131_072, 262_144, 524_288, 1_048_576]);

    let mut files: Vec<String> = fs::read_dir(machine.path("out"))
        .unwrap()
        .map(|entry| entry.unwrap())
        .inspect(|entry| assert!(entry.file_type().unwrap().is_file(), "{entry:?}"))
        .map(|entry| entry.file_name().into_string().unwrap())
        .collect();
    files.sort();
    let expected =
        ["kernels.jsonl", "log.txt", "report.json", "report.md", "results.jsonl", "samples.png", "tests.txt"];
    assert_eq!(files, expected);
    // The table comes last, as the beginning of what is printed may be cut off.
    assert!(text(&done.stdout).ends_with(&machine.read("out/report.md")), "{}", text(&done.stdout));
    assert!(text(&done.stdout).len() < 12_000, "{}", text(&done.stdout));
    for words in [
        "| attention, forward and backward, 1024 tokens, 12 heads of 128 | 350 | TFLOP/s |",
        "| attention, forward and backward, of the products' rate | 43.75 | % |",
        "| products in bf16 | 800 | TFLOP/s |",
        "| the GPU's memory, read and written | 4000 | GB/s |",
        "`longreel plan CONFIG.toml --tflops 300`",
        "200 steps in",
        "loss 2 to 1",
    ] {
        assert!(machine.read("out/report.md").contains(words), "{words} in {}", machine.read("out/report.md"));
    }
}

#[test]
fn processes_share_compiled_kernels_and_nothing_odd_of_the_environment() {
    let machine = Machine::new();
    let mut command = machine.run_sh(&["checks"]);
    for odd in
        ["NVIDIA_TF32_OVERRIDE", "CUBLAS_EMULATION_STRATEGY", "CUDA_LAUNCH_BLOCKING", "CUDA_CACHE_DISABLE", "RANK"]
    {
        command.env(odd, "1");
    }
    command.env("CUDA_VISIBLE_DEVICES", "0").output().unwrap();
    let seen = machine.read("stand-in/env");
    let value = |name: &str| seen.lines().find_map(|line| line.strip_prefix(&format!("{name}=")));
    let cache = machine.path("tree/target/bundle/cache");
    assert_eq!(value("CUDA_CACHE_PATH"), Some(cache.to_str().unwrap()));
    assert_eq!(value("CUDA_CACHE_MAXSIZE"), Some("1073741824"));
    assert_eq!(value("CUDA_DEVICE_MAX_CONNECTIONS"), Some("32"));
    assert_eq!(value("PYTHONUNBUFFERED"), Some("1"));
    assert_eq!(value("CUDA_VISIBLE_DEVICES"), Some("0"), "it is the user's choice of a GPU");
    for odd in
        ["NVIDIA_TF32_OVERRIDE", "CUBLAS_EMULATION_STRATEGY", "CUDA_LAUNCH_BLOCKING", "CUDA_CACHE_DISABLE", "RANK"]
    {
        assert_eq!(value(odd), None, "{odd}");
    }
}

#[test]
fn pytorch_starts_once_names_its_backends_and_keeps_its_own_libraries() {
    let machine = Machine::new().wrong("no-cudnn");
    let packages = machine.path("python/site-packages");
    fs::create_dir_all(packages.join("nvidia/cu13/lib")).unwrap();
    let packages = format!("{}:{}", packages.display(), repository("tests/bundle/packages").display());
    let mut command = machine.run_sh(&["attention"]);
    let done = command.env("LD_LIBRARY_PATH", "/nowhere").env("PYTHONPATH", packages).output().unwrap();
    assert_eq!(done.status.code(), Some(1), "{}", text(&done.stderr));
    assert_eq!(machine.read("stand-in/torch"), "imported with LD_LIBRARY_PATH=/nowhere\n");
    assert!(machine.read("stand-in/env").contains("LD_LIBRARY_PATH=/nowhere:"));
    let report = machine.report();
    let errors = each(&report, "attention_torch", "error");
    assert_eq!(
        errors.iter().filter(|error| **error == "No available kernel. Aborting execution.").count(),
        4,
        "{report}"
    );
    assert_eq!(errors.iter().filter(|error| error.is_null()).count(), 4, "FlashAttention is measured all the same");
    let backends = machine.read("stand-in/backends");
    assert!(backends.lines().all(|name| ["flash", "cudnn"].contains(&name)), "{backends}");
}

#[test]
fn packed_for_the_repository_or_to_be_alone() {
    let machine = Machine::new();
    let longreel = repository("tests/bundle/longreel");
    let packed = machine.pack(&[], &longreel);
    assert!(text(&packed.stdout).contains("MiB of tracked files"), "{}", text(&packed.stdout));
    let bundle = machine.path("tree/target/bundle");
    for name in ["configs", "datasets", "tests"] {
        assert!(!bundle.join(name).exists(), "the repository has {name}");
    }
    machine.run(&["checks"]);
    assert_eq!(machine.read("stand-in/root").trim(), machine.path("tree").to_str().unwrap());

    assert!(machine.pack(&["--alone"], &longreel).status.success());
    for name in [
        "configs/demo.toml",
        "configs/film.toml",
        "datasets/bbb/heldout",
        "datasets/README.md",
        "tests/golden/batch/inputs.safetensors",
    ] {
        assert!(bundle.join(name).exists(), "{name}");
    }
    machine.run(&["checks"]);
    assert_eq!(machine.read("stand-in/root").trim(), bundle.to_str().unwrap(), "the bundle's own are of its commit");
}

#[test]
fn a_bundle_that_is_too_large_to_travel_is_an_error() {
    let machine = Machine::new();
    let longreel = repository("tests/bundle/longreel");
    for (alone, mib) in [(&["--alone"][..], 54), (&[], 52)] {
        fs::File::create(machine.path("libraries/liblarge.so.1")).unwrap().set_len(mib << 20).unwrap();
        let packed = machine.pack(alone, &longreel);
        assert_eq!(packed.status.code(), Some(1), "{alone:?}");
        assert!(text(&packed.stderr).contains("so it does not travel"), "{}", text(&packed.stderr));
    }
}
