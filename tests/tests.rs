//! The one integration-test binary: a module for each room. Linking once keeps `make test` short.

mod attention;
mod cli;
mod config;
mod data;
mod datasets;
mod diffusion;
mod engine;
mod golden;
mod hub;
mod media;
mod metrics;
mod model;
mod ops;
mod parallel;
mod train;
