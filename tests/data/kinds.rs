//! Kinds of still images: what each extension gives, which way is up, and true reasons for those that cannot be read.

use super::media::*;
use image::codecs::{jpeg::JpegEncoder, png::PngEncoder, webp::WebPEncoder};
use image::{DynamicImage, ImageEncoder, ImageFormat, RgbImage};
use longreel::data::Dataset;
use std::fs;
use std::path::Path;

/// Red, green, blue, white quarters.
fn quarters(width: u32, height: u32) -> RgbImage {
    RgbImage::from_fn(width, height, |x, y| {
        image::Rgb(match (2 * x < width, 2 * y < height) {
            (true, true) => [255, 0, 0],
            (false, true) => [0, 255, 0],
            (true, false) => [0, 0, 255],
            (false, false) => [255, 255, 255],
        })
    })
}

#[test]
fn images_of_every_extension_give_their_pixels() {
    let folder = folder();
    let at = |name: &str| folder.path().join(name);
    let image = DynamicImage::from(quarters(40, 24));
    for (name, format) in [
        ("a.png", ImageFormat::Png),
        ("b.BMP", ImageFormat::Bmp),
        ("c.tif", ImageFormat::Tiff),
        ("d.tiff", ImageFormat::Tiff),
        ("e.ppm", ImageFormat::Pnm),
        ("f.pnm", ImageFormat::Pnm),
        ("g.webp", ImageFormat::WebP),
    ] {
        image.save_with_format(at(name), format).unwrap();
    }
    let png = |name: &str| ["-i".to_owned(), at(name).to_str().unwrap().to_owned()];
    let input = png("a.png");
    let input: Vec<&str> = input.iter().map(String::as_str).collect();
    ffmpeg(at("h.tif"), &input, &["-compression_algo", "lzw"], &[]);
    ffmpeg(at("i.tif"), &input, &["-compression_algo", "deflate"], &[]);
    DynamicImage::from(image.to_rgb16()).save(at("j.tif")).unwrap();
    image.to_rgba8().save(at("k.bmp")).unwrap();
    let dataset = open(&config(1, 24, 40), folder.path());
    assert_eq!(skipped(&dataset), []);
    assert_eq!(dataset.len(), 11);
    for id in 0..dataset.len() {
        let clip = dataset.clip(id);
        assert!(whole(&dataset, &clip).data == image.as_bytes(), "{}", clip.path.display());
    }
    for name in ["l.jpg", "m.jpe", "n.jfif", "o.JPEG"] {
        let path = folder.path().join("lossy").join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        image.save_with_format(path, ImageFormat::Jpeg).unwrap();
    }
    let dataset = open(&config(1, 24, 40), &at("lossy"));
    assert_eq!(dataset.len(), 4);
    let grey = image.to_luma8();
    fs::create_dir(at("grey")).unwrap();
    grey.save_with_format(at("grey/p.pgm"), ImageFormat::Pnm).unwrap();
    grey.save(at("grey/q.tif")).unwrap();
    grey.save(at("grey/r.png")).unwrap();
    // Text, a blank or more between numbers; and eight pixels in a byte.
    let text: String = grey.iter().map(|value| format!("{value}\n")).collect();
    fs::write(at("grey/s.pgm"), format!("P2\n# by hand\n40 24\n255\n{text}")).unwrap();
    let bits: Vec<u8> = (0..24).flat_map(|y| if y < 12 { [0xff, 0xff, 0xf0, 0, 0] } else { [0; 5] }).collect();
    fs::write(at("four.ppm"), b"P6 2 2 255\n0123456789ab").unwrap();
    assert_eq!(
        whole(&open(&config(1, 2, 2), &at("four.ppm")), &open(&config(1, 2, 2), &at("four.ppm")).clip(0)).data,
        b"0123456789ab"
    );
    fs::write(at("bits.pbm"), [&b"P4\n40 24\n"[..], &bits].concat()).unwrap();
    let dataset = open(&config(1, 24, 40), &at("grey"));
    assert_eq!(dataset.len(), 4);
    let expected: Vec<u8> = grey.iter().flat_map(|&value| [value; 3]).collect();
    for id in 0..dataset.len() {
        let clip = dataset.clip(id);
        assert!(whole(&dataset, &clip).data == expected, "{}", clip.path.display());
    }
    let dataset = open(&config(1, 24, 40), &at("bits.pbm"));
    let pixels = whole(&dataset, &dataset.clip(0)).data;
    assert_eq!([0, 19, 20, 12 * 40].map(|at| pixels[at * 3]), [0, 0, 255, 255]);
}

