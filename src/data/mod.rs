//! placeholder
pub mod sheet;
pub mod write;
