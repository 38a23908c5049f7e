//! Bytes of the buffers that phases are made of: stash, tiles, head groups, packed panels.
//!
//! Panels are told by the functions that the kernels allocate by. A tile is rows times what its tape records at its
//! fullest, with gradients on their way: model/block.rs from the end.

use super::shape::Shape;
use super::{Part, part};
use crate::attention::cpu::rehearsal::{backward_words, forward_words};
use crate::config::{Compute, Place, RunConfig};
use crate::engine::stash::{CHUNKS, FLYING, STAGING};
use crate::model::ModelConfig;
use crate::observe::meter::Phase as At;
use crate::ops::packed_words;
use crate::simd::scratch::{KEPT, LARGEST, serves};

/// Bytes of a tile's intermediates; those of `before` and `after` forward and backward.
#[derive(Clone, Copy)]
pub struct Tile {
    pub before: [u64; 2],
    pub after: [u64; 2],
    pub head: u64,
    pub embed: u64,
}

impl Tile {
    /// Of a network whose adapters need `more` in `before` and `after`.
    pub fn new(model: &ModelConfig, s: &Shape, more: [u64; 2]) -> Self {
        // Elements of a row in f32; a bf16 element counts half.
        let rows = |halves: usize| 2 * (s.tile * halves) as u64;
        let (d, f, patch) = (model.width(), model.ffn_dim, model.patch_in());
        let (cross, half) = (if model.text_dim > 0 { 1 } else { 0 }, usize::from(s.half));
        // A product of bf16 on a GPU has its two larger operands copied to bf16, at most rows of both widths and the
        // weight.
        let operands = |a: usize, b: usize| if s.gpu && s.half { rows(a + b) + 2 * (a * b) as u64 } else { 0 };
        Self {
            // h, q and k before and after their norm, v; recorded, and with their gradients. In bf16 casts of q, k, v
            // as well.
            before: [rows(10 * d + half * 3 * d), rows(20 * d + half * 9 * d)]
                .map(|bytes| bytes + operands(d, d) + more[0]),
            // The MLP's hidden rows, recorded before and after GELU; with the gradients of both.
            after: [rows((6 + 8 * cross + 2 * half) * d + 2 * f), rows((12 + 16 * cross + 2 * half) * d + 10 * f)]
                .map(|bytes| bytes + operands(d, f) + more[1]),
            head: rows(8 * d + 12 * patch) + operands(d, patch),
            embed: rows(2 * d + 10 * patch) + operands(d, patch),
        }
    }
}

/// Where blocks' inputs and attention's outputs are meanwhile.
#[derive(Clone, Copy)]
pub struct Stash {
    blocks: u64,
    /// A block's input, output of attention and row statistic.
    x: u64,
    o: u64,
    lse: u64,
    /// Whether the output and the statistic are stashed.
    kept: bool,
    home: Home,
}

/// What is done with a block that is put.
#[derive(Clone, Copy)]
enum Home {
    /// Its tensors are kept as they are.
    Tensors,
    /// It is copied: bytes of its copy that lie in memory until it is read again, and of the threads' own.
    Copies { held: u64, chunks: u64 },
    /// It is copied from a GPU: bytes of the copy, and what of it the host's memory holds.
    Host { copied: u64, held: u64 },
}

impl Stash {
    pub fn new(config: &RunConfig, s: &Shape, blocks: u64) -> Self {
        let copied = s.copied(config);
        let held = if config.stash.place == Place::Ram { copied } else { 0 };
        let chunks = if config.stash.dtype == Compute::Bf16 { CHUNKS as u64 } else { 0 };
        let home = match (config.stash.place, config.stash.dtype) {
            _ if s.gpu => Home::Host { copied, held },
            (Place::Ram, Compute::F32) => Home::Tensors,
            _ => Home::Copies { held, chunks },
        };
        let kept = config.stash.keep_attention;
        Self { blocks, x: s.stream(), o: s.attended(), lse: s.statistic(), kept, home }
    }

    /// What a GPU's host holds of it, in pinned memory.
    pub fn host(&self) -> Vec<Part> {
        match self.home {
            Home::Host { held: 0, .. } => vec![part("stash: staging, pinned", STAGING as u64)],
            Home::Host { held, .. } => vec![part("stash, pinned", self.blocks * held)],
            _ => vec![],
        }
    }

