//! Tests written files by reading them back: MP4 through FFmpeg's decoder, GIF and PNG through `image`; contact sheets.

use ffmpeg_next as ffmpeg;
use image::AnimationDecoder;
use longreel::data::contact_sheet::{FrameScale, Strip, check_size, contact_sheet};
use longreel::data::write::{Container, Kind, Preview, VideoWriter, write_file, write_video};
use longreel::{Error, bail};
use std::fs::{self, File};
use std::path::Path;

/// A smooth clip that moves and has every colour: [n, height, width, 3].
pub fn smooth(n: usize, height: usize, width: usize) -> Vec<u8> {
    let wave = |x: f64| (127.5 + 127.5 * (std::f64::consts::TAU * x).sin()).round() as u8;
    let mut out = Vec::new();
    for t in 0..n {
        for y in 0..height {
            for x in 0..width {
                let (t, y, x) = (t as f64 / 40.0, y as f64 / 90.0, x as f64 / 110.0);
                out.extend([wave(x + t), wave(y - t + 0.3), wave(0.7 * x + 0.6 * y + t)]);
            }
        }
    }
    out
}

pub struct Decoded {
    pub frames: Vec<Vec<f64>>, // n of [height * width * 3]
    pub height: usize,
    pub width: usize,
    pub fps: f64,
    pub codec: ffmpeg::codec::Id,
    pub tagged: (ffmpeg::color::Space, ffmpeg::color::Range),
}

/// Decodes a file; the inverse of BT.709 in limited range is written out here from its definition.
pub fn decode(path: &Path) -> Decoded {
    ffmpeg::init().unwrap();
    let mut input = ffmpeg::format::input(&path).unwrap();
    let stream = input.streams().best(ffmpeg::media::Type::Video).unwrap();
    let (index, rate) = (stream.index(), stream.avg_frame_rate());
    let mut decoder = ffmpeg::codec::Context::from_parameters(stream.parameters()).unwrap().decoder().video().unwrap();
    let (height, width) = (decoder.height() as usize, decoder.width() as usize);
    let mut out = Decoded {
        frames: vec![],
        height,
        width,
        fps: rate.numerator() as f64 / rate.denominator() as f64,
        codec: decoder.id(),
        tagged: (decoder.color_space(), decoder.color_range()),
    };
    let mut picture = ffmpeg::frame::Video::empty();
    let mut take = |decoder: &mut ffmpeg::decoder::Video| {
        while decoder.receive_frame(&mut picture).is_ok() {
            assert_eq!(picture.format(), ffmpeg::format::Pixel::YUV420P);
            let at = |p: usize, y: usize, x: usize| picture.data(p)[y * picture.stride(p) + x] as f64;
            let mut frame = Vec::with_capacity(height * width * 3);
            for (y, x) in (0..height).flat_map(|y| (0..width).map(move |x| (y, x))) {
                let luma = (at(0, y, x) - 16.0) / 219.0;
                let (b_y, r_y) = ((at(1, y / 2, x / 2) - 128.0) / 224.0, (at(2, y / 2, x / 2) - 128.0) / 224.0);
                let (r, b) = (luma + 1.5748 * r_y, luma + 1.8556 * b_y);
                let g = (luma - 0.2126 * r - 0.0722 * b) / 0.7152;
                frame.extend([r, g, b].map(|v| (255.0 * v).clamp(0.0, 255.0)));
            }
            out.frames.push(frame);
        }
    };
    for (stream, packet) in input.packets() {
        if stream.index() == index {
            decoder.send_packet(&packet).unwrap();
            take(&mut decoder);
        }
    }
    decoder.send_eof().unwrap();
    take(&mut decoder);
    out
}

/// PSNR in dB of the pixels that both have; `b` may be larger than `a` [height, width, 3].
pub fn psnr(a: &[u8], height: usize, width: usize, b: &[f64], b_width: usize) -> f64 {
    let rows = (0..height).flat_map(|y| (0..width * 3).map(move |x| (y * width * 3 + x, y * b_width * 3 + x)));
    let error: f64 = rows.map(|(i, j)| (a[i] as f64 - b[j]).powi(2)).sum::<f64>() / (height * width * 3) as f64;
    10.0 * (255.0f64.powi(2) / error.max(1e-12)).log10()
}

