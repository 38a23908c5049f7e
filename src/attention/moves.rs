//! Lists the rows that an all-to-all of Ulysses copies: for any device those that go into a message; for a GPU, where
//! kernels/copy_rows.cu copies them, also where they go. On the CPU `ops::bytes` packs and weaves; the tests here
//! compare the two.

use candle_core::Layout;
use std::ops::Range;

use crate::ops::bytes::Rows;

/// Of x `[B, N, M, width]` (or `[B, N, M]`, width 1), elements of `size` bytes, the rows of x[:, :, ms] in the order
/// `[B, |ms|, N]`.
pub(super) fn rows_of(x: &Layout, ms: Range<usize>, width: usize, size: usize) -> Rows {
    let (dims, strides) = (x.dims(), x.stride());
    Rows {
        base: (x.start_offset() + ms.start * strides[2]) * size,
        counts: [dims[0], ms.len(), dims[1]],
        strides: [strides[0], strides[2], strides[1]].map(|stride| stride * size),
        row: width * size,
    }
}

/// Rows, and where row (i, j, k) of them goes: to byte `base + i strides[0] + j strides[1] + k strides[2]`.
#[cfg(any(feature = "cuda", test))]
#[derive(Clone, Copy, Debug)]
pub(crate) struct Move {
    pub rows: Rows,
    pub base: usize,
    pub strides: [usize; 3],
}

/// [`rows_of`] x, to one after another from byte `base` of a message on.
#[cfg(any(feature = "cuda", test))]
pub(super) fn pack(x: &Layout, ms: Range<usize>, width: usize, size: usize, base: usize) -> Move {
    let rows = rows_of(x, ms, width, size);
    Move { rows, base, strides: contiguous(rows.counts, rows.row) }
}

/// Of the `[groups, |ns|, width]` from byte `base` of a message on, to the places `ns` of an `[groups, n, width]`.
#[cfg(any(feature = "cuda", test))]
pub(super) fn weave(groups: usize, ns: Range<usize>, n: usize, width: usize, size: usize, base: usize) -> Move {
    let (counts, row) = ([1, groups, ns.len()], width * size);
    let rows = Rows { base, counts, strides: contiguous(counts, row), row };
    Move { rows, base: ns.start * row, strides: [0, n * row, row] }
}

/// Of a contiguous `[n, run.len()]` whose first row is the elements `run` of its storage, each row to elements `before`
/// on of a row of an `[n, whole]`.
#[cfg(any(feature = "cuda", test))]
pub(super) fn beside(n: usize, run: Range<usize>, before: usize, whole: usize, size: usize) -> Move {
    let (counts, row) = ([1, n, 1], run.len() * size);
    let rows = Rows { base: run.start * size, counts, strides: contiguous(counts, row), row };
    Move { rows, base: before * size, strides: [0, whole * size, 0] }
}

/// Strides of rows that follow each other.
#[cfg(any(feature = "cuda", test))]
fn contiguous([_, n1, n2]: [usize; 3], row: usize) -> [usize; 3] {
    [n1 * n2 * row, n2 * row, row]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::attention::Ulysses;
    use crate::parallel::{Split, run_threads};
    use candle_core::{DType, Device, Tensor};
    use parking_lot::Mutex;

    /// The plan, carried out by the obvious loops.
    fn carry_out(plan: &Move, from: &[u8], to: &mut [u8]) {
        let Move { rows, base, strides } = *plan;
        let at = |base: usize, strides: [usize; 3], [i, j, k]: [usize; 3]| {
            base + i * strides[0] + j * strides[1] + k * strides[2]
        };
        let (counts, row) = (rows.counts, rows.row);
        for i in 0..counts[0] {
            for j in 0..counts[1] {
                for k in 0..counts[2] {
                    let (source, target) = (at(rows.base, rows.strides, [i, j, k]), at(base, strides, [i, j, k]));
                    to[target..target + row].copy_from_slice(&from[source..source + row]);
                }
            }
        }
    }

    fn bytes(t: &Tensor) -> Vec<u8> {
        let values = t.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        values.iter().flat_map(|v| v.to_le_bytes()).collect()
    }

    #[test]
    fn runs_go_beside_each_other_as_cat_puts_them() {
        for dims in [vec![3, 4], vec![2, 3, 5], vec![1, 6, 7]] {
            let part = |width: usize, first: f32| {
                let dims = [&[dims[0] + 1, width], &dims[2..]].concat();
                let n: usize = dims.iter().product();
                let values = Tensor::arange(first, first + n as f32, &Device::Cpu).unwrap().reshape(dims).unwrap();
                values.narrow(0, 1, values.dims()[0] - 1).unwrap() // begins within its storage
            };
            let parts = [part(dims[1], 0.0), part(1, 1000.0), part(dims[1] + 2, 2000.0)];
            let expected = Tensor::cat(&parts, 1).unwrap();
            let (each, total) = (dims[2..].iter().product::<usize>(), expected.dims()[1]);
            let (mut got, mut before) = (vec![0; 4 * expected.elem_count()], 0);
            for part in &parts {
                let (run, start) = (part.dims()[1] * each, part.layout().start_offset());
                let (storage, _) = part.storage_and_layout();
                let from = crate::ops::bytes::raw(&storage).unwrap();
                carry_out(&beside(dims[0], start..start + run, before, total * each, 4), from, &mut got);
                before += run;
            }
            assert_eq!(got, bytes(&expected), "{dims:?}");
        }
    }

    /// Messages packed and woven by plans are what the CPU's exchange gives, both ways, for tensors of two widths at
    /// once.
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
                results.lock()[rank] = got;
                Ok(())
            })
            .unwrap();
            let results = results.into_inner();
            for (rank, results) in results.iter().enumerate() {
                let groups = batch * m.count(rank);
                for (which, width) in [wide, flat].into_iter().enumerate() {
                    let mut out = vec![0u8; groups * all * width * SIZE];
                    for (from, given) in given.iter().enumerate() {
                        let run = groups * n.count(from) * SIZE;
                        let mut message = vec![0u8; run * (wide + flat)];
                        let mut base = 0;
                        for (x, width) in given.iter().zip([wide, flat]) {
                            let whole = bytes(&x.transpose(1, 2).unwrap()); // its storage in order
                            carry_out(&pack(x.layout(), m.range(rank), width, SIZE, base), &whole, &mut message);
                            base += run * width;
                        }
                        let before = if which == 0 { 0 } else { run * wide };
                        let plan = weave(groups, n.range(from), all, width, SIZE, before);
                        carry_out(&plan, &message, &mut out);
                    }
                    assert_eq!(results[which].dtype(), DType::F32);
                    assert_eq!(out, bytes(&results[which]), "to heads: {to_heads}, rank {rank}, width {width}");
                }
            }
        }
    }
}
