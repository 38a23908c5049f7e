//! Which buffers live at once in each phase of a step: src/engine/forward.rs and backward.rs, with bytes for tensors.
//!
//! A phase is named by where the engine is when most is alive. Stashed blocks are counted as at the last block, where there are most
//! of them. A tile's intermediates are an estimate: rows times what block.rs records, not a replay of its tape.

use super::shape::Shape;
use super::{Part, Phase};
use crate::attention::cpu::rehearsal::{backward_words, forward_words};
use crate::config::{Compute, Place, RunConfig};
use crate::model::{Model, ModelConfig};
use crate::ops::cpu::scratch::{KEPT, Scratch};
use crate::ops::packed_words;

/// Two blocks are written behind forward at most (engine/stash/copies.rs), each thread with a chunk to round in.
const FLYING: u64 = 2;
const CHUNKS: u64 = 2 * (2 << 20);

/// What the allocator holds beside what lives, in percent of that: the most that rehearsals have shown (docs/memory.md), so that a
/// plan is an upper estimate.
const SLACK: u64 = 65;

/// What does not change while a step runs.
struct Fixed {
    parts: Vec<Part>,
    /// Packed weights of a block for both passes; kept as attention's panels are.
    packed: u64,
}

fn part(name: &'static str, bytes: u64) -> Part {
    Part { name, bytes }
}

/// All phases of a step. A `rehearsal` has neither checkpoints nor samples.
pub fn phases(config: &RunConfig, model: &ModelConfig, s: &Shape, parameters: usize, rehearsal: bool) -> Vec<Phase> {
    let n = 4 * parameters as u64;
    let unit = 4 * Model::largest_unit(model) as u64;
    // What ZeRO shards from a stage on, and with it the unit that is whole while it is at work.
    let (zero, ranks) = (config.parallel.zero, config.parallel.ranks as u64);
    let shard = |stage: usize, whole: u64| if zero >= stage { n.div_ceil(ranks) + whole } else { n };
    let average = if config.train.ema > 0.0 { shard(1, 0) } else { 0 };
    // Clips that are in use and decoded ahead, if the run has so many.
    let steps = if rehearsal { crate::train::REHEARSED.min(config.train.steps) } else { config.train.steps };
    let clips = steps.saturating_mul((config.train.batch * config.train.accumulate) as u64);
    let queue = (config.data.prefetch.max(config.train.batch) + config.train.batch) as u64;
    let state = vec![
        part("parameters", shard(3, unit)),
        part("gradients", shard(2, unit)),
        part("optimizer moments", 2 * shard(1, 0)),
        part("moving average", average),
        part("frames and prefetch queue", queue.min(clips) * s.frames),
    ];
    let fixed = Fixed { parts: state, packed: packed(model, s.half) };
    let kernels = Kernels::new(s);
    let phase = |name: &'static str, more: Vec<Part>| {
        let live = kernels.live(name);
        let kept = (KEPT / s.ranks).min(kernels.all - live);
        let panels = part("packed panels of attention", (live + kept) as u64);
        let mut parts: Vec<Part> = fixed.parts.iter().cloned().chain(more).chain([panels]).collect();
        let live: u64 = parts.iter().map(|part| part.bytes).sum();
        parts.push(part("allocator slack", live * SLACK / 100));
        Phase { name, parts }
    };
    let stash = Stash::new(config, s, model.num_layers as u64);
    let tile = Tile::new(model, s);

    let mut all = vec![];
    for (name, more) in forward(s, &tile, &fixed) {
        all.push(phase(name, [stash.forward(), more].concat()));
    }
    let (x, dx) = (part("residual stream", s.stream()), part("its gradient", s.stream()));
    all.push(phase("head and loss", [stash.head(), vec![x, dx, part("tile", tile.head)]].concat()));
    for (name, keeps_o, more) in backward(s, &tile, &fixed) {
        all.push(phase(name, [stash.backward(keeps_o), more].concat()));
    }
    if !config.stash.keep_attention {
        for (name, more) in again(s, &tile, &fixed) {
            all.push(phase(name, [stash.backward(false), more].concat()));
        }
    }
    let share = if s.ranks > 1 { unit } else { 0 };
    all.push(phase("sums of gradients, optimizer", vec![part("messages", share)]));
    if !rehearsal {
        all.push(phase("checkpoint, on rank 0", vec![part("copy of the moments", 2 * n)]));
        if config.train.sample_every > 0 {
            all.push(phase("sampling", sampling(config, model, s, &tile, &fixed)));
        }
    }
    all
}

