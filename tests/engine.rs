//! Tests the engine over ranks: loss and every parameter's gradient on P ranks against one, for uneven everything;
//! tiles; data x sequence meshes; one optimizer step. The network itself is checked in `model.rs`, Ulysses in
//! `parallel/`.

use candle_core::{DType, Device, Tensor};
use longreel::engine::{Engine, Objective, Source};
use longreel::model::{Conditioning, Model, ModelConfig, TextTokens};
use longreel::ops::{read, write};
use longreel::parallel::{Communicator, Mesh, Reduce, run_threads};
use longreel::rng::{Key, Purpose};
use longreel::state::StateOptions;
use longreel::state::optimizer::{AdamWOptions, clip_coefficient, sgd};
use longreel::state::weights::TrainState;
use longreel::{Error, Result};
use std::ops::Range;
use std::sync::Arc;

pub const GRID: [usize; 3] = [3, 3, 5]; // 45 tokens: 2 and 4 do not divide them

/// Heads of 8, text, classes and positions: everything a model can have.
fn config(heads: usize) -> ModelConfig {
    ModelConfig {
        patch_size: [1, 1, 1],
        num_attention_heads: heads,
        attention_head_dim: 8,
        in_channels: 3,
        out_channels: 2,
        text_dim: 6,
        freq_dim: 8,
        ffn_dim: 24,
        num_layers: 2,
        num_classes: 4,
        pos_embed: true,
        ..ModelConfig::default()
    }
}

/// Normal numbers of a key of their own.
fn normal(what: u64, n: usize) -> Vec<f32> {
    let mut values = vec![0.0; n];
    Key { seed: 7, purpose: Purpose::Test, step: 0, sample: what }.stream(0).fill_normal(&mut values);
    values
}

/// A model whose every parameter is random, so that none is idle.
pub fn model(dtype: DType, heads: usize, bf16: bool) -> Result<Model> {
    let mut number = 100;
    Model::load(&config(heads), dtype, bf16, |name| {
        number += 1;
        let (_, shape) = Model::shapes(&config(heads)).into_iter().find(|(n, _)| n == name).unwrap();
        let about = if name.contains("norm") && name.ends_with("weight") { 1.0 } else { 0.0 };
        Ok(normal(number, shape.iter().product()).into_iter().map(|v| about + 0.2 * v).collect())
    })
}

/// Clips `clips` of a global batch, each with its own time, class and text.
pub fn conditioning(clips: &[usize]) -> Result<Conditioning> {
    let text = |&clip: &usize| -> Result<TextTokens> {
        let tokens = 3 + clip % 5; // samples of a batch differ, and one has no pads
        let values = normal(20 + clip as u64, tokens * 6);
        Ok(TextTokens::padded_to(Tensor::from_vec(values, (tokens, 6), &Device::Cpu)?, 7))
    };
    Ok(Conditioning {
        timesteps: clips.iter().map(|&clip| 150.0 + 200.0 * clip as f64).collect(),
        text: Some(clips.iter().map(text).collect::<Result<_>>()?),
        labels: Some(clips.iter().map(|&clip| clip % 5).collect()),
    })
}

/// c times the mean over the global batch of |y - target|^2, on this rank's tokens of some clips.
pub struct Squares {
    pub clips: Vec<usize>,
    pub tokens: Range<usize>,
    pub dtype: DType,
    /// c / elements of the global batch.
    pub weight: f64,
}

impl Squares {
    fn rows(&self, rows: Range<usize>, what: u64, width: usize) -> Result<Tensor> {
        let mut values = vec![];
        for row in rows.clone() {
            let (clip, token) = (self.clips[row / self.tokens.len()], self.tokens.start + row % self.tokens.len());
            let clip = normal(what + clip as u64, GRID.iter().product::<usize>() * width);
            values.extend_from_slice(&clip[token * width..(token + 1) * width]);
        }
        Ok(Tensor::from_vec(values, (rows.len(), width), &Device::Cpu)?.to_dtype(self.dtype)?)
    }
}

impl Source for Squares {
    fn input(&self, rows: Range<usize>) -> Result<Tensor> {
        self.rows(rows, 40, 3)
    }
}

