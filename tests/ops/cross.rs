//! Cross-attention of a tile's queries, of several samples, to their own sample's text.

use super::{Op, RUNS, SAMPLES, close, normal, values};
use candle_core::{D, DType, Device, Result, Tensor};
use longreel::model::{CrossText, TextRows, cross_attention};
use longreel::ops::{Param, Rows, Tape};
use std::sync::Arc;

/// Real tokens and pads of a sample.
type Length = (usize, usize);

/// How many rows the texts take: their real tokens, and one pad if there are pads.
fn rows_of(lengths: &[Length; SAMPLES]) -> usize {
    lengths.iter().map(|length| length.0).sum::<usize>() + usize::from(lengths.iter().any(|length| length.1 > 0))
}

fn text(k: &Param, v: &Param, lengths: &[Length; SAMPLES]) -> CrossText {
    CrossText { keys: k.clone(), values: v.clone(), rows: Arc::new(TextRows::of_lengths(lengths)) }
}

/// softmax(q kᵀ / sqrt(d)) v with every row attending to the text of all samples, in which the pad is repeated, and all
/// but its own masked out.
fn plain(q: &Tensor, [k, v]: [&Tensor; 2], lengths: &[Length; SAMPLES], heads: usize, at: Rows) -> Result<Tensor> {
    let (n, width) = q.dims2()?;
    let (mut first, mut repeated, mut owners) = (0, vec![], vec![]);
    for (sample, &(real, pads)) in lengths.iter().enumerate() {
        repeated.extend((first..first + real).map(|row| row as u32));
        repeated.extend(vec![k.dims()[0] as u32 - 1; pads]);
        owners.extend(vec![sample; real + pads]);
        first += real;
    }
    let mut mask = vec![0.0; n * owners.len()];
    for row in 0..n {
        let sample = (at.start + row) / at.tokens;
        for (entry, &owner) in mask[row * owners.len()..].iter_mut().zip(&owners) {
            *entry = if owner == sample { 0.0 } else { -1e30 };
        }
    }
    let mask = Tensor::from_vec(mask, (1, n, owners.len()), &Device::Cpu)?;
    let repeated = Tensor::new(repeated, &Device::Cpu)?;
    let (k, v) = (k.index_select(&repeated, 0)?, v.index_select(&repeated, 0)?);
    let d = width / heads;
    let heads_first = |x: &Tensor, rows: usize| x.reshape((rows, heads, d))?.transpose(0, 1)?.contiguous();
    let (q, k, v) = (heads_first(q, n)?, heads_first(&k, owners.len())?, heads_first(&v, owners.len())?);
    let logits = (q.matmul(&k.transpose(1, 2)?.contiguous()?)? * (d as f64).powf(-0.5))?.broadcast_add(&mask)?;
    let e = logits.broadcast_sub(&logits.max_keepdim(D::Minus1)?.detach())?.exp()?;
    let p = e.broadcast_div(&e.sum_keepdim(D::Minus1)?)?;
    p.matmul(&v)?.transpose(0, 1)?.contiguous()?.reshape((n, width))
}

#[test]
fn queries_attend_to_their_own_samples_text() {
    let even = |length| [(length, 0); SAMPLES];
    let ragged = [(1, 6), (5, 2), (7, 0), (0, 7)];
    for (n, start, tokens) in RUNS {
        let at = Rows { start, tokens };
        for (heads, d, lengths) in [(3, 8, even(2)), (5, 8, even(7)), (5, 40, even(3)), (3, 8, ragged), (5, 40, ragged)]
        {
            let (width, rows) = (heads * d, rows_of(&lengths));
            Op {
                name: format!("cross-attention [{n}, {heads} x {d}] from row {start} to {lengths:?} words and pads"),
                inputs: vec![normal(1, (n, width))],
                params: vec![normal(2, (rows, width)), normal(3, (rows, width))],
                fused: &|t, x, p| cross_attention(t, &x[0], &text(&p[0], &p[1], &lengths), heads, at, false),
                plain: &|x, p| plain(&x[0], [&p[0], &p[1]], &lengths, heads, at),
            }
            .check();
        }
    }
}

