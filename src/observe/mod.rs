//! What a run leaves to be looked at: its metrics as JSON lines, and TensorBoard's copy of them.
//!
//! This room lies below [`train`](crate::train), which writes these files; nothing here knows how a run is trained.

mod history;
pub mod metrics;
pub mod tensorboard;