/// Bytes of a block's packed weights, for forward and for backward.
fn packed(model: &ModelConfig, half: bool) -> u64 {
    let (width, hidden) = (model.width(), model.ffn_dim);
    let squares = if model.text_dim > 0 { 6 } else { 4 };
    let layers = [(squares, width, width), (1, hidden, width), (1, width, hidden)];
    let bytes =
        |&(count, out, inner): &(usize, usize, usize)| 4 * count * packed_words(out, inner, half).iter().sum::<usize>();
    layers.iter().map(bytes).sum::<usize>() as u64
}

/// Bytes of a tile's intermediates.
struct Tile {
    before: [u64; 2], // forward, backward
    after: [u64; 2],
    head: u64,
}

impl Tile {
    fn new(model: &ModelConfig, s: &Shape) -> Self {
        let rows = |numbers: usize| 4 * (s.tile * numbers) as u64;
        let (d, f, patch) = (model.width(), model.ffn_dim, 3 * model.patch_in());
        let cross = if model.text_dim > 0 { 6 * d } else { 0 };
        Self {
            // h, q and k before and after their norm, v; recorded, all with casts, gradients of three and packed operands.
            before: [rows(7 * d), rows(14 * d)],
            // The MLP's hidden rows, kept before and after GELU, with their gradients and packed operands.
            after: [rows(4 * d + cross + 2 * f), rows(9 * d + 2 * cross + 6 * f)],
            head: rows(4 * d + 4 * patch),
        }
    }
}

/// Where blocks' inputs and attention's outputs are meanwhile.
struct Stash {
    /// A block as tensors: its input; output and row statistic.
    block: [u64; 2],
    blocks: u64,
    /// Attention's output, and what of it is made again where it is not kept.
    output: u64,
    again: u64,
    /// Bytes of a block's copy that lie in memory; none where tensors are kept as they are.
    copied: Option<u64>,
}

impl Stash {
    fn new(config: &RunConfig, s: &Shape, blocks: u64) -> Self {
        let kept = if config.stash.keep_attention { s.attended() + s.statistic() } else { 0 };
        let copied = match (config.stash.place, config.stash.dtype) {
            (Place::Ram, Compute::F32) => None,
            (Place::Ram, Compute::Bf16) => Some(s.copied(config)),
            (Place::Disk, _) => Some(0),
        };
        let again = if config.stash.keep_attention { 0 } else { s.attended() + s.statistic() };
        Self { block: [s.stream(), kept], blocks, output: s.attended(), again, copied }
    }

    /// While forward is at the last block, which is not put yet.
    fn forward(&self) -> Vec<Part> {
        let block: u64 = self.block.iter().sum();
        match self.copied {
            None => vec![part("stash", (self.blocks - 1) * block)],
            Some(copied) => vec![
                part("stash", self.blocks * copied + CHUNKS),
                part("stash: blocks being copied", (FLYING.min(self.blocks - 1) + FLYING.min(self.blocks)) * block),
            ],
        }
    }

