//! Which buffers live at once in each phase of a step: src/engine/forward.rs and backward.rs, with bytes for tensors.
//!
//! Stashed blocks are counted as at the last block, where there are most of them, and on a CPU one of them as still
//! being copied. Where a phase has several moments, such as a tile and the exchange after it, the one that needs most
//! counts. A rehearsal measures each phase, and a test holds this page against it.

use super::buffers::{Groups, Panels, Stash, Tile};
use super::shape::Shape;
use super::texts::of_a_step;
use super::weights::ParameterCounts;
use super::{Part, Phase, part};
use crate::config::{OptimizerKind, Place, RunConfig};
use crate::data::{Decoding, FrameCache};
use crate::model::ModelConfig;
use crate::observe::meter::Phase as At;
use crate::state::weights::IN_FLIGHT;

/// Everything that phases are made of.
struct Step<'a> {
    shape: &'a Shape,
    /// What does not change while a step runs.
    state: Vec<Part>,
    stash: Stash,
    tile: Tile,
    groups: Groups,
    /// None on a GPU.
    panels: Option<Panels>,
}

/// A moment's parts.
type Moment = Vec<Part>;

fn bytes(parts: &[Part]) -> u64 {
    parts.iter().map(|part| part.bytes).sum()
}

/// The moment that needs most.
fn most<const N: usize>(moments: [Moment; N]) -> Moment {
    moments.into_iter().max_by_key(|parts| bytes(parts)).unwrap_or_default()
}

/// All phases of a step. A `rehearsal` has neither checkpoints nor samples; of clips whose `decoding` is not known,
/// neither the decoders nor the cache is counted.
pub fn phases(
    config: &RunConfig,
    model: &ModelConfig,
    shape: &Shape,
    weights: &ParameterCounts,
    rehearsal: bool,
    decoding: Option<&Decoding>,
) -> Vec<Phase> {
    let mut state = state(config, model, shape, weights);
    if !shape.gpu {
        state.push(frames(config, shape, rehearsal, decoding));
        let images = decoding.map_or(0, |decoding| decoding.image);
        state.push(part("images being decoded", decoders(config, rehearsal) * images));
    }
    let step = Step {
        shape,
        state,
        stash: Stash::new(config, shape, model.num_layers as u64),
        tile: Tile::new(model, shape, weights.of_a_tile(model, shape)),
        groups: Groups::new(shape, &shape.groups),
        panels: (!shape.gpu).then(|| Panels::new(model, shape)),
    };
    let again = !config.stash.keep_attention;
    let mut all = step.forward();
    all.extend(step.backward(again));
    let unit = if shape.ranks > 1 { 4 * weights.unit as u64 } else { 0 };
    let more =
        vec![part("gradient of the stream", shape.stream()), part("messages", unit), part("tile", step.tile.embed)];
    let in_flight = if shape.gpu { vec![] } else { moments_in_flight(config, model, weights) };
    let more = [more, in_flight, vec![orthogonalising(config, model, weights)]].concat();
    all.push(step.phase(At::Update.name(), &[], [step.stash.idle(), more].concat()));
    if !rehearsal {
        let copy = match shape.gpu {
            true => part("messages", unit), // on their way to its host
            false => part("copy of the moments", 8 * weights.trained as u64),
        };
        all.push(step.phase("checkpoint, on rank 0", &[], [step.stash.idle(), vec![copy]].concat()));
        if config.train.sample_every > 0 {
            all.push(step.phase("sampling", &[At::ForwardAttention], step.sampling(config, model)));
        }
    }
    all
}

/// What a GPU's rank has in its host's memory; nothing for a rank on a CPU, whose memory that is.
pub fn host(
    config: &RunConfig,
    model: &ModelConfig,
    shape: &Shape,
    weights: &ParameterCounts,
    rehearsal: bool,
    decoding: Option<&Decoding>,
) -> Vec<Part> {
    if !shape.gpu {
        return vec![];
    }
    let stash = Stash::new(config, shape, model.num_layers as u64).host();
    let frames = frames(config, shape, rehearsal, decoding);
    let decoders = decoders(config, rehearsal) * decoding.map_or(0, |one| one.image + one.video);
    let copy = part("copy of the moments, on rank 0", 8 * weights.trained as u64);
    let states = match config.train.sample_every {
        0 => 0,
        _ => sampler_states(config, model, shape),
    };
    let states = part("states of the sampler", states);
    let here = config.train.moments == Place::Ram && config.train.optimizer != OptimizerKind::AdamW;
    let [moments, average] = if here { weights.moments(config, model, weights.trained) } else { [0; 2] };
    let moments = vec![part("optimizer moments", moments), part("moving average", average)];
    let in_flight = moments_in_flight(config, model, weights);
    [stash, vec![frames, part("decoders", decoders), copy, states], moments, in_flight].concat()
}

