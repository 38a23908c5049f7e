//! With the feature `cuda`, compiles kernels/*.cu for the GPUs that it names; src/cuda/modules.rs embeds the results.
//! Otherwise nothing.

use std::path::{Path, PathBuf};
use std::process::Command;

/// Machine code for A100 and its kin and for H100, whose own instructions no later GPU has; and PTX that later ones
/// compile for themselves.
const TARGETS: [&str; 3] =
    ["arch=compute_80,code=sm_80", "arch=compute_90a,code=sm_90a", "arch=compute_90,code=compute_90"];

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    if std::env::var_os("CARGO_FEATURE_CUDA").is_none() {
        return;
    }
    println!("cargo:rerun-if-changed=kernels");
    println!("cargo:rerun-if-env-changed=NVCC");
    println!("cargo:rerun-if-env-changed=CUDA_HOME");
    let out = PathBuf::from(std::env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    let mut sources: Vec<PathBuf> = std::fs::read_dir("kernels")
        .expect("kernels/ is beside build.rs")
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.extension().is_some_and(|extension| extension == "cu"))
        .collect();
    sources.sort();
    let nvcc = nvcc();
    let image = |source: &PathBuf| format!("({source:?}, include_bytes!({:?}) as &[u8])", compile(&nvcc, source, &out));
    let images: Vec<String> = sources.iter().map(image).collect();
    std::fs::write(out.join("images.rs"), format!("[{}]", images.join(", "))).expect("OUT_DIR can be written to");
}

/// $NVCC, $CUDA_HOME's, or the one of $PATH.
fn nvcc() -> PathBuf {
    let home = || Some(PathBuf::from(std::env::var_os("CUDA_HOME")?).join("bin/nvcc"));
    std::env::var_os("NVCC").map(PathBuf::from).or_else(home).unwrap_or_else(|| "nvcc".into())
}

/// The compiled file.
fn compile(nvcc: &Path, source: &Path, out: &Path) -> PathBuf {
    let name = source.with_extension("fatbin");
    let target = out.join(name.file_name().expect("a file has a name"));
    let mut command = Command::new(nvcc);
    // The arithmetic of a kernel is that of its source: no --use_fast_math.
    command.args(["-std=c++20", "-O3", "-fatbin"]).args(TARGETS.map(|target| format!("-gencode={target}")));
    command.arg(source).arg("-o").arg(&target);
    match command.status() {
        Ok(status) if status.success() => target,
        Ok(status) => panic!("{} failed on {}: {status}", nvcc.display(), source.display()),
        Err(e) => panic!("{} cannot be run ({e}): put CUDA 13's nvcc into PATH, or name it in NVCC", nvcc.display()),
    }
}
