//! Tests the CUDA kernels, run on the CPU by the emulator of `kernels/host`: forward and backward against f64
//! references and against what the crate computes, in several orders of threads. Kernels that are broken on purpose
//! must be caught.
//!
//! This proves logic, not speed, and stands in for no run on a GPU. It needs a C++20 compiler as `c++`.

mod computed;

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use tempfile::TempDir;

use computed::computed;

/// Attention's tiles as the compiler takes them for sm_90a.
const WGMMA: [&str; 1] = ["-DWGMMA"];

/// Launches hold the emulated driver's table against the kernels.
const TOUCHES: [&str; 1] = ["-DTOUCHES"];

/// A copy of the kernels and their tests, which may be changed.
struct Workshop(TempDir);

impl Workshop {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("kernels");
        for folder in ["", "host", "host/driver", "host/tests"] {
            std::fs::create_dir_all(dir.path().join(folder)).unwrap();
            for entry in std::fs::read_dir(source.join(folder)).unwrap() {
                let path = entry.unwrap().path();
                if path.is_file() {
                    std::fs::copy(&path, dir.path().join(folder).join(path.file_name().unwrap())).unwrap();
                }
            }
        }
        Self(dir)
    }

    fn path(&self, file: &str) -> PathBuf {
        self.0.path().join(file)
    }

    fn edit(&self, file: &str, change: impl Fn(&str) -> String) {
        let text = std::fs::read_to_string(self.path(file)).unwrap();
        let changed = change(&text);
        assert_ne!(text, changed, "{file} has nothing to change");
        std::fs::write(self.path(file), changed).unwrap();
    }

    /// Compiles and runs `host/tests/<program>.cpp`.
    fn run(&self, program: &str, flags: &[&str], arguments: &[&Path]) -> Output {
        let (source, binary) = (self.path(&format!("host/tests/{program}.cpp")), self.path(program));
        let mut compiler = Command::new("c++");
        compiler.args(["-std=c++20", "-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas"]).args(flags);
        compiler.args(["-fsanitize=alignment", "-fsanitize-undefined-trap-on-error"]);
        let compiled = compiler.arg(&source).arg("-o").arg(&binary).output();
        let compiled = compiled.expect("the kernels' tests need a C++20 compiler as c++ (Debian: g++)");
        assert!(compiled.status.success(), "{program}: {}", String::from_utf8_lossy(&compiled.stderr));
        Command::new(&binary).args(arguments).output().unwrap()
    }

    fn pass(&self, program: &str, flags: &[&str], arguments: &[&Path]) {
        let output = self.run(program, &[&["-O2"], flags].concat(), arguments);
        let (report, error) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        println!("{report}");
        assert!(output.status.success(), "{program} failed: {error}{report}");
    }
}

#[test]
fn flash_attention() {
    Workshop::new().pass("flash", &[], &[]);
}

#[test]
fn flash_attention_with_wgmma() {
    Workshop::new().pass("flash", &WGMMA, &[]);
}

#[test]
fn token_local_ops() {
    Workshop::new().pass("ops", &[], &[]);
}

#[test]
fn casts() {
    Workshop::new().pass("cast", &[], &[]);
}

#[test]
fn a_wrong_cast_is_caught() {
    caught("cast", "cast.cu", "low(a.z), high(a.z)", "low(a.y), high(a.y)", "check: to_f32 of 2048 elements");
    caught("cast", "cast.cu", " && aligned(x) && aligned(y)", "", "global memory: an access is not aligned");
    caught("cast", "cast.cu", "if (i < n) store", "store", "out of bounds");
}

#[test]
fn convolutions_of_the_vae() {
    Workshop::new().pass("conv", &[], &[]);
}

#[test]
fn a_wrong_convolution_is_caught() {
    caught("conv", "conv.cu", "at >= 0 && at < line", "at < line", "check: gather");
    caught("conv", "conv.cu", "at < line", "at <= line", "check: gather");
    caught("conv", "conv.cu", "taps.column - 1)", "taps.column)", "check: gather");
    caught("conv", "conv.cu", "1e-12f", "1e12f", "is above");
    caught("conv", "softmax.cu", "- most) * share", ") * share", "is above");
}

#[test]
fn elements_beyond_32_bits_have_the_bits_of_those_at_the_beginning() {
    Workshop::new().pass("far", &[], &[]);
    Workshop::new().pass("far_flash", &[], &[]);
    Workshop::new().pass("far_flash", &WGMMA, &[]);
}

