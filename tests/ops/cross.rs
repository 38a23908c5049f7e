//! Cross-attention of a tile's queries, of several samples, to their own sample's text.

use super::{Op, RUNS, SAMPLES, close, normal, values};
use candle_core::{D, DType, Device, Result, Tensor};
use longreel::model::cross_attention;
use longreel::ops::{Param, Rows, Tape};

/// softmax(q kᵀ / sqrt(d)) v with every row attending to the text of all samples and all but its own masked out.
fn plain(q: &Tensor, k: &Tensor, v: &Tensor, heads: usize, at: Rows) -> Result<Tensor> {
    let (n, width) = q.dims2()?;
    let (samples, length, _) = k.dims3()?;
    let d = width / heads;
    let mut mask = vec![-1e30; n * samples * length];
    for row in 0..n {
        let sample = (at.start + row) / at.tokens;
        mask[(row * samples + sample) * length..][..length].fill(0.0);
    }
    let mask = Tensor::from_vec(mask, (1, n, samples * length), &Device::Cpu)?;
    let heads_first = |x: &Tensor, rows: usize| x.reshape((rows, heads, d))?.transpose(0, 1)?.contiguous();
    let (q, k, v) = (heads_first(q, n)?, heads_first(k, samples * length)?, heads_first(v, samples * length)?);
    let logits = (q.matmul(&k.transpose(1, 2)?.contiguous()?)? * (d as f64).powf(-0.5))?.broadcast_add(&mask)?;
    let e = logits.broadcast_sub(&logits.max_keepdim(D::Minus1)?.detach())?.exp()?;
    let p = e.broadcast_div(&e.sum_keepdim(D::Minus1)?)?;
    p.matmul(&v)?.transpose(0, 1)?.contiguous()?.reshape((n, width))
}

#[test]
fn queries_attend_to_their_own_samples_text() {
    for (n, start, tokens) in RUNS {
        let at = Rows { start, tokens };
        for (heads, d, length) in [(3, 8, 2), (5, 8, 7), (5, 40, 3)] {
            let width = heads * d;
            Op {
                name: format!("cross-attention [{n}, {heads} x {d}] from row {start} to {length} words"),
                inputs: vec![normal(1, (n, width))],
                params: vec![normal(2, (SAMPLES, length, width)), normal(3, (SAMPLES, length, width))],
                fused: &|t, x, p| cross_attention(t, &x[0], &p[0], &p[1], heads, at, false),
                plain: &|x, p| plain(&x[0], &p[0], &p[1], heads, at),
            }
            .check();
        }
    }
}

/// With one word there is nothing to choose: the output is its value, and queries and keys have no gradient.
#[test]
fn one_word_is_all_there_is() {
    let (k, v) = (normal(2, (2, 1, 24)), normal(3, (2, 1, 24)));
    let [k, v] = [k, v].map(|t| Param::leaf("text", t).unwrap());
    let (tape, q) = (Tape::recording(), normal(1, (5, 24)));
    let o = cross_attention(&tape, &q, &k, &v, 3, Rows { start: 3, tokens: 5 }, false).unwrap();
    let sample = [0, 0, 1, 1, 1].map(|s| v.value.get(s).unwrap());
    close("output", &o, &Tensor::cat(&sample, 0).unwrap(), 1e-15);
    let dq = tape.backward(&[(&o, &o.ones_like().unwrap())], &[&q]).unwrap().remove(0);
    assert!(values(&dq).iter().chain(&values(k.grad().unwrap())).all(|g| g.abs() < 1e-14));
    assert_eq!(values(v.grad().unwrap()), [[2.0; 24], [3.0; 24]].concat());
}

/// bf16 is off by about bf16's rounding, and comes back in f32.
#[test]
fn bf16_rounds_its_operands() {
    let (n, heads, at) = (33, 5, Rows { start: 30, tokens: 20 });
    let tensors = [normal(1, (n, 40)), normal(2, (SAMPLES, 7, 40)), normal(3, (SAMPLES, 7, 40))];
    let run = |dtype: DType, bf16: bool| -> Vec<Tensor> {
        let [q, k, v] = tensors.each_ref().map(|t| t.to_dtype(dtype).unwrap());
        let (tape, [k, v]) = (Tape::recording(), [k, v].map(|t| Param::leaf("text", t).unwrap()));
        let o = cross_attention(&tape, &q, &k, &v, heads, at, bf16).unwrap();
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
