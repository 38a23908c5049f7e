//! Training: the loop, optimizer, moving average, checkpoints; and sampling, which the loop and `longreel sample` share.

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
pub(crate) mod job;
mod lineage;
mod pace;
mod report;
mod run;
mod summary;
pub mod weights;

pub use job::Start;
pub use lineage::{inherit_diffusion, inherit_dtype};
pub(crate) use run::REHEARSED;
pub use run::{rehearse, run};
