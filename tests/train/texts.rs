//! Training on captioned clips, from their text to samples by prompt: the same on any mesh of ranks and after a resume;
//! captions that are dropped; a cache of embeddings that fills itself and never gives what is stale.

use super::{Place, difference, fail, longreel, numbers, picture, succeed, text};
use longreel::data::write::write_video;
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// 12 tokens of latents in two shapes, with captions by the golden text encoder, of 32 features.
const TEXTS: &str = r#"
[run]
seed = 11
[data]
path = "CLIPS"
heldout = "HELDOUT"
buckets = [[48, 32, 5], [32, 48, 5]]
[vae]
from = "VAE"
cache = "CACHE"
[text]
from = "ENCODER"
cache = "EMBEDDINGS"
SMALL_NETWORK
[diffusion]
caption_dropout = 0.3
[train]
steps = 4
batch = 2
lr = 0.003
warmup = 0
ema = 0.9
heldout_every = 2
tile = 5
[sample]
sampler = "euler"
steps = 3
count = 2
guidance = 3.0
prompts = ["a slow wave", "Grüße, 你好"]
frames = 1
"#;

/// Wide and tall videos, one of them without a caption, and a held-out one.
fn texts() -> Place {
    let place = Place::new(TEXTS);
    fs::create_dir(place.path("heldout")).unwrap();
    let wide = [36, 52];
    for (name, seed, frames, [height, width], caption) in [
        ("clips/a", 1, 10, wide, "a red wave over the whole frame, moving to the left"),
        ("clips/b", 2, 11, wide, "a slow wave"),
        ("clips/c", 3, 9, [52, 36], "stripes"),
        ("clips/d", 5, 10, [52, 36], ""),
        ("heldout/e", 4, 9, wide, "a wave nobody has seen"),
    ] {
        let pixels: Vec<u8> = (0..frames).flat_map(|t| picture(seed, t, height, width)).collect();
        write_video(&place.path(&format!("{name}.mp4")), &pixels, height, width, 12.0).unwrap();
        if !caption.is_empty() {
            fs::write(place.path(&format!("{name}.txt")), caption).unwrap();
        }
    }
    place
}

/// Texts of a place: four captions and the empty one, the prompts, of which one is a caption too; the negative one is
/// the empty text.
const COUNT: usize = 6;

/// The entries of the cache of embeddings, and their bytes.
fn entries(place: &Place) -> Vec<(PathBuf, Vec<u8>)> {
    let files = fs::read_dir(place.path("embeddings")).unwrap().map(|entry| entry.unwrap().path());
    let entries = files.filter(|path| path.extension().is_some_and(|kind| kind == "safetensors"));
    let mut entries: Vec<_> = entries.map(|path| (path.clone(), fs::read(&path).unwrap())).collect();
    entries.sort();
    entries
}

fn cache(place: &Place, args: &[&str]) -> Command {
    let mut command = longreel();
    command.arg("cache").arg(place.path("config.toml"));
    for arg in args {
        command.args(if arg.starts_with("--") { vec![*arg] } else { vec!["--set", arg] });
    }
    command
}

/// How many texts `cache --check` says are there, missing, stale and unused; with these settings.
fn check(place: &Place, args: &[&str]) -> [usize; 4] {
    let output = cache(place, &[args, &["--check"]].concat()).stderr(Stdio::piped()).output().unwrap();
    let said = text(&output.stdout);
    let of = |line: &str| {
        let line = line.trim_start_matches(&format!("{}: ", place.path("embeddings").display()));
        line.split(' ').next().and_then(|n| n.parse().ok())
    };
    let numbers: Vec<usize> = said.lines().filter(|line| !line.starts_with("  ")).filter_map(of).take(4).collect();
    numbers.try_into().unwrap_or_else(|_| panic!("{said}{}", text(&output.stderr)))
}

