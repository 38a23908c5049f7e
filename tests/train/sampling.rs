//! Tests sampling over ranks, tile by tile, against the plain sampler on a whole state; and a large image's way to its
//! file.

use candle_core::{DType, Device, Tensor};
use image::RgbImage;
use longreel::data::write::{PngWriter, write_image};
use longreel::data::{FrameRegion, Frames, RowOrder};
use longreel::diffusion::{
    DiffusionOptions, Guidance, Objective, Prediction, Sampler, SamplerKind, channel_first, inference_sigmas,
    noise_rows, sample_key, timestep,
};
use longreel::engine::{Engine, Source};
use longreel::model::{Model, ModelConfig, TextTokens};
use longreel::ops::read;
use longreel::parallel::{Sequence, Split, run_threads};
use longreel::rng::{Key, Purpose};
use longreel::sample::{ClipSampler, ClipSpec, Prompts, Request, Sampled, SamplingState, conditioning};
use longreel::{Error, Result};
use std::fs;
use std::ops::Range;
use std::path::Path;
use std::sync::LazyLock;

/// 15 tokens of 48 numbers in a picture of 20x12.
const SIZE: [usize; 3] = [1, 20, 12];
const TOKENS: usize = 15;
const ROW: usize = 48;

fn config() -> ModelConfig {
    ModelConfig {
        patch_size: [1, 4, 4],
        num_attention_heads: 3,
        attention_head_dim: 8,
        in_channels: 3,
        out_channels: 3,
        text_dim: 6,
        freq_dim: 8,
        ffn_dim: 24,
        num_layers: 2,
        num_classes: 2,
        pos_embed: true,
        ..ModelConfig::default()
    }
}

/// A model whose every parameter is random.
fn model() -> Result<Model> {
    model_as(false)
}

fn model_as(bf16: bool) -> Result<Model> {
    let mut number = 0;
    Model::load(&config(), DType::F32, bf16, |name| {
        number += 1;
        let (_, shape) = Model::shapes(&config()).into_iter().find(|(n, _)| n == name).unwrap();
        let mut values = vec![0.0; shape.iter().product()];
        Key { seed: 1, purpose: Purpose::Test, step: 0, sample: number }.stream(0).fill_normal(&mut values);
        let about = if name.contains("norm") && name.ends_with("weight") { 1.0 } else { 0.0 };
        Ok(values.into_iter().map(|v| about + 0.2 * v).collect())
    })
}

fn request(sampler: SamplerKind, scale: f64) -> Request {
    Request {
        size: SIZE,
        sampler,
        steps: 5,
        guidance: Guidance::new(scale, [0.2, 0.8]).unwrap(),
        shift: 1.0,
        shift_base_tokens: 4096,
        head_groups: 2,
        seed: 4,
    }
}

/// The whole state as the network's input.
struct State<'a>(&'a Tensor);

impl Source for State<'_> {
    fn input(&self, rows: Range<usize>) -> Result<Tensor> {
        let mut input = vec![0.0; rows.len() * ROW];
        channel_first(&read::<f32>(self.0)?[rows.start * ROW..rows.end * ROW], ROW, 3, &mut input);
        Ok(Tensor::from_vec(input, (rows.len(), ROW), &Device::Cpu)?)
    }
}

/// The clip whose samples are compared.
const CLIP: ClipSpec = ClipSpec { index: 2, label: Some(1), prompt: 1 };

/// Two prompts, and what guidance leads away from; each is of its own length.
static PROMPTS: LazyLock<Prompts> = LazyLock::new(|| {
    let text = |tokens: usize| {
        let mut values = vec![0.0; tokens * 6];
        let key = Key { seed: 2, purpose: Purpose::Test, step: 0, sample: tokens as u64 };
        key.stream(0).fill_normal(&mut values);
        TextTokens::padded_to(Tensor::from_vec(values, (tokens, 6), &Device::Cpu).unwrap(), 9)
    };
    Prompts { texts: vec![text(5), text(3)], negative: text(1) }
});