#[test]
fn cut_images_of_every_kind_are_skipped_at_probing() {
    let folder = folder();
    let image = DynamicImage::from(quarters(40, 24));
    for (name, format) in [
        ("a.bmp", ImageFormat::Bmp),
        ("b.tif", ImageFormat::Tiff),
        ("c.ppm", ImageFormat::Pnm),
        ("d.png", ImageFormat::Png),
        ("e.jpg", ImageFormat::Jpeg),
        ("f.webp", ImageFormat::WebP),
    ] {
        let path = folder.path().join(name);
        image.save_with_format(&path, format).unwrap();
        let bytes = fs::read(&path).unwrap();
        fs::write(&path, &bytes[..bytes.len() * 9 / 10]).unwrap();
    }
    let dataset = Dataset::survey(&config(1, 24, 40), folder.path()).unwrap();
    let skips = skipped(&dataset);
    assert_eq!(skips.len(), 6, "{skips:?}");
    for (name, reason) in skips {
        assert!(
            reason.contains("cut short") || name == "b.tif" && reason.contains("cannot be read"),
            "{name}: {reason}"
        );
    }
}

/// A block of EXIF with one entry: orientation 6, to be shown turned by 90 degrees clockwise.
const TURNED: &[u8] = b"MM\0\x2a\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0";

/// A TIFF with orientation 6.
fn turned_tiff(path: &Path, image: &RgbImage) {
    let mut encoder = tiff::encoder::TiffEncoder::new(fs::File::create(path).unwrap()).unwrap();
    let mut writer = encoder.new_image::<tiff::encoder::colortype::RGB8>(image.width(), image.height()).unwrap();
    writer.encoder().write_tag(tiff::tags::Tag::Orientation, 6u16).unwrap();
    writer.write_data(image.as_raw()).unwrap();
}

#[test]
fn exif_turns_images_of_every_kind_that_has_it() {
    let folder = folder();
    let at = |name: &str| folder.path().join(name);
    let image = quarters(40, 24);
    let file = |name: &str| fs::File::create(at(name)).unwrap();
    macro_rules! save {
        ($encoder:expr) => {{
            let mut encoder = $encoder;
            encoder.set_exif_metadata(TURNED.to_vec()).unwrap();
            encoder.write_image(image.as_raw(), 40, 24, image::ExtendedColorType::Rgb8).unwrap();
        }};
    }
    save!(JpegEncoder::new_with_quality(file("a.jpg"), 100));
    save!(PngEncoder::new(file("b.png")));
    save!(WebPEncoder::new_lossless(file("c.webp")));
    turned_tiff(&at("d.tif"), &image);
    let dataset = open(&config(1, 40, 24), folder.path());
    assert_eq!(skipped(&dataset), []);
    assert_eq!(dataset.len(), 4);
    for id in 0..4 {
        let clip = dataset.clip(id);
        let pixels = whole(&dataset, &clip).data;
        let corner = |x: usize, y: usize| -> Vec<u8> {
            let at = (y * 24 + x) * 3;
            pixels[at..at + 3].iter().map(|&value| if value > 127 { 255 } else { 0 }).collect()
        };
        // The lower left corner comes to the upper left.
        let corners = [corner(3, 3), corner(20, 3), corner(3, 36), corner(20, 36)];
        assert_eq!(corners, [[0, 0, 255], [255, 0, 0], [255, 255, 255], [0, 255, 0]], "{}", clip.path.display());
    }
}

#[test]
fn known_kinds_that_cannot_be_read_have_their_true_reason() {
    let folder = folder();
    for name in ["a.heic", "b.jxl", "c.JP2", "d.cr2", "e.exr", "f.xyz"] {
        fs::write(folder.path().join(name), "?").unwrap();
    }
    let dataset = Dataset::survey(&config(1, 8, 8), folder.path()).unwrap();
    let skips = skipped(&dataset);
    for (name, what) in [
        ("a.heic", "HEIF"),
        ("b.jxl", "JPEG XL"),
        ("c.JP2", "JPEG 2000"),
        ("d.cr2", "of this kind"),
        ("e.exr", "dynamic range"),
    ] {
        let reason = &skips.iter().find(|skip| skip.0 == name).unwrap().1;
        assert!(reason.contains(what) && reason.contains("are not read: convert it"), "{name}: {reason}");
    }
    assert_eq!(skips[5], ("f.xyz".to_owned(), "it is not a video or image".to_owned()));
}

