//! What a training step needs, known before it runs: memory of each rank by phase and by component, messages, operations.
//!
//! - `shape`: the sizes that everything follows from, for one rank of a config;
//! - `phases`: which buffers live together in a step; `buffers`: their bytes;
//! - `work`: operations and messages;
//! - [`flop`]: operations of single parts, which `longreel bench` counts by too.
//!
//! Sizes of packed panels, of the stash, and of splits come from the code that allocates them; the rest follows src/engine/, whose
//! order of allocations `phases` repeats: tests hold each phase against what the allocator counts. `longreel train --rehearse` measures what this says. Nothing is allocated or read here.

mod buffers;
pub mod flop;
mod phases;
mod shape;
mod work;

use crate::config::{Compute, Place, RunConfig};
use crate::files::gib;
use crate::model::ModelConfig;
use crate::model::folder::read_config;
use crate::{Result, bail};
use phases::phases;
use shape::Shape;
pub use work::Work;

/// Bytes of something that lives during a phase.
#[derive(Clone, Debug, PartialEq)]
pub struct Part {
    pub name: &'static str,
    pub bytes: u64,
}

fn part(name: &'static str, bytes: u64) -> Part {
    Part { name, bytes }
}

/// A part of a step, with all that lives at once in it.
#[derive(Clone, Debug, PartialEq)]
pub struct Phase {
    pub name: &'static str,
    pub parts: Vec<Part>,
}

impl Phase {
    pub fn bytes(&self) -> u64 {
        self.parts.iter().map(|part| part.bytes).sum()
    }
}

/// What one rank needs.
#[derive(Clone, Debug)]
pub struct Rank {
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
    pub parameters: usize,
    pub ranks: Vec<Rank>,
    /// Ranks along each axis: data, Ulysses, ring.
    pub mesh: [usize; 3],
    /// What the process has beside its ranks' buffers; on GPUs, what each has beside them, summed.
    pub process: u64,
    pub work: Work,
}

/// The process's code, libraries, decoders, and freed memory that the allocator keeps in any case (at most [`SPARE`]).
///
/// [`SPARE`]: crate::allocator::SPARE
const PROCESS: u64 = 72 << 20;

/// Each rank's small blocks of memory and stacks.
const SMALL: u64 = 8 << 20;

/// What CUDA, the libraries' and our kernels, and cuBLAS's workspace take of a GPU: an assumption that no run has confirmed yet.
const CONTEXT: u64 = 1 << 30;

impl Plan {
    /// For a config whose network is `model`; with `rehearsal`, of what `longreel train --rehearse` runs: no checkpoint and no sample.
    ///
    /// # Errors
    /// The clip or the ranks do not fit the network.
    pub fn new(config: &RunConfig, model: &ModelConfig, rehearsal: bool) -> Result<Self> {
        model.check()?;
        let data = &config.data;
        let grid = model.grid([data.frames, data.height, data.width]).map_err(|e| e.at("data"))?;
        let parameters = crate::model::Model::count_of(model);
        let rank = |rank| {
            let shape = Shape::new(config, model, grid, rank)?;
            let phases = phases(config, model, &shape, parameters, rehearsal);
            let copied = shape.copied(config) * model.num_layers as u64;
            let host = phases::host(config, model, &shape, parameters);
            Ok(Rank { phases, disk: if config.stash.place == Place::Disk { copied } else { 0 }, host })
        };
        let ranks = (0..config.parallel.ranks).map(rank).collect::<Result<Vec<_>>>()?;
        let tokens = grid.iter().product();
        let shape = Shape::new(config, model, grid, 0)?;
        let mesh = [config.parallel.data, shape.ulysses, shape.ring];
        let work = Work::new(config, model, &shape, tokens, parameters);
        let process = match shape.gpu {
            true => CONTEXT * config.parallel.ranks as u64,
            false => PROCESS + SMALL * config.parallel.ranks as u64,
        };
        Ok(Self { tokens, parameters, ranks, mesh, process, work })
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

/// The network of a config: the sizes it names, or the config.json of the folder that it names. No weights are read.
pub fn network(config: &RunConfig) -> Result<ModelConfig> {
    let Some(from) = &config.model.from else { return Ok(crate::train::job::network(config)) };
    let path = crate::train::named::NamedModel::find(&crate::hub::resolve(from)?)?.dir.join("config.json");
    let json = read_config(&path).map_err(|e| e.at("model.from"))?;
    ModelConfig::from_json(&json).map_err(|e| e.at(path.display()))
}

/// The most frames of the config's clip for which a rank needs at most `memory` bytes.
///
/// # Errors
/// Not even the shortest clip fits.
pub fn longest(config: &RunConfig, model: &ModelConfig, memory: u64) -> Result<Plan> {
    let step = model.patch_size[0];
    let plan = |patches: usize| {
        let mut config = config.clone();
        config.data.frames = patches * step;
        Plan::new(&config, model, false)
    };
    let fits = |patches| plan(patches).is_ok_and(|plan| plan.per_rank() <= memory);
    // Ranks may need more tokens than one patch of frames has: a plan of the shortest clip that can be shared at all.
    let Some(mut low) = (1..=model.rope_max_seq_len).find(|&n| plan(n).is_ok()) else { return plan(1) };
    if !fits(low) {
        let shortest = plan(low)?;
        let (has, needs) = (gib(memory), gib(shortest.per_rank()));
        bail!(
            "--memory {has} is too small for any clip of this height and width: the shortest, of {} frames and {} tokens, needs \
             {needs} a rank; take a smaller network, height or width, more memory, or more ranks",
            low * step,
            shortest.tokens
        )
    }
    let mut high = model.rope_max_seq_len + 1;
    while high - low > 1 {
        let middle = low + (high - low) / 2;
        if fits(middle) { low = middle } else { high = middle }
    }
    plan(low)
}

/// Settings that would change the need: what to set, and the plan with it.
pub fn alternatives(config: &RunConfig, model: &ModelConfig) -> Vec<(String, Plan)> {
    let mut found = vec![];
    let mut add = |name: &str, change: &dyn Fn(&mut RunConfig)| {
        let mut changed = config.clone();
        change(&mut changed);
        if changed != *config
            && let Ok(plan) = Plan::new(&changed, model, false)
        {
            found.push((name.to_owned(), plan));
        }
    };
    add("stash.where = \"disk\"", &|c| c.stash.place = Place::Disk);
    add("stash.dtype = \"bf16\"", &|c| c.stash.dtype = Compute::Bf16);
    add("stash.keep_attention = false", &|c| c.stash.keep_attention = false);
    let groups = (2 * config.parallel.head_groups).min(model.num_attention_heads);
    add(&format!("parallel.head_groups = {groups}"), &|c| c.parallel.head_groups = groups);
    add("stash.where = \"disk\" and these head groups", &|c| {
        (c.stash.place, c.parallel.head_groups) = (Place::Disk, groups)
    });
    let tile = crate::engine::tile_rows(config.train.tile, model.ffn_dim, config.train.device);
    add(&format!("train.tile = {}", tile.div_ceil(2)), &|c| c.train.tile = tile.div_ceil(2));
    if config.train.batch > 1 {
        add("train.batch = 1", &|c| c.train.batch = 1);
    }
    let ranks = 2 * config.parallel.ranks;
    add(&format!("parallel.ranks = {ranks}"), &|c| c.parallel.ranks = ranks);
    found
}
