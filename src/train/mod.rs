//! placeholder

pub mod ema;
pub mod optimizer;
pub mod schedule;
