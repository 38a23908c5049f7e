//! Small files that claim much: each is a skip with one line that names the limit, in little time and memory, whatever
//! reads it.

use super::media::*;
use crate::mutated::{mutated, mutated_from};
use longreel::data::{Dataset, check_image};
use longreel::observe::process::memory;
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

fn bombs() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/bombs")
}

/// A chunk of a PNG. Checksums of these are not looked at.
fn chunk(kind: &[u8; 4], body: &[u8]) -> Vec<u8> {
    [&(body.len() as u32).to_be_bytes()[..], kind, body, &[0; 4]].concat()
}

fn png(width: u32, height: u32, [depth, color, interlaced]: [u8; 3], chunks: &[Vec<u8>]) -> Vec<u8> {
    let sides = [width.to_be_bytes(), height.to_be_bytes()].concat();
    let header = [&sides[..], &[depth, color, 0, 0, interlaced]].concat();
    [b"\x89PNG\r\n\x1a\n".to_vec(), chunk(b"IHDR", &header), chunks.concat()].concat()
}

/// The segment of a JPEG that says `width` x `height` in three components.
fn frame(process: u8, width: u16, height: u16) -> Vec<u8> {
    let sides = [height.to_be_bytes(), width.to_be_bytes()].concat();
    [&[0xff, process, 0, 17, 8][..], &sides, &[3, 1, 0x22, 0, 2, 0x11, 0, 3, 0x11, 0]].concat()
}

/// A WebP of one chunk.
fn webp(kind: &[u8; 4], body: &[u8]) -> Vec<u8> {
    let chunk = [&kind[..], &(body.len() as u32).to_le_bytes(), body].concat();
    [b"RIFF", &(chunk.len() as u32 + 4).to_le_bytes()[..], b"WEBP", &chunk].concat()
}

/// A BMP's header, without any pixel.
fn bmp(width: i32, height: i32, bits: u16, compression: u32) -> Vec<u8> {
    let mut bytes = [&b"BM"[..], &[0; 8], &54u32.to_le_bytes(), &40u32.to_le_bytes()].concat();
    bytes.extend([width.to_le_bytes(), height.to_le_bytes()].concat());
    bytes.extend([&1u16.to_le_bytes()[..], &bits.to_le_bytes(), &compression.to_le_bytes(), &[0; 20]].concat());
    bytes
}

/// A TIFF of one strip of 8 bytes, packed with deflate, that claims `side` x `side` pixels of RGB.
fn tiff(side: u32) -> Vec<u8> {
    let entries: [(u16, u16, u32); 9] = [
        (256, 4, side),
        (257, 4, side),
        (258, 3, 8),
        (259, 3, 8),
        (262, 3, 1),
        (273, 4, 8),
        (277, 3, 1),
        (278, 4, side),
        (279, 4, 8),
    ];
    let mut bytes = [&b"II*\0"[..], &16u32.to_le_bytes(), &[0; 8], &(entries.len() as u16).to_le_bytes()].concat();
    for (tag, kind, value) in entries {
        bytes.extend([&tag.to_le_bytes()[..], &kind.to_le_bytes(), &1u32.to_le_bytes(), &value.to_le_bytes()].concat());
    }
    bytes.extend([0; 4]);
    bytes
}

