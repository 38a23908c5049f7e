//! The emulated driver of kernels/host/driver ends a process whose operations on two streams are not ordered: what
//! `make gpu-rehearsal` rests on. Cases are those of kernels/host/tests/order.cpp. It needs a C++20 compiler as `c++`.

use std::path::{Path, PathBuf};
use std::process::Command;

/// What a race ends the process with.
const FAILED: i32 = 70;

#[test]
fn operations_that_are_not_ordered_are_errors() {
    let folder = tempfile::tempdir().unwrap();
    let (program, host) = (folder.path().join("order"), Path::new(env!("CARGO_MANIFEST_DIR")).join("kernels/host"));
    let mut compiler = Command::new("c++");
    compiler.args(["-std=c++20", "-O1", "-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas"]).arg("-o").arg(&program);
    let parts = std::fs::read_dir(host.join("driver")).unwrap().map(|entry| entry.unwrap().path());
    let needless = ["ours", "driver"]; // our kernels, which take long to compile, and who asks for them
    let needed = |part: &PathBuf| {
        part.extension().is_some_and(|e| e == "cpp") && needless.iter().all(|n| !part.ends_with(format!("{n}.cpp")))
    };
    compiler.args(parts.filter(needed));
    let compiled = compiler.arg(host.join("tests/order.cpp")).output();
    let compiled = compiled.expect("the emulated driver's tests need a C++20 compiler as c++ (Debian: g++)");
    assert!(compiled.status.success(), "{}", String::from_utf8_lossy(&compiled.stderr));

    let run = |case: &[&str]| Command::new(&program).args(case).output().unwrap();
    let cases = String::from_utf8(run(&[]).stdout).unwrap();
    let (ordered, others): (Vec<&str>, Vec<&str>) = cases.lines().partition(|case| case.starts_with("ordered_"));
    assert!(ordered.len() >= 8 && others.len() >= 20, "{cases}");
    for case in ordered {
        let output = run(&[case]);
        assert!(output.status.success(), "{case}: {}", String::from_utf8_lossy(&output.stderr));
    }
    for case in others {
        let output = run(&[case]);
        let error = String::from_utf8_lossy(&output.stderr);
        let message = match case {
            "beyond_the_allocation" => "copy2d_f32 touches bytes 1024 to 17408 of an allocation of 16384",
            "use_after_the_free" => "not allocated, or freed",
            "host_reads_what_is_stored" | "host_writes_what_is_loaded" => "race: the host touches pinned memory",
            "store_of_rows_that_are_late" => {
                "race: a copy to the host, operation 1 of stream 1, reads bytes 8192 to 8196"
            }
            _ => "race: ",
        };
        assert!(output.status.code() == Some(FAILED) && error.contains(message), "{case}: {}: {error}", output.status);
    }
}
