//! The other optimizers over ranks: Muon and AdamW of eight bits in every stage, what a rank holds, what is saved, and
//! runs that go on.

use super::{By, Case, ONE, agrees, model, options_of, values};
use crate::optimizer::muon::reference;
use crate::train::{Place, numbers};
use longreel::model::Entry;
use longreel::parallel::run_threads;
use longreel::state::StateOptions;
use longreel::state::checkpoint::{Checkpoint, RunFolder, State};
use longreel::state::optimizer::OptimizerKind::{self, AdamW8, Muon};
use longreel::state::optimizer::{clip_coefficient, muon};
use longreel::state::weights::StateBytes;

fn meshes(by: By) {
    let one = ONE.steps(by).unwrap();
    for (sequence, data) in [(1, 1), (2, 1), (3, 1), (2, 2)] {
        for accumulate in [1, 3] {
            let case = Case { sequence, data, accumulate, zero: 0 };
            let plain = case.steps(by).unwrap();
            for zero in 0..=3 {
                agrees(Case { zero, ..case }, by, &one, &plain);
            }
        }
    }
}

#[test]
fn a_step_of_muon_is_that_of_one_rank_in_every_stage() {
    meshes(By::ClippedMuon);
}

#[test]
fn a_step_with_moments_of_eight_bits_is_that_of_one_rank_in_every_stage() {
    meshes(By::ClippedAdamW8);
}

/// What an element is, and its state, in f64.
struct Plain {
    value: Vec<f64>,
    m: Vec<f64>,
    v: Vec<f64>,
}

impl Plain {
    /// A step of a parameter: Muon's if it is a matrix of a block, or AdamW's.
    fn step(&mut self, number: i32, entry: &Entry, grads: &[f64]) {
        let (lr, decay) = (1e-2, if entry.decay { 0.1 } else { 0.0 });
        if muon::takes(&entry.name, &entry.shape) {
            let mut update = vec![];
            for (m, g) in self.m.iter_mut().zip(grads) {
                *m = 0.95 * *m + 0.05 * g;
                update.push(0.05 * g + 0.95 * *m);
            }
            let shape = [entry.shape[0], entry.shape[1]];
            let factor = 0.2 * (shape[0].max(shape[1]) as f64).sqrt();
            for (p, u) in self.value.iter_mut().zip(reference(&update, shape)) {
                *p -= lr * (factor * u + decay * *p);
            }
            return;
        }
        for (i, g) in grads.iter().enumerate() {
            self.m[i] = 0.9 * self.m[i] + 0.1 * g;
            self.v[i] = 0.95 * self.v[i] + 0.05 * g * g;
            let [m, v] = [self.m[i] / (1.0 - 0.9f64.powi(number)), self.v[i] / (1.0 - 0.95f64.powi(number))];
            self.value[i] -= lr * (m / (v.sqrt() + 1e-3) + decay * self.value[i]);
        }
    }
}

/// Three steps against the formulas, of gradients that are read from the model.
#[test]
fn steps_of_muon_are_those_of_plain_f64() {
    run_threads(1, 1, |comm| {
        let weights = ONE.weights(comm.clone(), &options_of(By::ClippedMuon))?;
        let start = |values: &[f32]| values.iter().map(|&v| f64::from(v)).collect::<Vec<_>>();
        let mut plain = vec![];
        for unit in &weights.model.units {
            let values = unit.value.to_vec1::<f32>()?;
            for entry in &unit.entries {
                let value = start(&values[entry.range.clone()]);
                let zeros = vec![0.0; value.len()];
                plain.push(Plain { value, m: zeros.clone(), v: zeros });
            }
        }
        for step in 0..3 {
            ONE.gradients(comm.clone(), &weights)?;
            let norm = weights.gradient_norm(step + 1)?;
            let scale = clip_coefficient(norm, 0.05);
            let mut each = plain.iter_mut();
            for unit in &weights.model.units {
                let grads = unit.grad.as_ref().unwrap().to_vec1::<f32>()?;
                for entry in &unit.entries {
                    let grads: Vec<f64> = grads[entry.range.clone()].iter().map(|&g| scale * f64::from(g)).collect();
                    each.next().unwrap().step(step as i32 + 1, entry, &grads);
                }
            }
            weights.update(step, 1e-2, norm)?;
            let mut each = plain.iter();
            for unit in &weights.model.units {
                let values = unit.value.to_vec1::<f32>()?;
                for entry in &unit.entries {
                    let want = &each.next().unwrap().value;
                    let got = &values[entry.range.clone()];
                    let off = got.iter().zip(want).map(|(a, b)| (f64::from(*a) - b).abs()).fold(0.0, f64::max);
                    assert!(off < 2e-6, "step {step}: {} is off by {off:e}", entry.name);
                }
            }
        }
        Ok(())
    })
    .unwrap();
}

/// Bytes of moments on each rank, over bytes of the parameters.
fn shares(optimizer: OptimizerKind, zero: usize, sequence: usize) -> Vec<f64> {
    let options = options!(StateOptions::default(); optimizer);
    let parameters = (4 * model().unwrap().count()) as f64;
    let held: Vec<StateBytes> = super::memory_of(options, zero, sequence);
    held.iter().map(|rank| rank.moments as f64 / parameters).collect()
}