/// The names in a folder: what a failed write must not add to.
pub fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<_> =
        fs::read_dir(folder).unwrap().map(|e| e.unwrap().file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

fn message<T>(result: longreel::Result<T>) -> String {
    result.err().expect("an error").to_string()
}

#[test]
fn mp4_comes_back_with_its_frames_size_rate_and_colours() {
    let folder = tempfile::tempdir().unwrap();
    // (frames, height, width, fps): odd sizes, a rate over 1001, a single frame, one pixel.
    for (n, h, w, fps) in
        [(37, 64, 80, 24.0), (9, 33, 51, 23.976), (5, 48, 31, 12.5), (1, 30, 34, 16.0), (3, 1, 1, 7.3)]
    {
        let path = folder.path().join(format!("{n}.mp4"));
        let frames = smooth(n, h, w);
        write_video(&path, &frames, h, w, fps).unwrap();
        let back = decode(&path);
        assert_eq!(back.codec, ffmpeg::codec::Id::H264);
        assert_eq!(back.tagged, (ffmpeg::color::Space::BT709, ffmpeg::color::Range::MPEG));
        assert_eq!(back.frames.len(), n);
        assert_eq!((back.height, back.width), (h.next_multiple_of(2), w.next_multiple_of(2)));
        assert!((back.fps - fps).abs() < 1e-4 * fps, "{} is not {fps}", back.fps);
        for (i, (a, b)) in frames.chunks(h * w * 3).zip(&back.frames).enumerate() {
            let db = psnr(a, h, w, b, back.width);
            assert!(db > 36.0, "{n} frames of {h}x{w}: frame {i} has {db:.1} dB");
            let at = |y: usize, x: usize| b[(y * back.width + x) * 3 + 1];
            let (right, below) = ((at(0, back.width - 1), at(0, w - 1)), (at(back.height - 1, 0), at(h - 1, 0)));
            // What was padded repeats its neighbour.
            assert!((right.0 - right.1).abs() < 12.0 && (below.0 - below.1).abs() < 12.0, "{right:?} {below:?}");
        }
    }
    assert_eq!(names(folder.path()), ["1.mp4", "3.mp4", "37.mp4", "5.mp4", "9.mp4"]);
    // The index lies before the media, so that playing can start before all is there.
    let bytes = fs::read(folder.path().join("37.mp4")).unwrap();
    let find = |name: &[u8]| bytes.windows(4).position(|w| w == name).unwrap();
    assert!(find(b"moov") < find(b"mdat"));
}

#[test]
fn plain_colours_survive_mp4() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("flat.mp4");
    for rgb in [[0, 0, 0], [255, 255, 255], [255, 0, 0], [0, 255, 0], [0, 0, 255], [128, 128, 128], [200, 120, 40]] {
        write_video(&path, &rgb.repeat(32 * 32 * 3), 32, 32, 24.0).unwrap();
        for v in decode(&path).frames.iter().flat_map(|f| f.chunks(3)) {
            for c in 0..3 {
                assert!((v[c] - rgb[c] as f64).abs() < 3.5, "{rgb:?} became {v:?}");
            }
        }
    }
}

#[test]
fn webm_is_vp9_with_the_frames_size_rate_and_colours() {
    let folder = tempfile::tempdir().unwrap();
    for (n, h, w, fps) in [(37, 64, 80, 24.0), (9, 33, 51, 23.976), (1, 1, 1, 7.3)] {
        let path = folder.path().join(format!("{n}.webm"));
        let frames = smooth(n, h, w);
        write_video(&path, &frames, h, w, fps).unwrap();
        let back = decode(&path);
        assert_eq!(back.codec, ffmpeg::codec::Id::VP9);
        assert_eq!(back.tagged, (ffmpeg::color::Space::BT709, ffmpeg::color::Range::MPEG));
        assert_eq!((back.frames.len(), back.height, back.width), (n, h.next_multiple_of(2), w.next_multiple_of(2)));
        assert!((back.fps - fps).abs() < 1e-3 * fps, "{} is not {fps}", back.fps); // its times are whole milliseconds
        for (i, (a, b)) in frames.chunks(h * w * 3).zip(&back.frames).enumerate() {
            let db = psnr(a, h, w, b, back.width);
            assert!(db > 34.0, "{n} frames of {h}x{w}: frame {i} has {db:.1} dB");
        }
    }
}

