//! Tests the gradient of a whole network through the engine: finite and non-zero for every element of every parameter,
//! and equal to finite differences of the loss, with two samples and tiles that straddle them.

use super::{Helpers, conditioning, normal, random, tiny};
use candle_core::{DType, Device, Tensor};
use longreel::Result;
use longreel::engine::{Engine, Objective, Source};
use longreel::model::{Conditioning, Model, ModelConfig};
use longreel::ops::write;
use longreel::parallel::{Sequence, Single};
use std::cell::Cell;
use std::ops::Range;
use std::sync::Arc;

const GRID: [usize; 3] = [2, 2, 3];
const LABELS: [usize; 2] = [1, 4];

/// Random patches, and the loss sum(w y + y^2 / 2) over the network's outputs y, with random w.
struct Quadratic {
    input: Tensor,  // [rows, patch_in]
    weight: Tensor, // [rows, patch_out]
}

impl Quadratic {
    fn new(config: &ModelConfig, dtype: DType) -> Self {
        let rows = LABELS.len() * GRID.iter().product::<usize>();
        let draw = |what, width| {
            let t = Tensor::from_vec(normal(what, rows * width), (rows, width), &Device::Cpu).unwrap();
            t.to_dtype(dtype).unwrap()
        };
        Self { input: draw(900, config.patch_in()), weight: draw(901, config.patch_out()) }
    }
}

impl Source for Quadratic {
    fn input(&self, rows: Range<usize>) -> Result<Tensor> {
        Ok(self.input.narrow(0, rows.start, rows.len())?)
    }
}

impl Objective for Quadratic {
    fn loss(&self, rows: Range<usize>, y: &Tensor) -> Result<(f64, Tensor)> {
        let w = self.weight.narrow(0, rows.start, rows.len())?;
        let loss = ((&w * y)? + (y.sqr()? * 0.5)?)?.sum_all()?.to_dtype(DType::F64)?.to_scalar()?;
        Ok((loss, (w + y)?))
    }
}

fn engine(model: &Model, tile: usize) -> Engine<'_> {
    Engine::new(model, &Sequence::new(Arc::new(Single), 1, 0).unwrap(), GRID, LABELS.len(), tile).unwrap()
}

/// The loss by prediction alone.
fn loss(engine: &Engine, conditioning: &Conditioning, objective: &Quadratic) -> f64 {
    let total = Cell::new(0.0);
    let take = |rows, y| {
        total.set(total.get() + objective.loss(rows, &y)?.0);
        Ok(())
    };
    engine.predict(conditioning, objective, take).unwrap();
    total.get()
}

