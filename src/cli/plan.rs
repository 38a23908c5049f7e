//! `longreel plan`: what a run will need, and how long a clip could be, before anything runs. What is counted: [`crate::plan`].

use clap::Args;
use serde_json::{Value, json};
use std::fmt::Write;
use std::path::PathBuf;

use super::bench::machine;
use crate::Result;
use crate::config::RunConfig;
use crate::files::gib;
use crate::model::ModelConfig;
use crate::plan::{Plan, alternatives, longest, network};

/// Say what memory, messages and time a config's training step will need, without running it.
#[derive(Debug, Args)]
pub struct PlanArgs {
    /// The run's config; its clips need not be there
    #[arg(value_name = "CONFIG.toml")]
    config: PathBuf,
    /// Ranks, as threads of this process; default: `parallel.ranks`
    #[arg(long, value_name = "P", value_parser = super::at_least_1)]
    ranks: Option<usize>,
    /// Memory of each rank, such as 80GiB or 500MB: says what fits, and the longest clip that does
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

/// Seconds of a step, and what they were reckoned from.
struct Time {
    seconds: f64,
    basis: String,
}

/// Runs the command.
pub fn run(args: PlanArgs) -> Result<()> {
    let mut sets = args.set.clone();
    sets.extend(args.ranks.map(|ranks| format!("parallel.ranks={ranks}")));
    let config = RunConfig::load(&args.config, &sets)?;
    let model = network(&config)?;
    let plan = Plan::new(&config, &model, false)?;
    let fitting = args.memory.map(|memory| longest(&config, &model, memory)).transpose()?;
    let time = time(&args, &config, &plan)?;
    if args.json {
        return super::print_json(as_json(&args, &plan, fitting.as_ref(), &time));
    }
    let mut text = String::new();
    tables(&mut text, &plan, &config);
    work(&mut text, &plan, &time);
    if let (Some(memory), Some(fitting)) = (args.memory, &fitting) {
        fit(&mut text, memory, (&config, &model), &plan, fitting);
    }
    super::print(text.trim_end())
}

fn time(args: &PlanArgs, config: &RunConfig, plan: &Plan) -> Result<Time> {
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
    let (bytes, sent) = match args.bandwidth {
        Some(gb) => (1e9 * gb, format!("{gb} GB/s a rank, as given")),
        None => (measured[1] / ranks, format!("this machine's {:.1} GB/s of copying, shared", measured[1] / 1e9)),
    };
    let messages: u64 = plan.work.sent.iter().map(|sent| sent.1).sum();
    let seconds = plan.work.flop.iter().sum::<f64>() / ranks / flops + messages as f64 / bytes;
    Ok(Time { seconds, basis: format!("{of}; messages at {sent}") })
}

/// The peak by component, phases, ranks and process.
fn tables(text: &mut String, plan: &Plan, config: &RunConfig) {
    let (largest, ranks) = (plan.largest(), config.parallel.ranks);
    let peak = largest.peak();
    let [data, ulysses, ring] = plan.mesh;
    let _ = writeln!(text, "{} parameters, {} tokens a clip", plan.parameters, plan.tokens);
    let _ = writeln!(text, "{ranks} ranks: data {data} x Ulysses {ulysses} x ring {ring}\n");
    let _ = writeln!(text, "{:44}{:>12}", format!("a rank's most, in \"{}\"", peak.name), "");
    for part in peak.parts.iter().filter(|part| part.bytes > 0) {
        let _ = writeln!(text, "  {:42}{:>12}", part.name, gib(part.bytes));
    }
    let _ = writeln!(text, "  {:42}{:>12}", "sum", gib(peak.bytes()));
    if largest.disk > 0 {
        let _ = writeln!(text, "  {:42}{:>12}", "scratch file, on disk", gib(largest.disk));
    }
    if !largest.host.is_empty() {
        let _ = writeln!(text, "\nof its host's memory");
        for part in largest.host.iter().filter(|part| part.bytes > 0) {
            let _ = writeln!(text, "  {:42}{:>12}", part.name, gib(part.bytes));
        }
    }
    let _ = writeln!(text, "\nphases of a step");
    for phase in &largest.phases {
        let _ = writeln!(text, "  {:42}{:>12}", phase.name, gib(phase.bytes()));
    }
    let _ = writeln!(text, "\nranks");
    for (i, rank) in plan.ranks.iter().enumerate().take(16) {
        let _ = writeln!(text, "  {:42}{:>12}", format!("rank {i}"), gib(rank.peak().bytes()));
    }
    if ranks > 16 {
        let _ = writeln!(text, "  ... {} more", ranks - 16);
    }
    let names = match largest.host.is_empty() {
        true => ["code, libraries, threads, once", "the process, all ranks being its threads"],
        false => ["CUDA and its kernels, assumed", "all GPUs"],
    };
    let _ = writeln!(text, "  {:42}{:>12}", names[0], gib(plan.process));
    let _ = writeln!(text, "  {:42}{:>12}", names[1], gib(plan.total()));
}

/// Operations, messages, time.
fn work(text: &mut String, plan: &Plan, time: &Time) {
    let [linear, attention] = plan.work.flop;
    let _ = writeln!(text, "\na step");
    for (name, flop) in [("linear layers", linear), ("attention", attention)] {
        let share = 100.0 * flop / (linear + attention);
        let _ = writeln!(text, "  {name:42}{:>12} {share:5.1} %", format!("{:.3} TFLOP", flop / 1e12));
    }
    for (name, bytes) in &plan.work.sent {
        let _ = writeln!(text, "  {:50}{:>12}", format!("sent a rank: {name}"), gib(*bytes));
    }
    let _ = writeln!(text, "  {:42}{:>12}", "time, about", format!("{:.2} s", time.seconds));
    let _ = writeln!(text, "  ({})", time.basis);
}

/// What fits, what would change it, and the longest clip.
fn fit(text: &mut String, memory: u64, (config, model): (&RunConfig, &ModelConfig), plan: &Plan, longest: &Plan) {
    let needs = plan.per_rank();
    let verdict = if needs <= memory { "fits".to_owned() } else { format!("is {} too much", gib(needs - memory)) };
    let _ = writeln!(text, "\n{} a rank {verdict} with --memory {}; what would change it:", gib(needs), gib(memory));
    let mut others = alternatives(config, model);
    others.retain(|(_, other)| other.per_rank() < needs);
    others.sort_by_key(|(_, other)| other.per_rank());
    for (name, other) in &others {
        let fits = if other.per_rank() <= memory { "fits" } else { "" };
        let _ = writeln!(text, "  {name:52}{:>12} {fits}", gib(other.per_rank()));
    }
    let grid = longest.tokens;
    let frames = grid / (plan.tokens / (config.data.frames / model.patch_size[0])) * model.patch_size[0];
    let _ = writeln!(text, "\nlongest clip of this height and width that fits: {frames} frames, {grid} tokens");
}

fn as_json(args: &PlanArgs, plan: &Plan, longest: Option<&Plan>, time: &Time) -> Value {
    let parts = |phase: &crate::plan::Phase| -> Value {
        phase
            .parts
            .iter()
            .map(|part| (part.name.to_owned(), json!(part.bytes)))
            .collect::<serde_json::Map<_, _>>()
            .into()
    };
    let largest = plan.largest();
    let phases =
        largest.phases.iter().map(|phase| json!({"name": phase.name, "bytes": phase.bytes(), "parts": parts(phase)}));
    json!({
        "tokens": plan.tokens,
        "parameters": plan.parameters,
        "mesh": {"data": plan.mesh[0], "ulysses": plan.mesh[1], "ring": plan.mesh[2]},
        "peak": largest.peak().name,
        "phases": phases.collect::<Vec<_>>(),
        "ranks": plan.ranks.iter().map(|rank| rank.peak().bytes()).collect::<Vec<_>>(),
        "disk": plan.ranks.iter().map(|rank| rank.disk).collect::<Vec<_>>(),
        "host": largest.host.iter().map(|part| (part.name.to_owned(), json!(part.bytes))).collect::<serde_json::Map<_, _>>(),
        "process": plan.total(),
        "per_rank": plan.per_rank(),
        "memory": args.memory,
        "fits": args.memory.map(|memory| plan.per_rank() <= memory),
        "longest_tokens": longest.map(|plan| plan.tokens),
        "flop": {"linear": plan.work.flop[0], "attention": plan.work.flop[1]},
        "sent": plan.work.sent.iter().map(|(name, bytes)| json!({"name": name, "bytes": bytes})).collect::<Vec<_>>(),
        "seconds": time.seconds,
        "basis": time.basis,
    })
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
