//! The linear layer with an adapter: against the plain layer of W + s B A, forward and backward and with every
//! epilogue; over a frozen base, also one in bf16; and its dropout.

use super::*;
use longreel::ops::{Draws, Dropout, Linear, LowRank, Rows, plain};
use std::sync::Arc;

const SCALE: f64 = 1.75;

/// W, b, A and B as a layer.
fn layer(p: &[Param]) -> Linear {
    let low_rank = LowRank::new(p[2].clone(), p[3].clone(), SCALE);
    Linear::new(p[0].clone(), p[1].clone(), false).adapted(Some(low_rank))
}

/// x (W + s B A)ᵀ + b.
fn dense(x: &Tensor, p: &[Tensor]) -> Result<Tensor> {
    plain::linear(x, &(&p[0] + (p[3].matmul(&p[2])? * SCALE)?)?, &p[1])
}

fn params(inner: usize, out: usize, rank: usize) -> Vec<Tensor> {
    let small = |x: Tensor, n: usize| (x * (n as f64).powf(-0.5)).unwrap(); // outputs of order 1
    vec![
        small(normal(2, (out, inner)), inner),
        normal(3, out),
        small(normal(4, (rank, inner)), inner),
        small(normal(5, (out, rank)), 100 * rank), // so that finite steps of A are small for what follows
    ]
}

#[test]
fn adapted_layer_is_the_layer_of_the_merged_weight() {
    for (n, start, tokens) in RUNS {
        for (inner, out, rank) in [(24, 40, 1), (40, 24, 3), (200, 40, 16)] {
            let x = (normal(1, (n, inner)) * 0.3).unwrap();
            let (residual, at) = (normal(6, (n, out)), Rows { start, tokens });
            let name = |what: &str| format!("adapted {what} [{n}, {inner}] to {out}, rank {rank}");
            let params = || params(inner, out, rank);
            Op {
                name: name("linear"),
                inputs: vec![x.clone()],
                params: params(),
                fused: &|t, x, p| layer(p).forward(t, &x[0]),
                plain: &|x, p| dense(&x[0], p),
            }
            .check();
            Op {
                name: name("linear and gelu"),
                inputs: vec![x.clone()],
                params: params(),
                fused: &|t, x, p| layer(p).gelu(t, &x[0]),
                plain: &|x, p| plain::gelu(&dense(&x[0], p)?),
            }
            .check();
            Op {
                name: name("linear and residual"),
                inputs: vec![residual.clone(), x.clone()],
                params: params(),
                fused: &|t, x, p| layer(p).add_to(t, &x[0], &x[1]),
                plain: &|x, p| &x[0] + dense(&x[1], p)?,
            }
            .check();
            Op {
                name: name("linear and gated residual"),
                inputs: vec![residual, x],
                params: [params(), vec![normal(7, (SAMPLES, 3, out))]].concat(),
                fused: &|t, x, p| layer(p).gate_to(t, &x[0], &x[1], (&p[4], 1), at),
                plain: &|x, p| &x[0] + (dense(&x[1], p)? * norm::gathered(&p[4], 1, n, at)?)?,
            }
            .check();
        }
    }
}

/// Parameters in f32, of which W and b are frozen if `frozen`.
fn single(inner: usize, out: usize, rank: usize, frozen: bool) -> Vec<Param> {
    let values = params(inner, out, rank).into_iter().map(|t| t.to_dtype(DType::F32).unwrap());
    let mut params: Vec<Param> = values.map(|t| Param::leaf("p", t).unwrap()).collect();
    params[..2].iter_mut().filter(|_| frozen).for_each(|param| param.grad = None);
    params
}

/// Output, input's gradient, and those of A and B.
fn run(layer: &Linear, p: &[Param], x: &Tensor, dy: &Tensor) -> [Vec<f64>; 4] {
    let tape = Tape::recording();
    let y = layer.gelu(&tape, x).unwrap();
    let dx = tape.backward(&[(&y, dy)], &[x]).unwrap().remove(0);
    [values(&y), values(&dx), values(p[2].grad().unwrap()), values(p[3].grad().unwrap())]
}

