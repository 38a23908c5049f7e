//! What a user may write: [`RunConfig`], read from TOML with `--set key=value` on top.
//!
//! - `run`, `data`: the structs, one field a key, and their defaults;
//! - `choices`: values that are one of a few words;
//! - `fields`: the keys there are, learnt from the structs;
//! - `read`: TOML and overrides to a config, with errors that name file, line and the nearest known key;
//! - `unknown`, `words`: what was meant by a key that nobody knows, in other trainers' words too;
//! - `resolve`: the options that a config gives the rooms below; `sampling`: what `[sample]` leaves out;
//! - `paths`: `~` in paths; `check`: what values are allowed;
//! - `file`: where the text comes from; `example`: the smallest config, for errors.
//!
//! `docs/configuration.md` is the reference for users; a test keeps it equal to the code.

mod check;
mod choices;
mod data;
mod example;
mod fields;
mod file;
mod lora;
mod paths;
mod read;
mod resolve;
mod run;
mod sampling;
mod unknown;
mod words;

use crate::{Error, Result};
use std::path::Path;

pub use choices::*;
pub use data::*;
pub use fields::sections;
pub use file::read_config;
pub use lora::{Export, KnownLora, Lora};
pub use resolve::Known;
pub use run::*;
pub use sampling::{LATENTS_22, Sampling, WAN_GUIDANCE, usual_shift};

impl RunConfig {
    /// Reads and checks the TOML file `path`, with `sets` (`section.key=value`, as after `--set`) on top, in order.
    ///
    /// # Errors
    /// The file cannot be read, or is not TOML; a key is unknown or missing, or its value not allowed.
    pub fn load(path: &Path, sets: &[String]) -> Result<Self> {
        Self::parse(&read_config(path)?, path, sets)
    }

    /// As [`load`](Self::load), of a `text` that errors call `origin`.
    pub fn parse(text: &str, origin: &Path, sets: &[String]) -> Result<Self> {
        read::parse(text, origin, sets)
    }

    /// Whether a config's `text` or an override gives `section.key` a value, rather than leave it at its default. Of a
    /// text that is no TOML, [`parse`](Self::parse) has more to say.
    pub fn names(text: &str, sets: &[String], section: &str, key: &str) -> bool {
        let file = text.parse::<toml::Table>().unwrap_or_default();
        let set = sets
            .iter()
            .filter_map(|set| set.split_once('='))
            .any(|(name, _)| name.trim() == format!("{section}.{key}"));
        set || file.get(section).and_then(|section| section.get(key)).is_some()
    }

    /// Checks every value, for a config made or changed by code; the readers have done so already.
    ///
    /// # Errors
    /// The first key whose value is not allowed, with the value and what is allowed.
    pub fn check(&self) -> Result<()> {
        check::check(self).map_err(|problem| Error::Config(problem.to_string()))
    }

    /// A number that ranks of one run agree on, though folders may lie elsewhere on each machine.
    ///
    /// # Errors
    /// As [`to_toml`](Self::to_toml).
    pub fn fingerprint(&self) -> Result<u64> {
        let mut config = self.clone();
        (config.run.out, config.stash.folder) = Default::default();
        for section in config.data.iter_mut() {
            section.path.clear();
            section.heldout.iter_mut().for_each(String::clear);
        }
        (config.vae.cache, config.text.cache) = (None, None);
        config.vae.from = config.vae.from.map(|_| String::new());
        config.text.from = config.text.from.map(|_| String::new());
        config.model.from = config.model.from.map(|_| String::new());
        config.lora.from = config.lora.from.map(|_| String::new());
        Ok(u64::from(crc32c::crc32c(config.to_toml()?.as_bytes())))
    }

    /// The config as TOML, every key written out; [`parse`](Self::parse) gives the same config back.
    ///
    /// # Errors
    /// A number is beyond what TOML holds (i64), which [`check`](Self::check) refuses too.
    pub fn to_toml(&self) -> Result<String> {
        toml::to_string(self).map_err(|e| Error::Config(format!("the config cannot be written as TOML: {e}")))
    }
}
