//! Batches of clips as the engine sees them: input rows and loss, made tile by tile.

mod noisy;
mod squared_errors;

pub use noisy::{NoisyClip, NoisyClips, upload};
pub use squared_errors::squared_errors;