/// Decoded clips: all that the run goes through, if they are kept, or else those in use and decoded ahead.
fn frames(config: &RunConfig, shape: &Shape, rehearsal: bool, decoding: Option<&Decoding>) -> Part {
    match decoding.map_or(0, |decoding| FrameCache::bytes(&config.data.clips(), decoding.clips, shape.frames)) {
        0 => part("frames and prefetch queue", clips(config, rehearsal) * shape.frames),
        kept => part("decoded clips, kept", kept.min(clips_of_a_run(config, rehearsal).saturating_mul(shape.frames))),
    }
}

/// Clips that are in use and decoded ahead, if the run has so many.
fn clips(config: &RunConfig, rehearsal: bool) -> u64 {
    let queue = (config.data.prefetch.max(config.train.batch) + config.train.batch) as u64;
    queue.min(clips_of_a_run(config, rehearsal))
}

/// Clips of all steps.
fn clips_of_a_run(config: &RunConfig, rehearsal: bool) -> u64 {
    let steps = if rehearsal { super::REHEARSED.min(config.train.steps) } else { config.train.steps };
    steps.saturating_mul((config.train.batch * config.train.accumulate) as u64)
}

/// Threads of a rank that decode at a time.
pub fn decoders(config: &RunConfig, rehearsal: bool) -> u64 {
    (Decoding::threads(config.data.prefetch, config.train.batch) as u64).min(clips_of_a_run(config, rehearsal))
}

/// Bytes of what a sampler keeps of the clips of a batch, of which training samples no more at once than it trains on.
fn sampler_states(config: &RunConfig, model: &ModelConfig, shape: &Shape) -> u64 {
    let sample = config.sampling();
    let states = sample.sampler.states() as u64 + u64::from(sample.guidance != 1.0);
    let clips = shape.batch.min(sample.count);
    states * 4 * (clips * (shape.rows / shape.batch) * model.patch_in()) as u64
}

/// Weights, moments, texts and a GPU's pixels.
fn state(config: &RunConfig, model: &ModelConfig, shape: &Shape, weights: &ParameterCounts) -> Vec<Part> {
    let mut parts = weights.parts(config, model, shape);
    parts.extend(of_a_step(config, model));
    if shape.gpu {
        parts.push(part("pixels of the micro-batch", config.train.batch as u64 * shape.frames));
    }
    parts
}

/// What Muon needs while it is at work on a block, or on its adapters: this rank's part before and after, the matrices
/// that it owns on their way in, orthogonal and on their way out, and the products of the largest.
fn orthogonalising(config: &RunConfig, model: &ModelConfig, weights: &ParameterCounts) -> Part {
    const NAME: &str = "matrices being orthogonalised";
    if config.train.optimizer != OptimizerKind::Muon {
        return part(NAME, 0);
    }
    let (unit, ranks, shapes) = (weights.unit as u64, config.parallel.ranks as u64, weights.muons(model));
    let most = |size: fn(&[usize; 2]) -> usize| shapes.iter().map(size).max().unwrap_or(0) as u64;
    let (short, matrix) = (most(|[rows, columns]| *rows.min(columns)), most(|[rows, columns]| rows * columns));
    let part_of_unit = if config.parallel.zero >= 1 { unit.div_ceil(ranks) } else { unit };
    let owned = unit.div_ceil(ranks).max(matrix);
    let bytes = 4 * (2 * part_of_unit + 3 * owned + 2 * matrix + 3 * short * short);
    part(NAME, bytes)
}

/// Moments and average that are out of their scratch file while the optimizer runs.
fn moments_in_flight(config: &RunConfig, model: &ModelConfig, weights: &ParameterCounts) -> Vec<Part> {
    if config.train.moments == Place::Ram {
        return vec![];
    }
    let [moments, average] = weights.moments(config, model, weights.unit);
    vec![part("moments being copied", IN_FLIGHT.min(model.num_layers + 2) as u64 * (moments + average))]
}

