//! The exchange of tokens and heads, exact: every element carries a code of where it belongs.

use super::*;
use candle_core::{DType, WithDType};
use half::bf16;
use longreel::Result;
use longreel::attention::Ulysses;
use longreel::parallel::{Communicator, Single};
use std::ops::Range;
use std::sync::Arc;

/// What rank r of p holds of n, worked out here by itself.
fn part(n: usize, r: usize, p: usize) -> Range<usize> {
    (r * n) / p..((r + 1) * n) / p
}

/// The clip that is sent about.
#[derive(Clone, Copy, Debug)]
struct Clip {
    batch: usize,
    tokens: usize,
    heads: usize,
    width: usize,
}

impl Clip {
    fn code<T>(&self, of: impl Fn(usize) -> T, [b, s, h, e]: [usize; 4]) -> T {
        of(((b * self.tokens + s) * self.heads + h) * self.width + e + 1)
    }

    /// `[B, tokens, H, d]`.
    fn by_tokens<T>(&self, of: impl Fn(usize) -> T, tokens: Range<usize>) -> Vec<T> {
        let mut values = Vec::new();
        for b in 0..self.batch {
            for s in tokens.clone() {
                for h in 0..self.heads {
                    values.extend((0..self.width).map(|e| self.code(&of, [b, s, h, e])));
                }
            }
        }
        values
    }

    /// `[B, heads, S, d]`.
    fn by_heads<T>(&self, of: impl Fn(usize) -> T, heads: Range<usize>) -> Vec<T> {
        let mut values = Vec::new();
        for b in 0..self.batch {
            for h in heads.clone() {
                for s in 0..self.tokens {
                    values.extend((0..self.width).map(|e| self.code(&of, [b, s, h, e])));
                }
            }
        }
        values
    }
}

/// Both ways, and without the last dim (when the clip's width is 1).
fn exact<T: WithDType>(ulysses: &Ulysses, r: usize, p: usize, clip: Clip, of: fn(usize) -> T) -> Result<()> {
    let Clip { batch, tokens, heads, width } = clip;
    let (mine, my_heads) = (part(tokens, r, p), part(heads, r, p));
    let mut shapes = vec![(
        vec![batch, mine.len(), heads, width],
        vec![batch, my_heads.len(), tokens, width], // what must come out
    )];
    if width == 1 {
        shapes.push((vec![batch, mine.len(), heads], vec![batch, my_heads.len(), tokens]));
    }
    for (seq_dims, head_dims) in shapes {
        let seq = Tensor::from_vec(clip.by_tokens(of, mine.clone()), seq_dims, &Device::Cpu)?;
        let out = ulysses.seq_to_heads(&seq)?;
        assert!(out.is_contiguous() && out.dtype() == T::DTYPE);
        assert_eq!(out.dims(), head_dims);
        let case = format!("{clip:?} rank {r} of {p} {:?}", T::DTYPE);
        assert!(out.flatten_all()?.to_vec1::<T>()? == clip.by_heads(of, my_heads.clone()), "to heads, {case}");
        let back = ulysses.heads_to_seq(&out)?;
        assert!(back.is_contiguous() && back.dims() == seq.dims());
        assert!(back.flatten_all()?.to_vec1::<T>()? == seq.flatten_all()?.to_vec1::<T>()?, "back, {case}");
        let ones_way = Tensor::from_vec(clip.by_heads(of, my_heads.clone()), head_dims, &Device::Cpu)?;
        let direct = ulysses.heads_to_seq(&ones_way)?;
        assert!(direct.flatten_all()?.to_vec1::<T>()? == clip.by_tokens(of, mine.clone()), "to tokens, {case}");
    }
    Ok(())
}

