//! Fills a cache: encodes the clips that are missing, each rank clips of its own where there are enough, and all ranks
//! the rows of each clip where there are not.

use candle_core::{Device, Tensor};
use std::ops::Range;
use std::sync::Arc;

use super::cache::LatentCache;
use crate::data::{Dataset, FrameRegion, Frames, u8_to_unit};
use crate::parallel::{Communicator, Single};
use crate::terminal::counted;
use crate::vae::{Encoder, Frame};
use crate::{Error, Result, bail};

/// Bytes of pixels that are decoded at a time.
const CHUNK: usize = 64 << 20;

/// How far filling is, on one rank.
#[derive(Clone, Copy, Debug)]
pub struct Filling {
    /// Frames encoded by this rank.
    pub frames: usize,
    /// Frames that it will have encoded.
    pub of: usize,
}

/// Encodes what `cache` misses of `dataset`; a collective of the ranks of `comm`. `encoder` is asked for only if
/// something is missing, and `report` is called as frames are done.
///
/// # Errors
/// The disk has too little room, which is said before anything is encoded; a clip cannot be decoded; an entry cannot
/// be written. What was written before stays and is found again.
pub fn fill(
    cache: &LatentCache,
    dataset: &Dataset,
    encoder: &dyn Fn() -> Result<Encoder>,
    comm: &Arc<dyn Communicator>,
    report: &dyn Fn(Filling),
) -> Result<()> {
    let missing = agreed(cache, comm)?;
    if missing.is_empty() {
        return Ok(());
    }
    if comm.rank() == 0 {
        announce(cache, missing.len())?;
    }
    comm.barrier()?; // nobody encodes where there is no room
    let encoder = encoder()?;
    let each = dataset.options().frames;
    let (rank, size) = (comm.rank(), comm.size());
    let (own, comm, writes): (Vec<usize>, Arc<dyn Communicator>, bool) = match missing.len() >= size {
        true => (missing.into_iter().skip(rank).step_by(size).collect(), Arc::new(Single), true),
        false => (missing, comm.clone(), rank == 0),
    };
    let of = own.len() * each;
    for (done, entry) in own.into_iter().enumerate() {
        let latents = encode(cache, dataset, entry, &encoder, &comm, &|frames| {
            report(Filling { frames: done * each + frames, of })
        })?;
        if writes {
            cache.write(entry, &latents)?;
        }
    }
    Ok(())
}

/// The entries that rank 0 misses, on all ranks: files may appear between two looks.
fn agreed(cache: &LatentCache, comm: &Arc<dyn Communicator>) -> Result<Vec<usize>> {
    let mut misses = vec![0f64; cache.entries().len()];
    if comm.rank() == 0 {
        cache.missing().into_iter().for_each(|i| misses[i] = 1.0);
    }
    let misses = Tensor::from_vec(misses, cache.entries().len(), &Device::Cpu)?;
    comm.broadcast(&misses, 0)?;
    let misses = misses.to_vec1::<f64>()?;
    Ok((0..misses.len()).filter(|&i| misses[i] > 0.0).collect())
}

/// Says what will be written, and refuses if there is no room for it.
fn announce(cache: &LatentCache, missing: usize) -> Result<()> {
    let bytes = missing as u64 * cache.entry_bytes();
    let dir = cache.dir();
    let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
    tracing::info!(
        "{}: {} of {} to encode, {:.1} MiB",
        dir.display(),
        counted(missing, "clip", "clips"),
        cache.entries().len(),
        mib(bytes)
    );
    let room = rustix::fs::statvfs(dir).map_err(|e| Error::io(dir, e.into()))?;
    let free = room.f_bavail.saturating_mul(room.f_frsize);
    if free < bytes {
        bail!(
            Environment,
            "{}: the disk has {:.1} MiB left, the latents take {:.1}; name another folder as vae.cache",
            dir.display(),
            mib(free),
            mib(bytes)
        );
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
    let clip = dataset.clip(entry.clip);
    let [frames, height, width] = dataset.options().size();
    let mut chunk: Option<Frames> = None;
    let mut read = |t: usize, rows: Range<usize>| {
        let held = chunk.as_ref().filter(|chunk| (chunk.first..chunk.first + chunk.count()).contains(&t));
        let chunk = match held {
            Some(_) => chunk.as_ref().expect("it holds the frame"),
            None => {
                let count = (CHUNK / (rows.len() * width * 3)).clamp(1, frames - t);
                let region = FrameRegion { frames: t..t + count, lines: rows.clone() };
                chunk.insert(dataset.region(&clip, &entry.augment, &region)?)
            }
        };
        let values = chunk.frame(t - chunk.first).iter().map(|&value| u8_to_unit(value)).collect();
        Ok(Frame::new([rows.len(), width, 3], values))
    };
    let moments = super::encode(encoder, comm, frames, [height, width], &mut read, &mut |done| report(done))
        .map_err(|e| e.at(&entry.name))?;
    Ok(moments.iter().map(|frame| encoder.latents(frame)).collect())
}
