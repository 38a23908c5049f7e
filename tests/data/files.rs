//! Which files make the dataset: order, captions, classes, names.

use super::media::*;
use longreel::data::{Dataset, Label};
use std::fs;
use std::panic::AssertUnwindSafe;

fn image(path: impl AsRef<std::path::Path>, shade: u8) {
    fs::create_dir_all(path.as_ref().parent().unwrap()).unwrap();
    image::RgbImage::from_pixel(16, 16, image::Rgb([shade; 3])).save(path).unwrap();
}

#[test]
fn files_are_found_recursively_in_the_order_of_their_paths() {
    let folder = folder();
    let names = ["a/z.png", "a.png", "B.PNG", "a/b/c.jpeg", "ü.webp", "a b.jpg", "a-/x.png"];
    for name in names {
        image(folder.path().join(name), 100);
    }
    let dataset = open(&config(1, 16, 16), folder.path());
    let found: Vec<_> = dataset
        .files()
        .iter()
        .map(|f| f.path.strip_prefix(folder.path()).unwrap().to_str().unwrap().to_owned())
        .collect();
    assert_eq!(found, ["B.PNG", "a b.jpg", "a-/x.png", "a.png", "a/b/c.jpeg", "a/z.png", "ü.webp"]);
    assert_eq!((0..7).map(|i| dataset.clip(i).file).collect::<Vec<_>>(), (0..7).collect::<Vec<_>>());
    let error = std::panic::catch_unwind(AssertUnwindSafe(|| dataset.clip(7)));
    assert!(error.is_err());
}

#[test]
fn names_and_links_do_not_confuse_the_readers() {
    let outside = folder();
    let real = video(outside.path().join("real.mp4"), 8, (64, 48), &H264);
    let folder = folder();
    let at = |name: &str| folder.path().join(name);
    fs::copy(&real, at("concat:a|b.mp4")).unwrap();
    fs::copy(&real, at("100%d.mp4")).unwrap();
    fs::copy(&real, at("wrong.png")).unwrap(); // a video all the same
    image::RgbImage::new(64, 48).save(at("x.png")).unwrap();
    fs::rename(at("x.png"), at("wrong.mkv")).unwrap(); // an image all the same
    std::os::unix::fs::symlink(&real, at("link.mp4")).unwrap();
    let dataset = open(&config(1, 48, 64), folder.path());
    assert_eq!(skipped(&dataset), []);
    assert_eq!(dataset.len(), 4 * 8 + 1);

    use std::os::unix::ffi::OsStrExt;
    let odd = std::ffi::OsStr::from_bytes(b"\xff\xfe.mp4");
    fs::copy(&real, folder.path().join(odd)).unwrap();
    let dataset = open(&config(1, 48, 64), folder.path());
    assert_eq!(dataset.len(), 33);
    assert!(skipped(&dataset)[0].1.contains("UTF-8"));
    assert_eq!(open(&config(8, 48, 64), &real).len(), 1, "a single file is a dataset, too");
}

#[test]
fn captions_come_from_text_files_and_metadata() {
    let folder = folder();
    let at = |name: &str| folder.path().join(name);
    for name in ["a.png", "b.png", "c.png", "sub/d.png", "sub/e.png"] {
        image(at(name), 10);
    }
    fs::write(at("a.txt"), "  a text\nof two lines\n").unwrap();
    fs::write(
        at("metadata.jsonl"),
        "{\"file_name\": \"b.png\", \"text\": \"by metadata\", \"width\": 3}\n\n\
         {\"file_name\": \"a.png\", \"text\": \"loses\"}\n{\"file_name\": \"./sub/d.png\", \"text\": \"from above\"}\n\
         {\"file_name\": \"gone.png\", \"text\": \"?\"}\n",
    )
    .unwrap();
    fs::write(at("sub/metadata.jsonl"), "{\"file_name\": \"e.png\", \"text\": \"from beside\"}").unwrap();
    let dataset = open(&config(1, 16, 16), folder.path());
    let captions: Vec<_> = (0..5).map(|i| dataset.clip(i).caption.as_deref().map(str::to_owned)).collect();
    let expected = [Some("a text\nof two lines"), Some("by metadata"), None, Some("from above"), Some("from beside")];
    assert_eq!(captions, expected.map(|c| c.map(str::to_owned)));
    let skips = skipped(&dataset);
    assert!(skips.len() == 1 && skips[0].0 == "gone.png" && skips[0].1.contains("line 5"), "{skips:?}");

    for (text, why) in [
        (&b"a\n\xffb"[..], "not UTF-8 from byte 2 (line 2) on"),
        (b"\xff\xfea", "not UTF-16"),
        (&[b'a'; (1 << 20) + 1], "at most 1048576"),
    ] {
        fs::write(at("a.txt"), text).unwrap();
        let dataset = open(&config(1, 16, 16), folder.path());
        let reason = &skipped(&dataset)[0].1;
        assert!(reason.contains("its caption") && reason.contains(why), "{reason}");
        assert_eq!(dataset.len(), 4);
    }
}

