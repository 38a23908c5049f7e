//! The text of samples as the network takes it: real tokens, and a count of pads, tokens of zeros that all samples
//! share.
//!
//! Wan pads each text to 512 tokens with zeros and masks none of them: a pad becomes a key like any other. All pads are
//! one key and one value, so they are embedded once and attended to as one key that counts so many times, which gives
//! what 512 tokens would, in the output and in the gradients.

use candle_core::{DType, Device, Tensor};
use std::ops::Range;

use crate::{Result, bail};

/// Tokens of a text with its pads, as Wan's networks were trained.
pub const TEXT_LENGTH: usize = 512;

/// The text of one sample.
#[derive(Clone, Debug)]
pub struct TextTokens {
    /// The real tokens `[n, text_dim]`; n may be 0 where there are pads.
    pub tokens: Tensor,
    /// Tokens of zeros that follow.
    pub pads: usize,
}

impl TextTokens {
    /// `tokens` `[n, text_dim]`, padded to `length` tokens; none is cut off.
    pub fn padded_to(tokens: Tensor, length: usize) -> Self {
        let pads = length.saturating_sub(tokens.dims()[0]);
        Self { tokens, pads }
    }

    /// The text that `tokens` `[L, text_dim]`, pads included, say: rows of zeros at the end are pads.
    ///
    /// # Errors
    /// They are no matrix.
    pub fn of_padded(tokens: &Tensor) -> Result<Self> {
        let (length, _) = tokens.dims2()?;
        let rows: Vec<Vec<f64>> = tokens.to_device(&Device::Cpu)?.to_dtype(DType::F64)?.to_vec2()?;
        let pads = rows.iter().rev().take_while(|row| row.iter().all(|&x| x == 0.0)).count();
        Ok(Self { tokens: tokens.narrow(0, 0, length - pads)?, pads })
    }
}

/// Which rows of the text of all samples belong to each of them.
#[derive(Clone, Debug, Default)]
pub struct TextRows {
    /// The rows of a sample's real tokens, and how many pads it has.
    samples: Vec<(Range<usize>, usize)>,
    /// Rows in all; the last one is the pad, if any sample has pads.
    rows: usize,
}

impl TextRows {
    /// The rows of `texts` `[rows, text_dim]` in the dtype of `like` and where that is, and whose they are. Samples
    /// that share a tensor share its rows.
    pub(super) fn gather(texts: &[TextTokens], features: usize, like: &Tensor) -> Result<(Self, Tensor)> {
        let mut parts: Vec<(&Tensor, Range<usize>)> = vec![];
        let (mut samples, mut rows) = (vec![], 0);
        for TextTokens { tokens, pads } in texts {
            let &[n, width] = tokens.dims() else {
                bail!(Shape, "a text's tokens are {:?}; [tokens, {features}] is wanted", tokens.dims())
            };
            if width != features || n + pads == 0 {
                bail!(Shape, "a text's tokens are [{n}, {width}] and {pads} pads; [tokens, {features}] is wanted")
            }
            let known = parts.iter().find(|(part, _)| part.id() == tokens.id()).map(|(_, range)| range.clone());
            let range = known.unwrap_or(rows..rows + n);
            if n > 0 && range.end > rows {
                parts.push((tokens, range.clone()));
                rows = range.end;
            }
            samples.push((range, *pads));
        }
        let tensor = |x: &Tensor| x.to_device(like.device())?.to_dtype(like.dtype());
        let mut all = parts.iter().map(|(part, _)| tensor(part)).collect::<candle_core::Result<Vec<_>>>()?;
        if texts.iter().any(|text| text.pads > 0) {
            all.push(Tensor::zeros((1, features), like.dtype(), like.device())?);
            rows += 1;
        }
        Ok((Self { samples, rows }, Tensor::cat(&all, 0)?))
    }

    /// The rows of samples of so many real tokens and pads each, one after another, and the row of the pad after them.
    pub fn of_lengths(lengths: &[(usize, usize)]) -> Self {
        let mut rows = 0;
        let mut sample = |&(n, pads): &(usize, usize)| {
            rows += n;
            (rows - n..rows, pads)
        };
        let samples = lengths.iter().map(&mut sample).collect();
        Self { samples, rows: rows + usize::from(lengths.iter().any(|length| length.1 > 0)) }
    }

    /// Runs of rows that a sample attends to, and how often each row counts: its real tokens, and the pad.
    pub(super) fn runs(&self, sample: usize) -> impl Iterator<Item = (Range<usize>, usize)> + use<> {
        let (tokens, pads) = self.samples[sample].clone();
        let pad = (self.rows - 1..self.rows, pads);
        [(tokens, 1), pad].into_iter().filter(|(rows, times)| !rows.is_empty() && *times > 0)
    }
}
