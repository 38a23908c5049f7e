//! Which large blocks of memory are in use, and which freed ones are kept: the bookkeeping, without the memory.
//!
//! Whoever asks for a length that was freed before gets the very block. Other lengths cannot use it, so what is kept
//! beside what lives is bounded: both together never exceed the most that has lived at once by more than [`SPARE`]. The
//! block that was freed longest ago goes first. What a step's buffers add up to is therefore what the process holds,
//! whatever their order of sizes.

/// Bytes that may be kept beyond the most that has lived: the buffers of tiles stay, whatever a large one needs.
pub const SPARE: usize = 64 << 20;

/// Freed blocks that are kept at most; they lie in an array, as an allocator cannot allocate.
const SLOTS: usize = 1024;

/// A block of memory: where, and how many bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Block {
    pub at: usize,
    pub len: usize,
}

/// The books.
pub struct Ledger {
    /// Bytes in use.
    live: usize,
    /// The most that were in use at once, but for what came into use since the last block went out of it.
    most: usize,
    /// The same, since [`restart`](Self::restart).
    lately: usize,
    /// Bytes that are kept.
    kept: usize,
    /// The kept blocks, in the order in which they were freed.
    free: [Block; SLOTS],
    count: usize,
}

impl Ledger {
    pub const fn new() -> Self {
        Self { live: 0, most: 0, lately: 0, kept: 0, free: [Block { at: 0, len: 0 }; SLOTS], count: 0 }
    }

    /// `len` bytes come into use: where they are, if a block of them is kept.
    pub fn take(&mut self, len: usize) -> Option<usize> {
        self.live += len;
        let place = self.free[..self.count].iter().rposition(|block| block.len == len)?;
        Some(self.remove(place).at)
    }

    /// A block goes out of use and is kept. Returned is one to give back: where there is no place for it.
    pub fn put(&mut self, block: Block) -> Option<Block> {
        let oldest = if self.count == SLOTS { Some(self.remove(0)) } else { None };
        self.most = self.most.max(self.live);
        self.lately = self.lately.max(self.live);
        self.live -= block.len;
        self.kept += block.len;
        self.free[self.count] = block;
        self.count += 1;
        oldest
    }

    /// A block to give back, as too much is kept; to be asked until there is none.
    pub fn excess(&mut self) -> Option<Block> {
        let too_much = self.count > 0 && self.live + self.kept > self.most.max(self.live) + SPARE;
        too_much.then(|| self.remove(0))
    }

    /// Memory could not be had for `len` bytes that came into use: they do not.
    pub fn untake(&mut self, len: usize) {
        self.live -= len;
    }

    /// The most bytes in use at once since the last call, in whose place what is in use now counts from here on.
    pub fn restart(&mut self) -> usize {
        std::mem::replace(&mut self.lately, self.live).max(self.live)
    }

    fn remove(&mut self, place: usize) -> Block {
        let block = self.free[place];
        self.free.copy_within(place + 1..self.count, place);
        self.count -= 1;
        self.kept -= block.len;
        block
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Takes and frees blocks of random lengths as an allocator would; checks the books against a plain list at every
    /// step.
    #[test]
    fn what_is_kept_is_bounded_and_fits_exactly() {
        let mut ledger = Ledger::new();
        let (mut used, mut mapped): (Vec<Block>, Vec<Block>) = (vec![], vec![]);
        let (mut most, mut next, mut reused, mut given) = (0, 1, 0, 0);
        let mut state = 1u64;
        let mut random = |n: u64| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) % n
        };
        for _ in 0..20_000 {
            if used.is_empty() || (used.len() < 40 && random(2) == 0) {
                let len = (1 + random(12) as usize) << 20;
                let at = ledger.take(len);
                while let Some(block) = ledger.excess() {
                    mapped.remove(mapped.iter().position(|&other| other == block).expect("a block that is there"));
                    given += 1;
                }
                let block = Block { at: at.unwrap_or(next), len };
                match at {
                    Some(_) => {
                        reused += 1;
                        assert!(mapped.contains(&block) && !used.contains(&block), "{block:?}");
                    }
                    None => {
                        next += 1;
                        mapped.push(block);
                    }
                }
                used.push(block);
            } else {
                let block = used.swap_remove(random(used.len() as u64) as usize);
                assert_eq!(ledger.put(block), None);
            }
            let sum = |blocks: &[Block]| blocks.iter().map(|block| block.len).sum::<usize>();
            most = most.max(sum(&used));
            assert!(sum(&mapped) <= most + SPARE, "{} held where at most {most} lived", sum(&mapped));
            assert_eq!((ledger.live, ledger.kept), (sum(&used), sum(&mapped) - sum(&used)));
        }
        assert!(reused > 5000 && given > 100, "{reused} reused, {given} given back: the test tests nothing");
    }

    #[test]
    fn a_full_table_gives_the_oldest_back() {
        let mut ledger = Ledger::new();
        let block = |at| Block { at, len: 1 };
        (0..=SLOTS).for_each(|_| assert_eq!(ledger.take(1), None));
        (0..SLOTS).for_each(|at| assert_eq!(ledger.put(block(at)), None));
        assert_eq!(ledger.put(block(SLOTS)), Some(block(0)));
        assert_eq!(ledger.take(1), Some(SLOTS), "the one freed last is warmest");
    }

    #[test]
    fn what_could_not_be_had_was_never_in_use() {
        let mut ledger = Ledger::new();
        ledger.take(1 << 60);
        ledger.untake(1 << 60);
        for at in 0..3 {
            ledger.take(SPARE);
            ledger.put(Block { at, len: SPARE });
        }
        assert_eq!(ledger.most, SPARE);
        ledger.take(1);
        assert!(ledger.excess().is_none(), "one block is reused and kept, no more than may be");
        assert_eq!(ledger.restart(), SPARE);
    }

    #[test]
    fn the_most_in_use_is_told_for_a_time() {
        let mut ledger = Ledger::new();
        ledger.take(5);
        ledger.take(7);
        ledger.put(Block { at: 0, len: 5 });
        assert_eq!(ledger.restart(), 12);
        ledger.take(1);
        assert_eq!((ledger.restart(), ledger.most), (8, 12));
    }
}