/// A rank's rows of the clip with every tensor whole: network outputs are collected, guided, and handed to the plain
/// sampler.
fn plain(model: &Model, objective: &Objective, sequence: &Sequence, request: &Request) -> Result<Tensor> {
    let engine = Engine::new(model, sequence, model.config.grid(SIZE)?, 1, 4)?;
    let tokens = engine.local_tokens();
    let mut noise = vec![0.0; tokens.len() * ROW];
    noise_rows(sample_key(request.seed, CLIP.index), tokens.clone(), ROW, &mut noise);
    let x = Tensor::from_vec(noise, (tokens.len(), ROW), &Device::Cpu)?;
    let sampler = Sampler::new(request.sampler, inference_sigmas(request.steps, 1.0)?)?;
    sampler.run(x, |x, sigma| {
        let velocity = |label, text: &TextTokens| {
            let mut rows = vec![];
            let conditioning = conditioning(model, &[timestep(sigma)], &[label], Some(vec![text.clone()]));
            engine.predict(&conditioning, &State(x), |_, output| {
                rows.extend_from_slice(&read::<f32>(&output)?);
                Ok(())
            })?;
            objective.velocity(&Tensor::from_vec(rows, x.shape(), &Device::Cpu)?, x, sigma)
        };
        let given = velocity(CLIP.label, &PROMPTS.texts[CLIP.prompt])?;
        match request.guidance.active(sigma) {
            true => request.guidance.guided(&given, &velocity(None, &PROMPTS.negative)?),
            false => Ok(given),
        }
    })
}

fn sampler<'a>(
    model: &'a Model,
    objective: &'a Objective,
    sequence: &'a Sequence,
    request: &'a Request,
) -> ClipSampler<'a> {
    ClipSampler { model, objective, sequence, request, tile: 4, decoder: None, prompts: Some(&PROMPTS) }
}

fn numbers(x: &Tensor) -> Vec<f32> {
    x.flatten_all().unwrap().to_vec1().unwrap()
}

#[test]
fn tiles_on_any_ranks_sample_what_the_whole_state_does() {
    for (prediction, scale) in [(Prediction::X, 2.5), (Prediction::V, 1.0)] {
        let objective = Objective::new(&options!(DiffusionOptions::default(); prediction)).unwrap();
        for kind in [SamplerKind::Euler, SamplerKind::Heun, SamplerKind::Dpmpp, SamplerKind::Unipc] {
            let request = request(kind, scale);
            let on = |ranks: usize| {
                let parts = run_threads(ranks, 1, |comm| {
                    let sequence = Sequence::new(comm, 3, 0)?;
                    let model = model()?;
                    let whole = numbers(&plain(&model, &objective, &sequence, &request)?);
                    let tiled = numbers(&sampler(&model, &objective, &sequence, &request).sample(CLIP)?.rows);
                    assert_eq!(tiled.len(), Split::new(TOKENS, ranks).count(sequence.all.rank()) * ROW);
                    assert!(
                        whole == tiled,
                        "{kind:?}, {prediction:?}: not the bits of the whole state on {ranks} ranks"
                    );
                    Ok(tiled)
                });
                parts.unwrap().concat()
            };
            let one = on(1);
            let size = one.iter().fold(0f32, |most, v| most.max(v.abs()));
            assert!(size > 0.1 && size.is_finite(), "{kind:?}: nothing to compare");
            for ranks in [2, 3] {
                let most = one.iter().zip(on(ranks)).fold(0f32, |most, (a, b)| most.max((a - b).abs()));
                assert!(most < 1e-4 * size, "{kind:?}, {prediction:?} on {ranks} ranks: off by {most:e} of {size}");
            }
        }
    }
}

