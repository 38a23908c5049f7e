//! Ulysses turns "all heads of my tokens" into "my heads of all tokens" and back by two all-to-alls, so that attention
//! runs on whole heads while everything else runs on a part of the tokens (DeepSpeed-Ulysses, arXiv 2309.14509).
//!
//! Tokens and heads are both split by [`Split`], so neither count need be a multiple of the ranks. Only data moves
//! here: what is done with the heads is the caller's business, and the gradient of either direction is the other
//! direction.

use candle_core::{DType, Tensor};
use std::ops::Range;
use std::sync::Arc;

#[cfg(feature = "cuda")]
use super::cuda::copy_rows;
use super::moves;
use crate::ops::bytes;
use crate::parallel::{Communicator, Split};
use crate::{Result, bail};

/// The exchange for clips of S tokens and networks of H heads over the ranks of a communicator.
///
/// ```
/// # use candle_core::{Device, Tensor};
/// # use longreel::{attention::Ulysses, parallel::run_threads};
/// run_threads(2, 1, |comm| {
///     let ulysses = Ulysses::new(comm, 5, 3)?; // S = 5 tokens, H = 3 heads
///     let mine = ulysses.local_tokens().len();
///     let q = Tensor::zeros((1, mine, 3, 8), candle_core::DType::F32, &Device::Cpu)?; // [B, S_local, H, d]
///     let q = ulysses.seq_to_heads(&q)?; // [B, H_local, S, d]
///     assert_eq!(q.dims(), [1, ulysses.local_heads().len(), 5, 8]);
///     let o = ulysses.heads_to_seq(&q)?; // [B, S_local, H, d]
///     assert_eq!(o.dims(), [1, mine, 3, 8]);
///     Ok(())
/// })?;
/// # Ok::<(), longreel::Error>(())
/// ```
#[derive(Clone)]
pub struct Ulysses {
    comm: Arc<dyn Communicator>,
    tokens: Shares,
    heads: Shares,
}

/// Which way tensors go.
#[derive(Clone, Copy, PartialEq)]
enum Direction {
    SeqToHeads,
    HeadsToSeq,
}

impl Ulysses {
    /// An exchange for `tokens` (S) and `heads` (H) over the ranks (P) of `comm`. Not a collective.
    ///
    /// # Errors
    /// If P > H or P > S: a rank would be left without a head or a token.
    pub fn new(comm: Arc<dyn Communicator>, tokens: usize, heads: usize) -> Result<Self> {
        let ranks = comm.size();
        if ranks > heads {
            bail!(
                Shape,
                "{ranks} sequence-parallel ranks cannot share {heads} attention heads, since each needs at least one; \
                 use at most {heads} sequence ranks (more data-parallel groups make smaller ones) or a network with more heads"
            );
        }
        if ranks > tokens {
            bail!(
                Shape,
                "{ranks} sequence-parallel ranks cannot share a clip of {tokens} tokens, since each needs at least one; \
                 use at most {tokens} sequence ranks, longer or larger clips, or smaller patches"
            );
        }
        Self::of_a_run(comm, Split::new(tokens, ranks), 0, heads)
    }

    /// An exchange among the ranks of `comm` that hold parts `first`, `first + 1`, ... of the clip's `tokens`: to them
    /// their tokens are all there are.
    pub(super) fn of_a_run(comm: Arc<dyn Communicator>, tokens: Split, first: usize, heads: usize) -> Result<Self> {
        let ranks = comm.size();
        if ranks > heads {
            bail!(Shape, "{ranks} ranks cannot share {heads} attention heads, since each needs at least one");
        }
        let heads = Shares::new(Split::new(heads, ranks), 0..ranks);
        Ok(Self { comm, tokens: Shares::new(tokens, first..first + ranks), heads })
    }

    /// The tokens that this rank holds outside attention.
    pub fn local_tokens(&self) -> Range<usize> {
        self.tokens.range(self.comm.rank())
    }

    /// The heads that this rank holds inside attention.
    pub fn local_heads(&self) -> Range<usize> {
        self.heads.range(self.comm.rank())
    }

    /// `[B, S_local, H, d]` to `[B, H_local, S, d]` contiguous, or `[B, S_local, H]` to `[B, H_local, S]`. Collective.
    ///
    /// Any dtype; any strides, as long as the last of four dims is contiguous.
    ///
    /// # Errors
    /// If the shape is another, or a rank fails.
    pub fn seq_to_heads(&self, x: &Tensor) -> Result<Tensor> {
        self.seq_to_heads_many(&[x]).map(first)
    }

