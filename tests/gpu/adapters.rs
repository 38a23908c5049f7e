//! Adapters on a GPU: a step over a frozen network, with dropout, padded texts and tokens of two times all at once, has
//! the CPU's loss, gradients and next adapters, on one GPU and on two; whole runs go as on the CPU; and gradients are
//! those of diffusers and peft.

use candle_core::{DType, Device, Tensor};
use longreel::Result;
use longreel::engine::{Engine, Objective, Source};
use longreel::files::write_tensors;
use longreel::model::{Conditioning, LoraSpec, Model, ModelConfig, TextTokens, TimeGroups};
use longreel::ops::Draws;
use longreel::parallel::{Communicator, Launch, Limits, Reduce, Sequence, run_threads};
use longreel::state::StateOptions;
use longreel::state::weights::TrainState;
use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use tempfile::TempDir;

use super::{Run, SMALL, differ, longreel, normal, off, root, succeed, succeed_on, tensors, values};

/// 45 tokens, and three heads: two ranks divide neither.
const GRID: [usize; 3] = [3, 3, 5];
const CLIPS: [u64; 2] = [4, 9];

/// Names the test to the ranks that it starts, and the variable where they are to leave their results.
const NAME: &str = "adapters::a_step_on_two_gpus_is_that_of_one_cpu";
const OUT: &str = "ADAPTERS_OUT";

/// Heads of 64 in bf16, for which the GPU has kernels.
fn config(bf16: bool) -> ModelConfig {
    ModelConfig {
        patch_size: [1, 1, 1],
        num_attention_heads: 3,
        attention_head_dim: if bf16 { 64 } else { 8 },
        in_channels: 3,
        out_channels: 2,
        text_dim: 6,
        freq_dim: 8,
        ffn_dim: 40,
        num_layers: 2,
        ..ModelConfig::default()
    }
}

/// Random values of a parameter, as large as keep activations of one size.
fn random(number: u64, shape: &[usize]) -> Vec<f32> {
    let by = if let [_, inner] = shape { (*inner as f64).powf(-0.5) } else { 0.2 };
    values(&normal(shape, number, DType::F32)).into_iter().map(|x| (by * x) as f32).collect()
}

/// A frozen network, of bf16 matrices if `bf16`, with adapters of every layer, of which none is zero.
fn model(bf16: bool) -> Result<Model> {
    let config = config(bf16);
    let mut spec = LoraSpec::of_targets(&config, &["*".to_owned()], 3, 2.0)?;
    spec.modules.iter_mut().step_by(2).for_each(|module| (module.rank, module.alpha) = (2, 5.0));
    spec.dropout = 0.3;
    let model = Model::adapted(&config, DType::F32, bf16, &spec, 1)?;
    let mut number = 100;
    let mut draw = |name: &str, shapes: &[(String, Vec<usize>)]| {
        number += 1;
        let (_, shape) = shapes.iter().find(|(other, _)| other == name).unwrap();
        let about = if name.contains("norm") && name.ends_with("weight") { 1.0 } else { 0.0 };
        Ok(random(number, shape).into_iter().map(|x| about + x).collect())
    };
    let (base, adapters) = (Model::shapes(&config), model.trained());
    model.set_base(|name| draw(name, &base))?;
    model.set_adapters(|name| draw(name, &adapters))?;
    Ok(model)
}

/// Random clips, and the mean square of the output as the loss.
struct Squares(Range<usize>);

impl Source for Squares {
    fn input(&self, rows: Range<usize>) -> Result<Tensor> {
        let tokens = GRID.iter().product::<usize>();
        let clips: Vec<f32> = normal(&[CLIPS.len() * tokens * 3], 40, DType::F32).to_vec1()?;
        let row = |row: usize| {
            let token = row / self.0.len() * tokens + self.0.start + row % self.0.len();
            clips[3 * token..3 * token + 3].to_vec()
        };
        Ok(Tensor::from_vec(rows.clone().flat_map(row).collect::<Vec<f32>>(), (rows.len(), 3), &Device::Cpu)?)
    }
}

impl Objective for Squares {
    fn loss(&self, _: Range<usize>, output: &Tensor) -> Result<(f64, Tensor)> {
        let scale = 1.0 / (CLIPS.len() * GRID.iter().product::<usize>() * 2) as f64;
        let sum: f64 = values(output).into_iter().map(|y| y * y).sum();
        Ok((sum * scale, (output * (2.0 * scale))?))
    }
}

/// The clips' texts, of a few tokens and 512 with their pads, and two times in each clip: the first frame's and the
/// rest's.
fn conditioning() -> Result<(Conditioning, TimeGroups)> {
    let text = |i: usize| TextTokens::padded_to(normal(&[3 + 2 * i, 6], 60 + i as u64, DType::F32), 512);
    let [frames, height, width] = GRID;
    let first = height * width;
    let times: Vec<f64> = (0..CLIPS.len())
        .flat_map(|i| {
            let i = i as f64;
            [vec![20.0 * i; first], vec![400.0 + 300.0 * i; (frames - 1) * first]].concat()
        })
        .collect();
    let (groups, timesteps) = TimeGroups::of_timesteps(&times, frames * first);
    Ok((Conditioning { timesteps, text: Some((0..CLIPS.len()).map(text).collect()), labels: None }, groups))
}

