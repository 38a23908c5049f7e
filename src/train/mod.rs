//! Training: the loop, optimizer, moving average, checkpoints, metrics; and sampling, which the loop and `longreel sample` share.

pub mod checkpoint;
pub mod ema;
pub mod optimizer;
pub mod schedule;