/// Exchanges every small clip, exactly, on the ranks of `comm`; how many there were.
pub fn every_element(comm: Arc<dyn Communicator>) -> Result<usize> {
    let p = comm.size();
    let r = comm.rank();
    let mut exchanged = 0;
    for tokens in (1..=9).chain([13, 22, 31]) {
        for heads in 1..=8 {
            let ulysses = match Ulysses::new(comm.clone(), tokens, heads) {
                Ok(ulysses) if p <= heads && p <= tokens => ulysses,
                Ok(_) => panic!("{p} ranks, {tokens} tokens, {heads} heads must be refused"),
                Err(e) => {
                    let what = if p > heads {
                        assert!(e.to_string().contains(&format!("use at most {heads} sequence ranks")));
                        format!("{p} sequence-parallel ranks cannot share {heads} attention heads")
                    } else {
                        assert!(p > tokens, "refused {p} ranks, {tokens} tokens, {heads} heads: {e}");
                        assert!(e.to_string().contains(&format!("use at most {tokens} sequence ranks")));
                        format!("{p} sequence-parallel ranks cannot share a clip of {tokens} tokens")
                    };
                    assert!(e.to_string().contains(&what), "{e}");
                    continue;
                }
            };
            assert_eq!(ulysses.local_tokens(), part(tokens, r, p));
            assert_eq!(ulysses.local_heads(), part(heads, r, p));
            let clip = Clip { batch: 2, tokens, heads, width: 3 };
            exact::<f32>(&ulysses, r, p, clip, |code| code as f32)?;
            exact::<bf16>(&ulysses, r, p, Clip { batch: 1, ..clip }, |code| bf16::from_bits(code as u16))?;
            exact::<f64>(&ulysses, r, p, Clip { batch: 3, width: 1, ..clip }, |code| code as f64)?;
            exchanged += 1;
        }
    }
    Ok(exchanged)
}

#[test]
fn every_element_arrives_for_all_tokens_heads_and_ranks() {
    for p in 1..=8 {
        let expected = (1..=9).chain([13, 22, 31]).filter(|&t| t >= p).count() * (9 - p);
        assert_eq!(run_threads(p, 1, every_element).unwrap(), vec![expected; p]);
    }
}

#[test]
fn long_clips_and_wide_heads_cross_the_block_bounds_of_the_copies() {
    for (p, threads) in [(1, 2), (3, 2), (2, 1)] {
        let results = run_threads(p, threads, move |comm| {
            let r = comm.rank();
            for (tokens, heads, width, batch) in [(4001, 5, 16, 1), (70_001, 3, 1, 1), (17, 3, 20_001, 2)] {
                let clip = Clip { batch, tokens, heads, width };
                exact::<f32>(&Ulysses::new(comm.clone(), tokens, heads)?, r, p, clip, |code| code as f32)?;
            }
            Ok(())
        });
        results.unwrap();
    }
}

#[test]
fn views_and_several_tensors_of_other_widths_go_in_one_message() {
    let (batch, tokens, heads) = (2, 7, 5);
    for p in 1..=5 {
        let results = run_threads(p, 1, move |comm| {
            let r = comm.rank();
            let ulysses = Ulysses::new(comm, tokens, heads)?;
            let (mine, my_heads) = (ulysses.local_tokens(), ulysses.local_heads());
            let of = |code: usize| code as f32;
            // q, k and v as parts of one projection, and a statistic without a last dim.
            let clip = Clip { batch, tokens, heads: 3 * heads, width: 4 };
            let qkv =
                Tensor::from_vec(clip.by_tokens(of, mine.clone()), (batch, mine.len(), 3 * heads, 4), &Device::Cpu)?;
            let one = Clip { batch, tokens, heads, width: 1 };
            let delta = Tensor::from_vec(one.by_tokens(of, mine.clone()), (batch, mine.len(), heads), &Device::Cpu)?;
            let mut sent: Vec<Tensor> = (0..3).map(|i| qkv.narrow(2, i * heads, heads).unwrap()).collect();
            sent.push(delta);
            sent.push(sent[0].narrow(3, 1, 2)?);
            let got = ulysses.seq_to_heads_many(&sent.iter().collect::<Vec<_>>())?;
            for (i, got) in got[..3].iter().enumerate() {
                let expected = clip.by_heads(of, i * heads + my_heads.start..i * heads + my_heads.end);
                assert!(got.flatten_all()?.to_vec1::<f32>()? == expected, "part {i} on rank {r} of {p}");
            }
            assert_eq!(got[3].dims(), [batch, my_heads.len(), tokens]);
            assert!(got[3].flatten_all()?.to_vec1::<f32>()? == one.by_heads(of, my_heads.clone()));
            assert!(bits(&got[4]) == bits(&got[0].narrow(3, 1, 2)?));
            let back = ulysses.heads_to_seq_many(&got.iter().collect::<Vec<_>>())?;
            for (back, sent) in back.iter().zip(&sent) {
                assert_eq!(back.dims(), sent.dims());
                assert!(back.flatten_all()?.to_vec1::<f32>()? == sent.flatten_all()?.to_vec1::<f32>()?);
            }
            // A transposed view goes the other way.
            let turned = got[0].transpose(1, 2)?.contiguous()?.transpose(1, 2)?;
            assert!(!turned.is_contiguous() || my_heads.len() == 1);
            assert!(bits(&ulysses.heads_to_seq(&turned)?) == bits(&back[0]));
            assert!(ulysses.seq_to_heads_many(&[])?.is_empty());
            Ok(())
        });
        results.unwrap();
    }
}