impl Step<'_> {
    /// A phase with what lives throughout; panels of the phases `at` are in use.
    fn phase(&self, name: &'static str, at: &[At], more: Moment) -> Phase {
        let panels = self.panels.as_ref().map(|panels| panels.parts(at)).unwrap_or_default();
        Phase { name, parts: [self.state.clone(), more, panels].concat() }
    }

    fn forward(&self) -> Vec<Phase> {
        let x = part("residual stream", self.shape.stream());
        let after = vec![
            part("output of attention", self.shape.attended() + self.shape.statistic()),
            part("next residual stream", self.shape.stream()),
            part("tile", self.tile.after[0]),
        ];
        let head = vec![x.clone(), part("its gradient", self.shape.stream()), part("tile", self.tile.head)];
        let phases = [
            (At::Embed, self.stash.idle(), vec![x.clone(), part("tile", self.tile.embed)]),
            (At::ForwardExchange, self.stash.forward(), [vec![x.clone()], self.exchange()].concat()),
            (At::ForwardAttention, self.stash.forward(), [vec![x.clone()], self.attention()].concat()),
            (At::ForwardAfter, self.stash.forward(), [vec![x], after].concat()),
            (At::Head, self.stash.head(), head),
        ];
        phases.map(|(at, stash, more)| self.phase(at.name(), &[at], [stash, more].concat())).to_vec()
    }

    /// q, k and v of the last head group are computed, and go from tokens to heads.
    fn exchange(&self) -> Moment {
        let g = &self.groups;
        let others = part("outputs of other head groups", g.done);
        most([
            vec![part("q, k, v of tokens", 3 * g.rows), part("tile", self.tile.before[0]), others.clone()],
            vec![part("q, k, v of tokens and of heads", 3 * (g.rows + g.heads)), part("messages", g.message), others],
        ])
    }

    /// The kernels run for the last head group; then the groups' outputs come side by side.
    fn attention(&self) -> Moment {
        let g = &self.groups;
        let together = if g.several { 2 * self.shape.attended() } else { 0 };
        most([
            vec![
                part("q, k, v of heads", 3 * g.heads),
                part("output and row statistic", g.forward),
                part("outputs of other head groups", g.done),
            ],
            vec![part("outputs of head groups, and together", together)],
        ])
    }

    /// The phases of a block's backward; with `again`, attention's output was not kept.
    fn backward(&self, again: bool) -> Vec<Phase> {
        let (s, g) = (self.shape, &self.groups);
        let dx = part("gradient of the stream", s.stream());
        let held = vec![dx.clone(), part("gradient of attention's output", s.attended() + s.delta())];
        let with = |more: Moment| [held.clone(), more].concat();
        let others = part("gradients of other head groups", 3 * g.done);
        let together = if g.several { 4 * s.attended() } else { 0 };
        let exchange = most([
            vec![part("q, k, v of tokens", 3 * g.rows), part("tile", self.tile.before[0])],
            vec![part("q, k, v of tokens and of heads", 3 * (g.rows + g.heads)), part("messages", g.message)],
            vec![part("q, k, v, do of heads", 4 * g.heads), part("messages", g.message)],
        ]);
        let attention = vec![part("q, k, v, do of heads", 4 * g.heads), part("dq, dk, dv of heads", g.backward)];
        let back = most([
            vec![
                part("dq, dk, dv of tokens and of heads", 3 * (g.rows + g.heads)),
                part("messages", g.message),
                others.clone(),
            ],
            vec![part("dq, dk, dv of head groups, and together", together)],
        ]);
        let before = vec![part("dq, dk, dv of tokens", 3 * s.attended()), part("tile", self.tile.before[1])];
        let mut all = vec![];
        if again {
            let first = [vec![dx.clone()], self.exchange()].concat();
            let second = [vec![dx], self.attention()].concat();
            all.push((At::AgainExchange, self.stash.taken(), first));
            all.push((At::AgainAttention, self.stash.taken(), second));
        }
        all.push((At::BackwardAfter, self.stash.backward(true), with(vec![part("tile", self.tile.after[1])])));
        for (at, more) in [
            (At::BackwardExchange, [exchange, vec![others.clone()]].concat()),
            (At::BackwardAttention, [attention, vec![others]].concat()),
            (At::BackwardReturn, back),
            (At::BackwardBefore, before),
        ] {
            all.push((at, self.stash.backward(false), with(more)));
        }
        all.into_iter().map(|(at, stash, more)| self.phase(at.name(), &[at], [stash, more].concat())).collect()
    }

    /// Sampling: a forward pass that stashes nothing, and what the sampler keeps.
    fn sampling(&self, config: &RunConfig, model: &ModelConfig) -> Moment {
        let states = if self.shape.gpu { 0 } else { sampler_states(config, model, self.shape) };
        let held = vec![part("residual stream", self.shape.stream()), part("states of the sampler", states)];
        [self.stash.idle(), held, most([self.exchange(), self.attention()])].concat()
    }
}