    /// `[B, H_local, S, d]` to `[B, S_local, H, d]` contiguous, or `[B, H_local, S]` to `[B, S_local, H]`: the inverse
    /// of [`seq_to_heads`](Self::seq_to_heads), under the same conditions.
    ///
    /// # Errors
    /// If the shape is another, or a rank fails.
    pub fn heads_to_seq(&self, y: &Tensor) -> Result<Tensor> {
        self.heads_to_seq_many(&[y]).map(first)
    }

    /// [`seq_to_heads`](Self::seq_to_heads) for several tensors of one dtype and batch size (q, k and v) in one
    /// message.
    pub fn seq_to_heads_many(&self, xs: &[&Tensor]) -> Result<Vec<Tensor>> {
        self.exchange(xs, Direction::SeqToHeads)
    }

    /// [`heads_to_seq`](Self::heads_to_seq) for several tensors of one dtype and batch size in one message.
    pub fn heads_to_seq_many(&self, ys: &[&Tensor]) -> Result<Vec<Tensor>> {
        self.exchange(ys, Direction::HeadsToSeq)
    }

    /// Both directions are one: a tensor `[B, N_local, M, d]` becomes `[B, M_local, N, d]`, where N is split over ranks
    /// before and M after.
    fn exchange(&self, xs: &[&Tensor], direction: Direction) -> Result<Vec<Tensor>> {
        let (n, m) = match direction {
            Direction::SeqToHeads => (&self.tokens, &self.heads),
            Direction::HeadsToSeq => (&self.heads, &self.tokens),
        };
        let rank = self.comm.rank();
        let Some(&x0) = xs.first() else { return Ok(Vec::new()) };
        let (batch, dtype) = (x0.dims().first().copied().unwrap_or(0), x0.dtype());
        for x in xs {
            self.check(x, [batch, n.count(rank), m.total()], dtype, direction)?;
        }
        let widths: Vec<usize> = xs.iter().map(|x| width(x)).collect();
        let total: usize = widths.iter().sum();
        let out_dims = |x: &Tensor| turned(x, [m.count(rank), n.total()]);

        #[cfg(feature = "cuda")]
        if x0.device().is_cuda() {
            return self.exchange_on_gpu(xs, n, m);
        }
        if self.comm.size() == 1 {
            // One rank holds all: only the two dims change places.
            let swap = |x: &&Tensor| bytes::build(dtype, &out_dims(x), |out| pack(out, x, 0..m.total()));
            return xs.iter().map(swap).collect();
        }

        // The message to rank j: each tensor's [B, M_j, N_local, d], one after another; the receiver only has to weave
        // the runs of all ranks together. Its dims say what is in it, so that a disagreement is seen.
        let mut send = Vec::with_capacity(self.comm.size());
        for j in 0..self.comm.size() {
            let dims = [batch, m.count(j), n.count(rank), total];
            send.push(bytes::build(dtype, &dims, |mut out| {
                for x in xs {
                    let message;
                    (message, out) = out.split_at_mut(batch * dims[1] * dims[2] * width(x) * dtype.size_in_bytes());
                    pack(message, x, m.range(j))?;
                }
                Ok(())
            })?);
        }
        let shapes: Vec<Vec<usize>> =
            (0..self.comm.size()).map(|i| vec![batch, m.count(rank), n.count(i), total]).collect();
        let received = self.comm.all_to_all(send, &shapes)?;

        let views: Vec<_> = received.iter().map(|t| t.storage_and_layout()).collect();
        let messages = views
            .iter()
            .map(|(storage, layout)| bytes::view(bytes::raw(storage)?, layout, dtype))
            .collect::<Result<Vec<&[u8]>>>()?;
        let mut before = 0; // the summed widths of the tensors before this one
        let mut outs = Vec::with_capacity(xs.len());
        for (x, &width) in xs.iter().zip(&widths) {
            outs.push(bytes::build(dtype, &out_dims(x), |out| {
                // In the message from rank i, this tensor begins after those before it and has a run for each group.
                let groups = batch * m.count(rank);
                let part = |i: usize| {
                    let run = n.count(i) * dtype.size_in_bytes();
                    (&messages[i][groups * run * before..][..groups * run * width], run * width)
                };
                let parts: Vec<(&[u8], usize)> = (0..self.comm.size()).map(part).collect();
                bytes::weave(out, &parts);
                Ok(())
            })?);
            before += width;
        }
        Ok(outs)
    }

