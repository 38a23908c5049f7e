//! Decodes clips ahead of the step, by threads that fill a bounded queue in the order in which clips were asked for.
//!
//! The queue holds what is decoded and what is being decoded, so memory is bounded by its length. A clip that cannot be
//! decoded ends the iterator with an error in its place, so no clip is left out silently.
//! Where all clips together are small, each is decoded once ([`FrameCache`]).

use super::dataset::{Clip, Dataset};
use super::frame_cache::{self, FrameCache};
use super::frames::{ClipRows, FrameRegion, Frames};
use super::shuffle::Request;
use crate::parallel::thread_refused;
use crate::{Error, Result, bail};
use parking_lot::{Condvar, Mutex};
use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// A clip, or a rank's part of it, ready for the step; `C` is what its values are.
#[derive(Clone, Debug)]
pub struct Sample<C: ?Sized = Frames> {
    /// What was asked for.
    pub request: Request,
    /// The clip that the frames are of.
    pub clip: Clip,
    /// Shared with the cache of the clips decoded before.
    pub frames: Arc<C>,
}

/// Reads what is asked for of a clip, unless the flag is set meanwhile.
pub type ReadClip<C> = dyn Fn(&Request, &Clip, &AtomicBool) -> Result<Arc<C>> + Send + Sync;

/// An iterator over the clips asked for, decoded by background threads. Dropping it stops them.
pub struct Loader<C: ?Sized + Send + Sync = Frames> {
    shared: Arc<Shared<C>>,
    threads: Vec<JoinHandle<()>>,
    waited: Duration,
}

struct Shared<C: ?Sized> {
    /// By bucket.
    datasets: Vec<Arc<Dataset>>,
    read: Box<ReadClip<C>>,
    prefetch: usize,
    queue: Mutex<Queue<C>>,
    changed: Condvar,
    stop: AtomicBool,
}

struct Queue<C: ?Sized> {
    requests: Box<dyn Iterator<Item = Request> + Send>,
    /// Requests handed to threads.
    issued: u64,
    /// Clips handed to the consumer.
    taken: u64,
    /// Requests that there are in all, once that is known.
    total: Option<u64>,
    ready: BTreeMap<u64, Result<Sample<C>>>,
}

impl Loader<dyn ClipRows> {
    /// Starts to decode, for the network's rows, what a rank's tokens lie in of the clips that `requests` name: a
    /// dataset for each bucket, with the region of its clips. See [`reading`](Loader::reading).
    ///
    /// # Errors
    /// The system refuses a thread.
    pub fn rows(
        buckets: Vec<(Arc<Dataset>, FrameRegion)>,
        prefetch: usize,
        requests: impl Iterator<Item = Request> + Send + 'static,
    ) -> Result<Self> {
        let datasets = buckets.iter().map(|bucket| bucket.0.clone()).collect();
        let read = of_pixels(buckets);
        let rows = move |request: &Request, clip: &Clip, stop: &AtomicBool| {
            read(request, clip, stop).map(|frames| frames as Arc<dyn ClipRows>)
        };
        Self::reading(datasets, Box::new(rows), prefetch, requests)
    }
}

/// Reads the parts of clips that a rank needs, and keeps them where all of all buckets together are small.
pub(super) fn of_pixels(buckets: Vec<(Arc<Dataset>, FrameRegion)>) -> Box<ReadClip<Frames>> {
    let bytes = |(dataset, part): &(Arc<Dataset>, FrameRegion)| {
        let options = dataset.options();
        FrameCache::bytes(options, dataset.len(), part.bytes(options.width) as u64)
    };
    let fit = buckets.iter().map(bytes).sum::<u64>() <= frame_cache::MOST;
    let cached = |(dataset, part): (Arc<Dataset>, FrameRegion)| {
        let cache = FrameCache::new(dataset.options(), if fit { dataset.len() } else { usize::MAX }, &part);
        (dataset, part, cache)
    };
    let buckets: Vec<_> = buckets.into_iter().map(cached).collect();
    Box::new(move |request, clip, stop| {
        let (dataset, part, cache) = &buckets[request.bucket];
        cache.get(request, || dataset.region_until(clip, &request.augment, part, Some(stop)))
    })
}

