//! What a run carries from step to step: weights, moments and their average, and the checkpoints that save them.

pub mod adapters;
pub mod checkpoint;
pub mod ema;
pub mod frozen;
pub mod named;
pub mod optimizer;
mod options;
pub mod weights;

pub use options::StateOptions;