#[test]
fn a_byte_order_mark_is_no_part_of_a_text() {
    let folder = folder();
    let at = |name: &str| folder.path().join(name);
    let utf16 = |text: &str| -> Vec<u8> { text.encode_utf16().flat_map(u16::to_le_bytes).collect() };
    for name in ["a.png", "b.png", "c.png", "sub/d.png"] {
        image(at(name), 10);
    }
    fs::write(at("a.txt"), "\u{feff}a red cat").unwrap();
    fs::write(at("b.txt"), utf16("\u{feff}a blue cät\r\n")).unwrap();
    fs::write(at("metadata.jsonl"), "\u{feff}{\"file_name\":\"c.png\",\"text\":\"first\"}\r\n").unwrap();
    fs::write(at("sub/metadata.jsonl"), utf16("\u{feff}{\"file_name\":\"d.png\",\"text\":\"deep\"}\n")).unwrap();
    let dataset = open(&config(1, 16, 16), folder.path());
    let captions: Vec<_> = (0..4).map(|i| dataset.clip(i).caption.unwrap()).collect();
    assert_eq!(captions.iter().map(|c| &**c).collect::<Vec<_>>(), ["a red cat", "a blue cät", "first", "deep"]);
    assert_eq!(skipped(&dataset), []);
}

#[test]
fn no_change_of_metadata_makes_its_reader_panic() {
    let good =
        "{\"file_name\": \"a/b.png\", \"text\": \"a \\u00fc cat\"}\n\n{\"file_name\": \"c.png\", \"text\": \"\"}\n";
    let read = |bytes: &[u8]| longreel::data::caption_lines(bytes.to_vec(), std::path::Path::new("metadata.jsonl"));
    assert_eq!(read(good.as_bytes()).unwrap()[1].number, 3);
    let (mut read_well, mut refused) = (0, 0);
    for mark in ["", "\u{feff}"] {
        crate::mutated::mutated(format!("{mark}{good}").as_bytes(), 10_000, |bytes| match read(bytes) {
            Ok(lines) => {
                read_well += 1;
                assert!(lines.iter().all(|line| line.file.is_relative() && line.text == line.text.trim()));
            }
            Err(e) => {
                refused += 1;
                assert!(e.to_string().starts_with("metadata.jsonl:"), "{e}");
            }
        });
    }
    assert!(read_well > 500 && refused > 500, "{read_well}, {refused}");
}

#[test]
fn errors_in_metadata_name_the_line() {
    let folder = folder();
    image(folder.path().join("a.png"), 10);
    let good = "{\"file_name\": \"a.png\", \"text\": \"x\"}\n";
    for (line, what) in [
        ("{\"file_name\": \"b.png\", \"text\"}", "not JSON"),
        ("{\"file_name\": \"b.png\"}", "\"text\""),
        ("{\"file\": \"b.png\", \"text\": \"x\"}", "\"file_name\""),
        ("{\"file_name\": 3, \"text\": \"x\"}", "\"file_name\""),
        ("[1, 2]", "\"file_name\""),
        ("{\"file_name\": \"../b.png\", \"text\": \"x\"}", "must lie in"),
        ("{\"file_name\": \"./a.png\", \"text\": \"x\"}", "already"),
    ] {
        fs::write(folder.path().join("metadata.jsonl"), format!("{good}{line}\n")).unwrap();
        let error = refusal!(Data, Dataset::open(&config(1, 16, 16), folder.path()));
        assert!(error.contains("metadata.jsonl:2") && error.contains(what), "{line}: {error}");
    }
}

#[test]
fn classes_are_the_folders_directly_below() {
    let folder = folder();
    for name in ["9/a.png", "10/x/y/b.png", "10/c.png", "zebra/d.png", "loose.png"] {
        image(folder.path().join(name), 10);
    }
    fs::write(folder.path().join("zebra/broken.png"), "?").unwrap();
    fs::create_dir(folder.path().join("broken")).unwrap();
    fs::write(folder.path().join("broken/e.png"), "?").unwrap();
    fs::create_dir(folder.path().join("nothing")).unwrap();
    let mut labelled = config(1, 16, 16);
    labelled.label = Label::Folder;
    let dataset = open(&labelled, folder.path());
    assert_eq!(dataset.classes(), ["10", "9", "broken", "zebra"], "a folder is a class even if its files are broken");
    let classes: Vec<_> = (0..dataset.len()).map(|i| dataset.clip(i).class.unwrap()).collect();
    assert_eq!(classes, [0, 0, 1, 3]);
    assert!(skipped(&dataset).iter().any(|s| s.0 == "loose.png" && s.1.contains("no class folder")));

    let unlabelled = open(&config(1, 16, 16), folder.path());
    assert!(unlabelled.classes().is_empty() && unlabelled.clip(0).class.is_none());

    let held = super::media::folder();
    image(held.path().join("zebra/a.png"), 1);
    let mut heldout = open(&labelled, held.path());
    assert_eq!(heldout.clip(0).class, Some(0));
    heldout.number_classes_as(dataset.classes()).unwrap();
    assert_eq!((heldout.clip(0).class, heldout.classes()), (Some(3), dataset.classes()));
    let error = refusal!(Data, heldout.number_classes_as(&["9".to_owned()]));
    assert!(error.contains("not among"), "{error}");
}