#[test]
fn moments_are_a_quarter_or_a_half_of_adamws() {
    assert!((shares(AdamW8, 0, 1)[0] - 0.508).abs() < 0.002, "{:?}", shares(AdamW8, 0, 1));
    let muon = shares(Muon, 0, 1)[0];
    let shapes = longreel::model::Model::shapes(&super::config());
    let matrices: usize =
        shapes.iter().filter(|(n, s)| muon::takes(n, s)).map(|(_, s)| s.iter().product::<usize>()).sum();
    let all = model().unwrap().count() as f64;
    assert!((muon - (2.0 - matrices as f64 / all)).abs() < 1e-9 && matrices as f64 > 0.5 * all, "{muon}");
    for optimizer in [AdamW8, Muon] {
        let (whole, parts) = (shares(optimizer, 0, 1)[0], shares(optimizer, 2, 3));
        assert!((parts.iter().sum::<f64>() - whole).abs() < 0.01 * whole, "{optimizer:?}: {parts:?} of {whole}");
        assert!(parts.iter().all(|part| *part < 0.5 * whole), "{optimizer:?}: {parts:?} of {whole}");
    }
}

/// A checkpoint that one mesh saves, another loads and saves again: the same bytes.
#[test]
fn moments_are_saved_and_loaded_exactly_on_any_ranks_and_in_any_stage() {
    for by in [By::ClippedAdamW8, By::ClippedMuon] {
        let place = tempfile::tempdir().unwrap();
        let save = |name: &str, case: Case, from: Option<&Checkpoint>| {
            let run = RunFolder::new(place.path().join(name));
            run_threads(case.ranks(), 1, |comm| {
                let weights = case.weights(comm.clone(), &options_of(by))?;
                match from {
                    Some(checkpoint) => weights.load(checkpoint)?,
                    None => {
                        for step in 0..2 {
                            case.gradients(comm.clone(), &weights)?;
                            let norm = weights.gradient_norm(step + 1)?;
                            weights.update(step, 1e-2, norm)?;
                        }
                    }
                }
                let saving = if comm.rank() == 0 { Some(run.begin(2)?) } else { None };
                weights.save(saving.as_ref(), None)?;
                if let Some(saving) = saving {
                    saving.finish(&State::new(String::new(), 1, 2, 0), 1)?;
                }
                let flat = values(&weights)?;
                comm.barrier()?;
                Ok(flat)
            })
            .unwrap();
            let checkpoint = Checkpoint::open(run.root()).unwrap();
            let bytes = |part: &str| std::fs::read(checkpoint.dir().join(part)).unwrap();
            let parts = ["optimizer.safetensors", "ema/diffusion_pytorch_model.safetensors"].map(bytes);
            (checkpoint, parts)
        };
        let case = |sequence, zero| Case { sequence, data: 1, accumulate: 1, zero };
        let (first, bytes) = save("first", case(2, 1), None);
        for (sequence, zero) in [(1, 0), (2, 0), (2, 2), (3, 3)] {
            let (_, again) = save(&format!("{sequence} {zero}"), case(sequence, zero), Some(&first));
            assert!(again == bytes, "{by:?} on {sequence} ranks in stage {zero}");
        }
        if by == By::ClippedMuon {
            let weights = run_threads(1, 1, |comm| ONE.weights(comm, &options_of(By::ClippedAdamW))?.load(&first));
            assert!(weights.unwrap_err().to_string().contains("v.blocks.0"), "AdamW finds no second moment");
        }
    }
}

/// Half a run, and the rest of it: the bits of a whole one, with moments in memory and on disk.
#[test]
fn runs_of_other_optimizers_go_on_bit_for_bit() {
    let place = Place::videos();
    for optimizer in ["adamw8", "muon"] {
        for (ranks, zero) in [("1", "0"), ("2", "1"), ("3", "3")] {
            let how = [
                format!("train.optimizer={optimizer}"),
                format!("parallel.ranks={ranks}"),
                format!("parallel.zero={zero}"),
            ];
            let train = |run: &str, more: &[&str]| {
                let how: Vec<&str> = how.iter().map(String::as_str).collect();
                place.train(run, &[&how[..], more].concat())
            };
            let [whole, disk] = ["whole", "disk"].map(|name| format!("{name} {optimizer} {ranks}"));
            train(&whole, &["train.steps=4"]);
            train(&disk, &["train.steps=2", "train.moments=disk"]);
            train(&disk, &["train.steps=4", "train.moments=disk", "--resume"]);
            assert_eq!(numbers(&place.metrics(&disk)[2..]), numbers(&place.metrics(&whole)[2..]), "{how:?}");
            for part in super::runs::PARTS {
                let [a, b] = [&disk, &whole].map(|run| std::fs::read(place.checkpoint(run, 4, part)).unwrap());
                assert!(a == b, "{how:?}: {part} differs");
            }
        }
    }
}
