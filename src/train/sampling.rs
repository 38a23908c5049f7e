//! Sampling clips from a model, over the ranks of a sequence: the state of a clip stays sharded, is moved tile by tile, and
//! becomes pixels at the end, which travel to rank 0 band by band.

use candle_core::{DType, Device, Tensor};
use std::ops::Range;
use std::path::Path;

use crate::config::{self, SamplerKind};
use crate::data::write::PngWriter;
use crate::data::{Frames, Part, RowOrder, token_grid};
use crate::diffusion::{
    Condition, Guidance, Make, Objective, Sampler, State, Take, Velocity, channel_first, inference_sigmas, noise_rows,
    resolve_shift, sample_key, timestep,
};
use crate::engine::{Engine, Source};
use crate::model::{Model, ModelConfig, Prompt};
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
    /// Groups of heads that attention takes one after another, where the ranks leave each group enough heads.
    pub head_groups: usize,
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
            head_groups: config.parallel.head_groups,
            label: None,
            seed: config.run.seed,
        })
    }
}

/// Samples clip number `index`; each rank gets its tokens' rows of it. A collective of the sequence's ranks.
///
/// The first state is drawn token by token from (seed, index), so the clip is the same for any number of ranks. The state is
/// moved tile by tile, in place.
pub fn sample(
    model: &Model,
    objective: &Objective,
    sequence: &Sequence,
    request: &Request,
    index: u64,
    tile: usize,
) -> Result<Sampled> {
    sample_reporting(model, objective, sequence, request, index, tile, &|_, _| {})
}

/// As [`sample`]; `report(done, all)` is called after each of the `all` times that the sampler asks the network.
pub fn sample_reporting(
    model: &Model,
    objective: &Objective,
    sequence: &Sequence,
    request: &Request,
    index: u64,
    tile: usize,
    report: &dyn Fn(usize, usize),
) -> Result<Sampled> {
    let config = &model.config;
    if config.in_channels != 3 || config.out_channels != 3 {
        bail!("the model's clips have {} channels; sampling makes pixels, which have 3", config.in_channels)
    }
    let grid = config.grid(request.size)?;
    let most = config.num_attention_heads / sequence.ulysses.size(); // each group needs a head for each rank
    let groups = request.head_groups.min(most).max(1);
    let engine = Engine::new(model, sequence, grid, 1, tile)?.in_head_groups(groups)?;
    let (tokens, row) = (engine.local_tokens(), config.patch_in());
    let mut noise = vec![0.0; tokens.len() * row];
    noise_rows(sample_key(request.seed, index), tokens.clone(), row, &mut noise);
    let x = Tensor::from_vec(noise, (tokens.len(), row), &Device::Cpu)?; // [local S, pt ph pw C]

    let shift = resolve_shift(request.shift, request.shift_base_tokens, grid.iter().product())?;
    let sampler = Sampler::new(request.sampler, inference_sigmas(request.steps, shift)?)?;
    let (all, mut done) = (sampler.calls(), 0);
    let mut network = Network { engine: &engine, model, objective, request, given: None };
    let mut velocity = Reporting {
        network: &mut network,
        report: &mut || {
            done += 1;
            report(done, all)
        },
    };
    let rows = sampler.run_in_tiles(x, &mut velocity)?;
    Sampled::new(rows, request.size, config.patch_size)
}

/// A network that says when it has been asked.
struct Reporting<'a, 'n> {
    network: &'a mut Network<'n>,
    report: &'a mut dyn FnMut(),
}

impl Velocity for Reporting<'_, '_> {
    fn tiles(&mut self, state: Make, sigma: f64, take: Take) -> Result<()> {
        self.network.tiles(state, sigma, take)?;
        (self.report)();
        Ok(())
    }
}

/// Refuses guidance, by the scale that the user calls `name`, for a network that has nothing to be guided by.
pub fn check_guidance(name: &str, scale: f64, model: &ModelConfig) -> Result<()> {
    if scale == 1.0 || model.num_classes > 0 {
        return Ok(());
    }
    let text = if model.text_dim > 0 { ", and its text is one empty token, as prompts are not encoded" } else { "" };
    bail!("{name} is {scale}, but the model has no classes{text}: there is nothing to guide by; leave it at 1")
}

/// The guided velocity of a network, as a sampler asks for it.
struct Network<'a> {
    engine: &'a Engine<'a>,
    model: &'a Model,
    objective: &'a Objective,
    request: &'a Request,
    /// With guidance: the velocities of the condition asked for, until those of the null condition are there.
    given: Option<State>,
}

impl Network<'_> {
    /// One pass of the network, its predictions turned to velocities.
    fn pass(&self, condition: Condition, state: Make, sigma: f64, take: Take) -> Result<()> {
        let label = match condition {
            Condition::Given => self.request.label,
            Condition::Null => None,
        };
        let prompt = prompt(self.model, &[timestep(sigma)], &[label])?;
        self.engine.predict(&prompt, &Input(state), |rows, output| {
            let x = state(&rows)?;
            let v = self.objective.velocity(&output.reshape(x.shape())?, &x, sigma)?;
            take(rows, &x, v)
        })
    }
}

impl Velocity for Network<'_> {
    fn tiles(&mut self, state: Make, sigma: f64, take: Take) -> Result<()> {
        let guidance = &self.request.guidance;
        if !guidance.active(sigma) {
            return self.pass(Condition::Given, state, sigma, take);
        }
        let shape = (self.engine.local_tokens().len(), self.model.config.patch_in());
        let given = match self.given.take() {
            Some(given) => given,
            None => State::new(Tensor::zeros(shape, DType::F32, &Device::Cpu)?)?,
        };
        self.pass(Condition::Given, state, sigma, &mut |rows, _, v| given.set(&rows, &v))?;
        self.pass(Condition::Null, state, sigma, &mut |rows, x, null| {
            let v = guidance.guided(&given.rows(&rows)?, &null)?;
            take(rows, x, v)
        })?;
        self.given = Some(given);
        Ok(())
    }
}

