//! Runs `longreel sample` to make clips from a run, a checkpoint or a pretrained network.

use clap::Args;
use parking_lot::Mutex;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use super::lora::ScaledLora;
use super::pretrained::Pretrained;
use super::prompts::PromptArgs;
use super::sampling::SamplingProgress;
use crate::config::{Compute, Hardware, RunConfig, SamplerKind};
use crate::data::contact_sheet::{FrameScale, Strip, check_size, contact_sheet};
use crate::data::write::Kind;
use crate::diffusion::Objective;
use crate::lora::Adapter;
use crate::model::folder::Folder;
use crate::model::{Model, ModelConfig};
use crate::parallel::{Communicator, Launch, Sequence, agree, is_first};
use crate::sample::{ClipSampler, ClipSpec, FPS_OF_IMAGES, Request, Sampled, SamplingState, Texts, check_guidance};
use crate::simd::Isa;
use crate::state::frozen::FrozenModel;
use crate::state::named::NamedModel;
use crate::train::device::device;
use crate::vae::{Arithmetic, Decoder, Space, VaeWeights};
use crate::{Error, Result, bail, hub, terminal};

/// The key of the text encoder.
const TEXT: &str = "text.from";

/// Frames of a clip on a contact sheet.
const STRIP: usize = 8;

/// Sample clips from a run's EMA weights, or from a pretrained network.
#[derive(Debug, Args)]
pub struct SampleArgs {
    /// A run's folder (its last checkpoint is taken), a checkpoint's or a part of it; a pipeline's folder, or a
    /// transformer with --vae and --text; or `hf://owner/name[@revision][/path]`
    #[arg(value_name = "RUN_OR_MODEL", value_parser = super::place())]
    pub from: String,
    /// Where to write: video (.mp4, .webm) or animation (.gif, .webp), numbered if several; a sheet of all (.png); or a
    /// folder
    #[arg(short, long, value_name = "FILE.mp4|.webm|.gif|.webp|.png|DIR/", value_parser = super::path())]
    pub output: PathBuf,
    /// On a sheet, show frames unscaled; otherwise they are made about 96 pixels high
    #[arg(long)]
    pub real_size: bool,
    /// Replace files that exist
    #[arg(long)]
    pub force: bool,
    /// Clips, which take prompts or classes in turn; default: one of each --prompt, or the config's `sample.count`
    #[arg(long, value_name = "N", value_parser = super::at_least_1)]
    pub count: Option<usize>,
    /// Frames of a clip; default: as trained
    #[arg(long, value_name = "N", value_parser = super::at_least_1)]
    pub frames: Option<usize>,
    /// Height in pixels; default: as trained
    #[arg(long, value_name = "N", value_parser = super::at_least_1)]
    pub height: Option<usize>,
    /// Width in pixels; default: as trained
    #[arg(long, value_name = "N", value_parser = super::at_least_1)]
    pub width: Option<usize>,
    /// Sampler steps; default: the config's `sample.steps`, or 50 with text
    #[arg(long, value_name = "N", value_parser = super::at_least_1)]
    pub steps: Option<usize>,
    /// Default: the config's `sample.sampler`
    #[arg(long)]
    pub sampler: Option<SamplerKind>,
    /// Guidance scale, 1 for none; default: the config's `sample.guidance`
    #[arg(long, value_name = "W")]
    pub guidance: Option<f64>,
    /// A class, by number or folder name; default: each class in turn
    #[arg(long, value_name = "CLASS")]
    pub label: Option<String>,
    #[command(flatten)]
    pub prompts: PromptArgs,
    /// A LoRA that is added to the network, with a scale or 1; may be repeated
    #[arg(long, value_name = "FILE[:SCALE]")]
    pub lora: Vec<ScaledLora>,
    /// Shift of sigma; default: the config's `sample.shift`, or the pipeline's
    #[arg(long, value_name = "A")]
    pub shift: Option<f64>,
    /// The VAE of a network on latents; default: the config's `vae.from`
    #[arg(long, value_name = "DIR", value_parser = super::place())]
    pub vae: Option<String>,
    /// Default: the config's `run.seed`
    #[arg(long, value_name = "N")]
    pub seed: Option<u64>,
    /// Ranks, as threads of this process; default: 1. Under mpirun or srun each process is a rank
    #[arg(long, value_name = "P", value_parser = super::at_least_1)]
    pub ranks: Option<usize>,
    /// Arithmetic of linear layers and attention; default: as trained
    #[arg(long)]
    pub dtype: Option<Compute>,
    /// What computes; default: the CPU, or the GPU that a launcher gave this rank
    #[arg(long)]
    pub device: Option<Hardware>,
}