impl<C: ?Sized + Send + Sync + 'static> Loader<C> {
    /// Starts to read the clips that `requests` name by `read`, which may give up once its flag is set: at most
    /// `prefetch` clips ahead, by as many threads but not more than the machine has cores.
    ///
    /// # Errors
    /// The system refuses a thread.
    pub fn reading(
        datasets: Vec<Arc<Dataset>>,
        read: Box<ReadClip<C>>,
        prefetch: usize,
        requests: impl Iterator<Item = Request> + Send + 'static,
    ) -> Result<Self> {
        let prefetch = prefetch.max(1);
        let queue = Queue { requests: Box::new(requests), issued: 0, taken: 0, total: None, ready: BTreeMap::new() };
        let shared = Arc::new(Shared {
            datasets,
            read,
            prefetch,
            queue: Mutex::new(queue),
            changed: Condvar::new(),
            stop: AtomicBool::new(false),
        });
        let mut loader = Self { shared, threads: Vec::new(), waited: Duration::ZERO };
        let cores = std::thread::available_parallelism().map_or(1, |n| n.get());
        for i in 0..prefetch.min(cores) {
            let shared = loader.shared.clone();
            let thread = std::thread::Builder::new()
                .name(format!("decode-{i}"))
                .spawn(move || shared.work())
                .map_err(|e| thread_refused("a thread to decode clips", &e))?;
            loader.threads.push(thread);
        }
        Ok(loader)
    }

    /// How long the consumer has waited for clips, in all.
    pub fn waited(&self) -> Duration {
        self.waited
    }
}

impl<C: ?Sized + Send + Sync> Iterator for Loader<C> {
    type Item = Result<Sample<C>>;

    /// The next clip; waits for it if need be. None after the last one, or after an error.
    fn next(&mut self) -> Option<Self::Item> {
        let start = Instant::now();
        let mut queue = self.shared.queue.lock();
        let sample = loop {
            let ticket = queue.taken;
            if queue.total.is_some_and(|total| ticket >= total) {
                return None; // even if clips behind an error are ready
            }
            if let Some(sample) = queue.ready.remove(&ticket) {
                break sample;
            }
            self.shared.changed.wait(&mut queue);
        };
        queue.taken += 1;
        if sample.is_err() {
            queue.total = Some(queue.taken);
        }
        drop(queue);
        self.shared.changed.notify_all();
        self.waited += start.elapsed();
        Some(sample)
    }
}

impl<C: ?Sized + Send + Sync> Drop for Loader<C> {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        drop(self.shared.queue.lock()); // whoever is about to wait has seen the flag or gets the notice
        self.shared.changed.notify_all();
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

impl<C: ?Sized> Shared<C> {
    fn work(&self) {
        while let Some((ticket, request)) = self.next_request() {
            let sample = catch_unwind(AssertUnwindSafe(|| self.decode(request)))
                .unwrap_or_else(|_| Err(Error::Data(format!("decoding clip {} panicked", request.clip))));
            self.queue.lock().ready.insert(ticket, sample);
            self.changed.notify_all();
        }
    }

    /// The next request, once there is room for its clip; none when there is nothing left to do.
    fn next_request(&self) -> Option<(u64, Request)> {
        let mut queue = self.queue.lock();
        loop {
            if self.stop.load(Ordering::Relaxed) || queue.total.is_some() {
                return None;
            }
            if queue.issued - queue.taken < self.prefetch as u64 {
                break;
            }
            self.changed.wait(&mut queue);
        }
        let ticket = queue.issued;
        // A panic of the caller's iterator must end as an error at the consumer, not as a wait without end.
        match catch_unwind(AssertUnwindSafe(|| queue.requests.next())) {
            Ok(Some(request)) => {
                queue.issued += 1;
                return Some((ticket, request));
            }
            Ok(None) => queue.total = Some(ticket),
            Err(_) => {
                let error = Error::Data(format!("the list of clips to decode panicked at its entry {ticket}"));
                queue.ready.insert(ticket, Err(error));
                queue.total = Some(ticket + 1);
            }
        }
        drop(queue);
        self.changed.notify_all();
        None
    }

    fn decode(&self, request: Request) -> Result<Sample<C>> {
        let Some(dataset) = self.datasets.get(request.bucket) else {
            bail!(Data, "bucket {} was asked for, there are {}", request.bucket, self.datasets.len())
        };
        if request.clip >= dataset.len() {
            bail!(Data, "clip {} was asked for, there are {}", request.clip, dataset.len())
        }
        let clip = dataset.clip(request.clip);
        let frames = (self.read)(&request, &clip, &self.stop)?;
        Ok(Sample { request, clip, frames })
    }
}
