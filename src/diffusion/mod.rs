//! Rectified flow: noise, training sigmas, losses, and the samplers that turn noise into clips.
//!
//! One convention throughout: `x_sigma = (1 - sigma) x0 + sigma eps`, the velocity is `v = dx/dsigma = eps - x0`, sigma
//! runs from 1 (noise) to 0 (data), and the network is told `1000 sigma`. Papers that write `t` for the share of data
//! mean `1 - sigma`. Nothing here knows of ranks, files or networks: functions act on rows of tokens or on tensors of
//! any shape.

mod exponential;
mod guidance;
mod keys;
mod losses;
mod noise;
mod objective;
mod options;
mod sampler;
mod schedule;
mod tiled;
mod velocity;

pub use guidance::{Condition, Guidance};
pub use keys::{heldout_key, sample_key};
pub use noise::{channel_first, channel_last, noise_rows, noisy, training_key};
pub use objective::Objective;
pub use options::{DiffusionOptions, LossWeight, Prediction, SamplerKind, Timesteps, optional_shift, shift};
pub use sampler::Sampler;
pub use schedule::{Dropout, QUANTILES, SigmaDistribution, inference_sigmas, resolve_shift, shift_sigma, timestep};
#[cfg(feature = "media")]
pub(crate) use tiled::State;
pub use tiled::{Make, Take, Velocity};
