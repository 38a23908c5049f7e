//! Tests ring attention over ranks against the f64 reference on one: uneven rows, rows alone, extreme logits, bf16, the
//! bits of a second run. Rings within the engine are tested in `engine.rs`.

use crate::attention::{
    Inputs, NAMES, assert_same_bits, check_bf16, delta, errors, exact, extreme, inputs, run_reference, values,
};
use candle_core::{DType, Device, Tensor};
use longreel::attention::{Qkv, Ring, SavedRows, flash, flash_backward};
use longreel::parallel::{Single, Split, run_threads};
use std::sync::Arc;

/// o, lse, dq, dk, dv of all rows from `ranks` ranks, put together.
fn run(ranks: usize, threads: usize, x: &Inputs, scale: f64) -> [Tensor; 5] {
    let rows = x[0].dims()[2];
    let parts = run_threads(ranks, threads, |comm| {
        let ring = Ring::new(comm, rows)?;
        let mine = ring.local_rows();
        let [q, k, v, d_o] = x.each_ref().map(|x| x.narrow(2, mine.start, mine.len()).unwrap());
        let qkv = Qkv::new(&q, &k, &v);
        let (o, lse) = ring.forward(qkv, scale)?;
        let (dq, dk, dv) = ring.backward(qkv, SavedRows::new(&d_o, &lse, &delta(&d_o, &o)), scale)?;
        assert!([&o, &dq, &dk, &dv].iter().all(|y| y.dtype() == q.dtype() && y.is_contiguous()));
        Ok([o, lse, dq, dk, dv])
    })
    .unwrap();
    std::array::from_fn(|i| Tensor::cat(&parts.iter().map(|part| &part[i]).collect::<Vec<_>>(), 2).unwrap())
}

#[test]
fn any_ring_gives_what_one_rank_does() {
    for (ranks, rows) in [(1, 5), (2, 2), (2, 131), (3, 4), (3, 200), (4, 4), (4, 65), (5, 77), (8, 8), (8, 301)] {
        for (dtype, bound) in [(DType::F32, 4e-6), (DType::F64, 1e-13)] {
            let x = inputs(2, 2, [rows, rows], 24, dtype);
            for (name, (got, truth)) in NAMES.iter().zip(run(ranks, 1, &x, 0.2).iter().zip(&exact(&x, 0.2))) {
                let (max, _) = errors(got, truth);
                assert!(max < bound, "{ranks} ranks, {rows} rows, {dtype:?}: {name} is off by {max:.1e}");
            }
        }
    }
}

#[test]
fn one_rank_is_flash_attention_bit_for_bit() {
    for dtype in [DType::F32, DType::BF16, DType::F64] {
        let x @ [q, k, v, d_o] = &inputs(1, 2, [70, 70], 16, dtype);
        let qkv = Qkv::new(q, k, v);
        let (o, lse) = flash(qkv, 0.3).unwrap();
        let (dq, dk, dv) = flash_backward(qkv, SavedRows::new(d_o, &lse, &delta(d_o, &o)), 0.3).unwrap();
        assert_same_bits(&[o, lse, dq, dk, dv], &run(1, 1, x, 0.3), "a ring of one");
    }
}

/// Runs of keys differ by thousands in their logits, or hardly at all: neither overflows, and the lesser share is not
/// lost.
#[test]
fn logits_of_ten_thousand_merge_without_loss() {
    for (ranks, rows) in [(2, 2), (3, 3), (4, 65), (3, 130)] {
        let (x, scale) = extreme([rows, rows], 64, 1e4, DType::F32);
        let (truth, plain) = (exact(&x, scale), run_reference(&x, scale));
        for (i, x) in run(ranks, 1, &x, scale).iter().enumerate() {
            let ((ours, _), (theirs, _)) = (errors(x, &truth[i]), errors(&plain[i], &truth[i]));
            // Backward takes P from an f32 lse of 1e4, which is off by 5e-4, as on one rank.
            let bound = if i < 2 { 2e-6 } else { 4.0 * theirs + 1e-3 };
            assert!(ours < bound, "{ranks} ranks, {rows} rows: {} is off by {ours:.1e}", NAMES[i]);
        }
        let (half, scale) = extreme([rows, rows], 64, 1e4, DType::BF16);
        let (truth, plain) = (exact(&half, scale), run_reference(&half, scale));
        check_bf16(&run(ranks, 1, &half, scale), &plain, &truth, &format!("{ranks} ranks, {rows} rows"));
    }
}