#[test]
fn an_index_of_32_bits_is_caught() {
    let elsewhere = "has other bits far away";
    caught("far", "layer_norm.cu", "const i64 row = blockIdx.x;", "const int row = blockIdx.x;", elsewhere);
    caught("far", "adamw.cu", "start = i64(blockIdx.x) * THREADS", "start = blockIdx.x * THREADS", elsewhere);
    caught(
        "far",
        "copy_rows.cu",
        "from[k * from_at.s[2] + unit]",
        "from[int(k * from_at.s[2]) + unit]",
        "out of bounds",
    );
    caught("far", "patches.cu", "noise[local * row + i]", "noise[int(local) * row + i]", elsewhere);
    caught("far", "dropout.cu", "at = row * width", "at = int(row) * width", elsewhere);
    let place = "(pixel / taps.out_width * taps.stride + taps.row + row) * line";
    caught("far", "conv.cu", place, &format!("int({place})"), elsewhere);
    let row = "x += pixel * channels, y += pixel * channels;";
    caught("far", "conv.cu", row, &row.replace("pixel", "int(pixel)"), elsewhere);
    let row = "x += i64(blockIdx.x) * width, y += i64(blockIdx.x) * width;";
    caught("far", "softmax.cu", row, &row.replace("i64", "int"), elsewhere);
    caught("far", "cast.cu", "begin = i64(blockIdx.x) * (", "begin = blockIdx.x * (", elsewhere);
    caught("far_flash", "tile.cuh", "blockIdx.y * at.head", "blockIdx.y * int(at.head)", elsewhere);
    caught("far_flash", "tile.cuh", "matrix, i64 stride, int first", "matrix, int stride, int first", elsewhere);
    caught(
        "far_flash",
        "flash_forward.cu",
        "const i64 rows = (i64(blockIdx",
        "const int rows = (i64(blockIdx",
        elsewhere,
    );
}

#[test]
fn what_the_crate_computes() {
    let workshop = Workshop::new();
    workshop.pass("data", &[], &[&computed(&workshop.path("crate"))]);
}

#[test]
fn a_wrong_dropout_is_caught() {
    for (from, to) in [
        ("words[i] & 0xFFFF", "words[i] >> 16"),
        ("thread % blocks);", "thread % blocks + 1);"),
        ("token + thread", "token / 2 + thread"),
        ("column < width", "column <= width"),
        ("add ? y[at] + value", "add ? y[at] - value"),
    ] {
        let workshop = Workshop::new();
        workshop.edit("dropout.cu", |text| text.replace(from, to));
        let output = workshop.run("data", &["-O1"], &[&computed(&workshop.path("crate"))]);
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && error.contains("is above"), "{from} -> {to} was not caught: {error}");
    }
}

/// Kernels write what the emulated driver is told that they write, and depend on nothing but what it is told that they
/// read.
#[test]
fn the_emulated_driver_is_told_what_kernels_touch() {
    let workshop = Workshop::new();
    let programs = [
        ("flash_d64", vec![]),
        ("cast", vec![]),
        ("conv", vec![]),
        ("ops", vec![]),
        ("data", vec![computed(&workshop.path("crate"))]),
    ];
    for (program, arguments) in programs {
        workshop.pass(program, &TOUCHES, &arguments.iter().map(PathBuf::as_path).collect::<Vec<_>>());
    }
}

#[test]
fn a_driver_that_is_told_wrongly_is_caught() {
    let caught = |from, to, message| caught_with(&TOUCHES, "flash_d64", "host/driver/touches.h", from, to, message);
    caught("read(delta, statistics)", "read(delta, statistics - 1)", "does not tell of all that is read");
    caught("call.read_heads(k, k_at, keys, d)", "call.read_heads(k, k_at, keys - 1, d)", "does not tell of all");
    caught("write_heads(dv, keys, d)", "write_heads(dv, keys - 1, d)", "of which touches.h does not tell");
    caught(
        "call.write_heads(lse, queries, 1)",
        "call.write_heads(lse, queries - 1, 1)",
        "of which touches.h does not tell",
    );
    caught("FlashBackwardQ, LayerNormForward", "LayerNormForward", "flash_backward_q_bf16_d64 is not in");
}

/// Breaks a kernel and runs `program`, which must say so in the emulator's or the check's words.
fn caught(program: &str, file: &str, from: &str, to: &str, message: &str) {
    caught_with(&[], program, file, from, to, message);
}

