//! Adapters over a frozen network: gradients and loss of the merged network, in every stage and on every mesh; the
//! frozen values stay as they are, are held once or sharded, and have neither gradients nor moments.

use super::*;
use longreel::model::LoraSpec;

/// Adapters of all linear layers, of unlike ranks and scales, with values that are no start.
fn spec() -> LoraSpec {
    let mut spec = LoraSpec::of_targets(&config(), &["*".to_owned()], 3, 2.0).unwrap();
    spec.modules.iter_mut().step_by(2).for_each(|module| (module.rank, module.alpha) = (2, 5.0));
    spec
}

/// A layer's A and B.
fn factors(spec: &LoraSpec, name: &str) -> Option<[Vec<f32>; 2]> {
    let (number, module) = spec.modules.iter().enumerate().find(|(_, module)| module.name == name)?;
    let draw = |what: usize, n: usize, by: f32| {
        normal((5000 + 2 * number + what) as u64, n).into_iter().map(|v| by * v).collect::<Vec<f32>>()
    };
    Some([draw(0, module.rank * module.inner, 0.3), draw(1, module.out * module.rank, 0.2)])
}

fn adapted(bf16: bool) -> Result<Model> {
    let (spec, dense) = (spec(), model()?);
    let model = Model::adapted(&config(), DType::F32, bf16, &spec, 1)?;
    model.set_base(|name| {
        let unit = dense.units.iter().find(|unit| unit.entries.iter().any(|entry| entry.name == name)).unwrap();
        let values = unit.param(name)?.value.flatten_all()?.to_vec1::<f32>()?;
        // So that a network in bf16 is the one in f32.
        Ok(values.into_iter().map(|value| half::bf16::from_f32(value).to_f32()).collect())
    })?;
    model.set_adapters(|name| {
        let (layer, which) = match name.strip_suffix(".lora_A.weight") {
            Some(layer) => (layer, 0),
            None => (name.strip_suffix(".lora_B.weight").unwrap(), 1),
        };
        Ok(factors(&spec, layer).unwrap()[which].clone())
    })?;
    Ok(model)
}

/// The network of W + s B A.
fn merged() -> Result<Model> {
    let (spec, adapted) = (spec(), adapted(false)?);
    Model::load(&config(), DType::F32, false, |name| {
        let unit = adapted.units.iter().find(|unit| unit.entries.iter().any(|entry| entry.name == name)).unwrap();
        let mut values = unit.param(name)?.value.flatten_all()?.to_vec1::<f32>()?;
        let layer = name.strip_suffix(".weight").unwrap_or_default();
        if let (Some([a, b]), Some(module)) = (factors(&spec, layer), spec.modules.iter().find(|m| m.name == layer)) {
            let scale = module.alpha / module.rank as f64;
            for (i, value) in values.iter_mut().enumerate() {
                let (row, column) = (i / module.inner, i % module.inner);
                let of = |r: usize| f64::from(b[row * module.rank + r]) * f64::from(a[r * module.inner + column]);
                *value = (f64::from(*value) + scale * (0..module.rank).map(of).sum::<f64>()) as f32;
            }
        }
        Ok(values)
    })
}

/// A parameter's gradient after `case`'s micro-batches, on rank 0.
type Gradients = std::collections::BTreeMap<String, Vec<f32>>;

fn gradients_of(model: impl Fn() -> Result<Model> + Sync) -> Gradients {
    let gradients = run_threads(1, 1, |comm| {
        let weights = TrainState::new(model()?, &StateOptions::default(), comm.clone())?;
        ONE.gradients(comm, &weights)?;
        let mut gradients = Gradients::new();
        for unit in weights.model.units.iter().filter(|unit| !unit.is_frozen()) {
            let flat = unit.grad()?.to_vec1::<f32>()?;
            for entry in &unit.entries {
                gradients.insert(entry.name.clone(), flat[entry.range.clone()].to_vec());
            }
        }
        Ok(gradients)
    });
    gradients.unwrap().swap_remove(0)
}

