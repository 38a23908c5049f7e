//! Batches of clips as the engine sees them: input rows and loss, made tile by tile.

mod noisy;

pub use noisy::{NoisyClip, NoisyClips, squared_errors, upload};
