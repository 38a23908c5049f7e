//! Packs what the backward pass takes of queries, block by block, once for all groups of keys.

use std::f64::consts::LOG2_E;

use super::pack::{Heads, PackedElement, columns_words, rows_words};
use crate::simd::vector::Simd;

/// The elements of [`SavedRows`](crate::attention::SavedRows).
#[derive(Clone, Copy)]
pub(super) struct QueryRows<'a, E> {
    pub d_o: Heads<'a, E>,
    /// `[B, H, Sq]`
    pub lse: &'a [f32],
    /// rowsum(d_o * o) `[B, H, Sq]`
    pub delta: &'a [f32],
}

/// Word counts of one block of queries in packed form, in order.
#[derive(Clone, Copy)]
pub(super) struct Layout {
    /// q or dO by columns.
    pub columns: usize,
    /// q or dO by rows.
    pub rows: usize,
    /// All four and lse and delta.
    pub total: usize,
}

impl Layout {
    pub fn new<S: Simd>(d: usize) -> Self {
        let (columns, rows) = (columns_words::<S>(d), rows_words::<S>(d));
        Self { columns, rows, total: 2 * (columns + rows) + 2 * S::WIDTH }
    }
}

/// One block of queries in the layouts that every group of keys needs.
pub(super) fn pack_queries<S: Simd, E: PackedElement>(
    q: &Heads<E>,
    saved: &QueryRows<E>,
    layout: Layout,
    head: usize,
    first: usize,
    words: &mut [u32],
) {
    let count = S::WIDTH.min(q.rows - first);
    for (x, words) in [q, &saved.d_o].into_iter().zip(words.chunks_exact_mut(layout.columns + layout.rows)) {
        let (columns, rows) = words.split_at_mut(layout.columns);
        x.columns::<S>(head, first, count, columns);
        x.rows::<S>(head, first, count, S::WIDTH / S::PAIR, rows);
    }
    let stats: &mut [f32] = bytemuck::cast_slice_mut(&mut words[2 * (layout.columns + layout.rows)..]);
    let (lse, delta) = stats.split_at_mut(S::WIDTH);
    let row = head * q.rows + first;
    lse.fill(f32::INFINITY); // no weight for rows that are not there
    delta.fill(0.0);
    for (to, x) in lse.iter_mut().zip(&saved.lse[row..row + count]) {
        *to = (f64::from(*x) * LOG2_E) as f32;
    }
    delta[..count].copy_from_slice(&saved.delta[row..row + count]);
}
