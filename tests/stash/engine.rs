//! Tests the engine with each kind of stash: the same bits as from memory, over steps, shapes and ranks.

use super::*;
use longreel::engine::{Engine, Objective, Source};
use longreel::model::{Conditioning, Model, ModelConfig};
use longreel::ops::write;
use longreel::parallel::{Sequence, run_threads};
use std::ops::Range;

/// Grids and batches that take turns: more tokens, fewer, more clips, the first again.
const CLIPS: [([usize; 3], usize); 4] = [([2, 3, 3], 1), ([1, 2, 2], 2), ([2, 3, 2], 3), ([2, 3, 3], 1)];

const LAYERS: usize = 5;

/// A run: ranks, and the dtypes of the residual stream and of attention.
pub struct Case {
    ranks: usize,
    dtype: DType,
    bf16: bool,
}

impl Case {
    pub fn new(ranks: usize) -> Self {
        Self { ranks, dtype: DType::F32, bf16: false }
    }
}

struct Squares {
    what: u64,
    first: usize,
    dtype: DType,
}

impl Source for Squares {
    fn input(&self, rows: Range<usize>) -> Result<Tensor> {
        let row = |row| normal(self.what + (self.first + row) as u64, 2);
        Ok(Tensor::from_vec(rows.clone().flat_map(row).collect::<Vec<_>>(), (rows.len(), 2), &Device::Cpu)?
            .to_dtype(self.dtype)?)
    }
}

impl Objective for Squares {
    fn loss(&self, _: Range<usize>, output: &Tensor) -> Result<(f64, Tensor)> {
        Ok((output.to_dtype(DType::F64)?.sqr()?.sum_all()?.to_scalar::<f64>()?, (output * 2.0)?))
    }
}

/// Loss and gradients of a few steps, each with a clip of another shape and weights that follow from the step before;
/// of every rank.
pub fn gradients(case: &Case, settings: &StashOptions, hook: &(dyn Fn(usize) -> Hook + Sync)) -> Result<Vec<Vec<f64>>> {
    let config = ModelConfig {
        patch_size: [1, 1, 1],
        num_attention_heads: 3,
        attention_head_dim: 8,
        in_channels: 2,
        out_channels: 2,
        text_dim: 0,
        freq_dim: 8,
        ffn_dim: 24,
        num_layers: LAYERS,
        ..ModelConfig::default()
    };
    run_threads(case.ranks, 1, |comm| {
        let mut number = 100;
        let model = Model::load(&config, case.dtype, case.bf16, |name| {
            number += 1;
            let (_, shape) = Model::shapes(&config).into_iter().find(|(n, _)| n == name).unwrap();
            Ok(normal(number, shape.iter().product()).into_iter().map(|v| 0.2 * v).collect())
        })?;
        let stash = Arc::new(Mutex::new(Stash::open_with(settings, comm.rank(), hook(comm.rank()))?));
        let mut all = vec![];
        for (step, (grid, batch)) in CLIPS.into_iter().enumerate() {
            let engine =
                Engine::new(&model, &Sequence::new(comm.clone(), config.num_attention_heads, 0)?, grid, batch, 4)?
                    .with_stash(stash.clone());
            let first = engine.local_tokens().start;
            let squares = Squares { what: 10_000 + 100 * step as u64, first, dtype: case.dtype };
            let conditioning = Conditioning { timesteps: vec![300.0; batch], text: None, labels: None };
            model.zero_grads()?;
            all.push(engine.loss_and_gradients(&conditioning, &squares)?);
            for unit in &model.units {
                let grad = unit.grad().unwrap().to_dtype(DType::F64)?.to_vec1::<f64>()?;
                let descend = |v: f64, g: f64| v - 1e-4 * g;
                match case.dtype {
                    DType::F64 => write(&unit.value, |v: &mut [f64]| {
                        v.iter_mut().zip(&grad).for_each(|(v, g)| *v = descend(*v, *g))
                    })?,
                    _ => write(&unit.value, |v: &mut [f32]| {
                        v.iter_mut().zip(&grad).for_each(|(v, g)| *v = descend(f64::from(*v), *g) as f32)
                    })?,
                }
                all.extend(grad);
            }
        }
        Ok(all)
    })
}

fn on_time(_: usize) -> Hook {
    Arc::new(|_| Ok(()))
}

fn cases() -> impl Iterator<Item = Case> {
    (1..=3).flat_map(|ranks| {
        let of = move |dtype, bf16| Case { ranks, dtype, bf16 };
        [of(DType::F32, false), of(DType::F32, true), of(DType::F64, false)]
    })
}

#[test]
fn a_file_gives_the_same_bits_as_memory() {
    let folder = tempfile::tempdir().unwrap();
    for case in cases() {
        let want = gradients(&case, &ram(), &on_time).unwrap();
        assert!(want[0].iter().all(|v| v.is_finite()));
        for hook in [on_time, |_| late()] {
            assert!(gradients(&case, &disk(folder.path()), &hook).unwrap() == want, "{} ranks", case.ranks);
        }
    }
}

#[test]
fn attention_computed_again_gives_the_same_bits() {
    let folder = tempfile::tempdir().unwrap();
    for case in cases() {
        let want = gradients(&case, &ram(), &on_time).unwrap();
        for settings in [ram(), disk(folder.path())] {
            let settings = options!(settings; keep_attention: false);
            assert!(gradients(&case, &settings, &|_| late()).unwrap() == want, "{} ranks, {settings:?}", case.ranks);
        }
    }
}

#[test]
fn bf16_changes_gradients_by_its_rounding_and_no_more() {
    let folder = tempfile::tempdir().unwrap();
    let case = Case { ranks: 2, dtype: DType::F64, bf16: false };
    let want = &gradients(&case, &ram(), &on_time).unwrap()[1];
    let ours = gradients(&case, &bf16(ram()), &on_time).unwrap();
    assert!(gradients(&case, &bf16(disk(folder.path())), &|_| late()).unwrap() == ours, "memory and file differ");
    let norm = |values: &mut dyn Iterator<Item = f64>| values.map(|v| v * v).sum::<f64>().sqrt();
    let error = norm(&mut ours[1].iter().zip(want).map(|(a, b)| a - b)) / norm(&mut want.iter().copied());
    // bf16 rounds to 2^-9.
    assert!(error > 1e-5 && error < 2f64.powi(-7), "{error:e}");
}
