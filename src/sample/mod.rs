//! Samples clips from a model, over the ranks of a sequence: several clips in a batch, whose state stays sharded and is
//! updated tile by tile.
//!
//! What a clip begins from is drawn token by token from (seed, the clip's index), and nothing that the network does to
//! one row depends on which other rows there are. So a clip has the same bits in a batch of any size, and but for
//! rounding on any number of ranks.
//!
//! ```no_run
//! use longreel::config::RunConfig;
//! use candle_core::DType;
//! use longreel::diffusion::Objective;
//! use longreel::model::{Model, ModelConfig};
//! use longreel::parallel::{Sequence, Single};
//! use longreel::sample::{ClipSampler, ClipSpec, Request};
//! use longreel::state::named::NamedModel;
//! use std::sync::Arc;
//!
//! let text = std::fs::read_to_string("runs/demo/config.toml")?;
//! let config = RunConfig::parse(&text, "runs/demo/config.toml".as_ref(), &[])?;
//! let (_, folder) = NamedModel::opened("runs/demo".as_ref())?; // the average of the last checkpoint
//! let network = ModelConfig::from_json(folder.config())?;
//! let model = Model::load(&network, DType::F32, false, |name| folder.read_f32(name))?;
//! let (request, objective) = (Request::from_config(&config)?, Objective::new(&config.diffusion)?);
//! let sequence = Sequence::new(Arc::new(Single), model.config.num_attention_heads, 0)?;
//! let (model, objective, sequence, request) = (&model, &objective, &sequence, &request);
//! let sampler = ClipSampler { model, objective, sequence, request, tile: 0, decoder: None, prompts: None };
//! let clip = sampler.sample(ClipSpec { index: 0, label: Some(3), prompt: 0 })?;
//! println!("{:?}, values in -1 to 1", clip.rows.dims());
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

#![warn(missing_docs)]

use candle_core::{Device, Tensor};
use std::ops::Range;
use std::sync::Arc;

use crate::config::{self, SamplerKind};
use crate::diffusion::{Guidance, Objective, Sampler, noise_rows, resolve_shift, sample_key};
use crate::engine::Engine;
use crate::model::{Conditioning, Model, ModelConfig, TextTokens};
use crate::parallel::Sequence;
use crate::vae::{Decoder, Space};
use crate::{Error, Result, bail};

mod negative;
mod network;
mod sampled;
mod texts;

pub use negative::WAN as WAN_NEGATIVE;
use network::{Network, Reporting};
pub use sampled::{FPS_OF_IMAGES, Sampled};
pub use texts::Texts;

/// A batch takes clips until a rank has so many tokens: several tiles for each thread (docs/design.md).
const ENOUGH_TOKENS: usize = 4096;

/// How to sample, whichever clip.
#[derive(Clone, Debug)]
pub struct Request {
    /// Frames, height, width of the clips in pixels.
    pub size: [usize; 3],
    /// The solver.
    pub sampler: SamplerKind,
    /// Its steps.
    pub steps: usize,
    /// Classifier-free guidance.
    pub guidance: Guidance,
    /// Shift of sigma; 0: from the token count.
    pub shift: f64,
    /// For shift = 0.
    pub shift_base_tokens: usize,
    /// Groups of heads that attention takes one after another, where the ranks leave each group enough heads.
    pub head_groups: usize,
    /// Which noise clips begin from.
    pub seed: u64,
}

impl Request {
    /// What a run's config asks for during training, of its data's size, or of the first of several. A shift that it
    /// does not say is looked up where its network is from.
    ///
    /// # Errors
    /// The network of `model.from` cannot be had; guidance is not what it can be.
    pub fn from_config(config: &config::RunConfig) -> Result<Self> {
        let sample = config.sampling();
        Ok(Self {
            size: config.sample_size()?.size(),
            sampler: sample.sampler,
            steps: sample.steps,
            guidance: Guidance::new(sample.guidance, config.sample.guidance_interval)?,
            shift: config.sampling_shift()?,
            shift_base_tokens: config.diffusion.shift_base_tokens,
            head_groups: config.parallel.head_groups,
            seed: config.run.seed,
        })
    }
}

/// One clip to sample.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClipSpec {
    /// Its number, which with the request's seed names the noise that it begins from.
    pub index: u64,
    /// Its class, for models with classes; none is the null class.
    pub label: Option<usize>,
    /// Its prompt's place among the [`Prompts`], for models with text.
    pub prompt: usize,
}