    /// While backward is at the last block, which is taken; without its attention's output if that has been used.
    fn backward(&self, keeps_o: bool) -> Vec<Part> {
        let block: u64 = self.block.iter().sum();
        let again = if keeps_o { self.again } else { 0 };
        match self.copied {
            None => {
                let used = if keeps_o { 0 } else { self.block[1].min(self.output) };
                vec![part("stash", self.blocks * block - used), part("output of attention, again", again)]
            }
            Some(copied) => vec![
                part("stash", self.blocks * copied + CHUNKS),
                part("stash: blocks being copied", FLYING.min(self.blocks) * block),
                part("output of attention, again", again),
            ],
        }
    }

    /// While the head is visited: all blocks are put, the last of them may still be being written.
    fn head(&self) -> Vec<Part> {
        match self.copied {
            None => vec![part("stash", self.blocks * self.block.iter().sum::<u64>())],
            Some(_) => self.forward(),
        }
    }
}

/// Bytes of the largest group's tensors, and what its kernels hold.
struct Group {
    /// Of tokens, of heads: q, or k, v, o.
    rows: u64,
    heads: u64,
    /// Sent and received while one of them is exchanged.
    message: u64,
    /// Results of the kernels, with lse (f64, then f32) or with copies of lse and delta.
    forward: u64,
    backward: u64,
}

impl Group {
    fn new(s: &Shape, groups: &[[usize; 2]]) -> Self {
        let [all, mine] = groups.iter().copied().fold([0, 0], |most, g| [most[0].max(g[0]), most[1].max(g[1])]);
        let (each, d) = (s.batch * mine, s.head_dim);
        let rows = s.element() * (s.rows * all * d) as u64;
        let heads = s.element() * (each * s.group_tokens * d) as u64;
        let f32 = 2 * heads * (4 / s.element()); // in a ring: two results in f32
        let ring = if s.ring > 1 { [2 * heads + f32, 3 * heads + 3 * f32] } else { [heads, 3 * heads] };
        let lse = (each * s.group_tokens) as u64;
        Self {
            rows,
            heads,
            message: if s.ulysses > 1 { rows } else { 0 },
            forward: ring[0] + 12 * lse,
            backward: ring[1] + 8 * lse,
        }
    }
}

/// Bytes of the panels that attention packs. They are kept for the next pass, if they are not too many (ops/cpu/scratch.rs), so most
/// are there in every phase.
struct Kernels {
    forward: usize,
    backward: usize,
    all: usize,
}

impl Kernels {
    fn new(s: &Shape) -> Self {
        let heads = s.groups.iter().map(|group| group[1]).max().unwrap_or(1);
        let (each, d) = (s.batch * heads, s.head_dim);
        let forward = forward_words(s.half, each, s.group_tokens, d);
        let [queries, sums] = backward_words(s.half, each, s.group_tokens, d);
        // What forward has left may serve backward.
        let more = if Scratch::serves(forward, sums) || Scratch::serves(forward, queries) { 0 } else { forward };
        let backward = queries + sums;
        Self { forward: 4 * forward, backward: 4 * backward, all: 4 * (backward + more).max(forward) }
    }

    /// Bytes in use in a phase, by its name.
    fn live(&self, phase: &str) -> usize {
        match phase {
            "forward: attention" | "backward: attention, again" => self.forward,
            "backward: attention" => self.backward,
            _ => 0,
        }
    }
}

