//! Finds the least change of settings that makes a step fit into a memory.
//!
//! Each kind of setting is an axis with its choices; a combination takes one choice of each, or none. What a kind costs
//! is its place in [`axes`]: first those that cost next to no time. Of combinations the one whose dearest kind is the
//! cheapest comes first, of those the one of fewest settings, of those the one whose kinds and choices are the
//! cheapest.

use super::Plan;
use crate::Result;
use crate::config::{Compute, Place, RunConfig};
use crate::data::Decoding;
use crate::engine::tile_rows;
use crate::model::ModelConfig;

/// Ranks are doubled up to so many times.
const DOUBLINGS: usize = 7;

/// A need that differs by less than this part is the same.
const NEARLY: u64 = 1000;

/// Settings that differ from a config's, as `--set` takes them, and the plan with them.
#[derive(Clone, Debug)]
pub struct Change {
    /// What to write on a command line, as `key=value`.
    pub settings: Vec<String>,
    /// The config with it.
    pub config: RunConfig,
    /// What that needs.
    pub plan: Plan,
}

/// One value of a setting: in words, and as a change of a config.
struct Choice {
    words: Vec<String>,
    change: Box<dyn Fn(&mut RunConfig)>,
}

impl Choice {
    fn new(words: &[String], change: impl Fn(&mut RunConfig) + 'static) -> Self {
        Self { words: words.to_vec(), change: Box::new(change) }
    }
}

/// The kinds of settings in the order of what they cost, each with its choices from the cheapest on.
fn axes(config: &RunConfig, model: &ModelConfig) -> Vec<Vec<Choice>> {
    let (train, parallel, stash) = (&config.train, &config.parallel, &config.stash);
    let set = |key: &str, value: String| format!("{key}={value}");

    // The same clips a step, in more parts.
    let mut batch = vec![];
    if train.batch > 1 {
        let accumulate = train.accumulate * train.batch;
        let words = [set("train.batch", "1".into()), set("train.accumulate", accumulate.to_string())];
        batch.push(Choice::new(&words, move |c| (c.train.batch, c.train.accumulate) = (1, accumulate)));
    }
    let rows = tile_rows(train.tile, model.ffn_dim, train.device);
    let tiles = [2, 4].map(|part| rows.div_ceil(part)).into_iter().filter(|&tile| tile >= 64);
    let tiles = tiles.map(|n| Choice::new(&[set("train.tile", n.to_string())], move |c| c.train.tile = n)).collect();
    // q, k and v of all heads are computed for each group.
    let groups = (1..).map(|n| parallel.head_groups << n).take_while(|&n| n <= model.num_attention_heads);
    let groups = groups
        .map(|n| Choice::new(&[set("parallel.head_groups", n.to_string())], move |c| c.parallel.head_groups = n))
        .collect();
    let mut prefetch = vec![];
    if config.data.prefetch > 1 {
        prefetch.push(Choice::new(&[set("data.prefetch", "1".into())], |c| c.data.prefetch = 1));
    }
    let (mut rounded, mut disk) = (vec![], vec![]);
    if stash.place == Place::Ram {
        if stash.dtype == Compute::F32 {
            rounded.push(Choice::new(&[set("stash.dtype", "bf16".into())], |c| c.stash.dtype = Compute::Bf16));
        }
        disk.push(Choice::new(&[set("stash.where", "disk".into())], |c| c.stash.place = Place::Disk));
    }
    let stages = parallel.zero + 1..=3;
    let zero =
        stages.map(|n| Choice::new(&[set("parallel.zero", n.to_string())], move |c| c.parallel.zero = n)).collect();
    let mut moments = vec![];
    if train.moments == Place::Ram {
        moments.push(Choice::new(&[set("train.moments", "disk".into())], |c| c.train.moments = Place::Disk));
    }
    let mut again = vec![];
    if stash.keep_attention {
        again.push(Choice::new(&[set("stash.keep_attention", "false".into())], |c| c.stash.keep_attention = false));
    }
    let ranks = (1..=DOUBLINGS).map(|n| parallel.ranks << n);
    let ranks =
        ranks.map(|n| Choice::new(&[set("parallel.ranks", n.to_string())], move |c| c.parallel.ranks = n)).collect();
    vec![batch, tiles, groups, prefetch, rounded, disk, zero, moments, again, ranks]
}

/// Where some of the kinds stand.
const GROUPS: usize = 2;
const ROUNDED: usize = 4;
const DISK: usize = 5;
const ZERO: usize = 6;
const AGAIN: usize = 8;
const RANKS: usize = 9;

/// The search for one config and network.
pub struct Search<'a> {
    config: &'a RunConfig,
    model: &'a ModelConfig,
    decoding: Option<&'a Decoding>,
    axes: Vec<Vec<Choice>>,
    /// Combinations with the config's number of ranks, the least change first: for each kind 0, or a choice's number
    /// from 1 on.
    combinations: Vec<Vec<usize>>,
}

impl<'a> Search<'a> {
    /// For a config whose network is `model`, and clips of which `decoding` is known.
    pub fn new(config: &'a RunConfig, model: &'a ModelConfig, decoding: Option<&'a Decoding>) -> Self {
        let axes = axes(config, model);
        let mut combinations = vec![vec![]];
        for (kind, choices) in axes[..RANKS].iter().enumerate() {
            let known = match kind {
                ZERO if config.parallel.ranks == 1 => 0, // one rank has nothing to shard with; more ranks add the stages again
                _ => choices.len(),
            };
            combinations = combinations
                .into_iter()
                .flat_map(|chosen| (0..=known).map(move |choice| [chosen.clone(), vec![choice]].concat()))
                .collect();
        }
        combinations.retain(|chosen| chosen[ROUNDED] == 0 || chosen[DISK] == 0); // rounding makes the file smaller, not the memory
        combinations.sort_by_cached_key(|chosen| cost(chosen));
        Self { config, model, decoding, axes, combinations }
    }