/// In a batch, a clip has the bits that it has alone: of any size, with guidance in one pass of the network or two,
/// with classes that differ, in f32 and bf16, and on several ranks.
#[test]
fn a_clip_does_not_depend_on_the_batch_that_it_is_sampled_in() {
    let objective = Objective::new(&options!(DiffusionOptions::default(); prediction: Prediction::X)).unwrap();
    let labels = [Some(0), Some(1), None, Some(1), Some(0)];
    let clips = ClipSpec::numbered(labels, 2);
    for (kind, scale, bf16) in [
        (SamplerKind::Heun, 2.5, false),
        (SamplerKind::Unipc, 1.0, false),
        (SamplerKind::Dpmpp, 2.5, true),
        (SamplerKind::Euler, 1.5, false),
    ] {
        let request = request(kind, scale);
        for ranks in [1, 2, 3] {
            run_threads(ranks, 1, |comm| {
                let sequence = Sequence::new(comm, 3, 0)?;
                let (model, request) = (model_as(bf16)?, &request);
                let sampler = sampler(&model, &objective, &sequence, request);
                let alone = clips.iter().map(|&clip| Ok(numbers(&sampler.sample(clip)?.rows)));
                let alone = alone.collect::<Result<Vec<_>>>()?;
                assert!(alone.windows(2).all(|two| two[0] != two[1]), "all clips are one");
                // Of 10 at once, the five with both conditions; of 5, all, first with one condition, then with the
                // other.
                for (most, batches) in [(1, &[1, 1, 1, 1, 1][..]), (2, &[1, 2, 2]), (3, &[2, 3]), (5, &[5]), (10, &[5])]
                {
                    let (mut sampled, told) = (vec![], std::cell::RefCell::new(vec![]));
                    let report = |state| told.borrow_mut().push(state);
                    sampler.sample_all(&clips, most, &report, |number, clip| {
                        assert_eq!(number, sampled.len());
                        sampled.push(numbers(&clip.rows));
                        Ok(())
                    })?;
                    assert!(sampled == alone, "{kind:?}, guidance {scale}: {most} at once on {ranks} ranks");
                    let calls = if kind == SamplerKind::Heun { 9 } else { 5 };
                    let mut first = 0;
                    let expected = batches.iter().flat_map(|count| {
                        first += count;
                        (0..=calls).map(move |done| SamplingState { clips: first - count..first, calls: [done, calls] })
                    });
                    assert_eq!(told.into_inner(), expected.collect::<Vec<_>>(), "{most} at once");
                }
                sampler.sample_all(&[], 3, &|_| panic!("nothing to do"), |_, _| panic!("no clip"))?;
                // 15 tokens a clip, over the ranks.
                assert_eq!(sampler.most_at_once()?, 4096 / 15usize.div_ceil(ranks));
                let large = Request { size: [1, 4096, 4096], ..request.clone() };
                assert_eq!(ClipSampler { request: &large, ..sampler }.most_at_once()?, 1);
                Ok(())
            })
            .unwrap();
        }
    }
}

#[test]
fn a_failure_to_take_a_clip_ends_the_sampling() {
    let objective = Objective::new(&DiffusionOptions::default()).unwrap();
    let result = run_threads(2, 1, |comm| {
        let sequence = Sequence::new(comm, 3, 0)?;
        let (model, request) = (model()?, request(SamplerKind::Euler, 1.0));
        let clips = ClipSpec::numbered([Some(0); 4], 2);
        sampler(&model, &objective, &sequence, &request).sample_all(&clips, 2, &|_| {}, |number, _| {
            assert!(number < 2, "went on");
            if number == 1 { Err(Error::Environment("no room for clip 1".into())) } else { Ok(()) }
        })
    });
    assert!(result.expect_err("clip 1 fails").to_string().contains("no room for clip 1"));
}

/// Rows of an image of 64x16384 in patches of 16x16, of which a line of patches is a block of rows of its own; and its
/// pixels.
fn wide() -> (Vec<f32>, Frames) {
    let mut rows = vec![0.0; 4096 * 768];
    noise_rows(sample_key(3, 3), 0..4096, 768, &mut rows);
    rows.iter_mut().for_each(|v| *v *= 0.6);
    let mut frames = Frames::black(&FrameRegion::whole(0..1, 64), 64, 16384);
    frames.set_rows([1, 16, 16], 0..4096, RowOrder::ChannelLast, &rows).unwrap();
    (rows, frames)
}

#[test]
fn bands_of_any_ranks_make_the_file_that_the_whole_makes() {
    let (rows, frames) = wide();
    let folder = tempfile::tempdir().unwrap();
    let whole = folder.path().join("whole.png");
    write_image(&whole, &RgbImage::from_raw(16384, 64, frames.data.clone()).unwrap()).unwrap();
    let pixels = |path: &Path| image::open(path).unwrap();
    let whole = pixels(&whole);
    assert!(whole.as_bytes() == frames.data);
    for ranks in [1, 2, 3, 7] {
        let path = folder.path().join(format!("{ranks}.png"));
        let collected = run_threads(ranks, 1, |comm| {
            let mine = Split::new(4096, ranks).range(comm.rank());
            let local = Tensor::from_slice(&rows[mine.start * 768..mine.end * 768], (mine.len(), 768), &Device::Cpu)?;
            let clip = Sampled::new(local, [1, 64, 16384], [1, 16, 16])?;
            clip.write_png(&comm, &path)??;
            let mut bands = vec![];
            clip.bands(&comm, |band| {
                bands.push(band.lines.clone());
                Ok(())
            })?;
            let four = vec![0..16, 16..32, 32..48, 48..64];
            assert_eq!(bands, if comm.rank() == 0 { four } else { vec![] });
            clip.collect(&comm)
        });
        let collected = collected.unwrap();
        assert!(collected[0].as_ref() == Some(&frames) && collected[1..].iter().all(Option::is_none), "{ranks} ranks");
        let banded = pixels(&path);
        assert!(banded.color() == whole.color() && banded == whole, "the file of {ranks} ranks is another picture");
    }
}