impl ClipSpec {
    /// Clips 0, 1, ... with these classes, and of so many `prompts` each in turn.
    pub fn numbered(labels: impl IntoIterator<Item = Option<usize>>, prompts: usize) -> Vec<Self> {
        let clip = |(index, label)| Self { index: index as u64, label, prompt: index % prompts.max(1) };
        labels.into_iter().enumerate().map(clip).collect()
    }
}

/// The texts that clips are sampled by, for models with text.
#[derive(Clone, Debug)]
pub struct Prompts {
    /// Each prompt.
    pub texts: Vec<TextTokens>,
    /// What guidance leads away from.
    pub negative: TextTokens,
}

/// How far sampling is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SamplingState {
    /// The clips at work, of all that are wanted.
    pub clips: Range<usize>,
    /// How often the sampler has asked the network for them, and how often it will have at their end.
    pub calls: [usize; 2],
}

/// Fills in what a clip begins from: the rows of some of its tokens.
pub type NoiseOf<'a> = dyn Fn(&ClipSpec, Range<usize>, &mut [f32]) + 'a;

/// A network that samples, over the ranks of a sequence.
#[derive(Clone, Copy)]
pub struct ClipSampler<'a> {
    /// The network.
    pub model: &'a Model,
    /// What the network predicts.
    pub objective: &'a Objective,
    /// The ranks that share each clip's tokens.
    pub sequence: &'a Sequence,
    /// How to sample.
    pub request: &'a Request,
    /// Rows of a tile; 0: automatic.
    pub tile: usize,
    /// The VAE that turns what is sampled into pixels; none: it is pixels.
    pub decoder: Option<&'a Arc<Decoder>>,
    /// The clips' texts, for models with text.
    pub prompts: Option<&'a Prompts>,
}