/// Files and what the reason must say.
fn all(folder: &Path) -> Vec<(&'static str, &'static str)> {
    let put = |name: &str, bytes: &[u8]| std::fs::write(folder.join(name), bytes).unwrap();
    // Then a terabyte of zeros, which takes no room on disk.
    let endless = |name: &str, bytes: &[u8]| {
        let mut file = File::create(folder.join(name)).unwrap();
        file.write_all(bytes).unwrap();
        file.set_len(1 << 40).unwrap();
    };
    let (jpeg, end) = (std::fs::read(bombs().join("65500x65500.jpg")).unwrap(), chunk(b"IEND", &[]));
    put("a.jpg", &jpeg);
    put("b.png", &std::fs::read(bombs().join("100000x100000.png")).unwrap());
    let claim = jpeg.windows(4).position(|bytes| bytes == [255, 220, 255, 220]).unwrap(); // 65500 twice
    let [high, low] = 37000u16.to_be_bytes();
    put("c.jpg", &[&jpeg[..claim], &[high, low, high, low], &jpeg[claim + 4..]].concat());
    put("d.png", &png(20000, 20000, [8, 2, 1], &[chunk(b"IDAT", &[0; 64]), end.clone()]));
    put("e.png", &png(30000, 30000, [1, 0, 1], &[chunk(b"IDAT", &[0; 110_000]), end.clone()])); // enough for deflate
    endless("f.png", &png(16, 16, [8, 2, 0], &[chunk(b"IDAT", &[0; 64])]));
    put("g.png", &png(0, 16, [8, 2, 0], &[chunk(b"IDAT", &[0; 64]), end]));
    put("h.webp", &webp(b"VP8L", &[&[0x2f][..], &(16382u32 | 16382 << 14).to_le_bytes(), &[0; 20]].concat()));
    put("i.webp", &webp(b"VP8 ", &[&[0x10, 0, 0, 0x9d, 1, 0x2a, 0xff, 0x3f, 0xff, 0x3f][..], &[0; 20]].concat()));
    put("j.bmp", &bmp(30000, 30000, 24, 0));
    put("k.bmp", &[bmp(30000, 30000, 8, 1), vec![0; 1040]].concat()); // packed: its file may be as short
    put("l.tif", &tiff(60000));
    put("m.ppm", b"P6 60000 60000 255\n0123456789012345");
    put("n.gif", b"GIF89a\xff\xff\xff\xff\0\0\0\x2c\0\0\0\0\xff\xff\xff\xff\0\x08\x02\0\0\0\x3b");
    put("o.gif", b"GIF89a\x80\x3e\x80\x3e\0\0\0\x2c\0\0\0\0\x80\x3e\x80\x3e\0\x08\x02\0\0\0\x3b");
    let scan = [0xff, 0xda, 0, 8, 1, 1, 0, 0, 63, 0];
    endless("p.jpg", &[&[0xff, 0xd8][..], &frame(0xc0, 16, 16), &scan].concat());
    endless("q.jpg", &[0xff, 0xd8, 0xff, 0xe0, 0, 2]);
    let many = scan.repeat(1000);
    put("r.jpg", &[&[0xff, 0xd8][..], &frame(0xc2, 4000, 4000), &many, &vec![1; 40000], &[0xff, 0xd9]].concat());
    put("s.jpg", &[&[0xff, 0xd8][..], &frame(0xc9, 64, 64), &scan, &[1; 4000], &[0xff, 0xd9]].concat());
    vec![
        ("a.jpg", "claims 65500x65500 pixels, which take 12"),
        ("b.png", "claims 100000x100000 pixels"),
        ("c.jpg", "claims 37000x37000 pixels, which take"),
        ("d.png", "claims 20000x20000 pixels, which take 1162791 bytes at least; it holds 64"),
        ("e.png", "decoding them would take 0.838 GiB"),
        ("f.png", "cut short or damaged"),
        ("g.png", "claims 0x16 pixels"),
        (
            "h.webp",
            "claims 16383x16383 pixels: decoding them would take 2.00 GiB, a file of 45 bytes may take 0.250 GiB",
        ),
        ("i.webp", "claims 16383x16383 pixels: decoding them would take"),
        ("j.bmp", "cut short or damaged"),
        ("k.bmp", "claims 30000x30000 pixels: decoding them would take"),
        ("l.tif", "claims 60000x60000 pixels: decoding them would take"),
        ("m.ppm", "cut short or damaged"),
        ("n.gif", "claims 65535x65535 pixels: decoding them would take"),
        ("o.gif", "claims 16000x16000 pixels: decoding them would take"),
        ("p.jpg", "cut short or damaged"),
        ("q.jpg", "cut short or damaged"),
        ("r.jpg", "comes in 1000 scans; at most 500 are read"),
        ("s.jpg", "a JPEG of process 9 with 8 bits"),
    ]
}

/// Runs an ignored test of this file in a process of its own; returns what it prints.
fn child(test: &str, folder: &Path) -> String {
    let mut child = Command::new(std::env::current_exe().unwrap());
    let name = format!("data::claims::{test}");
    child.args(["--exact", &name, "--ignored", "--nocapture"]).env("LONGREEL_BOMBS", folder);
    let output = child.output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{text}\n{}", String::from_utf8_lossy(&output.stderr));
    text
}