#[test]
fn webp_repeats_its_frames_for_their_time() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("clip.webp");
    for (n, h, w, milliseconds) in [(24, 27, 35, 960), (2, 8, 1, 80)] {
        let frames = smooth(n, h, w);
        write_video(&path, &frames, h, w, 25.0).unwrap();
        let file = std::io::BufReader::new(File::open(&path).unwrap());
        let decoder = image::codecs::webp::WebPDecoder::new(file).unwrap();
        assert!(matches!(decoder.loop_count(), image::metadata::LoopCount::Infinite));
        let back = decoder.into_frames().collect_frames().unwrap();
        assert_eq!(back.len(), n);
        let mut time = 0;
        for (frame, rgb) in back.iter().zip(frames.chunks(h * w * 3)) {
            time += frame.delay().numer_denom_ms().0 / frame.delay().numer_denom_ms().1;
            let values: Vec<f64> =
                image::DynamicImage::from(frame.buffer().clone()).into_rgb8().iter().map(|&v| v as f64).collect();
            let db = psnr(rgb, h, w, &values, w);
            assert!(db > 30.0, "{db:.1} dB");
        }
        assert_eq!(time, milliseconds);
    }
    // A single frame is a picture like any other.
    let one = smooth(1, 30, 41);
    write_video(&path, &one, 30, 41, 24.0).unwrap();
    let picture = image::open(&path).unwrap().into_rgb8();
    let values: Vec<f64> = picture.iter().map(|&v| v as f64).collect();
    assert_eq!(picture.dimensions(), (41, 30));
    assert!(psnr(&one, 30, 41, &values, 41) > 30.0);
}

#[test]
fn streaming_gives_the_same_file_and_shows_it_only_when_finished() {
    let folder = tempfile::tempdir().unwrap();
    let (whole, parts) = (folder.path().join("whole.mp4"), folder.path().join("parts.mp4"));
    let frames = smooth(7, 32, 48);
    write_video(&whole, &frames, 32, 48, 24.0).unwrap();
    let mut writer = VideoWriter::create(&parts, Container::Mp4, 32, 48, 24.0).unwrap();
    assert!(writer.is_empty());
    for part in frames.chunks(3 * 32 * 48 * 3) {
        writer.push(part).unwrap();
        assert!(!parts.exists());
    }
    assert_eq!(writer.len(), 7);
    assert!(refusal!(Shape, writer.push(&frames[..100])).contains("not a whole number"));
    writer.finish().unwrap();
    assert_eq!(fs::read(whole).unwrap(), fs::read(&parts).unwrap());

    // A writer that is dropped, or finished without frames, leaves the old file and nothing new.
    let mut dropped = VideoWriter::create(&parts, Container::Mp4, 32, 48, 24.0).unwrap();
    dropped.push(&frames).unwrap();
    drop(dropped);
    let empty = VideoWriter::create(&parts, Container::Mp4, 32, 48, 24.0).unwrap().finish();
    assert!(refusal!(Data, empty).contains("without frames"));
    assert_eq!(decode(&parts).frames.len(), 7);
    assert_eq!(names(folder.path()), ["parts.mp4", "whole.mp4"]);
}