impl Objective for Squares {
    fn loss(&self, rows: Range<usize>, output: &Tensor) -> Result<(f64, Tensor)> {
        let error = (output - self.rows(rows, 60, 2)?)?;
        let sum = error.to_dtype(DType::F64)?.sqr()?.sum_all()?.to_scalar::<f64>()?;
        Ok((sum * self.weight, (error * (2.0 * self.weight))?))
    }
}

/// A parameter's name and gradient.
type Gradient = (String, Vec<f64>);

/// What a run is.
#[derive(Clone, Copy)]
pub struct Case {
    pub ranks: usize,
    pub data: usize,
    pub ring: usize,
    pub heads: usize,
    pub head_groups: usize,
    /// Clips of the global batch.
    pub batch: usize,
    pub accumulate: usize,
    pub tile: usize,
    pub dtype: DType,
    pub bf16: bool,
    pub scale: f64,
}

pub const ONE: Case = Case {
    ranks: 1,
    data: 1,
    ring: 0,
    heads: 5,
    head_groups: 1,
    batch: 2,
    accumulate: 1,
    tile: 0,
    dtype: DType::F32,
    bf16: false,
    scale: 1.0,
};

/// Fills the model's gradients with the sum over ranks and micro-batches; the loss.
fn gradients(case: Case, model: &Model, comm: Arc<dyn Communicator>) -> Result<f64> {
    let mesh = Mesh::new(comm, case.data, case.heads, case.ring)?;
    let micro = case.batch / case.accumulate / case.data;
    let engine = Engine::new(model, &mesh.sequence, GRID, micro, case.tile)?.in_head_groups(case.head_groups)?;
    let elements = case.batch * GRID.iter().product::<usize>() * 2;
    let mut loss = 0.0;
    for i in 0..case.accumulate {
        let first = (i * case.data + mesh.data.rank()) * micro;
        let clips: Vec<usize> = (first..first + micro).collect();
        let squares = Squares {
            clips: clips.clone(),
            tokens: engine.local_tokens(),
            dtype: case.dtype,
            weight: case.scale / elements as f64,
        };
        loss += engine.loss_and_gradients(&conditioning(&clips)?, &squares)?;
    }
    let loss = Tensor::new(&[loss], &Device::Cpu)?;
    mesh.world.all_reduce(&loss, Reduce::Sum)?;
    for unit in &model.units {
        mesh.world.all_reduce(unit.grad().unwrap(), Reduce::Sum)?;
    }
    Ok(loss.to_vec1::<f64>()?[0])
}

/// The loss, and every parameter's gradient by name, as rank `ranks - 1` holds them.
fn run(case: Case) -> Result<(f64, Vec<Gradient>)> {
    let results = run_threads(case.ranks, 1, |comm| {
        let model = model(case.dtype, case.heads, case.bf16)?;
        let loss = gradients(case, &model, comm)?;
        let mut named = vec![];
        for unit in &model.units {
            let flat = unit.grad().unwrap().to_dtype(DType::F64)?.to_vec1::<f64>()?;
            named.extend(unit.entries.iter().map(|e| (e.name.clone(), flat[e.range.clone()].to_vec())));
        }
        Ok((loss, named))
    })?;
    Ok(results.into_iter().next_back().unwrap())
}

fn norm(values: impl Iterator<Item = f64>) -> f64 {
    values.map(|v| v * v).sum::<f64>().sqrt()
}

/// Loss and every gradient of `case` equal those of one rank and one tile, to `bound` relative.
fn agrees(case: Case, bound: f64) {
    let whole = Case { ranks: 1, data: 1, ring: 0, accumulate: 1, tile: 1000, ..case };
    let ((loss, got), (want_loss, want)) = (run(case).unwrap(), run(whole).unwrap());
    let Case { ranks, data, ring, heads, batch, tile, .. } = case;
    let what = format!("P {ranks} data {data} ring {ring} H {heads} batch {batch} tile {tile}");
    assert!((loss - want_loss).abs() <= bound * want_loss.abs(), "{what}: loss {loss}, not {want_loss}");
    let all = norm(want.iter().flat_map(|(_, w)| w.iter().copied()));
    for ((name, got), (_, want)) in got.iter().zip(&want) {
        let size = norm(want.iter().copied());
        // A key's bias moves all logits of a row alike: its gradient is rounding, and is held against all gradients'.
        let size = if name.ends_with("to_k.bias") && !name.contains("attn2") { size.max(1e-2 * all) } else { size };
        assert!(size > 0.0, "{what}: the gradient of {name} is nothing");
        let error = norm(got.iter().zip(want).map(|(g, w)| g - w)) / size;
        assert!(error <= bound, "{what}: the gradient of {name} is off by {error:.1e}");
    }
}

