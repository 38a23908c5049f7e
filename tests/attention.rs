//! Tests attention on the CPU: every instruction set against the f64 reference, forward and backward; the reference
//! against finite differences.

use candle_core::{D, DType, Device, Tensor};
use longreel::attention::cpu::{Isa, backward_on, forward_on};
use longreel::attention::{Qkv, SavedRows, flash, flash_backward, reference};
use longreel::rng::{Key, Purpose};

/// q, k, v, d_o.
pub type Inputs = [Tensor; 4];

fn normal(shape: &[usize], sample: u64) -> Tensor {
    let mut x = vec![0f32; shape.iter().product()];
    Key { seed: 7, purpose: Purpose::Test, step: 0, sample }.stream(0).fill_normal(&mut x);
    Tensor::from_vec(x, shape, &Device::Cpu).unwrap()
}

pub fn inputs(b: usize, h: usize, [sq, sk]: [usize; 2], d: usize, dtype: DType) -> Inputs {
    [(sq, 0), (sk, 1), (sk, 2), (sq, 3)].map(|(s, which)| normal(&[b, h, s, d], which).to_dtype(dtype).unwrap())
}

fn available() -> impl Iterator<Item = Isa> {
    Isa::ALL.into_iter().filter(|isa| isa.is_available())
}

pub fn delta(d_o: &Tensor, o: &Tensor) -> Tensor {
    let wide = if o.dtype() == DType::F64 { DType::F64 } else { DType::F32 };
    (d_o.to_dtype(wide).unwrap() * o.to_dtype(wide).unwrap()).unwrap().sum(D::Minus1).unwrap()
}

/// o, lse, dq, dk, dv of a path.
fn run(isa: Isa, [q, k, v, d_o]: &Inputs, scale: f64) -> [Tensor; 5] {
    let qkv = Qkv::new(q, k, v);
    let (o, lse) = forward_on(isa, qkv, scale).unwrap();
    let (dq, dk, dv) = backward_on(isa, qkv, SavedRows::new(d_o, &lse, &delta(d_o, &o)), scale).unwrap();
    [o, lse, dq, dk, dv]
}

/// The same from the reference, in the dtype of the inputs.
pub fn run_reference([q, k, v, d_o]: &Inputs, scale: f64) -> [Tensor; 5] {
    let qkv = Qkv::new(q, k, v);
    let (o, lse) = reference::attention(qkv, scale).unwrap();
    let delta = delta(d_o, &o);
    let saved = SavedRows::new(d_o, &lse, &delta);
    let (dq, dk, dv) = reference::attention_backward(qkv, saved, scale).unwrap();
    [o, lse, dq, dk, dv]
}

pub fn exact(x: &Inputs, scale: f64) -> [Tensor; 5] {
    run_reference(&x.each_ref().map(|x| x.to_dtype(DType::F64).unwrap()), scale)
}

