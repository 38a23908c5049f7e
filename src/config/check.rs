//! Which values are allowed: every rule that a config alone can break, in one place, in the order of the sections.
//!
//! Not here: what depends on files (is the folder there, are there enough clips), on a checkpoint, or on the machine.

use super::choices::Label;
use super::data::{Data, DataSections};
use super::lora;
use super::run::{Model, Parallel, RunConfig, Sample, Text, Train, Vae};
use crate::data::{ClipGrid, Crop};
use crate::diffusion::DiffusionOptions;
use crate::engine::stash::StashOptions;
use std::collections::BTreeSet;
use std::fmt::{self, Debug, Display};

/// Sizes beyond this are taken for typing errors; products of several of them still fit a usize.
const HUGE: usize = 1 << 20;

/// A value that is not allowed.
pub(super) struct Problem {
    /// `section.key`.
    pub key: &'static str,
    /// Of sections that are repeated, which one, from 0.
    pub section: usize,
    value: String,
    allowed: String,
}

impl Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "{} = {}: {}", self.key, self.value, self.allowed)
    }
}

/// What is wrong with the value of `key`.
pub(super) fn problem(key: &'static str, value: impl Debug, allowed: &str) -> Problem {
    Problem { key, section: 0, value: format!("{value:?}"), allowed: allowed.to_owned() }
}

impl Problem {
    /// The same of section number `section`, from 0.
    pub fn of_section(self, section: usize) -> Self {
        Self { section, ..self }
    }
}

pub(super) type Checked = Result<(), Problem>;

/// Checks all sections.
pub(super) fn check(config: &RunConfig) -> Checked {
    let out = &config.run.out;
    ensure(!out.as_os_str().is_empty(), "run.out", out, "must name a folder")?;
    ensure(i64::try_from(config.run.seed).is_ok(), "run.seed", config.run.seed, "must be below 2^63, TOML's limit")?;
    for (section, number) in config.data.iter().zip(0..) {
        data(section).map_err(|problem| problem.of_section(number))?;
        of_the_run(section, &config.data).map_err(|problem| problem.of_section(number))?;
    }
    model(&config.model, &config.data, &config.vae)?;
    lora::check(config)?;
    vae(&config.vae, &config.data)?;
    text(&config.text)?;
    diffusion(&config.diffusion)?;
    train(&config.train)?;
    parallel(&config.parallel)?;
    stash(&config.stash)?;
    sample(&config.sample, &config.text)
}

fn data(c: &Data) -> Checked {
    ensure(!c.path.is_empty(), "data.path", &c.path, "must name a folder, or hf://owner/name")?;
    if let Some(heldout) = &c.heldout {
        ensure(!heldout.is_empty(), "data.heldout", heldout, "must name a folder; leave the key out for none")?;
    }
    sizes(c)?;
    size("data.stride", c.stride)?;
    let allowed = "must be in 1..=1048576; to leave a folder out, leave its section out";
    ensure((1..=HUGE).contains(&c.repeats), "data.repeats", c.repeats, allowed)?;
    if let Some(class) = &c.class {
        ensure(!class.is_empty(), "data.class", class, "must name a class; leave the key out for none")?;
        let allowed = "is the class of all clips, and data.label = \"folder\" gives each its folder's: choose one";
        ensure(c.label == Label::None, "data.class", class, allowed)?;
    }
    if let Some(fps) = c.fps {
        ensure(
            fps.is_finite() && fps > 0.0,
            "data.fps",
            fps,
            "must be above 0; leave the key out for the source's own",
        )?;
    }
    ensure((1..=1024).contains(&c.prefetch), "data.prefetch", c.prefetch, "must be in 1..=1024")
}

