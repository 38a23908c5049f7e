//! Muon's orthogonal factor against Newton and Schulz in plain f64.

use super::{normal, pool};
use candle_core::Device;
use longreel::state::optimizer::muon::{Muon, orthogonalise, takes};

/// `a b`, of `[n, k]` and `[k, m]`.
fn product(a: &[f64], b: &[f64], [n, k, m]: [usize; 3]) -> Vec<f64> {
    let mut c = vec![0.0; n * m];
    for i in 0..n {
        for j in 0..m {
            c[i * m + j] = (0..k).map(|l| a[i * k + l] * b[l * m + j]).sum();
        }
    }
    c
}

fn transposed(a: &[f64], [rows, columns]: [usize; 2]) -> Vec<f64> {
    (0..columns).flat_map(|j| (0..rows).map(move |i| a[i * columns + j])).collect()
}

/// Five iterations as they are written, of a matrix of any shape.
pub fn reference(values: &[f64], [rows, columns]: [usize; 2]) -> Vec<f64> {
    if rows > columns {
        let wide = reference(&transposed(values, [rows, columns]), [columns, rows]);
        return transposed(&wide, [columns, rows]);
    }
    let norm = values.iter().map(|v| v * v).sum::<f64>().sqrt() + 1e-7;
    let mut x: Vec<f64> = values.iter().map(|v| v / norm).collect();
    for _ in 0..5 {
        let a = product(&x, &transposed(&x, [rows, columns]), [rows, columns, rows]);
        let square = product(&a, &a, [rows; 3]);
        let b: Vec<f64> = a.iter().zip(square).map(|(a, s)| -4.7750 * a + 2.0315 * s).collect();
        let more = product(&b, &x, [rows, rows, columns]);
        x = x.iter().zip(more).map(|(x, more)| 3.4445 * x + more).collect();
    }
    x
}

#[test]
fn orthogonal_factors_are_those_of_plain_f64_of_any_shape_and_for_any_number_of_threads() {
    for [rows, columns] in [[1, 1], [1, 9], [7, 5], [24, 40], [40, 24], [33, 33], [130, 70]] {
        let values: Vec<f32> = normal(3, rows * columns).iter().map(|v| 1e-4 * v).collect();
        let got = pool(1, || orthogonalise(values.clone(), [rows, columns], &Device::Cpu).unwrap());
        let again = pool(3, || orthogonalise(values.clone(), [rows, columns], &Device::Cpu).unwrap());
        assert!(got == again, "{rows} x {columns}: other bits on three threads");
        let wide: Vec<f64> = values.iter().map(|&v| v.into()).collect();
        let want = reference(&wide, [rows, columns]);
        let off = got.iter().zip(&want).map(|(a, b)| (f64::from(*a) - b).abs()).fold(0.0, f64::max);
        assert!(off < 2e-5, "{rows} x {columns}: off by {off:e}");
        // The rows, or columns, are nearly orthonormal.
        let (n, m) = (rows.min(columns), rows.max(columns));
        let wide = if rows > columns { transposed(&want, [rows, columns]) } else { want };
        let gram = product(&wide, &transposed(&wide, [n, m]), [n, m, n]);
        let most = (0..n * n).map(|i| (gram[i] - f64::from(u8::from(i / n == i % n))).abs()).fold(0.0, f64::max);
        assert!(most < 0.75, "{rows} x {columns}: {most}");
    }
    assert_eq!(orthogonalise(vec![0.0; 6], [2, 3], &Device::Cpu).unwrap(), [0.0; 6]);
}

#[test]
fn momentum_and_step_are_those_of_the_formula() {
    let step = Muon::new(0.9, 0.1).unwrap().step(0.5, 2.0);
    let (mut momentum, mut update, mut params) = ([1.0, -1.0], [0.0; 2], [1.0, 2.0]);
    step.accumulate(&[3.0, 0.5], &mut momentum, &mut update);
    let close = |a: [f32; 2], b: [f32; 2]| (0..2).all(|i| (a[i] - b[i]).abs() < 1e-6);
    assert!(close(momentum, [1.5, -0.8]) && close(update, [1.95, -0.62]), "{momentum:?} {update:?}");
    step.apply([4, 25], &[1.0, -1.0], &mut params); // a rate of 0.5 * 0.2 * 5
    assert!(close(params, [1.0 - 0.05 - 0.5, 2.0 - 0.1 + 0.5]), "{params:?}");
    for momentum in [-0.1, 1.0, f64::NAN] {
        assert!(refusal!(Config, Muon::new(momentum, 0.0)).contains("momentum"));
    }
}

#[test]
fn matrices_of_blocks_alone_are_muons() {
    assert!(takes("blocks.3.attn1.to_q.weight", &[4, 4]) && takes("blocks.3.ffn.net.2.weight", &[4, 9]));
    for (name, shape) in [
        ("blocks.0.attn1.to_q.bias", &[4][..]),
        ("blocks.0.scale_shift_table", &[1, 6, 4]),
        ("proj_out.weight", &[4, 4]),
        ("condition_embedder.time_proj.weight", &[24, 4]),
    ] {
        assert!(!takes(name, shape), "{name}");
    }
}