/// The loss of a step, the gradients of all adapters, and the adapters after it.
fn step(bf16: bool, device: &Device, comm: Arc<dyn Communicator>) -> Result<Vec<(String, Vec<usize>, Vec<f32>)>> {
    let mut options = StateOptions::default();
    options.adamw.eps = 1e-3; // the size of gradients, so that a step tells of it and rounding is no step
    let state = TrainState::new(model(bf16)?.to_device(device)?, &options, comm.clone())?;
    let sequence = Sequence::new(comm.clone(), config(bf16).num_attention_heads, 0)?;
    let (conditioning, groups) = conditioning()?;
    let engine = Engine::new(&state.model, &sequence, GRID, CLIPS.len(), 7)?.with_time_groups(&groups)?;
    let tokens = engine.local_tokens();
    let draws = Draws { seed: 5, step: 3, samples: CLIPS.to_vec(), first_token: tokens.start };
    state.model.draw_dropout_by(Some(draws));
    let loss = Tensor::new(&[engine.loss_and_gradients(&conditioning, &Squares(tokens))?], &Device::Cpu)?;
    comm.all_reduce(&loss, Reduce::Sum)?;
    state.sum_gradients()?;
    let trained = || state.model.units.iter().filter(|unit| !unit.is_frozen());
    let mut named = vec![("loss".to_owned(), vec![1], vec![loss.to_vec1::<f64>()?[0] as f32])];
    let mut take = |prefix: &str, of: &dyn Fn(&longreel::model::Unit) -> Result<Tensor>| -> Result<()> {
        for unit in trained() {
            let flat = of(unit)?.to_vec1::<f32>()?;
            named.extend(
                unit.entries
                    .iter()
                    .map(|e| (format!("{prefix}{}", e.name), e.shape.clone(), flat[e.range.clone()].to_vec())),
            );
        }
        Ok(())
    };
    take("grad.", &|unit| Ok(unit.grad()?.clone()))?;
    let before = state.gradient_norm(1)?;
    state.update(0, 1e-2, before)?;
    take("new.", &|unit| Ok(unit.value.clone()))?;
    Ok(named)
}

/// The step on one rank of the CPU.
fn on_cpu(bf16: bool) -> BTreeMap<String, Vec<f64>> {
    let named = run_threads(1, 1, |comm| step(bf16, &Device::Cpu, comm)).unwrap().swap_remove(0);
    named.into_iter().map(|(name, _, values)| (name, values.into_iter().map(f64::from).collect())).collect()
}

/// Tensor by tensor; the worst is printed.
fn agree(what: &str, got: &BTreeMap<String, Vec<f64>>, want: &BTreeMap<String, Vec<f64>>, bound: f64) {
    assert!(got.keys().eq(want.keys()), "{what}: {:?}\nare not\n{:?}", got.keys(), want.keys());
    let errors = want.iter().map(|(name, want)| (off(&got[name], want), name));
    let (error, name) = errors.max_by(|a, b| a.0.total_cmp(&b.0)).unwrap();
    println!("{what}: the worst of {} is {name}, {error:.1e}", want.len());
    assert!(error <= bound, "{what}: {name} is off by {error:.1e}");
}

/// What a step leaves, in bf16 or not, in `folder`.
fn left(folder: &Path, bf16: bool) -> BTreeMap<String, Vec<f64>> {
    tensors(&folder.join(bf16.to_string()))
}

/// In bf16 a sum of another order may round to the next bf16, 2^-8 apart.
const BOUNDS: [(bool, f64); 2] = [(false, 3e-5), (true, 2e-2)];

#[test]
fn a_step_is_that_of_the_cpu() {
    let gpu = super::gpu();
    for (bf16, bound) in BOUNDS {
        let folder = TempDir::new().unwrap();
        let named = run_threads(1, 1, |comm| step(bf16, &gpu, comm)).unwrap().swap_remove(0);
        write_tensors(&folder.path().join(bf16.to_string()), named).unwrap();
        let want = on_cpu(bf16);
        assert!(want.values().all(|values| values.iter().any(|&x| x != 0.0)), "something takes no part");
        agree(&format!("bf16 {bf16}"), &left(folder.path(), bf16), &want, bound);
    }
}

#[test]
fn a_step_on_two_gpus_is_that_of_one_cpu() {
    if let Some(out) = std::env::var_os(OUT) {
        let launch = Launch::from_environment(Limits::default()).unwrap();
        for (bf16, _) in BOUNDS {
            let device = longreel::train::device::device(None, "the test", 2, &launch).unwrap();
            let named = launch.run(2, |comm| step(bf16, &device, comm)).unwrap().swap_remove(0);
            if longreel::parallel::is_first() {
                write_tensors(&Path::new(&out).join(bf16.to_string()), named).unwrap();
            }
        }
        return;
    }
    if Device::new_cuda_with_stream(1).is_err() {
        return println!("skipped: one GPU is one rank");
    }
    let out = TempDir::new().unwrap();
    succeed_on(2, || {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args([NAME, "--exact", "--nocapture"]).env(OUT, out.path());
        command
    });
    for (bf16, bound) in BOUNDS {
        agree(&format!("two GPUs, bf16 {bf16}"), &left(out.path(), bf16), &on_cpu(bf16), bound);
    }
}

