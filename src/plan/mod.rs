//! What a training step needs, known before it runs: memory of each rank by phase and by component, messages,
//! operations.
//!
//! - `shape`: the sizes that everything follows from, for one rank of a config;
//! - `phases`: which buffers live together in a step; `buffers`: their bytes;
//! - [`time`]: how long a step and a run take;
//! - [`search`]: the least change of settings that fits into a memory;
//! - [`flops`]: operations and messages, which `longreel bench` counts by too.
//!
//! Sizes of packed panels, of the stash, and of splits come from the code that allocates them; the rest follows
//! src/engine/, whose order of allocations `phases` repeats: tests hold each phase against what the allocator counts.
//! `longreel train --rehearse` measures what this says. Nothing is allocated or read here.
//!
//! ```
//! use longreel::config::RunConfig;
//! use longreel::plan::Plan;
//!
//! let text = std::fs::read_to_string("configs/demo.toml")?;
//! let config = RunConfig::parse(&text, "configs/demo.toml".as_ref(), &[])?;
//! let plan = Plan::new(&config, &config.network()?, false)?;
//! assert_eq!(plan.tokens, 4 * 4 * 7);
//! println!("{} bytes a rank at the peak, {}", plan.per_rank(), plan.largest().peak().name);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

#![warn(missing_docs)]

mod buffers;
pub mod flops;
mod latents;
mod phases;
pub mod search;
mod shape;
mod texts;
pub mod time;
mod weights;

use std::borrow::Cow;

use crate::Result;
use crate::config::{Place, RunConfig};
use crate::data::Decoding;
use crate::model::{MOST_POSITIONS, ModelConfig};
use crate::vae::Space;
pub use flops::Work;
pub use latents::LatentPlan;
use phases::phases;
use shape::Shape;
pub use texts::TextPlan;
use weights::ParameterCounts;

/// Steps of a rehearsal, unless the run has fewer: what the first one leaves behind, the second one finds.
pub const REHEARSED: u64 = 2;

/// Bytes of something that lives during a phase.
#[derive(Clone, Debug, PartialEq)]
pub struct Part {
    /// What it is for.
    pub name: &'static str,
    /// How large it is.
    pub bytes: u64,
}

fn part(name: &'static str, bytes: u64) -> Part {
    Part { name, bytes }
}

/// A part of a step, with all that lives at once in it.
#[derive(Clone, Debug, PartialEq)]
pub struct Phase {
    /// When in a step.
    pub name: &'static str,
    /// All that is there at that time.
    pub parts: Vec<Part>,
}

impl Phase {
    /// Bytes of all parts.
    pub fn bytes(&self) -> u64 {
        self.parts.iter().map(|part| part.bytes).sum()
    }
}

/// What one rank needs.
#[derive(Clone, Debug)]
pub struct Rank {
    /// What is in memory in each phase of a step.
    pub phases: Vec<Phase>,
    /// Bytes of its scratch file; 0: none.
    pub disk: u64,
    /// Of a rank on a GPU, what it has in its host's memory; its phases are of the GPU's.
    pub host: Vec<Part>,
}

impl Rank {
    /// The phase that needs most.
    pub fn peak(&self) -> &Phase {
        self.phases.iter().max_by_key(|phase| phase.bytes()).expect("a step has phases")
    }
}

/// A whole run's needs.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Tokens of a clip.
    pub tokens: usize,
    /// Frames of a clip in pixels.
    pub clip_frames: usize,
    /// Parameters of the network, and of its adapters.
    pub parameters: usize,
    /// Those that are trained.
    pub trained: usize,
    /// Each rank's share.
    pub ranks: Vec<Rank>,
    /// Ranks along each axis: data, Ulysses, ring.
    pub mesh: [usize; 3],
    /// What the process has beside its ranks' buffers; on GPUs, what each has beside them, summed.
    pub process: u64,
    /// Of which FFmpeg's, while the ranks' threads decode videos.
    pub videos: u64,
    /// Whether what decoding takes is known, and counted.
    pub decoding: bool,
    /// Operations and messages of a step.
    pub work: Work,
    /// Bytes of rank 0's part of a clip, and of the whole.
    pub frames: [u64; 2],
    /// Of a run on latents, what its cache takes.
    pub latents: Option<LatentPlan>,
    /// Of a run with text, what its cache takes.
    pub texts: Option<TextPlan>,
}