/// Whole logits of 10000, 10001 and 10002, exact in f32: the runs' shares depend on differences that an f32 lse would
/// have off by 5e-4.
#[test]
fn nearly_equal_logits_near_ten_thousand_keep_their_shares() {
    let (rows, d) = (9, 16);
    let [_, _, v, d_o] = inputs(1, 1, [rows, rows], d, DType::F32);
    let with = |second: &dyn Fn(usize) -> f32| {
        let mut x = vec![0f32; rows * d];
        x.chunks_exact_mut(d).enumerate().for_each(|(row, x)| x[..2].copy_from_slice(&[100.0, second(row)]));
        Tensor::from_vec(x, (1, 1, rows, d), &Device::Cpu).unwrap()
    };
    let x = [with(&|_| 1.0), with(&|row| (row * row % 3 + row % 2) as f32), v, d_o];
    let truth = exact(&x, 1.0);
    for ranks in [1, 2, 3, 9] {
        for i in 0..2 {
            let (max, _) = errors(&run(ranks, 1, &x, 1.0)[i], &truth[i]);
            assert!(max < 2e-6, "{ranks} ranks: {} is off by {max:.1e}", NAMES[i]);
        }
    }
}

#[test]
fn bf16_errs_at_most_twice_as_much_as_plain_bf16() {
    for (ranks, rows) in [(2, 7), (3, 65), (4, 257), (8, 130)] {
        for d in [8, 64, 128] {
            let x = inputs(1, 2, [rows, rows], d, DType::BF16);
            let scale = 1.0 / (d as f64).sqrt();
            let (truth, plain) = (exact(&x, scale), run_reference(&x, scale));
            check_bf16(&run(ranks, 1, &x, scale), &plain, &truth, &format!("{ranks} ranks, {rows} rows, d {d}"));
        }
    }
}

#[test]
fn bits_do_not_depend_on_the_run_or_on_threads() {
    for dtype in [DType::F32, DType::BF16] {
        let x = inputs(2, 2, [130, 130], 24, dtype);
        let first = run(3, 1, &x, 0.2);
        for threads in [1, 2, 3] {
            assert_same_bits(&first, &run(3, threads, &x, 0.2), &format!("{dtype:?}, {threads} threads"));
        }
    }
}

#[test]
fn a_nan_of_one_rank_reaches_the_rows_of_all() {
    let mut x = inputs(1, 1, [9, 9], 8, DType::F32);
    let bad = Tensor::full(f32::NAN, (1, 1, 1, 8), &Device::Cpu).unwrap();
    x[1] = x[1].slice_assign(&[0..1, 0..1, 4..5, 0..8], &bad).unwrap();
    let [o, lse, dq, ..] = run(3, 1, &x, 0.3);
    for y in [o, lse, dq] {
        assert!(values(&y).iter().all(|y| y.is_nan()), "{y}");
    }
}

#[test]
fn ring_rows_of_another_rank_are_an_error() {
    let error = refusal!(Shape, run_threads(3, 1, |comm| Ring::new(comm, 2).map(|_| ())));
    assert!(error.contains("a ring of 3 ranks cannot share 2 rows"), "{error}");
    assert!(Ring::new(Arc::new(Single), 0).is_err());
    let error = run_threads(2, 1, |comm| {
        let rank = comm.rank();
        let x = Tensor::zeros((1, 1, Split::new(5, 2).count(1 - rank), 8), DType::F32, &Device::Cpu)?;
        Ring::new(comm, 5)?.forward(Qkv::new(&x, &x, &x), 1.0)
    });
    let error = refusal!(Shape, error);
    assert!(error.contains("ring attention on rank") && error.contains("expected [B, H, "), "{error}");
}