/// The peak that a child prints, in MiB.
fn peak(text: &str) -> u64 {
    text.lines().find_map(|line| line.strip_prefix("peak MiB ")).expect(text).parse().unwrap()
}

#[test]
fn files_that_claim_much_are_skipped_at_once_and_in_little_memory() {
    let folder = folder();
    let expected = all(folder.path());
    let begun = Instant::now();
    let text = child("child_scans", folder.path());
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    let lines: Vec<&str> = text.lines().filter(|line| line.contains(" is skipped: ")).collect();
    assert_eq!(lines.len(), expected.len(), "{text}");
    for ((name, reason), line) in expected.iter().zip(&lines) {
        assert!(line.starts_with(name) && line.contains(reason), "{name} {reason}: {line}");
    }
    assert!(peak(&text) < 128, "{text}");
}

#[test]
#[ignore = "run by another test, in a process of its own"]
fn child_scans() {
    let folder = PathBuf::from(std::env::var_os("LONGREEL_BOMBS").expect("run by another test"));
    let dataset = Dataset::survey(&config(1, 16, 16), &folder).unwrap().decode_all();
    for (name, reason) in skipped(&dataset) {
        println!("{name} is skipped: {reason}");
    }
    println!("used {}", dataset.len());
    println!("peak MiB {}", memory().peak >> 20);
}

#[test]
fn chunks_that_unpack_to_much_beside_an_image_are_not_unpacked() {
    let folder = folder();
    let zeros = vec![0; 100 << 20];
    let file = File::create(folder.path().join("profile.png")).unwrap();
    let mut info = png::Info::with_size(16, 16);
    (info.color_type, info.bit_depth) = (png::ColorType::Rgb, png::BitDepth::Eight);
    info.icc_profile = Some(zeros.as_slice().into());
    let mut encoder = png::Encoder::with_info(file, info).unwrap();
    encoder.add_ztxt_chunk("Comment".to_owned(), String::from_utf8(zeros.clone()).unwrap()).unwrap();
    let mut writer = encoder.write_header().unwrap();
    writer.write_image_data(&[7; 16 * 16 * 3]).unwrap();
    writer.finish().unwrap();
    let bytes = std::fs::read(folder.path().join("profile.png")).unwrap();
    assert!(bytes.len() < 2 << 20 && bytes.windows(4).any(|w| w == b"iCCP") && bytes.windows(4).any(|w| w == b"zTXt"));
    let text = child("child_scans", folder.path());
    assert!(text.contains("used 1") && peak(&text) < 64, "{text}");
}

#[test]
fn a_black_image_of_a_thousandth_of_its_pixels_is_used() {
    let dataset = open(&config(1, 512, 512), &bombs().join("black-20000x14000.png"));
    let frames = whole(&dataset, &dataset.clip(0));
    assert!(frames.data.iter().all(|&value| value == 0));
}

/// Quarters of a picture beyond the size that FFmpeg takes, of one bit: black, white, half of the pixels, a quarter of
/// them.
const QUARTERS: [(u8, f64); 4] = [(0, 0.0), (0xff, 255.0), (0x55, 127.5), (0x11, 63.75)];

fn quarters_png(path: &Path, width: u32, height: u32) {
    let mut encoder = png::Encoder::new(std::io::BufWriter::new(File::create(path).unwrap()), width, height);
    encoder.set_color(png::ColorType::Grayscale);
    encoder.set_depth(png::BitDepth::One);
    encoder.set_compression(png::Compression::Fast);
    let mut writer = encoder.write_header().unwrap();
    let mut stream = writer.stream_writer().unwrap();
    let (bytes, half) = (width as usize / 8, width as usize / 16);
    for y in 0..height {
        let pair = if y < height / 2 { &QUARTERS[..2] } else { &QUARTERS[2..] };
        let line: Vec<u8> = (0..bytes).map(|x| pair[usize::from(x >= half)].0).collect();
        stream.write_all(&line).unwrap();
    }
    stream.finish().unwrap();
}