/// dA = s Bᵀ dW and dB = s dW Aᵀ of the merged network's dW.
#[test]
fn gradients_of_adapters_are_those_of_the_merged_network() {
    let (spec, dense, ours) = (spec(), gradients_of(merged), gradients_of(|| adapted(false)));
    assert_eq!(ours.len(), 2 * spec.modules.len());
    for module in &spec.modules {
        let [a, b] = factors(&spec, &module.name).unwrap();
        let (scale, dw) = (module.alpha / module.rank as f64, &dense[&format!("{}.weight", module.name)]);
        let (rank, inner, out) = (module.rank, module.inner, module.out);
        let mut want = [vec![0f64; rank * inner], vec![0f64; out * rank]];
        for (row, r, column) in (0..out).flat_map(|o| (0..rank).flat_map(move |r| (0..inner).map(move |i| (o, r, i)))) {
            let slope = scale * f64::from(dw[row * inner + column]);
            want[0][r * inner + column] += slope * f64::from(b[row * rank + r]);
            want[1][row * rank + r] += slope * f64::from(a[r * inner + column]);
        }
        for (name, want) in [module.a(), module.b()].iter().zip(&want) {
            let norm = |values: &mut dyn Iterator<Item = f64>| values.map(|v| v * v).sum::<f64>().sqrt();
            let off = norm(&mut ours[name].iter().zip(want).map(|(g, w)| f64::from(*g) - w));
            let of = norm(&mut want.iter().copied());
            assert!(of > 0.0 && off <= 2e-6 * of, "{name}: off by {:.1e}", off / of);
        }
    }
}

/// What [`steps`] gives of each rank.
type Steps = ([f64; 2], Vec<f32>, Vec<f32>, StateBytes);

/// Two clipped steps of AdamW: norms, adapters on every rank, their average, and the loss's network: what is frozen.
fn steps(case: Case, shared: bool, bf16: bool) -> Vec<Steps> {
    let adamw = options!(AdamWOptions::default(); eps: 1e-3);
    let options = options!(StateOptions::default(); adamw: adamw, clip: 0.05, ema: 0.9, zero: case.zero, shared);
    let frozen = longreel::state::frozen::FrozenModel::new(case.ranks());
    run_threads(case.ranks(), 1, |comm| {
        let model = match (shared, case.zero) {
            (true, _) => frozen.take(1, || adapted(bf16))?,
            (false, 3) => Model::adapted_on(&config(), DType::F32, bf16, &spec(), 1, &Device::Cpu, true)?,
            (false, _) => adapted(bf16)?,
        };
        if shared || case.zero == 3 {
            let (spec, names) = (spec(), [".lora_A.weight", ".lora_B.weight"]);
            model.set_adapters(|name| {
                let which = usize::from(name.ends_with(names[1]));
                Ok(factors(&spec, name.strip_suffix(names[which]).unwrap()).unwrap()[which].clone())
            })?;
        }
        let whole = adapted(bf16)?;
        let weights = TrainState::loading(model, &options, comm.clone(), |unit| {
            let value = |name: &str| Result::Ok(whole.unit(unit.id).param(name)?.value);
            unit.load(|name| Ok(value(name)?.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>()?))
        })?;
        let mut norms = [0.0; 2];
        for (step, norm) in (0..).zip(&mut norms) {
            case.gradients(comm.clone(), &weights)?;
            *norm = weights.gradient_norm(step + 1)?;
            weights.update(step, 1e-2, *norm)?;
        }
        weights.check_finite(2)?;
        let bytes = weights.state_bytes();
        let of = |model: &Model, frozen: bool| -> Result<Vec<f32>> {
            let units = model.units.iter().filter(|unit| unit.is_frozen() == frozen);
            let values = units.map(|unit| Ok(unit.value.to_dtype(DType::F32)?.to_vec1::<f32>()?));
            Ok(values.collect::<Result<Vec<_>>>()?.concat())
        };
        let (average, kept) = weights.averaged(|model| Ok((of(model, false)?, of(model, true)?)))?;
        let mut trained = average;
        for unit in weights.model.units.iter().filter(|unit| !unit.is_frozen()) {
            weights.before_use(unit.id, Pass::Forward)?;
            trained.extend(unit.value.to_vec1::<f32>()?);
            weights.after_use(unit.id, Pass::Forward)?;
        }
        Ok((norms, trained, kept, bytes))
    })
    .unwrap()
}

