//! What a user may write: [`RunConfig`], read from TOML.

mod run;

pub use run::*;
