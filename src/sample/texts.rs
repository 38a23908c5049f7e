//! Embeds a run's texts (captions, prompts and what guidance leads away from) into a cache, and reads them as the
//! network takes them. The encoder is gone once all is embedded.

use parking_lot::Mutex;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use super::{Prompts, negative};
use crate::config::{Compute, RunConfig};
use crate::encode::cache::Contents;
use crate::encode::embed::embed_missing;
use crate::encode::embeddings::{EmbeddingCache, EncoderKey};
use crate::files::KnownHashes;
use crate::model::{ModelConfig, TEXT_LENGTH, TextTokens};
use crate::parallel::{Communicator, is_first};
use crate::terminal::counted;
use crate::text::TextEncoder;
use crate::{Result, bail, hub};

/// How often embedding says how far it is.
const SAID_EVERY: Duration = Duration::from_secs(10);

/// The texts of a run.
pub struct Texts {
    cache: EmbeddingCache,
    /// The hashes of models that the cache's folder remembers.
    known: KnownHashes,
    /// Dropped once all is embedded.
    encoder: Mutex<Option<Arc<TextEncoder>>>,
    prompts: Vec<String>,
    negative: String,
}

impl Texts {
    /// The texts of a run of `config` whose network is `model`: `captions`, and those of its samples; none for a
    /// network without text. Nothing is embedded.
    ///
    /// # Errors
    /// The network has text and the config names no encoder, or the other way round; the encoder cannot be read, or
    /// does not fit the network; there is no folder for the cache.
    pub fn open<'a>(
        config: &RunConfig,
        model: &ModelConfig,
        captions: impl IntoIterator<Item = &'a str>,
    ) -> Result<Option<Self>> {
        let wanted = model.text_dim;
        let Some(from) = &config.text.from else {
            if wanted > 0 {
                bail!(Config, "the network has text (text_dim {wanted}): name its text encoder as text.from")
            }
            return Ok(None);
        };
        if wanted == 0 {
            bail!(Config, "text.from: the network of model.from has no text (text_dim 0); leave [text] out")
        }
        let bf16 = config.text.dtype == Compute::Bf16;
        let encoder = TextEncoder::open(&hub::resolve(from)?).map_err(|e| e.at("text.from"))?.with_bf16(bf16);
        let features = encoder.features();
        if features != wanted {
            bail!(
                Config,
                "text.from: {from} makes tokens of {features} features, the network takes {wanted} (text_dim)"
            )
        }
        let (prompts, negative) = (prompts(config), negative::of(config, model));
        let captions: Vec<&str> = captions.into_iter().collect();
        warn_of_long_ones(&encoder, ["caption is", "captions are"], captions.iter().copied())?;
        let sampled = || prompts.iter().map(String::as_str).chain([negative.as_str()]);
        warn_of_long_ones(&encoder, ["prompt is", "prompts are"], sampled())?;
        let dir = config.text_cache().map_err(|e| e.at("text.cache"))?;
        let known = KnownHashes::open(&dir);
        let sha256 = encoder.sha256_known(&known).map_err(|e| e.at("text.from"))?;
        known.save();
        let key = EncoderKey { sha256, f32: !bf16, features };
        let cache = EmbeddingCache::new(&dir, key, captions.into_iter().chain(sampled()).chain([""]));
        Ok(Some(Self { cache, known, encoder: Mutex::new(Some(Arc::new(encoder))), prompts, negative }))
    }

    /// Embeds what the cache misses, with a line in the log now and then: a collective of all ranks, after which the
    /// encoder is gone. Ends early once `stop` is set; whether all is there.
    ///
    /// # Errors
    /// The encoder's weights cannot be read, or the cache not written.
    pub fn fill_and_log(&self, comm: &Arc<dyn Communicator>, stop: &AtomicBool) -> Result<bool> {
        let encoder = self.encoder.lock().clone();
        let embed = |texts: &[String], report: &dyn Fn(f64)| match &encoder {
            Some(encoder) => encoder.encode(texts, &mut |done, of| report(done as f64 / of.max(1) as f64)),
            None => bail!(Data, "{}: an entry is gone that was there", self.cache.dir().display()),
        };
        let (begin, last) = (Instant::now(), Mutex::new(Instant::now()));
        let report = |share: f64| {
            let mut last = last.lock();
            if comm.rank() == 0 && share > 0.0 && last.elapsed() > SAID_EVERY {
                *last = Instant::now();
                let left = begin.elapsed().as_secs_f64() * (1.0 - share) / share;
                tracing::info!("embedding: {:.0} % on this rank, {left:.0} s left", 100.0 * share);
            }
        };
        let whole = embed_missing(&self.cache, &embed, comm, stop, &report)?;
        if comm.rank() == 0 {
            self.known.save(); // the folder is there by now
        }
        comm.barrier()?;
        drop(encoder);
        self.encoder.lock().take();
        Ok(whole)
    }

    /// A clip's text, by its caption; of none, the empty one.
    ///
    /// # Errors
    /// The entry is gone or damaged.
    pub fn of(&self, caption: Option<&str>) -> Result<TextTokens> {
        Ok(TextTokens::padded_to(self.cache.read(caption.unwrap_or_default())?, TEXT_LENGTH))
    }

    /// What clips are sampled by.
    ///
    /// # Errors
    /// As [`of`](Self::of).
    pub fn prompts(&self) -> Result<Prompts> {
        let texts = self.prompts.iter().map(|prompt| self.of(Some(prompt))).collect::<Result<_>>()?;
        Ok(Prompts { texts, negative: self.of(Some(&self.negative))? })
    }

    /// What the cache holds of the run's texts, and what else its folder holds.
    ///
    /// # Errors
    /// The folder cannot be listed.
    pub fn contents(&self) -> Result<Contents> {
        self.cache.contents()
    }
}

/// The prompts of `[sample]`; the empty text where there are none.
fn prompts(config: &RunConfig) -> Vec<String> {
    match &config.sample.prompts[..] {
        [] => vec![String::new()],
        prompts => prompts.to_vec(),
    }
}

/// Says how many texts, one of which is called `one` and several `several`, are cut.
fn warn_of_long_ones<'a>(
    encoder: &TextEncoder,
    [one, several]: [&str; 2],
    texts: impl Iterator<Item = &'a str>,
) -> Result<()> {
    if !is_first() {
        return Ok(());
    }
    let most = encoder.max_tokens();
    let different: BTreeSet<&str> = texts.collect();
    let texts: Vec<String> = different.into_iter().map(str::to_owned).collect();
    let cut = encoder.token_counts(&texts)?.into_iter().filter(|&count| count > most).count();
    if cut > 0 {
        let are = counted(cut, one, several);
        tracing::warn!("{are} longer than the {most} tokens that the text encoder takes: what goes beyond is cut");
    }
    Ok(())
}