#[test]
fn every_mesh_trains_alike_on_captions() {
    let place = texts();
    let one = place.train("one", &["--ranks=1"]);
    let filled = entries(&place);
    assert_eq!(filled.len(), COUNT);
    for (name, args) in [
        ("sequence 2", &["--ranks=2"][..]),
        ("sequence 3", &["--ranks=3", "parallel.zero=3"]),
        ("data 2", &["--ranks=2", "parallel.data=2", "train.batch=1"]),
        ("accumulated", &["train.batch=1", "train.accumulate=2"]),
    ] {
        let other = place.train(name, args);
        let difference = difference(&one, &other);
        assert!(difference < 1e-5, "{name}: losses differ by {difference}");
    }
    assert_eq!(entries(&place), filled, "nothing was embedded again");
    fs::remove_dir_all(place.path("embeddings")).unwrap();
    succeed(&mut cache(&place, &["--ranks=3"]));
    assert_eq!(entries(&place), filled, "another cache on three ranks");
    // Captions matter: other losses with none.
    let [strong, empty] = ["0", "1"].map(|dropout| {
        let dropout = format!("diffusion.caption_dropout={dropout}");
        place.train(&dropout, &[&dropout, "train.lr=0.05"])
    });
    assert!(difference(&strong, &empty) > 1e-4);
}

/// A caption that is dropped is the empty text, as that of a file without one.
#[test]
fn dropped_captions_are_the_empty_text() {
    let place = texts();
    let losses = |out: &str, args: &[&str]| numbers(&place.train(out, &[args, &["train.heldout_every=0"]].concat()));
    let dropped = losses("dropped", &["diffusion.caption_dropout=1"]);
    let (never, seldom) = (losses("never", &["diffusion.caption_dropout=0"]), losses("seldom", &[]));
    for name in ["a", "b", "c"] {
        fs::remove_file(place.path(&format!("clips/{name}.txt"))).unwrap();
    }
    assert_eq!(losses("without", &["diffusion.caption_dropout=0"]), dropped);
    assert!(never != dropped && seldom != never && seldom != dropped);
}

#[test]
fn a_resumed_run_on_captions_equals_an_uninterrupted_one_to_the_bit() {
    let place = texts();
    for ranks in ["--ranks=1", "--ranks=2"] {
        let [whole, cut] = ["whole", "cut"].map(|name| format!("{name}{ranks}"));
        let whole = place.train(&whole, &[ranks]);
        place.train(&cut, &[ranks, "train.steps=2"]);
        let resumed = place.train(&cut, &[ranks, "--resume"]);
        assert_eq!(numbers(&whole), numbers(&resumed));
    }
}

/// An entry of another text, encoder or precision, and a damaged one, is never used.
#[test]
fn stale_embeddings_are_never_used() {
    let place = texts();
    assert_eq!(check(&place, &[]), [0, COUNT, 0, 0]);
    assert!(!place.path("embeddings").exists(), "a check writes nothing");
    let said = fail(&mut cache(&place, &["--check"]));
    assert!(said.contains("6 texts are not embedded") && said.contains("8 clips are not encoded"), "{said}");
    succeed(&mut cache(&place, &[]));
    assert_eq!(check(&place, &[]), [COUNT, 0, 0, 0]);
    let filled = entries(&place);
    for other in ["train.lr=0.1", "run.seed=1", "model.num_layers=1", "vae.dtype=bf16", "data.crop=random"] {
        assert_eq!(check(&place, &[other])[0], COUNT, "{other} does not matter");
    }
    assert_eq!(check(&place, &["text.dtype=f32"]), [0, COUNT, COUNT, 0]);
    assert_eq!(check(&place, &["data.caption_prefix=tok "])[0], 3, "the empty text and the prompts");
    // Another encoder: of other weights, and of another tokenizer.
    for part in ["text_encoder/model.safetensors", "tokenizer/tokenizer.json"] {
        let encoder = place.path("other");
        for folder in ["text_encoder", "tokenizer"] {
            fs::create_dir_all(encoder.join(folder)).unwrap();
            for file in fs::read_dir(golden().join(folder)).unwrap().map(|file| file.unwrap()) {
                fs::copy(file.path(), encoder.join(folder).join(file.file_name())).unwrap();
            }
        }
        let from = format!("text.from={}", encoder.display());
        assert_eq!(check(&place, &[&from])[0], COUNT, "the same encoder elsewhere");
        let mut bytes = fs::read(encoder.join(part)).unwrap();
        match part.ends_with("json") {
            true => bytes.push(b'\n'),
            false => *bytes.last_mut().unwrap() ^= 1,
        }
        fs::write(encoder.join(part), bytes).unwrap();
        assert_eq!(check(&place, &[&from])[0], 0, "another {part}");
        fs::remove_dir_all(encoder).unwrap();
    }
    // Damage, another entry under this name, and an entry that is cut.
    let (path, bytes) = &filled[2];
    let mut damaged = bytes.clone();
    *damaged.last_mut().unwrap() ^= 1;
    for wrong in [damaged, filled[1].1.clone(), bytes[..bytes.len() - 1].to_vec(), vec![]] {
        fs::write(path, wrong).unwrap();
        assert_eq!(check(&place, &[])[..2], [COUNT - 1, 1]);
        succeed(&mut cache(&place, &[]));
        assert_eq!(entries(&place), filled);
    }
    // A caption that changes: its old entry is of nothing that is wanted, and comes back with the caption.
    fs::write(place.path("clips/c.txt"), "dots").unwrap();
    assert_eq!(check(&place, &[]), [COUNT - 1, 1, 0, 1]);
    fs::write(place.path("clips/c.txt"), "stripes").unwrap();
    assert_eq!(check(&place, &[]), [COUNT, 0, 0, 0]);
}

