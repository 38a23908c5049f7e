//! Sampling clips from a model, over the ranks of a sequence: the state of a clip stays sharded, and becomes pixels at the end.

use candle_core::{Device, Tensor};
use std::ops::Range;

use crate::config::{self, SamplerKind};
use crate::data::{Frames, RowOrder};
use crate::diffusion::{
    Condition, Guidance, Objective, Sampler, channel_first, inference_sigmas, noise_rows, resolve_shift, sample_key,
    timestep,
};
use crate::engine::{Engine, Source};
use crate::model::{Model, Prompt};
use crate::ops::read;
use crate::parallel::{Communicator, Sequence, Split};
use crate::{Result, bail};

/// What to sample.
#[derive(Clone, Debug)]
pub struct Request {
    /// Frames, height, width of the clip.
    pub size: [usize; 3],
    pub sampler: SamplerKind,
    pub steps: usize,
    pub guidance: Guidance,
    /// Shift of sigma; 0: from the token count.
    pub shift: f64,
    /// For shift = 0.
    pub shift_base_tokens: usize,
    /// Class, for models with classes; none is the null class.
    pub label: Option<usize>,
    pub seed: u64,
}

impl Request {
    /// What a run's config asks for, of its data's size.
    pub fn from_config(config: &config::RunConfig) -> Result<Self> {
        let (data, sample) = (&config.data, &config.sample);
        Ok(Self {
            size: [data.frames, data.height, data.width],
            sampler: sample.sampler,
            steps: sample.steps,
            guidance: Guidance::new(sample)?,
            shift: sample.shift,
            shift_base_tokens: config.diffusion.shift_base_tokens,
            label: None,
            seed: config.run.seed,
        })
    }
}

/// Samples clip number `index` and returns its pixels, whole, on every rank.
///
/// The first state is drawn token by token from (seed, index), so the clip is the same for any number of ranks.
pub fn sample(
    model: &Model,
    objective: &Objective,
    sequence: &Sequence,
    request: &Request,
    index: u64,
    tile: usize,
) -> Result<Frames> {
    let config = &model.config;
    if config.in_channels != 3 || config.out_channels != 3 {
        bail!("the model's clips have {} channels; sampling makes pixels, which have 3", config.in_channels)
    }
    let grid = config.grid(request.size)?;
    let engine = Engine::new(model, sequence, grid, 1, tile)?;
    let (tokens, row) = (engine.local_tokens(), config.patch_in());
    let mut noise = vec![0.0; tokens.len() * row];
    noise_rows(sample_key(request.seed, index), tokens.clone(), row, &mut noise);
    let x = Tensor::from_vec(noise, (tokens.len(), row), &Device::Cpu)?; // [local S, pt ph pw C]

    let shift = resolve_shift(request.shift, request.shift_base_tokens, grid.iter().product())?;
    let sampler = Sampler::new(request.sampler, inference_sigmas(request.steps, shift)?)?;
    let x = sampler.run(x, |x, sigma| {
        request.guidance.apply(sigma, |condition| {
            let label = match condition {
                Condition::Given => request.label,
                Condition::Null => None,
            };
            let prompt = prompt(model, &[timestep(sigma)], &[label])?;
            let mut rows = Vec::with_capacity(tokens.len() * row);
            engine.predict(&prompt, &State { x, row }, |_, output| {
                rows.extend_from_slice(&read::<f32>(&output)?);
                Ok(())
            })?;
            let prediction = Tensor::from_vec(rows, x.shape(), &Device::Cpu)?;
            objective.velocity(&prediction, x, sigma)
        })
    })?;
    gather(&x, sequence.all.as_ref(), request.size, config.patch_size)
}

/// The network's prompt for samples at `timesteps` with their classes; none is the null class. Text models get one empty token:
/// captions are not encoded here.
pub fn prompt(model: &Model, timesteps: &[f64], labels: &[Option<usize>]) -> Result<Prompt> {
    let config = &model.config;
    let labels = match config.num_classes {
        0 => None,
        classes => Some(labels.iter().map(|label| label.unwrap_or(classes)).collect()),
    };
    let text = match config.text_dim {
        0 => None,
        features => Some(Tensor::zeros((timesteps.len(), 1, features), candle_core::DType::F32, &Device::Cpu)?),
    };
    Ok(Prompt { timesteps: timesteps.to_vec(), text, labels })
}

/// A sampler's state as the network's input.
struct State<'a> {
    x: &'a Tensor, // [local S, pt ph pw C]
    row: usize,
}

impl Source for State<'_> {
    fn input(&self, rows: Range<usize>) -> Result<Tensor> {
        let x = read::<f32>(self.x)?;
        let mut input = vec![0.0; rows.len() * self.row];
        channel_first(&x[rows.start * self.row..rows.end * self.row], self.row, 3, &mut input);
        Ok(Tensor::from_vec(input, (rows.len(), self.row), &Device::Cpu)?)
    }
}

/// The clip's pixels from every rank's rows.
fn gather(x: &Tensor, comm: &dyn Communicator, size: [usize; 3], patch: [usize; 3]) -> Result<Frames> {
    let [frames, height, width] = size;
    let tokens: usize = (0..3).map(|axis| size[axis] / patch[axis]).product();
    let split = Split::new(tokens, comm.size());
    let shapes: Vec<_> = (0..comm.size()).map(|rank| vec![split.count(rank), x.dims()[1]]).collect();
    let mut clip = Frames::black(0..frames, height, width);
    for (rank, rows) in comm.all_gather(x, &shapes)?.iter().enumerate() {
        clip.set_rows(patch, split.range(rank), RowOrder::ChannelLast, &read::<f32>(rows)?)?;
    }
    Ok(clip)
}
