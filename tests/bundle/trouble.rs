//! What may be wrong with a machine: each is one clear error, in the report too, and what can be done without is done.

use super::{Machine, repository};
use crate::train::text;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

fn cc(args: &[&str], source: &str, out: &Path) {
    let file = out.with_file_name("source.c");
    fs::write(&file, source).unwrap();
    let done = Command::new("cc").arg(&file).args(args).arg("-o").arg(out).output().unwrap();
    assert!(done.status.success(), "{}", text(&done.stderr));
}

/// A library of this name with nothing but one function.
fn library(folder: &Path, soname: &str, function: &str) {
    fs::create_dir_all(folder).unwrap();
    let soname_flag = format!("-Wl,-soname,{soname}");
    cc(&["-shared", "-fPIC", &soname_flag], &format!("void {function}(void) {{}}\n"), &folder.join(soname));
}

/// A program that needs these libraries, one function of each, and then does what the stand-in for longreel does.
fn program(machine: &Machine) -> PathBuf {
    let build = machine.path("build");
    let libraries = [("libcuda.so.1", "driver"), ("libcublas.so.13", "blas"), ("libcurand.so.10", "random_numbers")];
    for (soname, function) in libraries {
        library(&build, soname, function);
    }
    let calls: String = libraries.iter().map(|(_, function)| format!("{function}(); ")).collect();
    let longreel = repository("tests/bundle/longreel");
    let source = format!(
        "#include <unistd.h>\nvoid driver(void), blas(void), random_numbers(void);\n\
         int main(int n, char **arguments) {{ {calls}return n ? execv(\"{}\", arguments) : 1; }}\n",
        longreel.display()
    );
    let out = build.join("longreel");
    let build = build.to_str().unwrap();
    cc(&["-L", build, "-Wl,-z,now", "-l:libcuda.so.1", "-l:libcublas.so.13", "-l:libcurand.so.10"], &source, &out);
    out
}

/// A bundle whose longreel is a program that needs CUDA's libraries; nothing of them is on the machine.
fn machine() -> Machine {
    let machine = Machine::new();
    let program = program(&machine);
    assert!(machine.pack(&[], &program).status.success());
    machine
}

/// The folder where Python packages have their libraries.
fn packages(machine: &Machine, package: &str) -> PathBuf {
    machine.path(&format!("python/site-packages/nvidia/{package}/lib"))
}

/// The one failure after the parts ran with those packages.
fn failure(machine: &Machine, parts: &[&str]) -> String {
    let mut command = machine.run_sh(parts);
    let found =
        format!("{}:{}", machine.path("python/site-packages").display(), repository("tests/bundle/packages").display());
    let done = command.env("PYTHONPATH", found).output().unwrap();
    let failures = machine.failures();
    match &failures[..] {
        [] => assert_eq!(done.status.code(), Some(0), "{}", text(&done.stderr)),
        _ => assert_eq!(done.status.code(), Some(1), "{}", text(&done.stderr)),
    }
    assert!(failures.len() <= 1, "{failures:#?}");
    failures.into_iter().next().unwrap_or_default()
}

#[test]
fn libraries_are_found_in_pythons_packages_and_beside_what_is_set() {
    let machine = machine();
    library(&packages(&machine, "cu13"), "libcublas.so.13", "blas");
    library(&packages(&machine, "curand"), "libcurand.so.10", "random_numbers");
    library(&machine.path("driver"), "libcuda.so.1", "driver");
    let mut command = machine.run_sh(&["attention"]);
    let found =
        format!("{}:{}", machine.path("python/site-packages").display(), repository("tests/bundle/packages").display());
    command.env("PYTHONPATH", found).env("LD_LIBRARY_PATH", machine.path("driver"));
    let done = command.output().unwrap();
    assert!(done.status.success(), "{}", text(&done.stderr));
    let set = machine.path("driver");
    let first = format!("LD_LIBRARY_PATH={}:", set.display());
    assert!(machine.read("stand-in/env").contains(&first), "what is set comes first");
}

#[test]
fn without_a_driver_one_error_says_what_was_looked_for_and_where() {
    let machine = machine();
    library(&packages(&machine, "cu13"), "libcublas.so.13", "blas");
    library(&packages(&machine, "cu13"), "libcurand.so.10", "random_numbers");
    let failure = failure(&machine, &["checks", "attention", "step"]);
    let start = "start: longreel does not start: libcuda.so.1 is not found (NVIDIA's driver brings it, 580 or newer). Looked in the \
                 loader's own folders, ";
    assert!(failure.starts_with(start), "{failure}");
    let packages = packages(&machine, "cu13");
    for place in [packages.to_str().unwrap(), "/usr/local/cuda/lib64", "/usr/local/nvidia/lib64"] {
        assert!(failure.contains(place), "{place} in {failure}");
    }
    assert!(!failure.contains("libcublas.so.13 is not found"), "{failure}");
}

#[test]
fn a_library_that_is_missing_or_of_another_version_is_named() {
    let machine = machine();
    library(&machine.path("python/site-packages/nvidia/cu12/lib"), "libcublas.so.12", "blas");
    let failure = failure(&machine, &["step"]);
    let other = machine.path("python/site-packages/nvidia/cu12/lib/libcublas.so.12");
    let words = format!("libcublas.so.13 is not found, only another version: {} (CUDA 13 has it", other.display());
    assert!(failure.contains(&words), "{failure}");
    assert!(failure.contains("libcurand.so.10 is not found (CUDA 13 has it"), "{failure}");
}