/// The process's code, libraries, decoders of small clips, and freed memory that the allocator keeps in any case (at
/// most [`SPARE`]).
///
/// [`SPARE`]: crate::allocator::SPARE
const PROCESS: u64 = 66 << 20;

/// Each rank's small blocks of memory and stacks.
const SMALL: u64 = 8 << 20;

/// What CUDA, the libraries' and our kernels, and cuBLAS's workspace take of a GPU: an assumption that no run has
/// confirmed yet.
const CONTEXT: u64 = 1 << 30;

impl Plan {
    /// Without what decoding takes, see [`with_decoding`](Self::with_decoding).
    ///
    /// # Errors
    /// The clip or the ranks do not fit the network.
    pub fn new(config: &RunConfig, model: &ModelConfig, rehearsal: bool) -> Result<Self> {
        Self::with_decoding(config, model, rehearsal, None)
    }

    /// For a config whose network is `model`, and clips of which `decoding` is known; with `rehearsal`, of what
    /// `longreel train --rehearse` runs: no checkpoint and no sample.
    ///
    /// # Errors
    /// The clip or the ranks do not fit the network.
    pub fn with_decoding(
        config: &RunConfig,
        model: &ModelConfig,
        rehearsal: bool,
        decoding: Option<&Decoding>,
    ) -> Result<Self> {
        model.check()?;
        let config = &*of_largest(config, model)?;
        let data = &config.data;
        let vae = config.vae_config()?;
        let space = vae.as_ref().map_or(Space::PIXELS, |vae| vae.space());
        let size = space.size([data.frames, data.height, data.width], model.patch_size).map_err(|e| e.at("data"))?;
        let grid = model.grid(size).map_err(|e| e.at("data"))?;
        let latents = vae.as_ref().map(|vae| LatentPlan::new(config, vae, decoding));
        let encoder = config.text_config()?;
        let texts = encoder.as_ref().map(|encoder| TextPlan::new(config, encoder, decoding));
        // A run on latents decodes clips before its first step alone.
        let encoded = decoding;
        let decoding = decoding.filter(|_| vae.is_none());
        let weights = ParameterCounts::new(config, model)?;
        let threads = phases::decoders(config, rehearsal);
        let videos = decoding.map_or(0, |one| threads * one.video);
        let rank = |rank| {
            let shape = Shape::new(config, model, space, grid, rank)?;
            let mut phases = phases(config, model, &shape, &weights, rehearsal, decoding);
            if let Some(vae) = &vae {
                latents::add_phases(&mut phases, config, vae, encoded);
            }
            phases.extend(encoder.as_ref().map(texts::phase));
            let copied = shape.copied(config) * model.num_layers as u64;
            let host = phases::host(config, model, &shape, &weights, rehearsal, decoding);
            Ok(Rank { phases, disk: if config.stash.place == Place::Disk { copied } else { 0 }, host })
        };
        let ranks = (0..config.parallel.ranks).map(rank).collect::<Result<Vec<_>>>()?;
        let tokens = grid.iter().product();
        let shape = Shape::new(config, model, space, grid, 0)?;
        let mesh = [config.parallel.data, shape.ulysses, shape.ring];
        let work = Work::new(config, model, &shape, tokens, &weights);
        let count = config.parallel.ranks as u64;
        let (process, videos) = match shape.gpu {
            true => (CONTEXT * count, 0),
            false => (PROCESS + (SMALL + videos) * count, videos * count),
        };
        let frames = [shape.frames, (data.frames * data.height * data.width * 3) as u64];
        Ok(Self {
            tokens,
            clip_frames: data.frames,
            parameters: weights.all,
            trained: weights.trained,
            ranks,
            mesh,
            process,
            videos,
            decoding: decoding.is_some(),
            work,
            frames,
            latents,
            texts,
        })
    }