/// Networks with and without each part.
fn variants() -> [(&'static str, ModelConfig); 5] {
    [
        ("everything", tiny()),
        ("no text", ModelConfig { text_dim: 0, ..tiny() }),
        ("no norm before cross-attention", ModelConfig { cross_attn_norm: false, num_layers: 1, ..tiny() }),
        ("Wan's own parts alone", ModelConfig { num_classes: 0, pos_embed: false, num_layers: 1, ..tiny() }),
        (
            "heads of 24, one patch size a side",
            ModelConfig {
                num_attention_heads: 2,
                attention_head_dim: 24,
                patch_size: [2, 1, 3],
                num_layers: 1,
                ..tiny()
            },
        ),
    ]
}

/// Candle cuts graphs without an error; then some gradient is zero. In f32, f64 and bf16 compute.
#[test]
fn every_parameter_has_a_finite_non_zero_gradient() {
    for (variant, config) in variants() {
        for (dtype, bf16) in [(DType::F32, false), (DType::F64, false), (DType::F32, true)] {
            let mut model = random(&config, dtype);
            if bf16 {
                let values = |name: &str| Ok(model.flat(name, false).into_iter().map(|v| v as f32).collect());
                model = Model::load(&config, dtype, true, values).unwrap();
            }
            let conditioning = conditioning(&config, &LABELS, dtype);
            engine(&model, 5).loss_and_gradients(&conditioning, &Quadratic::new(&config, dtype)).unwrap();
            for name in model.names() {
                let gradient = model.flat(&name, true);
                assert!(gradient.iter().all(|g| g.is_finite()), "{variant}: {name} has a gradient that is not finite");
                for (row, values) in gradient.chunks(config.width()).enumerate() {
                    let used = !name.contains("class") || LABELS.contains(&row);
                    let zeros = values.iter().filter(|&&g| g == 0.0).count();
                    assert_eq!(zeros, if used { 0 } else { values.len() }, "{variant}, {dtype:?}: {name}, row {row}");
                }
            }
        }
    }
}

/// For every parameter: its first, last and middle numbers, and a direction that all of its numbers have a part in.
#[test]
fn gradients_are_those_of_finite_differences() {
    const H: f64 = 1e-3;
    for (variant, config) in variants() {
        let model = random(&config, DType::F64);
        let (conditioning, objective) =
            (conditioning(&config, &LABELS, DType::F64), Quadratic::new(&config, DType::F64));
        let engine = engine(&model, 5);
        let total = engine.loss_and_gradients(&conditioning, &objective).unwrap();
        assert!((total - loss(&engine, &conditioning, &objective)).abs() < 1e-12 * total.abs(), "{variant}");
        let mut worst = 0f64;
        for unit in &model.units {
            for entry in &unit.entries {
                let gradient = model.flat(&entry.name, true);
                let n = gradient.len();
                let rms = (gradient.iter().map(|g| g * g).sum::<f64>() / n as f64).sqrt();
                let single = |at: usize| (0..n).map(|i| f64::from(i == at)).collect::<Vec<_>>();
                let all: Vec<f64> = normal(77, n).into_iter().map(|v| f64::from(v) / (n as f64).sqrt()).collect();
                for direction in [single(0), single(n / 2), single(n - 1), all] {
                    let moved = |steps: f64| {
                        let shift = |sign: f64| {
                            write(&unit.value, |v: &mut [f64]| {
                                for (v, d) in v[entry.range.clone()].iter_mut().zip(&direction) {
                                    *v += sign * steps * H * d;
                                }
                            })
                            .unwrap()
                        };
                        shift(1.0);
                        let loss = loss(&engine, &conditioning, &objective);
                        shift(-1.0);
                        loss
                    };
                    let want = (8.0 * (moved(1.0) - moved(-1.0)) - (moved(2.0) - moved(-2.0))) / (12.0 * H);
                    let got: f64 = gradient.iter().zip(&direction).map(|(g, d)| g * d).sum();
                    let off = (got - want).abs() / rms;
                    worst = worst.max(off);
                    assert!(off < 1e-7, "{variant}: {}: {got} against finite difference {want}: {off:.1e}", entry.name);
                }
            }
        }
        println!("{variant}: worst {worst:.1e}");
    }
}

/// Tiles are how it is computed, not what: any tile gives the same loss and gradients; and a second backward adds the
/// same again.
#[test]
fn gradients_are_the_same_for_any_tile_and_add_up() {
    let config = tiny();
    let (conditioning, objective) = (conditioning(&config, &LABELS, DType::F64), Quadratic::new(&config, DType::F64));
    let run = |tile: usize, times: usize| {
        let model = random(&config, DType::F64);
        let engine = engine(&model, tile);
        let losses: Vec<f64> =
            (0..times).map(|_| engine.loss_and_gradients(&conditioning, &objective).unwrap()).collect();
        let gradients: Vec<Vec<f64>> = model.names().iter().map(|name| model.flat(name, true)).collect();
        (losses[0], gradients, model.names())
    };
    let (want_loss, want, names) = run(0, 1);
    for (tile, times) in [(1, 1), (5, 1), (12, 1), (23, 1), (100, 1), (5, 2)] {
        let (loss, gradients, _) = run(tile, times);
        assert!((loss - want_loss).abs() < 1e-12 * want_loss.abs());
        for ((name, got), want) in names.iter().zip(&gradients).zip(&want) {
            let largest = want.iter().fold(0f64, |a, w| a.max(w.abs()));
            let off = got.iter().zip(want).map(|(g, w)| (g / times as f64 - w).abs()).fold(0.0, f64::max);
            assert!(off < 1e-11 * largest, "tile {tile}, {times} times: {name} is off by {:.1e}", off / largest);
        }
    }
}
