//! Exactly the asked frames come back, whatever the container, timing, shape or colours of the file.

use super::media::*;
use longreel::data::{Augment, Crop, Dataset};
use std::path::{Path, PathBuf};

const SIZE: (usize, usize) = (64, 48); // width, height
const MPEG2: [&str; 8] = ["-c:v", "mpeg2video", "-g", "12", "-bf", "2", "-q:v", "2"];

/// One file each of the kinds that a user may bring, 50 coded frames.
fn kinds(folder: &Path) -> Vec<PathBuf> {
    let make = |name: &str, args: &[&str]| video(folder.join(name), 50, SIZE, args);
    vec![
        make("h264.mp4", &H264),
        make("h264.mkv", &H264),
        make("h264.mov", &H264),
        make("h264.avi", &H264),
        make("open.mp4", &[&H264[..], &["-x264-params", "open-gop=1"]].concat()),
        make("vp8.webm", &["-c:v", "libvpx", "-g", "12", "-auto-alt-ref", "1", "-lag-in-frames", "10", "-b:v", "1M"]),
        make("vp9.webm", &["-c:v", "libvpx-vp9", "-g", "12", "-cpu-used", "8", "-auto-alt-ref", "1", "-b:v", "1M"]),
        make("mpeg4.avi", &["-c:v", "mpeg4", "-g", "12", "-bf", "2", "-q:v", "2"]),
        make("mjpeg.avi", &["-c:v", "mjpeg", "-q:v", "2"]),
        make("live.mkv", &[&H264[..], &["-live", "1"]].concat()),
        make("rgb.mkv", &["-c:v", "ffv1", "-pix_fmt", "bgr0"]),
        make("pal.gif", &[]),
        make("mpeg2.mkv", &MPEG2),
        // Without an index, and frames that do not begin where packets do.
        make("h264.ts", &H264),
        make("open.m2ts", &[&H264[..], &["-x264-params", "open-gop=1"]].concat()),
        make("mpeg2.ts", &MPEG2),
        make("mpeg2.mpg", &MPEG2),
        make("mpeg2.vob", &MPEG2),
        make("mpeg1.mpeg", &["-c:v", "mpeg1video", "-g", "12", "-bf", "2", "-q:v", "2"]),
        make("mpeg2.mxf", &MPEG2),
        make("h264.flv", &H264),
        make("h264.3gp", &H264),
        make("h264.m4v", &[&H264[..], &["-f", "mp4"]].concat()),
        make("wmv2.wmv", &["-c:v", "wmv2", "-g", "12", "-b:v", "2M"]),
        make("theora.ogv", &["-c:v", "libtheora", "-g", "12", "-q:v", "8"]),
    ]
}

#[test]
fn any_part_of_any_clip_is_exact_in_every_container() {
    let folder = folder();
    let files = kinds(folder.path());
    let dataset = open(&config(13, 48, 64), folder.path());
    assert_eq!(skipped(&dataset), []);
    assert_eq!(dataset.files().len(), files.len());
    assert_eq!(dataset.len(), files.len() * 3, "50 frames are 3 windows of 13");
    for id in 0..dataset.len() {
        let clip = dataset.clip(id);
        assert_eq!(clip.first_frame, clip.window * 13);
        let name = clip.path.display();
        let all = whole(&dataset, &clip);
        let expected: Vec<usize> = (0..13).map(|i| clip.window * 13 + i).collect();
        assert_eq!(codes(&all), expected, "{name} window {}", clip.window);
        for range in [0..1, 12..13, 5..9, 4..4] {
            let part = dataset.frames(&clip, &Augment::PLAIN, range.clone()).unwrap();
            assert_eq!(part.first, range.start);
            let bytes = 48 * 64 * 3;
            assert!(part.data == all.data[range.start * bytes..range.end * bytes], "{name} {range:?}");
        }
    }
    for file in dataset.files() {
        let rate = file.rate.unwrap();
        assert!((rate - 24.0).abs() < 0.02, "{}: {rate}", file.path.display());
        assert_eq!((file.frames, file.height, file.width), (50, 48, 64));
    }
}

