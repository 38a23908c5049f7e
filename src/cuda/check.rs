//! `LONGREEL_GPU_CHECK=1`: the GPU is waited for after each launch and each product, so that a failure bears the name
//! of what failed.

use candle_core::cuda_backend::cudarc::driver::CudaStream;
use candle_core::{Error, Result};
use std::fmt::Display;
use std::sync::LazyLock;

use super::meaning;

/// The environment variable.
pub(super) const VARIABLE: &str = "LONGREEL_GPU_CHECK";

static CHECKS: LazyLock<std::result::Result<bool, String>> = LazyLock::new(|| match std::env::var_os(VARIABLE) {
    None => Ok(false),
    Some(value) if value.is_empty() || value == "0" => Ok(false),
    Some(value) if value == "1" => Ok(true),
    Some(value) => Err(format!("{VARIABLE}={value:?}: must be 0 or 1, or unset")),
});

/// Whether the user wants it.
pub(super) fn checks() -> bool {
    *CHECKS.as_ref().unwrap_or(&false)
}

/// # Errors
/// The variable has another value than 0 or 1.
pub(super) fn allowed() -> std::result::Result<(), String> {
    CHECKS.clone().map(drop)
}

/// Does `work`, which gives the stream something to do that is called `what`; with the check, waits for it, and before
/// for what the stream had to do already, so that an error of one of Candle's kernels does not get the name of ours.
pub(super) fn checked<R>(stream: &CudaStream, what: impl Display, work: impl FnOnce() -> Result<R>) -> Result<R> {
    if !checks() {
        return work();
    }
    let wait = |when: &str| {
        stream.synchronize().map_err(|e| Error::msg(format!("{when} {what} the GPU reports: {}", meaning(e))))
    };
    wait("of what was asked for before")?;
    let done = work()?;
    wait("after")?;
    Ok(done)
}
