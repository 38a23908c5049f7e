//! longreel trains diffusion transformers on video clips and images whose token sequences are millions long, sharded by
//! sequence over ranks.
//!
//! Everything but attention is token-local, so a network is an alternation of token-local pieces, which run tile by
//! tile, and attention, the only place where ranks talk. `docs/design.md` tells the whole; the rooms, from the top:
//!
//! - [`cli`]: the commands.
//! - [`train`]: the loop; [`plan`]: what a step will need, before it runs; [`sample`]: from noise to clips.
//! - [`batch`]: clips as the engine sees them; [`state`]: what a run carries from step to step, and its checkpoints.
//! - [`data`]: folders to clips to a rank's frames; [`engine`]: forward and backward over model and attention.
//! - [`model`]: the network's token-local pieces; [`diffusion`]: noise, targets, samplers.
//! - [`attention`]: the global operation; [`parallel`]: communicators and sharding; [`ops`]: differentiable fused ops.
//! - [`files`]: atomic writes and safetensors; [`hub`]: `hf://` names; [`rng`]: counter-based random numbers.
//! - [`terminal`]: what may be shown there of text from outside.
//! - [`observe`]: metrics, where a step's time goes, warnings, TensorBoard, and the page that shows runs.
//!
//! To train from code, begin with [`train`], [`data`], [`sample`] and [`plan`]. For a network of your own there are
//! [`attention`], [`parallel`] and [`ops`]. `docs/library.md` leads through both.
//!
//! ```no_run
//! # #[cfg(feature = "media")] {
//! use longreel::config::RunConfig;
//! use longreel::train::Trainer;
//!
//! let text = std::fs::read_to_string("configs/demo.toml")?;
//! let config = RunConfig::parse(&text, "configs/demo.toml".as_ref(), &["train.steps=200".to_owned()])?;
//! let trained = Trainer::new(config).run()?;
//! println!("{} steps; weights in {}", trained.step, trained.checkpoint.display());
//! # }
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

// The rooms that are left out use them.
#![cfg_attr(not(feature = "cli"), allow(dead_code, unused_imports))]

pub mod allocator;
pub mod attention;
#[cfg(feature = "media")]
pub mod batch;
#[cfg(feature = "cli")]
pub mod cli;
pub mod config;
#[cfg(feature = "cuda")]
mod cuda;
#[cfg(feature = "media")]
pub mod data;
#[cfg(not(feature = "media"))]
#[path = "data/absent.rs"]
pub mod data;
pub mod diffusion;
pub mod engine;
mod error;
pub mod files;
#[cfg(feature = "hub")]
pub mod hub;
#[cfg(not(feature = "hub"))]
#[path = "hub/absent.rs"]
pub mod hub;
pub mod model;
pub mod observe;
pub mod ops;
pub mod parallel;
#[cfg(feature = "media")]
pub mod plan;
pub mod rng;
#[cfg(feature = "media")]
pub mod sample;
pub mod simd;
pub mod state;
pub mod terminal;
#[cfg(feature = "media")]
pub mod train;

pub use error::{Error, Result};
