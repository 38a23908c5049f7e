//! Ring attention passes runs of keys and values from rank to rank, past queries that stay, so that more ranks than
//! heads can share a clip (arXiv 2310.01889).
//!
//! Forward merges what a rank's queries get from each run by its share of the softmax; backward lets the gradients of a
//! run travel with it and sends them home at the end. Until then everything is f32 (f64 for f64). Ranks take the runs
//! in a fixed order, each its own first, so sums have the same bits every time. Which rows a rank has, and how heads
//! got there, is not known here.

use candle_core::{DType, Tensor};
use rayon::prelude::*;
use std::ops::Range;
use std::sync::Arc;

use super::cpu::rehearsal::{rehearse_backward, rehearse_forward};
use super::operands::{Options, Qkv, SavedRows};
use super::{attend, check, differentiate};
use crate::observe::meter::StepMeter;
use crate::ops::bytes;
use crate::ops::{Real, Tape, add_assign, cast, read, write};
use crate::parallel::{Communicator, Split};
use crate::{Result, bail};

/// Attention among rows that are split over the ranks of a communicator by [`Split`].
#[derive(Clone)]
pub struct Ring {
    comm: Arc<dyn Communicator>,
    rows: Split,
    /// Attention takes its memory and sends its messages, but is not computed: all these ranks meet in its place.
    rehearsing: Option<Arc<dyn Communicator>>,
    meter: Arc<StepMeter>,
}

impl Ring {
    /// A ring over the ranks of `comm` for `rows` rows in all. Not a collective.
    ///
    /// # Errors
    /// If there are more ranks than rows.
    pub fn new(comm: Arc<dyn Communicator>, rows: usize) -> Result<Self> {
        let ranks = comm.size();
        if ranks > rows {
            bail!(
                Shape,
                "a ring of {ranks} ranks cannot share {rows} rows, since each needs at least one; use at most {rows} ranks"
            );
        }
        Ok(Self { comm, rows: Split::new(rows, ranks), rehearsing: None, meter: Arc::default() })
    }

    /// The same without the arithmetic: results are a constant, memory and messages are unchanged. The ranks of `all`
    /// hold their memory at the same time, as they would if they computed.
    pub fn rehearsing(self, all: Arc<dyn Communicator>) -> Self {
        Self { rehearsing: Some(all), ..self }
    }

    /// The same, counting its work with `meter` and stopping when that says so: results are then garbage.
    pub fn metered(self, meter: Arc<StepMeter>) -> Self {
        Self { meter, ..self }
    }

    /// The rows that this rank holds.
    pub fn local_rows(&self) -> Range<usize> {
        self.rows.range(self.comm.rank())
    }

    /// As [`flash`], of this rank's queries and all ranks' keys and values; the arguments are this rank's rows.
    /// Collective.
    ///
    /// # Errors
    /// If an argument is not as [`flash`] wants it or has other rows than [`local_rows`](Self::local_rows), or a rank
    /// fails.
    pub fn forward(&self, qkv: Qkv, scale: f64) -> Result<(Tensor, Tensor)> {
        let Qkv { q, k, v } = qkv;
        self.check(q)?;
        self.check(k)?;
        let alone = self.comm.size() == 1; // then results are final
        let of = |k: &Tensor, v: &Tensor| match &self.rehearsing {
            Some(all) => rehearse_forward(Qkv { q, k, v }, scale, alone, &|| all.barrier()),
            None => attend(Qkv { q, k, v }, Options { scale, rounded: alone, meter: &self.meter }),
        };
        if alone {
            return of(k, v);
        }
        let (o, lse) = of(k, v)?;
        let (mut k, mut v) = (k.clone(), v.clone());
        for run in self.later_runs() {
            (k, v) = (self.pass(k, run)?, self.pass(v, run)?);
            let (more, more_lse) = of(&k, &v)?;
            merge_into(&o, &lse, &more, &more_lse)?;
        }
        Ok((cast(&Tape::off(), &o, q.dtype())?, lse.to_dtype(check::statistic(q.dtype()))?))
    }

