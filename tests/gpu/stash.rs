//! Tests the stash on a GPU: it copies what was computed, not what lay there before. Milliseconds of attention stand
//! before all that is put, so that a copy which does not wait comes too early. On the emulated driver such a copy ends
//! the process, however short the work.

use candle_core::{DType, Device, Tensor};
use longreel::attention::{Qkv, flash};
use longreel::engine::stash::{Attention, Residuals, Shapes, Stash, StashOptions};
use longreel::files::Place;
use longreel::ops::Compute;
use tempfile::TempDir;

use super::{gpu, normal, values};

const BLOCKS: usize = 5;
const HEADS: usize = 8;

/// What is put, and what keeps the GPU at work before.
struct Sizes {
    rows: usize,
    width: usize,
    /// Of attention, `[B, H, S, d]`.
    work: [usize; 4],
}

impl Sizes {
    /// Attention on 32K tokens of 12 heads takes some 15 ms of an H200 (arithmetic), a copy of 16 MB to the host 0.3
    /// ms.
    fn new(gpu: &Device) -> Self {
        let name = gpu.as_cuda_device().unwrap().cuda_stream().context().name().unwrap();
        match name.as_str() {
            "emulated GPU" => Self { rows: 60, width: 40, work: [1, 1, 40, 64] },
            _ => Self { rows: 4096, width: 1024, work: [1, 12, 32 << 10, 128] },
        }
    }

    fn shapes(&self) -> Shapes {
        Shapes::new(self.rows, self.width, [1, HEADS, self.rows], DType::F32, DType::F32)
    }
}

struct Work([Tensor; 3]);

impl Work {
    fn new([b, h, s, d]: [usize; 4], gpu: &Device) -> Self {
        let head = |i| normal(&[1, 1, s, d], i, DType::BF16).to_device(gpu).unwrap();
        Self([0, 1, 2].map(|i| head(i).broadcast_as((b, h, s, d)).unwrap().contiguous().unwrap()))
    }

    fn begin(&self) {
        flash(Qkv::new(&self.0[0], &self.0[1], &self.0[2]), 0.1).unwrap();
    }
}

/// A block of `number`s in buffers of zeros, which are filled after the work: x as tiles fill it, o and lse as groups
/// of heads are joined.
fn computed(sizes: &Sizes, work: &Work, number: f64, gpu: &Device) -> Residuals {
    let Sizes { rows, width, .. } = *sizes;
    let x = Tensor::zeros((rows, width), DType::F32, gpu).unwrap();
    let part = |dims: &[usize]| (Tensor::ones(dims, DType::F32, gpu).unwrap() * number).unwrap();
    let (tile, half, heads) = (part(&[rows / 2, width]), part(&[rows, width / 2]), part(&[1, HEADS / 2, rows]));
    gpu.synchronize().unwrap();
    work.begin();
    x.slice_set(&tile, 0, 0).unwrap();
    x.slice_set(&tile, 0, rows / 2).unwrap();
    let o = Tensor::cat(&[&half, &half], 1).unwrap();
    Residuals { x, attention: Some(Attention { o, lse: Tensor::cat(&[&heads, &heads], 1).unwrap() }) }
}

fn only(what: &str, t: &Tensor, number: usize) {
    let wrong = values(t).iter().filter(|&&x| x != number as f64).count();
    assert_eq!(wrong, 0, "{what}: block {number} has numbers that are not its own");
}

#[test]
fn the_stash_gives_back_what_was_computed() {
    let (gpu, folder) = (gpu(), TempDir::new().unwrap());
    let sizes = Sizes::new(&gpu);
    let work = Work::new(sizes.work, &gpu);
    let [mut disk, mut rounded] = [StashOptions::default(), StashOptions::default()];
    (disk.place, disk.folder) = (Place::Disk, Some(folder.path().to_owned()));
    rounded.dtype = Compute::Bf16;
    for (name, settings) in [("ram", StashOptions::default()), ("disk", disk), ("rounded", rounded)] {
        let mut stash = Stash::open(&settings, 0, &gpu).unwrap();
        for step in 0..2 {
            stash.begin(BLOCKS, &sizes.shapes()).unwrap();
            for i in 0..BLOCKS {
                stash.put(i, computed(&sizes, &work, i as f64, &gpu)).unwrap();
            }
            // A block is used late: the buffers that it is lent may not be read into before.
            let mut used = vec![];
            for i in (0..BLOCKS).rev() {
                let Residuals { x, attention } = stash.take(i).unwrap();
                let Attention { o, lse } = attention.unwrap();
                work.begin();
                used.push((i, [x, o, lse].map(|t| t.force_contiguous().unwrap())));
            }
            for (i, tensors) in used {
                let parts = ["x", "o", "lse"].into_iter().zip(&tensors);
                parts.for_each(|(part, t)| only(&format!("{name}, step {step}, {part}"), t, i));
            }
        }
    }
}
