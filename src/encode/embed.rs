//! Fills a cache of embeddings: embeds the texts that are missing, each rank some of them.

use candle_core::Tensor;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::embeddings::EmbeddingCache;
use super::fill::{agreed, is_any};
use crate::Result;
use crate::parallel::{Communicator, agree};
use crate::terminal::counted;

/// Texts that are embedded at a time: the encoder reads its weights once for all of them, and holds their tokens.
pub const AT_ONCE: usize = 64;

/// Embeds texts: `[n, features]` of each, calling back with the share of the work that is done.
pub type EmbedTexts<'a> = dyn Fn(&[String], &dyn Fn(f64)) -> Result<Vec<Tensor>> + 'a;

/// Embeds what `cache` misses; a collective of the ranks of `comm`. `embed` is called only if something is missing;
/// `report` is told the share that is done on this rank. Ends early, between some texts, once `stop` is set on any
/// rank; returns whether all is there.
///
/// # Errors
/// Those of `embed`; an entry cannot be written. What was written before stays and is found again.
pub fn embed_missing(
    cache: &EmbeddingCache,
    embed: &EmbedTexts,
    comm: &Arc<dyn Communicator>,
    stop: &AtomicBool,
    report: &dyn Fn(f64),
) -> Result<bool> {
    agree(comm.as_ref(), "the texts to embed, by what they depend on", cache.fingerprint())?;
    let missing = agreed(comm, cache.len(), || cache.missing())?;
    if missing.is_empty() {
        return Ok(true);
    }
    cache.prepare()?;
    if comm.rank() == 0 {
        let missing = counted(missing.len(), "text", "texts");
        tracing::info!("{}: {missing} of {} to embed", cache.dir().display(), cache.len());
    }
    let own: Vec<usize> = missing.into_iter().skip(comm.rank()).step_by(comm.size()).collect();
    for (done, texts) in own.chunks(AT_ONCE).enumerate() {
        if stop.load(Ordering::SeqCst) {
            break;
        }
        let before = (done * AT_ONCE) as f64;
        let share = |share: f64| report((before + share * texts.len() as f64) / own.len() as f64);
        let words: Vec<String> = texts.iter().map(|&i| cache.text(i).to_owned()).collect();
        for (&i, embedding) in texts.iter().zip(embed(&words, &share)?) {
            cache.write(i, &embedding)?;
        }
    }
    Ok(!is_any(comm.as_ref(), stop.load(Ordering::SeqCst))?)
}