#[test]
fn a_header_that_lies_about_the_frame_count_is_not_believed() {
    let folder = folder();
    let path = video(folder.path().join("a.avi"), 20, SIZE, &["-c:v", "mjpeg", "-q:v", "2"]);
    // dwTotalFrames of the main header, and dwLength of the stream's.
    let mut bytes = std::fs::read(&path).unwrap();
    let avih = bytes.windows(4).position(|w| w == b"avih").unwrap();
    let strh = bytes.windows(4).position(|w| w == b"strh").unwrap();
    for at in [avih + 8 + 16, strh + 8 + 32] {
        assert_eq!(bytes[at..at + 4], 20u32.to_le_bytes());
        bytes[at..at + 4].copy_from_slice(&3000u32.to_le_bytes());
    }
    std::fs::write(&path, bytes).unwrap();
    let dataset = open(&config(10, 48, 64), folder.path());
    assert_eq!((dataset.len(), dataset.files()[0].frames), (2, 20));
    assert_eq!(codes(&whole(&dataset, &dataset.clip(1))), (10..20).collect::<Vec<_>>());
}

/// 40 frames at 24 a second of which 10..30 are dropped but keep their time.
fn uneven(folder: &Path) -> PathBuf {
    let drop = ["-vf", "select='lt(n,10)+gte(n,30)'", "-vsync", "passthrough"];
    video(folder.join("vfr.mkv"), 40, SIZE, &[&drop[..], &H264[..]].concat())
}

#[test]
fn uneven_timing_is_kept_as_frames_and_honoured_by_a_rate() {
    let folder = folder();
    uneven(folder.path());
    let dataset = open(&config(20, 48, 64), folder.path());
    let frames: Vec<usize> = (0..10).chain(30..40).collect();
    assert_eq!(codes(&whole(&dataset, &dataset.clip(0))), frames, "without fps, the frames there are");

    let mut at_8 = config(14, 48, 64);
    at_8.fps = Some(8.0);
    let dataset = open(&at_8, folder.path());
    assert_eq!(dataset.clip(0).rate, Some(8.0));
    // Every third of the original frames; where none is, the nearest in time, the earlier of two as near.
    let expected = [0, 3, 6, 9, 9, 9, 9, 30, 30, 30, 30, 33, 36, 39];
    assert_eq!(codes(&whole(&dataset, &dataset.clip(0))), expected);
    for range in [4..8, 5..6, 3..14] {
        let part = dataset.frames(&dataset.clip(0), &Augment::PLAIN, range.clone()).unwrap();
        assert_eq!(codes(&part), expected[range]);
    }
}

#[test]
fn a_rate_and_a_stride_thin_and_repeat_frames() {
    let folder = folder();
    video(folder.path().join("a.mp4"), 48, SIZE, &H264);
    let mut thin = config(4, 48, 64);
    (thin.fps, thin.stride) = (Some(12.0), 2);
    let dataset = open(&thin, folder.path());
    assert_eq!(dataset.len(), 3, "24 frames at 12 a second, a clip takes 8");
    assert_eq!(codes(&whole(&dataset, &dataset.clip(1))), [16, 20, 24, 28]);
    assert_eq!((dataset.clip(1).first_frame, dataset.clip(1).rate), (16, Some(6.0)));

    let mut dense = config(6, 48, 64);
    dense.fps = Some(48.0);
    let dataset = open(&dense, folder.path());
    assert_eq!(codes(&whole(&dataset, &dataset.clip(1))), [3, 3, 4, 4, 5, 5]);

    let mut single = config(1, 48, 64);
    single.stride = 5;
    let dataset = open(&single, folder.path());
    let frames: Vec<usize> = (0..dataset.len()).map(|i| codes(&whole(&dataset, &dataset.clip(i)))[0]).collect();
    assert_eq!(frames, (0..48).step_by(5).collect::<Vec<_>>());
}

/// The colours of a frame's corners and of the middle of its upper and lower half: R, B or the grey level's W or K.
fn corners(pixels: &[u8], width: usize, height: usize) -> String {
    let at = |x: usize, y: usize| match pixels[(y * width + x) * 3..][..3] {
        [r, _, b] if r > 150 && b < 100 => 'R',
        [r, _, b] if b > 150 && r < 100 => 'B',
        [_, g, _] if g > 127 => 'W',
        _ => 'K',
    };
    let (right, bottom) = (width - 4, height - 4);
    [at(3, 3), at(right, 3), at(3, bottom), at(right, bottom)].into_iter().collect()
}

