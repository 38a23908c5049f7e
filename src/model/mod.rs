//! placeholder
pub mod folder;
