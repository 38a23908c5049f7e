//! T5's attention biases: a number for each head and bucket of distances, where far distances share buckets.

/// Buckets of a table: half for keys before or at the query, half for those after it.
pub(super) const COUNT: usize = 32;

/// The first distance of each bucket from 8 on; nearer ones have one each. Logarithms of the published formula put 16,
/// 32 and 64 exactly on a boundary, so a table is safer than any library's logarithm.
const FROM: [usize; 8] = [8, 12, 16, 23, 32, 46, 64, 91];

/// The bucket of a key `distance` tokens after its query; negative: before it.
pub fn bucket(distance: isize) -> usize {
    let far = distance.unsigned_abs();
    let base = if distance > 0 { COUNT / 2 } else { 0 };
    base + if far < FROM[0] { far } else { FROM.iter().filter(|&&from| from <= far).count() + FROM[0] - 1 }
}

/// The biases of each head by distance, for texts of up to `tokens` tokens.
pub(super) struct Biases {
    /// `[heads][2 tokens - 1]`: from the key that is `tokens - 1` before its query to the one as far after it.
    values: Vec<f32>,
    tokens: usize,
}

impl Biases {
    /// Of a layer's `table` `[COUNT, heads]`.
    pub fn new(table: &[f32], heads: usize, tokens: usize) -> Self {
        let distances = (1 - tokens as isize)..tokens as isize;
        let of_head = |head: usize| distances.clone().map(move |d| table[bucket(d) * heads + head]);
        Self { values: (0..heads).flat_map(of_head).collect(), tokens }
    }

    /// Of `head`, for query `query` and the keys from `key` on.
    #[inline(always)]
    pub fn row(&self, head: usize, query: usize, key: usize) -> &[f32] {
        let distances = 2 * self.tokens - 1;
        &self.values[head * distances..][..distances][self.tokens - 1 + key - query..]
    }
}
