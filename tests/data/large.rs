//! Tests still images line by line: the pixels that decoding the whole gives, the regions that ranks hold, and how much
//! memory that takes.

use super::media::*;
use longreel::data::write::PngWriter;
use longreel::data::{Augment, Crop, Dataset, FrameRegion, token_grid};
use longreel::observe::process::memory;
use longreel::parallel::Split;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A picture of 40x24 with something everywhere, transparent in places, with 16 bits a channel.
fn deep() -> image::ImageBuffer<image::Rgba<u16>, Vec<u16>> {
    image::ImageBuffer::from_fn(40, 24, |x, y| {
        let hash = |k: u32| (x.wrapping_mul(0x9e37).wrapping_add(y * 0x85eb + k * 977)).wrapping_mul(0x2545_f491) >> 16;
        image::Rgba([
            hash(1) as u16,
            hash(2) as u16,
            (x * 1600 + y) as u16,
            if x < 20 { 65535 } else { hash(3) as u16 },
        ])
    })
}

/// PNGs of every kind of pixel, interlaced too.
fn kinds(folder: &Path) -> Vec<PathBuf> {
    let deep = image::DynamicImage::from(deep());
    let pixels = |name: &str, image: image::DynamicImage| {
        image.save(folder.join(name)).unwrap();
    };
    pixels("rgba16.png", deep.clone());
    pixels("rgb16.png", deep.to_rgb16().into());
    pixels("grey16.png", deep.to_luma16().into());
    pixels("greya16.png", deep.to_luma_alpha16().into());
    pixels("rgba8.png", deep.to_rgba8().into());
    pixels("rgb8.png", deep.to_rgb8().into());
    pixels("grey8.png", deep.to_luma8().into());
    pixels("greya8.png", deep.to_luma_alpha8().into());
    let from = folder.join("rgb8.png");
    let convert = |name: &str, args: &[&str]| ffmpeg(folder.join(name), &["-i", from.to_str().unwrap()], args, &[]);
    convert("palette.png", &["-pix_fmt", "pal8"]);
    convert("bits.png", &["-pix_fmt", "monob"]);
    convert("interlaced.png", &["-flags", "+ildct"]);
    let mut all: Vec<_> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    all.sort();
    assert_eq!(all.len(), 11);
    all
}

#[test]
fn every_kind_of_png_is_read_as_the_image_crate_reads_it() {
    let folder = folder();
    for path in kinds(folder.path()) {
        let image = image::open(&path).unwrap();
        let expected: Vec<u8> = match image.color().has_alpha() {
            false => image.to_rgb8().into_raw(),
            true => {
                let over = |v: u8, a: u32| ((u32::from(v) * a + 255 * (255 - a) + 127) / 255) as u8;
                let flat = |p: &image::Rgba<u8>| [0, 1, 2].map(|c| over(p[c], u32::from(p[3])));
                image.to_rgba8().pixels().flat_map(flat).collect()
            }
        };
        let dataset = open(&config(1, 24, 40), &path);
        assert!(whole(&dataset, &dataset.clip(0)).data == expected, "{}", path.display());
    }
    let interlaced = std::fs::read(folder.path().join("interlaced.png")).unwrap();
    assert_eq!(interlaced[28], 1, "the test's interlaced file is none");
}

#[test]
fn rank_loads_only_the_lines_of_its_tokens() {
    let folder = folder();
    let at = |name: &str| folder.path().join(name);
    let rgb = image::DynamicImage::from(deep()).to_rgb8();
    // the size but for its height
    let tall = image::imageops::resize(&rgb, 40, 37, image::imageops::FilterType::Triangle);
    let large = image::imageops::resize(&rgb, 93, 120, image::imageops::FilterType::Triangle);
    for (name, image) in [("same.png", &rgb), ("tall.png", &tall), ("large.png", &large), ("large.webp", &large)] {
        image.save(at(name)).unwrap();
    }
    large.save(at("large.jpg")).unwrap();
    let mut random = config(1, 24, 40);
    (random.crop, random.flip) = (Crop::Random, true);
    let dataset = open(&random, folder.path());
    assert_eq!(dataset.len(), 5);
    let grid = token_grid([1, 24, 40], [1, 4, 8]).unwrap(); // 6 x 5 tokens
    for id in 0..dataset.len() {
        let clip = dataset.clip(id);
        for augment in [Augment::PLAIN, Augment { crop: [0.99, 0.3], flip: true }] {
            let whole = dataset.frames(&clip, &augment, 0..1).unwrap();
            for ranks in [1, 2, 3, 7, 30] {
                let mut held = 0;
                for rank in 0..ranks {
                    let range = FrameRegion::of_tokens(Split::new(30, ranks).range(rank), grid, [1, 4, 8]);
                    let part = dataset.region(&clip, &augment, &range).unwrap();
                    held += part.data.len();
                    let bytes = range.lines.start * 120..range.lines.end * 120;
                    assert_eq!(part.lines, range.lines);
                    assert!(part.data == whole.data[bytes], "{}, {range:?}", clip.path.display());
                }
                // Neighbours share at most a line of patches.
                assert!(held <= whole.data.len() + ranks * 4 * 120, "{ranks} ranks hold {held} bytes");
            }
        }
    }
    let clip = dataset.clip(0);
    let refused =
        |frames, lines| refusal!(Shape, dataset.region(&clip, &Augment::PLAIN, &FrameRegion { frames, lines }));
    assert!(refused(0..1, 8..25).contains("lines 8..25"));
    assert!(refused(0..1, 8..8).contains("lines 8..8"));
    assert!(refused(0..2, 0..8).contains("frames 0..2"));
}

