//! Frames as the eye should have them: deinterlaced, of the usual range of light, and at one rate.

use super::media::*;
use longreel::data::Augment;
use std::path::Path;
use std::process::Command;

/// `ffmpeg`'s frames of `path` through `filter`, as RGB of each frame.
fn reference(path: &Path, filter: &str) -> Vec<u8> {
    let args = ["-v", "error", "-nostdin", "-threads", "1", "-i", path.to_str().unwrap(), "-vf", filter];
    let out =
        Command::new("ffmpeg").args(args).args(["-vsync", "passthrough", "-f", "rawvideo", "-"]).output().unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    out.stdout
}

/// 40 interlaced frames of moving bars, in `format`.
fn interlaced(path: &Path, format: &str, first: &str, args: &[&str]) {
    let source = "testsrc2=d=2:r=40:s=64x48,format=FORMAT,tinterlace=interleave_FIRST";
    let source = source.replace("FORMAT", format).replace("FIRST", first);
    ffmpeg(path, &["-f", "lavfi", "-i", &source], &[args, &["-vsync", "passthrough"]].concat(), &[]);
}

const SWSCALE: &str = "scale=flags=area+accurate_rnd+full_chroma_int+full_chroma_inp+bitexact,format=rgb24";

#[test]
fn interlaced_frames_are_those_of_bwdif_wherever_decoding_begins() {
    let folder = folder();
    let x264 = ["-c:v", "libx264", "-g", "12", "-bf", "2", "-flags", "+ildct+ilme"];
    let bottom = [&x264[..], &["-x264-params", "bff=1"]].concat();
    let mpeg2 = ["-c:v", "mpeg2video", "-g", "12", "-bf", "2", "-q:v", "2", "-flags", "+ildct+ilme", "-top", "1"];
    let ffv1 = ["-c:v", "ffv1", "-field_order", "tt", "-vf", "setfield=tff", "-top", "1", "-flags", "+ildct"];
    for (name, format, first, args) in [
        ("top.mp4", "yuv420p", "top", &x264[..]),
        ("bottom.mkv", "yuv420p", "bottom", &bottom),
        ("mpeg2.ts", "yuv420p", "top", &mpeg2),
        ("mpeg2.mpg", "yuv422p", "top", &mpeg2),
        ("deep.mkv", "yuv422p10le", "top", &x264),
        ("lossless.mkv", "yuv444p12le", "top", &ffv1),
    ] {
        let path = folder.path().join(name);
        interlaced(&path, format, first, args);
        let dataset = open(&config(40, 48, 64), &path);
        assert_eq!(dataset.files()[0].notes, ["it is interlaced, and deinterlaced"], "{name}");
        let all = whole(&dataset, &dataset.clip(0));
        let expected = reference(&path, &format!("bwdif=mode=send_frame:deint=interlaced,{SWSCALE}"));
        let bytes = 64 * 48 * 3;
        assert_eq!(expected.len(), 40 * bytes, "{name}");
        let plain = options!(config(40, 48, 64); deinterlace: false);
        let combs = open(&plain, &path);
        assert!(combs.files()[0].notes[0].contains("left so (data.deinterlace = false)"));
        let combs = whole(&combs, &combs.clip(0));
        for n in 0..40 {
            let frame = all.frame(n);
            assert!(frame == &expected[n * bytes..(n + 1) * bytes], "{name}: frame {n} is not bwdif's");
        }
        let changed = (0..40).filter(|&n| all.frame(n) != combs.frame(n)).count();
        assert!(changed > 30, "{name}: of 40 frames {changed} are deinterlaced"); // x264 codes some as progressive
        for n in (0..40).map(|i| i * 7 % 40) {
            let alone = dataset.frames(&dataset.clip(0), &Augment::PLAIN, n..n + 1).unwrap();
            assert!(alone.data == all.frame(n), "{name}: frame {n} by itself");
        }
        let strided = open(&options!(config(5, 48, 64); stride: 3), &path);
        let third = whole(&strided, &strided.clip(1));
        for i in 0..5 {
            assert!(third.frame(i) == all.frame(15 + 3 * i), "{name}: every third frame");
        }
    }
}

