//! Tests the linear layer, in full precision and with operands rounded to bf16.

use super::norm::gathered;
use super::{Op, RUNS, SAMPLES, close, normal, values};
use candle_core::{DType, Device, Tensor, Var};
use longreel::ops::{Linear, Param, Rows, Tape, plain};
use longreel::simd::Isa;

fn layer(params: &[Param], bf16: bool) -> Linear {
    Linear::new(params[0].clone(), params[1].clone(), bf16)
}

/// Every instruction set that this CPU has.
fn isas() -> impl Iterator<Item = Isa> {
    Isa::ALL.into_iter().filter(|isa| isa.is_available())
}

#[test]
fn linear() {
    for (n, ..) in RUNS {
        for (inner, out) in [(24, 40), (40, 24), (200, 7), (1, 24), (33, 1)] {
            Op {
                name: format!("linear [{n}, {inner}] to {out}"),
                inputs: vec![normal(1, (n, inner))],
                params: vec![normal(2, (out, inner)), normal(3, out)],
                fused: &|t, x, p| layer(p, false).forward(t, &x[0]),
                plain: &|x, p| plain::linear(&x[0], &p[0], &p[1]),
            }
            .check();
        }
    }
}

#[test]
fn fused_linear_epilogues_match_the_plain_form() {
    for (n, start, tokens) in RUNS {
        let at = Rows { start, tokens };
        for (inner, out) in [(24, 40), (40, 7), (33, 1)] {
            let (x, residual) = (normal(1, (n, inner)), normal(6, (n, out)));
            // Small weights, and small inputs to GELU: sums stay where GELU's curve is gentle enough for finite
            // differences.
            let params = || vec![(normal(2, (out, inner)) * 0.05).unwrap(), normal(3, out)];
            Op {
                name: format!("linear and gelu [{n}, {inner}] to {out}"),
                inputs: vec![(&x * 0.25).unwrap()],
                params: params(),
                fused: &|t, x, p| layer(p, false).gelu(t, &x[0]),
                plain: &|x, p| plain::gelu(&plain::linear(&x[0], &p[0], &p[1])?),
            }
            .check();
            Op {
                name: format!("linear and residual [{n}, {inner}] to {out}"),
                inputs: vec![residual.clone(), x.clone()],
                params: params(),
                fused: &|t, x, p| layer(p, false).add_to(t, &x[0], &x[1]),
                plain: &|x, p| &x[0] + plain::linear(&x[1], &p[0], &p[1])?,
            }
            .check();
            let (k, index) = (3, 1);
            Op {
                name: format!("linear and gated residual [{n}, {inner}] to {out} from row {start}"),
                inputs: vec![residual.clone(), x.clone()],
                params: [params(), vec![normal(4, (SAMPLES, k, out))]].concat(),
                fused: &|t, x, p| layer(p, false).gate_to(t, &x[0], &x[1], (&p[2], index), at),
                plain: &|x, p| &x[0] + (plain::linear(&x[1], &p[0], &p[1])? * gathered(&p[2], index, n, at)?)?,
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
        let (x, dy) = (f32(normal(1, (33, 40))), f32(normal(2, (33, 24))));
        let make =
            || layer(&[f32(normal(3, (24, 40))), f32(normal(4, 24))].map(|t| Param::leaf("p", t).unwrap()), bf16);
        let (a, b) = (make(), make());
        let tape = Tape::recording();
        let y = a.forward(&tape, &x).unwrap();
        tape.backward(&[(&y, &dy)], &[&x]).unwrap();
        b.accumulate(&x, &dy).unwrap();
        for (a, b) in [(&a.weight, &b.weight), (&a.bias, &b.bias)] {
            assert!(values(a.grad().unwrap()).iter().any(|&g| g != 0.0));
            assert_eq!(values(a.grad().unwrap()), values(b.grad().unwrap()));
        }
    }
}

/// On every instruction set, in f32 and bf16, each of the three products is that of the (rounded) operands with an f32
/// sum, and the bias gradient is not rounded. Sizes around the tiles' 6 rows, the panels' 48 and 64 lanes, the tasks'
/// 96 rows, and the runs of 96 words of a contraction; the weight's gradient is added to what is there.
#[test]
fn every_isa_multiplies_operands_of_any_size() {
    let sizes = [(1, 1, 1), (7, 24, 40), (33, 200, 40), (150, 40, 200), (6, 64, 48), (97, 385, 65), (203, 97, 130)];
    for (n, width, out) in sizes {
        let [x, w, b, dy] = [normal(1, (n, width)), normal(2, (out, width)), normal(3, out), normal(4, (n, out))];
        let f32 = |t: &Tensor| t.to_dtype(DType::F32).unwrap();
        for bf16 in [false, true] {
            // By way of f32: from f64, Candle takes near ties for ties.
            let round = |t: &Tensor| if bf16 { f32(t).to_dtype(DType::BF16).unwrap() } else { t.clone() };
            let [rx, rw, rdy] = [&x, &w, &dy].map(|t| round(t).to_dtype(DType::F64).unwrap());
            for isa in isas() {
                let what = |name: &str| format!("{isa:?} bf16 {bf16} [{n}, {width}] to {out}: {name}");
                let l = layer(&[&w, &b].map(|t| Param::leaf("p", f32(t)).unwrap()), bf16).on(isa);
                l.weight.accumulate(&f32(&w)).unwrap();
                let (tape, input) = (Tape::recording(), f32(&x));
                let y = l.forward(&tape, &input).unwrap();
                let dx = tape.backward(&[(&y, &f32(&dy))], &[&input]).unwrap().remove(0);
                close(&what("output"), &y, &plain::linear(&rx, &rw, &b).unwrap(), 2e-6);
                close(&what("input's gradient"), &dx, &rdy.matmul(&rw).unwrap(), 2e-6);
                let dw = (rdy.t().unwrap().contiguous().unwrap().matmul(&rx).unwrap() + &w).unwrap();
                close(&what("weight's gradient"), l.weight.grad().unwrap(), &dw, 2e-6);
                close(&what("bias' gradient"), l.bias.grad().unwrap(), &dy.sum(0).unwrap(), 2e-6);
            }
        }
    }
}

/// While a layer is held its weights are packed once: a change is not seen before the guard is gone, by no clone.
#[test]
fn pinned_weights_stay_packed() {
    let f32 = |t: Tensor| t.to_dtype(DType::F32).unwrap();
    let l = layer(&[f32(normal(2, (40, 24))), f32(normal(3, 40))].map(|t| Param::leaf("p", t).unwrap()), false);
    let x = f32(normal(1, (7, 24)));
    let run = |l: &Linear| values(&l.forward(&Tape::off(), &x).unwrap());
    let held = l.pin_packed();
    let first = run(&l);
    longreel::ops::write(&l.weight.value, |w: &mut [f32]| w.fill(0.5)).unwrap();
    assert!(run(&l) == first && run(&l.clone()) == first);
    drop(held);
    assert!(run(&l) != first);
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
    let (tape, input) = (Tape::recording(), f32(&tensors[0]));
    let y = l.forward(&tape, &input).unwrap();
    let dx = tape.backward(&[(&y, &f32(&dy))], &[&input]).unwrap().remove(0);

    let ours = [y, dx, l.weight.grad().unwrap().clone(), l.bias.grad().unwrap().clone()];
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
    let [a, b] = [true, false].map(|bf16| values(&layer(&params, bf16).forward(&Tape::off(), &x).unwrap()));
    assert_eq!(a, b);
}

#[test]
fn bad_linear_input_is_an_error() {
    let params = [normal(2, (7, 24)), normal(3, 7)].map(|t| Param::leaf("proj.weight", t).unwrap());
    let l = layer(&params, false);
    let refused = |x: &Tensor, word: &str| {
        let said = l.forward(&Tape::off(), x).unwrap_err().to_string();
        assert!(said.contains(word), "no {word:?} in: {said}");
    };
    refused(&normal(1, (5, 23)), "proj.weight: input [n, 24] wanted, got [5, 23]");
    refused(&normal(1, (24, 5)).t().unwrap(), "not contiguous");
    refused(&normal(1, (5, 24)).to_dtype(DType::BF16).unwrap(), "BF16");
    refused(&normal(1, (5, 24)).to_dtype(DType::F32).unwrap(), "F32"); // weights are f64
    let empty = l.forward(&Tape::off(), &Tensor::zeros((0, 24), DType::F64, &Device::Cpu).unwrap()).unwrap();
    assert_eq!(empty.dims(), [0, 7]);
}
