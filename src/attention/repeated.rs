//! Attends to runs of keys of which each counts several times: to many equal keys at the cost of one.
//!
//! m equal keys with equal values add m times the same to a softmax's sums, as one key does with ln(m) on its logit. So
//! queries attend to each run by itself, and the results merge by their row statistics, as those of a ring do. Backward
//! takes the merged statistic less ln(m), and then the gradients are the sums of what the m keys would get.

use candle_core::Tensor;

use super::operands::{Options, Qkv, SavedRows};
use super::ring::merge_into;
use super::{attend, check, differentiate};
use crate::observe::meter::StepMeter;
use crate::ops::{Tape, add_assign, cast};
use crate::{Result, bail};

/// Keys and values, each of which counts `times` times.
#[derive(Clone, Debug)]
pub struct KeyRun {
    /// `[B, H, Sk, d]`
    pub k: Tensor,
    /// `[B, H, Sk, d]`
    pub v: Tensor,
    /// At least 1.
    pub times: usize,
}

/// As [`flash`](super::flash), of queries `[B, H, Sq, d]` and all keys of `runs`, at least one.
///
/// # Errors
/// There is no run, or one counts no times; an argument is not as [`flash`](super::flash) wants it.
pub fn flash_repeated(q: &Tensor, runs: &[KeyRun], scale: f64) -> Result<(Tensor, Tensor)> {
    check_runs(runs)?;
    let options = Options { scale, rounded: false, meter: &StepMeter::default() };
    let one = |run: &KeyRun| -> Result<(Tensor, Tensor)> {
        let (o, lse) = attend(Qkv::new(q, &run.k, &run.v), options)?;
        Ok((o, if run.times == 1 { lse } else { (lse + weight(run))? }))
    };
    if let [run] = runs
        && run.times == 1
    {
        return attend(Qkv::new(q, &run.k, &run.v), Options { rounded: true, ..options });
    }
    let (o, lse) = one(&runs[0])?;
    for run in &runs[1..] {
        let (more, more_lse) = one(run)?;
        merge_into(&o, &lse, &more, &more_lse)?;
    }
    Ok((cast(&Tape::off(), &o, q.dtype())?, lse.to_dtype(check::statistic(q.dtype()))?))
}

/// Gradients of [`flash_repeated`] with respect to q, and to each run's keys and values, in q's dtype.
///
/// # Errors
/// As [`flash_repeated`], and [`flash_backward`](super::flash_backward).
pub fn flash_repeated_backward(
    q: &Tensor,
    runs: &[KeyRun],
    saved: SavedRows,
    scale: f64,
) -> Result<(Tensor, Vec<[Tensor; 2]>)> {
    check_runs(runs)?;
    let options = Options { scale, rounded: false, meter: &StepMeter::default() };
    let rounded = |x: &Tensor| cast(&Tape::off(), x, q.dtype());
    let (mut d_q, mut of_runs): (Option<Tensor>, _) = (None, vec![]);
    for run in runs {
        let lse = if run.times == 1 { saved.lse.clone() } else { (saved.lse - weight(run))? };
        let saved = SavedRows::new(saved.d_o, &lse, saved.delta);
        let (share, d_k, d_v) = differentiate(Qkv::new(q, &run.k, &run.v), saved, options)?;
        match &d_q {
            None => d_q = Some(share),
            Some(d_q) => add_assign(d_q, &share)?,
        }
        of_runs.push([rounded(&d_k)?, rounded(&d_v)?]);
    }
    let Some(d_q) = d_q else { bail!(Shape, "attention: there are no keys") };
    Ok((rounded(&d_q)?, of_runs))
}

/// What a run's logits have more than those of keys that count once.
fn weight(run: &KeyRun) -> f64 {
    (run.times as f64).ln()
}

fn check_runs(runs: &[KeyRun]) -> Result<()> {
    if runs.is_empty() || runs.iter().any(|run| run.times == 0) {
        bail!(Shape, "attention: there are no keys, or some that count no times");
    }
    Ok(())
}