#[test]
fn high_dynamic_range_is_brought_to_the_usual_one() {
    let folder = folder();
    // Greys and colours of PQ: codes of 10 bits, full range, below half of diffuse white, where nothing is rolled off.
    let path = folder.path().join("pq.mkv");
    let codes = [[0u16, 0, 0], [200, 200, 200], [400, 400, 400], [440, 440, 440], [440, 300, 300], [300, 420, 350]];
    let planes = [1, 2, 0]; // gbrp: green, blue, red
    let frame: Vec<u8> =
        planes.iter().flat_map(|&c| (0..48 * 66).flat_map(move |i| codes[i % 66 / 11][c].to_le_bytes())).collect();
    let input = ["-f", "rawvideo", "-pix_fmt", "gbrp10le", "-s", "66x48", "-i", "pipe:0"];
    let tags = ["-color_trc", "smpte2084", "-color_primaries", "bt2020", "-colorspace", "rgb", "-color_range", "pc"];
    ffmpeg(&path, &input, &[&["-c:v", "ffv1"][..], &tags].concat(), &frame);
    let dataset = open(&config(1, 48, 66), &path);
    assert_eq!(dataset.files()[0].notes, ["it has high dynamic range, and is tone-mapped"]);
    let found = whole(&dataset, &dataset.clip(0));
    let filter = "zscale=t=linear:npl=203,format=gbrpf32le,zscale=p=bt709,zscale=t=bt709,format=gbrp,format=rgb24";
    let expected = reference(&path, filter);
    for patch in 0..codes.len() {
        let at = (20 * 66 + patch * 11 + 5) * 3;
        for c in 0..3 {
            let (a, b) = (found.data[at + c], expected[at + c]);
            assert!(a.abs_diff(b) <= 2, "patch {patch}, component {c}: {a}, zscale has {b}");
        }
    }
    let plain = open(&options!(config(1, 48, 66); tonemap: false), &path);
    assert!(plain.files()[0].notes[0].contains("washed out"));
    let left = whole(&plain, &plain.clip(0));
    assert!(left.data[(20 * 66 + 2 * 11 + 5) * 3].abs_diff((400 * 255 / 1023) as u8) <= 1);
}

#[test]
fn mixed_rates_are_said_in_one_line_and_samples_have_the_median() {
    let folder = folder();
    for (name, rate) in [("a.mp4", "24000/1001"), ("b.mp4", "24"), ("c.mp4", "25"), ("d.mp4", "30"), ("e.mp4", "30")] {
        let source = format!("testsrc=d=1:r={rate}:s=64x48");
        ffmpeg(folder.path().join(name), &["-f", "lavfi", "-i", &source], &H264, &[]);
    }
    let dataset = open(&config(8, 48, 64), folder.path());
    let line = dataset.mixed_rates().unwrap();
    assert!(line.contains("23.98, 25 and 30 frames per second") && line.contains("data.fps = 23.98"), "{line}");
    assert_eq!(dataset.rate(), Some(25.0), "2 of 3 clips each of 23.98, 24, 25, 30 and 30");
    let strided = open(&options!(config(8, 48, 64); stride: 2), folder.path());
    assert_eq!(strided.rate(), Some(12.5));
    let one = open(&options!(config(8, 48, 64); fps: Some(10.0)), folder.path());
    assert_eq!((one.mixed_rates(), one.rate()), (None, Some(10.0)));
    let out = Command::new(env!("CARGO_BIN_EXE_longreel"))
        .args(["scan", ".", "--frames", "8", "--height", "48", "--width", "64", "--no-sheet"])
        .current_dir(folder.path())
        .output()
        .unwrap();
    let report = String::from_utf8(out.stdout).unwrap();
    assert_eq!(report.matches("frames per second are mixed").count(), 1, "{report}");
}