pub fn values(x: &Tensor) -> Vec<f64> {
    x.to_dtype(DType::F64).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

/// Largest difference over the largest magnitude, and root mean square of the differences over that of the magnitudes.
pub fn errors(x: &Tensor, truth: &Tensor) -> (f64, f64) {
    assert_eq!(x.dims(), truth.dims());
    let (x, truth) = (values(x), values(truth));
    let max = |x: &mut dyn Iterator<Item = f64>| x.fold(0f64, |a, b| if b.is_nan() { b } else { a.max(b.abs()) });
    let rms = |x: &mut dyn Iterator<Item = f64>| x.map(|x| x * x).sum::<f64>().sqrt();
    let difference = || x.iter().zip(&truth).map(|(x, t)| x - t);
    let (peak, size) = (max(&mut truth.iter().copied()), rms(&mut truth.iter().copied()));
    let floor = f64::MIN_POSITIVE;
    (max(&mut difference()) / peak.max(floor), rms(&mut difference()) / size.max(floor))
}

fn bits(x: &Tensor) -> Vec<u64> {
    values(x).into_iter().map(f64::to_bits).collect()
}

pub fn assert_same_bits(a: &[Tensor; 5], b: &[Tensor; 5], what: &str) {
    for (name, (a, b)) in NAMES.iter().zip(a.iter().zip(b)) {
        assert_eq!(a.dims(), b.dims(), "{what}: {name}");
        assert!(bits(a) == bits(b), "{what}: {name} differs");
    }
}

pub const NAMES: [&str; 5] = ["o", "lse", "dq", "dk", "dv"];
const DIMS: [usize; 8] = [8, 16, 24, 40, 64, 80, 128, 256];
const LENGTHS: [[usize; 2]; 11] =
    [[1, 1], [1, 257], [257, 1], [2, 7], [7, 2], [33, 65], [65, 33], [64, 192], [130, 257], [257, 130], [65, 386]];

#[test]
fn reference_gradients_match_finite_differences() {
    let x = inputs(2, 1, [3, 5], 8, DType::F64);
    let scale = 0.4;
    let [.., dq, dk, dv] = run_reference(&x, scale);
    let loss = |[q, k, v, d_o]: &Inputs| {
        let (o, _) = reference::attention(Qkv::new(q, k, v), scale).unwrap();
        (o * d_o).unwrap().sum_all().unwrap().to_scalar::<f64>().unwrap()
    };
    for (which, grad) in [dq, dk, dv].iter().enumerate() {
        let base = values(&x[which]);
        for (i, grad) in values(grad).into_iter().enumerate() {
            let at = |step: f64| {
                let mut moved = base.clone();
                moved[i] += step;
                let mut x = x.clone();
                x[which] = Tensor::from_vec(moved, x[which].shape(), &Device::Cpu).unwrap();
                loss(&x)
            };
            let numeric = (at(1e-5) - at(-1e-5)) / 2e-5;
            assert!((numeric - grad).abs() < 1e-8, "input {which}, element {i}: {grad} but {numeric} by differences");
        }
    }
}

#[test]
fn f32_matches_f64_on_every_isa() {
    for d in DIMS {
        for lengths in LENGTHS {
            let x = inputs(1, 2, lengths, d, DType::F32);
            let scale = 1.0 / (d as f64).sqrt();
            let truth = exact(&x, scale);
            for isa in available() {
                for (name, (x, truth)) in NAMES.iter().zip(run(isa, &x, scale).iter().zip(&truth)) {
                    // With one key P is 1 and the gradients of q and k cancel to 0.
                    if lengths[1] == 1 && ["dq", "dk"].contains(name) {
                        assert!(values(x).iter().all(|x| x.abs() < 3e-5), "{isa:?} {lengths:?} d {d}: {name}");
                        continue;
                    }
                    let (max, _) = errors(x, truth);
                    assert!(max < 4e-6, "{isa:?} {lengths:?} d {d}: {name} is off by {max:.1e}");
                }
            }
        }
    }
}

#[test]
fn bf16_errs_at_most_twice_as_much_as_plain_bf16() {
    for d in DIMS {
        for lengths in LENGTHS {
            let x = inputs(2, 1, lengths, d, DType::BF16);
            let scale = 1.0 / (d as f64).sqrt();
            let (truth, plain) = (exact(&x, scale), run_reference(&x, scale));
            for isa in available() {
                check_bf16(&run(isa, &x, scale), &plain, &truth, &format!("{isa:?} {lengths:?} d {d}"));
            }
        }
    }
}

/// Errors of bf16 results are within twice those of the plain bf16 reference, and lse within f32 rounding.
pub fn check_bf16(ours: &[Tensor; 5], plain: &[Tensor; 5], truth: &[Tensor; 5], what: &str) {
    for i in 0..5 {
        let ((max, rms), (plain_max, plain_rms)) = (errors(&ours[i], &truth[i]), errors(&plain[i], &truth[i]));
        let name = NAMES[i];
        if name == "lse" {
            assert!(max < 4e-6, "{what}: lse is off by {max:.1e}");
            continue;
        }
        assert!(rms <= 2.0 * plain_rms + 1e-9, "{what}: {name} is off by {rms:.1e} rms, plain by {plain_rms:.1e}");
        assert!(max <= 2.0 * plain_max + 1e-9, "{what}: {name} is off by {max:.1e} at most, plain by {plain_max:.1e}");
    }
}

/// q and k of whole numbers whose products are exact, with logits up to about +-`peak`.
pub fn extreme(lengths: [usize; 2], d: usize, peak: f64, dtype: DType) -> (Inputs, f64) {
    let [q, k, v, d_o] = inputs(1, 2, lengths, d, dtype);
    let whole = |x: &Tensor| (x.to_dtype(DType::F32).unwrap() * 3.0).unwrap().round().unwrap().to_dtype(dtype).unwrap();
    let x = [whole(&q), whole(&k), v, d_o];
    let (q, k) = (x[0].to_dtype(DType::F64).unwrap(), x[1].to_dtype(DType::F64).unwrap());
    let s = q.matmul(&k.t().unwrap()).unwrap().abs().unwrap().max_all().unwrap().to_scalar::<f64>().unwrap();
    (x, peak / s)
}

#[test]
fn logits_of_ten_thousand_do_not_overflow() {
    for lengths in [[33, 65], [130, 257], [7, 1]] {
        let (x, scale) = extreme(lengths, 64, 1e4, DType::F32);
        let (truth, plain) = (exact(&x, scale), run_reference(&x, scale));
        let (half, half_scale) = extreme(lengths, 64, 1e4, DType::BF16);
        let (half_truth, half_plain) = (exact(&half, half_scale), run_reference(&half, half_scale));
        for isa in available() {
            for (i, x) in run(isa, &x, scale).iter().enumerate() {
                if lengths[1] == 1 && i > 1 && i < 4 {
                    // P is 1, so dP - delta cancels to 0; dP alone would give thousands.
                    assert!(values(x).iter().all(|x| x.abs() < 1e-2), "{isa:?} {lengths:?}: {}", NAMES[i]);
                    continue;
                }
                // An f32 lse of 1e4 is off by 5e-4, so P in backward is off by 5e-4 of itself; most of dq and dk
                // cancels.
                let ((ours, _), (theirs, _)) = (errors(x, &truth[i]), errors(&plain[i], &truth[i]));
                let bound = if i < 2 { 2e-6 } else { 4.0 * theirs + 1e-3 };
                assert!(
                    ours < bound,
                    "{isa:?} {lengths:?}: {} is off by {ours:.1e}, plain f32 by {theirs:.1e}",
                    NAMES[i]
                );
            }
            check_bf16(&run(isa, &half, half_scale), &half_plain, &half_truth, &format!("{isa:?} {lengths:?}"));
        }
    }
}

/// q, k, v and do whose logits rise (or fall) from key to key.
fn ramp(direction: f64, [sq, sk]: [usize; 2], d: usize, dtype: DType) -> Inputs {
    let mut x = inputs(1, 1, [sq, sk], d, DType::F32);
    let ramp = Tensor::arange(0f32, sk as f32, &Device::Cpu).unwrap().reshape((1, 1, sk, 1)).unwrap();
    let ramp = (ramp * (direction * 3.2 / d as f64)).unwrap().broadcast_as((1, 1, sk, d)).unwrap();
    x[1] = (&x[1] + ramp).unwrap();
    x[0] = x[0].abs().unwrap();
    x.map(|x| x.to_dtype(dtype).unwrap())
}

/// Logits that rise panel after panel move the running maximum every time; those that fall never do.
#[test]
fn rising_and_falling_logits_match_the_reference() {
    for direction in [1.0, -1.0] {
        let x = ramp(direction, [9, 520], 16, DType::F32);
        let truth = exact(&x, 0.25);
        for isa in available() {
            for (name, (x, truth)) in NAMES.iter().zip(run(isa, &x, 0.25).iter().zip(&truth)) {
                let (max, _) = errors(x, truth);
                assert!(max < 1e-4, "{isa:?} {direction}: {name} is off by {max:.1e}");
            }
        }
    }
}

/// Several row blocks of rows by several panels, where a matrix unit's products and exponentials are woven, at each of
/// their paces.
#[test]
fn rising_and_falling_logits_err_at_most_twice_as_much_as_plain_bf16() {
    for (direction, d) in [(1.0, 64), (-1.0, 64), (1.0, 128), (1.0, 256)] {
        let x = ramp(direction, [530, 700], d, DType::BF16);
        let (truth, plain) = (exact(&x, 0.25), run_reference(&x, 0.25));
        for isa in available() {
            check_bf16(&run(isa, &x, 0.25), &plain, &truth, &format!("{isa:?} {direction} {d}"));
        }
    }
}

#[test]
fn strided_views_give_the_bits_of_contiguous_tensors() {
    let (b, h, s, d) = (2, 3, 70, 24);
    for dtype in [DType::F32, DType::BF16] {
        // [B, S, 5, d + 8] -> heads 1..4, columns 8.. -> [B, H, S, d]
        let views: [Tensor; 4] = [1, 2, 3, 4].map(|i| {
            let x = normal(&[b, s, 5, d + 8], i).to_dtype(dtype).unwrap();
            x.narrow(2, 1, h).unwrap().narrow(3, 8, d).unwrap().transpose(1, 2).unwrap()
        });
        assert!(!views[0].is_contiguous());
        let copies = views.each_ref().map(|x| x.contiguous().unwrap());
        for isa in available() {
            assert_same_bits(&run(isa, &views, 0.3), &run(isa, &copies, 0.3), &format!("{isa:?} {dtype:?}"));
        }
    }
}

#[test]
fn bits_do_not_depend_on_the_run_or_on_threads() {
    for (b, h, lengths) in [(1, 1, [300, 700]), (2, 2, [70, 200]), (1, 1, [1, 5])] {
        for dtype in [DType::F32, DType::BF16] {
            let x = inputs(b, h, lengths, 40, dtype);
            for isa in available() {
                let with = |threads| {
                    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
                    pool.install(|| run(isa, &x, 0.2))
                };
                let one = with(1);
                for threads in [1, 2, 3, 7] {
                    assert_same_bits(&one, &with(threads), &format!("{isa:?} {dtype:?}, {threads} threads"));
                }
            }
        }
    }
}

/// Heads so long that backward takes them in halves, on any number of threads and in any company: groups of heads
/// change no bit.
#[test]
fn long_head_split_in_two_pipelines_is_exact() {
    let scale = 0.25;
    for dtype in [DType::F32, DType::BF16] {
        let x = inputs(1, 2, [8230, 390], 16, dtype);
        let (truth, plain) = (exact(&x, scale), run_reference(&x, scale));
        for isa in available() {
            let what = format!("{isa:?} {dtype:?}");
            let with = |threads, x: &Inputs| {
                let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
                pool.install(|| run(isa, x, scale))
            };
            let both = with(1, &x);
            if dtype == DType::BF16 {
                check_bf16(&both, &plain, &truth, &what);
            } else {
                for (name, (x, truth)) in NAMES.iter().zip(both.iter().zip(&truth)) {
                    let (max, _) = errors(x, truth);
                    assert!(max < 1e-5, "{what}: {name} is off by {max:.1e}");
                }
            }
            assert_same_bits(&both, &with(3, &x), &format!("{what}, 3 threads"));
            for head in 0..2 {
                let of = |x: &Tensor| x.narrow(1, head, 1).unwrap();
                assert_same_bits(
                    &both.each_ref().map(of),
                    &with(2, &x.each_ref().map(of)),
                    &format!("{what}, head {head}"),
                );
            }
        }
    }
}

#[test]
fn flash_uses_the_best_isa_and_the_reference_for_f64() {
    let x @ [q, k, v, d_o] = &inputs(1, 2, [20, 70], 32, DType::BF16);
    let qkv = Qkv::new(q, k, v);
    let (o, lse) = flash(qkv, 0.2).unwrap();
    let (dq, dk, dv) = flash_backward(qkv, SavedRows::new(d_o, &lse, &delta(d_o, &o)), 0.2).unwrap();
    assert!(o.dtype() == DType::BF16 && lse.dtype() == DType::F32 && dq.is_contiguous());
    assert_same_bits(&[o, lse, dq, dk, dv], &run(Isa::best(), x, 0.2), "best path");

    let x = inputs(1, 2, [20, 70], 32, DType::F64);
    for isa in available() {
        assert_same_bits(&run(isa, &x, 0.2), &run_reference(&x, 0.2), "f64");
    }
}

#[test]
fn nan_stays_in_the_rows_that_it_touches() {
    for dtype in [DType::F32, DType::BF16] {
        let mut x = inputs(1, 1, [10, 70], 16, dtype);
        let bad = Tensor::full(f32::NAN, (1, 1, 1, 16), &Device::Cpu).unwrap().to_dtype(dtype).unwrap();
        x[0] = x[0].slice_assign(&[0..1, 0..1, 7..8, 0..16], &bad).unwrap();
        for isa in available() {
            let [o, _, dq, dk, _] = run(isa, &x, 0.25);
            for x in [&o, &dq] {
                let nan: Vec<bool> = values(x).chunks(16).map(|row| row.iter().all(|x| x.is_nan())).collect();
                let finite = values(x).chunks(16).filter(|row| row.iter().all(|x| x.is_finite())).count();
                assert!(nan[7] && finite == 9, "{isa:?} {dtype:?}: {nan:?}");
            }
            assert!(values(&dk).iter().all(|x| x.is_nan()), "{isa:?} {dtype:?}: every key met the row");
        }
        // One bad key among good ones, in the first panel and in the last: every row meets it.
        for key in [3, 68] {
            let [q, k, v, d_o] = inputs(1, 1, [10, 70], 16, dtype);
            let k = k.slice_assign(&[0..1, 0..1, key..key + 1, 0..16], &bad).unwrap();
            let x = [q, k, v, d_o];
            for isa in available() {
                let [o, lse, dq, ..] = run(isa, &x, 0.25);
                for x in [&o, &lse, &dq] {
                    assert!(values(x).iter().all(|x| x.is_nan()), "{isa:?} {dtype:?}, key {key}");
                }
            }
        }
    }
}

#[test]
fn bad_attention_input_is_an_error() {
    let [q, k, v, d_o] = inputs(1, 2, [4, 6], 16, DType::F32);
    let refused = |q: &Tensor, k: &Tensor, v: &Tensor, scale: f64, words: &[&str]| {
        let error = refusal!(Shape, flash(Qkv::new(q, k, v), scale));
        for word in words {
            assert!(error.contains(word), "{error:?} lacks {word:?}");
        }
    };
    let of_dim = |d: usize| normal(&[1, 2, 4, d], 3);
    for d in [4, 12, 264] {
        refused(&of_dim(d), &of_dim(d), &of_dim(d), 1.0, &["head dim", &d.to_string(), "multiple of 8"]);
    }
    refused(&q.squeeze(0).unwrap(), &k, &v, 1.0, &["q is [2, 4, 16]", "[B, H, Sq, d]"]);
    refused(&q, &k.to_dtype(DType::BF16).unwrap(), &v, 1.0, &["k is BF16", "F32"]);
    refused(&q, &k, &v.narrow(2, 0, 5).unwrap(), 1.0, &["v is F32 [1, 2, 5, 16]", "[1, 2, 6, 16]"]);
    refused(&q, &k, &v.narrow(1, 0, 1).unwrap(), 1.0, &["v is F32 [1, 1, 6, 16]"]);
    refused(&q.to_dtype(DType::F16).unwrap(), &k, &v, 1.0, &["q is F16", "bf16"]);
    let across = normal(&[1, 2, 16, 6], 3).transpose(2, 3).unwrap();
    refused(&q, &across, &v, 1.0, &["k's last dim", "contiguous()"]);
    let none = k.narrow(2, 0, 0).unwrap();
    refused(&q, &none, &none, 1.0, &["at least one"]);
    for scale in [0.0, -1.0, f64::NAN, f64::INFINITY] {
        refused(&q, &k, &v, scale, &["scale", "positive"]);
    }
    let qkv = Qkv::new(&q, &k, &v);
    let (o, lse) = flash(qkv, 1.0).unwrap();
    let delta = delta(&d_o, &o);
    let short = lse.narrow(2, 0, 3).unwrap();
    for (d_o, lse, delta, word) in [
        (&v, &lse, &delta, "d_o is F32 [1, 2, 6, 16]"),
        (&d_o, &short, &delta, "lse is F32 [1, 2, 3]"),
        (&d_o, &lse, &delta.to_dtype(DType::F64).unwrap(), "delta is F64"),
    ] {
        let error = refusal!(Shape, flash_backward(qkv, SavedRows::new(d_o, lse, delta), 1.0));
        assert!(error.contains(word), "{error:?} lacks {word:?}");
    }
}
