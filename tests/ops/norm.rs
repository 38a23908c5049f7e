//! LayerNorm with each affine, over rows of several samples, and RMSNorm.

use super::{Op, RUNS, SAMPLES, WIDTHS, normal};
use candle_core::{Device, Result, Tensor};
use longreel::ops::{Affine, Rows, Tape, layer_norm, plain, rms_norm};

/// Large enough to show in the result.
const EPS: f64 = 1e-2;

/// Rows that are not centred already.
fn rows(n: usize, width: usize) -> Tensor {
    (normal(1, (n, width)) + 0.5).unwrap()
}

/// Row `index` of each token's sample, `[n, D]`, from a modulation `[B, k, D]`, with Candle's ops.
pub fn gathered(modulation: &Tensor, index: usize, n: usize, rows: Rows) -> Result<Tensor> {
    let samples: Vec<u32> = (rows.start..rows.start + n).map(|row| (row / rows.tokens) as u32).collect();
    let samples = Tensor::from_vec(samples, n, &Device::Cpu)?;
    modulation.narrow(1, index, 1)?.squeeze(1)?.contiguous()?.index_select(&samples, 0)
}

#[test]
fn layer_norm_alone_and_with_weights() {
    for (n, ..) in RUNS {
        for width in WIDTHS {
            Op {
                name: format!("layer norm [{n}, {width}]"),
                inputs: vec![rows(n, width)],
                params: vec![],
                fused: &|t, x, _| layer_norm(t, &x[0], Affine::None, EPS),
                plain: &|x, _| plain::layer_norm(&x[0], EPS),
            }
            .check();
            Op {
                name: format!("layer norm with weights [{n}, {width}]"),
                inputs: vec![rows(n, width)],
                params: vec![normal(2, width), normal(3, width)],
                fused: &|t, x, p| {
                    layer_norm(t, &x[0], Affine::Weights { weight: p[0].clone(), bias: p[1].clone() }, EPS)
                },
                plain: &|x, p| plain::layer_norm(&x[0], EPS)?.broadcast_mul(&p[0])?.broadcast_add(&p[1]),
            }
            .check();
        }
    }
}

#[test]
fn layer_norm_with_a_modulation_of_several_samples() {
    for (n, start, tokens) in RUNS {
        let at = Rows { start, tokens };
        for (width, k, shift, scale) in [(24, 6, 0, 1), (40, 6, 3, 4), (200, 2, 0, 1)] {
            Op {
                name: format!("modulated layer norm [{n}, {width}] from row {start}"),
                inputs: vec![rows(n, width)],
                params: vec![normal(2, (SAMPLES, k, width))],
                fused: &|t, x, p| {
                    layer_norm(t, &x[0], Affine::Modulation { modulation: p[0].clone(), shift, scale, rows: at }, EPS)
                },
                plain: &|x, p| {
                    let scale = (gathered(&p[0], scale, n, at)? + 1.0)?;
                    (plain::layer_norm(&x[0], EPS)? * scale)? + gathered(&p[0], shift, n, at)?
                },
            }
            .check();
        }
    }
}

#[test]
fn rms_norm_of_rows() {
    for (n, ..) in RUNS {
        for width in WIDTHS {
            Op {
                name: format!("rms norm [{n}, {width}]"),
                inputs: vec![rows(n, width)],
                params: vec![normal(2, width)],
                fused: &|t, x, p| rms_norm(t, &x[0], &p[0], EPS),
                plain: &|x, p| plain::rms_norm(&x[0], &p[0], EPS),
            }
            .check();
        }
    }
}

/// Rows far from zero: the variance is taken about the mean, not as a difference of large squares.
#[test]
fn layer_norm_of_rows_far_from_zero_in_f32() {
    let x = (normal(1, (7, 200)) + 4096.0).unwrap().to_dtype(candle_core::DType::F32).unwrap(); // rounded here
    let got = layer_norm(&Tape::off(), &x, Affine::None, 1e-6).unwrap();
    let want = plain::layer_norm(&x.to_dtype(candle_core::DType::F64).unwrap(), 1e-6).unwrap();
    super::close("layer norm", &got, &want, 1e-4); // the mean is good to 4096 * 2^-24; squares would be off by 1
}

/// Runs cover the rows once, in order, each within one sample and no longer than asked for.
#[test]
fn runs_of_rows_stay_within_samples() {
    for (start, tokens, n, most) in [(0, 5, 5, 9), (3, 5, 13, 9), (3, 5, 13, 2), (7, 1, 4, 3), (0, 100, 0, 4)] {
        let runs = Rows { start, tokens }.runs(n, most);
        let covered: Vec<(usize, usize)> = runs
            .iter()
            .flat_map(|&(sample, first, count)| (first..first + count).map(move |row| (sample, row)))
            .collect();
        let wanted: Vec<(usize, usize)> = (0..n).map(|row| ((start + row) / tokens, row)).collect();
        assert_eq!(covered, wanted);
        assert!(runs.iter().all(|&(.., count)| (1..=most).contains(&count)), "{runs:?}");
        // No more runs than need be: every cut is a sample's end or a full run.
        assert!(runs.windows(2).all(|pair| pair[0].2 == most || pair[0].0 != pair[1].0), "{runs:?}");
    }
}
