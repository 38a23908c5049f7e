//! What is particular to one op: bf16 operands, `vjp`, the helpers that are not differentiable, and input that is refused.

use super::{assert_close, random, values};
use candle_core::{DType, Device, Result, Tensor, Var};
use half::bf16;
use longreel::ops::{
    Linear, Param, Rows, add_assign, gate_residual, gelu, read, row_dot, silu, sum_columns, vjp, write,
};
use proptest::prelude::*;

fn linear(inner: usize, out: usize, dtype: DType, bf16: bool) -> Linear {
    let leaf = |name: &str, t: Tensor| Param::leaf(name, t.to_dtype(dtype).unwrap()).unwrap();
    Linear { weight: leaf("w.weight", random(&[out, inner], 1)), bias: leaf("w.bias", random(&[out], 2)), bf16 }
}

/// The output of `linear` on f64 values `x`, and the gradients of x, weight and bias given that of the output.
fn pass(linear: &Linear, x: &Tensor, dy: &Tensor) -> [Tensor; 4] {
    let dtype = linear.weight.value.dtype();
    let x = Var::from_tensor(&x.to_dtype(dtype).unwrap()).unwrap();
    let y = linear.forward(&x).unwrap();
    let dx = vjp(&[(&y, &dy.to_dtype(dtype).unwrap())], &[&x]).unwrap().remove(0);
    [y.detach(), dx, linear.weight.grad.clone(), linear.bias.grad.clone()]
}

#[test]
fn bf16_products_are_of_rounded_operands() {
    let rounded = |x: &Tensor| {
        let values: Vec<f64> = values(x).iter().map(|&v| f64::from(bf16::from_f32(v as f32))).collect();
        Tensor::from_vec(values, x.dims(), &Device::Cpu).unwrap()
    };
    for (n, inner, out) in [(1, 24, 40), (7, 200, 24), (33, 40, 17)] {
        let (x, dy) = (random(&[n, inner], 3), random(&[n, out], 4));
        let half = linear(inner, out, DType::F32, true);
        let mine = pass(&half, &x, &dy);
        let (rx, rdy, rw) = (rounded(&x), rounded(&dy), rounded(&half.weight.value));
        let bias = values(&half.bias.value); // neither it nor its gradient is rounded
        let bias = Tensor::from_vec(bias, out, &Device::Cpu).unwrap();
        let truth = [
            rx.matmul(&rw.t().unwrap()).unwrap().broadcast_add(&bias).unwrap(),
            rdy.matmul(&rw).unwrap(),
            rdy.t().unwrap().matmul(&rx).unwrap(),
            dy.sum(0).unwrap(),
        ];
        let full = pass(&linear(inner, out, DType::F32, false), &x, &dy);
        for (i, (mine, truth)) in mine.iter().zip(&truth).enumerate() {
            assert_close(&format!("{n} x {inner} -> {out}: {i}"), mine, truth, 1e-6);
            let same = values(mine) == values(&full[i]);
            assert_eq!(same, i == 3, "rounding shows in all but the bias' gradient");
        }
        // In f64, the dtype of checks, the flag does nothing.
        let [exact, flagged] = [false, true].map(|bf16| pass(&linear(inner, out, DType::F64, bf16), &x, &dy));
        assert!(exact.iter().zip(&flagged).all(|(a, b)| values(a) == values(b)));
    }
}

#[test]
fn accumulate_is_what_backward_adds() {
    for (dtype, bf16) in [(DType::F32, false), (DType::F32, true), (DType::F64, false)] {
        let (x, dy) = (random(&[33, 24], 3), random(&[33, 40], 4));
        let [_, _, dw, db] = pass(&linear(24, 40, dtype, bf16), &x, &dy);
        let other = linear(24, 40, dtype, bf16);
        other.accumulate(&x.to_dtype(dtype).unwrap(), &dy.to_dtype(dtype).unwrap()).unwrap();
        assert_eq!((values(&dw), values(&db)), (values(&other.weight.grad), values(&other.bias.grad)));
    }
}

