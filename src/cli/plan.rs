//! `longreel plan`: what a run will need, and how long a clip could be, before anything runs. What is counted:
//! [`crate::plan`].
//!
//! `text` and `value` print what is found here, as tables and as JSON.

mod text;
mod value;

use clap::Args;
use std::path::{Path, PathBuf};

use super::machine::machine;
use crate::config::RunConfig;
use crate::data::{Apart, Decoding};
use crate::files::gib;
use crate::model::ModelConfig;
use crate::plan::search::{Change, Search};
use crate::plan::time::{Rates, Times};
use crate::plan::{self, Plan, longest, shortest};
use crate::terminal::counted;
use crate::{Result, bail};

/// Say what memory, messages and time a config's training will need, without running it.
#[derive(Debug, Args)]
pub struct PlanArgs {
    /// The run's config; its clips need not be there, but what decoding takes is only known where they are
    #[arg(value_name = "CONFIG.toml")]
    config: PathBuf,
    /// Ranks, as threads of this process; default: `parallel.ranks`
    #[arg(long, value_name = "P", value_parser = super::at_least_1)]
    ranks: Option<usize>,
    /// Memory of each rank, such as 80GiB or 500MB: says what fits, the least change of settings that does, and the
    /// longest clip
    #[arg(long, value_name = "SIZE", value_parser = size)]
    memory: Option<u64>,
    /// Override a key of the config, as in `longreel train`
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// TFLOP/s that a rank reaches; default: a share of this machine's peak, measured
    #[arg(long, value_name = "X", value_parser = positive)]
    tflops: Option<f64>,
    /// GB/s that a rank sends; default: this machine's copying of memory, measured
    #[arg(long, value_name = "GB/S", value_parser = positive)]
    bandwidth: Option<f64>,
    /// Print one line of JSON instead of tables
    #[arg(long)]
    json: bool,
}

/// The share of the peak that a step is assumed to reach where `--tflops` does not say.
const SHARE: f64 = 0.6;

/// All that is printed.
struct Found<'a> {
    config: &'a RunConfig,
    plan: Plan,
    /// What decoding takes, or why that is not known.
    decoding: std::result::Result<Decoding, String>,
    times: Times,
    /// What the times were computed from.
    basis: String,
    fit: Option<Fit>,
}

/// What `--memory` asks.
struct Fit {
    memory: u64,
    /// Single settings that lessen the need.
    singles: Vec<Change>,
    /// Where the config does not fit: the least change with its ranks; what more of them can do, alone if that is
    /// enough; and, if nothing does with its ranks, what needs least.
    least: Option<Change>,
    with_ranks: Option<Change>,
    smallest: Option<Change>,
    /// The longest clips: as the config is, and with other settings.
    longest: Option<Plan>,
    longest_changed: Option<Change>,
}

/// Runs the command.
pub fn run(args: PlanArgs) -> Result<()> {
    let mut sets = args.set.clone();
    sets.extend(args.ranks.map(|ranks| format!("parallel.ranks={ranks}")));
    let mut config = RunConfig::load(&args.config, &sets)?;
    let model = config.network()?;
    config.sample.shift = Some(config.sampling_shift()?);
    if config.vae.from.is_some() {
        config.check_channels(&model)?;
    }
    let decoding = if config.data.has_one_size() { decoding(&config) } else { decoding_of_buckets(&config, &model) };
    let config = plan::of_largest(&config, &model)?.into_owned();
    let known = decoding.as_ref().ok();
    let plan = Plan::with_decoding(&config, &model, false, known)?;
    let fit = args.memory.map(|memory| fit(&config, &model, &plan, known, memory)).transpose()?;
    let (rates, basis) = rates(&args, &config)?;
    let times = Times::new(&config, &model, &plan, rates, known, heldout_clips(&config))?;
    let found = Found { config: &config, plan, decoding, times, basis, fit };
    if args.json { super::print_json(value::line(&found)) } else { super::print(text::tables(&found)) }
}

/// What decoding the config's clips takes, or why that is not known.
fn decoding(config: &RunConfig) -> std::result::Result<Decoding, String> {
    let path = here(&config.data.path)?;
    let held_out = config.data.heldout.as_ref().map(Path::new);
    match Decoding::look(&config.data.clips(), path, &Apart::of_run(&config.run.out, held_out), true) {
        Ok(Some(decoding)) => Ok(decoding),
        Ok(None) => Err(format!("{}: no file can be used", path.display())),
        Err(e) => Err(e.to_string()),
    }
}

/// The same of a config of clips of several sizes.
fn decoding_of_buckets(config: &RunConfig, model: &ModelConfig) -> std::result::Result<Decoding, String> {
    for section in config.data.iter() {
        here(&section.path)?;
        section.heldout.as_deref().map_or(Ok(()), |path| here(path).map(drop))?;
    }
    let look = || Decoding::look_at(&config.sources(&config.clip_grid(model)?)?);
    look().map_err(|e| e.to_string())?.ok_or_else(|| "no file can be used".to_owned())
}

/// The folder of that name, if it is on this machine.
fn here(name: &str) -> std::result::Result<&Path, String> {
    match Path::new(name) {
        _ if name.starts_with("hf://") => Err(format!("{name} is not fetched for a plan")),
        path if path.exists() => Ok(path),
        path => Err(format!("{} is not there", path.display())),
    }
}