/// Clips have one size, or sizes by hand, or by area.
fn sizes(c: &Data) -> Checked {
    let one = [("data.frames", c.frames), ("data.height", c.height), ("data.width", c.width)];
    if c.buckets.is_empty() && c.resolutions.is_empty() {
        let allowed = "goes with data.resolutions; for clips of one size say data.frames, for several data.buckets";
        ensure(c.frame_counts.is_empty(), "data.frame_counts", &c.frame_counts, allowed)?;
        return one.into_iter().try_for_each(|(key, value)| size(key, value));
    }
    let instead = if c.buckets.is_empty() { "data.resolutions" } else { "data.buckets" };
    for (key, value) in one {
        ensure(value == 0, key, value, &format!("must be left out where {instead} gives clips their sizes"))?;
    }
    if !c.buckets.is_empty() {
        let allowed = "must be left out where data.buckets gives clips their sizes";
        ensure(c.resolutions.is_empty(), "data.resolutions", &c.resolutions, allowed)?;
        ensure(c.frame_counts.is_empty(), "data.frame_counts", &c.frame_counts, allowed)?;
        let allowed = "must be sizes [width, height, frames], each of 1..=1048576";
        return ensure(in_range(c.buckets.iter().flatten()), "data.buckets", &c.buckets, allowed);
    }
    ensure(in_range(&c.resolutions), "data.resolutions", &c.resolutions, "must be sides in 1..=1048576")?;
    let allowed = "must be the frames that clips may have, such as [1, 17, 33]; 1 is for images";
    ensure(!c.frame_counts.is_empty() && in_range(&c.frame_counts), "data.frame_counts", &c.frame_counts, allowed)?;
    ensure((1..=1024).contains(&c.aspects), "data.aspects", c.aspects, "must be in 1..=1024")?;
    let [low, high] = c.aspect_range;
    let allowed = "must be two ratios of width over height, of 0.01 to 100, the lower first";
    ensure(0.01 <= low && low <= high && high <= 100.0, "data.aspect_range", c.aspect_range, allowed)
}

fn in_range<'a>(sizes: impl IntoIterator<Item = &'a usize>) -> bool {
    sizes.into_iter().all(|size| (1..=HUGE).contains(size))
}

/// What is of the run, the first section says.
fn of_the_run(c: &Data, all: &DataSections) -> Checked {
    let usual = Data::new(String::new(), [0; 3]);
    let allowed = |value: usize| format!("is the run's, and the first [[data]] says {value}: say it there alone");
    let ok = c.prefetch == all.prefetch || c.prefetch == usual.prefetch;
    ensure(ok, "data.prefetch", c.prefetch, &allowed(all.prefetch))?;
    let ok = c.variants == all.variants || c.variants == usual.variants;
    ensure(ok, "data.variants", c.variants, &allowed(all.variants))
}

fn vae(c: &Vae, data: &DataSections) -> Checked {
    if let Some(from) = &c.from {
        ensure(!from.is_empty(), "vae.from", from, "must name a VAE's folder or file; leave the key out for pixels")?;
    }
    if let Some(cache) = &c.cache {
        ensure(
            !cache.as_os_str().is_empty(),
            "vae.cache",
            cache,
            "must name a folder; leave the key out for the usual",
        )?;
    }
    ensure((1..=1024).contains(&data.variants), "data.variants", data.variants, "must be in 1..=1024")?;
    let drawn = data.iter().any(|section| section.crop == Crop::Random || section.flip);
    let allowed = "several are for training on latents (vae.from) with random crops or mirror images (data.flip)";
    ensure(data.variants == 1 || (c.from.is_some() && drawn), "data.variants", data.variants, allowed)
}

fn text(c: &Text) -> Checked {
    if let Some(from) = &c.from {
        ensure(
            !from.is_empty(),
            "text.from",
            from,
            "must name a text encoder's folder; leave the key out for no text",
        )?;
    }
    if let Some(cache) = &c.cache {
        let allowed = "must name a folder; leave the key out for the usual";
        ensure(!cache.as_os_str().is_empty(), "text.cache", cache, allowed)?;
    }
    Ok(())
}