/// AVIF's boxes up to the pixels: an item of `kind` with `properties`.
fn avif(kind: &[u8; 4], properties: &[Vec<u8>]) -> Vec<u8> {
    let make = |kind: &[u8; 4], body: &[u8]| [&(body.len() as u32 + 8).to_be_bytes()[..], kind, body].concat();
    let item = make(b"infe", &[&[2, 0, 0, 0, 0, 1, 0, 0][..], kind, b"\0"].concat());
    let items = make(b"iinf", &[&[0, 0, 0, 0, 0, 1][..], &item].concat());
    let sized = make(b"ispe", &[&[0; 4][..], &40u32.to_be_bytes(), &24u32.to_be_bytes()].concat());
    let properties: Vec<u8> = properties.iter().flat_map(|p| make(&[p[0], p[1], p[2], p[3]], &p[4..])).collect();
    let properties = make(b"iprp", &make(b"ipco", &[sized, properties].concat()));
    let meta = make(b"meta", &[&[0; 4][..], &items, &properties].concat());
    [make(b"ftyp", b"avif\0\0\0\0avif"), meta, make(b"mdat", &[0; 40])].concat()
}

#[test]
fn an_avif_is_an_image_and_what_would_be_left_out_of_it_is_refused() {
    let folder = folder();
    let at = |name: &str| folder.path().join(name);
    quarters(40, 24).save(at("a.png")).unwrap();
    let input = at("a.png");
    let args = ["-c:v", "libaom-av1", "-still-picture", "1", "-cpu-used", "8", "-crf", "1", "-pix_fmt", "yuv444p"];
    ffmpeg(at("b.avif"), &["-i", input.to_str().unwrap()], &args, &[]);
    let dataset = open(&config(1, 24, 40), &at("b.avif"));
    let clip = dataset.clip(0);
    assert_eq!((dataset.len(), clip.rate, dataset.files()[0].rate), (1, None, None));
    let pixels = whole(&dataset, &clip).data;
    for (x, y) in [(3, 3), (30, 3), (3, 20), (30, 20)] {
        let expected = quarters(40, 24).get_pixel(x, y).0;
        let found = &pixels[(y as usize * 40 + x as usize) * 3..][..3];
        assert!(found.iter().zip(expected).all(|(&f, e)| f.abs_diff(e) <= 6), "{x}, {y}: {found:?}");
    }
    let reason = |bytes: &[u8], frames: usize| {
        fs::write(at("c.avif"), bytes).unwrap();
        let dataset = Dataset::survey(&config(frames, 24, 40), &at("c.avif")).unwrap();
        skipped(&dataset)[0].1.clone()
    };
    assert!(reason(&fs::read(at("b.avif")).unwrap(), 2).contains("one frame; the config asks 2"));
    assert!(reason(&avif(b"grid", &[]), 1).contains("made of tiles"));
    assert!(reason(&avif(b"av01", &[b"irot\x01".to_vec()]), 1).contains("turned or cropped"));
    assert!(reason(&avif(b"av01", &[b"imir\0".to_vec()]), 1).contains("turned or cropped"));
    let alpha = b"auxC\0\0\0\0urn:mpeg:mpegB:cicp:systems:auxiliary:alpha\0".to_vec();
    assert!(reason(&avif(b"av01", &[alpha]), 1).contains("transparent"));
    let mut huge = avif(b"av01", &[]);
    let claim = huge.windows(4).position(|bytes| bytes == [0, 0, 0, 40]).unwrap();
    huge[claim..claim + 8].copy_from_slice(&[0, 0, 0xff, 0xff, 0, 0, 0xff, 0xff]);
    assert!(reason(&huge, 1).contains("claims 65535x65535 pixels"));
    let good = avif(b"av01", &[b"irot\0".to_vec()]);
    crate::mutated::mutated(&good, 20_000, |bytes| assert!(longreel::data::check_image(bytes).is_err()));
}