/// Runs the command.
pub fn run(args: &SampleArgs, launch: &Launch) -> Result<()> {
    let kind = args.kind()?; // before hours of work
    let ranks = launch.ranks(args.ranks, "--ranks")?;
    let device = device(args.device, "--device", ranks, launch)?;
    let path = launch.rank0_first(|| hub::resolve(&args.from))?;
    let (named, folder) = open(&path, launch)?;
    let network = ModelConfig::of(&folder)?;
    folder.check(&Model::shapes(&network))?;
    let Pretrained { mut config, fps } = match &named.checkpoint {
        Some(checkpoint) => Pretrained {
            config: RunConfig::of_checkpoint(checkpoint)?,
            fps: checkpoint.state().fps.unwrap_or(FPS_OF_IMAGES),
        },
        None => Pretrained::new(&args.from, &path, &network)?,
    };
    let classes = named.checkpoint.as_ref().map_or(&[][..], |checkpoint| &checkpoint.state().classes);
    let loras = launch.rank0_first(|| args.lora.iter().map(ScaledLora::open).collect::<Result<Vec<_>>>())?;
    loras.iter().try_for_each(|file| file.check(&network))?;
    let loras: Vec<(&Adapter, f64)> =
        loras.iter().zip(&args.lora).map(|(file, lora)| (&file.adapter, lora.scale)).collect();
    let prompts = args.prompts.put_over(&mut config, &network)?;
    args.put_over(&mut config)?;
    let request = Request::from_config(&config)?;
    let decoder = match args.vae.as_ref().or(config.vae.from.as_ref()) {
        None => None,
        Some(from) => {
            let asked = asked_by("vae.from", "--vae", args.vae.is_some(), named.checkpoint.is_some());
            let weights = VaeWeights::open(&launch.rank0_first(|| hub::resolve(from))?).map_err(|e| e.at(asked))?;
            let arithmetic = Arithmetic { isa: Isa::best(), bf16: config.vae.dtype == Compute::Bf16 };
            Some(Arc::new(Decoder::load(&weights, arithmetic, &device)?))
        }
    };
    let space = decoder.as_ref().map_or(Space::PIXELS, |decoder| decoder.config().space());
    network.grid(space.size(request.size, network.patch_size)?)?;
    let name = if args.guidance.is_some() { "--guidance" } else { "sample.guidance" };
    let prompted = !config.sample.prompts.is_empty();
    check_guidance(name, config.sampling().guidance, &network, prompted)?;
    let count = args.count.unwrap_or(if prompts > 0 { prompts } else { config.sampling().count });
    args.may_write(kind, count, request.size[0])?;
    let [frames, height, width] = request.size;
    if kind == Kind::Png && (count > 1 || frames > 1) {
        check_size(count, frames.min(STRIP), height, width, args.scale())?;
    }
    let labels = args.labels(classes, network.num_classes, count)?;
    let objective = Objective::new(&config.diffusion)?;
    let bf16 = args.dtype.unwrap_or(config.train.dtype) == Compute::Bf16;
    let write = Mutex::new(Writer { args, kind, count, fps, strips: vec![], numbered: vec![] });
    // What a run's config does not name is no key's: the encoder is the pipeline's, or the flag's.
    let asked = asked_by(TEXT, "--text", args.prompts.text.is_some(), named.checkpoint.is_some());
    let reworded = |said: String| said.strip_prefix(TEXT).map_or(said.clone(), |why| format!("{asked}{why}"));
    let texts = launch.rank0_first(|| Texts::open(&config, &network, []).map_err(|e| e.reworded(reworded)))?;
    let clips = ClipSpec::numbered(labels, config.sample.prompts.len());
    let never = AtomicBool::new(false); // Ctrl-C ends the process
    let progress = is_first().then(|| SamplingProgress::new(count, request.steps));

    let frozen = FrozenModel::new(launch.processes().map_or(ranks, |_| 1));

    launch.run(ranks, |comm| {
        if let Some(checkpoint) = &named.checkpoint {
            agree(comm.as_ref(), "the checksum of the checkpoint's state.json", checkpoint.sum())?;
        }
        // First, so that the encoder is gone before the network comes.
        let prompts = match &texts {
            Some(texts) => texts.fill_and_log(&comm, &never).and_then(|_| texts.prompts().map(Some))?,
            None => None,
        };
        let sequence = Sequence::new(comm, network.num_attention_heads, 0)?;
        let model = named.load(&folder, &network, bf16, &frozen, &loras)?.to_device(&device)?;
        let comm = &sequence.all;
        let report = |state: SamplingState| match &progress {
            Some(progress) if comm.rank() == 0 => progress.update(&state),
            _ => {}
        };
        let (objective, sequence, request) = (&objective, &sequence, &request);
        let (tile, decoder, prompts) = (config.train.tile, decoder.as_ref(), prompts.as_ref());
        let sampler = ClipSampler { model: &model, objective, sequence, request, tile, decoder, prompts };
        sampler.sample_all(&clips, sampler.most_at_once()?, &report, |index, clip| {
            if comm.rank() > 0 {
                return clip.bands(comm, |_| Ok(())); // to rank 0, which writes them
            }
            let class = clips[index].label.and_then(|label| classes.get(label));
            let what = class.or_else(|| config.sample.prompts.get(clips[index].prompt));
            write.lock().take(index, what.map(String::as_str), &clip, comm)
        })
    })?;
    drop(progress);
    let writer = write.into_inner();
    if !writer.strips.is_empty() {
        contact_sheet(&writer.strips, args.scale(), &args.output)?;
    }
    if !is_first() {
        return Ok(()); // the first has written all
    }
    if writer.numbered.is_empty() {
        return super::print(terminal::name(&args.output));
    }
    writer.numbered.iter().try_for_each(|path| super::print(terminal::name(path)))
}