#[test]
fn frozen_base_changes_no_bit_and_has_no_gradient() {
    let f32 = |t: Tensor| t.to_dtype(DType::F32).unwrap();
    let (x, dy) = (f32(normal(1, (33, 40))), f32(normal(9, (33, 24))));
    let [trained, frozen] = [false, true].map(|frozen| {
        let p = single(40, 24, 3, frozen);
        run(&layer(&p), &p, &x, &dy)
    });
    assert_eq!(trained, frozen);
    let p = single(40, 24, 3, true);
    assert!(p[0].grad().is_err() && p[0].is_frozen());
    assert!(layer(&p).accumulate(&x, &dy).is_ok());
}

/// A backward pass that does not read the output has the bits of one that does; under a frozen gate it has no output.
#[test]
fn unread_output_changes_no_gradient() {
    let f32 = |t: Tensor| t.to_dtype(DType::F32).unwrap();
    for (n, start, tokens) in RUNS {
        let (x, residual, dy) = (normal(1, (n, 40)), normal(6, (n, 24)), normal(9, (n, 24)));
        let ([x, residual, dy], at) = ([x, residual, dy].map(f32), Rows { start, tokens });
        for frozen in [false, true] {
            let run = |unread: bool| {
                let (p, tape) = (single(40, 24, 3, true), Tape::recording());
                let mut modulation = Param::leaf("m", f32(normal(7, (SAMPLES, 3, 24)))).unwrap();
                modulation.grad = modulation.grad.filter(|_| !frozen);
                let gate = (&modulation, 1);
                let y = match unread {
                    true => layer(&p).gate_to_unread(&tape, &residual, &x, gate, at).unwrap(),
                    false => layer(&p).gate_to(&tape, &residual, &x, gate, at).unwrap(),
                };
                let computed = values(&y).iter().any(|y| *y != 0.0);
                let gradients = tape.backward(&[(&y, &dy)], &[&residual, &x]).unwrap();
                let adapters = [p[2].grad().unwrap(), p[3].grad().unwrap()];
                let all: Vec<_> = gradients.iter().chain(adapters).chain(&modulation.grad).map(values).collect();
                (all, computed)
            };
            let ((read, _), (unread, computed)) = (run(false), run(true));
            assert_eq!(read, unread, "{n} rows, frozen {frozen}");
            assert_eq!(computed, !frozen);
        }
    }
}

/// Products in bf16 round a weight's elements: one that is held in bf16 gives the same bits, on every instruction set.
#[test]
fn base_in_bf16_gives_the_bits_of_its_rounded_weight() {
    let f32 = |t: Tensor| t.to_dtype(DType::F32).unwrap();
    let (x, dy) = (f32(normal(1, (97, 385))), f32(normal(9, (97, 65))));
    for bf16 in [false, true] {
        let run_on = |half: bool| {
            let mut p = single(385, 65, 3, true);
            let rounded = p[0].value.to_dtype(DType::BF16).unwrap();
            p[0].value = if half { rounded } else { f32(rounded) };
            let low_rank = LowRank::new(p[2].clone(), p[3].clone(), SCALE);
            run(&Linear::new(p[0].clone(), p[1].clone(), bf16).adapted(Some(low_rank)), &p, &x, &dy)
        };
        assert_eq!(run_on(true), run_on(false), "bf16 {bf16}");
    }
}

#[test]
fn adapter_whose_b_is_zero_changes_no_bit() {
    let f32 = |t: Tensor| t.to_dtype(DType::F32).unwrap();
    let x = f32(normal(1, (33, 40)));
    let p = single(40, 24, 3, true);
    let b = Param::leaf("b", Tensor::zeros((24, 3), DType::F32, &Device::Cpu).unwrap()).unwrap();
    let base = Linear::new(p[0].clone(), p[1].clone(), false);
    let adapted = base.clone().adapted(Some(LowRank::new(p[2].clone(), b, SCALE)));
    let off = Tape::off();
    assert_eq!(values(&base.gelu(&off, &x).unwrap()), values(&adapted.gelu(&off, &x).unwrap()));
}

