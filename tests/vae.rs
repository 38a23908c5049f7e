//! The VAE against diffusers' AutoencoderKLWan: both kinds, encoding and decoding, whole, in tiles, on 1, 2 and 3
//! ranks; what it remembers of a clip; and what is said of files that are no VAE.
//!
//! The golden files and their story are in `golden/vae/make.py`.

mod damaged;
mod values;

use candle_core::Device;
use longreel::simd::Isa;
use longreel::vae::{Arithmetic, Decoder, Encoder, Frame, VaeConfig, VaeWeights, Whole, bands, tensors, tiles};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use tempfile::TempDir;
use values::{Values, read, write};

const KINDS: [&str; 2] = ["vae21", "vae22"];

const F32: Arithmetic = Arithmetic { isa: Isa::Portable, bf16: false };

fn golden(kind: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/vae").join(kind)
}

/// Runs `longreel forward`: what it wrote, or what it said.
fn forward(vae: &Path, inputs: &Path, flags: &[&str]) -> Result<BTreeMap<String, Values>, String> {
    let dir = TempDir::new().unwrap();
    let out = dir.path().join("out.safetensors");
    let mut command = Command::new(env!("CARGO_BIN_EXE_longreel"));
    let run = command.arg("forward").arg(vae).arg(inputs).arg("-o").arg(&out).args(flags).output().unwrap();
    match run.status.success() {
        true => Ok(read(&out)),
        false => Err(String::from_utf8_lossy(&run.stderr).into_owned()),
    }
}

/// Norm of the difference over the norm.
fn error(got: &Values, want: &Values) -> f64 {
    assert_eq!(got.0, want.0);
    let difference: f64 = got.1.iter().zip(&want.1).map(|(g, w)| (g - w).powi(2)).sum();
    (difference / want.1.iter().map(|w| w * w).sum::<f64>()).sqrt()
}

