//! The Python checks of the compiled kernels (scripts/bundle/kernels.py), as far as Python's standard library alone
//! goes: they know every kernel by the arguments that it declares, and what cannot be done is one error.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use tempfile::TempDir;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Runs the script in an environment whose Python has no torch.
fn kernels_py(args: &[&str]) -> Output {
    let without = tempfile::tempdir().unwrap();
    fs::write(without.path().join("torch.py"), "raise ImportError('none here')").unwrap();
    let mut command = Command::new("python3");
    command.arg(root().join("scripts/bundle/kernels.py")).args(args);
    command.env("PYTHONPATH", without.path()).env("PYTHONDONTWRITEBYTECODE", "1").output().expect("python3 runs")
}

/// A copy of the kernels' sources, which may be changed.
fn sources() -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    for entry in fs::read_dir(root().join("kernels")).unwrap() {
        let path: PathBuf = entry.unwrap().path();
        if path.is_file() {
            fs::copy(&path, folder.path().join(path.file_name().unwrap())).unwrap();
        }
    }
    folder
}

fn edit(folder: &TempDir, file: &str, from: &str, to: &str) {
    let path = folder.path().join(file);
    let text = fs::read_to_string(&path).unwrap();
    assert!(text.contains(from), "{file} has no {from}");
    fs::write(path, text.replace(from, to)).unwrap();
}

/// That the script ends with code 2 and one line that has all of these.
fn refused(args: &[&str], words: &[&str]) {
    let output = kernels_py(args);
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(2), "{args:?}: {error}");
    assert!(words.iter().all(|word| error.contains(word)), "{args:?}: {error}");
    assert_eq!(error.lines().filter(|line| line.starts_with("kernels.py: ")).count(), 1, "{args:?}: {error}");
}

#[test]
fn every_kernel_of_launch_h_is_known_with_its_arguments() {
    let listed = kernels_py(&["--list", "--cubins", root().join("kernels").to_str().unwrap()]);
    assert!(listed.status.success(), "{}", String::from_utf8_lossy(&listed.stderr));
    let listed = String::from_utf8(listed.stdout).unwrap();
    let header = fs::read_to_string(root().join("kernels/launch.h")).unwrap();
    let rows: Vec<Vec<&str>> = header
        .lines()
        .filter_map(|line| line.strip_prefix("KERNEL(")?.strip_suffix(')'))
        .map(|row| row.split(", ").collect())
        .collect();
    assert!(rows.len() >= 50, "{header}");
    assert_eq!(listed.lines().count(), rows.len(), "{listed}");
    for row in rows {
        let end = format!(")  {} threads, {} bytes", row[1], row[2]);
        let of_it = listed.lines().filter(|line| line.starts_with(&format!("{}(", row[0])) && line.ends_with(&end));
        assert_eq!(of_it.count(), 1, "{row:?} in {listed}");
    }
    // As they are declared, directly and by a macro.
    for line in [
        "ring_merge(float* o, double* lse, float* more, double* more_lse, i64 rows, int d)  256 threads, 0 bytes",
        "gelu_backward_bf16(bf16* x, bf16* dy, bf16* dx, i64 n)  256 threads, 0 bytes",
    ] {
        assert!(listed.lines().any(|listed| listed == line), "{line} in {listed}");
    }
}

