//! Stands in for the hub where longreel is built without the feature `hub`: local paths alone.

use std::path::PathBuf;

use crate::{Result, bail};

/// The local path of `spec`: itself.
///
/// # Errors
/// It begins with `hf://`.
pub fn resolve(spec: &str) -> Result<PathBuf> {
    if spec.starts_with("hf://") {
        bail!(
            Config,
            "{spec}: this longreel was built without the feature \"hub\", so it downloads nothing: name a local folder"
        );
    }
    Ok(spec.into())
}