fn model(c: &Model, data: &DataSections, vae: &Vae) -> Checked {
    if let Some(from) = &c.from {
        ensure(!from.is_empty(), "model.from", from, "must name a model folder, or hf://owner/name")?;
        // Anything else would be silently ignored: the folder's config.json says it all.
        let alone = Model { from: c.from.clone(), ..Model::default() };
        return ensure(*c == alone, "model.from", from, "is the whole of [model]: config.json there says the rest");
    }
    let [pt, ph, pw] = c.patch_size;
    ensure(pt >= 1 && ph >= 1 && pw >= 1, "model.patch_size", c.patch_size, "must be three sizes of at least 1")?;
    // Of a VAE the patches are of latents, whose grid it knows.
    for (section, number) in data.iter().zip(0..).filter(|_| vae.from.is_none()) {
        let axes = [("frames", section.frames, pt), ("height", section.height, ph), ("width", section.width, pw)];
        for (axis, clip, patch) in axes {
            let allowed = format!("{patch} must divide data.{axis} = {clip} (patch sizes are frames, height, width)");
            ensure(clip.is_multiple_of(patch), "model.patch_size", c.patch_size, &allowed)?;
        }
        if section.buckets.is_empty() && section.resolutions.is_empty() {
            continue;
        }
        if let Some((key, why)) = section.off_grid(&ClipGrid::of_patches(c.patch_size)) {
            let value = match key {
                "data.buckets" => format!("{:?}", section.buckets),
                "data.resolutions" => format!("{:?}", section.resolutions),
                _ => format!("{:?}", section.frame_counts),
            };
            return Err(Problem { key, section: number, value, allowed: why });
        }
    }
    let heads = c.num_attention_heads;
    ensure((1..=4096).contains(&heads), "model.num_attention_heads", heads, "must be in 1..=4096")?;
    let d = c.attention_head_dim;
    let allowed = "must be a multiple of 8 in 8..=256";
    ensure((8..=256).contains(&d) && d.is_multiple_of(8), "model.attention_head_dim", d, allowed)?;
    ensure((1..=10_000).contains(&c.num_layers), "model.num_layers", c.num_layers, "must be in 1..=10000")?;
    size("model.ffn_dim", c.ffn_dim)?;
    let f = c.freq_dim;
    ensure((2..=HUGE).contains(&f) && f.is_multiple_of(2), "model.freq_dim", f, "must be even and at least 2")?;
    ensure(c.num_classes <= HUGE, "model.num_classes", c.num_classes, "must be at most 1048576")?;
    if !data.labelled() {
        let allowed = "needs labels: set data.label = \"folder\", or 0 classes";
        return ensure(c.num_classes == 0, "model.num_classes", c.num_classes, allowed);
    }
    let named: BTreeSet<&String> = data.iter().filter_map(|section| section.class.as_ref()).collect();
    let allowed = match named.len() {
        0 => "must be the number of class folders, as data.label is \"folder\"".to_owned(),
        count => format!("must be the number of classes: data.class names {count}"),
    };
    ensure(c.num_classes >= named.len().max(1), "model.num_classes", c.num_classes, &allowed)
}

fn diffusion(c: &DiffusionOptions) -> Checked {
    ensure(c.logit_mean.is_finite(), "diffusion.logit_mean", c.logit_mean, "must be finite")?;
    ensure(c.logit_std.is_finite() && c.logit_std > 0.0, "diffusion.logit_std", c.logit_std, "must be above 0")?;
    at_least_0("diffusion.shift", c.shift)?;
    size("diffusion.shift_base_tokens", c.shift_base_tokens)?;
    ensure(c.clamp > 0.0 && c.clamp <= 1.0, "diffusion.clamp", c.clamp, "must be above 0 and at most 1")?;
    ensure((0.0..=1.0).contains(&c.label_dropout), "diffusion.label_dropout", c.label_dropout, "must be in 0..=1")?;
    let share = c.caption_dropout;
    ensure((0.0..=1.0).contains(&share), "diffusion.caption_dropout", share, "must be in 0..=1")
}