#[test]
fn gif_keeps_frames_colours_and_the_total_time() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("clip.GIF");
    let frames: Vec<u8> = smooth(24, 27, 35).iter().map(|v| 64 + v / 2).collect(); // gentle: a frame has 256 colours
    write_video(&path, &frames, 27, 35, 24.0).unwrap();
    let file = std::io::BufReader::new(File::open(&path).unwrap());
    let back = image::codecs::gif::GifDecoder::new(file).unwrap().into_frames().collect_frames().unwrap();
    assert_eq!(back.len(), 24);
    let mut milliseconds = 0;
    for (frame, rgb) in back.iter().zip(frames.chunks(27 * 35 * 3)) {
        milliseconds += frame.delay().numer_denom_ms().0 / frame.delay().numer_denom_ms().1;
        let picture = image::DynamicImage::from(frame.buffer().clone()).into_rgb8();
        assert_eq!(picture.dimensions(), (35, 27));
        let values: Vec<f64> = picture.as_raw().iter().map(|&v| v as f64).collect();
        let db = psnr(rgb, 27, 35, &values, 35);
        assert!(db > 30.0, "{db:.1} dB");
    }
    assert_eq!(milliseconds, 1000);
}

#[test]
fn a_preview_is_the_clip_no_larger_than_a_page_needs() {
    let (h, w) = (20, 36);
    let frames = smooth(5, h, w);
    let preview = Preview::new(&frames, h, w, 10.0).unwrap();
    let gif = image::codecs::gif::GifDecoder::new(std::io::Cursor::new(&preview.encoded)).unwrap();
    assert_eq!(gif.into_frames().collect_frames().unwrap().len(), 5);
    let preview = Preview::new(&frames[..h * w * 3], h, w, 10.0).unwrap();
    assert_eq!((preview.height, preview.width), (h, w));
    assert_eq!(image::load_from_memory(&preview.encoded).unwrap().into_rgb8().as_raw(), &frames[..h * w * 3]);
    // 3000 x 2000 pixels are 1.43 times too many; a quarter of them is red.
    let large: Vec<u8> = (0..2000 * 3000).flat_map(|i| if i % 3000 < 750 { [200, 0, 0] } else { [0; 3] }).collect();
    let preview = Preview::new(&large, 2000, 3000, 10.0).unwrap();
    let picture = image::load_from_memory(&preview.encoded).unwrap().into_rgb8();
    assert_eq!(picture.dimensions(), (preview.width as u32, preview.height as u32));
    assert!(
        (2508..=2509).contains(&preview.width) && (1672..=1673).contains(&preview.height),
        "{:?}",
        picture.dimensions()
    );
    let red = picture.pixels().filter(|pixel| pixel.0 == [200, 0, 0]).count() as f64;
    assert!((red / picture.pixels().len() as f64 - 0.25).abs() < 1e-3);
    assert!(refusal!(Data, Preview::new(&[0; 3 * 70_000], 1, 70_000, 10.0)).contains("no preview"));
    assert!(refusal!(Config, Preview::new(&frames, h, w, 0.0)).contains("not a frame rate"));
}

#[test]
fn png_is_exact_alone_side_by_side_and_in_a_folder() {
    let folder = tempfile::tempdir().unwrap();
    let (h, w) = (6, 10);
    let frames = smooth(7, h, w);
    let frame = |i: usize| &frames[i * h * w * 3..(i + 1) * h * w * 3];
    let one = folder.path().join("one.png");
    write_video(&one, frame(3), h, w, 24.0).unwrap();
    assert_eq!(image::open(&one).unwrap().into_rgb8().as_raw(), frame(3));

    let many = folder.path().join("many.png");
    write_video(&many, &frames, h, w, 24.0).unwrap();
    let sheet = image::open(&many).unwrap().into_rgb8();
    assert_eq!(sheet.dimensions(), (2 * 10, 4 * 6));
    for (i, y, x) in (0..7).flat_map(|i| (0..h).flat_map(move |y| (0..w).map(move |x| (i, y, x)))) {
        let pixel = sheet.get_pixel((i % 2 * w + x) as u32, (i / 2 * h + y) as u32);
        assert_eq!(pixel.0, frame(i)[(y * w + x) * 3..][..3]);
    }
    assert!((0..w).all(|x| sheet.get_pixel((w + x) as u32, 23).0 == [0; 3]));

    let several = folder.path().join("frames");
    write_video(&several, &frames, h, w, 24.0).unwrap();
    assert_eq!(names(&several), (0..7).map(|i| format!("{i:05}.png")).collect::<Vec<_>>());
    for (i, name) in names(&several).iter().enumerate() {
        assert_eq!(image::open(several.join(name)).unwrap().into_rgb8().as_raw(), frame(i));
    }
    assert!(refusal!(Config, write_video(&several, &frames, h, w, 24.0)).contains("not empty"));
    let empty = folder.path().join("empty.dir");
    fs::create_dir(&empty).unwrap();
    write_video(&empty, frame(0), h, w, 24.0).unwrap();
    assert_eq!(names(&empty), ["00000.png"]);
    assert_eq!(names(folder.path()), ["empty.dir", "frames", "many.png", "one.png"]);
}

