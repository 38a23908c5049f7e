//! Multiplies rows with matrices of a weight file, which are read and packed panel by panel within the product.
//!
//! A panel is some rows of a matrix, so it lies in one piece in the file. The thread that multiplies with it reads it
//! (`pread`: a file that is cut short meanwhile is an error, where a memory map would be a bus error), widens it and
//! packs it, all in memory of its own that stays in cache.

use std::sync::{Arc, OnceLock};
use std::time::Instant;

use super::times::Times;
use super::weights::EncoderWeights;
use crate::Result;
use crate::ops::products::on_isa;
use crate::simd::Isa;
use crate::simd::panel::{self, along_into, along_words};
use crate::simd::product::Epilogue;
use crate::simd::scratch::Scratch;
use crate::simd::streamed::{self, RowTiles};
use crate::simd::vector::Simd;

/// What products are computed with.
#[derive(Clone, Copy, Debug)]
pub(super) struct Arithmetic {
    pub isa: Isa,
    /// Round operands of the linear layers' products to bf16; all else stays f32.
    pub bf16: bool,
}

/// A linear layer's weights `[out, inner]`, which products read and pack panel by panel.
pub(super) struct Matrix<'a> {
    weights: &'a EncoderWeights,
    name: String,
    out: usize,
    inner: usize,
    arithmetic: Arithmetic,
    /// Panels that have been packed, for further products; nothing: none are kept.
    kept: Option<Vec<OnceLock<Arc<Scratch>>>>,
}

impl<'a> Matrix<'a> {
    /// Of the tensor `name`, its packed form kept or not.
    pub fn new(
        weights: &'a EncoderWeights,
        name: &str,
        [out, inner]: [usize; 2],
        arithmetic: Arithmetic,
        kept: bool,
    ) -> Self {
        let panels = on_isa!(arithmetic, S => out.div_ceil(panel::right::<S>()));
        let kept = kept.then(|| (0..panels).map(|_| OnceLock::new()).collect());
        Self { weights, name: name.to_owned(), out, inner, arithmetic, kept }
    }

    /// Rows `x` `[n, inner]`, packed for products with this matrix and others of its width.
    pub fn rows(&self, x: &[f32]) -> RowTiles {
        let x = panel::Matrix::new(x, x.len() / self.inner, self.inner);
        on_isa!(self.arithmetic, S => RowTiles::pack::<S>(x))
    }

    /// Where its time is counted.
    pub fn times(&self) -> &'a Times {
        &self.weights.times
    }

    /// `epilogue(x Wᵀ)` of packed rows.
    ///
    /// # Errors
    /// The weights cannot be read, or have a value that is not finite.
    pub fn apply(&self, rows: &RowTiles, epilogue: &impl Epilogue<f32>) -> Result<Vec<f32>> {
        self.apply_with(None, rows, epilogue)
    }

    /// `epilogue(x Wᵀ)`, which finds the sums with a second matrix of the same shape beside.
    ///
    /// # Errors
    /// Those of [`apply`](Self::apply).
    pub fn apply_with(
        &self,
        second: Option<&Self>,
        rows: &RowTiles,
        epilogue: &impl Epilogue<f32>,
    ) -> Result<Vec<f32>> {
        on_isa!(self.arithmetic, S => {
            let panel = |matrix, i| second.filter(|_| matrix == 1).unwrap_or(self).panel::<S>(i);
            streamed::product::<S, _>(rows, self.out, second.is_some(), panel, epilogue)
        })
    }

    /// Panel `i`.
    fn panel<S: Simd>(&self, i: usize) -> Result<Arc<Scratch>> {
        let kept = self.kept.as_ref().map(|kept| &kept[i]);
        if let Some(panel) = kept.and_then(OnceLock::get) {
            return Ok(panel.clone());
        }
        let Self { weights, inner, .. } = *self;
        let first = i * panel::right::<S>();
        let count = panel::right::<S>().min(self.out - first);
        let start = Instant::now();
        let mut values = Scratch::take(count * inner);
        weights.read_at(&self.name, first * inner, values.floats())?;
        Times::add(&weights.times.reading, start);
        let start = Instant::now();
        let mut words = Scratch::take(along_words::<S>(inner));
        along_into::<S>(panel::Matrix::new(values.floats(), count, inner), &mut words);
        Times::add(&weights.times.packing, start);
        let panel = Arc::new(words);
        match kept {
            // A product asks for each panel once, and products follow each other.
            Some(kept) => Ok(kept.get_or_init(|| panel).clone()),
            None => Ok(panel),
        }
    }
}
