//! The one integration-test binary: a module for each room. Linking once keeps `make test` short.

mod attention;
mod bench;
mod checkpoint;
mod cli;
mod config;
mod data;
mod datasets;
mod diffusion;
mod documentation;
mod engine;
mod files;
mod first_use;
mod golden;
mod history;
mod hub;
mod kernels;
mod limits;
mod media;
mod metrics;
mod model;
#[cfg(feature = "mpi")]
mod mpi;
mod mutated;
mod named;
mod ops;
mod optimizer;
mod parallel;
mod plan;
mod ring;
mod stash;
mod targets;
mod terminal;
mod train;
mod usage;
mod watch;
mod zero;
