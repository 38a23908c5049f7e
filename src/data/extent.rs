//! The largest clips that a dataset's files allow.

use super::caught::caught;
use super::dataset::Dataset;
use super::options::ClipOptions;
use super::source::probe;
use rayon::prelude::*;

impl Dataset {
    /// The largest width and height of clips for which no file is too small, those counted that are too small now; none
    /// where there is no file. Files that are left out for another reason do not count.
    pub fn largest_size(&self) -> Option<(usize, usize)> {
        let any_size = ClipOptions { height: 1, width: 1, ..self.options().clone() };
        let left_out = self.skipped().par_iter().filter_map(|skip| {
            let file = caught(|| probe(&any_size, &skip.path)).ok()?;
            Some((file.width, file.height))
        });
        let left_out: Vec<_> = left_out.collect();
        let sizes = self.files().iter().map(|file| (file.width, file.height)).chain(left_out);
        sizes.reduce(|a, b| (a.0.min(b.0), a.1.min(b.1)))
    }
}
