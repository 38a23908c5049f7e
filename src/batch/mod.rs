//! Batches of clips as the engine sees them: input rows and loss, made tile by tile.

mod pixels;

pub use pixels::{NoisyClip, NoisyClips, squared_errors, upload};