#[test]
fn a_clip_of_several_frames_comes_frame_by_frame() {
    let (size, patch) = ([4, 8, 12], [2, 4, 4]); // 12 tokens
    let mut rows = vec![0.0; 12 * 96];
    noise_rows(sample_key(3, 4), 0..12, 96, &mut rows);
    let mut frames = Frames::black(&FrameRegion::whole(0..4, 8), 8, 12);
    frames.set_rows(patch, 0..12, RowOrder::ChannelLast, &rows).unwrap();
    let clips = run_threads(5, 1, |comm| {
        let mine = Split::new(12, 5).range(comm.rank());
        let local = Tensor::from_slice(&rows[mine.start * 96..mine.end * 96], (mine.len(), 96), &Device::Cpu)?;
        let clip = Sampled::new(local, size, patch)?;
        clip.collect(&comm)
    });
    assert_eq!(clips.unwrap()[0], Some(frames));
    let clip = Sampled::new(Tensor::zeros((12, 96), DType::F32, &Device::Cpu).unwrap(), size, patch).unwrap();
    let alone: std::sync::Arc<dyn longreel::parallel::Communicator> = std::sync::Arc::new(longreel::parallel::Single);
    let error = clip.write_png(&alone, "x.png".as_ref()).unwrap_err().to_string();
    assert!(error.contains("x.png: a clip of 4 frames"), "{error}");
}

#[test]
fn a_failure_to_take_a_band_ends_all_ranks() {
    let (rows, _) = wide();
    let result = run_threads(3, 1, |comm| {
        let mine = Split::new(4096, 3).range(comm.rank());
        let local = Tensor::from_slice(&rows[mine.start * 768..mine.end * 768], (mine.len(), 768), &Device::Cpu)?;
        let mut taken = 0;
        Sampled::new(local, [1, 64, 16384], [1, 16, 16])?.bands(&comm, |_| {
            taken += 1;
            if taken == 2 { Err(Error::Environment("no room".into())) } else { Ok(()) }
        })
    });
    assert!(result.expect_err("rank 0 fails").to_string().contains("no room"));
}

#[test]
fn a_png_is_whole_or_not_there() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.png");
    fs::write(&path, "mine").unwrap();
    let refused = |lines: &[u8], part: &str| {
        let mut writer = PngWriter::create(&path, 3, 5).unwrap();
        writer.push(&[7; 15]).unwrap();
        let error = writer.push(lines).and_then(|()| writer.finish()).unwrap_err().to_string();
        assert!(error.contains("a.png: ") && error.contains(part), "{error}");
        assert_eq!(fs::read(&path).unwrap(), b"mine");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "a temporary file is left");
    };
    refused(&[1; 15], "1 line of the picture is missing");
    refused(&[1; 16], "16 bytes are not lines of 15 bytes, of which 2 are to come");
    refused(&[1; 45], "45 bytes are not lines");
    drop(PngWriter::create(&path, 3, 5).unwrap());
    assert_eq!(fs::read(&path).unwrap(), b"mine");
    for (height, width) in [(0, 5), (5, 0), (1 << 31, 1)] {
        let error = PngWriter::create(&path, height, width).err().expect("no such picture").to_string();
        assert!(error.contains("a PNG cannot have"), "{error}");
    }
    let mut writer = PngWriter::create(&path, 2, 1).unwrap();
    writer.push(&[1, 2, 3, 4, 5, 6]).unwrap();
    writer.finish().unwrap();
    assert_eq!(image::open(&path).unwrap().as_bytes(), [1, 2, 3, 4, 5, 6]);
}
