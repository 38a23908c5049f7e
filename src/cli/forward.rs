//! Runs `longreel forward`, a model folder on given inputs, to check this implementation against another.

use candle_core::{Device, Tensor};
use clap::Args;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;

use crate::config::{Compute, Hardware};
use crate::engine::{Engine, Objective, Source};
use crate::files::{Tensors, write_tensors};
use crate::lora::AdapterFile;
use crate::model::{Conditioning, Model, ModelConfig, Patches, TextTokens, TimeGroups};
use crate::parallel::{Communicator, Launch, Reduce, Sequence, Split, is_first};
use crate::state::frozen::FrozenModel;
use crate::state::named::NamedModel;
use crate::text::TextModel;
use crate::train::device::device;
use crate::vae::VaeWeights;
use crate::{Result, bail, hub};

/// Run a diffusers transformer folder, a VAE or a text encoder on the inputs of a safetensors file.
///
/// A transformer's inputs are `hidden_states` [B, C, T, H, W], `timestep` [B], or [B, N] with one for each token (TI2V
/// 5B; few may differ within a clip), and, for a model with text, `encoder_hidden_states` [B, L, text_dim] with its
/// pads, rows of zeros, for one with classes `class_labels` [B]; the output is `sample`, with --grads also `loss` =
/// mean(sample^2) and `grad.NAME` for every parameter, or with --lora `grad.LAYER.lora_A.weight` and
/// `grad.LAYER.lora_B.weight`.
///
/// A VAE's input is `pixels` [1, 3, T, H, W] in -1..1, and the outputs are `moments` [1, 2z, T', h, w] (means, then log
/// variances) and `latents` (means, normalised); or the input is `latents`, and the output `decoded`.
///
/// A text encoder's inputs are `input_ids` [B, L] and `attention_mask` [B, L], ones and then zeros; the output is
/// `last_hidden_state` [B, L, features], zeros beyond each text's end.
#[derive(Debug, Args)]
pub struct ForwardArgs {
    /// A transformer or pipeline folder in diffusers' layout, a run, a checkpoint or a part of it, or
    /// `hf://owner/name[@revision][/path]`
    #[arg(value_name = "MODEL_DIR", value_parser = super::place())]
    pub model: String,
    /// The inputs
    #[arg(value_name = "INPUTS.safetensors", value_parser = super::path())]
    pub inputs: PathBuf,
    /// The outputs
    #[arg(short, long, value_name = "OUT.safetensors", value_parser = super::path())]
    pub output: PathBuf,
    /// Replace the outputs' file if it exists
    #[arg(long)]
    pub force: bool,
    /// Also the loss and every parameter's gradient; with --lora, those of the adapters alone
    #[arg(long)]
    pub grads: bool,
    /// Adapters of the transformer's linear layers, a LoRA file of any form
    #[arg(long, value_name = "FILE", value_parser = super::place())]
    pub lora: Option<String>,
    /// Ranks, as threads of this process; default: 1. Under mpirun or srun each process is a rank
    #[arg(long, value_name = "P", value_parser = super::at_least_1)]
    pub ranks: Option<usize>,
    /// Arithmetic of linear layers and attention
    #[arg(long, default_value = "f32")]
    pub dtype: Compute,
    /// What computes; default: the CPU, or the GPU that a launcher gave this rank
    #[arg(long)]
    pub device: Option<Hardware>,
    /// For a VAE on one rank: work on tiles of this side in pixels, for less memory, with the same result
    #[arg(long, value_name = "PIXELS", value_parser = super::at_least_1)]
    pub tile: Option<usize>,
}

/// Named results, ready to be written.
type Named = Vec<(String, Vec<usize>, Vec<f32>)>;

