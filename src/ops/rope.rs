//! Rotary position embedding over the three axes of a clip (Su et al., arXiv 2104.09864; axes split as in Wan).
//!
//! Pairs of neighbouring features (2i, 2i + 1) of each head are turned by an angle that depends on the token's
//! position. Of the d / 2 pairs of a head the first belong to time, then height, then width: height and width have 2 (d
//! / 6) features each, time the rest. Angles are position * theta^(-2i / axis features), computed in f64. The op is
//! [`rms_rope`](super::rms_rope).

use std::sync::Arc;

use super::Real;

/// (cos, sin) of the pairs of one axis at one position.
type Angles = Vec<(f64, f64)>;

/// Cosines and sines for every position of each axis of a grid, and the token range of this rank.
#[derive(Clone, Debug)]
pub struct Rope {
    /// For each axis, for each position.
    axes: Arc<[Vec<Angles>; 3]>,
    /// Tokens along time, height and width.
    pub(super) grid: [usize; 3],
    /// The clip's token that is this rank's first.
    pub(super) first: usize,
    /// Features of a head.
    pub(super) d: usize,
    /// [`table`](Self::table) on the GPU, once it is there.
    #[cfg(feature = "cuda")]
    pub(super) gpu: Arc<std::sync::OnceLock<Arc<candle_core::cuda_backend::cudarc::driver::CudaSlice<f32>>>>,
}

impl Rope {
    /// Angles for a `grid` (time, height, width) of tokens, of which this rank's first is token `first`, and heads of
    /// `d` features. `d` is even.
    pub fn new(grid: [usize; 3], first: usize, d: usize, theta: f64) -> Self {
        let side = 2 * (d / 6);
        let features = [d - 2 * side, side, side];
        let axis = |axis: usize| -> Vec<Angles> {
            let angle =
                |position: usize, i: usize| position as f64 * theta.powf(-2.0 * i as f64 / features[axis] as f64);
            let pairs =
                |position| (0..features[axis] / 2).map(|i| angle(position, i)).map(|a| (a.cos(), a.sin())).collect();
            (0..grid[axis]).map(pairs).collect()
        };
        Self {
            axes: Arc::new([axis(0), axis(1), axis(2)]),
            grid,
            first,
            d,
            #[cfg(feature = "cuda")]
            gpu: Arc::default(),
        }
    }

    /// Cosines and sines by which the features of a head are turned, for this rank's token `local`: feature j becomes
    /// x[j] cos[j] + x[its pair's other] sin[j].
    pub(super) fn angles<T: Real>(&self, local: usize, (cosines, sines): &mut (Vec<T>, Vec<T>)) {
        let token = self.first + local;
        let [_, height, width] = self.grid;
        let position = [token / (height * width), token / width % height, token % width];
        cosines.clear();
        sines.clear();
        for (axis, at) in self.axes.iter().zip(position) {
            for &(c, s) in &axis[at] {
                cosines.extend([T::of(c); 2]);
                sines.extend([T::of(-s), T::of(s)]);
            }
        }
    }

    /// Cosines and sines of all positions of each axis and all pairs, axis after axis, as kernels/rms_rope.cu reads
    /// them.
    #[cfg(feature = "cuda")]
    pub(super) fn table(&self) -> Vec<f32> {
        self.axes.iter().flatten().flatten().flat_map(|&(cosine, sine)| [cosine as f32, sine as f32]).collect()
    }

    /// Turns every head of a row, by the negative angles if `back`.
    #[inline(always)]
    pub(super) fn turn<T: Real>(&self, row: &mut [T], (cosines, sines): &(Vec<T>, Vec<T>), back: bool) {
        let sign = if back { -T::one() } else { T::one() };
        for head in row.chunks_exact_mut(self.d) {
            let pairs = head.chunks_exact_mut(2).zip(cosines.chunks_exact(2).zip(sines.chunks_exact(2)));
            for (x, (c, s)) in pairs {
                (x[0], x[1]) = (x[0] * c[0] + x[1] * s[0] * sign, x[1] * c[1] + x[0] * s[1] * sign);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// cos and sin of every pair of every position of an axis.
    fn axis(rope: &Rope, axis: usize) -> Vec<(f64, f64)> {
        rope.axes[axis].iter().flatten().copied().collect()
    }

    #[test]
    fn positions_beyond_the_table_of_diffusers_follow_the_formula_and_leave_the_others_alone() {
        let (d, theta) = (40, 10_000.0f64);
        let (table, long) = (Rope::new([1024, 9, 1024], 0, d, theta), Rope::new([1500, 9, 3601], 0, d, theta));
        let features = [40 - 12 - 12, 12, 12];
        for (i, positions) in [(0, 1500), (2, 3601)] {
            let (short, angles) = (axis(&table, i), axis(&long, i));
            let bits = |pairs: &[(f64, f64)]| pairs.iter().map(|p| [p.0.to_bits(), p.1.to_bits()]).collect::<Vec<_>>();
            assert_eq!(bits(&short), bits(&angles[..short.len()]));
            assert_eq!(angles.len(), positions * features[i] / 2);
            for (n, (cosine, sine)) in angles.iter().enumerate() {
                let (position, pair) = (n / (features[i] / 2), n % (features[i] / 2));
                let angle = position as f64 / theta.powf(2.0 * pair as f64 / features[i] as f64);
                assert!(
                    (cosine - angle.cos()).abs() < 1e-12 && (sine - angle.sin()).abs() < 1e-12,
                    "{position} {pair}"
                );
            }
        }
        // The last token of a long clip is turned by the angles of its own position.
        let mut turned = (vec![], vec![]);
        long.angles::<f64>(1500 * 9 * 3601 - 1, &mut turned);
        let last = [1499.0f64, 8.0, 3600.0];
        let wanted: Vec<f64> = (0..3).flat_map(|i| [last[i].cos(); 2]).collect();
        let firsts = [0, 1, features[0], features[0] + 1, features[0] + 12, features[0] + 13];
        assert!(firsts.iter().zip(&wanted).all(|(&at, want)| (turned.0[at] - want).abs() < 1e-12));
    }
}