    /// The least change with which a rank needs at most `memory` bytes, the config's number of ranks being as it is.
    pub fn least(&self, memory: u64) -> Option<Change> {
        self.combinations.iter().find_map(|chosen| self.fitting(chosen, memory))
    }

    /// The same with as few more ranks as possible, each of which has so much memory.
    pub fn with_ranks(&self, memory: u64) -> Option<Change> {
        let mut all = self.combinations.clone();
        if self.config.parallel.ranks == 1 {
            for stage in 1..=self.axes[ZERO].len() {
                all.extend(self.combinations.iter().map(|chosen| with(chosen, ZERO, stage)));
            }
            all.sort_by_cached_key(|chosen| cost(chosen));
        }
        let fits = |chosen: &Vec<usize>, ranks| self.fitting(&[chosen.as_slice(), &[ranks]].concat(), memory);
        (1..=self.axes[RANKS].len()).find_map(|ranks| {
            // Where not even everything together is enough, nothing else is tried: there are thousands of combinations.
            self.extremes().find_map(|chosen| fits(&chosen, ranks))?;
            all.iter().find_map(|chosen| fits(chosen, ranks))
        })
    }

    /// The fewest more ranks that are enough without any other setting but ZeRO's stage.
    pub fn sharded(&self, memory: u64) -> Option<Change> {
        let stages = 0..=self.axes[ZERO].len();
        let mut all = (1..=self.axes[RANKS].len()).flat_map(|ranks| stages.clone().map(move |stage| (ranks, stage)));
        all.find_map(|(ranks, stage)| self.fitting(&with(&with(&[0; RANKS + 1], ZERO, stage), RANKS, ranks), memory))
    }

    /// The most ranks that are tried.
    pub fn most_ranks(&self) -> usize {
        self.config.parallel.ranks << self.axes[RANKS].len()
    }

    /// The change that leaves the least need, with the config's number of ranks.
    pub fn smallest(&self) -> Option<Change> {
        let need = |chosen: &Vec<usize>| self.changed(chosen).ok().map(|change| change.plan.per_rank());
        let least = self.combinations.iter().filter_map(need).min()?;
        self.least(least + least / NEARLY) // the last few bytes are worth no setting
    }

    /// Whether some combination with the config's number of ranks needs at most `memory` bytes a rank.
    pub fn can_fit(&self, memory: u64) -> bool {
        self.extremes().any(|chosen| self.fitting(&chosen, memory).is_some())
    }

    /// Each setting alone that lessens a rank's need, the smallest need first; of more ranks, twice as many.
    pub fn singles(&self) -> Vec<Change> {
        let now = self.changed(&[]).map_or(u64::MAX, |change| change.plan.per_rank());
        let mut all = vec![];
        for (kind, choices) in self.axes.iter().enumerate() {
            let many = if kind == RANKS { 1 } else { choices.len() };
            all.extend(
                (1..=many.min(choices.len()))
                    .filter_map(|choice| self.changed(&with(&[0; RANKS + 1], kind, choice)).ok()),
            );
        }
        all.retain(|change| change.plan.per_rank() < now - now / NEARLY);
        all.sort_by_key(|change| change.plan.per_rank());
        all
    }

    /// Combinations of which one needs next to the least: everything that can be set is, but for the stash, in all its
    /// forms, and head groups, of which ranks may not allow as many.
    fn extremes(&self) -> impl Iterator<Item = Vec<usize>> + '_ {
        let most: Vec<usize> = self.axes[..RANKS].iter().map(Vec::len).collect();
        let forms =
            [[0, 0], [1, 0], [0, 1]].into_iter().flat_map(|[rounded, disk]| [0, 1].map(|again| [rounded, disk, again]));
        let all = forms.flat_map(move |form| (0..=most[GROUPS]).map(move |groups| (form, groups)));
        let most: Vec<usize> = self.axes[..RANKS].iter().map(Vec::len).collect();
        all.map(move |([rounded, disk, again], groups)| {
            let mut chosen = most.clone();
            for (kind, wanted) in [(ROUNDED, rounded), (DISK, disk), (AGAIN, again), (GROUPS, groups)] {
                chosen[kind] = wanted.min(chosen[kind]);
            }
            chosen
        })
    }

    fn fitting(&self, chosen: &[usize], memory: u64) -> Option<Change> {
        self.changed(chosen).ok().filter(|change| change.plan.per_rank() <= memory)
    }

    fn changed(&self, chosen: &[usize]) -> Result<Change> {
        let (mut config, mut settings) = (self.config.clone(), vec![]);
        for (choices, &chosen) in self.axes.iter().zip(chosen) {
            if let Some(choice) = chosen.checked_sub(1).map(|i| &choices[i]) {
                (choice.change)(&mut config);
                settings.extend(choice.words.iter().cloned());
            }
        }
        let plan = Plan::with_decoding(&config, self.model, false, self.decoding)?;
        Ok(Change { settings, config, plan })
    }
}

fn with(chosen: &[usize], kind: usize, choice: usize) -> Vec<usize> {
    let mut chosen = chosen.to_vec();
    chosen[kind] = choice;
    chosen
}

/// What combinations are ordered by: the dearest kind, the number of settings, then choices from the dearest kind on.
fn cost(chosen: &[usize]) -> (usize, usize, Vec<usize>) {
    let dearest = chosen.iter().rposition(|&choice| choice > 0).map_or(0, |kind| kind + 1);
    let count = chosen.iter().filter(|&&choice| choice > 0).count();
    (dearest, count, chosen.iter().rev().copied().collect())
}