fn train(c: &Train) -> Checked {
    ensure((1..=1 << 40).contains(&c.steps), "train.steps", c.steps, "must be at least 1 (and at most 2^40)")?;
    size("train.batch", c.batch)?;
    size("train.accumulate", c.accumulate)?;
    at_least_0("train.lr", c.lr)?;
    ensure(c.warmup <= 1 << 40, "train.warmup", c.warmup, "must be at most 2^40")?;
    ensure(
        c.decay > 0.0 && c.decay <= 1.0,
        "train.decay",
        c.decay,
        "must be above 0 and at most 1, a share of the steps",
    )?;
    let ok = c.betas.iter().all(|b| (0.0..1.0).contains(b));
    ensure(ok, "train.betas", c.betas, "must be two numbers, each at least 0 and below 1")?;
    ensure(c.eps.is_finite() && c.eps > 0.0, "train.eps", c.eps, "must be above 0")?;
    ensure((0.0..1.0).contains(&c.momentum), "train.momentum", c.momentum, "must be at least 0 and below 1")?;
    at_least_0("train.weight_decay", c.weight_decay)?;
    at_least_0("train.clip", c.clip)?;
    ensure((0.0..1.0).contains(&c.ema), "train.ema", c.ema, "must be at least 0 (no average) and below 1")?;
    ensure(c.tile <= HUGE, "train.tile", c.tile, "must be at most 1048576 tokens, or 0 to choose")?;
    size("train.keep", c.keep)?;
    for (key, every) in [
        ("train.checkpoint_every", c.checkpoint_every),
        ("train.heldout_every", c.heldout_every),
        ("train.sample_every", c.sample_every),
    ] {
        ensure(every <= 1 << 40, key, every, "must be at most 2^40, or 0")?;
    }
    Ok(())
}

fn parallel(c: &Parallel) -> Checked {
    ensure((1..=65_536).contains(&c.ranks), "parallel.ranks", c.ranks, "must be in 1..=65536")?;
    let allowed = format!("must divide parallel.ranks = {}", c.ranks);
    ensure(c.data >= 1 && c.ranks.is_multiple_of(c.data), "parallel.data", c.data, &allowed)?;
    let sequence = c.ranks / c.data;
    let allowed = format!("must divide the {sequence} ranks of a sequence (parallel.ranks / parallel.data), or be 0");
    ensure(c.ring == 0 || sequence.is_multiple_of(c.ring), "parallel.ring", c.ring, &allowed)?;
    size("parallel.head_groups", c.head_groups)?;
    ensure(c.zero <= 3, "parallel.zero", c.zero, "must be a stage of ZeRO, 0 (none) to 3")
}

fn stash(c: &StashOptions) -> Checked {
    match &c.folder {
        Some(folder) => ensure(
            !folder.as_os_str().is_empty(),
            "stash.folder",
            folder,
            "must name a folder; leave the key out for the system's folder of temporary files",
        ),
        None => Ok(()),
    }
}

fn sample(c: &Sample, text: &Text) -> Checked {
    c.steps.map_or(Ok(()), |steps| size("sample.steps", steps))?;
    c.count.map_or(Ok(()), |count| size("sample.count", count))?;
    let guidance = c.guidance.unwrap_or(1.0);
    ensure(guidance.is_finite(), "sample.guidance", guidance, "must be finite; 1 is none")?;
    let [low, high] = c.guidance_interval;
    let ok = 0.0 <= low && low <= high && high <= 1.0;
    ensure(ok, "sample.guidance_interval", c.guidance_interval, "must be [low, high] with 0 <= low <= high <= 1")?;
    c.shift.map_or(Ok(()), |shift| at_least_0("sample.shift", shift))?;
    let (has_text, allowed) = (text.from.is_some(), "needs a text encoder: name one as text.from");
    ensure(c.prompts.is_empty() || has_text, "sample.prompts", &c.prompts, allowed)?;
    ensure(c.negative.is_none() || has_text, "sample.negative", c.negative.as_deref().unwrap_or_default(), allowed)
}

fn size(key: &'static str, value: usize) -> Checked {
    ensure((1..=HUGE).contains(&value), key, value, "must be in 1..=1048576")
}

fn at_least_0(key: &'static str, value: f64) -> Checked {
    ensure(value.is_finite() && value >= 0.0, key, value, "must be at least 0, and finite")
}

pub(super) fn ensure(ok: bool, key: &'static str, value: impl Debug, allowed: &str) -> Checked {
    if ok { Ok(()) } else { Err(problem(key, value, allowed)) }
}