    /// Bytes that a block keeps as tensors.
    fn block(&self) -> u64 {
        self.x + if self.kept { self.o + self.lse } else { 0 }
    }

    /// What is there while no block is: what the copying threads have, and on a GPU the two buffers that blocks are
    /// read into.
    pub fn idle(&self) -> Vec<Part> {
        match self.home {
            Home::Tensors => vec![],
            Home::Copies { chunks, .. } => vec![part("stash", chunks)],
            Home::Host { copied, .. } => vec![part("stash: blocks being read", self.blocks.min(2) * copied)],
        }
    }

    /// While forward is at the last block, which is not put yet.
    pub fn forward(&self) -> Vec<Part> {
        match self.home {
            Home::Tensors => vec![part("stash", (self.blocks - 1) * self.block())],
            // Attention hides the copies of long clips only: a block may still be there as it was put.
            Home::Copies { held, chunks } => vec![
                part("stash", (self.blocks - 1) * held + chunks),
                part("stash: block being written", (self.blocks - 1).min(1) * self.block()),
            ],
            Home::Host { copied, .. } => {
                let flying = (self.blocks - 1).min(FLYING as u64);
                [self.idle(), vec![part("stash: blocks being written", flying * copied)]].concat()
            }
        }
    }

    /// While the head is visited: all blocks are put, and the last one is being copied.
    pub fn head(&self) -> Vec<Part> {
        let last = part("stash: block being written", self.block());
        match self.home {
            Home::Tensors => vec![part("stash", self.blocks * self.block())],
            Home::Copies { held, chunks } => vec![part("stash", self.blocks * held + chunks), last],
            Home::Host { .. } => [self.idle(), vec![last]].concat(),
        }
    }

    /// While backward is at the last block, which is taken; of blocks that are copied, the one below is being read.
    pub fn taken(&self) -> Vec<Part> {
        match self.home {
            Home::Tensors => self.head(),
            Home::Copies { held, chunks } => {
                let ahead = self.blocks.min(2) - 1;
                // Its tensors are read one by one, and the last one is there twice meanwhile, part of the phase: half
                // of it counts.
                let twice = ahead * held / if self.kept { 4 } else { 2 };
                vec![
                    part("stash: block in use and block read ahead", (1 + ahead) * self.block()),
                    part("stash", (self.blocks - 1 - ahead) * held + twice + chunks),
                ]
            }
            Home::Host { .. } => self.idle(),
        }
    }

    /// The same, attention's output being there, or used and, if it is nobody else's, given back.
    pub fn backward(&self, output: bool) -> Vec<Part> {
        let mut parts = self.taken();
        match (self.kept, !matches!(self.home, Home::Host { .. }), output) {
            (false, _, true) => parts.push(part("output of attention, again", self.o + self.lse)),
            (false, _, false) => parts.push(part("row statistic, again", self.lse)),
            (true, true, false) => parts[0].bytes -= self.o,
            _ => {}
        }
        if let (Home::Copies { held, chunks }, false) = (self.home, output) {
            parts[1].bytes = self.blocks.saturating_sub(2) * held + chunks; // the block below is read
        }
        parts
    }
}

/// Bytes of the largest head group's tensors.
#[derive(Clone, Copy)]
pub struct Groups {
    /// q, or k, v, o: of tokens, of heads.
    pub rows: u64,
    pub heads: u64,
    /// Received while one of them is exchanged.
    pub message: u64,
    /// Results of the kernels, with lse (f64, then f32), or with copies of lse and delta and delta of heads.
    pub forward: u64,
    pub backward: u64,
    /// Whether there are several groups; and one tensor of all others.
    pub several: bool,
    pub done: u64,
}

impl Groups {
    pub fn new(s: &Shape, groups: &[[usize; 2]]) -> Self {
        let [all, mine] = groups.iter().copied().fold([0, 0], |most, g| [most[0].max(g[0]), most[1].max(g[1])]);
        let (each, d) = (s.batch * mine, s.head_dim);
        let rows = s.element() * (s.rows * all * d) as u64;
        let numbers = (each * s.group_tokens) as u64;
        let heads = s.element() * numbers * d as u64;
        // In a ring two sets of results in f32, with an f64 statistic; keys and values are lent, not copied, from rank
        // to rank.
        let single = 4 * numbers * d as u64;
        let ring = s.ring > 1;
        Self {
            rows,
            heads,
            message: if s.ulysses > 1 { heads } else { 0 },
            forward: if ring { 2 * single + 24 * numbers } else { heads + 12 * numbers },
            backward: if ring { 6 * single } else { 3 * heads } + 12 * numbers,
            several: groups.len() > 1,
            done: s.attended().saturating_sub(rows),
        }
    }
}