/// What is dropped depends on (seed, step, sample, token, layer): a tile of other rows drops the same, and so does a
/// rank of other tokens; outside of training nothing is.
#[test]
fn dropout_draws_by_token_and_scales_what_is_left() {
    let (n, width, tokens) = (12, 4000, 6);
    let dropout = Arc::new(Dropout::new(0.25));
    let p: Vec<Param> = [
        Tensor::zeros((1, width), DType::F32, &Device::Cpu),
        Tensor::zeros(1, DType::F32, &Device::Cpu),
        Tensor::ones((1, width), DType::F32, &Device::Cpu),
        Tensor::ones((1, 1), DType::F32, &Device::Cpu),
    ]
    .map(|t| Param::leaf("p", t.unwrap()).unwrap())
    .to_vec();
    let layer = |number| {
        let low_rank = LowRank::new(p[2].clone(), p[3].clone(), 1.0).dropping(Some((dropout.clone(), number)));
        Linear::new(p[0].clone(), p[1].clone(), false).adapted(Some(low_rank))
    };
    let x = Tensor::ones((n, width), DType::F32, &Device::Cpu).unwrap();
    let sums = |number, rows: std::ops::Range<usize>, tokens| {
        let (x, at) = (x.narrow(0, rows.start, rows.len()).unwrap(), Rows { start: rows.start, tokens });
        values(&layer(number).at(at, true).forward(&Tape::off(), &x).unwrap())
    };
    assert_eq!(sums(1, 0..n, tokens), vec![width as f64; n]);

    let draws = Draws { seed: 5, step: 7, samples: vec![3, 9], first_token: 0 };
    dropout.draw_by(Some(draws.clone()));
    let all = sums(1, 0..n, tokens);
    // A sum of `width` elements of mean 1: its standard deviation is sqrt(width / 3) = 36.5.
    assert!(all.iter().all(|sum| (sum - width as f64).abs() < 200.0 && *sum != width as f64), "{all:?}");
    assert_eq!([sums(1, 0..5, tokens), sums(1, 5..n, tokens)].concat(), all);
    assert_ne!(sums(2, 0..n, tokens), all);

    // Two ranks of three tokens each.
    let mut ranks = vec![vec![]; 2];
    for (rank, sums_of) in ranks.iter_mut().enumerate() {
        dropout.draw_by(Some(Draws { first_token: 3 * rank, ..draws.clone() }));
        *sums_of = sums(1, 0..6, 3);
    }
    let of_sample = |i: usize| [&ranks[0][3 * i..3 * i + 3], &ranks[1][3 * i..3 * i + 3]].concat();
    assert_eq!([of_sample(0), of_sample(1)].concat(), all);

    dropout.draw_by(Some(Draws { step: 8, ..draws }));
    assert_ne!(sums(1, 0..n, tokens), all);
    dropout.draw_by(None);
    assert_eq!(sums(1, 0..n, tokens), vec![width as f64; n]);
}

/// The input's gradient passes the elements that were kept.
#[test]
fn dropout_has_the_gradient_of_what_was_kept() {
    let (n, width) = (7, 40);
    let dropout = Arc::new(Dropout::new(0.5));
    dropout.draw_by(Some(Draws { seed: 1, step: 0, samples: vec![0], first_token: 0 }));
    let p = single(width, 1, 1, true);
    let zero = Param::leaf("w", Tensor::zeros((1, width), DType::F32, &Device::Cpu).unwrap()).unwrap();
    let low_rank = LowRank::new(p[2].clone(), p[3].clone(), SCALE).dropping(Some((dropout, 4)));
    let layer = Linear::new(zero, p[1].clone(), false).adapted(Some(low_rank));
    let layer = layer.at(Rows { start: 0, tokens: n }, true);
    let x = Tensor::ones((n, width), DType::F32, &Device::Cpu).unwrap();
    let tape = Tape::recording();
    let y = layer.forward(&tape, &x).unwrap();
    let dx = tape.backward(&[(&y, &y.ones_like().unwrap())], &[&x]).unwrap().remove(0);
    // y is linear in x, so that x dx summed over a row is y but for the bias.
    let bias = values(&p[1].value)[0];
    let sums: Vec<f64> = values(&dx).chunks(width).map(|row| row.iter().sum::<f64>() + bias).collect();
    for (sum, y) in sums.iter().zip(values(&y)) {
        assert!((sum - y).abs() < 1e-4 * y.abs().max(1.0), "{sum} against {y}");
    }
    let dropped = values(&dx).iter().filter(|&&g| g == 0.0).count();
    assert!((80..200).contains(&dropped), "{dropped} of {}", n * width);
    // dA is B's element times the sum of the kept inputs: where all rows drop a column it is zero, else not.
    let da = values(p[2].grad().unwrap());
    let b = values(&p[3].value)[0];
    let a = values(&p[2].value);
    for column in 0..width {
        let kept = (0..n).filter(|row| values(&dx)[row * width + column] != 0.0).count() as f64;
        assert!((da[column] - SCALE * b * 2.0 * kept).abs() < 1e-4, "column {column}, a {}", a[column]);
    }
}