/// Logits so far apart that one side's share is nothing, and large ones alike: no weight overflows, in f32 too.
#[test]
fn pads_far_from_the_words_are_no_trouble() {
    let (n, heads, at) = (33, 3, Rows { start: 30, tokens: 20 });
    let lengths = [(1, 511), (37, 475), (511, 1), (512, 0)];
    let rows = rows_of(&lengths);
    for loud in [1.0, 300.0] {
        let q = (normal(1, (n, 24)) * loud).unwrap();
        let [k, v] = [normal(2, (rows, 24)), normal(3, (rows, 24))];
        let want = plain(&q, [&k, &v], &lengths, heads, at).unwrap();
        for (dtype, bound) in [(DType::F64, 1e-12), (DType::F32, 1e-6 * loud)] {
            let [q, k, v] = [&q, &k, &v].map(|t| t.to_dtype(dtype).unwrap());
            let [k, v] = [k, v].map(|t| Param::leaf("text", t).unwrap());
            let o = cross_attention(&Tape::off(), &q, &text(&k, &v, &lengths), heads, at, false).unwrap();
            close("far pads", &o, &want, bound);
        }
    }
}

/// With one word there is nothing to choose: the output is its value, and queries and keys have no gradient.
#[test]
fn one_word_is_all_there_is() {
    let (k, v) = (normal(2, (2, 24)), normal(3, (2, 24)));
    let [k, v] = [k, v].map(|t| Param::leaf("text", t).unwrap());
    let (tape, q) = (Tape::recording(), normal(1, (5, 24)));
    let words = CrossText { keys: k.clone(), values: v.clone(), rows: Arc::new(TextRows::of_lengths(&[(1, 0); 2])) };
    let o = cross_attention(&tape, &q, &words, 3, Rows { start: 3, tokens: 5 }, false).unwrap();
    let sample = [0, 0, 1, 1, 1].map(|s| v.value.get(s).unwrap());
    close("output", &o, &Tensor::stack(&sample, 0).unwrap(), 1e-15);
    let dq = tape.backward(&[(&o, &o.ones_like().unwrap())], &[&q]).unwrap().remove(0);
    assert!(values(&dq).iter().chain(&values(k.grad().unwrap())).all(|g| g.abs() < 1e-14));
    assert_eq!(values(v.grad().unwrap()), [[2.0; 24], [3.0; 24]].concat());
}

/// bf16 is off by about bf16's rounding, and comes back in f32.
#[test]
fn bf16_rounds_its_operands() {
    let (n, heads, at) = (33, 5, Rows { start: 30, tokens: 20 });
    let lengths = [(1, 511), (7, 0), (30, 3), (2, 2)];
    let rows = rows_of(&lengths);
    let tensors = [normal(1, (n, 40)), normal(2, (rows, 40)), normal(3, (rows, 40))];
    let run = |dtype: DType, bf16: bool| -> Vec<Tensor> {
        let [q, k, v] = tensors.each_ref().map(|t| t.to_dtype(dtype).unwrap());
        let (tape, [k, v]) = (Tape::recording(), [k, v].map(|t| Param::leaf("text", t).unwrap()));
        let o = cross_attention(&tape, &q, &text(&k, &v, &lengths), heads, at, bf16).unwrap();
        let dq = tape.backward(&[(&o, &normal(4, (n, 40)).to_dtype(dtype).unwrap())], &[&q]).unwrap().remove(0);
        vec![o, dq, k.grad().unwrap().clone(), v.grad().unwrap().clone()]
    };
    for (got, want) in run(DType::F32, true).iter().zip(run(DType::F64, false)) {
        assert_eq!(got.dtype(), DType::F32);
        close("bf16", got, &want, 2e-2);
        let off = values(got).iter().zip(values(&want)).map(|(g, w)| (g - w).abs()).fold(0.0, f64::max);
        assert!(off > 1e-4, "{off:.1e} is not bf16");
    }
}
