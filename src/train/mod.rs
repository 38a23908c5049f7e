//! Trains: the loop, optimizer, moving average, checkpoints; and samples, by code that the loop and `longreel sample`
//! share.

pub mod checkpoint;
pub mod device;
pub mod ema;
pub mod named;
pub mod optimizer;
pub mod plot;
pub mod progress;
pub mod rehearsal;
pub mod run_lock;
pub mod sampled;
pub mod sampling;
pub mod schedule;

mod about;
mod clips;
pub(crate) mod heldout;
mod lineage;
mod monitor;
mod report;
mod run;
pub(crate) mod setup;
mod summary;
pub mod weights;

pub use lineage::{inherit_diffusion, inherit_dtype};
pub(crate) use run::REHEARSED;
pub use run::{rehearse, run};
pub use setup::Start;
