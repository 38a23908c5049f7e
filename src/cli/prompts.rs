//! Flags that say by which texts clips are sampled.

use clap::Args;
use std::path::PathBuf;

use crate::config::RunConfig;
use crate::files::read_text;
use crate::model::ModelConfig;
use crate::{Error, Result, bail};

/// Bytes that a file of prompts may have.
const MOST: u64 = 1 << 24;

/// What a network with text is sampled by.
#[derive(Debug, Args)]
pub struct PromptArgs {
    /// A prompt, for networks with text; may be repeated. Default: the config's `sample.prompts`
    #[arg(long, value_name = "TEXT")]
    pub prompt: Vec<String>,
    /// A file of prompts, one a line
    #[arg(long, value_name = "FILE", conflicts_with = "prompt", value_parser = super::path())]
    pub prompts: Option<PathBuf>,
    /// What guidance leads away from; default: the config's `sample.negative`
    #[arg(long, value_name = "TEXT")]
    pub negative: Option<String>,
    /// The text encoder; default: the config's `text.from`
    #[arg(long, value_name = "DIR", value_parser = super::place())]
    pub text: Option<String>,
}

impl PromptArgs {
    /// Puts what the flags say over `config`, whose network is `model`; how many prompts they name.
    ///
    /// # Errors
    /// The file cannot be read or has no prompt; the network has no text, or no text encoder is named.
    pub fn put_over(&self, config: &mut RunConfig, model: &ModelConfig) -> Result<usize> {
        let mut prompts = self.prompt.clone();
        if let Some(path) = &self.prompts {
            let text = read_text(path, MOST).map_err(|e| Error::io(path, e))?;
            prompts.extend(text.lines().map(str::trim).filter(|line| !line.is_empty()).map(str::to_owned));
            if prompts.is_empty() {
                bail!(Data, "{}: has no prompt; one a line is wanted", path.display())
            }
        }
        let flags = [
            ("--prompt", !self.prompt.is_empty()),
            ("--prompts", self.prompts.is_some()),
            ("--negative", self.negative.is_some()),
            ("--text", self.text.is_some()),
        ];
        if let Some((flag, _)) = flags.into_iter().find(|flag| flag.1).filter(|_| model.text_dim == 0) {
            bail!(Config, "{flag}: the model has no text")
        }
        let count = prompts.len();
        if count > 0 {
            config.sample.prompts = prompts;
        }
        config.sample.negative = self.negative.clone().or(config.sample.negative.take());
        config.text.from = self.text.clone().or(config.text.from.take());
        if model.text_dim > 0 && config.text.from.is_none() {
            bail!(Config, "the model has text (text_dim {}): name its text encoder with --text", model.text_dim)
        }
        Ok(count)
    }
}