/// A golden case: its name, the input, and the outputs by their names in `longreel forward`.
type Case = (String, Values, Vec<(&'static str, Values)>);

/// A golden file's cases.
fn cases(kind: &str, file: &str) -> Vec<Case> {
    let mut all = read(&golden(kind).join(format!("{file}.safetensors")));
    let names: Vec<String> = all.keys().filter_map(|name| name.strip_suffix(".pixels")).map(str::to_owned).collect();
    let case = |name: String| {
        let mut take = |what: &str| all.remove(&format!("{name}.{what}")).unwrap();
        let (pixels, latents) = (take("pixels"), take("latents"));
        match file {
            "encode" => {
                let moments = take("moments");
                (name, pixels, vec![("moments", moments), ("latents", latents)])
            }
            _ => (name, latents, vec![("decoded", pixels)]),
        }
    };
    names.into_iter().map(case).collect()
}

// ---- agreement ----------------------------------------------------------------------------------------------------

/// Every golden case, whole, on several ranks and in tiles: within `1e-5` of diffusers, and the same bits each way.
fn agrees(file: &str) {
    let input = if file == "encode" { "pixels" } else { "latents" };
    let mut worst = 0.0;
    for kind in KINDS {
        let (dir, vae) = (TempDir::new().unwrap(), golden(kind).join("vae"));
        let path = dir.path().join("in.safetensors");
        let all = cases(kind, file);
        assert!(all.len() >= 5);
        for (name, given, wanted) in all {
            write(&path, input, &given);
            let mut first = None;
            for flags in [&[][..], &["--ranks", "2"], &["--ranks", "3"], &["--tile", "16"]] {
                let got = forward(&vae, &path, flags).unwrap_or_else(|e| panic!("{kind} {name} {flags:?}: {e}"));
                assert_eq!(got.len(), wanted.len());
                for (what, want) in &wanted {
                    let off = error(&got[*what], want);
                    assert!(off < 1e-5, "{kind} {name} {flags:?}: {what} is off by {off:.1e}");
                    worst = f64::max(worst, off);
                }
                assert!(*first.get_or_insert_with(|| got.clone()) == got, "{kind} {name} {flags:?}: other bits");
            }
        }
    }
    println!("{file}: worst {worst:.1e}");
}

#[test]
fn encoding_agrees_with_diffusers_on_any_ranks_and_in_tiles() {
    agrees("encode");
}

#[test]
fn decoding_agrees_with_diffusers_on_any_ranks_and_in_tiles() {
    agrees("decode");
}

/// Frames of a tensor `[1, channels, frames, rows, width]`.
fn frames((shape, values): &Values) -> Vec<Frame> {
    let [_, c, t, h, w] = shape[..] else { panic!("{shape:?}") };
    let plane = |t: usize, channel: usize| &values[(channel * shape[2] + t) * h * w..][..h * w];
    (0..t)
        .map(|t| {
            let planes: Vec<f32> = (0..c).flat_map(|channel| plane(t, channel)).map(|&x| x as f32).collect();
            Frame::from_planes([c, h, w], &planes)
        })
        .collect()
}

/// All frames of moments, and the most bytes that the layers remembered after each frame.
fn encode(encoder: &Encoder, clip: &[Frame]) -> (Vec<Frame>, Vec<usize>) {
    let (mut encoder, mut moments, mut bytes) = (encoder.clone(), vec![], vec![]);
    for frame in clip {
        moments.extend(encoder.push(frame, &Whole).unwrap());
        bytes.push(encoder.bytes()[1]);
    }
    (moments, bytes)
}

fn decode(decoder: &Decoder, latents: &[Frame]) -> (Vec<Frame>, Vec<usize>) {
    let (mut decoder, mut pixels, mut bytes) = (decoder.clone(), vec![], vec![]);
    for frame in latents {
        let mut emit = |frame| {
            pixels.push(frame);
            Ok(())
        };
        decoder.push(frame, &Whole, &mut emit).unwrap();
        bytes.push(decoder.bytes()[1]);
    }
    (pixels, bytes)
}

fn distance(a: &[Frame], b: &[Frame]) -> f64 {
    assert_eq!(a.len(), b.len());
    let flat = |frames: &[Frame]| -> Vec<f64> { frames.iter().flat_map(|f| &f.values).map(|&x| x.into()).collect() };
    let (a, b) = (flat(a), flat(b));
    error(&(vec![a.len()], a), &(vec![b.len()], b))
}

#[test]
fn every_instruction_set_agrees_in_f32_and_nearly_in_bf16() {
    for kind in KINDS {
        let weights = VaeWeights::open(&golden(kind).join("vae")).unwrap();
        let (_, pixels, outputs) = cases(kind, "encode").swap_remove(2);
        let (pixels, want) = (frames(&pixels), frames(&outputs[0].1));
        let (_, latents, outputs) = cases(kind, "decode").swap_remove(2);
        let (latents, decoded) = (frames(&latents), frames(&outputs[0].1));
        for isa in Isa::ALL.into_iter().filter(|isa| isa.is_available()) {
            for bf16 in [false, true] {
                let arithmetic = Arithmetic { isa, bf16 };
                let encoder = Encoder::load(&weights, arithmetic, &Device::Cpu).unwrap();
                let decoder = Decoder::load(&weights, arithmetic, &Device::Cpu).unwrap();
                let off =
                    [distance(&encode(&encoder, &pixels).0, &want), distance(&decode(&decoder, &latents).0, &decoded)];
                let (least, most) = if bf16 { (1e-4, 3e-2) } else { (0.0, 1e-5) };
                assert!(off.iter().all(|off| (least..most).contains(off)), "{kind} {arithmetic:?}: off by {off:?}");
            }
        }
    }
}

#[test]
fn memory_does_not_grow_with_the_clip() {
    for kind in KINDS {
        let weights = VaeWeights::open(&golden(kind).join("vae")).unwrap();
        let (_, pixels, _) = cases(kind, "encode").swap_remove(0);
        let clip: Vec<Frame> = frames(&pixels).into_iter().cycle().take(41).collect();
        let (moments, bytes) = encode(&Encoder::load(&weights, F32, &Device::Cpu).unwrap(), &clip);
        assert_eq!((moments.len(), bytes[40]), (11, bytes[16]), "{kind}");
        let latents: Vec<Frame> = frames(&cases(kind, "decode")[0].1).into_iter().cycle().take(9).collect();
        let (pixels, bytes) = decode(&Decoder::load(&weights, F32, &Device::Cpu).unwrap(), &latents);
        assert_eq!((pixels.len(), bytes[8]), (33, bytes[4]), "{kind}");
    }
}

/// A frame of `channels` whose values depend on their place alone.
fn made([rows, width, channels]: [usize; 3], seed: usize) -> Frame {
    let value = |i: usize| ((i + seed * 7919) as u32).wrapping_mul(2_654_435_761) as f32 / (1u64 << 31) as f32 - 1.0;
    Frame::new([rows, width, channels], (0..rows * width * channels).map(value).collect())
}

/// Down the rows of all frames at once instead of frame by frame, for any number of rows.
#[test]
fn bands_of_rows_change_nothing() {
    for kind in KINDS {
        let arithmetic = Arithmetic { isa: Isa::best(), bf16: false };
        let weights = VaeWeights::open(&golden(kind).join("vae")).unwrap();
        let (encoder, decoder) = (
            Encoder::load(&weights, arithmetic, &Device::Cpu).unwrap(),
            Decoder::load(&weights, arithmetic, &Device::Cpu).unwrap(),
        );
        let scale = encoder.config().scale_space();
        for (rows, frames) in [(1, 1), (1, 5), (2, 9), (3, 5), (11, 5)] {
            let odd = if kind == "vae21" { 5 } else { 0 }; // what is left over of whole latents
            let size = [rows * scale + odd, 3 * scale];
            let clip: Vec<Frame> = (0..frames).map(|t| made([size[0], size[1], 3], t)).collect();
            let (whole, _) = encode(&encoder, &clip);
            let mut read = |t: usize, rows: std::ops::Range<usize>| Ok(clip[t].part(rows, 0..size[1]));
            let banded = bands::encode(&encoder, frames, size, &mut read, &mut |_| ()).unwrap();
            assert!(banded == whole, "{kind}: encoding {frames} frames of {rows} rows");
            let latents: Vec<Frame> = (0..2).map(|t| made([rows, 4, encoder.config().z_dim], t)).collect();
            let (whole, _) = decode(&decoder, &latents);
            let mut pixels: Vec<Frame> = vec![];
            let mut write = |t: usize, rows: Frame| {
                if pixels.len() == t {
                    pixels.push(rows)
                } else {
                    pixels[t].append(&rows)
                }
                Ok(())
            };
            bands::decode(&decoder, &latents, &mut write).unwrap();
            assert!(pixels == whole, "{kind}: decoding {rows} rows");
        }
    }
}

/// On frames much larger than a tile and its halo, so that what a tile lacks would show.
#[test]
fn tiles_smaller_than_the_frame_change_nothing() {
    for kind in KINDS {
        let arithmetic = Arithmetic { isa: Isa::best(), bf16: false };
        let weights = VaeWeights::open(&golden(kind).join("vae")).unwrap();
        let (encoder, decoder) = (
            Encoder::load(&weights, arithmetic, &Device::Cpu).unwrap(),
            Decoder::load(&weights, arithmetic, &Device::Cpu).unwrap(),
        );
        let scale = encoder.config().scale_space();
        let size = [27 * scale, 31 * scale];
        let clip: Vec<Frame> = (0..5).map(|t| made([size[0], size[1], 3], t)).collect();
        let (whole, _) = encode(&encoder, &clip);
        let mut read = |t: usize, rows, columns| Ok(clip[t].part(rows, columns));
        assert!(tiles::encode(&encoder, 5, size, 4 * scale, &mut read).unwrap() == whole, "{kind}: encoding");
        let latents: Vec<Frame> = (0..2).map(|t| made([37, 40, encoder.config().z_dim], t)).collect();
        let (whole, _) = decode(&decoder, &latents);
        let mut pixels: Vec<Frame> = vec![];
        let mut write = |t: usize, tile: Frame| {
            if pixels.len() == t {
                let shape = [37 * scale, 40 * scale, 3];
                pixels.push(Frame::new(shape, vec![9.0; shape.iter().product()]));
            }
            pixels[t].put(&tile);
            Ok(())
        };
        tiles::decode(&decoder, &latents, 4 * scale, &mut write).unwrap();
        assert!(pixels == whole, "{kind}: decoding");
    }
}

// ---- files --------------------------------------------------------------------------------------------------------

#[test]
fn the_published_vaes_have_their_parameters() {
    let count = |config: &VaeConfig, of: &str| -> usize {
        let all = tensors(config);
        all.iter().filter(|t| t.name.starts_with(of)).map(|t| t.shape.iter().product::<usize>()).sum()
    };
    for (config, encoder, decoder, all) in [
        (VaeConfig::default(), 53_595_872, 73_295_331, 126_892_531),
        (VaeConfig::wan22(), 149_627_776, 555_049_228, 704_688_668),
    ] {
        assert_eq!(
            [count(&config, "encoder."), count(&config, "decoder."), count(&config, "")],
            [encoder, decoder, all]
        );
    }
}

/// Wan's own names, of diffusers' converter, and those of its pickled file.
#[test]
fn original_names_are_read() {
    for kind in KINDS {
        let names: BTreeMap<String, String> =
            serde_json::from_str(&fs::read_to_string(golden(kind).join("original_names.json")).unwrap()).unwrap();
        let config = VaeWeights::open(&golden(kind).join("vae")).unwrap().config;
        let ours: BTreeMap<String, String> = tensors(&config).into_iter().map(|t| (t.name, t.original)).collect();
        assert_eq!(ours, names);
    }
    let (dir, vae) = (TempDir::new().unwrap(), golden("vae21"));
    let single = dir.path().join("any name.pth");
    fs::copy(vae.join("original.pth"), &single).unwrap();
    fs::copy(vae.join("vae/config.json"), dir.path().join("config.json")).unwrap();
    let (folder, pickled) = (VaeWeights::open(&vae.join("vae")).unwrap(), VaeWeights::open(&single).unwrap());
    for tensor in tensors(&folder.config) {
        assert_eq!(folder.read(&tensor).unwrap(), pickled.read(&tensor).unwrap(), "{tensor:?}");
    }
    fs::remove_file(dir.path().join("config.json")).unwrap();
    let said = refusal!(Data, VaeWeights::open(&single).map(drop));
    assert!(said.contains("3 channels"), "{said}");
}

#[test]
fn inputs_that_do_not_fit_are_refused_with_what_would() {
    let (dir, vae) = (TempDir::new().unwrap(), golden("vae22").join("vae"));
    let path = dir.path().join("in.safetensors");
    let said = |name: &str, shape: &[usize], flags: &[&str]| {
        write(&path, name, &(shape.to_vec(), vec![0.0; shape.iter().product()]));
        forward(&vae, &path, flags).unwrap_err()
    };
    for (name, shape, flags, reason) in [
        ("pixels", &[1, 3, 1, 40, 32][..], &[][..], "the nearest are 32 x 48"),
        ("pixels", &[1, 3, 1, 8, 32], &[], "multiples of 16"),
        ("pixels", &[1, 4, 1, 32, 32], &[], "[1, 3, T, H, W] is wanted"),
        ("pixels", &[2, 3, 1, 32, 32], &[], "[1, 3, T, H, W] is wanted"),
        ("latents", &[1, 3, 1, 2, 2], &[], "[1, 5, T, H, W] is wanted"),
        ("latents", &[1, 5, 0, 2, 2], &[], "[1, 5, T, H, W] is wanted"),
        ("images", &[1, 3, 1, 32, 32], &[], "either `pixels`"),
        ("pixels", &[1, 3, 1, 32, 32], &["--grads"], "frozen"),
        ("pixels", &[1, 3, 1, 32, 32], &["--tile", "32", "--ranks", "2"], "one rank"),
    ] {
        let said = said(name, shape, flags);
        assert!(said.contains(reason), "{name} {shape:?} {flags:?}: {said}");
    }
}
