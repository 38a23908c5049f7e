//! Computes cross-attention of a tile's queries to the few tokens of its samples' text. It is token-local in the
//! queries, so it runs inside the tile. Gradients of keys and values are added to their leaves.

use candle_core::{DType, Result, Tensor};
use std::ops::Range;
use std::sync::Arc;

use super::text::TextRows;
use crate::attention::{KeyRun, SavedRows, flash_repeated, flash_repeated_backward};
use crate::ops::bytes::in_order;
use crate::ops::{Custom, Op1, Param, Real, Rows, Tape, cast};

/// A block's keys and values of the text of all samples.
#[derive(Clone)]
pub struct CrossText {
    /// `[rows, D]`
    pub keys: Param,
    /// `[rows, D]`
    pub values: Param,
    /// Whose rows they are.
    pub rows: Arc<TextRows>,
}

/// softmax(q kᵀ / sqrt(d)) v for queries `[n, H d]` against the keys and values of their own sample's text.
/// Differentiable in q.
pub fn cross_attention(
    tape: &Tape,
    q: &Tensor,
    text: &CrossText,
    heads: usize,
    rows: Rows,
    bf16: bool,
) -> Result<Tensor> {
    tape.one(q, Custom(Cross { text: text.clone(), heads, rows, bf16 }))
}

struct Cross {
    text: CrossText,
    heads: usize,
    rows: Rows,
    bf16: bool,
}

impl Cross {
    /// `[rows, H d]` as `[1, H, rows, d]`, in the compute dtype.
    fn heads_first(&self, x: &Tensor) -> Result<Tensor> {
        let (n, width) = x.dims2()?;
        let x = if self.bf16 && x.dtype() == DType::F32 { cast(&Tape::off(), x, DType::BF16)? } else { x.clone() };
        x.reshape((1, n, self.heads, width / self.heads))?.transpose(1, 2)
    }

    /// `[1, H, rows, d]` as `[rows, H d]`, in `dtype`.
    fn rows_first(&self, x: &Tensor, dtype: DType) -> Result<Tensor> {
        let (_, heads, n, d) = x.dims4()?;
        let x = in_order(&x.transpose(1, 2)?).map_err(crate::Error::into_candle)?;
        cast(&Tape::off(), &x.reshape((n, heads * d))?, dtype)
    }

    fn scale(&self, width: usize) -> f64 {
        ((width / self.heads) as f64).powf(-0.5)
    }
}

impl Cross {
    /// Sample `sample`'s keys and values, heads first, by runs that count equally often; and the rows of each run.
    fn of_sample(&self, sample: usize) -> Result<(Vec<KeyRun>, Vec<Range<usize>>)> {
        let CrossText { keys, values, rows } = &self.text;
        let mut runs = (vec![], vec![]);
        for (rows, times) in rows.runs(sample) {
            let part = |x: &Param| self.heads_first(&x.value.narrow(0, rows.start, rows.len())?);
            runs.0.push(KeyRun { k: part(keys)?, v: part(values)?, times });
            runs.1.push(rows);
        }
        Ok(runs)
    }

    /// o `[n, H d]` for q.
    fn attend(&self, q: &Tensor) -> Result<Tensor> {
        let (n, width) = q.dims2()?;
        let mut out = vec![];
        for (sample, first, count) in self.rows.runs(n, usize::MAX) {
            let (keys, _) = self.of_sample(sample)?;
            let run = self.heads_first(&q.narrow(0, first, count)?)?;
            let (o, _) = flash_repeated(&run, &keys, self.scale(width)).map_err(crate::Error::into_candle)?;
            out.push(self.rows_first(&o, q.dtype())?);
        }
        Tensor::cat(&out, 0)
    }

    /// dq for q, o and do; adds the gradients of keys and values to their leaves.
    fn differentiate(&self, q: &Tensor, o: &Tensor, d_o: &Tensor) -> Result<Tensor> {
        let (n, width) = q.dims2()?;
        let scale = self.scale(width);
        let mut dq = vec![];
        for (sample, first, count) in self.rows.runs(n, usize::MAX) {
            let (keys, rows) = self.of_sample(sample)?;
            let run = |x: &Tensor| x.narrow(0, first, count);
            let q_run = self.heads_first(&run(q)?)?;
            let (_, lse) = flash_repeated(&q_run, &keys, scale).map_err(crate::Error::into_candle)?;
            let delta = crate::ops::row_dot(&run(d_o)?, &run(o)?, self.heads)?; // [count, H]
            let delta = in_order(&delta.t()?).map_err(crate::Error::into_candle)?.unsqueeze(0)?; // [1, H, count]
            let d_o = self.heads_first(&run(d_o)?)?;
            let saved = SavedRows::new(&d_o, &lse, &delta);
            let (dq_run, of_runs) =
                flash_repeated_backward(&q_run, &keys, saved, scale).map_err(crate::Error::into_candle)?;
            dq.push(self.rows_first(&dq_run, q.dtype())?);
            for (rows, [dk, dv]) in rows.iter().zip(of_runs) {
                for (leaf, gradient) in [(&self.text.keys, dk), (&self.text.values, dv)] {
                    let of_run = leaf.narrow(rows.clone())?;
                    of_run.accumulate(&self.rows_first(&gradient, leaf.value.dtype())?)?;
                }
            }
        }
        Tensor::cat(&dq, 0)
    }

    fn tensor<T: Real>(&self, values: &[T], dims: &[usize]) -> Result<Tensor> {
        Tensor::from_slice(values, dims, self.text.keys.value.device())
    }
}

impl Op1 for Cross {
    const NAME: &'static str = "cross_attention";

    fn forward<T: Real>(&self, q: &[T], dims: &[usize]) -> Result<Vec<T>> {
        self.attend(&self.tensor(q, dims)?)?.flatten_all()?.to_vec1()
    }

    fn backward<T: Real>(&self, q: &[T], o: &[T], d_o: &[T], dims: &[usize]) -> Result<Vec<T>> {
        let [q, o, d_o] = [self.tensor(q, dims)?, self.tensor(o, dims)?, self.tensor(d_o, dims)?];
        self.differentiate(&q, &o, &d_o)?.flatten_all()?.to_vec1()
    }

    #[cfg(feature = "cuda")]
    fn gpu_forward(&self, q: crate::ops::Array) -> Result<crate::ops::Numbers> {
        crate::ops::numbers(&self.attend(&q.tensor(q.copy()?))?)
    }

    #[cfg(feature = "cuda")]
    fn gpu_backward(
        &self,
        q: crate::ops::Array,
        o: crate::ops::Array,
        d_o: crate::ops::Array,
    ) -> Result<crate::ops::Numbers> {
        let [q, o, d_o] = [q.tensor(q.copy()?), o.tensor(o.copy()?), d_o.tensor(d_o.copy()?)];
        crate::ops::numbers(&self.differentiate(&q, &o, &d_o)?)
    }
}
