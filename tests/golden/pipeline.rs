//! Compares a whole pipeline with diffusers' WanPipeline: the prompts' embeddings, the latents that sampling leads to
//! from given noise and the decoded video, on 1, 2 and 3 ranks; and `longreel sample` on the pipeline's folder, with
//! LoRAs and with what it cannot use.
//!
//! The golden files and their story are in `golden/pipeline.py`.

use super::{Values, case, error, read};
use crate::train::{fail, longreel, succeed};
use candle_core::{DType, Device};
use longreel::config::SamplerKind;
use longreel::diffusion::{DiffusionOptions, Guidance, Objective};
use longreel::lora::{Adapter, AdapterModule, Form, write};
use longreel::model::layout::Layout;
use longreel::model::{Model, ModelConfig, TEXT_LENGTH, TextTokens};
use longreel::parallel::{Sequence, run_threads};
use longreel::rng::{Key, Purpose};
use longreel::sample::{ClipSampler, ClipSpec, Prompts, Request};
use longreel::simd::Isa;
use longreel::text::TextEncoder;
use longreel::vae::{Arithmetic, Decoder, Frame, VaeWeights};
use longreel::{Result, encode};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use tempfile::TempDir;

/// Frames, height, width of the golden clip; its latents and their patches, and the channels.
const SIZE: [usize; 3] = [5, 32, 48];
const GRID: [usize; 3] = [2, 2, 3];
const LATENTS: [usize; 4] = [3, 2, 4, 6];
/// Elements of a token: a patch of 1 x 2 x 2 of three channels.
const ROW: usize = 12;

/// Makes the folder of the golden pipeline.
pub fn assemble(to: &Path) {
    for (part, from) in [
        ("", "pipeline"),
        ("scheduler", "pipeline/scheduler"),
        ("transformer", "pipeline/transformer"),
        ("vae", "vae/vae21/vae"),
        ("text_encoder", "text/text_encoder"),
        ("tokenizer", "text/tokenizer"),
    ] {
        fs::create_dir_all(to.join(part)).unwrap();
        for file in fs::read_dir(case(from)).unwrap().map(|file| file.unwrap().path()).filter(|path| path.is_file()) {
            fs::copy(&file, to.join(part).join(file.file_name().unwrap())).unwrap();
        }
    }
}

/// The prompt, and what guidance leads away from.
fn prompts() -> [String; 2] {
    let json: BTreeMap<String, String> =
        serde_json::from_str(&fs::read_to_string(case("pipeline/prompts.json")).unwrap()).unwrap();
    ["prompt", "negative_prompt"].map(|key| json[key].clone())
}

/// Where element i of token n's row is in `[channels, frames, rows, width]`.
fn place(token: usize, i: usize) -> usize {
    let [_, frames, rows, width] = LATENTS;
    let [_, lines, columns] = GRID;
    let (t, line, column) = (token / (lines * columns), token / columns % lines, token % columns);
    let (channel, y, x) = (i % 3, 2 * line + i / 6, 2 * column + i / 3 % 2);
    ((channel * frames + t) * rows + y) * width + x
}

fn named(name: &str, shape: &[usize], data: Vec<f64>) -> BTreeMap<String, Values> {
    BTreeMap::from([(name.to_owned(), Values { shape: shape.to_vec(), data })])
}

