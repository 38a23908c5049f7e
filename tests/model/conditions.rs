//! Tests time, text and classes: the null class, gradients that reach the rows that were used, and conditioning that
//! does not fit; and the fixed positions of the embedding.

use super::{Helpers, conditioning, normal, random, tiny};
use candle_core::{DType, Device, Tensor};
use longreel::model::{Conditioner, Model, ModelConfig, TextTokens};
use longreel::ops::Param;

const TABLE: &str = "condition_embedder.class_embedder.embedding_table.weight";

fn fill(leaf: &Param, what: u64) {
    let g =
        Tensor::from_vec(normal(what, leaf.grad().unwrap().elem_count()), leaf.grad().unwrap().shape(), &Device::Cpu)
            .unwrap();
    leaf.accumulate(&g.to_dtype(leaf.grad().unwrap().dtype()).unwrap()).unwrap();
}

/// Rows of classes that no sample has stay without gradient; a class two samples have gets both of theirs.
#[test]
fn gradients_reach_exactly_the_classes_used() {
    let config = tiny();
    let model = random(&config, DType::F64);
    let run = |labels: &[usize]| {
        model.zero_grads().unwrap();
        let condition = model.conditioner.forward(&conditioning(&config, labels, DType::F64)).unwrap();
        fill(&condition.time, 1);
        model.conditioner.backward(&condition).unwrap();
        let rows: Vec<Vec<f64>> = model.flat(TABLE, true).chunks(config.width()).map(<[f64]>::to_vec).collect();
        rows
    };
    let null = config.num_classes;
    let apart = run(&[1, null]);
    for (class, row) in apart.iter().enumerate() {
        let used = class == 1 || class == null;
        assert!(row.iter().all(|&g| (g != 0.0) == used), "class {class}: {row:?}");
    }
    // The time's gradient is the class rows' alone here: the modulations' was left at zero.
    for (row, sample) in [(1, 0), (null, 1)] {
        let want = &normal(1, 2 * 24)[sample * 24..][..24];
        assert!(apart[row].iter().zip(want).all(|(g, w)| (g - f64::from(*w)).abs() < 1e-15));
    }
    let together = run(&[1, 1]);
    for ((a, b), both) in apart[1].iter().zip(&apart[null]).zip(&together[1]) {
        assert!((a + b - both).abs() < 1e-14);
    }
    assert!(together[null].iter().all(|&g| g == 0.0));
}

/// The class is added to the time embedding, the null class like any other.
#[test]
fn a_class_moves_the_condition_of_its_sample_alone() {
    let config = tiny();
    let model = random(&config, DType::F64);
    let time = |labels: &[usize]| -> Vec<Vec<f64>> {
        model.conditioner.forward(&conditioning(&config, labels, DType::F64)).unwrap().time.value.to_vec2().unwrap()
    };
    let rows: Vec<Vec<f64>> = model.flat(TABLE, false).chunks(24).map(<[f64]>::to_vec).collect();
    let (a, b) = (time(&[0, 2]), time(&[0, 4]));
    assert_eq!(a[0], b[0]);
    for i in 0..24 {
        assert!((b[1][i] - a[1][i] - (rows[4][i] - rows[2][i])).abs() < 1e-14);
    }
}

/// Gradients collected from tiles are set back to zero, and the condition serves again.
#[test]
fn condition_can_be_reused_after_zero_grad() {
    for dtype in [DType::F32, DType::F64] {
        let config = tiny();
        let model = random(&config, dtype);
        let condition = model.conditioner.forward(&conditioning(&config, &[0, 1], dtype)).unwrap();
        let leaves = [&condition.time, &condition.modulation, &condition.text.as_ref().unwrap().embedded];
        leaves.iter().for_each(|leaf| fill(leaf, 1));
        Conditioner::zero_grad(&condition).unwrap();
        for leaf in leaves {
            let sum = leaf.grad().unwrap().abs().unwrap().sum_all().unwrap().to_dtype(DType::F64).unwrap();
            assert_eq!(sum.to_scalar::<f64>().unwrap(), 0.0, "{}", leaf.name);
        }
    }
}