#[test]
fn kernels_that_the_checks_do_not_fit_are_errors() {
    let new = "KERNEL(twice, 256, 0)\nKERNEL(add_assign";
    let declared = "extern \"C\" __global__ void __launch_bounds__(THREADS) twice(float* x, i64 n) {}\n";
    type Edits<'a> = &'a [(&'a str, &'a str, &'a str)];
    let cases: [(Edits, &[&str]); 7] = [
        (&[("launch.h", "KERNEL(add_assign", new)], &["twice", "no file", "declares it"]),
        (&[("ring.cu", "/// x += y", &format!("{declared}/// x += y"))], &["ring.cu", "twice", "launch.h does not"]),
        (
            &[("launch.h", "KERNEL(add_assign", new), ("ring.cu", "/// x += y", &format!("{declared}/// x += y"))],
            &["launch.h has twice, which no check knows"],
        ),
        (
            &[("ring.cu", "const double* more_lse, i64 rows", "i64 rows, const double* more_lse")],
            &["ring_merge takes (o, lse, more, rows, more_lse, d), the checks pass (o, lse, more, more_lse, rows, d)"],
        ),
        (
            &[(
                "gelu.cu",
                "gelu_forward_##TYPE(const T* x, T* y, i64 n)",
                "gelu_forward_##TYPE(const T* x, T* y, i64 count)",
            )],
            &["gelu_forward_f32 takes (x, y, count), the checks pass (x, y, n)", "gelu_forward_bf16"],
        ),
        (&[("copy_rows.cu", "i64 s[3];", "Three s;")], &["copy_rows_16 takes Places from_at, a type that"]),
        (
            &[("launch.h", "KERNEL(add_assign, 256, 0)", "KERNEL(add_assign, 256)")],
            &["launch.h has a line that cannot be read"],
        ),
    ];
    for (edits, words) in cases {
        let folder = sources();
        for (file, from, to) in edits {
            edit(&folder, file, from, to);
        }
        refused(&["--list", "--cubins", folder.path().to_str().unwrap()], words);
    }
}

/// What `--emulated` rests on: the kernels as a library, which Python builds and calls as it would call CuPy's.
#[test]
fn python_launches_kernels_by_the_emulator() {
    let script = r#"
import ctypes, pathlib, sys
root, out = map(pathlib.Path, sys.argv[1:])
sys.path.insert(0, str(root / "scripts/bundle"))
from checks import declarations, emulated

class Argument:  # as an array of one element of numpy's
    size = 1
    def __init__(self, value):
        self.value = value
        self.__array_interface__ = {"data": (ctypes.addressof(value), False)}

kernel = declarations.read(root / "kernels")[0]["add_assign"]
library = ctypes.CDLL(str(emulated.built(root / "kernels", out, "-O0")))
x, y = (ctypes.c_float * 300)(*range(300)), (ctypes.c_float * 300)(*[0.5] * 300)
given = [ctypes.c_void_p(ctypes.addressof(x)), ctypes.c_void_p(ctypes.addressof(y)), ctypes.c_longlong(299)]
launch = emulated.Module(library).get_function("add_assign")
launch((2, 1, 1), (kernel.threads, 1, 1), tuple(map(Argument, given)), shared_mem=kernel.shared)
assert list(x) == [i + 0.5 for i in range(299)] + [299], list(x)
for name, shared, message in ("add_assing", 0, "ours.cpp lacks"), ("add_assign", 100_000, "were not asked for"):
    try:
        emulated.Module(library).get_function(name)((2, 1, 1), (256, 1, 1), tuple(map(Argument, given)), shared_mem=shared)
        raise SystemExit(f"{name} with {shared} bytes was launched")
    except declarations.Problem as problem:
        assert message in str(problem), problem
"#;
    let out = tempfile::tempdir().unwrap();
    let mut python = Command::new("python3");
    python.args(["-c", script]).arg(root()).arg(out.path()).env("PYTHONDONTWRITEBYTECODE", "1");
    let output = python.output().expect("python3 runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn what_cannot_be_done_is_one_error() {
    let folder = sources();
    let path = folder.path().to_str().unwrap();
    let out = folder.path().join("out");
    let out = out.to_str().unwrap();
    refused(&["--out", out, "--cubins", path], &[path, "lacks", ".cubin: scripts/bundle/cubins.sh"]);
    refused(&["--out", out, "--emulated"], &["the checks compute with torch and numpy: none here"]);
    refused(&["--out", out, "--emulated", "--only", "add", "flush"], &["--only flush: no kernel has that in its name"]);
    refused(&["--out", out, "--cubins", "nowhere"], &["nowhere has no launch.h", "cubins.sh"]);
    assert!(!Path::new(out).exists(), "nothing was done, and there are results");
    for (args, word) in [
        (&["--budget", "0"][..], "0 is not above 0"),
        (&["--budget", "nan"], "nan is not above 0"),
        (&["--budget", "soon"], "--budget"),
        (&["--fast"], "--fast"),
        (&["--only"], "--only"),
    ] {
        let output = kernels_py(args);
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.code() == Some(2) && error.contains(word), "{args:?}: {error}");
    }
}