#[test]
fn failed_write_names_its_reason_and_leaves_the_old_file() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let frames = smooth(2, 8, 8);
    for name in ["a.mp4", "a.webm", "a.webp", "a.gif", "a.png"] {
        fs::write(at(name), "precious").unwrap();
        assert!(refusal!(Data, write_video(&at(name), &[], 8, 8, 24.0)).contains("without frames"));
        assert!(
            refusal!(Shape, write_video(&at(name), &frames[1..], 8, 8, 24.0)).contains("not a whole number of 8x8")
        );
        assert!(refusal!(Data, write_video(&at(name), &frames, 0, 8, 24.0)).contains("8x0"));
        let nowhere = at("nowhere").join(name);
        let error = message(write_video(&nowhere, &frames, 8, 8, 24.0));
        assert!(error.contains("nowhere") && error.contains("No such file"), "{error}");
    }
    for name in ["a.mp4", "a.webm", "a.webp", "a.gif"] {
        for fps in [0.0, -1.0, f64::NAN, f64::INFINITY, 1e9] {
            assert!(refusal!(Config, write_video(&at(name), &frames, 8, 8, fps)).contains("not a frame rate"));
        }
    }
    let error = refusal!(Config, write_video(&at("a.avi"), &frames, 8, 8, 24.0));
    assert!(error.contains(".avi") && error.contains(".mp4, .webm, .gif, .webp, .png"), "{error}");
    assert!(refusal!(Config, write_video(Path::new("/"), &[0; 3], 1, 1, 1.0)).contains("not empty"));
    assert!(refusal!(Config, write_video(Path::new(".."), &[0; 3], 1, 1, 1.0)).contains("not empty"));
    assert!(refusal!(Data, VideoWriter::create(&at("wide.mp4"), Container::Mp4, 2, 20000, 24.0)).contains("16384"));
    assert!(refusal!(Data, write_video(&at("wide.webp"), &[0; 3 * 16384], 1, 16384, 24.0)).contains("1 to 16383"));
    assert!(message(write_video(&at("a.png").join("b.png"), &frames, 8, 8, 24.0)).contains("Not a directory"));
    let failing = write_file(&at("a.png"), |out| {
        std::io::Write::write_all(out, b"half of it").map_err(|e| Error::io("a.png", e))?;
        bail!(Data, "the source dried up")
    });
    assert_eq!(refusal!(Data, failing), "the source dried up");
    for name in ["a.mp4", "a.webm", "a.webp", "a.gif", "a.png"] {
        assert_eq!(fs::read(at(name)).unwrap(), b"precious");
    }
    assert_eq!(names(folder.path()), ["a.gif", "a.mp4", "a.png", "a.webm", "a.webp"]);
    assert_eq!(Kind::of(&at("new")).unwrap(), Kind::Folder);
    assert_eq!(Kind::of(Path::new("x.MP4")).unwrap(), Kind::Video(Container::Mp4));
    assert_eq!(Kind::of(Path::new("all.png/")).unwrap(), Kind::Folder);
}

