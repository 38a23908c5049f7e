//! The differentiable ops as cases: uneven widths, tiles that begin and end inside a sample, shards that begin inside a clip.

use super::{Case, random};
use candle_core::{Device, Tensor};
use longreel::ops::{Affine, Linear, Param, Rope, Rows, gate_residual, gelu, layer_norm, plain, rms_norm, rope, silu};

const EPS: f64 = 1e-3; // large enough that one in the wrong place shows

/// A tile that begins two rows before its second sample of five rows.
const ROWS: Rows = Rows { start: 3, tokens: 5 };

/// Every op on every number of rows, the widths in turn.
pub fn all(rows: &[usize]) -> Vec<Case> {
    let mut cases = vec![];
    for (i, &n) in rows.iter().enumerate() {
        let width = [24, 40, 200][i % 3];
        cases.extend([linear(n, width, 40), linear(n, 17, width)]);
        cases.extend([norm(n, width), weighted_norm(n, width), modulated_norm(n, width), root_mean_square(n, width)]);
        cases.extend([gate(n, width), tanh_gelu(n, width), sigmoid(n, width)]);
        cases.extend([(8, 3), (16, 2), (24, 1), (8, 25)].map(|(d, heads)| turn(n, d, heads)));
    }
    cases
}

fn case(
    name: String,
    inputs: Vec<Tensor>,
    params: Vec<Tensor>,
    fused: impl Fn(&[Tensor], &[Param]) -> candle_core::Result<Tensor> + Send + Sync + 'static,
    plain: impl Fn(&[Tensor], &[Tensor]) -> candle_core::Result<Tensor> + Send + Sync + 'static,
) -> Case {
    let fused = Box::new(move |x: &[Tensor], p: &[Param]| fused(x, p).unwrap());
    let plain = Box::new(move |x: &[Tensor], p: &[Tensor]| plain(x, p).unwrap());
    Case { name, inputs, params, fused, plain }
}

fn linear(n: usize, inner: usize, out: usize) -> Case {
    case(
        format!("linear {n} x {inner} -> {out}"),
        vec![random(&[n, inner], 0)],
        vec![random(&[out, inner], 1), random(&[out], 2)],
        |x, p| Linear { weight: p[0].clone(), bias: p[1].clone(), bf16: false }.forward(&x[0]),
        |x, p| plain::linear(&x[0], &p[0], &p[1]),
    )
}

fn norm(n: usize, width: usize) -> Case {
    case(
        format!("layer_norm {n} x {width}"),
        vec![random(&[n, width], 0)],
        vec![],
        |x, _| layer_norm(&x[0], Affine::None, EPS),
        |x, _| plain::layer_norm(&x[0], EPS),
    )
}

fn weighted_norm(n: usize, width: usize) -> Case {
    case(
        format!("layer_norm with weights {n} x {width}"),
        vec![random(&[n, width], 0)],
        vec![random(&[width], 1), random(&[width], 2)],
        |x, p| layer_norm(&x[0], Affine::Weights { weight: p[0].clone(), bias: p[1].clone() }, EPS),
        |x, p| plain::layer_norm(&x[0], EPS)?.broadcast_mul(&p[0])?.broadcast_add(&p[1]),
    )
}

/// The rows `modulation[sample, index]` of a tile's rows.
fn of_samples(modulation: &Tensor, index: usize, n: usize) -> candle_core::Result<Tensor> {
    let samples: Vec<u32> = (0..n).map(|i| ((ROWS.start + i) / ROWS.tokens) as u32).collect();
    modulation.narrow(1, index, 1)?.squeeze(1)?.contiguous()?.index_select(&Tensor::new(samples, &Device::Cpu)?, 0)
}

/// How many samples a tile of `n` rows needs.
fn samples(n: usize) -> usize {
    (ROWS.start + n).div_ceil(ROWS.tokens)
}

fn modulated_norm(n: usize, width: usize) -> Case {
    case(
        format!("layer_norm with modulation {n} x {width}"),
        vec![random(&[n, width], 0)],
        vec![random(&[samples(n), 4, width], 1)],
        |x, p| {
            let affine = Affine::Modulation { modulation: p[0].clone(), shift: 3, scale: 1, rows: ROWS };
            layer_norm(&x[0], affine, EPS)
        },
        move |x, p| {
            let scaled = (plain::layer_norm(&x[0], EPS)? * (of_samples(&p[0], 1, n)? + 1.0)?)?;
            scaled + of_samples(&p[0], 3, n)?
        },
    )
}

fn root_mean_square(n: usize, width: usize) -> Case {
    case(
        format!("rms_norm {n} x {width}"),
        vec![random(&[n, width], 0)],
        vec![random(&[width], 1)],
        |x, p| rms_norm(&x[0], &p[0], EPS),
        |x, p| plain::rms_norm(&x[0], &p[0], EPS),
    )
}

fn gate(n: usize, width: usize) -> Case {
    case(
        format!("gate_residual {n} x {width}"),
        vec![random(&[n, width], 0), random(&[n, width], 1)],
        vec![random(&[samples(n), 3, width], 2)],
        |x, p| gate_residual(&x[0], &x[1], &p[0], 2, ROWS),
        move |x, p| &x[0] + (&x[1] * of_samples(&p[0], 2, n)?)?,
    )
}

fn tanh_gelu(n: usize, width: usize) -> Case {
    let x = (random(&[n, width], 0) * 3.0).unwrap();
    case(format!("gelu {n} x {width}"), vec![x], vec![], |x, _| gelu(&x[0]), |x, _| plain::gelu(&x[0]))
}

fn sigmoid(n: usize, width: usize) -> Case {
    let x = (random(&[n, width], 0) * 3.0).unwrap();
    case(format!("silu {n} x {width}"), vec![x], vec![], |x, _| silu(&x[0]), |x, _| x[0].silu())
}

/// A shard of 11 tokens that begins at token 8 of a clip of 3 x 2 x 5, the tile beginning at row 6 of the shard's samples.
fn turn(n: usize, d: usize, heads: usize) -> Case {
    const GRID: [usize; 3] = [3, 2, 5];
    const FIRST: usize = 8;
    let rows = Rows { start: 6, tokens: 11 };
    let side = d / 6; // pairs of height and of width
    let pairs = [d / 2 - 2 * side, side, side];
    let mut angles = vec![];
    for row in rows.start..rows.start + n {
        let token = FIRST + row % rows.tokens;
        for (axis, at) in [token / 10, token % 10 / 5, token % 5].into_iter().enumerate() {
            angles.extend((0..pairs[axis]).map(|i| at as f64 / 10_000f64.powf(i as f64 / pairs[axis] as f64)));
        }
    }
    let angles = Tensor::from_vec(angles, (n, d / 2), &Device::Cpu).unwrap();
    let turn = Rope::new(GRID, FIRST, d, 10_000.0);
    case(
        format!("rope {n} rows, {heads} heads of {d}"),
        vec![random(&[n, heads * d], 0)],
        vec![],
        move |x, _| rope(&x[0], &turn, rows),
        move |x, _| plain::rope(&x[0], &angles, heads),
    )
}