type Parts = Vec<(&'static str, Vec<Part>)>;

/// A block's attention: while q, k and v go from tokens to heads, and while the kernels run.
fn attend(s: &Shape, groups: &[[usize; 2]], tile: &Tile) -> Parts {
    let group = Group::new(s, groups);
    let done = if groups.len() > 1 { s.attended() } else { 0 }; // outputs of the groups before
    vec![
        (
            "exchange of q, k, v",
            vec![
                part("q, k, v of tokens and of heads", 3 * (group.rows + group.heads)),
                part("messages", group.message),
                part("outputs of other head groups", done.saturating_sub(group.rows)),
                part("tile", tile.before[0]),
            ],
        ),
        (
            "attention",
            vec![
                part("q, k, v of heads", 3 * group.heads),
                part("output and row statistic", group.forward),
                part("outputs of other head groups", done.saturating_sub(group.rows)),
            ],
        ),
    ]
}

/// Forward of a block.
fn forward(s: &Shape, tile: &Tile, fixed: &Fixed) -> Parts {
    let held = vec![part("residual stream", s.stream()), part("packed weights", fixed.packed)];
    let mut all = attend(s, &s.groups, tile);
    all.push((
        "after attention",
        vec![
            part("output of attention", s.attended() + s.statistic()),
            part("next residual stream", s.stream()),
            part("tile", tile.after[0]),
        ],
    ));
    let names = ["forward: exchange of q, k, v", "forward: attention", "forward: after attention"];
    all.into_iter().zip(names).map(|((_, parts), name)| (name, [held.clone(), parts].concat())).collect()
}

/// Backward of a block: its phases, and whether attention's output is still held.
fn backward(s: &Shape, tile: &Tile, fixed: &Fixed) -> Vec<(&'static str, bool, Vec<Part>)> {
    let group = Group::new(s, &s.groups);
    let delta = 4 * (s.rows * s.mine() * s.ulysses) as u64;
    let more = if s.groups.len() > 1 { s.attended() } else { 0 };
    let held = || {
        vec![
            part("gradient of the stream", s.stream()),
            part("packed weights", fixed.packed),
            part("gradient of attention's output", s.attended() + delta),
        ]
    };
    let with = |parts: Vec<Part>| [held(), parts].concat();
    let others = |whole: u64| part("gradients of other head groups", if more > 0 { whole } else { 0 });
    let rows = 3 * (s.attended() - group.rows.min(s.attended()));
    vec![
        ("backward: after attention", true, with(vec![part("tile", tile.after[1])])),
        (
            "backward: exchange of q, k, v",
            false,
            with(vec![
                part("q, k, v of tokens and of heads", 3 * (group.rows + group.heads)),
                part("messages", group.message),
                part("tile", tile.before[0]),
                others(rows),
            ]),
        ),
        (
            "backward: attention",
            false,
            with(vec![
                part("q, k, v, do of heads", 4 * group.heads),
                part("dq, dk, dv of heads", group.backward),
                others(rows),
            ]),
        ),
        (
            "backward: exchange of gradients",
            false,
            with(vec![
                part("dq, dk, dv of tokens and of heads", 3 * (group.rows + group.heads)),
                part("messages", group.message),
                others(rows),
            ]),
        ),
        (
            "backward: before attention",
            false,
            with(vec![part("dq, dk, dv of tokens", 3 * s.attended()), part("tile", tile.before[1]), others(more)]),
        ),
    ]
}

/// Attention once more, where its output is not kept.
fn again(s: &Shape, tile: &Tile, fixed: &Fixed) -> Parts {
    let names = ["backward: exchange of q, k, v, again", "backward: attention, again"];
    let held = vec![part("gradient of the stream", s.stream()), part("packed weights", fixed.packed)];
    let parts = attend(s, &s.groups, tile).into_iter().zip(names);
    parts.map(|((_, parts), name)| (name, [held.clone(), parts].concat())).collect()
}

/// A clip's sampling: a forward pass without a stash, and what the sampler keeps.
fn sampling(config: &RunConfig, model: &ModelConfig, s: &Shape, tile: &Tile, fixed: &Fixed) -> Vec<Part> {
    let parts = attend(s, &s.groups, tile).into_iter().map(|(_, parts)| parts);
    let mut most = parts.max_by_key(|parts| parts.iter().map(|part| part.bytes).sum::<u64>()).unwrap_or_default();
    most.push(part("residual stream", s.stream()));
    most.push(part("packed weights", fixed.packed));
    let guided = u64::from(config.sample.guidance != 1.0);
    let states = config.sample.sampler.states() as u64 + guided;
    most.push(part("states of the sampler", states * 4 * (s.rows / s.batch * model.patch_in()) as u64));
    most
}