#[test]
fn every_gradient_on_p_ranks_is_that_of_one() {
    for ranks in 2..=5 {
        for batch in [1, 2, 3] {
            agrees(Case { ranks, batch, ..ONE }, 1e-5);
        }
        agrees(Case { ranks, tile: 4, dtype: DType::F64, ..ONE }, 1e-12);
    }
}

#[test]
fn every_grid_of_ulysses_and_ring_gives_the_gradients_of_one_rank() {
    for (ranks, heads) in [(2, 1), (3, 2), (4, 3), (4, 5), (6, 4), (6, 5), (8, 1), (8, 3)] {
        for ring in (1..=ranks).filter(|ring| ranks % ring == 0 && ranks / ring <= heads) {
            agrees(Case { ranks, heads, ring, ..ONE }, 1e-5);
            agrees(Case { ranks, heads, ring, tile: 4, dtype: DType::F64, ..ONE }, 1e-12);
        }
    }
}

#[test]
fn a_ring_is_chosen_where_ranks_outnumber_heads() {
    for ranks in [2, 3, 4, 6, 8] {
        for heads in 1..=5 {
            agrees(Case { ranks, heads, batch: 1, ..ONE }, 1e-5);
            agrees(Case { ranks, heads, batch: 1, dtype: DType::F64, ..ONE }, 1e-12);
        }
    }
    agrees(Case { ranks: 8, data: 2, heads: 3, ..ONE }, 1e-5);
}

#[test]
fn groups_of_heads_change_no_bit() {
    let grids = [(1, 1, 5, 2), (1, 1, 5, 5), (2, 1, 5, 2), (3, 3, 4, 3), (4, 2, 5, 2), (2, 1, 4, 2)];
    for (ranks, ring, heads, head_groups) in grids {
        for (bf16, dtype) in [(false, DType::F32), (true, DType::F32), (false, DType::F64)] {
            let whole = Case { ranks, ring, heads, bf16, dtype, tile: 8, ..ONE };
            let ((loss, all), (same_loss, same)) = (run(whole).unwrap(), run(Case { head_groups, ..whole }).unwrap());
            let what = format!("P {ranks} ring {ring} H {heads} in {head_groups} groups, {dtype:?} bf16 {bf16}");
            assert!(loss.to_bits() == same_loss.to_bits(), "{what}: loss {same_loss}, not {loss}");
            for ((name, all), (_, same)) in all.iter().zip(&same) {
                assert!(all == same, "{what}: the gradient of {name} differs");
            }
        }
    }
}

#[test]
fn gradients_do_not_depend_on_the_tile() {
    for tile in [1, 7, 44, 45, 46, 89] {
        agrees(Case { tile, ..ONE }, 1e-5);
        agrees(Case { tile, ranks: 2, dtype: DType::F64, ..ONE }, 1e-12);
    }
}

#[test]
fn data_ranks_and_accumulation_add_up_to_the_global_batch() {
    for (ranks, data, batch, accumulate) in [(2, 2, 2, 1), (4, 2, 2, 1), (6, 2, 4, 1), (1, 1, 3, 3), (4, 2, 6, 3)] {
        agrees(Case { ranks, data, batch, accumulate, ..ONE }, 1e-5);
    }
}

#[test]
fn a_loss_times_c_has_gradients_times_c() {
    let (loss, plain) = run(Case { ranks: 2, dtype: DType::F64, ..ONE }).unwrap();
    let (three, scaled) = run(Case { ranks: 2, dtype: DType::F64, scale: 3.0, ..ONE }).unwrap();
    assert!((three - 3.0 * loss).abs() < 1e-12 * three);
    for ((name, p), (_, s)) in plain.iter().zip(&scaled) {
        let error = norm(p.iter().zip(s).map(|(p, s)| 3.0 * p - s));
        assert!(error <= 1e-12 * norm(s.iter().copied()).max(1e-3), "{name}: {error:e}");
    }
}

#[test]
fn the_same_ranks_give_the_same_bits() {
    for ring in [1, 3] {
        let case = Case { ranks: 3, ring, tile: 8, ..ONE };
        let ((loss, first), (again, second)) = (run(case).unwrap(), run(case).unwrap());
        assert!(loss.to_bits() == again.to_bits() && first == second, "ring {ring}");
    }
}