#[test]
fn conditioning_that_does_not_fit_the_model_is_an_error() {
    let with = |change: &dyn Fn(&mut ModelConfig)| {
        let mut config = tiny();
        change(&mut config);
        config
    };
    let refused = |config: &ModelConfig, edit: &dyn Fn(&mut longreel::model::Conditioning), words: &[&str]| {
        let model = Model::zeros(config, DType::F32, false).unwrap();
        let mut conditioning = conditioning(config, &[0, 1], DType::F32);
        assert!(model.conditioner.forward(&conditioning).is_ok());
        edit(&mut conditioning);
        let said = model.conditioner.forward(&conditioning).err().expect("refused").to_string();
        assert!(words.iter().all(|word| said.contains(word)), "{words:?} not in: {said}");
    };
    let text = |samples, shape: &[usize], pads| {
        let tokens = Tensor::zeros(shape, DType::F32, &Device::Cpu).unwrap();
        Some(vec![TextTokens { tokens, pads }; samples])
    };
    let all = tiny();
    refused(&all, &|p| p.labels = Some(vec![0, 5]), &["class 5", "0 to 4", "null"]);
    refused(&all, &|p| p.labels = None, &["no class is given"]);
    refused(&all, &|p| p.labels = Some(vec![0]), &["1 classes for 2 samples"]);
    refused(&all, &|p| p.labels = Some(vec![]), &["0 classes for 2 samples"]);
    refused(&all, &|p| p.text = None, &["text_dim 10"]);
    refused(&all, &|p| p.text = text(2, &[3, 9], 1), &["[3, 9]", "10"]);
    refused(&all, &|p| p.text = text(1, &[3, 10], 1), &["1 texts for 2 samples"]);
    refused(&all, &|p| p.text = text(2, &[0, 10], 0), &["[0, 10] and 0 pads"]);
    refused(&all, &|p| p.text = text(2, &[10], 1), &["[10]"]);
    refused(&with(&|c| c.text_dim = 0), &|p| p.text = text(2, &[3, 10], 1), &["no text"]);
    refused(&with(&|c| c.num_classes = 0), &|p| p.labels = Some(vec![0, 0]), &["no classes"]);
    refused(&all, &|p| p.timesteps = vec![], &[]);
}

/// With weights of zero the embedding is the positions: sines and cosines along time, height and width, by sixths.
#[test]
fn fixed_positions_are_sines_and_cosines_of_the_place() {
    for (heads, pairs) in [(3, 4), (5, 6)] {
        let config = ModelConfig { num_attention_heads: heads, ..tiny() }; // width 24, and 40, which 6 does not divide
        let (model, grid) = (Model::zeros(&config, DType::F64, false).unwrap(), [2, 3, 4]);
        let tokens = [0, 3, 4, 13, 23, 4];
        let places = [[0, 0, 0], [0, 0, 3], [0, 1, 0], [1, 0, 1], [1, 2, 3], [0, 1, 0]];
        let rows = Tensor::zeros((tokens.len(), config.patch_in()), DType::F64, &Device::Cpu).unwrap();
        let got: Vec<Vec<f64>> = model.embed.forward(&rows, grid, &tokens).unwrap().to_vec2().unwrap();
        for (row, place) in got.iter().zip(places) {
            for (axis, at) in place.into_iter().enumerate() {
                for i in 0..pairs {
                    let angle = at as f64 / 10_000f64.powf(i as f64 / pairs as f64);
                    let first = axis * 2 * pairs;
                    assert!((row[first + i] - angle.sin()).abs() < 1e-14, "{place:?}");
                    assert!((row[first + pairs + i] - angle.cos()).abs() < 1e-14, "{place:?}");
                }
            }
            assert!(row[6 * pairs..].iter().all(|&v| v == 0.0));
        }
        let off = Model::zeros(&ModelConfig { pos_embed: false, ..config }, DType::F64, false).unwrap();
        let got: Vec<Vec<f64>> = off.embed.forward(&rows, grid, &tokens).unwrap().to_vec2().unwrap();
        assert!(got.concat().iter().all(|&v| v == 0.0));
    }
}