#[test]
fn damage_in_a_png_is_an_error_that_names_it() {
    let folder = folder();
    let path = folder.path().join("a.png");
    let mut writer = PngWriter::create(&path, 600, 800).unwrap();
    let noise: Vec<u8> = (0..600 * 2400u32).map(|i| (i.wrapping_mul(0x9e37_79b9) >> 20) as u8).collect();
    writer.push(&noise).unwrap();
    writer.finish().unwrap();
    let whole = std::fs::read(&path).unwrap();
    assert!(whole.len() > 500_000, "{} bytes", whole.len());
    let dataset = open(&config(1, 600, 800), folder.path());
    let named = |what: &str, reason: &str, bytes: &[u8]| {
        std::fs::write(&path, bytes).unwrap();
        let error = refusal!(Data, dataset.frames(&dataset.clip(0), &Augment::PLAIN, 0..1));
        assert!(error.contains("a.png, clip 0") && error.contains(reason), "{what}: {error}");
    };
    named("cut", "it is cut short or damaged", &whole[..whole.len() * 2 / 3]);
    let mut flipped = whole.clone();
    flipped[whole.len() / 2] ^= 0x20;
    named("a bit flipped", "it cannot be decoded", &flipped);
    // Its structure is right, so that only decoding finds it.
    let scanned = open(&config(1, 600, 800), folder.path()).decode_all();
    assert!(scanned.is_empty() && skipped(&scanned)[0].1.contains("cannot be decoded"), "{:?}", skipped(&scanned));
    std::fs::write(&path, &whole[..whole.len() * 2 / 3]).unwrap();
    let cut = Dataset::survey(&config(1, 600, 800), folder.path()).unwrap();
    assert!(cut.is_empty() && skipped(&cut)[0].1.contains("cut short"), "{:?}", skipped(&cut));
}

/// 16K: 15360x8640, whose pixels are 380 MiB.
const LARGE: [usize; 2] = [8640, 15360];

#[test]
fn a_large_image_takes_the_memory_of_a_rank_s_lines() {
    let folder = folder();
    let child = |test: &str| {
        let name = format!("data::large::{test}");
        let mut child = Command::new(std::env::current_exe().unwrap());
        child.args(["--exact", &name, "--ignored", "--nocapture"]).env("LONGREEL_LARGE", folder.path());
        let output = child.output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success(), "{text}\n{}", String::from_utf8_lossy(&output.stderr));
        text.lines().find_map(|line| line.strip_prefix("peak MiB ")).expect(&text).parse::<f64>().unwrap()
    };
    let written = child("child_writes_a_large_image");
    assert!(written < 64.0, "writing takes {written} MiB");
    let decoded = child("child_decodes_a_quarter");
    assert!((95.0..160.0).contains(&decoded), "a quarter, of 95 MiB, takes {decoded} MiB");
    let shrunk = child("child_shrinks_to_a_quarter_of_1080_lines");
    assert!(shrunk < 64.0, "an image of 6 MiB made of it takes {shrunk} MiB");
}

fn peak() {
    println!("peak MiB {:.1}", memory().peak as f64 / f64::from(1 << 20));
}

fn place() -> PathBuf {
    std::env::var_os("LONGREEL_LARGE").expect("run by another test").into()
}

#[test]
#[ignore = "run by another test, in a process of its own"]
fn child_writes_a_large_image() {
    let [height, width] = LARGE;
    let mut writer = PngWriter::create(&place().join("large.png"), height, width).unwrap();
    let mut line = vec![0; width * 3];
    for y in 0..height {
        line.iter_mut().enumerate().for_each(|(x, value)| *value = ((x / 48) ^ (y / 16)) as u8);
        writer.push(&line).unwrap();
    }
    writer.finish().unwrap();
    peak();
}

#[test]
#[ignore = "run by another test, in a process of its own"]
fn child_decodes_a_quarter() {
    let [height, width] = LARGE;
    let dataset = open(&config(1, height, width), &place());
    let lines = height / 2..height * 3 / 4;
    let part =
        dataset.region(&dataset.clip(0), &Augment::PLAIN, &FrameRegion { frames: 0..1, lines: lines.clone() }).unwrap();
    for (y, line) in lines.zip(part.data.chunks_exact(width * 3)) {
        assert_eq!((line[0], line[48 * 7 + 5]), ((y / 16) as u8, (7 ^ (y / 16)) as u8), "line {y}");
    }
    peak();
}

#[test]
#[ignore = "run by another test, in a process of its own"]
fn child_shrinks_to_a_quarter_of_1080_lines() {
    let dataset = open(&config(1, 1080, 1920), &place());
    let part = FrameRegion { frames: 0..1, lines: 540..810 };
    assert_eq!(dataset.region(&dataset.clip(0), &Augment::PLAIN, &part).unwrap().data.len(), 270 * 1920 * 3);
    peak();
}
