//! Fills a cache: encodes the clips that are missing, each rank clips of its own where there are enough, and all ranks
//! the rows of each clip where there are not.

use candle_core::{Device, Tensor};
use std::collections::HashSet;
use std::fs::File;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::cache::LatentCache;
use super::clip_reader::ClipReader;
use crate::data::Dataset;
use crate::files::{file_size, free_space};
use crate::parallel::{Communicator, Reduce, Single, agree};
use crate::terminal::counted;
use crate::vae::{Encoder, Frame};
use crate::{Error, Result, bail};

/// Bytes of pixels that are decoded at a time.
pub const CHUNK: usize = 256 << 20;

/// How far filling is, on one rank.
#[derive(Clone, Copy, Debug)]
pub struct Filling {
    /// Frames encoded by this rank.
    pub frames: usize,
    /// Frames that it will have encoded.
    pub of: usize,
}

/// Encodes what `cache` misses of `dataset`; a collective of the ranks of `comm`. `encoder` is asked for only if
/// something is missing, and `report` is called as frames are done. Ends early, between clips, once `stop` is set on
/// any rank; returns whether all is there. To `verify`, what is there is read and compared with its checksums.
///
/// # Errors
/// The disk has too little room, which is said before anything is encoded; a clip cannot be decoded; an entry cannot
/// be written. What was written before stays and is found again.
pub fn fill(
    cache: &LatentCache,
    dataset: &Dataset,
    encoder: &dyn Fn() -> Result<Encoder>,
    comm: &Arc<dyn Communicator>,
    verify: bool,
    stop: &AtomicBool,
    report: &dyn Fn(Filling),
) -> Result<bool> {
    agree(comm.as_ref(), "the clips to encode, by what they depend on", cache.fingerprint())?;
    let missing = agreed(comm, cache.entries().len(), || {
        let mut seen = HashSet::new(); // equal files have one entry
        cache.missing(verify).into_iter().filter(|&i| seen.insert(&cache.entries()[i].key)).collect()
    })?;
    if missing.is_empty() {
        return Ok(true);
    }
    cache.prepare()?;
    if comm.rank() == 0 {
        announce(cache, missing.len())?;
    }
    comm.barrier()?; // nobody encodes where there is no room
    let encoder = encoder()?;
    let each = dataset.options().frames;
    let (rank, size) = (comm.rank(), comm.size());
    let all = comm;
    let (own, comm, writes): (Vec<usize>, Arc<dyn Communicator>, bool) = match missing.len() >= size {
        true => (missing.into_iter().skip(rank).step_by(size).collect(), Arc::new(Single), true),
        false => (missing, comm.clone(), rank == 0),
    };
    let of = own.len() * each;
    for (done, entry) in own.into_iter().enumerate() {
        if is_any(comm.as_ref(), stop.load(Ordering::SeqCst))? {
            break;
        }
        let latents = encode(cache, dataset, entry, &encoder, &comm, &|frames| {
            report(Filling { frames: done * each + frames, of })
        })?;
        if writes {
            cache.write(entry, &latents)?;
        }
    }
    Ok(!is_any(all.as_ref(), stop.load(Ordering::SeqCst))?)
}

/// Whether any rank says yes.
pub(super) fn is_any(comm: &dyn Communicator, yes: bool) -> Result<bool> {
    let sum = Tensor::new(&[f64::from(u8::from(yes))], &Device::Cpu)?;
    comm.all_reduce(&sum, Reduce::Max)?;
    Ok(sum.to_vec1::<f64>()? != [0.0])
}

/// Which of `entries` entries rank 0 misses, on all ranks: files may appear between two looks.
pub(super) fn agreed(
    comm: &Arc<dyn Communicator>,
    entries: usize,
    missing: impl FnOnce() -> Vec<usize>,
) -> Result<Vec<usize>> {
    let mut misses = vec![0f64; entries];
    if comm.rank() == 0 {
        missing().into_iter().for_each(|i| misses[i] = 1.0);
    }
    let misses = Tensor::from_vec(misses, entries, &Device::Cpu)?;
    comm.broadcast(&misses, 0)?;
    let misses = misses.to_vec1::<f64>()?;
    Ok((0..misses.len()).filter(|&i| misses[i] > 0.0).collect())
}

/// Says what will be written, and refuses if there is no room for it.
fn announce(cache: &LatentCache, missing: usize) -> Result<()> {
    let bytes = missing as u64 * cache.entry_bytes();
    let dir = cache.dir();
    tracing::info!(
        "{}: {} of {} to encode, {}",
        dir.display(),
        counted(missing, "clip", "clips"),
        cache.entries().len(),
        file_size(bytes)
    );
    let free = File::open(dir).and_then(free_space).map_err(|e| Error::io(dir, e))?;
    if free < bytes {
        let (free, bytes, dir) = (file_size(free), file_size(bytes), dir.display());
        bail!(Environment, "{dir}: {free} are free, the latents take {bytes}; name another folder as vae.cache");
    }
    Ok(())
}

/// Encodes one entry's clip, decoding some frames at a time.
fn encode(
    cache: &LatentCache,
    dataset: &Dataset,
    entry: usize,
    encoder: &Encoder,
    comm: &Arc<dyn Communicator>,
    report: &dyn Fn(usize),
) -> Result<Vec<Frame>> {
    let entry = &cache.entries()[entry];
    let [frames, height, width] = dataset.options().size();
    let mut reader = ClipReader::new(dataset, entry.clip, entry.augment, CHUNK);
    let again = reader.holds_all();
    let mut read = |t: usize, rows: Range<usize>| reader.read(t, rows, 0..width);
    let moments = super::encode(encoder, comm, frames, [height, width], again, &mut read, &mut |done| report(done))
        .map_err(|e| e.at(&entry.name))?;
    Ok(moments.iter().map(|frame| encoder.latents(frame)).collect())
}
