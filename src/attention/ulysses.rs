//! placeholder
pub struct Ulysses;