/// What named an encoder: the flag; else the config of the run, by its `key`; else the pipeline that is sampled. The
/// last two say which flag names another.
fn asked_by(key: &str, flag: &str, is_flag: bool, is_run: bool) -> String {
    match (is_flag, is_run) {
        (true, _) => flag.to_owned(),
        (false, true) => format!("{key} of the run's config ({flag} names another)"),
        (false, false) => format!("RUN_OR_MODEL ({flag} names another)"),
    }
}

/// The model that `path` names, the same on all ranks, and its weights: opened at once, for a run that trains meanwhile
/// may remove them.
fn open(path: &Path, launch: &Launch) -> Result<(NamedModel, Folder)> {
    let (named, folder) = NamedModel::opened(path)?;
    let Some(checkpoint) = &named.checkpoint else { return Ok((named, folder)) };
    let step = launch.of_first(checkpoint.state().step)?;
    if step != checkpoint.state().step {
        return NamedModel::opened(&checkpoint.sibling(step));
    }
    Ok((named, folder))
}

impl SampleArgs {
    /// What to write; the folder of a file must be there, and the encoder.
    fn kind(&self) -> Result<Kind> {
        let kind = super::output_kind(&self.output)?;
        if self.real_size && kind != Kind::Png {
            bail!(
                Config,
                "--real-size is for contact sheets (-o FILE.png); in every other file frames have their real size"
            )
        }
        Ok(kind)
    }

    /// The file of clip number `index` of `count`, of `frames` frames; none where clips share a sheet.
    fn file(&self, kind: Kind, index: usize, count: usize, frames: usize) -> Option<PathBuf> {
        let output = &self.output;
        match kind {
            Kind::Png => None,
            Kind::Folder => Some(output.join(format!("{index:05}.{}", if frames == 1 { "png" } else { "mp4" }))),
            Kind::Video(_) | Kind::Gif if count == 1 => Some(output.clone()),
            Kind::Video(_) | Kind::Gif => {
                let stem = output.file_stem().unwrap_or_default().to_string_lossy();
                let extension = output.extension().unwrap_or_default().to_string_lossy();
                Some(output.with_file_name(format!("{stem}-{index}.{extension}")))
            }
        }
    }