#[test]
fn rotation_in_the_header_turns_the_frames() {
    let folder = folder();
    let source = video(folder.path().join("source.mp4"), 128 + 4, SIZE, &[&H264[..], &["-crf", "10"]].concat());
    let plain = open(&config(1, 48, 64), &source);
    let frame = whole(&plain, &plain.clip(128));
    assert_eq!(corners(&frame.data, 64, 48), "WKRB"); // 128: only the highest bit, at the left
    for (angle, expected) in [("90", "KBWR"), ("180", "BRKW"), ("270", "RWBK")] {
        let name = format!("r{angle}.mp4");
        let input = ["-i", source.to_str().unwrap()];
        let tag = format!("rotate={angle}");
        let args = ["-c", "copy", "-metadata:s:v:0", &tag];
        let turned = ffmpeg(folder.path().join(name), &input, &args, &[]);
        let (height, width) = if angle == "180" { (48, 64) } else { (64, 48) };
        let dataset = open(&config(1, height, width), &turned);
        assert_eq!((dataset.files()[0].height, dataset.files()[0].width), (height, width));
        let frame = whole(&dataset, &dataset.clip(128));
        assert_eq!(corners(&frame.data, width, height), expected, "turned by {angle}");

        // An independent judge: what ffmpeg itself makes of the file.
        let raw = ffmpeg(
            folder.path().join("judge.rgb"),
            &["-i", turned.to_str().unwrap()],
            &["-vf", "select=eq(n\\,128)", "-frames:v", "1", "-f", "rawvideo", "-pix_fmt", "rgb24"],
            &[],
        );
        assert_eq!(corners(&std::fs::read(raw).unwrap(), width, height), expected);
    }
}

#[test]
fn pixels_that_are_not_square_are_stretched() {
    let folder = folder();
    let path = video(folder.path().join("a.mp4"), 4, SIZE, &[&H264[..], &["-vf", "setsar=3/2"]].concat());
    let dataset = open(&config(4, 48, 96), &path);
    assert_eq!((dataset.files()[0].height, dataset.files()[0].width), (48, 96));
    assert_eq!(codes(&whole(&dataset, &dataset.clip(0))), [0, 1, 2, 3]);
}

#[test]
fn colours_follow_the_matrix_and_the_range_that_the_file_names() {
    let folder = folder();
    let flat = |rgb: [u8; 3]| rgb.repeat(64 * 48);
    let input = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", "64x48", "-r", "24", "-i", "pipe:0"];
    let colours = [[200, 40, 60], [30, 180, 90], [20, 60, 220], [255, 255, 255], [0, 0, 0], [128, 128, 128]];
    for (matrix, range) in [("bt709", "tv"), ("smpte170m", "tv"), ("bt709", "pc"), ("smpte170m", "pc")] {
        let scale = format!("scale=out_color_matrix={}:out_range={range}", matrix.replace("smpte170m", "bt601"));
        let name = format!("{matrix}-{range}.mkv");
        let args = ["-vf", &scale, "-c:v", "ffv1", "-pix_fmt", "yuv444p", "-colorspace", matrix, "-color_range", range];
        let bytes: Vec<u8> = colours.iter().flat_map(|&rgb| flat(rgb)).collect();
        let path = ffmpeg(folder.path().join(name), &input, &args, &bytes);
        let dataset = open(&config(6, 48, 64), &path);
        let frames = whole(&dataset, &dataset.clip(0));
        for (i, rgb) in colours.iter().enumerate() {
            for (channel, &expected) in rgb.iter().enumerate() {
                let value = frames.frame(i)[(20 * 64 + 20) * 3 + channel];
                assert!(value.abs_diff(expected) <= 2, "{matrix} {range}: {rgb:?} channel {channel} came as {value}");
            }
        }
    }
}

