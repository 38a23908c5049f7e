//! Prints a plan as tables.

use std::fmt::Write;

use super::{Fit, Found, sets};
use crate::data::Decoding;
use crate::files::{file_size, gib};
use crate::plan::Plan;
use crate::plan::search::Change;
use crate::plan::time::{DISK, words};
use crate::terminal::counted;

/// All of it.
pub fn tables(found: &Found) -> String {
    let mut text = String::new();
    memory(&mut text, found);
    work(&mut text, found);
    run(&mut text, found);
    if let Some(fit) = &found.fit {
        fitting(&mut text, found, fit);
    }
    text.trim_end().to_owned()
}

fn row(text: &mut String, name: &str, value: &str) {
    let _ = writeln!(text, "  {name:42}{value:>12}");
}

/// The peak by component, phases, ranks and process.
fn memory(text: &mut String, found: &Found) {
    let (plan, config) = (&found.plan, found.config);
    let (largest, ranks) = (plan.largest(), config.parallel.ranks);
    let peak = largest.peak();
    let [data, ulysses, ring] = plan.mesh;
    let tokens = counted(plan.tokens, "token", "tokens");
    let trained = if plan.trained < plan.parameters { format!(" ({} trained)", plan.trained) } else { String::new() };
    let _ = writeln!(text, "{} parameters{trained}, {tokens} a clip", plan.parameters);
    let counted_ranks = counted(ranks, "rank", "ranks");
    let _ = writeln!(text, "{counted_ranks}: data {data} x Ulysses {ulysses} x ring {ring}\n");
    let _ = writeln!(text, "{:44}{:>12}", format!("a rank's most, in \"{}\"", peak.name), "");
    for part in peak.parts.iter().filter(|part| part.bytes > 0) {
        row(text, part.name, &gib(part.bytes));
    }
    row(text, "sum", &gib(peak.bytes()));
    if largest.disk > 0 {
        row(text, "scratch file, on disk", &gib(largest.disk));
    }
    if !largest.host.is_empty() {
        let _ = writeln!(text, "\nof its host's memory");
        for part in largest.host.iter().filter(|part| part.bytes > 0) {
            row(text, part.name, &gib(part.bytes));
        }
    }
    let _ = writeln!(text, "\nphases of a step");
    for phase in &largest.phases {
        row(text, phase.name, &gib(phase.bytes()));
    }
    let _ = writeln!(text, "\nranks");
    for (i, rank) in plan.ranks.iter().enumerate().take(16) {
        row(text, &format!("rank {i}"), &gib(rank.peak().bytes()));
    }
    if ranks > 16 {
        let _ = writeln!(text, "  ... {} more", ranks - 16);
    }
    let names = match largest.host.is_empty() {
        true => ["code, libraries, threads, once", "the process, all ranks being its threads"],
        false => ["CUDA and its kernels, assumed", "all GPUs"],
    };
    if plan.videos > 0 {
        row(text, "videos being decoded, all ranks", &gib(plan.videos));
    }
    row(text, names[0], &gib(plan.process - plan.videos));
    row(text, names[1], &gib(plan.total()));
    let _ = match &found.decoding {
        Ok(decoding) => {
            let [looked_at, all] = decoding.files;
            let threads = counted(Decoding::threads(config.data.prefetch, config.train.batch), "thread", "threads");
            let all = counted(all, "file", "files");
            writeln!(text, "  (decoding: {threads} a rank; {looked_at} of {all} looked at)")
        }
        Err(why) => writeln!(text, "  (decoding is not counted: {why})"),
    };
}

/// Operations, messages, time of a step.
fn work(text: &mut String, found: &Found) {
    let [linear, attention] = found.plan.work.flop;
    let _ = writeln!(text, "\na step");
    for (name, flop) in [("linear layers", linear), ("attention", attention)] {
        let share = 100.0 * flop / (linear + attention);
        let _ = writeln!(text, "  {name:42}{:>12} {share:5.1} %", format!("{:.3} TFLOP", flop / 1e12));
    }
    for (name, bytes) in &found.plan.work.sent {
        let _ = writeln!(text, "  {:50}{:>12}", format!("sent a rank: {name}"), gib(*bytes));
    }
    row(text, "time, about", &words(found.times.step));
    if let Some(decoding) = found.times.decoding {
        row(text, "decoding its clips, beside it, about", &words(decoding));
    }
    if found.times.waits() {
        let _ = writeln!(text, "  decoding takes longer than the step: training waits for clips");
    }
    let _ = writeln!(text, "  ({})", found.basis);
}

