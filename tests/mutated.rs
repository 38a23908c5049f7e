//! Spoils bytes in many ways, the same in every run, or others for each number in `LONGREEL_FAULTS_SEED` (`make
//! faults`).

/// Calls `check` with `count` variants of `good`: bits and bytes changed, words set to extremes, pieces cut out,
/// doubled, or cut off.
pub fn mutated(good: &[u8], count: usize, check: impl FnMut(&[u8])) {
    let seed = std::env::var("LONGREEL_FAULTS_SEED").map_or(0, |seed| seed.parse().expect("a number"));
    mutated_from(seed, good, count, check);
}

/// [`mutated`] from a seed that has found something once.
pub fn mutated_from(seed: u64, good: &[u8], count: usize, mut check: impl FnMut(&[u8])) {
    let mut state = 0x9e37_79b9_7f4a_7c15 ^ seed.wrapping_mul(0x5851_f42d_4c95_7f2d);
    let mut below = |n: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 11) as usize % n.max(1)
    };
    for _ in 0..count {
        let mut bytes = good.to_vec();
        for _ in 0..=below(3) {
            if bytes.is_empty() {
                break;
            }
            let at = below(bytes.len());
            let end = (at + 1 + below(8)).min(bytes.len());
            match below(7) {
                0 => bytes[at] ^= 1 << below(8),
                1 => bytes[at] = below(256) as u8,
                2 => bytes[at..end].fill(0xff),
                3 => bytes[at..end].fill(0),
                4 => drop(bytes.drain(at..end)),
                5 => {
                    let piece = bytes[at..end].to_vec();
                    bytes.splice(at..at, piece);
                }
                _ => bytes.truncate(at),
            }
        }
        check(&bytes);
    }
}