#[test]
fn prompts_clips_and_video_are_those_of_diffusers() {
    let (dir, want) = (TempDir::new().unwrap(), read(&case("pipeline/expected.safetensors")));
    assemble(dir.path());
    let embeds = TextEncoder::open(dir.path()).unwrap().encode(&prompts(), &mut |_, _| ()).unwrap();
    for (name, got) in ["prompt_embeds", "negative_prompt_embeds"].into_iter().zip(&embeds) {
        let data = got.flatten_all().unwrap().to_vec1::<f32>().unwrap().into_iter().map(f64::from).collect();
        let off = error(&named(name, got.dims(), data), &want, [name].into_iter());
        assert!(off < 1e-5, "{name} is off by {off:.1e}");
        println!("{name}: {off:.1e}");
    }

    let folder = Layout::open(&dir.path().join("transformer")).unwrap().into_folder().unwrap();
    let config = ModelConfig::of(&folder).unwrap();
    let weights = VaeWeights::open(dir.path()).unwrap();
    let decoder = Decoder::load(&weights, Arithmetic { isa: Isa::best(), bf16: false }, &Device::Cpu).unwrap();
    let mut embeds = embeds.into_iter().map(|tokens| TextTokens::padded_to(tokens, TEXT_LENGTH));
    let prompts = Prompts { texts: vec![embeds.next().unwrap()], negative: embeds.next().unwrap() };
    let request = Request {
        size: SIZE,
        sampler: SamplerKind::WanUnipc,
        steps: 4,
        guidance: Guidance::new(4.0, [0.0, 1.0]).unwrap(),
        shift: 3.0,
        shift_base_tokens: 4096,
        head_groups: 1,
        seed: 0,
    };
    let objective = Objective::new(&DiffusionOptions::default()).unwrap();
    let start = &want["latents_start"].data;
    let shared = Arc::new(decoder.clone());
    for ranks in [1, 2, 3] {
        let parts = run_threads(ranks, 1, |comm| {
            let sequence = Sequence::new(comm, config.num_attention_heads, 0)?;
            let model = Model::load(&config, DType::F32, false, |name| folder.read_f32(name))?;
            let sampler = ClipSampler {
                model: &model,
                objective: &objective,
                sequence: &sequence,
                request: &request,
                tile: 5,
                decoder: Some(&shared),
                prompts: Some(&prompts),
            };
            let clip = ClipSpec { index: 0, label: None, prompt: 0 };
            let sampled = sampler.sample_from(clip, &|_, tokens, noise| {
                for (token, row) in tokens.zip(noise.chunks_exact_mut(ROW)) {
                    row.iter_mut().enumerate().for_each(|(i, x)| *x = start[place(token, i)] as f32);
                }
            })?;
            Ok(sampled.rows.flatten_all()?.to_vec1::<f32>()?)
        });
        let rows = parts.unwrap().concat();
        let mut latents = vec![0.0; rows.len()];
        for (n, &x) in rows.iter().enumerate() {
            latents[place(n / ROW, n % ROW)] = f64::from(x);
        }
        let video = decoded(&decoder, &latents, ranks).unwrap();
        let mut got = named("latents_end", &[1, 3, 2, 4, 6], latents);
        got.extend(named("video", &[1, 5, 3, 32, 48], video));
        for name in ["latents_end", "video"] {
            let off = error(&got, &want, [name].into_iter());
            assert!(off < 1e-5, "{name} on {ranks} ranks is off by {off:.1e}");
            println!("{name} on {ranks} ranks: {off:.1e}");
        }
    }
}

/// The video `[1, frames, 3, rows, width]` in 0..1 of latents `[3, frames, rows, width]`, on so many ranks.
fn decoded(decoder: &Decoder, latents: &[f64], ranks: usize) -> Result<Vec<f64>> {
    let [channels, frames, rows, width] = LATENTS;
    let frame = |t: usize| {
        let plane = |c: usize| &latents[(c * frames + t) * rows * width..][..rows * width];
        let planes: Vec<f32> = (0..channels).flat_map(plane).map(|&x| x as f32).collect();
        Frame::from_planes([channels, rows, width], &planes)
    };
    let latents: Vec<Frame> = (0..frames).map(frame).collect();
    let videos = run_threads(ranks, 1, |comm| {
        let mut video = vec![];
        encode::decode(decoder, &comm, &latents, &mut |frame| {
            let unit = |x: &f32| f64::from(x / 2.0 + 0.5).clamp(0.0, 1.0);
            video.extend((0..3).flat_map(|c| frame.values.iter().skip(c).step_by(3).map(unit)));
            Ok(())
        })?;
        Ok(video)
    })?;
    Ok(videos.into_iter().next().unwrap())
}

// ---- the command --------------------------------------------------------------------------------------------------

/// A golden pipeline's folder `pipeline`, and a folder as a home.
struct Place(TempDir);

impl Place {
    fn new() -> Self {
        let place = Self(TempDir::new().unwrap());
        assemble(&place.path("pipeline"));
        place
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// `longreel sample` of the golden clip from `from` to `out`.
    fn command(&self, from: &str, out: &str, args: &[&str]) -> Command {
        let [prompt, negative] = prompts();
        let mut command = longreel();
        command.env("HOME", self.0.path()).arg("sample").arg(self.path(from)).arg("-o").arg(self.path(out));
        command.args(["--prompt", &prompt, "--negative", &negative]);
        command.args(["--frames", "5", "--height", "32", "--width", "48", "--steps", "4"]).args(args);
        command
    }

    /// The pixels of a sheet of the sampled clip.
    fn sheet(&self, from: &str, out: &str, args: &[&str]) -> Vec<u8> {
        succeed(&mut self.command(from, out, &[&["--guidance", "4", "--real-size"], args].concat()));
        image::open(self.path(out)).unwrap().into_rgb8().into_raw()
    }

    /// Writes a LoRA of the first layers of this network with random A and B.
    fn lora(&self, name: &str, width: usize) -> String {
        let module = |layer: &str, seed: u64| {
            let values = |sample: u64| {
                let mut values = vec![0.0; 2 * width];
                Key { seed, purpose: Purpose::Test, step: 0, sample }.stream(0).fill_normal(&mut values);
                values.iter().map(|x| 0.3 * x).collect()
            };
            let (a, b) = (values(0), values(1));
            AdapterModule { name: format!("blocks.{layer}"), rank: 2, alpha: 2.0, inner: width, out: width, a, b }
        };
        let modules = vec![module("0.attn1.to_q", 1), module("0.attn2.to_v", 2), module("1.attn1.to_out.0", 3)];
        let path = self.path(name);
        write(&path, &Adapter { modules }, Form::Comfy, &BTreeMap::new()).unwrap();
        path.display().to_string()
    }
}

/// The largest difference of two pictures.
pub fn off(a: &[u8], b: &[u8]) -> u8 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| a.abs_diff(*b)).max().unwrap()
}

