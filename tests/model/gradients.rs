//! Every parameter's gradient through the engine, in f64.

use super::*;
use crate::ops::derivative;

/// A few elements of every parameter against central differences. Tiles of 5 rows end inside samples of 6.
fn check(config: &ModelConfig, labels: &[usize], tile: usize) {
    let model = random_model(config);
    let task = Task::new(config, labels);
    let loss = task.engine(&model, tile).loss_and_gradients(&task.prompt, &task).unwrap();
    assert!((loss - task.loss_alone(&model, 0)).abs() < 1e-12 * loss);
    for (u, unit) in model.units.iter().enumerate() {
        let (start, gradient) = (values(&unit.value), values(&unit.grad));
        for entry in &unit.entries {
            let peak = entry.range.clone().fold(0f64, |peak, i| peak.max(gradient[i].abs()));
            let n = entry.range.len();
            for i in (0..n.min(3)).map(|i| entry.range.start + (i * 37 + 5) % n) {
                let truth = derivative(|step| {
                    poke(&model, u, i, start[i] + step);
                    task.loss_alone(&model, tile)
                });
                poke(&model, u, i, start[i]);
                let what = format!("{}[{}]: {}", entry.name, i - entry.range.start, gradient[i]);
                assert!((gradient[i] - truth).abs() <= 1e-7 * peak, "{what} against {truth}, the largest is {peak}");
            }
        }
    }
}

#[test]
fn gradients_are_finite_differences() {
    check(&everything(), &[1, 3], 5);
}

#[test]
fn gradients_are_finite_differences_without_text() {
    check(&no_text(), &[2, 2], 0); // both samples share a class' row
}

#[test]
fn gradients_are_finite_differences_without_the_norm_before_cross_attention() {
    let config = ModelConfig { cross_attn_norm: false, num_classes: 0, pos_embed: false, ..everything() };
    check(&config, &[0, 0, 0], 7);
}

#[test]
fn every_parameter_has_a_gradient() {
    let config = everything();
    let (model, task) = (random_model(&config), Task::new(&config, &[1, 3]));
    task.engine(&model, 5).loss_and_gradients(&task.prompt, &task).unwrap();
    for unit in &model.units {
        let gradient = values(&unit.grad);
        for entry in &unit.entries {
            let classes = entry.name.contains("class_embedder");
            for (i, g) in gradient[entry.range.clone()].iter().enumerate() {
                // Only the rows of the classes that were used, of which 3 is the null class.
                let reached = !classes || [1, 3].contains(&(i / config.width()));
                assert!(g.is_finite() && (*g != 0.0) == reached, "{}[{i}]: {g}", entry.name);
            }
        }
    }
}

#[test]
fn gradients_add_up_until_they_are_zeroed() {
    let config = everything();
    let (model, task) = (random_model(&config), Task::new(&config, &[1, 3]));
    let engine = task.engine(&model, 5);
    let run = || {
        engine.loss_and_gradients(&task.prompt, &task).unwrap();
        model.units.iter().flat_map(|u| values(&u.grad)).collect::<Vec<_>>()
    };
    let (once, twice) = (run(), run());
    let peak = once.iter().fold(0f64, |peak, v| peak.max(v.abs()));
    assert!(once.iter().zip(&twice).all(|(a, b)| (2.0 * a - b).abs() <= 1e-13 * peak));
    model.zero_grads().unwrap();
    assert_eq!(run(), once, "the same bits");
}

#[test]
fn tiles_do_not_change_the_output() {
    let config = everything();
    let (model, task) = (random_model(&config), Task::new(&config, &[1, 3]));
    let whole = task.predict(&model, 0).unwrap();
    for tile in [1, 4, 5, 11] {
        let tiled = task.predict(&model, tile).unwrap();
        assert!(whole.iter().zip(&tiled).all(|(a, b)| (a - b).abs() < 1e-12), "tile {tile}");
    }
}