#[test]
fn frames_are_resized_to_cover_and_cropped_where_asked() {
    let folder = folder();
    let path = video(folder.path().join("a.mkv"), 3, (131, 67), &["-c:v", "ffv1", "-pix_fmt", "bgr0"]);
    // 131 x 67 to a height of 32: 63 wide, of which 40 are taken.
    let mut square = config(3, 32, 40);
    square.crop = Crop::Random;
    let dataset = open(&square, &path);
    let wide = open(&config(3, 32, 62), &path); // 62.57 rounds to 63, a crop of one column
    let whole_frame = wide.frames(&wide.clip(0), &Augment { crop: [0.0, 0.0], flip: false }, 0..3).unwrap();
    for (share, left) in [(0.0, 0), (0.5, 12), (0.999, 23), (1.0, 23)] {
        let crop = Augment { crop: [0.3, share], flip: false };
        let frames = dataset.frames(&dataset.clip(0), &crop, 1..3).unwrap();
        for (i, y, x) in [(0, 0, 0), (0, 31, 38), (1, 17, 5)] {
            if left + x < 62 {
                let expected = &whole_frame.frame(i + 1)[(y * 62 + left + x) * 3..][..3];
                assert_eq!(&frames.frame(i)[(y * 40 + x) * 3..][..3], expected, "{share} {i} {y} {x}");
            }
        }
        let mirrored = dataset.frames(&dataset.clip(0), &Augment { flip: true, ..crop }, 1..3).unwrap();
        for (line, back) in frames.data.chunks_exact(40 * 3).zip(mirrored.data.chunks_exact(40 * 3)) {
            let turned: Vec<u8> = line.chunks_exact(3).rev().flatten().copied().collect();
            assert_eq!(turned, back);
        }
    }
}

#[test]
fn a_resize_is_the_mean_of_what_each_pixel_covers() {
    let folder = folder();
    let path = folder.path().join("a.png");
    let pixel = |x: u32, y: u32| [(x * 7 + y * 13) as u8, (x * x + y) as u8, (x ^ y) as u8 * 3];
    image::RgbImage::from_fn(64, 48, |x, y| image::Rgb(pixel(x, y))).save(&path).unwrap();
    let dataset = open(&config(1, 12, 16), &path);
    let frame = whole(&dataset, &dataset.clip(0));
    for (i, got) in frame.data.iter().enumerate() {
        let (x, y, channel) = ((i / 3 % 16) as u32, (i / 48) as u32, i % 3);
        let block = (0..16).map(|k| pixel(x * 4 + k % 4, y * 4 + k / 4)[channel] as u32);
        let mean = block.sum::<u32>() as f64 / 16.0;
        assert!((f64::from(*got) - mean).abs() <= 1.0, "({x}, {y}, {channel}): {got}, mean {mean}");
    }
}

#[test]
fn transparent_pixels_lie_over_white() {
    let folder = folder();
    let image = image::RgbaImage::from_fn(64, 48, |x, _| match x {
        0..32 => image::Rgba([200, 0, 0, 255]),
        32..48 => image::Rgba([0, 0, 0, 0]),
        _ => image::Rgba([0, 0, 0, 102]),
    });
    let path = folder.path().join("a.png");
    image.save(&path).unwrap();
    let dataset = open(&config(1, 48, 64), &path);
    let frame = whole(&dataset, &dataset.clip(0));
    let at = |x: usize| &frame.data[(10 * 64 + x) * 3..][..3];
    assert_eq!((at(3), at(40), at(60)), (&[200, 0, 0][..], &[255, 255, 255][..], &[153, 153, 153][..]));

    let gif = folder.path().join("b.gif");
    let palette = ["-vf", "split[a][b];[a]palettegen[p];[b][p]paletteuse"];
    ffmpeg(&gif, &["-i", path.to_str().unwrap()], &palette, &[]);
    let dataset = open(&config(1, 48, 64), &gif);
    let frame = whole(&dataset, &dataset.clip(0));
    assert_eq!(&frame.data[(10 * 64 + 40) * 3..][..3], [255, 255, 255]);
    // Resized, no dark seam may come of the colour that transparent pixels hide.
    let small = open(&config(1, 24, 32), &gif);
    let frame = whole(&small, &small.clip(0));
    let seam = &frame.data[(10 * 32 + 15) * 3..][..9];
    assert!(seam.chunks_exact(3).all(|p| p[0] >= 190), "{seam:?}");
}