#[test]
fn a_pipeline_is_sampled_by_its_own_parts_and_shift() {
    let place = Place::new();
    succeed(&mut place.command("pipeline", "out.mp4", &["--guidance", "4"]));
    assert!(fs::metadata(place.path("out.mp4")).unwrap().len() > 100);
    let own = place.sheet("pipeline", "own.png", &[]);
    assert_eq!(place.sheet("pipeline", "three.png", &["--shift", "3"]), own);
    assert!(off(&place.sheet("pipeline", "two.png", &["--ranks", "2"]), &own) <= 1);
    let config = place.path("pipeline/scheduler/scheduler_config.json");
    let json = fs::read_to_string(&config).unwrap();
    assert!(json.contains("\"flow_shift\": 3.0"));
    fs::write(&config, json.replace("\"flow_shift\": 3.0", "\"flow_shift\": 7.0")).unwrap();
    let other = place.sheet("pipeline", "other.png", &[]);
    assert!(off(&other, &own) > 5, "the scheduler's shift does not count");
    assert_eq!(place.sheet("pipeline", "seven.png", &["--shift", "7"]), other);
}

/// Half of a LoRA twice is the LoRA, and both are the merged network's clip but for the rounding of the sum.
#[test]
fn loras_add_up_to_what_is_merged() {
    let place = Place::new();
    let lora = place.lora("lora.safetensors", 32);
    let mut merge = longreel();
    succeed(merge.args(["lora", "merge"]).arg(place.path("pipeline")).arg(&lora).arg("-o").arg(place.path("merged")));
    assemble(&place.path("tuned"));
    for file in ["config.json", "diffusion_pytorch_model.safetensors"] {
        fs::copy(place.path("merged").join(file), place.path("tuned/transformer").join(file)).unwrap();
    }
    let merged = place.sheet("tuned", "merged.png", &[]);
    assert_eq!(place.sheet("pipeline", "once.png", &["--lora", &lora]), merged);
    let half = format!("{lora}:0.5");
    assert!(off(&place.sheet("pipeline", "halves.png", &["--lora", &half, "--lora", &half]), &merged) <= 1);
    let base = place.sheet("pipeline", "base.png", &[]);
    assert!(off(&base, &merged) > 5, "the LoRA changes nothing");
    assert_eq!(place.sheet("pipeline", "gone.png", &["--lora", &format!("{lora}:0")]), base);
}

#[test]
fn what_a_pipeline_cannot_be_sampled_by_is_refused() {
    let place = Place::new();
    let refused = |args: &[&str]| fail(&mut place.command("pipeline", "out.mp4", args));
    let other = place.lora("other.safetensors", 24);
    let said = refused(&["--lora", &other]);
    assert!(said.contains("24 wide") && said.contains("32"), "{said}");
    let said = refused(&["--lora", "nowhere.safetensors"]);
    assert!(said.contains("nowhere.safetensors"), "{said}");
    let said = refused(&["--lora", &place.path("pipeline/transformer").display().to_string()]);
    assert!(said.contains("transformer"), "{said}");
    let pipeline = place.path("pipeline").display().to_string();
    for (part, flag) in [("text_encoder", "--text"), ("vae", "--vae")] {
        fs::rename(place.path("pipeline").join(part), place.path(part)).unwrap();
        let lacks = format!("{pipeline}: is a pipeline without the folder {part}, so it is incomplete; fetch the rest");
        let said = refused(&[]);
        assert!(said.starts_with(&format!("RUN_OR_MODEL ({flag} names another): {lacks}")), "without {part}: {said}");
        let said = refused(&[flag, &pipeline]);
        assert!(said.starts_with(&format!("{flag}: {lacks}")), "without {part}: {said}");
        fs::rename(place.path(part), place.path("pipeline").join(part)).unwrap();
    }
    assert!(!place.path("out.mp4").exists());
}