#[test]
fn adapters_step_alike_in_every_stage_and_leave_the_frozen_network() {
    for bf16 in [false, true] {
        let before = adapted(bf16).unwrap();
        let frozen: Vec<f32> = before
            .units
            .iter()
            .filter(|unit| unit.is_frozen())
            .flat_map(|unit| unit.value.to_dtype(DType::F32).unwrap().to_vec1::<f32>().unwrap())
            .collect();
        let one = &steps(ONE, true, bf16)[0];
        assert!(one.0[0] > 0.05 && one.2 == frozen);
        for (sequence, data, accumulate) in [(1, 1, 3), (2, 1, 1), (3, 1, 3), (2, 2, 1)] {
            for zero in 0..=3 {
                for shared in [false, true] {
                    let case = Case { sequence, data, accumulate, zero };
                    for (norms, trained, kept, _) in steps(case, shared, bf16) {
                        let what = format!("{case:?}, shared {shared}, bf16 {bf16}");
                        let close = if bf16 { 2e-2 } else { 1e-6 };
                        assert!(norms.iter().zip(&one.0).all(|(g, w)| (g - w).abs() <= close * w), "{what}: {norms:?}");
                        let most = trained.iter().zip(&one.1).map(|(g, w)| (g - w).abs()).fold(0.0, f32::max);
                        assert!(f64::from(most) <= close, "{what}: off by {most:e}");
                        assert!(kept == frozen, "{what}: the frozen network changed");
                    }
                }
            }
        }
    }
}

/// Only adapters have gradients, moments and an average; matrices of blocks take two bytes in bf16; in stage 3 ranks
/// that share nothing hold a part of the frozen network each.
#[test]
fn frozen_network_has_values_alone() {
    let (spec, network) = (spec(), Model::count_of(&config()));
    let matrices = 2 * (4 * 40 * 40 + 2 * 40 * 24); // of the blocks
    let trained = 4 * spec.count();
    for (bf16, frozen) in [(false, 4 * network), (true, 4 * network - 2 * matrices)] {
        let bytes = steps(ONE, true, bf16)[0].3;
        let want =
            StateBytes { parameters: frozen + trained, gradients: trained, moments: 2 * trained, average: trained };
        assert_eq!(bytes, want, "bf16 {bf16}");
        let case = Case { sequence: 3, zero: 3, ..ONE };
        let apart = steps(case, false, bf16).into_iter().map(|(.., bytes)| bytes.parameters).sum::<usize>();
        let vectors = if bf16 { 2 * 4 * (config().width() * (4 + 2 + 1 + 6) + 24) } else { 0 };
        assert_eq!(apart, frozen + trained + 2 * vectors, "bf16 {bf16}: each rank has the few that are no matrices");
        let together = steps(case, true, bf16).into_iter().map(|(.., bytes)| bytes.parameters).sum::<usize>();
        assert_eq!(together, 3 * frozen + trained, "bf16 {bf16}: counted by each rank, though there once");
    }
}

/// Without a step an adapted network whose B are zero is the network, to the bit.
#[test]
fn new_adapters_change_no_bit() {
    let spec = spec();
    let fresh = || {
        let fresh = Model::adapted(&config(), DType::F32, false, &spec, 7)?;
        let dense = model()?;
        fresh.set_base(|name| {
            let unit = dense.units.iter().find(|unit| unit.entries.iter().any(|entry| entry.name == name)).unwrap();
            Ok(unit.param(name)?.value.flatten_all()?.to_vec1::<f32>()?)
        })?;
        Ok(fresh)
    };
    let outputs = |model: &dyn Fn() -> Result<Model>| -> Vec<f32> {
        let (model, mut outputs) = (model().unwrap(), vec![]);
        let single: Arc<dyn Communicator> = Arc::new(longreel::parallel::Single);
        let mesh = Mesh::new(single, 1, config().num_attention_heads, 0).unwrap();
        let engine = Engine::new(&model, &mesh.sequence, GRID, 1, 7).unwrap();
        let squares = Squares { clips: 0..1, tokens: engine.local_tokens() };
        let conditioning = Conditioning { timesteps: vec![300.0], text: None, labels: Some(vec![2]) };
        let take = |_, output: Tensor| {
            outputs.extend(output.flatten_all()?.to_vec1::<f32>()?);
            Ok(())
        };
        engine.predict(&conditioning, &squares, take).unwrap();
        outputs
    };
    assert!(outputs(&fresh) == outputs(&model));
    let drawn = fresh().unwrap();
    let a = drawn
        .unit(drawn.unit(drawn.blocks[0].unit).adapter.unwrap())
        .param("blocks.0.attn1.to_q.lora_A.weight")
        .unwrap();
    let values = a.value.flatten_all().unwrap().to_vec1::<f32>().unwrap();
    let (bound, largest) = (40f32.powf(-0.5), values.iter().fold(0f32, |most, value| most.max(value.abs())));
    assert!(largest <= bound && largest > 0.8 * bound, "A is uniform within 1 / sqrt(inner): {largest} of {bound}");
}
