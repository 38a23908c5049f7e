//! placeholder
pub struct Mesh;