    /// The same on a GPU.
    #[cfg(feature = "cuda")]
    fn exchange_on_gpu(&self, xs: &[&Tensor], n: &Shares, m: &Shares) -> Result<Vec<Tensor>> {
        let (rank, size) = (self.comm.rank(), self.comm.size());
        let (batch, dtype, device) = (xs[0].dims()[0], xs[0].dtype(), xs[0].device());
        let each = dtype.size_in_bytes();
        if size == 1 {
            let swap = |x: &&Tensor| {
                let out = Tensor::zeros(turned(x, [m.total(), n.total()]), dtype, device)?;
                copy_rows(x, &out, &moves::pack(x.layout(), 0..m.total(), width(x), each, 0))?;
                Ok(out)
            };
            return xs.iter().map(swap).collect();
        }
        let total = xs.iter().map(|x| width(x)).sum::<usize>();
        let message = |j: usize| -> Result<Tensor> {
            let run = batch * m.count(j) * n.count(rank);
            let to = Tensor::zeros(run * total, dtype, device)?;
            let mut base = 0;
            for x in xs {
                copy_rows(x, &to, &moves::pack(x.layout(), m.range(j), width(x), each, base))?;
                base += run * width(x) * each;
            }
            Ok(to)
        };
        let send = (0..size).map(message).collect::<Result<Vec<_>>>()?;
        let groups = batch * m.count(rank);
        let shapes: Vec<Vec<usize>> = (0..size).map(|i| vec![groups * n.count(i) * total]).collect();
        let received = self.comm.all_to_all(send, &shapes)?;
        let mut before = 0; // the summed widths of the tensors before this one
        let mut outs = vec![];
        for x in xs {
            let out = Tensor::zeros(turned(x, [m.count(rank), n.total()]), dtype, device)?;
            for (i, message) in received.iter().enumerate() {
                let base = groups * n.count(i) * before * each;
                let plan = moves::weave(groups, n.range(i), n.total(), width(x), each, base);
                copy_rows(message, &out, &plan)?;
            }
            outs.push(out);
            before += width(x);
        }
        Ok(outs)
    }

    fn check(&self, x: &Tensor, expected: [usize; 3], dtype: DType, direction: Direction) -> Result<()> {
        let (from, names) = match direction {
            Direction::SeqToHeads => ("seq_to_heads", "[B, S_local, H] or [B, S_local, H, d]"),
            Direction::HeadsToSeq => ("heads_to_seq", "[B, H_local, S] or [B, H_local, S, d]"),
        };
        if !matches!(x.rank(), 3 | 4) || x.dims()[..3] != expected {
            bail!(
                Shape,
                "{from} on rank {} of {}: expected {names} beginning with {expected:?}, got {:?}",
                self.comm.rank(),
                self.comm.size(),
                x.dims()
            );
        }
        if x.dtype() != dtype {
            bail!(Shape, "{from}: tensors of one message must have one dtype, got {dtype:?} and {:?}", x.dtype());
        }
        if x.rank() == 4 && x.stride()[3] != 1 && x.dims()[3] > 1 {
            bail!(Shape, "{from}: the last dim must be contiguous, got strides {:?} for {:?}", x.stride(), x.dims());
        }
        bytes::check_here(x)
    }
}

/// What each rank holds of a run of tokens or heads, counted from the run's start.
#[derive(Clone)]
struct Shares {
    /// Where each rank's begin, and where the last one's end.
    bounds: Vec<usize>,
}

impl Shares {
    /// The run that is made of `parts` of a split.
    fn new(split: Split, parts: Range<usize>) -> Self {
        let start = split.range(parts.start).start;
        let ends = parts.map(|part| split.range(part).end - start);
        Self { bounds: std::iter::once(0).chain(ends).collect() }
    }

    fn total(&self) -> usize {
        self.bounds[self.bounds.len() - 1]
    }

    fn range(&self, rank: usize) -> Range<usize> {
        self.bounds[rank]..self.bounds[rank + 1]
    }

    fn count(&self, rank: usize) -> usize {
        self.range(rank).len()
    }
}

/// Elements of a token and head: d, or 1 without a last dim.
fn width(x: &Tensor) -> usize {
    x.dims().get(3).copied().unwrap_or(1)
}

/// The dims of x after the exchange, its middle ones being `middle`.
fn turned(x: &Tensor, middle: [usize; 2]) -> Vec<usize> {
    let mut dims = x.dims().to_vec();
    dims[1..3].copy_from_slice(&middle);
    dims
}

/// Writes x[:, :, ms, :] of `[B, N, M, d]` as `[B, |ms|, N, d]`.
fn pack(out: &mut [u8], x: &Tensor, ms: Range<usize>) -> Result<()> {
    let (storage, layout) = x.storage_and_layout();
    let rows = moves::rows_of(layout, ms, width(x), x.dtype().size_in_bytes());
    bytes::gather(out, bytes::raw(&storage)?, rows);
    Ok(())
}

fn first(mut tensors: Vec<Tensor>) -> Tensor {
    tensors.swap_remove(0)
}