/// A sampler's state as the network's input.
struct Input<'a>(Make<'a>);

impl Source for Input<'_> {
    fn input(&self, rows: Range<usize>) -> Result<Tensor> {
        let x = (self.0)(&rows)?; // [n, pt ph pw C]
        let (count, row) = x.dims2()?;
        let mut input = vec![0.0; count * row];
        channel_first(&read::<f32>(&x)?, row, 3, &mut input);
        Ok(Tensor::from_vec(input, (count, row), &Device::Cpu)?)
    }
}

/// A sampled clip, sharded like its tokens.
pub struct Sampled {
    /// This rank's rows, [local S, pt ph pw C], in [-1, 1] where the network is right.
    pub rows: Tensor,
    /// Frames, height, width of the clip.
    pub size: [usize; 3],
    patch: [usize; 3],
    grid: [usize; 3],
}

/// Numbers that travel to rank 0 at a time, if a line of patches has not more.
const BAND: usize = 1 << 20;

impl Sampled {
    /// From this rank's `rows`, [local S, pt ph pw 3], of a clip of `size` (frames, height, width) in patches of `patch`.
    ///
    /// # Errors
    /// The patch does not divide the size.
    pub fn new(rows: Tensor, size: [usize; 3], patch: [usize; 3]) -> Result<Self> {
        Ok(Self { rows, size, patch, grid: token_grid(size, patch)? })
    }

    /// Hands the clip to rank 0 in bands: `take` is called there, with some lines of one patch of frames at a time, from top to
    /// bottom and from first frame to last. A collective of the sequence's ranks; of the others each sends its rows.
    ///
    /// # Errors
    /// Those of `take`, on all ranks.
    pub fn bands(&self, comm: &dyn Communicator, mut take: impl FnMut(Frames) -> Result<()>) -> Result<()> {
        let [times, lines, columns] = self.grid;
        let row = self.rows.dims()[1];
        let split = Split::new(times * lines * columns, comm.size());
        let mine = split.range(comm.rank());
        let within = |tokens: &Range<usize>, held: &Range<usize>| {
            tokens.start.clamp(held.start, held.end)..tokens.end.clamp(held.start, held.end)
        };
        let band = (BAND / (columns * row)).clamp(1, lines);
        for (t, first) in (0..times).flat_map(|t| (0..lines).step_by(band).map(move |first| (t, first))) {
            let last = (first + band).min(lines);
            let tokens = (t * lines + first) * columns..(t * lines + last) * columns;
            let to_send = within(&tokens, &mine);
            let empty = self.rows.narrow(0, 0, 0)?;
            let mut send = vec![empty; comm.size()];
            send[0] = self.rows.narrow(0, to_send.start - mine.start, to_send.len())?;
            let arriving = |rank| if comm.rank() == 0 { within(&tokens, &split.range(rank)) } else { 0..0 };
            let shapes: Vec<_> = (0..comm.size()).map(|rank| vec![arriving(rank).len(), row]).collect();
            let received = comm.all_to_all(send, &shapes)?;
            if comm.rank() == 0 {
                let part = Part::of_tokens(tokens.clone(), self.grid, self.patch);
                let mut pixels = Frames::black(&part, self.size[1], self.size[2]);
                for (rank, rows) in received.iter().enumerate() {
                    pixels.set_rows(self.patch, arriving(rank), RowOrder::ChannelLast, &read::<f32>(rows)?)?;
                }
                take(pixels)?;
            }
        }
        Ok(())
    }

    /// Writes the clip, of one frame, to the PNG `path`, by rank 0 as its lines arrive. A collective. The inner result is that of
    /// writing: the ranks' exchange is complete then, so that a run can go on without its picture.
    ///
    /// # Errors
    /// The clip has more frames; those of the ranks' exchange. Within: the file cannot be written; nothing is left behind or
    /// overwritten then.
    pub fn write_png(&self, comm: &dyn Communicator, path: &Path) -> Result<Result<()>> {
        let [frames, height, width] = self.size;
        if frames != 1 {
            bail!("{}: a clip of {frames} frames is not one picture", path.display())
        }
        let mut writer = (comm.rank() == 0).then(|| PngWriter::create(path, height, width)).transpose();
        self.bands(comm, |band| {
            if let Ok(Some(png)) = &mut writer
                && let Err(e) = png.push(&band.data)
            {
                writer = Err(e);
            }
            Ok(())
        })?;
        Ok(writer.and_then(|writer| writer.map_or(Ok(()), PngWriter::finish)))
    }

    /// The clip's pixels, whole, on rank 0; none on others. A collective.
    ///
    /// # Errors
    /// Those of the ranks' exchange.
    pub fn collect(&self, comm: &dyn Communicator) -> Result<Option<Frames>> {
        let [frames, height, width] = self.size;
        let mut clip = (comm.rank() == 0).then(|| Frames::black(&Part::whole(0..frames, height), height, width));
        self.bands(comm, |band| {
            if let Some(clip) = &mut clip {
                clip.place(&band);
            }
            Ok(())
        })?;
        Ok(clip)
    }
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
        features => Some(Tensor::zeros((timesteps.len(), 1, features), DType::F32, &Device::Cpu)?),
    };
    Ok(Prompt { timesteps: timesteps.to_vec(), text, labels })
}
