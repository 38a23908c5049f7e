//! One direction of the VAE, its layers on the CPU or on a GPU; frames go in and come out in memory.

use candle_core::Device;

use super::Arithmetic;
use super::attention::Attention;
use super::backend::Backend;
use super::conv::Pointwise;
use super::cpu::Cpu;
#[cfg(feature = "cuda")]
use super::cuda::Gpu;
use super::frame::Frame;
use super::layer::{self, Layer};
use super::shards::RowShards;
use super::spec::HalfSpec;
use crate::{Result, bail};

/// The encoder's or the decoder's layers, with the frames that they remember of a clip.
#[derive(Clone)]
pub(super) enum Half {
    Cpu(Layers<Cpu>),
    #[cfg(feature = "cuda")]
    Gpu(Layers<Gpu>),
}

/// Does the same with whichever layers they are.
macro_rules! on_layers {
    ($half:expr, $layers:ident => $body:expr) => {
        match $half {
            Half::Cpu($layers) => $body,
            #[cfg(feature = "cuda")]
            Half::Gpu($layers) => $body,
        }
    };
}

/// What takes the frames that come out.
type Emit<'a> = dyn FnMut(Frame) -> Result<()> + 'a;

impl Half {
    /// Builds the layers on `device` of the tensors that `read` gives.
    ///
    /// # Errors
    /// Those of `read`; there is no room on the GPU.
    pub fn load(spec: &HalfSpec, arithmetic: Arithmetic, device: &Device, read: &mut layer::Read) -> Result<Self> {
        match device {
            Device::Cpu => Layers::load(spec, Cpu(arithmetic), read).map(Self::Cpu),
            #[cfg(feature = "cuda")]
            Device::Cuda(device) => Layers::load(spec, Gpu::new(device, arithmetic.bf16), read).map(Self::Gpu),
            other => bail!(Environment, "a VAE cannot run on {:?}", other.location()),
        }
    }

    pub fn push(&mut self, x: Frame, shards: &dyn RowShards, emit: &mut Emit) -> Result<()> {
        on_layers!(self, layers => layers.push(x, shards, emit))
    }

    /// The layers before the attention in the middle, alone.
    pub fn before(&mut self, x: Frame, shards: &dyn RowShards, emit: &mut Emit) -> Result<()> {
        on_layers!(self, layers => layers.before(x, shards, emit))
    }

    /// The attention in the middle, alone, of a whole frame.
    pub fn attend(&self, x: Frame, shards: &dyn RowShards) -> Result<Frame> {
        on_layers!(self, layers => layers.attend(x, shards))
    }

    /// The layers after it, alone.
    pub fn after(&mut self, x: Frame, shards: &dyn RowShards, emit: &mut Emit) -> Result<()> {
        on_layers!(self, layers => layers.after(x, shards, emit))
    }

    /// The layers, if a CPU computes them.
    pub fn on_cpu(&self) -> Option<&Layers<Cpu>> {
        match self {
            Self::Cpu(layers) => Some(layers),
            #[cfg(feature = "cuda")]
            Self::Gpu(_) => None,
        }
    }

    /// Bytes of weights, and of remembered frames.
    pub fn bytes(&self) -> [usize; 2] {
        on_layers!(self, layers => layers.bytes())
    }
}

/// The layers on one kind of processor.
#[derive(Clone)]
pub(super) struct Layers<B: Backend> {
    pub on: B,
    pub before: Vec<Layer<B>>,
    attention: Attention<B>,
    pub after: Vec<Layer<B>>,
}

impl<B: Backend> Layers<B> {
    fn load(spec: &HalfSpec, on: B, read: &mut layer::Read) -> Result<Self> {
        let before = layer::load(&spec.before, &on, read)?;
        let c = spec.attention.1;
        let [gamma, qkv, qkv_bias, proj, proj_bias] = spec.attention_tensors();
        let norm = on.row(layer::factors(read(&gamma)?))?;
        let (weights, bias) = (read(&qkv)?, read(&qkv_bias)?);
        let third = |i: usize| {
            let weights = weights[i * c * c..][..c * c].to_vec();
            Pointwise::new(&on, weights, bias[i * c..][..c].to_vec())
        };
        let proj = Pointwise::new(&on, read(&proj)?, read(&proj_bias)?)?;
        let [query, key, value] = [third(0)?, third(1)?, third(2)?];
        let attention = Attention { on: on.clone(), norm, query, key, value, proj };
        let after = layer::load(&spec.after, &on, read)?;
        Ok(Self { on, before, attention, after })
    }

    fn push(&mut self, x: Frame, shards: &dyn RowShards, emit: &mut Emit) -> Result<()> {
        let Self { on, before, attention, after } = self;
        let on = &*on;
        layer::stream(before, on, on.upload(x)?, shards, &mut |x| {
            let x = attention.push(x, shards)?;
            layer::stream(after, on, x, shards, &mut |x| emit(on.download(x)?))
        })
    }

    fn before(&mut self, x: Frame, shards: &dyn RowShards, emit: &mut Emit) -> Result<()> {
        let Self { on, before, .. } = self;
        let on = &*on;
        layer::stream(before, on, on.upload(x)?, shards, &mut |x| emit(on.download(x)?))
    }

    fn attend(&self, x: Frame, shards: &dyn RowShards) -> Result<Frame> {
        self.on.download(self.attention.push(self.on.upload(x)?, shards)?)
    }

    fn after(&mut self, x: Frame, shards: &dyn RowShards, emit: &mut Emit) -> Result<()> {
        let Self { on, after, .. } = self;
        let on = &*on;
        layer::stream(after, on, on.upload(x)?, shards, &mut |x| emit(on.download(x)?))
    }

    fn bytes(&self) -> [usize; 2] {
        let [before, after] = [layer::bytes(&self.before), layer::bytes(&self.after)];
        [before[0] + after[0] + self.attention.bytes(), before[1] + after[1]]
    }
}