/// Runs the command.
pub fn run(args: &ForwardArgs, launch: &Launch) -> Result<()> {
    super::may_write(&args.output, args.force)?;
    let ranks = launch.ranks(args.ranks, "--ranks")?;
    let path = launch.rank0_first(|| hub::resolve(&args.model))?;
    if TextModel::is_encoder(&path) || super::text::has_ids(&args.inputs) {
        return super::text::forward(args, &path, ranks);
    }
    if VaeWeights::is_vae(&path) {
        return super::vae::forward(args, &path, ranks, launch);
    }
    if args.tile.is_some() {
        bail!(Config, "--tile: {} is no VAE; only a VAE works on tiles of pixels", path.display());
    }
    let device = device(args.device, "--device", ranks, launch)?;
    let (mut named, folder) = NamedModel::opened(&path)?;
    let config = ModelConfig::of(&folder)?;
    folder.check(&Model::shapes(&config))?;
    if let Some(lora) = &args.lora {
        if named.record.is_some() {
            bail!(Config, "--lora: {} has adapters already; name the network below them", path.display());
        }
        let file = AdapterFile::open(&launch.rank0_first(|| hub::resolve(lora))?)?;
        file.check(&config)?;
        named.adapter = Some(file.adapter);
    }
    let inputs = Inputs::read(&args.inputs, &config)?;
    let frozen = FrozenModel::new(launch.processes().map_or(ranks, |_| 1));
    let mut results = launch.run(ranks, |comm| {
        let bf16 = args.dtype == Compute::Bf16;
        let model = named.load(&folder, &config, bf16, &frozen, &[])?.to_device(&device)?;
        inputs.run(&model, comm, args.grads)
    })?;
    if !is_first() {
        return Ok(()); // all have the same
    }
    write_tensors(&args.output, results.swap_remove(0))
}

/// What the network is run on.
struct Inputs {
    batch: usize,
    clips: Vec<f32>, // [B, C, T, H, W]
    patches: Patches,
    /// Which times the tokens have, where they are given one by one.
    groups: Option<TimeGroups>,
    conditioning: Conditioning,
}

impl Inputs {
    fn read(path: &std::path::Path, config: &ModelConfig) -> Result<Self> {
        let file = Tensors::open(path)?;
        let at = |what: &str| format!("{}: {what}", path.display());
        let &[b, channels, t, h, w] = file.shape("hidden_states")? else {
            bail!(Shape, "{} is {:?}; [B, C, T, H, W] is wanted", at("hidden_states"), file.shape("hidden_states")?)
        };
        if channels != config.in_channels {
            bail!(Shape, "{} has {channels} channels, the model takes {}", at("hidden_states"), config.in_channels)
        }
        config.grid([t, h, w]).map_err(|e| e.at(at("hidden_states")))?;
        let patches = Patches { channels, size: [t, h, w], patch: config.patch_size };
        let tokens: usize = patches.grid().iter().product();
        let per_token = match *file.shape("timestep")? {
            [n] if n == b && b > 0 => false,
            [n, each] if n == b && b > 0 && each == tokens => true,
            _ => bail!(
                Shape,
                "{} is {:?}; one for each of {b} clips, [{b}], or for each of their tokens, [{b}, {tokens}], is wanted",
                at("timestep"),
                file.shape("timestep")?
            ),
        };
        let text = match config.text_dim {
            0 => None,
            features => {
                let shape = file.shape("encoder_hidden_states")?.to_vec();
                if !matches!(shape[..], [samples, tokens, f] if samples == b && tokens > 0 && f == features) {
                    bail!(Shape, "{} is {shape:?}; [{b}, tokens, {features}] is wanted", at("encoder_hidden_states"))
                }
                let text = Tensor::from_vec(file.read_f32("encoder_hidden_states")?, shape, &Device::Cpu)?;
                Some((0..b).map(|sample| TextTokens::of_padded(&text.get(sample)?)).collect::<Result<_>>()?)
            }
        };
        let labels = match config.num_classes {
            0 => None,
            _ => Some(file.read_numbers("class_labels")?.into_iter().map(|label| label as usize).collect()),
        };
        let timesteps: Vec<f64> = file.read_numbers("timestep")?.into_iter().map(f64::from).collect();
        let (groups, timesteps) = match per_token {
            true => {
                let (groups, timesteps) = TimeGroups::of_timesteps(&timesteps, tokens);
                (Some(groups), timesteps)
            }
            false => (None, timesteps),
        };
        Ok(Self {
            batch: b,
            clips: file.read_f32("hidden_states")?,
            patches,
            groups,
            conditioning: Conditioning { timesteps, text, labels },
        })
    }