    /// The rank that needs most.
    pub fn largest(&self) -> &Rank {
        self.ranks.iter().max_by_key(|rank| rank.peak().bytes()).expect("there is a rank")
    }

    /// Bytes of all ranks, which are threads of one process, and what the process has once.
    pub fn total(&self) -> u64 {
        self.process + self.buffers()
    }

    /// Bytes of all ranks' buffers, at most.
    pub fn buffers(&self) -> u64 {
        self.ranks.iter().map(|rank| rank.peak().bytes()).sum::<u64>()
    }

    /// Bytes of the largest rank, with its share of what the process has once.
    pub fn per_rank(&self) -> u64 {
        self.largest().peak().bytes() + self.process / self.ranks.len() as u64
    }
}

/// The config as if all clips had the size of the largest: of several sizes it is what memory is planned for, since
/// each step takes clips of one size and its buffers are free for the next.
///
/// # Errors
/// A clip does not fit the network.
pub fn of_largest<'a>(config: &'a RunConfig, model: &ModelConfig) -> Result<Cow<'a, RunConfig>> {
    if config.data.has_one_size() {
        return Ok(Cow::Borrowed(config));
    }
    config.check_sizes(model)?;
    let grid = config.clip_grid(model)?;
    let buckets = config.data.iter().flat_map(|section| section.groups(&grid)).flatten();
    // Sizes on the grid have as many tokens as they have pixels, but for the first frame of latents.
    let largest = buckets.max_by_key(|bucket| bucket.size().iter().product::<usize>());
    Ok(largest.map_or(Cow::Borrowed(config), |bucket| Cow::Owned(config.of_size(bucket))))
}

/// The config with a clip of so many patches of frames.
fn of_patches(config: &RunConfig, model: &ModelConfig, patches: usize) -> RunConfig {
    let mut config = config.clone();
    let time = config.space().map_or(1, |space| space.time);
    config.data.frames = match time {
        1 => patches * model.patch_size[0],
        time => 1 + (patches * model.patch_size[0] - 1) * time,
    };
    config
}

/// Patches of frames that are always enough for each rank to have a token.
const SHORT: usize = 1024;

/// The patches of frames of the shortest clip that the config's ranks can share, as ranks may need more tokens than one
/// patch has.
fn fewest_patches(config: &RunConfig, model: &ModelConfig) -> Result<usize> {
    let plan = |patches| Plan::new(&of_patches(config, model, patches), model, false);
    match (1..=SHORT).find(|&patches| plan(patches).is_ok()) {
        Some(patches) => Ok(patches),
        None => plan(1).map(|_| 1),
    }
}

/// The config with the shortest clip of its height and width.
///
/// # Errors
/// The clip or the ranks do not fit the network, however long the clip is.
pub fn shortest(config: &RunConfig, model: &ModelConfig) -> Result<RunConfig> {
    Ok(of_patches(config, model, fewest_patches(config, model)?))
}

/// The config with the longest clip of its height and width of which `fits` says yes; none if it says no to the
/// shortest.
///
/// # Errors
/// As [`shortest`].
pub fn longest(
    config: &RunConfig,
    model: &ModelConfig,
    fits: impl Fn(&RunConfig) -> bool,
) -> Result<Option<RunConfig>> {
    let (mut low, mut high) = (fewest_patches(config, model)?, MOST_POSITIONS + 1);
    if !fits(&of_patches(config, model, low)) {
        return Ok(None);
    }
    while high - low > 1 {
        let middle = low + (high - low) / 2;
        if fits(&of_patches(config, model, middle)) { low = middle } else { high = middle }
    }
    Ok(Some(of_patches(config, model, low)))
}