#[test]
fn images_are_turned_as_their_exif_says() {
    let folder = folder();
    let plain = folder.path().join("plain.jpg");
    image::RgbImage::from_raw(64, 48, coded_frame(128, 64, 48)).unwrap().save(&plain).unwrap();
    let bytes = std::fs::read(&plain).unwrap();
    // APP1 with one EXIF entry: orientation (0x0112) = 6, to be shown turned by 90 degrees clockwise.
    let mut exif = b"Exif\0\0MM\0\x2a\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0".to_vec();
    let mut turned = bytes[..2].to_vec();
    turned.extend([0xff, 0xe1]);
    turned.extend((exif.len() as u16 + 2).to_be_bytes());
    turned.append(&mut exif);
    turned.extend(&bytes[2..]);
    let path = folder.path().join("turned.jpg");
    std::fs::write(&path, turned).unwrap();
    let dataset = open(&config(1, 64, 48), &path);
    assert_eq!(corners(&whole(&dataset, &dataset.clip(0)).data, 48, 64), "RWBK");
}

#[test]
fn a_file_damaged_after_it_was_opened_is_an_error_that_names_it() {
    let folder = folder();
    let path = video(folder.path().join("a.mkv"), 48, SIZE, &H264);
    let dataset = open(&config(48, 48, 64), folder.path());
    let bytes = std::fs::read(&path).unwrap();
    let ruined: Vec<u8> =
        bytes.iter().enumerate().map(|(i, &b)| if i > 2000 && i % 7 == 0 { b ^ 0x55 } else { b }).collect();
    for (what, contents) in [("ruined", ruined), ("cut", bytes[..bytes.len() / 2].to_vec()), ("emptied", Vec::new())] {
        std::fs::write(&path, contents).unwrap();
        let error = refusal!(Data, dataset.frames(&dataset.clip(0), &Augment::PLAIN, 0..48));
        assert!(error.contains("a.mkv") && error.contains("scan --decode"), "{what}: {error}");
    }
    std::fs::remove_file(&path).unwrap();
    assert!(refusal!(Data, dataset.frames(&dataset.clip(0), &Augment::PLAIN, 0..48)).contains("a.mkv"));
    assert!(refusal!(Shape, dataset.frames(&dataset.clip(0), &Augment::PLAIN, 40..49)).contains("40..49"));
}

#[test]
fn damage_in_the_middle_is_found_by_decoding_everything() {
    let folder = folder();
    let path = video(folder.path().join("a.mp4"), 96, SIZE, &H264);
    video(folder.path().join("b.mkv"), 24, SIZE, &H264);
    let mut bytes = std::fs::read(&path).unwrap();
    // The header is behind the frames and stays whole; so do the first and the last group of pictures.
    let frames = bytes.windows(4).position(|w| w == b"moov").unwrap();
    bytes[frames / 3..frames / 2].fill(0);
    std::fs::write(&path, bytes).unwrap();
    image::RgbImage::new(64, 48).save(folder.path().join("c.png")).unwrap();
    let quick = Dataset::survey(&config(1, 48, 64), folder.path()).unwrap();
    assert_eq!(quick.len(), 96 + 24 + 1);
    // Every frame comes as it is, or not at all: never a grey one, never another one.
    let codes_of = |i: usize| quick.frames(&quick.clip(i), &Augment::PLAIN, 0..1).map(|frame| codes(&frame)[0]);
    let outcomes: Vec<_> = (0..96).map(codes_of).collect();
    for (i, outcome) in outcomes.iter().enumerate() {
        match outcome {
            Ok(code) => assert_eq!(*code, i),
            Err(e) => assert!(e.to_string().contains("a.mp4") && (12..60).contains(&i), "{i}: {e}"),
        }
    }
    assert!(outcomes.iter().filter(|o| o.is_err()).count() >= 16);
    let image = std::fs::read(folder.path().join("c.png")).unwrap();
    let broken: Vec<u8> = image.iter().enumerate().map(|(i, &b)| if i == 50 { b ^ 1 } else { b }).collect();
    std::fs::write(folder.path().join("c.png"), broken).unwrap();
    let dataset = quick.decode_all();
    assert_eq!(dataset.len(), 24);
    assert!(dataset.clip(0).path.ends_with("b.mkv"));
    let skips = skipped(&dataset);
    assert!(skips.len() == 2 && skips[0].0 == "a.mp4" && skips[1].0 == "c.png", "{skips:?}");
    assert!(skips[0].1.contains("frames can be decoded"), "{skips:?}");
}