    /// Runs the network on this rank's share; every rank returns the whole result.
    fn run(&self, model: &Model, comm: Arc<dyn Communicator>, grads: bool) -> Result<Named> {
        let b = self.batch;
        let sequence = Sequence::new(comm.clone(), model.config.num_attention_heads, 0)?;
        let mut engine = Engine::new(model, &sequence, self.patches.grid(), b, 0)?;
        if let Some(groups) = &self.groups {
            engine = engine.with_time_groups(groups)?;
        }
        let share = Share { inputs: self, tokens: engine.local_tokens(), scale: self.scale(&model.config) };
        let mut rows = Vec::with_capacity(b * share.tokens.len() * model.config.patch_out());
        engine.predict(&self.conditioning, &share, |_, output| {
            rows.extend(output.flatten_all()?.to_vec1::<f32>()?);
            Ok(())
        })?;
        let mut named = vec![self.gather(&model.config, comm.as_ref(), rows)?];
        if grads {
            let loss = engine.loss_and_gradients(&self.conditioning, &share)?;
            let loss = Tensor::new(&[loss], &Device::Cpu)?;
            comm.all_reduce(&loss, Reduce::Sum)?;
            named.push(("loss".into(), vec![], vec![loss.to_vec1::<f64>()?[0] as f32]));
            for unit in model.units.iter().filter(|unit| !unit.is_frozen()) {
                let grad = unit.grad()?;
                comm.all_reduce(grad, Reduce::Sum)?;
                let flat = grad.to_vec1::<f32>()?;
                for entry in &unit.entries {
                    named.push((
                        format!("grad.{}", entry.name),
                        entry.shape.clone(),
                        flat[entry.range.clone()].to_vec(),
                    ));
                }
            }
        }
        Ok(named)
    }

    /// 1 / the number of outputs.
    fn scale(&self, config: &ModelConfig) -> f64 {
        let tokens: usize = self.patches.grid().iter().product();
        1.0 / (self.batch * tokens * config.patch_out()) as f64
    }

    /// The whole `sample` from every rank's output rows.
    fn gather(
        &self,
        config: &ModelConfig,
        comm: &dyn Communicator,
        rows: Vec<f32>,
    ) -> Result<(String, Vec<usize>, Vec<f32>)> {
        let (b, width) = (self.batch, config.patch_out());
        let out = Patches { channels: config.out_channels, ..self.patches };
        let tokens = Split::new(out.grid().iter().product(), comm.size());
        let shape = |rank: usize| vec![b, tokens.count(rank), width];
        let shapes: Vec<_> = (0..comm.size()).map(shape).collect();
        let parts = comm.all_gather(&Tensor::from_vec(rows, shape(comm.rank()), &Device::Cpu)?, &shapes)?;
        let [t, h, w] = out.size;
        let mut sample = vec![0.0; b * out.channels * t * h * w];
        for (rank, part) in parts.iter().enumerate() {
            for (i, clip) in sample.chunks_exact_mut(out.channels * t * h * w).enumerate() {
                out.place_output_rows(&part.get(i)?.flatten_all()?.to_vec1::<f32>()?, tokens.range(rank), clip);
            }
        }
        Ok(("sample".into(), vec![b, out.channels, t, h, w], sample))
    }
}

/// One rank's tokens of the inputs.
struct Share<'a> {
    inputs: &'a Inputs,
    tokens: Range<usize>,
    scale: f64,
}

impl Source for Share<'_> {
    fn input(&self, rows: Range<usize>) -> Result<Tensor> {
        let Inputs { clips, patches, .. } = self.inputs;
        let clip = patches.channels * patches.size.iter().product::<usize>();
        let mut values = Vec::with_capacity(rows.len() * patches.row());
        for row in rows.clone() {
            let (sample, token) = (row / self.tokens.len(), self.tokens.start + row % self.tokens.len());
            values.extend(patches.input_rows(&clips[sample * clip..][..clip], token..token + 1));
        }
        Ok(Tensor::from_vec(values, (rows.len(), patches.row()), &Device::Cpu)?)
    }
}

impl Objective for Share<'_> {
    fn loss(&self, _: Range<usize>, output: &Tensor) -> Result<(f64, Tensor)> {
        let sum: f64 = output.flatten_all()?.to_vec1::<f32>()?.into_iter().map(|y| f64::from(y).powi(2)).sum();
        Ok((sum * self.scale, (output * (2.0 * self.scale))?))
    }
}
