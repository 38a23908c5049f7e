//! Computes one rank's sizes: its tokens, its heads of each group, its place in the mesh. Splits are those that the
//! ranks use.

use candle_core::DType;

use crate::Result;
use crate::config::{Compute, Hardware, RunConfig};
use crate::data::FrameRegion;
use crate::engine::heads::shares;
use crate::engine::stash::{self, Shapes};
use crate::engine::{check_on_gpu, precision, tile_rows};
use crate::model::ModelConfig;
use crate::parallel::{Sequence, Split};
use crate::vae::Space;

pub struct Shape {
    /// Clips B of a micro-batch.
    pub batch: usize,
    /// Rows of this rank: clips times its tokens.
    pub rows: usize,
    /// Tokens of its Ulysses group: the rows of a head inside attention.
    pub group_tokens: usize,
    /// Ranks of a Ulysses group, of a ring, and in all.
    pub ulysses: usize,
    pub ring: usize,
    pub ranks: usize,
    /// Heads of each head group, all of them and this rank's.
    pub groups: Vec<[usize; 2]>,
    pub width: usize,
    pub head_dim: usize,
    pub tile: usize,
    /// Whether linear layers and attention compute in bf16.
    pub half: bool,
    /// Whether on a GPU.
    pub gpu: bool,
    /// Bytes of this rank's part of a clip: the frames, or lines of an image, that its tokens lie in, as u8 pixels or
    /// f32 latents.
    pub frames: u64,
}

impl Shape {
    pub fn new(config: &RunConfig, model: &ModelConfig, space: Space, grid: [usize; 3], rank: usize) -> Result<Self> {
        let (parallel, train) = (&config.parallel, &config.train);
        let (tokens, sequence) = (grid.iter().product(), parallel.ranks / parallel.data);
        let heads = model.num_attention_heads;
        let [ulysses, ring] = Sequence::degrees(sequence, heads, parallel.ring)?;
        if sequence > tokens {
            crate::bail!(
                Shape,
                "{sequence} sequence-parallel ranks cannot share a clip of {tokens} tokens: use at most {tokens}"
            )
        }
        let within = rank % sequence;
        let split = shares(heads, parallel.head_groups, ulysses)?;
        let group_heads = |i| {
            let heads = split.count(i);
            [heads, Split::new(heads, ulysses).count(within % ulysses)]
        };
        let local = Split::new(tokens, sequence).range(within);
        let part = FrameRegion::of_tokens(local.clone(), grid, model.patch_size);
        let rows = train.batch * local.len();
        let group_tokens = Split::new(tokens, ring).count(within / ulysses);
        let tile = tile_rows(train.tile, model.ffn_dim, train.device).min(rows);
        let (half, gpu) = (train.dtype == Compute::Bf16, train.device == Hardware::Cuda);
        if gpu {
            precision::check_on_gpu(half, model.attention_head_dim, group_tokens)?;
            check_on_gpu(tile, model.widest_row())?;
        }
        Ok(Self {
            batch: train.batch,
            rows,
            group_tokens,
            ulysses,
            ring,
            ranks: parallel.ranks,
            groups: (0..split.parts).map(group_heads).collect(),
            width: model.width(),
            head_dim: model.attention_head_dim,
            tile,
            half,
            gpu,
            frames: match space.is_latent() {
                true => (4 * part.frames.len() * grid[1] * grid[2] * model.patch_in() / model.patch_size[0]) as u64,
                false => part.bytes(config.data.width) as u64,
            },
        })
    }

    /// Bytes of an element that attention computes with.
    pub fn element(&self) -> u64 {
        if self.half { 2 } else { 4 }
    }

    /// Bytes of rows of the residual stream.
    pub fn stream(&self) -> u64 {
        4 * (self.rows * self.width) as u64
    }

    /// Bytes of rows of all heads, as attention computes.
    pub fn attended(&self) -> u64 {
        self.element() * (self.rows * self.width) as u64
    }

    /// Bytes of the row statistic of all this rank's heads.
    pub fn statistic(&self) -> u64 {
        4 * (self.batch * self.local_heads() * self.group_tokens) as u64
    }

    /// Bytes of delta, a value for each of this rank's rows and each head.
    pub fn delta(&self) -> u64 {
        4 * (self.rows * self.width / self.head_dim) as u64
    }

    /// This rank's heads of all groups.
    pub fn local_heads(&self) -> usize {
        self.groups.iter().map(|group| group[1]).sum()
    }

    /// Bytes of a block in a stash that copies, see [`stash::copied`].
    pub fn copied(&self, config: &RunConfig) -> u64 {
        let compute = if self.half { DType::BF16 } else { DType::F32 };
        let lse = [self.batch, self.local_heads(), self.group_tokens];
        stash::copied(&config.stash, self.gpu, &Shapes::new(self.rows, self.width, lse, DType::F32, compute))
    }
}
