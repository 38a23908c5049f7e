//! placeholder
pub fn resolve(spec: &str) -> crate::Result<std::path::PathBuf> {
    Ok(spec.into())
}
