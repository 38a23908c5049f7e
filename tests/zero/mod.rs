//! Tests ZeRO: in every stage and on every mesh, a step is that of one rank which holds everything, and a rank holds
//! its part only. Whole runs: `runs.rs`; prefetching: `prefetch.rs`.

mod adapters;
mod optimizers;
mod prefetch;
mod runs;

use candle_core::{DType, Device, Tensor};
use longreel::engine::{Engine, Objective, ParamHooks, Pass, Source};
use longreel::files::Place;
use longreel::model::{Conditioning, Model, ModelConfig};
use longreel::ops::{read, storage_bytes, write};
use longreel::parallel::{Communicator, Mesh, run_threads};
use longreel::rng::{Key, Purpose};
use longreel::state::StateOptions;
use longreel::state::optimizer::{AdamWOptions, OptimizerKind};
use longreel::state::weights::{StateBytes, TrainState};
use longreel::{Error, Result};
use std::ops::Range;
use std::sync::Arc;

const GRID: [usize; 3] = [2, 3, 3]; // 18 tokens: 4 does not divide them
const BATCH: usize = 6;

fn config() -> ModelConfig {
    ModelConfig {
        patch_size: [1, 1, 1],
        num_attention_heads: 5,
        attention_head_dim: 8,
        in_channels: 3,
        out_channels: 2,
        text_dim: 0,
        freq_dim: 8,
        ffn_dim: 24,
        num_layers: 2,
        num_classes: 4,
        ..ModelConfig::default()
    }
}

fn normal(what: u64, n: usize) -> Vec<f32> {
    let mut values = vec![0.0; n];
    Key { seed: 9, purpose: Purpose::Test, step: 0, sample: what }.stream(0).fill_normal(&mut values);
    values
}

/// A model whose every parameter is random, so that none is idle.
fn model() -> Result<Model> {
    let (shapes, mut number) = (Model::shapes(&config()), 100);
    Model::load(&config(), DType::F32, false, |name| {
        number += 1;
        let (_, shape) = shapes.iter().find(|(n, _)| n == name).unwrap();
        let about = if name.contains("norm") && name.ends_with("weight") { 1.0 } else { 0.0 };
        Ok(normal(number, shape.iter().product()).into_iter().map(|v| about + 0.2 * v).collect())
    })
}

/// This rank's share of the mean square of the output less a target, over the whole global batch.
struct Squares {
    clips: Range<usize>,
    tokens: Range<usize>,
}

impl Squares {
    fn rows(&self, rows: Range<usize>, what: usize, width: usize) -> Result<Tensor> {
        let mut values = vec![];
        for row in rows.clone() {
            let (clip, token) =
                (self.clips.start + row / self.tokens.len(), self.tokens.start + row % self.tokens.len());
            values.extend(normal((what + 100 * clip + token) as u64, width));
        }
        Ok(Tensor::from_vec(values, (rows.len(), width), &Device::Cpu)?)
    }
}

impl Source for Squares {
    fn input(&self, rows: Range<usize>) -> Result<Tensor> {
        self.rows(rows, 1000, 3)
    }
}

impl Objective for Squares {
    fn loss(&self, rows: Range<usize>, output: &Tensor) -> Result<(f64, Tensor)> {
        let weight = 1.0 / (BATCH * GRID.iter().product::<usize>() * 2) as f64;
        let error = (output - self.rows(rows, 2000, 2)?)?;
        let sum = error.to_dtype(DType::F64)?.sqr()?.sum_all()?.to_scalar::<f64>()?;
        Ok((sum * weight, (error * (2.0 * weight))?))
    }
}

#[derive(Clone, Copy, Debug)]
struct Case {
    sequence: usize,
    data: usize,
    accumulate: usize,
    zero: usize,
}

const ONE: Case = Case { sequence: 1, data: 1, accumulate: 1, zero: 0 };