/// Neither takes the other's entries for stale or unused.
#[test]
fn one_folder_may_hold_both_caches() {
    let place = texts();
    let both = place.path("both").display().to_string();
    let (latents, embeddings) = (format!("vae.cache={both}"), format!("text.cache={both}"));
    succeed(&mut cache(&place, &[&latents, &embeddings]));
    let said = text(&succeed(&mut cache(&place, &[&latents, &embeddings, "--check"])).stdout);
    for line in ["0 missing", "0 stale, and not used", "0 unused by this config"] {
        assert_eq!(said.lines().filter(|said| *said == line).count(), 2, "{line}: {said}");
    }
    assert!(said.contains(&format!("{both}: {COUNT} there")) && said.contains(&format!("{both}: 8 there")), "{said}");
}

/// The folder of the golden text encoder and its tokenizer.
fn golden() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden/text")
}

#[test]
fn samples_by_prompt_are_those_of_training() {
    let place = texts();
    place.train("run", &["train.sample_every=4", "train.lr=0.05"]); // so that texts matter within four steps
    let pixels = |path: &Path| image::open(path).unwrap().into_rgb8().into_raw();
    let sample = |out: &str, args: &[&str]| -> Vec<Vec<u8>> {
        let out = place.path(out);
        let mut command = longreel();
        command.arg("sample").arg(place.path("run")).arg("-o").arg(&out).args(["--frames", "1"]).args(args);
        succeed(&mut command);
        let mut files: Vec<PathBuf> = fs::read_dir(&out).unwrap().map(|file| file.unwrap().path()).collect();
        files.sort();
        files.iter().map(|path| pixels(path)).collect()
    };
    let during: Vec<Vec<u8>> =
        (0..2).map(|i| pixels(&place.path(&format!("run/samples/step-00000004-{i}.png")))).collect();
    assert!(during[0] != during[1]);
    assert_eq!(sample("as trained/", &[]), during);
    assert_eq!(sample("flags/", &["--prompt", "a slow wave", "--prompt", "Grüße, 你好"]), during);
    fs::write(place.path("prompts.txt"), "a slow wave\n\n  Grüße, 你好\n").unwrap();
    let file = place.path("prompts.txt");
    assert_eq!(sample("file/", &["--prompts", file.to_str().unwrap(), "--negative", ""]), during);
    // Each condition counts.
    let one = &during[..1];
    assert_eq!(sample("one/", &["--prompt", "a slow wave"]), one);
    let others = [
        sample("other/", &["--prompt", "stripes"]),
        sample("negative/", &["--prompt", "a slow wave", "--negative", "stripes"]),
        sample("unguided/", &["--prompt", "a slow wave", "--guidance", "1"]),
    ];
    let all: BTreeSet<&Vec<Vec<u8>>> = others.iter().collect();
    assert!(all.len() == 3 && !all.contains(&one.to_vec()));
    let two = sample("two/", &["--prompt", "a slow wave", "--ranks", "2"]);
    assert!(two[0].iter().zip(&one[0]).all(|(a, b)| a.abs_diff(*b) <= 1));
    // Prompts are embedded once.
    let before = entries(&place).len();
    sample("again/", &["--prompt", "a slow wave"]);
    assert_eq!(entries(&place).len(), before);
}