/// How many held-out clips there are, if that can be found out.
fn heldout_clips(config: &RunConfig) -> Option<usize> {
    let path = here(config.data.heldout.as_ref()?).ok()?;
    Decoding::clips(&config.data.clips(), path, &Apart::of_run(&config.run.out, None))
}

/// What of FLOP/s and messages is given, or measured on this machine.
fn rates(args: &PlanArgs, config: &RunConfig) -> Result<(Rates, String)> {
    let ranks = config.parallel.ranks as f64;
    let measured = match (args.tflops, args.bandwidth) {
        (Some(_), Some(_)) => [0.0; 2],
        _ => machine(config.train.dtype)?,
    };
    let (flops, of) = match args.tflops {
        Some(tflops) => (1e12 * tflops, format!("{tflops} TFLOP/s a rank, as given")),
        None => {
            let of = format!(
                "assuming {:.0} % of this machine's {:.1} GFLOP/s, shared by the ranks",
                100.0 * SHARE,
                measured[0] / 1e9
            );
            (SHARE * measured[0] / ranks, of)
        }
    };
    let (bandwidth, sent) = match args.bandwidth {
        Some(gb) => (1e9 * gb, format!("{gb} GB/s a rank, as given")),
        None => (measured[1] / ranks, format!("this machine's {:.1} GB/s of copying, shared", measured[1] / 1e9)),
    };
    Ok((Rates { flops, bandwidth }, format!("{of}; messages at {sent}")))
}

/// What fits into `memory` bytes a rank.
///
/// # Errors
/// Not even the shortest clip fits, whatever is set.
fn fit(config: &RunConfig, model: &ModelConfig, plan: &Plan, decoding: Option<&Decoding>, memory: u64) -> Result<Fit> {
    let search = Search::new(config, model, decoding);
    let fits = |config: &RunConfig| {
        Plan::with_decoding(config, model, false, decoding).is_ok_and(|plan| plan.per_rank() <= memory)
    };
    let plan_of = |config: RunConfig| Plan::with_decoding(&config, model, false, decoding);
    let (mut least, mut with_ranks, mut smallest) = (None, None, None);
    if plan.per_rank() > memory {
        least = search.least(memory);
        if least.is_some() {
            with_ranks = search.sharded(memory);
        } else {
            (with_ranks, smallest) = (search.with_ranks(memory), search.smallest());
        }
        if least.is_none() && with_ranks.is_none() {
            check_shortest(config, model, decoding, memory)?;
        }
    }
    let can_fit = |config: &RunConfig| Search::new(config, model, decoding).can_fit(memory);
    let longest_changed = match longest(config, model, can_fit)? {
        Some(config) => Search::new(&config, model, decoding).least(memory),
        None => None,
    };
    let longest = longest(config, model, fits)?.map(plan_of).transpose()?;
    let singles = search.singles();
    Ok(Fit { memory, singles, least, with_ranks, smallest, longest, longest_changed })
}

/// Refuses memory in which no clip fits at all, and says what is the least.
fn check_shortest(config: &RunConfig, model: &ModelConfig, decoding: Option<&Decoding>, memory: u64) -> Result<()> {
    let config = shortest(config, model)?;
    let search = Search::new(&config, model, decoding);
    if search.can_fit(memory) || search.with_ranks(memory).is_some() {
        return Ok(());
    }
    let Some(smallest) = search.smallest() else { return Ok(()) };
    bail!(
        Config,
        "--memory {} is too small for any clip of this height and width: the shortest, of {} and {}, needs {} a rank at \
         the least, with {}, and {} ranks do not fit either; take a smaller network, height or width, or more memory",
        gib(memory),
        counted(config.data.frames, "frame", "frames"),
        counted(smallest.plan.tokens, "token", "tokens"),
        gib(smallest.plan.per_rank()),
        sets(&smallest.settings),
        search.most_ranks()
    )
}

/// Settings as they are given on a command line.
fn sets(settings: &[String]) -> String {
    match settings {
        [] => "the config as it is".to_owned(),
        _ => settings.iter().map(|setting| format!("--set {setting}")).collect::<Vec<_>>().join(" "),
    }
}

/// For clap: a size in bytes, such as 80GiB.
fn size(text: &str) -> std::result::Result<u64, String> {
    let at = text.find(|c: char| c.is_ascii_alphabetic()).unwrap_or(text.len());
    let unit = match text[at..].to_ascii_lowercase().as_str() {
        "" | "b" => 1.0,
        "kib" => 1024.0,
        "mib" => f64::from(1 << 20),
        "gib" => f64::from(1 << 30),
        "tib" => 1024.0 * f64::from(1 << 30),
        "kb" => 1e3,
        "mb" => 1e6,
        "gb" => 1e9,
        "tb" => 1e12,
        _ => return Err("must be a size such as 80GiB, 500MB or a number of bytes".to_owned()),
    };
    let number = text[..at].trim().parse::<f64>().ok().filter(|n| n.is_finite() && *n > 0.0);
    number.map(|n| (n * unit) as u64).ok_or_else(|| "must be a size above 0, such as 80GiB".to_owned())
}

/// For clap: a number above 0.
fn positive(text: &str) -> std::result::Result<f64, String> {
    let number = text.parse::<f64>().ok().filter(|n| n.is_finite() && *n > 0.0);
    number.ok_or_else(|| "must be a number above 0".to_owned())
}