/// As tests/golden/lora.rs and tests/golden.rs have it for the CPU: ranks and scales by layer, layers outside of
/// blocks, and a time for each token.
#[test]
fn adapters_and_times_of_tokens_are_diffusers() {
    let golden = root().join("tests/golden");
    let cases =
        [("lora/t2v", Some("lora/t2v_mixed")), ("lora/t2v_everything", Some("lora/t2v_everything")), ("tokens", None)];
    for (base, lora) in cases {
        let (dir, folder) = (TempDir::new().unwrap(), golden.join(base));
        let out = dir.path().join("out");
        let paths = [folder.join("transformer"), folder.join("inputs.safetensors"), out.clone()];
        let [model, inputs, out_flag] = paths.each_ref().map(|path| path.to_str().unwrap());
        let file = lora.map(|lora| golden.join(lora).join("diffusers.safetensors"));
        let adapter = file.iter().flat_map(|file| ["--lora", file.to_str().unwrap()]);
        let args: Vec<&str> = ["forward", model, inputs, "-o", out_flag, "--grads", "--device", "cuda"]
            .into_iter()
            .chain(adapter)
            .collect();
        longreel(&args);
        let got = tensors(&out);
        let mut want = tensors(&golden.join(lora.unwrap_or(base)).join("expected.safetensors"));
        want.retain(|name, _| !name.starts_with("scale."));
        agree(base, &got, &want, 2e-5);
    }
}

/// A frozen base of f32 and of bf16; two GPUs that share tokens, and that hold a part of the base each.
#[test]
fn runs_of_adapters_go_as_on_the_cpu() {
    let run = Run(TempDir::new().unwrap());
    let wide = ["model.attention_head_dim=64"];
    run.train(
        "base",
        &[&wide[..], &["train.steps=2", "train.lr=0.05", "train.warmup=0", "train.heldout_every=0"]].concat(),
    );
    let base = run.0.path().join("base/checkpoints/step-00000002/transformer");
    let film = std::fs::read_to_string(root().join("configs/film.toml")).unwrap();
    let (before, rest) = film.split_once("[model]").unwrap();
    let (_, after) = rest.split_once("[diffusion]").unwrap();
    let config = run.0.path().join("lora.toml");
    let text = format!("{before}[model]\nfrom = \"{}\"\n[diffusion]{after}", base.display());
    let text = text.replace("datasets/bbb", root().join("datasets/bbb").to_str().unwrap());
    std::fs::write(&config, text).unwrap();
    let sets: Vec<&str> = SMALL.into_iter().filter(|set| !set.starts_with("model.")).collect();
    let lora = ["lora.rank=3", "lora.alpha=5", "lora.dropout=0.3", "train.lr=0.01", "train.warmup=0"];
    let train = |name: &str, gpus: usize, more: &[&str]| {
        let command = || run.command_of(&config, &sets, name, &[&lora[..], more].concat());
        if gpus == 0 {
            succeed(command().output().unwrap());
        } else {
            succeed_on(gpus, command);
        }
        let adapters = run.0.path().join(name).join("checkpoints/step-00000004/lora.safetensors");
        (run.metrics(name), tensors(&adapters))
    };
    let two = Device::new_cuda_with_stream(1).is_ok();
    for (dtype, bound) in [("train.dtype=f32", 1e-5), ("train.dtype=bf16", 2e-3)] {
        let (cpu, adapters) = train(&format!("cpu-{dtype}"), 0, &[dtype, "train.device=cpu"]);
        let cases: [(&str, usize, &[&str]); 3] = [
            ("one", 1, &[]),
            ("two", 2, &["parallel.ranks=2"]),
            ("zero3", 2, &["parallel.ranks=2", "parallel.zero=3"]),
        ];
        for (name, gpus, how) in cases.into_iter().filter(|case| two || case.1 == 1) {
            let (gpu, updated) =
                train(&format!("{name}-{dtype}"), gpus, &[&[dtype, "train.device=cuda"], how].concat());
            let apart = differ(&gpu, &cpu);
            println!("{name}, {dtype}: losses and norms differ by {apart:.1e}");
            assert!(apart < bound, "{name}, {dtype}: losses or norms differ by {apart:.1e}");
            assert!(updated.keys().eq(adapters.keys()));
            let flat = |named: &BTreeMap<String, Vec<f64>>| named.values().flatten().copied().collect::<Vec<f64>>();
            let error = off(&flat(&updated), &flat(&adapters));
            println!("{name}, {dtype}: adapters differ by {error:.1e}");
            assert!(error < 10.0 * bound, "{name}, {dtype}: adapters differ by {error:.1e}");
        }
    }
}
