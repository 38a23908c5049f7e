//! placeholder
pub struct Single;