#[test]
fn an_empty_batch_or_width_goes_through() {
    run_threads(2, 1, |comm| {
        let ulysses = Ulysses::new(comm, 5, 3)?;
        let (s, h) = (ulysses.local_tokens().len(), ulysses.local_heads().len());
        for (b, d) in [(0, 4), (2, 0)] {
            let x = Tensor::zeros((b, s, 3, d), DType::F32, &Device::Cpu)?;
            let y = ulysses.seq_to_heads(&x)?;
            assert_eq!(y.dims(), [b, h, 5, d]);
            assert_eq!(ulysses.heads_to_seq(&y)?.dims(), x.dims());
        }
        Ok(())
    })
    .unwrap();
}

#[test]
fn other_shapes_are_refused() {
    let ulysses = Ulysses::new(Arc::new(Single), 6, 4).unwrap();
    let zeros = |dims: &[usize]| Tensor::zeros(dims, DType::F32, &Device::Cpu).unwrap();
    for dims in [&[1, 6, 5, 8][..], &[1, 5, 4, 8], &[1, 6], &[1, 6, 4, 8, 1], &[]] {
        let e = refusal!(Shape, ulysses.seq_to_heads(&zeros(dims)));
        assert!(e.contains("seq_to_heads on rank 0 of 1: expected [B, S_local, H]"), "{e}");
        assert!(e.contains(&format!("got {dims:?}")), "{e}");
    }
    let e = refusal!(Shape, ulysses.heads_to_seq(&zeros(&[1, 6, 4, 8])));
    assert!(e.contains("heads_to_seq") && e.contains("beginning with [1, 4, 6]"), "{e}");
    let strided = zeros(&[1, 6, 8, 4]).transpose(2, 3).unwrap();
    assert!(refusal!(Shape, ulysses.seq_to_heads(&strided)).contains("last dim must be contiguous"));
    let x = zeros(&[1, 6, 4, 8]);
    let other = x.to_dtype(DType::BF16).unwrap();
    assert!(refusal!(Shape, ulysses.seq_to_heads_many(&[&x, &other])).contains("one dtype"));
    assert!(refusal!(Shape, ulysses.seq_to_heads_many(&[&x, &zeros(&[2, 6, 4, 8])])).contains("got [2, 6, 4, 8]"));
    assert!(Ulysses::new(Arc::new(Single), 0, 4).is_err() && Ulysses::new(Arc::new(Single), 6, 0).is_err());

    // Ranks whose batches differ see it in the message.
    let e = fails(run_threads(2, 1, |comm| {
        let ulysses = Ulysses::new(comm.clone(), 4, 2)?;
        ulysses.seq_to_heads(&Tensor::zeros((1 + comm.rank(), 2, 2, 8), DType::F32, &Device::Cpu)?)
    }));
    assert!(e.to_string().contains("rank 0 sends [1, 1, 2, 8] to rank 1, which expects [2, 1, 2, 8]"), "{e}");
}