#[test]
#[ignore = "takes minutes in a debug build: 5 billion pixels"]
fn images_beyond_ffmpeg_s_size_shrink_to_the_mean_of_each_region() {
    let folder = folder();
    let at = |name: &str| folder.path().join(name);
    let sizes = [
        ((16384, 16384), vec![64]),
        ((26000, 26000), vec![64]),
        ((27008, 27008), vec![64]),
        ((30000, 30000), vec![64, 512, 1024, 2048]),
        ((20000, 14000), vec![512, 850, 900]),
        ((4000, 40000), vec![64]),
    ];
    let check = |path: &Path, side: usize, most: f64| {
        let dataset = open(&config(1, side, side), path);
        let pixels = whole(&dataset, &dataset.clip(0)).data;
        for (quarter, (_, mean)) in QUARTERS.iter().enumerate() {
            let (left, top) = (quarter % 2 * side / 2, quarter / 2 * side / 2);
            for y in top + 1..top + side / 2 - 1 {
                for x in left + 1..left + side / 2 - 1 {
                    // A pixel's edge may cut a group of four pixels in two.
                    let value = f64::from(pixels[(y * side + x) * 3]);
                    assert!((value - mean).abs() <= most, "{}, {side}: {value} at {x}, {y}", path.display());
                }
            }
        }
    };
    for ((width, height), sides) in sizes {
        let path = at(&format!("{width}x{height}.png"));
        quarters_png(&path, width, height);
        for side in sides {
            let groups = f64::from(width.min(height)) / side as f64 / 4.0;
            check(&path, side, 0.5 + 64.0 / groups.floor().max(1.0));
        }
    }
    let grey = image::GrayImage::from_fn(20000, 14000, |x, y| {
        let (_, mean) = QUARTERS[usize::from(x >= 10000) + 2 * usize::from(y >= 7000)];
        image::Luma([mean as u8])
    });
    grey.save(at("grey.jpg")).unwrap();
    check(&at("grey.jpg"), 512, 1.5);
}

#[test]
fn no_change_of_an_image_makes_a_decoder_panic() {
    let image = image::DynamicImage::from(image::RgbaImage::from_fn(23, 17, |x, y| {
        image::Rgba([x as u8 * 9, y as u8 * 13, (x * y) as u8, 255 - x as u8])
    }));
    let folder = folder();
    let at = |name: &str| folder.path().join(name);
    let opaque = image::DynamicImage::from(image.to_rgb8());
    for name in ["a.png", "b.webp", "c.tiff", "d.jpg", "e.ppm", "f.bmp"] {
        if name < "d" { image.save(at(name)) } else { opaque.save(at(name)) }.unwrap();
    }
    let input = at("a.png");
    let convert = |name: &str, args: &[&str]| drop(ffmpeg(at(name), &["-i", input.to_str().unwrap()], args, &[]));
    convert("g.png", &["-flags", "+ildct"]);
    convert("h.png", &["-pix_fmt", "pal8"]);
    convert("i.webp", &["-c:v", "libwebp", "-pix_fmt", "yuva420p"]);
    convert("j.tif", &["-compression_algo", "lzw"]);
    convert("k.bmp", &["-pix_fmt", "pal8"]);
    std::fs::write(at("l.pgm"), format!("P2 23 17 255\n{}", "7 ".repeat(23 * 17))).unwrap();
    let mut seeds: Vec<(String, Vec<u8>)> = std::fs::read_dir(folder.path())
        .unwrap()
        .map(|file| file.unwrap().path())
        .map(|path| (path.file_name().unwrap().to_str().unwrap().to_owned(), std::fs::read(&path).unwrap()))
        .collect();
    seeds.sort();
    assert_eq!(seeds.len(), 12);
    for (format, good) in seeds {
        assert_eq!(check_image(&good), Ok((23, 17)), "{format}");
        let (mut used, mut refused) = (0, 0);
        let mut check = |bytes: &[u8]| match std::panic::catch_unwind(|| check_image(bytes)) {
            Ok(Ok(_)) => used += 1,
            Ok(Err(reason)) => {
                assert!(!reason.contains('\n'), "{format}: {reason}");
                refused += 1;
            }
            Err(_) => panic!("{format}: a panic at {bytes:x?}"),
        };
        mutated(&good, 1000, &mut check);
        // The JPEG decoder ended its message with a newline.
        for seed in [227_899_458, 2_427_948_279, 1_614_153_882].into_iter().filter(|_| format == "d.jpg") {
            mutated_from(seed, &good, 1000, &mut check);
        }
        assert!(refused > 50, "{format}: {used} used, {refused} refused");
    }
}