/// Time of the whole run.
fn run(text: &mut String, found: &Found) {
    let (times, train) = (&found.times, &found.config.train);
    let _ = writeln!(text, "\nthe run");
    if let Some(latents) = &found.plan.latents {
        let clips = latents.clips.map_or("unknown clips".to_owned(), |clips| counted(clips as usize, "clip", "clips"));
        let bytes = latents.total().map_or(String::new(), |bytes| format!(", {} in the cache", file_size(bytes)));
        let time = times.encoding.map_or("not counted".to_owned(), words);
        row(text, &format!("encoding {clips}{bytes}"), &time);
    }
    if let Some(texts) = &found.plan.texts {
        let count = texts.texts.map_or("unknown texts".to_owned(), |texts| counted(texts as usize, "text", "texts"));
        let bytes = texts.total().map_or(String::new(), |bytes| format!(", {} in the cache", file_size(bytes)));
        let time = times.embedding.map_or("not counted".to_owned(), words);
        row(text, &format!("embedding {count}{bytes}"), &time);
    }
    row(text, &counted(train.steps, "step", "steps"), &words(times.steps));
    match times.heldout {
        Some(0.0) => {}
        Some(seconds) => row(text, "held-out losses", &words(seconds)),
        None => row(text, "held-out losses, of unknown clips", "not counted"),
    }
    if times.samples > 0.0 {
        row(text, "samples", &words(times.samples));
    }
    row(text, &format!("checkpoints, at {} MB/s", DISK / 1e6), &words(times.checkpoints));
    row(text, "time, about", &words(times.run()));
}

/// What fits, what would change it, and the longest clip.
fn fitting(text: &mut String, found: &Found, fit: &Fit) {
    let (needs, memory) = (found.plan.per_rank(), fit.memory);
    let fits = needs <= memory;
    let verdict = if fits { "fits".to_owned() } else { format!("is {} too much", gib(needs - memory)) };
    let _ = writeln!(text, "\n{} a rank {verdict} with --memory {}; what would change it:", gib(needs), gib(memory));
    for change in &fit.singles {
        let fits = if change.plan.per_rank() <= memory { "fits" } else { "" };
        let _ = writeln!(text, "  {:52}{:>12} {fits}", change.settings.join(" "), gib(change.plan.per_rank()));
    }
    if !fits {
        least(text, fit);
    }
    let _ = writeln!(text);
    let clip = |plan: &Plan| {
        let frames = counted(plan.clip_frames, "frame", "frames");
        format!("{frames}, {}", counted(plan.tokens, "token", "tokens"))
    };
    let what = "longest clip of this height and width that fits";
    let _ = match &fit.longest {
        Some(plan) => writeln!(text, "{what}: {}", clip(plan)),
        None => writeln!(text, "no clip of this height and width fits as the config is"),
    };
    if let Some(change) = fit.longest_changed.as_ref().filter(|change| !change.settings.is_empty()) {
        let _ =
            writeln!(text, "{what} with other settings: {}, with\n  {}", clip(&change.plan), sets(&change.settings));
    }
}

fn least(text: &mut String, fit: &Fit) {
    let mut change = |what: &str, change: &Change| {
        let _ = writeln!(text, "{what}\n  {}", sets(&change.settings));
        let (each, ranks) = (gib(change.plan.per_rank()), change.plan.ranks.len());
        let _ = match ranks {
            1 => writeln!(text, "  needs {each}"),
            _ => writeln!(
                text,
                "  needs {each} a rank, {} if all {ranks} ranks are on one machine",
                gib(change.plan.total())
            ),
        };
    };
    match (&fit.least, &fit.smallest) {
        (Some(least), _) => change("\nthe least change that fits:", least),
        (None, Some(smallest)) => {
            change("\nno setting makes this clip fit with these ranks; the least need is with", smallest)
        }
        _ => {}
    }
    if let Some(with_ranks) = &fit.with_ranks {
        change(&format!("with more ranks, each of which has {}:", gib(fit.memory)), with_ranks);
    }
}