#[test]
fn contact_sheets_show_every_frame_and_refuse_nonsense() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("sheet.png");
    let red = [220, 10, 10].repeat(5 * 40 * 60);
    let long = "a caption that is far too long for the little picture below it, however one turns it";
    let strips = [
        Strip::from_clip("wide.mp4", &red, 40, 60, 3, FrameScale::Row).unwrap(),
        Strip::from_clip("", &[0, 0, 200].repeat(9 * 7), 7, 9, 4, FrameScale::Row).unwrap(),
        Strip::from_clip(long, &[10, 160, 10].repeat(400 * 300), 400, 300, 1, FrameScale::Row).unwrap(),
    ];
    assert_eq!(strips.iter().map(|s| s.frames.len()).collect::<Vec<_>>(), [3, 1, 1]);
    contact_sheet(&strips, FrameScale::Row, &path).unwrap();
    let sheet = image::open(&path).unwrap().into_rgb8();
    let count = |rgb: [u8; 3]| sheet.pixels().filter(|p| p.0 == rgb).count();
    assert_eq!(count([220, 10, 10]), 3 * 80 * 120); // doubled
    assert_eq!(count([0, 0, 200]), (7 * 13) * (9 * 13)); // thirteenfold
    assert_eq!(count([10, 160, 10]), 96 * 72); // scaled down to 96 lines
    let ink = sheet.pixels().filter(|p| p.0.iter().all(|&v| v < 120) && p.0[2] < 120).count();
    assert!(ink > 100, "{ink} dark pixels are no captions");

    // Unscaled on request, however they come.
    let real: Vec<Strip> = strips.iter().cloned().map(|strip| Strip { caption: String::new(), ..strip }).collect();
    contact_sheet(&real, FrameScale::Real, &path).unwrap();
    let sheet = image::open(&path).unwrap().into_rgb8();
    let count = |rgb: [u8; 3]| sheet.pixels().filter(|p| p.0 == rgb).count();
    assert_eq!(
        [count([220, 10, 10]), count([0, 0, 200])],
        [3 * 80 * 120, (7 * 13) * (9 * 13)],
        "as the strips hold them"
    );
    let own = Strip::from_clip("", &[220, 10, 10].repeat(5 * 140 * 60), 140, 60, 5, FrameScale::Real).unwrap();
    contact_sheet(&[own], FrameScale::Real, &path).unwrap();
    let sheet = image::open(&path).unwrap().into_rgb8();
    assert_eq!(sheet.pixels().filter(|p| p.0 == [220, 10, 10]).count(), 5 * 140 * 60);
    assert!(
        check_size(16, 8, 720, 1280, FrameScale::Real).is_ok()
            && check_size(16, 8, 2160, 3840, FrameScale::Row).is_ok()
    );
    let large = refusal!(Config, check_size(16, 8, 2160, 3840, FrameScale::Real));
    assert!(large.contains("a contact sheet of 16 clips would have"), "{large}");

    // First, last and evenly between.
    let ramp: Vec<u8> = (0..10).flat_map(|i| [i; 3]).collect();
    let picked = Strip::from_clip("", &ramp, 1, 1, 4, FrameScale::Row).unwrap();
    assert_eq!(picked.frames.iter().map(|f| f.as_raw()[0]).collect::<Vec<_>>(), [0, 3, 6, 9]);

    fs::write(&path, "precious").unwrap();
    assert!(refusal!(Data, contact_sheet(&[], FrameScale::Row, &path)).contains("at least one clip"));
    let hollow = Strip { name: String::new(), caption: "hollow".into(), frames: vec![] };
    assert!(refusal!(Data, contact_sheet(&[strips[0].clone(), hollow], FrameScale::Row, &path)).contains("\"hollow\""));
    let endless =
        Strip { name: String::new(), caption: "endless".into(), frames: vec![image::RgbImage::new(3000, 1); 8] };
    assert!(refusal!(Config, contact_sheet(&[endless], FrameScale::Row, &path)).contains("fewer"));
    assert_eq!(fs::read(&path).unwrap(), b"precious");
    assert_eq!(names(folder.path()), ["sheet.png"]);
}