#[test]
fn texts_that_cannot_be_are_refused() {
    let place = texts();
    let said = place.error("run", &["sample.prompts=[]"]);
    assert!(said.contains("sample.guidance is 3") && said.contains("no prompts"), "{said}");
    let said = place.error("run", &["text.from=/nowhere"]);
    assert!(said.contains("text.from") && said.contains("/nowhere"), "{said}");
    fs::write(place.path("file"), "mine").unwrap();
    let said = place.error("run", &[&format!("text.cache={}", place.path("file").display())]);
    assert!(said.starts_with("text.cache: ") && said.contains("file: is not a folder"), "{said}");
    place.train("run", &["train.steps=1"]);
    let config = fs::read_to_string(place.path("config.toml")).unwrap();
    let (head, rest) = config.split_once("[text]").unwrap();
    let (encoder, rest) = rest.split_once("[model]").unwrap();
    let (sizes, rest) = rest.split_once("[diffusion]").unwrap();
    let (middle, sample) = rest.split_once("[sample]").unwrap();
    let unguided = sample.lines().filter(|line| !line.starts_with("prompts") && !line.starts_with("guidance"));
    let unguided = unguided.collect::<Vec<_>>().join("\n");
    let encoder = format!("[text]{encoder}");
    let run = |out: &str, [text, model, sample]: [&str; 3]| {
        let path = place.path(&format!("{out}.toml"));
        fs::write(&path, format!("{head}{text}\n[model]\n{model}\n[diffusion]{middle}[sample]{sample}")).unwrap();
        let mut command = longreel();
        command.arg("train").arg(path).args(["--set", &format!("run.out={}", place.path(out).display())]);
        command
    };
    let from = |run: &str| format!("from = \"{}\"", place.path(run).display());
    succeed(&mut run("tuned", [&encoder, &from("run"), sample]));
    let said = fail(&mut run("bare", ["", &from("run"), &unguided]));
    assert!(said.contains("text_dim 32") && said.contains("text.from"), "{said}");
    let said = fail(&mut run("prompts", ["", &from("run"), sample]));
    assert!(said.contains("sample.prompts") && said.contains("text.from"), "{said}");
    // A network without text has no use for an encoder.
    succeed(&mut run("textless", ["", sizes, &unguided]));
    let said = fail(&mut run("useless", [&encoder, &from("textless"), &unguided]));
    assert!(said.contains("text_dim 0") && said.contains("text.from"), "{said}");
    // Nor for prompts.
    let videos = Place::videos();
    videos.train("run", &["train.steps=1"]);
    let out = videos.path("clip.png");
    let mut command = longreel();
    command.arg("sample").arg(videos.path("run")).arg("-o").arg(&out).args(["--prompt", "a wave"]);
    let said = fail(&mut command);
    assert!(said.contains("--prompt: the model has no text"), "{said}");
}

#[test]
fn scan_counts_captions_and_plan_counts_their_cache() {
    let place = texts();
    fs::write(place.path("clips/c.txt"), "word ".repeat(600)).unwrap();
    let scan = |args: &[&str]| {
        let mut command = longreel();
        command.arg("scan").arg("--config").arg(place.path("config.toml")).arg("--no-sheet").args(args);
        text(&succeed(&mut command).stdout)
    };
    let said = scan(&[]);
    assert!(
        said.contains("3 captions; 1 is longer than 512 tokens, and cut; 1 file has none: the empty text"),
        "{said}"
    );
    let json: serde_json::Value = serde_json::from_str(&scan(&["--json"])).unwrap();
    assert_eq!(json["captions"], serde_json::json!({"with": 3, "without": 1, "cut": 1}));
    let mut command = longreel();
    command.arg("plan").arg(place.path("config.toml"));
    let said = text(&succeed(&mut command).stdout);
    assert!(said.contains("embedding texts, before the first step"), "{said}");
    assert!(said.contains("embedding 8 texts"), "{said}"); // four files, two prompts, the empty text twice
    let said = text(&succeed(&mut place.command("run", &["train.steps=1"])).stderr);
    assert!(said.contains("1 caption is longer than the 512 tokens"), "{said}");
    assert!(!said.contains("prompt is longer"), "{said}");
    assert!(said.contains("1 file has no caption"), "{said}");
    let mut sample = longreel();
    sample.arg("sample").arg(place.path("run")).arg("-o").arg(place.path("long.png"));
    sample.args(["--count=1", "--prompt", &"wave ".repeat(600)]);
    let said = text(&succeed(&mut sample).stderr);
    assert!(said.contains("1 prompt is longer than the 512 tokens that the text encoder takes"), "{said}");
}
