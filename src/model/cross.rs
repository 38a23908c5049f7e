//! Cross-attention of a tile's queries to the few tokens of its samples' text: token-local in the queries, so it runs inside the
//! tile. Gradients of keys and values are added to their leaves.

use candle_core::{DType, Result, Tensor};

use crate::attention::{flash, flash_backward};
use crate::ops::{Custom, Op1, Param, Real, Rows, Tape, cast};

/// softmax(q kᵀ / sqrt(d)) v for queries `[n, H d]` against keys and values `[B, L, H d]` of their own sample. Differentiable in q.
pub fn cross_attention(
    tape: &Tape,
    q: &Tensor,
    k: &Param,
    v: &Param,
    heads: usize,
    rows: Rows,
    bf16: bool,
) -> Result<Tensor> {
    tape.one(q, Custom(Cross { k: k.clone(), v: v.clone(), heads, rows, bf16 }))
}

struct Cross {
    k: Param,
    v: Param,
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
        x.transpose(1, 2)?.contiguous()?.reshape((n, heads * d))?.to_dtype(dtype)
    }

    /// A run of rows of `values` as `[1, H, count, d]`.
    fn run<T: Real>(&self, values: &[T], first: usize, count: usize, width: usize) -> Result<Tensor> {
        let rows = &values[first * width..(first + count) * width];
        self.heads_first(&Tensor::from_slice(rows, (count, width), self.k.value.device())?)
    }

    fn scale(&self, width: usize) -> f64 {
        ((width / self.heads) as f64).powf(-0.5)
    }
}

impl Op1 for Cross {
    const NAME: &'static str = "cross_attention";

    fn forward<T: Real>(&self, q: &[T], dims: &[usize]) -> Result<Vec<T>> {
        let (n, width) = (dims[0], dims[1]);
        let mut out = Vec::with_capacity(q.len());
        for (sample, first, count) in self.rows.runs(n, usize::MAX) {
            let (k, v) = (self.heads_first(&self.k.value.get(sample)?)?, self.heads_first(&self.v.value.get(sample)?)?);
            let q = self.run(q, first, count, width)?;
            let (o, _) = flash(&q, &k, &v, self.scale(width)).map_err(crate::Error::into_candle)?;
            out.extend(self.rows_first(&o, T::DTYPE)?.flatten_all()?.to_vec1::<T>()?);
        }
        Ok(out)
    }

    fn backward<T: Real>(&self, q: &[T], o: &[T], d_o: &[T], dims: &[usize]) -> Result<Vec<T>> {
        let (n, width) = (dims[0], dims[1]);
        let scale = self.scale(width);
        let mut dq = Vec::with_capacity(q.len());
        for (sample, first, count) in self.rows.runs(n, usize::MAX) {
            let (k, v) = (self.heads_first(&self.k.value.get(sample)?)?, self.heads_first(&self.v.value.get(sample)?)?);
            let q = self.run(q, first, count, width)?;
            let (_, lse) = flash(&q, &k, &v, scale).map_err(crate::Error::into_candle)?;
            let run = first * width..(first + count) * width;
            let rows = |values: &[T]| Tensor::from_slice(&values[run.clone()], (count, width), self.k.value.device());
            let delta = crate::ops::row_dot(&rows(d_o)?, &rows(o)?, self.heads)?; // [count, H]
            let delta = delta.t()?.contiguous()?.unsqueeze(0)?; // [1, H, count]
            let d_o = self.heads_first(&rows(d_o)?)?;
            let (dq_run, dk, dv) =
                flash_backward(&q, &k, &v, &d_o, &lse, &delta, scale).map_err(crate::Error::into_candle)?;
            dq.extend(self.rows_first(&dq_run, T::DTYPE)?.flatten_all()?.to_vec1::<T>()?);
            for (leaf, gradient) in [(&self.k, dk), (&self.v, dv)] {
                let mine =
                    Param { name: leaf.name.clone(), value: leaf.value.get(sample)?, grad: leaf.grad.get(sample)? };
                mine.accumulate(&self.rows_first(&gradient, leaf.grad.dtype())?)?;
            }
        }
        Ok(dq)
    }
}
