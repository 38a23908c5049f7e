//! Text and classes: what they change, and what does not fit the model.

use super::*;
use longreel::model::Conditioner;

fn refused(config: &ModelConfig, change: impl FnOnce(&mut Prompt), part: &str) {
    let mut task = Task::new(config, &[1, 3]);
    change(&mut task.prompt);
    let error = task.predict(&random_model(config), 0).expect_err(part).to_string();
    assert!(error.contains(part), "{error}");
}

#[test]
fn a_class_changes_its_own_sample_only() {
    let model = random_model(&everything());
    let of = |labels: &[usize]| Task::new(&model.config, labels).predict(&model, 5).unwrap();
    let (one, other) = (of(&[1, 3]), of(&[1, 0])); // 3 is the null class
    let half = one.len() / 2;
    assert_eq!(one[..half], other[..half]);
    assert!(one[half..].iter().zip(&other[half..]).all(|(a, b)| a != b));
}

#[test]
fn text_changes_its_own_sample_only() {
    let model = random_model(&everything());
    let mut task = Task::new(&model.config, &[1, 3]);
    let one = task.predict(&model, 5).unwrap();
    let text = task.prompt.text.take().unwrap();
    let changed = (text.narrow(0, 1, 1).unwrap() * 2.0).unwrap();
    task.prompt.text = Some(Tensor::cat(&[text.narrow(0, 0, 1).unwrap(), changed], 0).unwrap());
    let other = task.predict(&model, 5).unwrap();
    let half = one.len() / 2;
    assert_eq!(one[..half], other[..half]);
    assert!(one[half..].iter().zip(&other[half..]).all(|(a, b)| a != b));
}

#[test]
fn classes_that_do_not_fit_are_refused() {
    let config = everything();
    refused(
        &config,
        |p| p.labels = Some(vec![1, 4]),
        "class 4: the model has classes 0 to 3 (the last is the null class)",
    );
    refused(&config, |p| p.labels = None, "the model has classes, but no class is given");
    refused(&config, |p| p.labels = Some(vec![1]), "1 classes for 2 samples");
    refused(&config, |p| p.labels = Some(vec![]), "0 classes for 2 samples");
    let without = ModelConfig { num_classes: 0, ..everything() };
    refused(&without, |p| p.labels = Some(vec![0, 0]), "a class is given, but the model has no classes");
}

#[test]
fn text_that_does_not_fit_is_refused() {
    let config = everything();
    for shape in [[1, 3, 5], [2, 3, 4], [2, 0, 5]] {
        let text = Tensor::zeros(&shape, DType::F32, &Device::Cpu).unwrap();
        let part = format!("text embeddings are {shape:?}; [2, tokens, 5] is wanted");
        refused(&config, |p| p.text = Some(text), &part);
    }
    refused(&config, |p| p.text = None, "the model has text (text_dim 5), but no text embeddings are given");
    refused(&no_text(), |p| p.text = Some(tensor(&[2, 3, 5], 1)), "but the model has no text");
}

#[test]
fn a_condition_can_be_used_again() {
    let model = random_model(&everything());
    let condition = model.conditioner.forward(&Task::new(&model.config, &[1, 3]).prompt).unwrap();
    let leaves = || [&condition.time, &condition.modulation, condition.text.as_ref().unwrap()];
    for leaf in leaves() {
        leaf.accumulate(&leaf.value).unwrap();
        assert_eq!(values(&leaf.grad), values(&leaf.value));
    }
    Conditioner::zero_grad(&condition).unwrap();
    assert!(leaves().iter().all(|leaf| values(&leaf.grad).iter().all(|v| *v == 0.0)));
}