/// Weights after one step of plain SGD, of clipped SGD and of clipped AdamW, and the reported gradient norm.
fn steps(case: Case) -> Result<(f64, [Vec<f32>; 3])> {
    let mut results = run_threads(case.ranks, 1, |comm| {
        let weights = TrainState::new(
            model(DType::F32, case.heads, case.bf16)?,
            &options!(StateOptions::default(); clip: 0.05, adamw: options!(AdamWOptions::default(); weight_decay: 0.1)),
            comm.clone(),
        )?;
        gradients(case, &weights.model, comm)?;
        let norm = weights.gradient_norm(0)?;
        assert!(norm > 0.05, "the clip must act, the norm is {norm}");
        let flat = || -> Result<Vec<f32>> {
            let units = weights.model.units.iter().map(|unit| Ok(unit.value.to_vec1::<f32>()?));
            Ok(units.collect::<Result<Vec<_>>>()?.concat())
        };
        let by_sgd = |scale: f64| -> Result<Vec<f32>> {
            let mut stepped = vec![];
            for unit in &weights.model.units {
                let mut params = unit.value.to_vec1::<f32>()?;
                sgd(0.5, scale, &mut params, &read::<f32>(unit.grad().unwrap())?)?;
                stepped.extend(params);
            }
            Ok(stepped)
        };
        let (plain, clipped) = (by_sgd(1.0)?, by_sgd(clip_coefficient(norm, 0.05))?);
        // AdamW divides by the gradient's own size, which magnifies rounding where that is nothing: such elements are
        // zeroed.
        for unit in &weights.model.units {
            write(unit.grad().unwrap(), |g: &mut [f32]| {
                g.iter_mut().filter(|g| g.abs() < 1e-4).for_each(|g| *g = 0.0)
            })?;
        }
        weights.update(0, 1e-3, norm)?;
        Ok((norm, [plain, clipped, flat()?]))
    })?;
    Ok(results.swap_remove(case.ranks - 1))
}

#[test]
fn one_step_on_any_mesh_is_that_of_one_rank() {
    for accumulate in [1, 3] {
        let whole = Case { batch: 6, accumulate, ..ONE };
        let (norm_one, one) = steps(Case { accumulate: 1, ..whole }).unwrap();
        for (ranks, data) in [(1, 1), (2, 1), (4, 1), (2, 2), (4, 2)] {
            let (norm, many) = steps(Case { ranks, data, ..whole }).unwrap();
            assert!((norm - norm_one).abs() <= 1e-6 * norm_one, "P {ranks}: norm {norm}, not {norm_one}");
            for ((got, want), how) in many.iter().zip(&one).zip(["SGD", "clipped SGD", "AdamW"]) {
                let most = got.iter().zip(want).map(|(g, w)| (g - w).abs()).fold(0.0, f32::max);
                assert!(most <= 1e-6, "P {ranks} x data {data}, accumulate {accumulate}, {how}: off by {most:e}");
            }
        }
    }
}

#[test]
fn too_many_ranks_are_an_error_on_all_ranks() {
    for (ranks, ring, heads, head_groups, expected) in [
        (46, 0, 5, 1, "46 sequence-parallel ranks cannot share a clip of 45 tokens"),
        (6, 1, 5, 1, "6 sequence-parallel ranks cannot share 5 attention heads"),
        (8, 2, 3, 1, "8 ranks in a ring of 2 leave 4 to a Ulysses group; set parallel.ring to 4 or more"),
        (6, 4, 5, 1, "6 sequence-parallel ranks cannot form a ring of 4; set parallel.ring to a divisor of 6 (1, 2,"),
        (
            2,
            1,
            5,
            3,
            "parallel.head_groups = 3: 5 heads cannot form so many groups with a head for each of the 2 ranks",
        ),
        (1, 1, 5, 6, "use 1 to 5, or a larger parallel.ring"),
        (1, 1, 5, 0, "parallel.head_groups = 0"),
    ] {
        let error = run(Case { ranks, ring, heads, head_groups, ..ONE }).map(|_| ()).unwrap_err();
        assert!(matches!(&error, Error::Shape(m) if m.contains(expected)), "{error}");
    }
}