/// The step that is made.
#[derive(Clone, Copy, Debug, PartialEq)]
enum By {
    Sgd,
    ClippedAdamW,
    ClippedAdamW8,
    ClippedMuon,
}

impl By {
    fn optimizer(self) -> OptimizerKind {
        match self {
            Self::Sgd | Self::ClippedAdamW => OptimizerKind::AdamW,
            Self::ClippedAdamW8 => OptimizerKind::AdamW8,
            Self::ClippedMuon => OptimizerKind::Muon,
        }
    }

    /// How far a weight may be from that of one rank after two steps, as gradients are summed in another order: Newton
    /// and Schulz magnify rounding, and a moment of eight bits may become its neighbour, a few hundredths of a step
    /// away.
    fn tolerance(self) -> f32 {
        match self {
            Self::Sgd | Self::ClippedAdamW => 1e-6,
            Self::ClippedAdamW8 => 1e-3,
            Self::ClippedMuon => 1e-5,
        }
    }
}

/// Epsilon is large, as AdamW would else magnify the rounding of gradients that are nothing.
fn options_of(by: By) -> StateOptions {
    let adamw = options!(AdamWOptions::default(); weight_decay: 0.1, eps: 1e-3);
    let clip = if by == By::Sgd { 0.0 } else { 0.05 };
    options!(StateOptions::default(); optimizer: by.optimizer(), adamw: adamw, clip, ema: 0.9)
}

impl Case {
    fn ranks(self) -> usize {
        self.sequence * self.data
    }

    fn weights(self, comm: Arc<dyn Communicator>, options: &StateOptions) -> Result<TrainState> {
        TrainState::new(model()?, &options!(options.clone(); zero: self.zero), comm)
    }

    /// All micro-batches of a step: the gradients, summed.
    fn gradients(self, comm: Arc<dyn Communicator>, weights: &TrainState) -> Result<()> {
        let mesh = Mesh::new(comm, self.data, config().num_attention_heads, 0)?;
        let micro = BATCH / self.accumulate / self.data;
        let engine = Engine::new(&weights.model, &mesh.sequence, GRID, micro, 7)?.with_hooks(weights);
        weights.zero_gradients()?;
        for i in 0..self.accumulate {
            let first = (i * self.data + mesh.data.rank()) * micro;
            let squares = Squares { clips: first..first + micro, tokens: engine.local_tokens() };
            let conditioning = Conditioning {
                timesteps: squares.clips.clone().map(|clip| 100.0 + 150.0 * clip as f64).collect(),
                text: None,
                labels: Some(squares.clips.clone().map(|clip| clip % 5).collect()),
            };
            engine.loss_and_gradients(&conditioning, &squares)?;
        }
        weights.sum_gradients()
    }

    /// Two steps: the gradient norms, every rank's weights after them, and their average's.
    fn steps(self, by: By) -> Result<([f64; 2], Vec<Vec<f32>>)> {
        let options = options_of(by);
        let results = run_threads(self.ranks(), 1, |comm| {
            let weights = self.weights(comm.clone(), &options)?;
            let mut norms = [0.0; 2];
            for (step, norm) in (0..).zip(&mut norms) {
                self.gradients(comm.clone(), &weights)?;
                *norm = weights.gradient_norm(step + 1)?;
                match by {
                    By::Sgd => weights.descend(0.05, *norm)?,
                    _ => weights.update(step, 1e-2, *norm)?,
                }
            }
            weights.check_finite(2)?;
            let average = weights.averaged(flat)?; // first: the weights must be back afterwards
            Ok((norms, [values(&weights)?, average].concat()))
        })?;
        let norms = results[0].0;
        assert!(results.iter().all(|(n, _)| n.map(f64::to_bits) == norms.map(f64::to_bits)), "norms differ by rank");
        Ok((norms, results.into_iter().map(|(_, weights)| weights).collect()))
    }
}

/// All values of a model that has them.
fn flat(model: &Model) -> Result<Vec<f32>> {
    let units = model.units.iter().map(|unit| Ok(unit.value.to_vec1::<f32>()?));
    Ok(units.collect::<Result<Vec<_>>>()?.concat())
}

