//! Loaders of frames themselves, for programs; training takes the network's rows.

use super::dataset::Dataset;
use super::frames::FrameRegion;
use super::loader::{Loader, of_pixels};
use super::shuffle::Request;
use crate::Result;
use std::sync::Arc;

impl Loader {
    /// Starts to decode `part` (what a rank's tokens lie in) of the clips that `requests` name, as
    /// [`reading`](Self::reading) does.
    ///
    /// # Errors
    /// The system refuses a thread.
    pub fn new(
        dataset: Arc<Dataset>,
        part: FrameRegion,
        prefetch: usize,
        requests: impl Iterator<Item = Request> + Send + 'static,
    ) -> Result<Self> {
        Self::of_buckets(vec![(dataset, part)], prefetch, requests)
    }

    /// As [`new`](Self::new), of clips of several sizes: a dataset for each bucket, with what a rank needs of its
    /// clips.
    ///
    /// # Errors
    /// The system refuses a thread.
    pub fn of_buckets(
        buckets: Vec<(Arc<Dataset>, FrameRegion)>,
        prefetch: usize,
        requests: impl Iterator<Item = Request> + Send + 'static,
    ) -> Result<Self> {
        let datasets = buckets.iter().map(|bucket| bucket.0.clone()).collect();
        Self::reading(datasets, of_pixels(buckets), prefetch, requests)
    }
}