#[test]
fn gelu_and_silu_hold_at_the_extremes() {
    for dtype in [DType::F32, DType::F64] {
        let x = Tensor::new(&[-1e4f64, -100.0, -0.0, 0.0, 100.0, 1e4], &Device::Cpu).unwrap().to_dtype(dtype).unwrap();
        for f in [gelu, silu] {
            let x = Var::from_tensor(&x).unwrap();
            let y = f(&x).unwrap();
            assert_eq!(values(&y).iter().map(|v| v.round()).collect::<Vec<_>>(), [0.0, 0.0, 0.0, 0.0, 100.0, 1e4]);
            let slope = vjp(&[(&y, &y.ones_like().unwrap())], &[&x]).unwrap().remove(0);
            assert_eq!(values(&slope).iter().map(|v| v.abs()).collect::<Vec<_>>()[2..], [0.5, 0.5, 1.0, 1.0]);
            assert!(values(&slope)[..2].iter().all(|v| v.abs() < 1e-20), "{dtype:?}: {slope}");
        }
    }
}

#[test]
fn vjp_of_several_outputs() {
    let var = |sample| Var::from_tensor(&random(&[7, 24], sample)).unwrap();
    let (x, y, unused) = (var(0), var(1), var(2));
    let (product, square) = ((x.as_tensor() * y.as_tensor()).unwrap(), x.sqr().unwrap());
    let (a, b) = (random(&[7, 24], 3), random(&[7, 24], 4));
    let got = vjp(&[(&product, &a), (&square, &b), (&product, &b)], &[&x, &unused, &y]).unwrap();
    let ab = (&a + &b).unwrap();
    let dx = ((&ab * y.as_tensor()).unwrap() + (&b * x.as_tensor()).unwrap() * 2.0).unwrap();
    assert_close("x", &got[0], &dx, 1e-15);
    assert_close("y", &got[2], &(&ab * x.as_tensor()).unwrap(), 1e-15);
    assert_eq!(values(&got[1]), [0.0; 7 * 24], "no output depends on it");
    // An output may be an input, or depend on no input; there may be none.
    let constant = random(&[7, 24], 5);
    let got = vjp(&[(x.as_tensor(), &a), (&constant, &b)], &[&x]).unwrap();
    assert_eq!(values(&got[0]), values(&a));
    for outputs in [&[][..], &[(&constant, &a)]] {
        assert_eq!(values(&vjp(outputs, &[&x]).unwrap()[0]), [0.0; 7 * 24]);
    }
}

#[test]
fn row_dot_is_a_dot_product_per_head() {
    for (n, heads, d) in [(1, 3, 8), (7, 2, 24), (33, 25, 8)] {
        for (dtype, out, tolerance) in [(DType::F64, DType::F64, 1e-14), (DType::F32, DType::F32, 1e-6)] {
            let [a, b] = [0, 1].map(|sample| random(&[n, heads * d], sample).to_dtype(dtype).unwrap());
            let (va, vb) = (values(&a), values(&b));
            let dot = |head: usize| (head * d..(head + 1) * d).map(|i| va[i] * vb[i]).sum::<f64>();
            let truth = Tensor::from_vec((0..n * heads).map(dot).collect(), (n, heads), &Device::Cpu).unwrap();
            let got = row_dot(&a, &b, heads).unwrap();
            assert_eq!(got.dtype(), out);
            assert_close("row_dot", &got, &truth, tolerance);
            // Of bf16 rows: the products and sums are f32's.
            let [a, b] = [a, b].map(|t| t.to_dtype(DType::BF16).unwrap());
            let [wide_a, wide_b] = [&a, &b].map(|t| t.to_dtype(DType::F32).unwrap());
            let got = row_dot(&a, &b, heads).unwrap();
            assert_eq!(got.dtype(), DType::F32);
            assert_eq!(values(&got), values(&row_dot(&wide_a, &wide_b, heads).unwrap()));
        }
    }
}