/// All values, unit by unit as the engine sees them.
fn values(weights: &TrainState) -> Result<Vec<f32>> {
    let mut values = vec![];
    for unit in &weights.model.units {
        weights.before_use(unit.id, Pass::Forward)?;
        values.extend(unit.value.to_vec1::<f32>()?);
        weights.after_use(unit.id, Pass::Forward)?;
    }
    Ok(values)
}

/// Two steps of `case` give norms and weights of one rank, to 1e-6, and the same bits as stage 0 on the same mesh where
/// each unit's gradient is summed over ranks only once.
fn agrees(case: Case, by: By, one: &([f64; 2], Vec<Vec<f32>>), plain: &([f64; 2], Vec<Vec<f32>>)) {
    let (norms, ranks) = case.steps(by).unwrap();
    let tolerance = by.tolerance();
    for (norm, want) in norms.iter().zip(&one.0) {
        assert!((norm - want).abs() <= f64::from(tolerance) * want, "{case:?} {by:?}: norm {norm}, not {want}");
    }
    for (rank, weights) in ranks.iter().enumerate() {
        assert_eq!(weights.len(), one.1[0].len());
        let most = weights.iter().zip(&one.1[0]).map(|(g, w)| (g - w).abs()).fold(0.0, f32::max);
        assert!(most <= tolerance, "{case:?} {by:?}: rank {rank} is off by {most:e}");
        let others = weights.iter().zip(&one.1[0]).filter(|(g, w)| (*g - *w).abs() > 1e-5).count();
        assert!(others <= weights.len() / 500, "{case:?} {by:?}: {others} of {} are off", weights.len());
        assert!(*weights == ranks[0], "{case:?} {by:?}: rank {rank} has other weights than rank 0");
    }
    if case.accumulate == 1 || case.zero < 2 {
        assert!((&norms, &ranks) == (&plain.0, &plain.1), "{case:?} {by:?}: other bits than in stage 0");
    }
}

fn every_mesh(by: By) {
    let one = ONE.steps(by).unwrap();
    let moved = one.1[0].iter().zip(&flat(&model().unwrap()).unwrap()).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    assert!(
        moved > 1e-3 && one.0[0] > 0.05,
        "the step is of a size that shows mistakes, and is clipped: {moved} {one:?}"
    );
    for sequence in [1, 2, 4] {
        for data in [1, 2] {
            for accumulate in [1, 3] {
                let case = Case { sequence, data, accumulate, zero: 0 };
                let plain = case.steps(by).unwrap();
                for zero in 0..=3 {
                    agrees(Case { zero, ..case }, by, &one, &plain);
                }
            }
        }
    }
}

#[test]
fn a_step_of_plain_sgd_is_that_of_one_rank_in_every_stage() {
    every_mesh(By::Sgd);
}

#[test]
fn a_clipped_step_of_adamw_is_that_of_one_rank_in_every_stage() {
    every_mesh(By::ClippedAdamW);
}

/// What each rank holds after a step.
fn memory(zero: usize, sequence: usize) -> Vec<StateBytes> {
    memory_of(StateOptions::default(), zero, sequence)
}

fn memory_of(train: StateOptions, zero: usize, sequence: usize) -> Vec<StateBytes> {
    let case = Case { sequence, data: 1, accumulate: 3, zero };
    run_threads(case.ranks(), 1, |comm| {
        let weights = case.weights(comm.clone(), &train)?;
        case.gradients(comm, &weights)?;
        weights.update(0, 1e-3, weights.gradient_norm(1)?)?;
        weights.averaged(|_| Ok(()))?;
        Ok(weights.state_bytes())
    })
    .unwrap()
}

