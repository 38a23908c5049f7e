//! The one integration-test binary: a module for each room. Linking once keeps `make test` short.

/// The message of the error that a result of the library must be, of this kind.
macro_rules! refusal {
    ($kind:ident, $result:expr) => {
        match $result {
            Err(longreel::Error::$kind(message)) => message,
            Err(other) => panic!("an error of another kind: {other:?}"),
            Ok(_) => panic!("an error was expected"),
        }
    };
}

/// A room's options as they are, but for these fields: `options!(base; field: value, field)`.
macro_rules! options {
    (@value $field:ident) => { $field };
    (@value $field:ident $value:expr) => { $value };
    ($base:expr; $($field:ident $(: $value:expr)?),+) => {{
        let mut options = $base;
        $(options.$field = options!(@value $field $($value)?);)+
        options
    }};
}

mod attention;
#[cfg(feature = "bench")]
mod bench;
mod bundle;
mod bundle_kernels;
mod checkpoint;
mod cli;
mod codec;
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
mod lora;
mod media;
mod meter;
mod metrics;
mod model;
#[cfg(feature = "mpi")]
mod mpi;
mod mutated;
mod named;
mod names;
mod ops;
mod optimizer;
mod order;
mod page;
mod parallel;
mod plan;
mod pth;
mod quality;
mod ring;
mod rooms;
mod runs;
mod shell;
mod show;
mod stash;
mod status;
mod targets;
mod terminal;
mod text;
mod train;
mod usage;
mod vae;
mod wgmma;
mod zero;
