//! What an all-to-all of Ulysses copies on a GPU, as plans of strided rows for kernels/copy_rows.cu: packing a tensor's part of a message,
//! and weaving it into its place. On the CPU, `parallel::bytes` does both; the tests here compare.

use candle_core::Layout;
use std::ops::Range;

/// Where row (i, j, k) begins: `base + i strides[0] + j strides[1] + k strides[2]`, in bytes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Places {
    pub base: usize,
    pub strides: [usize; 3],
}

impl Places {
    /// Rows of `row` bytes, one after another.
    fn contiguous(base: usize, counts: [usize; 3], row: usize) -> Self {
        Self { base, strides: [counts[1] * counts[2] * row, counts[2] * row, row] }
    }
}

/// A copy of `counts` rows of `row` bytes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Move {
    pub counts: [usize; 3],
    pub row: usize,
    pub from: Places,
    pub to: Places,
}

/// Of x `[B, N, M, width]` (or `[B, N, M]`, width 1), elements of `size` bytes, to `[B, |ms|, N, width]` from byte `base` of a message on.
pub(super) fn pack(x: &Layout, ms: Range<usize>, width: usize, size: usize, base: usize) -> Move {
    let (dims, strides) = (x.dims(), x.stride());
    let (counts, row) = ([dims[0], ms.len(), dims[1]], width * size);
    let from = Places {
        base: (x.start_offset() + ms.start * strides[2]) * size,
        strides: [strides[0], strides[2], strides[1]].map(|stride| stride * size),
    };
    Move { counts, row, from, to: Places::contiguous(base, counts, row) }
}

/// Of the `[groups, |ns|, width]` from byte `base` of a message on, to the places `ns` of an `[groups, n, width]`.
pub(super) fn weave(groups: usize, ns: Range<usize>, n: usize, width: usize, size: usize, base: usize) -> Move {
    let (counts, row) = ([1, groups, ns.len()], width * size);
    let to = Places { base: ns.start * row, strides: [0, n * row, row] };
    Move { counts, row, from: Places::contiguous(base, counts, row), to }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::attention::Ulysses;
    use crate::parallel::{Split, run_threads};
    use candle_core::{DType, Device, Tensor};
    use std::sync::Mutex;

    /// The plan, carried out by the obvious loops.
    fn carry_out(plan: &Move, from: &[u8], to: &mut [u8]) {
        let Move { counts, row, .. } = *plan;
        let at = |places: &Places, [i, j, k]: [usize; 3]| {
            places.base + i * places.strides[0] + j * places.strides[1] + k * places.strides[2]
        };
        for i in 0..counts[0] {
            for j in 0..counts[1] {
                for k in 0..counts[2] {
                    let (source, target) = (at(&plan.from, [i, j, k]), at(&plan.to, [i, j, k]));
                    to[target..target + row].copy_from_slice(&from[source..source + row]);
                }
            }
        }
    }

    fn bytes(t: &Tensor) -> Vec<u8> {
        let values = t.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        values.iter().flat_map(|v| v.to_le_bytes()).collect()
    }

    /// Messages packed and woven by plans are what the CPU's exchange gives, both ways, for tensors of two widths at once.
    #[test]
    fn plans_do_what_the_exchange_on_the_cpu_does() {
        const SIZE: usize = 4;
        let (ranks, batch, tokens, heads) = (3, 2, 11, 5);
        let (wide, flat) = (3, 1);
        for to_heads in [true, false] {
            let [n, m] = if to_heads { [tokens, heads] } else { [heads, tokens] }.map(|all| Split::new(all, ranks));
            let all = if to_heads { tokens } else { heads };
            let shape = |rank: usize| (batch, n.count(rank), if to_heads { heads } else { tokens });
            let tensor = |rank: usize, width: usize| {
                let (b, local, all) = shape(rank);
                // A view whose rows are apart, as attention's are.
                let whole = Tensor::rand(0f32, 1.0, (b, all, local, width), &Device::Cpu).unwrap();
                whole.transpose(1, 2).unwrap()
            };
            let given: Vec<[Tensor; 2]> =
                (0..ranks).map(|rank| [tensor(rank, wide), tensor(rank, flat).squeeze(3).unwrap()]).collect();
            let results = Mutex::new(vec![vec![]; ranks]);
            run_threads(ranks, 1, |comm| {
                let rank = comm.rank();
                let ulysses = Ulysses::new(comm, tokens, heads)?;
                let [a, b] = &given[rank];
                let got =
                    if to_heads { ulysses.seq_to_heads_many(&[a, b]) } else { ulysses.heads_to_seq_many(&[a, b]) }?;
                results.lock().unwrap()[rank] = got;
                Ok(())
            })
            .unwrap();
            let results = results.into_inner().unwrap();
            for rank in 0..ranks {
                let groups = batch * m.count(rank);
                for (which, width) in [wide, flat].into_iter().enumerate() {
                    let mut out = vec![0u8; groups * all * width * SIZE];
                    for from in 0..ranks {
                        let run = groups * n.count(from) * SIZE;
                        let mut message = vec![0u8; run * (wide + flat)];
                        let mut base = 0;
                        for (x, width) in given[from].iter().zip([wide, flat]) {
                            let whole = bytes(&x.transpose(1, 2).unwrap()); // its storage in order
                            carry_out(&pack(x.layout(), m.range(rank), width, SIZE, base), &whole, &mut message);
                            base += run * width;
                        }
                        let before = if which == 0 { 0 } else { run * wide };
                        let plan = weave(groups, n.range(from), all, width, SIZE, before);
                        carry_out(&plan, &message, &mut out);
                    }
                    assert_eq!(results[rank][which].dtype(), DType::F32);
                    assert_eq!(out, bytes(&results[rank][which]), "to heads: {to_heads}, rank {rank}, width {width}");
                }
            }
        }
    }
}