    /// As [`flash_backward`]: the gradients of this rank's rows, the arguments being this rank's rows. Collective.
    ///
    /// # Errors
    /// As [`forward`](Self::forward).
    pub fn backward(&self, qkv: Qkv, saved: SavedRows, scale: f64) -> Result<(Tensor, Tensor, Tensor)> {
        let Qkv { q, k, v } = qkv;
        self.check(q)?;
        self.check(k)?;
        let alone = self.comm.size() == 1;
        let of = |k: &Tensor, v: &Tensor| match &self.rehearsing {
            Some(all) => rehearse_backward(Qkv { q, k, v }, saved, scale, alone, &|| all.barrier()),
            None => differentiate(Qkv { q, k, v }, saved, Options { scale, rounded: alone, meter: &self.meter }),
        };
        if alone {
            return of(k, v);
        }
        let (dq, mut dk, mut dv) = of(k, v)?;
        let (mut k, mut v) = (k.clone(), v.clone());
        for run in self.later_runs() {
            (k, v) = (self.pass(k, run)?, self.pass(v, run)?);
            (dk, dv) = (self.pass(dk, run)?, self.pass(dv, run)?);
            let (q_share, k_share, v_share) = of(&k, &v)?;
            add_assign(&dq, &q_share)?;
            add_assign(&dk, &k_share)?;
            add_assign(&dv, &v_share)?;
        }
        // Every run has now been everywhere and is one step from home.
        let home = self.comm.rank();
        (dk, dv) = (self.pass(dk, home)?, self.pass(dv, home)?);
        let dtype = q.dtype();
        let rounded = |x| cast(&Tape::off(), x, dtype);
        Ok((rounded(&dq)?, rounded(&dk)?, rounded(&dv)?))
    }

    /// Whose rows come by after this rank's own, in turn: the rank before it, the one before that, ...
    fn later_runs(&self) -> impl Iterator<Item = usize> + use<> {
        let (rank, ranks) = (self.comm.rank(), self.comm.size());
        (1..ranks).map(move |step| (rank + ranks - step) % ranks)
    }

    /// Gives `x` `[B, H, rows, d]` to the next rank and takes rank `run`'s rows from the rank before.
    ///
    /// An all-to-all with nothing for the others says the same as a send and a receive, so that no backend needs a call
    /// of its own for it.
    fn pass(&self, x: Tensor, run: usize) -> Result<Tensor> {
        let (rank, ranks) = (self.comm.rank(), self.comm.size());
        let (next, before) = ((rank + 1) % ranks, (rank + ranks - 1) % ranks);
        let mut expected = x.dims().to_vec();
        expected[2] = self.rows.count(run);
        let shapes: Vec<Vec<usize>> =
            (0..ranks).map(|from| if from == before { expected.clone() } else { vec![0] }).collect();
        let nothing = bytes::zeros(&[0], x.dtype(), x.device())?;
        let mut send = vec![nothing; ranks];
        send[next] = x;
        Ok(self.comm.all_to_all(send, &shapes)?.swap_remove(before))
    }

    fn check(&self, x: &Tensor) -> Result<()> {
        let own_rows = self.local_rows();
        if x.rank() != 4 || x.dims()[2] != own_rows.len() {
            let (rank, ranks) = (self.comm.rank(), self.comm.size());
            bail!(
                Shape,
                "ring attention on rank {rank} of {ranks}: expected [B, H, {}, d], got {:?}",
                own_rows.len(),
                x.dims()
            );
        }
        Ok(())
    }
}

/// [`merge`] where the tensors are, in their dtype.
pub(super) fn merge_into(o: &Tensor, lse: &Tensor, more: &Tensor, more_lse: &Tensor) -> Result<()> {
    #[cfg(feature = "cuda")]
    if o.device().is_cuda() {
        return Ok(super::cuda::merge(o, lse, more, more_lse)?);
    }
    match o.dtype() {
        DType::F64 => merge::<f64>(o, lse, more, more_lse),
        _ => merge::<f32>(o, lse, more, more_lse),
    }
}

/// Merges `more` `[B, H, S, d]`, what the same queries got from other keys, into `o`, and `more_lse` `[B, H, S]` (f64)
/// into `lse`.
///
/// Weights are exp(lse - max), of which one is 1 and none overflows, over their sum.
fn merge<T: Real>(o: &Tensor, lse: &Tensor, more: &Tensor, more_lse: &Tensor) -> Result<()> {
    let d = o.dims()[3];
    let more_lse = read::<f64>(more_lse)?;
    let shares = write(lse, |lse: &mut [f64]| {
        let merged = lse.par_iter_mut().zip(&more_lse[..]).map(|(lse, &more)| {
            let max = lse.max(more);
            let (weight, more_weight) = ((*lse - max).exp(), (more - max).exp());
            let sum = weight + more_weight;
            *lse = max + sum.ln();
            [T::of(weight / sum), T::of(more_weight / sum)]
        });
        merged.collect::<Vec<_>>()
    })?;
    let more = read::<T>(more)?;
    write(o, |o: &mut [T]| {
        o.par_chunks_mut(d).zip(more.par_chunks(d)).zip(&shares).with_min_len(64).for_each(|((o, more), share)| {
            o.iter_mut().zip(more).for_each(|(o, &more)| *o = share[0] * *o + share[1] * more);
        });
    })?;
    Ok(())
}