#[test]
fn a_library_that_lacks_a_function_is_told_as_the_loader_tells_it() {
    let machine = machine();
    library(&packages(&machine, "cu13"), "libcublas.so.13", "blas");
    library(&packages(&machine, "cu13"), "libcurand.so.10", "random_numbers");
    library(&packages(&machine, "driver"), "libcuda.so.1", "an_older_driver");
    let failure = failure(&machine, &["step"]);
    let old = packages(&machine, "driver").join("libcuda.so.1");
    for words in ["undefined symbol: driver", "a driver of 580 or newer", old.to_str().unwrap()] {
        assert!(failure.contains(words), "{words} in {failure}");
    }
}

#[test]
fn without_longreel_the_kernels_are_checked_all_the_same() {
    let machine = machine();
    fs::copy(repository("tests/bundle/kernels.py"), machine.path("tree/target/bundle/kernels.py")).unwrap();
    fs::create_dir_all(machine.path("tree/target/bundle/cubins")).unwrap();
    let failure = failure(&machine, &["checks", "kernels"]);
    assert!(failure.starts_with("start: longreel does not start: "), "{failure}");
    assert!(machine.read("out/report.md").contains("2 results of 2 kernels, 0 wrong."));
}

#[test]
fn a_driver_without_a_gpu_is_one_error() {
    let machine = Machine::new().wrong("no-gpu");
    let failure = failure(&machine, &["checks", "attention", "step"]);
    let expected = "start: longreel starts, but computes on no GPU: error: --device is \"cuda\", but no GPU can be used: \
                    CUDA_ERROR_NO_DEVICE";
    assert!(failure.starts_with(expected), "{failure}");
}

#[test]
fn wrong_kernels_and_a_bundle_without_them_are_said() {
    let machine = Machine::new().wrong("wrong-kernel");
    assert!(
        failure(&machine, &["kernels"]).starts_with("kernels: FAILED: the budget is 5"),
        "{:?}",
        machine.failures()
    );
    let report = machine.read("out/report.md");
    assert!(
        report.contains("2 results of 2 kernels, 1 wrong.\n\n- WRONG: 7 gelu_forward_f32 y: 0.5 over 1e-06"),
        "{report}"
    );

    let machine = Machine::new();
    assert_eq!(failure(&machine, &["kernels", "step"]), "");
    assert!(machine.read("out/log.txt").contains("the budget is 25"), "half of 528 s but for 5: the step has the rest");
    for missing in ["cubins", "kernels.py"] {
        let machine = Machine::new();
        let path = machine.path("tree/target/bundle").join(missing);
        if missing == "cubins" { fs::remove_dir_all(path) } else { fs::remove_file(path) }.unwrap();
        assert_eq!(failure(&machine, &["kernels"]), "kernels: this bundle has no kernels.py with cubins/");
    }
}

#[test]
fn a_gpu_that_does_not_answer_is_one_error_in_time() {
    let machine = Machine::new().wrong("hang-peak");
    let start = Instant::now();
    let done = machine.run_sh(&["checks", "step"]).env("BUDGET", "10").output().unwrap();
    assert!(start.elapsed() < Duration::from_secs(30), "{:?}", start.elapsed());
    assert_eq!(done.status.code(), Some(1), "{}", text(&done.stderr));
    let failures = machine.failures();
    assert!(
        failures[0].starts_with("start: longreel starts, but the GPU (")
            && failures[0].ends_with("has not answered in time")
    );
    assert_eq!(failures[1..], ["step: no time was left"]);
}

#[test]
fn without_a_tree_or_a_python_what_can_be_done_is_done() {
    let machine = Machine::new();
    fs::remove_file(machine.path("tree/configs/demo.toml")).unwrap();
    let failure = failure(&machine, &["checks"]);
    assert!(failure.starts_with("checks: neither the bundle nor a folder above it has configs/demo.toml"), "{failure}");

    let machine = Machine::new();
    let done = machine.run_sh(&["step", "attention"]).env("PYTHON", "/nowhere/python3").output().unwrap();
    let said = text(&done.stderr);
    assert!(said.contains("run.sh: PYTHON=/nowhere/python3 does not run"), "{said}");
    assert!(said.contains("no python3 here, so no report: results.jsonl has the results"), "{said}");
    assert_eq!(machine.read("out/results.jsonl").matches("\"what\":\"step\"").count(), 6);
}

#[test]
fn wrong_words_are_errors() {
    let machine = Machine::new();
    for (parts, budget, expected) in [
        (&["chekcs"][..], "540", "there is no part chekcs: kernels, checks, attention, step or report"),
        (&["step"], "9 min", "BUDGET=9 min: it must be a whole number of seconds"),
        (&["step"], "0", "BUDGET=0: it must be at least 1 second"),
    ] {
        let done = machine.run_sh(parts).env("BUDGET", budget).output().unwrap();
        assert_eq!((done.status.code(), text(&done.stderr)), (Some(2), format!("run.sh: {expected}\n")));
    }
    assert!(!machine.path("stand-in/calls").exists());
}