fn caught_with(flags: &[&str], program: &str, file: &str, from: &str, to: &str, message: &str) {
    let workshop = Workshop::new();
    workshop.edit(file, |text| text.replace(from, to));
    // One instance of each template is enough.
    for file in ["flash_forward.cu", "flash_backward.cu"] {
        let kept = |line: &&str| !line.starts_with("FLASH_") || line.contains(", 64, bf16");
        workshop.edit(file, |text| text.lines().filter(kept).collect::<Vec<_>>().join("\n") + "\n");
    }
    let output = workshop.run(program, &[&["-O1"], flags].concat(), &[]);
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && error.contains(message), "{from} -> {to} in {file} was not caught: {error}");
}

/// A barrier that is there, but too late: the slot that is filled again may still be read.
const LATE_BARRIER: [&str; 2] = [
    "__syncthreads();\n        begin(tile + F::STAGES - 1);",
    "begin(tile + F::STAGES - 1);\n        __syncthreads();",
];

#[test]
fn a_removed_barrier_is_caught() {
    let barrier = "publish();\n        __syncthreads();";
    caught("flash_d64", "flash_forward.cu", barrier, "publish();", "before it was written");
    let [from, to] = LATE_BARRIER;
    caught("flash_d64", "flash_forward.cu", from, to, "race");
    let barrier = "__syncthreads(); // those before have read the scratch";
    caught("ops", "common.cuh", barrier, "", "race");
}

#[test]
fn a_copy_that_is_not_waited_for_is_caught() {
    caught(
        "flash_d64",
        "flash_forward.cu",
        "cp_async_wait<F::STAGES - 2>",
        "cp_async_wait<F::STAGES - 1>",
        "in flight",
    );
}

#[test]
fn a_wrong_fragment_index_is_caught() {
    let (from, to) = ("two * 8 + lane % 8, k * 2 + one", "one * 8 + lane % 8, k * 2 + two");
    caught("flash_d64", "tile_mma.cuh", from, to, "is above");
    caught(
        "flash_d64",
        "tile.cuh",
        "&sums[m][k * 2 + i / 2][i % 2 * 2]",
        "&sums[m][k * 2 + i % 2][i / 2 * 2]",
        "is above",
    );
}

#[test]
fn a_misuse_of_wgmma_is_caught() {
    let caught = |file, from, to, message| caught_with(&WGMMA, "flash_d64", file, from, to, message);
    caught("tile_wgmma.cuh", "    wgmma_publish();\n", "", "was not published before the last barrier");
    caught("tile_wgmma.cuh", "    wgmma_begin(sums);\n", "", "accumulators may not be ready");
    caught("tile_wgmma.cuh", "wgmma_begin(sums, p)", "wgmma_begin(p)", "accumulators may not be ready");
    caught("tile_wgmma.cuh", "wgmma_begin(sums, p)", "wgmma_begin(sums)", "operands in registers may not be ready");
    // Before the waits of `product` and of `add_product`.
    let (end, last) = ("    wgmma_end(sums);\n}\n\n/// sums += p b", "p[m][k], rows<D, K * 16>(b, k * 16));\n    }\n");
    let touched = [format!("    sums[0][0][0] *= 2;\n{end}"), format!("{last}    p[0][0][0] = 0;\n")];
    caught("tile_wgmma.cuh", end, &touched[0], "accumulators of thread");
    caught("tile_wgmma.cuh", last, &touched[1], "left operands of thread");
    caught("tile_wgmma.cuh", "DOWN = 8 * W * 2;", "DOWN = 4 * W * 2;", "is above");
    caught("tile_wgmma.cuh", "(b, k * 16)", "(b, k * 8)", "is above");
    caught("tile_wgmma.cuh", "k > 0)", "true)", "is above");
    caught("tile.cuh", "int turn = CHUNKS == 8 ? row % 8", "int turn = CHUNKS == 8 ? row / 2 % 4", "is above");
    let (from, to) = ("    wgmma_end(sums);\n}\n\n/// sums += p b", "}\n\n/// sums += p b");
    caught("tile_wgmma.cuh", from, to, "accumulators of thread");
    let [from, to] = LATE_BARRIER;
    caught("flash_forward.cu", from, to, "race");
}

#[test]
fn touching_beyond_an_array_is_caught() {
    let (from, to) = ("const bool inside = first + row < rows;", "const bool inside = first + row < rows + 1;");
    caught("flash_d64", "tile.cuh", from, to, "global memory: out of bounds");
    caught("ops", "layer_norm.cu", "shared<float>(0, THREADS / 32)", "shared<float>(0, 4)", "are outside the array");
}

#[test]
fn a_missing_mask_is_caught() {
    caught("flash_d64", "flash_forward.cu", "% 2 < keys) continue;", "% 2 < keys + 1) continue;", "is above");
    caught("flash_d64", "flash_backward.cu", "i % 2 < keys;", "i % 2 < keys + 1;", "is above");
}