#[test]
fn rank_holds_only_its_shard() {
    let whole = 4 * model().unwrap().count();
    let disk = options!(StateOptions::default(); moments: Place::Disk);
    assert_eq!(memory_of(disk, 0, 1)[0], StateBytes { parameters: whole, gradients: whole, moments: 0, average: 0 });
    assert_eq!(memory(0, 1)[0], StateBytes { parameters: whole, gradients: whole, moments: 2 * whole, average: whole });
    for ranks in [2, 4] {
        for zero in 0..=3 {
            // A unit's parts differ by one element.
            let about = |bytes: usize, of: usize, sharded: bool| {
                let want = if sharded { of / ranks } else { of };
                let slack = if sharded { of / whole * 4 * 4 } else { 0 };
                assert!(bytes.abs_diff(want) <= slack, "stage {zero} on {ranks} ranks: {bytes}, not {want} bytes");
            };
            let held = memory(zero, ranks);
            for rank in &held {
                about(rank.moments, 2 * whole, zero >= 1);
                about(rank.average, whole, zero >= 1);
                about(rank.gradients, whole, zero >= 2);
                about(rank.parameters, whole, zero >= 3);
            }
            let moments: usize = held.iter().map(|rank| rank.moments).sum();
            assert_eq!(moments, if zero >= 1 { 2 * whole } else { 2 * whole * ranks });
        }
    }
}

#[test]
fn unit_is_gathered_only_while_it_is_used() {
    let case = Case { sequence: 2, data: 1, accumulate: 1, zero: 3 };
    run_threads(2, 1, |comm| {
        let weights = case.weights(comm, &StateOptions::default())?;
        let tensors = |tensor: fn(&longreel::model::Unit) -> &Tensor| -> Vec<usize> {
            weights.model.units.iter().map(|unit| storage_bytes(tensor(unit))).collect()
        };
        assert_eq!(tensors(|unit| &unit.value), [0; 4]);
        let used = weights.model.unit(weights.model.blocks[0].unit);
        weights.before_use(used.id, Pass::Backward)?;
        assert_eq!(tensors(|unit| &unit.value), [0, 4 * used.value.elem_count(), 0, 0]);
        assert_eq!(tensors(|unit| unit.grad().unwrap()), [0, 4 * used.grad().unwrap().elem_count(), 0, 0]);
        weights.after_use(used.id, Pass::Backward)?;
        assert_eq!((tensors(|unit| &unit.value), tensors(|unit| unit.grad().unwrap())), (vec![0; 4], vec![0; 4]));
        // Used without: an error, no wrong numbers.
        let error = read::<f32>(&used.value).map(|_| ()).unwrap_err().to_string();
        assert!(error.contains("the tensor is released"), "{error}");
        let error = write(used.grad().unwrap(), |_: &mut [f32]| ()).unwrap_err().to_string();
        assert!(error.contains("the tensor is released"), "{error}");
        Ok(())
    })
    .unwrap();
}

#[test]
fn gradients_that_are_not_finite_are_named_by_all_ranks() {
    for zero in 0..=3 {
        let case = Case { sequence: 4, data: 1, accumulate: 1, zero };
        // The head's last parameter lies in the last rank's part.
        run_threads(4, 1, |comm| {
            let rank = comm.rank();
            let weights = case.weights(comm.clone(), &StateOptions::default())?;
            case.gradients(comm, &weights)?;
            let head = weights.model.unit(weights.model.head.unit);
            weights.before_use(head.id, Pass::Backward)?;
            if rank == 1 {
                write(head.grad().unwrap(), |g: &mut [f32]| *g.last_mut().unwrap() = f32::NAN)?;
            }
            weights.after_use(head.id, Pass::Backward)?;
            if zero < 2 {
                weights.sum_gradients()?;
            }
            let error = weights.gradient_norm(7).unwrap_err();
            let entries = &head.entries;
            let name = format!("the gradient of {}", entries.last().unwrap().name);
            assert!(
                matches!(&error, Error::NonFinite { step: 7, tensor, .. } if *tensor == name),
                "rank {rank}: {error}"
            );
            Ok(())
        })
        .unwrap();
    }
}
