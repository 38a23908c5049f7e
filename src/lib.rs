//! longreel trains diffusion transformers on video clips and images whose token sequences are millions long, sharded by
//! sequence over ranks.
//!
//! Everything but attention is token-local, so a network is an alternation of token-local pieces, which run tile by
//! tile, and attention, the only place where ranks talk. `docs/design.md` tells the whole, and what each room of `src`
//! does.
//!
//! To train from code, begin with [`train`], [`data`], [`sample`], [`plan`] and a [`config`]. For a network of your own
//! there are [`attention`], [`parallel`] and [`ops`]. `docs/library.md` leads through both. [`diffusion`] has noise,
//! losses and solvers, [`model`] the network's token-local pieces, which [`engine`] runs, and [`state`] weights,
//! moments and checkpoints; [`allocator`] is for programs that want the memory which `plan` describes. Modules that
//! are not listed here are public for the program and the tests, and change without notice.
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

pub mod allocator;
pub mod attention;
#[cfg(feature = "media")]
#[doc(hidden)]
pub mod batch;
#[cfg(feature = "cli")]
#[doc(hidden)]
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
#[cfg(feature = "media")]
pub mod encode;
pub mod engine;
mod error;
#[doc(hidden)]
pub mod files;
#[cfg(feature = "hub")]
#[doc(hidden)]
pub mod hub;
#[cfg(not(feature = "hub"))]
#[path = "hub/absent.rs"]
#[doc(hidden)]
pub mod hub;
pub mod lora;
pub mod model;
#[doc(hidden)]
pub mod observe;
pub mod ops;
pub mod parallel;
#[cfg(feature = "media")]
pub mod plan;
#[doc(hidden)]
pub mod rng;
#[cfg(feature = "media")]
pub mod sample;
#[doc(hidden)]
pub mod simd;
pub mod state;
#[doc(hidden)]
pub mod terminal;
pub mod text;
#[cfg(feature = "media")]
pub mod train;
pub mod vae;

pub use error::{Error, Result};
