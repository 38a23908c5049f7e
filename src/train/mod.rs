//! Trains a network: sets a run up, goes through its steps, measures validation losses, and reports.

#![warn(missing_docs)]

pub mod device;
pub mod plot;
pub mod progress;
pub mod rehearsal;
pub mod run_lock;
pub mod schedule;

mod about;
mod adapters;
mod caches;
pub(crate) mod heldout;
mod latents;
mod lineage;
mod monitor;
mod rank;
mod report;
mod run;
mod samples;
mod saving;
pub(crate) mod setup;
mod trainer;

pub use crate::observe::metrics::Record;
pub use caches::Caches;
pub use latents::RunLatents;
pub use lineage::{inherit_diffusion, inherit_dtype};
pub use rehearsal::rehearse;
pub use setup::Start;
pub use trainer::{Trained, Trainer};
