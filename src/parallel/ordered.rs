//! Reductions over ranks in rank order by Candle's own operations, for tensors that are not in memory: what
//! [`sum`](super::sum) does, to the bit.
//!
//! Candle's maximum is not used: on a GPU it loses a NaN, and may take either of two zeros.

use candle_core::Tensor;

use super::Reduce;
use crate::{Result, bail};

/// `((x0 op x1) op x2) op ...` for every element of `parts`, one a rank, all of one shape.
pub(super) fn reduce(parts: impl IntoIterator<Item = Tensor>, op: Reduce) -> Result<Tensor> {
    let mut parts = parts.into_iter();
    let Some(mut sum) = parts.next() else { bail!(Shape, "nothing to reduce: there is no rank") };
    for x in parts {
        let better = match op {
            Reduce::Sum => {
                sum = (&sum + &x)?;
                continue;
            }
            Reduce::Max => x.gt(&sum)?,
            Reduce::Min => x.lt(&sum)?,
        };
        sum = better.where_cond(&x, &sum)?;
        sum = x.ne(&x)?.where_cond(&x, &sum)?; // a NaN
    }
    Ok(sum)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::parallel::sum;
    use candle_core::{DType, Device};

    #[test]
    fn candles_operations_give_the_bits_of_the_other_backends() {
        let odd = [0.0, -0.0, 1.0, -1e-45, 1e30, f32::INFINITY, f32::NEG_INFINITY, f32::NAN, 0.1, 3e7];
        // Every pair of oddities meets in some place, in either order, with a third between them.
        let column = |step: usize, run: usize| -> Vec<f32> { (0..1000).map(|i| odd[i / run * step % 10]).collect() };
        let ranks = [column(1, 1), column(1, 10), column(3, 100)];
        let parts: Vec<&[u8]> = ranks.iter().map(|rank| bytemuck::cast_slice(rank)).collect();
        for op in [Reduce::Sum, Reduce::Max, Reduce::Min] {
            let mut expected = vec![0f32; 1000];
            sum::reduce(bytemuck::cast_slice_mut(&mut expected), &parts, DType::F32, op).unwrap();
            let tensors = ranks.iter().map(|rank| Tensor::new(&rank[..], &Device::Cpu).unwrap());
            let got: Vec<f32> = reduce(tensors, op).unwrap().to_vec1().unwrap();
            for (i, (got, expected)) in got.iter().zip(&expected).enumerate() {
                let same = got.to_bits() == expected.to_bits() || (got.is_nan() && expected.is_nan());
                assert!(same, "{op:?} at {i}: {got} instead of {expected}");
            }
        }
    }
}