#[test]
fn sums_over_rows_and_addition_in_place() {
    for n in [1, 7, 33, 64, 65, 200] {
        let x = random(&[n, 24], 0);
        let sum = Tensor::from_vec(sum_columns(&values(&x), 24), 24, &Device::Cpu).unwrap();
        assert_close("sum_columns", &sum, &x.sum(0).unwrap(), 1e-14);
    }
    for (dtype, shape) in [(DType::F64, [7, 24]), (DType::F32, [300, 200])] {
        let [to, more] = [0, 1].map(|sample| random(&shape, sample).to_dtype(dtype).unwrap());
        let truth = values(&(&to + &more).unwrap());
        add_assign(&to, &more).unwrap();
        assert_eq!(values(&to), truth);
        // Into a part of a buffer: the rest stays.
        let part = to.narrow(0, 2, 3).unwrap();
        add_assign(&part, &more.narrow(0, 0, 3).unwrap()).unwrap();
        let (after, width) = (values(&to), shape[1]);
        assert_eq!((&after[..2 * width], &after[5 * width..]), (&truth[..2 * width], &truth[5 * width..]));
        assert!(after[2 * width..5 * width].iter().zip(&truth[2 * width..]).all(|(a, b)| a != b));
    }
}

proptest! {
    #[test]
    fn runs_are_the_rows_in_order(start in 0usize..40, tokens in 1usize..12, n in 0usize..40, most in 1usize..9) {
        let rows = Rows { start, tokens };
        let (mut at, mut last) = (0, None);
        for (sample, first, count) in rows.runs(n, most) {
            prop_assert!(first == at && count >= 1 && count <= most);
            for row in first..first + count {
                prop_assert_eq!((start + row) / tokens, sample);
            }
            // No run ends before its sample does unless it is as long as may be.
            prop_assert!(last != Some((sample, false)), "sample {} was cut short", sample);
            (at, last) = (at + count, Some((sample, count == most)));
        }
        prop_assert_eq!(at, n);
    }
}

#[test]
fn input_that_does_not_fit_is_refused() {
    fn refused<T>(result: Result<T>, parts: &[&str]) {
        let message = result.err().expect("refused").to_string();
        assert!(parts.iter().all(|part| message.contains(part)), "{message}");
    }
    let x = random(&[4, 24], 0);
    let w = linear(24, 40, DType::F64, false);
    refused(w.forward(&random(&[4, 25], 0)), &["w.weight", "[n, 24]", "[4, 25]"]);
    refused(w.forward(&x.to_dtype(DType::F32).unwrap()), &[]);
    refused(w.forward(&x.t().unwrap()), &["linear", "not contiguous"]);
    refused(gelu(&x.to_dtype(DType::BF16).unwrap()), &["gelu", "BF16"]);
    let m = Param::leaf("m", random(&[1, 6, 24], 1)).unwrap();
    let rows = Rows { start: 0, tokens: 4 };
    refused(gate_residual(&x, &random(&[3, 24], 1), &m, 2, rows), &["gate_residual", "[4, 24]", "[3, 24]"]);
    refused(gate_residual(&x, &x.to_dtype(DType::F32).unwrap(), &m, 2, rows), &["gate_residual", "F64", "F32"]);
    refused(add_assign(&x, &random(&[3, 24], 1)), &["add_assign", "[4, 24]", "[3, 24]"]);
    refused(vjp(&[(&x, &random(&[3, 24], 1))], &[]), &["vjp", "[4, 24]", "[3, 24]"]);
    refused(read::<f64>(&x.t().unwrap()), &["read", "not contiguous"]);
    refused(read::<f32>(&x), &[]);
    refused(write(&x.t().unwrap(), |_: &mut [f64]| ()), &["write", "not contiguous"]);
    refused(write(&x, |_: &mut [f32]| ()), &["write", "F32", "F64"]);
}