/// Bytes of packed operands: attention's, a block's weights, a tile's. Small ones are kept for the next use
/// (simd/scratch.rs), so they are there in every phase.
#[derive(Clone, Copy)]
pub struct Panels {
    /// Attention's: keys and values; queries, sums.
    forward: u64,
    backward: [u64; 2],
    /// A block's weights that are kept between uses.
    kept_weights: u64,
    /// Others, for forward and for backward, of the layers before attention and of those after it.
    before: [u64; 2],
    after: [u64; 2],
    /// A tile's.
    tile: u64,
    /// The rank's share of what may be kept.
    most: u64,
}

impl Panels {
    pub fn new(model: &ModelConfig, s: &Shape) -> Self {
        let words = |words: usize| 4 * words as u64;
        let heads = s.groups.iter().map(|group| group[1]).max().unwrap_or(1);
        let (each, d) = (s.batch * heads, s.head_dim);
        let forward = words(forward_words(s.half, each, s.group_tokens, d));
        let backward = backward_words(s.half, each, s.group_tokens, d).map(words);
        let (width, hidden) = (model.width(), model.ffn_dim);
        let squares = if model.text_dim > 0 { 3 } else { 1 };
        let (mut kept_weights, [mut before, mut after]) = (0, [[0; 2]; 2]);
        for (i, bytes) in packed_words(width, width, s.half).map(words).into_iter().enumerate() {
            if kept(bytes) {
                // Those of before attention, in backward, take what those of after it have given back.
                kept_weights += squares.max(3) * bytes;
            } else {
                before[i] += 3 * bytes;
                after[i] += squares * bytes;
            }
        }
        for [out, inner] in [[hidden, width], [width, hidden]] {
            for (bytes, sum) in packed_words(out, inner, s.half).map(words).into_iter().zip(&mut after) {
                *if kept(bytes) { &mut kept_weights } else { sum } += bytes;
            }
        }
        // Of the weight gradient's product: rows of the hidden elements as left and as right operand, and of the width.
        // Rows to be multiplied, where they are rounded on the way, lie packed beside them.
        let rounded = if s.half { 4 * s.tile * hidden.max(width) } else { 0 };
        let tile = (s.element() as usize * s.tile * 2 * (hidden + width) + rounded) as u64;
        Self { forward, backward, kept_weights, before, after, tile, most: (KEPT / s.ranks) as u64 }
    }

    /// Panels in use in one of the phases `at`, and those that are kept.
    pub fn parts(&self, at: &[At]) -> Vec<Part> {
        let (mut used, mut idle) = (0, 0);
        let [queries, mut sums] = self.backward;
        // What forward has left serves backward for its sums, if it fits.
        if kept(self.forward) && serves(self.forward as usize, sums as usize) {
            sums = 0;
        }
        for (bytes, phases) in [
            (self.forward, &[At::ForwardAttention, At::AgainAttention][..]),
            (queries, &[At::BackwardAttention]),
            (sums, &[At::BackwardAttention]),
        ] {
            match phases.iter().any(|phase| at.contains(phase)) {
                true => used += bytes,
                false if kept(bytes) => idle += bytes,
                false => {}
            }
        }
        used += at.iter().map(|phase| self.weights_at(*phase)).max().unwrap_or(0);
        idle += self.kept_weights + self.tile;
        vec![part("packed panels in use", used), part("packed panels and weights, kept", idle.min(self.most))]
    }

    /// A block's weights that are packed in a phase.
    fn weights_at(&self, phase: At) -> u64 {
        match phase {
            At::Embed | At::Head | At::Update => 0,
            At::ForwardAfter => self.before[0] + self.after[0],
            At::BackwardAfter => self.before[0] + self.after[0] + self.after[1],
            At::BackwardBefore => self.before[0] + self.before[1],
            _ => self.before[0],
        }
    }
}

/// Whether a packed buffer of so many bytes is kept for its next use.
fn kept(bytes: u64) -> bool {
    bytes <= LARGEST as u64
}