impl ClipSampler<'_> {
    /// Samples `clips` in batches of at most `most` clips, and hands each to `take` with its place among them, in
    /// order. `report` is called as a batch begins and each time that the sampler has asked the network. A collective
    /// of the sequence's ranks; each gets its tokens' rows.
    ///
    /// # Errors
    /// The request does not fit the network; those of the ranks' exchange and of `take`.
    pub fn sample_all(
        &self,
        clips: &[ClipSpec],
        most: usize,
        report: &dyn Fn(SamplingState),
        mut take: impl FnMut(usize, Sampled) -> Result<()>,
    ) -> Result<()> {
        let count = clips.len().div_ceil(most.max(1)); // batches, as even as can be
        for batch in 0..count {
            let range = batch * clips.len() / count..(batch + 1) * clips.len() / count;
            let told = |calls| report(SamplingState { clips: range.clone(), calls });
            let sampled = self.sample_batch(&clips[range.clone()], most, &told, &self.noise())?;
            range.clone().zip(sampled).try_for_each(|(number, clip)| take(number, clip))?;
        }
        Ok(())
    }

    /// Samples one clip, by itself. A collective, as [`sample_all`](Self::sample_all).
    ///
    /// # Errors
    /// As there.
    pub fn sample(&self, clip: ClipSpec) -> Result<Sampled> {
        self.sample_from(clip, &self.noise())
    }

    /// As [`sample`](Self::sample), from other noise than the clip's own: `noise` fills in the rows of some tokens,
    /// `[n, pt ph pw C]`. For comparison with other implementations.
    ///
    /// # Errors
    /// As there.
    pub fn sample_from(&self, clip: ClipSpec, noise: &NoiseOf) -> Result<Sampled> {
        let sampled = self.sample_batch(&[clip], 1, &|_| {}, noise)?;
        sampled.into_iter().next().ok_or_else(|| Error::Shape("a batch of one clip is empty".to_owned()))
    }

    /// Each clip's own noise.
    fn noise(&self) -> impl Fn(&ClipSpec, Range<usize>, &mut [f32]) + use<> {
        let (seed, row) = (self.request.seed, self.model.config.patch_in());
        move |clip, tokens, noise| noise_rows(sample_key(seed, clip.index), tokens, row, noise)
    }

    /// What the network's clips are made of.
    fn space(&self) -> Space {
        self.decoder.map_or(Space::PIXELS, |decoder| decoder.config().space())
    }

    /// Frames, height, width of the network's clips.
    fn size(&self) -> Result<[usize; 3]> {
        self.space().size(self.request.size, self.model.config.patch_size)
    }

    /// Clips that a batch holds at most where nothing else limits it: as many as bring a rank [`ENOUGH_TOKENS`]. So a
    /// batch takes no more memory than one clip of so many tokens, whatever the network.
    ///
    /// # Errors
    /// The request's size does not fit the network.
    pub fn most_at_once(&self) -> Result<usize> {
        let tokens: usize = self.model.config.grid(self.size()?)?.iter().product();
        Ok((ENOUGH_TOKENS / tokens.div_ceil(self.sequence.all.size())).max(1)) // the same on all ranks
    }

    /// Samples `clips` at once. With guidance, the two passes are one where the network may take `most` clips and they
    /// are no more.
    fn sample_batch(
        &self,
        clips: &[ClipSpec],
        most: usize,
        report: &dyn Fn([usize; 2]),
        noise_of: &NoiseOf,
    ) -> Result<Vec<Sampled>> {
        let (config, request) = (&self.model.config, self.request);
        let (space, size) = (self.space(), self.size()?);
        if [config.in_channels, config.out_channels] != [space.channels; 2] {
            let made = if space.is_latent() { "the VAE's latents" } else { "pixels" };
            bail!(Shape, "the model's clips have {} channels; {made} have {}", config.in_channels, space.channels)
        }
        let grid = config.grid(size)?;
        let heads = config.num_attention_heads / self.sequence.ulysses.size(); // each group needs a head for each rank
        let groups = request.head_groups.min(heads).max(1);
        let engine = |clips| Engine::new(self.model, self.sequence, grid, clips, self.tile)?.in_head_groups(groups);
        let single = engine(clips.len())?;
        let both =
            (request.guidance.is_on() && 2 * clips.len() <= most).then(|| engine(2 * clips.len())).transpose()?;
        let (tokens, row) = (single.local_tokens(), config.patch_in());
        let mut noise = vec![0.0; clips.len() * tokens.len() * row];
        for (clip, noise) in clips.iter().zip(noise.chunks_exact_mut(tokens.len() * row)) {
            noise_of(clip, tokens.clone(), noise);
        }
        let x = Tensor::from_vec(noise, (clips.len() * tokens.len(), row), &Device::Cpu)?; // [B local S, pt ph pw C]

        let shift = resolve_shift(request.shift, request.shift_base_tokens, grid.iter().product())?;
        let sampler = Sampler::new(request.sampler, request.sampler.sigmas(request.steps, shift)?)?;
        let (calls, mut done) = (sampler.calls(), 0);
        report([0, calls]);
        let mut network = Network { of: self, single, both, clips, rows: x.dims()[0], given: None };
        let mut velocity = Reporting {
            network: &mut network,
            report: &mut || {
                done += 1;
                report([done, calls])
            },
        };
        let rows = sampler.run_in_tiles(x, &mut velocity)?;
        let clip = |i| {
            let clip = Sampled::new(rows.narrow(0, i * tokens.len(), tokens.len())?, size, config.patch_size)?;
            Ok(match self.decoder {
                Some(decoder) => clip.decoded_by(decoder.clone(), request.size),
                None => clip,
            })
        };
        (0..clips.len()).map(clip).collect()
    }
}

/// Refuses guidance, by the scale that the user calls `name`, for a network that has nothing to be guided by: neither
/// classes, nor text with `prompts`.
pub fn check_guidance(name: &str, scale: f64, model: &ModelConfig, prompts: bool) -> Result<()> {
    if scale == 1.0 || model.num_classes > 0 || prompts {
        return Ok(());
    }
    let why = match model.text_dim {
        0 => "the model has no classes",
        _ => "there are no prompts (sample.prompts, --prompt), and the model has no classes",
    };
    bail!(Config, "{name} is {scale}, but {why}: there is nothing to guide by; leave it at 1")
}

/// The network's conditioning of samples at `timesteps` with their classes, of which none is the null class, and their
/// texts.
pub fn conditioning(
    model: &Model,
    timesteps: &[f64],
    labels: &[Option<usize>],
    text: Option<Vec<TextTokens>>,
) -> Conditioning {
    let labels = match model.config.num_classes {
        0 => None,
        classes => Some(labels.iter().map(|label| label.unwrap_or(classes)).collect()),
    };
    Conditioning { timesteps: timesteps.to_vec(), text, labels }
}
