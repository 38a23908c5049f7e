//! The linear layer, in full precision and with operands rounded to bf16.

use super::{Op, RUNS, WIDTHS, close, normal, values};
use candle_core::{DType, Device, Tensor, Var};
use longreel::ops::{Linear, Param, plain, vjp};

fn layer(params: &[Param], bf16: bool) -> Linear {
    Linear { weight: params[0].clone(), bias: params[1].clone(), bf16 }
}

#[test]
fn linear() {
    for (n, ..) in RUNS {
        for (inner, out) in [(24, 40), (40, 24), (200, 7), (1, 24), (33, 1)] {
            Op {
                name: format!("linear [{n}, {inner}] to {out}"),
                inputs: vec![normal(1, (n, inner))],
                params: vec![normal(2, (out, inner)), normal(3, out)],
                fused: &|x, p| layer(p, false).forward(&x[0]),
                plain: &|x, p| plain::linear(&x[0], &p[0], &p[1]),
            }
            .check();
        }
    }
}

/// The gradients for a layer whose input's own gradient is not wanted are the same ones, bit by bit.
#[test]
fn accumulate_gives_the_weight_gradients_of_backward() {
    for bf16 in [false, true] {
        let f32 = |t: Tensor| t.to_dtype(DType::F32).unwrap();
        let (x, dy) = (Var::from_tensor(&f32(normal(1, (33, 40)))).unwrap(), f32(normal(2, (33, 24))));
        let make =
            || layer(&[f32(normal(3, (24, 40))), f32(normal(4, 24))].map(|t| Param::leaf("p", t).unwrap()), bf16);
        let (a, b) = (make(), make());
        vjp(&[(&a.forward(&x).unwrap(), &dy)], &[&x]).unwrap();
        b.accumulate(&x, &dy).unwrap();
        for (a, b) in [(&a.weight, &b.weight), (&a.bias, &b.bias)] {
            assert!(values(&a.grad).iter().any(|&g| g != 0.0));
            assert_eq!(values(&a.grad), values(&b.grad));
        }
    }
}

/// With bf16, each of the three products is that of rounded operands with an f32 sum, and the bias gradient is not
/// rounded.
#[test]
fn bf16_is_the_product_of_rounded_operands() {
    let round = |t: &Tensor| t.to_dtype(DType::BF16).unwrap().to_dtype(DType::F64).unwrap();
    for n in [1, 7, 33, 150] {
        for width in WIDTHS {
            let out = 40;
            let [x, w, b, dy] = [normal(1, (n, width)), normal(2, (out, width)), normal(3, out), normal(4, (n, out))];
            let f32 = |t: &Tensor| t.to_dtype(DType::F32).unwrap();
            let l = layer(&[&w, &b].map(|t| Param::leaf("p", f32(t)).unwrap()), true);
            let input = Var::from_tensor(&f32(&x)).unwrap();
            let y = l.forward(&input).unwrap();
            let dx = vjp(&[(&y, &f32(&dy))], &[&input]).unwrap().remove(0);

            let (rx, rw, rdy) = (round(&x), round(&w), round(&dy));
            close("output", &y, &plain::linear(&rx, &rw, &b).unwrap(), 1e-6);
            close("input's gradient", &dx, &rdy.matmul(&rw).unwrap(), 1e-6);
            close("weight's gradient", &l.weight.grad, &rdy.t().unwrap().matmul(&rx).unwrap(), 1e-6);
            close("bias' gradient", &l.bias.grad, &dy.sum(0).unwrap(), 1e-6);
        }
    }
}

/// The measure for a bf16 kernel: off from f64 by no more than twice what plain bf16 tensors are, and by more than f32
/// is.
#[test]
fn bf16_is_as_good_as_plain_bf16() {
    let (n, width, out) = (33, 200, 40);
    let tensors = [normal(1, (n, width)), normal(2, (out, width)), normal(3, out)];
    let dy = normal(4, (n, out));
    let norm = |t: &Tensor| values(t).iter().map(|v| v * v).sum::<f64>().sqrt();
    let error = |got: &Tensor, want: &Tensor| norm(&(got.to_dtype(DType::F64).unwrap() - want).unwrap()) / norm(want);

    // (output, gradients of input, weight and bias) with Candle's own matmul in a dtype
    let by_candle = |dtype: DType| -> Vec<Tensor> {
        let vars: Vec<Var> = tensors.iter().map(|t| Var::from_tensor(&t.to_dtype(dtype).unwrap()).unwrap()).collect();
        let y = plain::linear(&vars[0], &vars[1], &vars[2]).unwrap();
        let loss = (&y * dy.to_dtype(dtype).unwrap()).unwrap().sum_all().unwrap();
        let gradients = loss.backward().unwrap();
        std::iter::once(y).chain(vars.iter().map(|v| gradients.get(v).unwrap().clone())).collect()
    };
    let f32 = |t: &Tensor| t.to_dtype(DType::F32).unwrap();
    let l = layer(&[&tensors[1], &tensors[2]].map(|t| Param::leaf("p", f32(t)).unwrap()), true);
    let input = Var::from_tensor(&f32(&tensors[0])).unwrap();
    let y = l.forward(&input).unwrap();
    let dx = vjp(&[(&y, &f32(&dy))], &[&input]).unwrap().remove(0);

    let ours = [y, dx, l.weight.grad, l.bias.grad];
    for (i, ((ours, exact), theirs)) in ours.iter().zip(by_candle(DType::F64)).zip(by_candle(DType::BF16)).enumerate() {
        let (ours, theirs) = (error(ours, &exact), error(&theirs, &exact));
        println!("{i}: {ours:.1e}, plain bf16 {theirs:.1e}");
        assert!(ours <= 2.0 * theirs, "{i}: {ours:.1e}, plain bf16 {theirs:.1e}");
        // The last is the bias' gradient, a sum of unrounded numbers.
        assert!(i == 3 || ours > 1e-3, "{i}: {ours:.1e} is not bf16");
    }
}

/// f64 is for checks: the flag does not round it.
#[test]
fn f64_is_never_rounded() {
    let params = [normal(2, (7, 24)), normal(3, 7)].map(|t| Param::leaf("p", t).unwrap());
    let x = normal(1, (5, 24));
    let [a, b] = [true, false].map(|bf16| values(&layer(&params, bf16).forward(&x).unwrap()));
    assert_eq!(a, b);
}

#[test]
fn unusable_inputs_are_refused() {
    let params = [normal(2, (7, 24)), normal(3, 7)].map(|t| Param::leaf("proj.weight", t).unwrap());
    let l = layer(&params, false);
    let refused = |x: &Tensor, word: &str| {
        let said = l.forward(x).unwrap_err().to_string();
        assert!(said.contains(word), "no {word:?} in: {said}");
    };
    refused(&normal(1, (5, 23)), "proj.weight: input [n, 24] wanted, got [5, 23]");
    refused(&normal(1, (24, 5)).t().unwrap(), "not contiguous");
    refused(&normal(1, (5, 24)).to_dtype(DType::BF16).unwrap(), "BF16");
    refused(&normal(1, (5, 24)).to_dtype(DType::F32).unwrap(), "F32"); // weights are f64
    let empty = l.forward(&Tensor::zeros((0, 24), DType::F64, &Device::Cpu).unwrap()).unwrap();
    assert_eq!(empty.dims(), [0, 7]);
}
