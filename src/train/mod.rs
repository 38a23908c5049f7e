//! placeholder
pub mod metrics;
pub mod plot;
pub mod progress;
pub mod tensorboard;