    /// How frames come onto a sheet.
    fn scale(&self) -> FrameScale {
        if self.real_size { FrameScale::Real } else { FrameScale::Row }
    }

    /// Refuses to write over what is there, before hours of work.
    fn may_write(&self, kind: Kind, count: usize, frames: usize) -> Result<()> {
        (0..count).try_for_each(|index| {
            let file = self.file(kind, index, count, frames);
            super::may_write(file.as_ref().unwrap_or(&self.output), self.force)
        })
    }

    /// Puts what the command line says over the run's config.
    fn put_over(&self, config: &mut RunConfig) -> Result<()> {
        let steps = config.command_steps();
        let sample = &mut config.sample;
        sample.steps = Some(self.steps.unwrap_or(steps));
        sample.sampler = self.sampler.or(sample.sampler);
        sample.guidance = self.guidance.or(sample.guidance);
        sample.shift = self.shift.or(sample.shift);
        if !config.data.has_one_size() {
            *config = config.of_size(config.sample_size()?);
        }
        config.data.frames = self.frames.unwrap_or(config.data.frames);
        config.data.height = self.height.unwrap_or(config.data.height);
        config.data.width = self.width.unwrap_or(config.data.width);
        config.run.seed = self.seed.unwrap_or(config.run.seed);
        Ok(())
    }

    /// The class of each clip: as asked, or each class in turn; none for a model without classes.
    fn labels(&self, classes: &[String], count_of_classes: usize, count: usize) -> Result<Vec<Option<usize>>> {
        let Some(label) = &self.label else {
            let named = classes.len().min(count_of_classes);
            return Ok((0..count).map(|i| (named > 0).then(|| i % named)).collect());
        };
        if count_of_classes == 0 {
            bail!(Config, "--label {label}: the model has no classes")
        }
        let named = classes.iter().position(|class| class == label);
        match named.or_else(|| label.parse().ok()).filter(|&number| number < count_of_classes) {
            Some(number) => Ok(vec![Some(number); count]),
            None => {
                bail!(Config, "--label {label}: no such class; there are {count_of_classes}: {}", classes.join(", "))
            }
        }
    }
}

/// Writes clips as they come.
struct Writer<'a> {
    args: &'a SampleArgs,
    kind: Kind,
    count: usize,
    fps: f64,
    strips: Vec<Strip>,
    /// Files whose names are not `output` itself, for they are several.
    numbered: Vec<PathBuf>,
}

impl Writer<'_> {
    /// Writes clip number `index`, or keeps it for the sheet, as a sample of `what`. `comm`'s other ranks send it
    /// meanwhile.
    fn take(&mut self, index: usize, what: Option<&str>, clip: &Sampled, comm: &Arc<dyn Communicator>) -> Result<()> {
        let output = &self.args.output;
        let picture = clip.size[0] == 1;
        let file = self.args.file(self.kind, index, self.count, clip.size[0]);
        if self.kind == Kind::Folder {
            std::fs::create_dir_all(output).map_err(|e| Error::io(output, e))?;
        }
        if self.kind == Kind::Png && self.count == 1 && picture {
            return clip.write_png(comm, output)?;
        }
        let Some(file) = file else {
            let Some(clip) = clip.collect(comm)? else { return Ok(()) };
            let caption = what.map_or(format!("sample {index}"), |what| format!("sample {index}: {what}"));
            let (shown, scale) = (clip.count().min(STRIP), self.args.scale());
            self.strips.push(Strip::from_clip(&caption, &clip.data, clip.height, clip.width, shown, scale)?);
            return Ok(());
        };
        clip.write(comm, &file, self.fps)??;
        if self.kind != Kind::Folder && self.count > 1 {
            self.numbered.push(file);
        }
        Ok(())
    }
}
