//! What somebody does at first: `~` in paths, a folder or a video instead of a config, words of other trainers.

use crate::config::{MINIMAL, parse};
use crate::train::{Place, error_of, fail, finish, longreel, succeed, text};
use std::fs::{self, File};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// `longreel train` with a config that cannot be one: the error, which must come at once.
fn refused(config: &Path) -> String {
    let start = Instant::now();
    let mut command = longreel();
    command.arg("train").arg(config).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let output = finish(command.spawn().unwrap());
    assert!(start.elapsed() < Duration::from_secs(5), "{}: {:?}", config.display(), start.elapsed());
    assert_eq!(output.status.code(), Some(1), "{}", text(&output.stderr));
    text(&output.stderr)
}

#[test]
fn whatever_is_named_as_a_config_is_told_what_a_config_is() {
    let place = Place::videos();
    place.train("run", &["train.steps=1"]);
    let wanted = "a config is a text in TOML (docs/configuration.md): its data.path names the folder of clips";
    for (name, what) in [("clips/a.mp4", "it is no text"), ("run/checkpoints/step-00000001", "is a model's folder")] {
        let error = refused(&place.path(name));
        assert!(error.starts_with(&format!("error: {}: {what}", place.path(name).display())), "{error}");
        assert!(error.contains(wanted), "{error}");
    }
    let weights = "run/checkpoints/step-00000001/transformer/diffusion_pytorch_model.safetensors";
    assert!(refused(&place.path(weights)).contains(wanted));
    let error = refused(&place.path("run"));
    let config = place.path("run/config.toml");
    assert!(error.contains(&format!("is a run's folder; its config is {}", config.display())), "{error}");
    // A folder of clips: a config for it stands below, and trains.
    let error = refused(&place.path("clips"));
    assert!(error.contains("is a folder; ") && error.contains("docs/training.md"), "{error}");
    let example: String = error.lines().skip(1).map(|line| format!("{}\n", line.trim())).collect();
    assert!(example.lines().count() <= 12, "{example}");
    let config = parse(&example, &["data.frames=4"]).unwrap();
    assert_eq!(Path::new(&config.data.path), place.path("clips"));
    for format in ["json", "yaml"] {
        let path = place.path(&format!("run.{format}"));
        fs::write(&path, "{}").unwrap();
        assert!(refused(&path).contains(&format!("is called .{format}; {wanted}")));
    }
}

#[test]
fn a_config_without_end_or_in_another_encoding_is_refused_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    File::create(at("sparse.toml")).unwrap().set_len(10 << 30).unwrap();
    assert!(Command::new("mkfifo").arg(at("pipe.toml")).status().unwrap().success());
    fs::write(at("long.toml"), "# long\n".repeat(1 << 18)).unwrap();
    fs::write(at("binary.toml"), b"a\0b").unwrap();
    fs::write(at("latin.toml"), b"# a\n# caf\xe9\n").unwrap();
    fs::write(at("torn.toml"), b"\xff\xfea").unwrap();
    for (path, expected) in [
        (Path::new("/dev/zero").to_owned(), "is a device or socket"),
        (Path::new("/dev/null").to_owned(), "is a device or socket"),
        (at("sparse.toml"), "is longer than 1 MiB"),
        (at("long.toml"), "is longer than 1 MiB"),
        (at("pipe.toml"), "is a pipe that nothing is written to"),
        (at("binary.toml"), "it is no text"),
        (at("latin.toml"), "latin.toml: it is not UTF-8 from byte 9 (line 2) on"),
        (at("torn.toml"), "torn.toml: it is not UTF-16"),
    ] {
        let error = refused(&path);
        assert!(error.starts_with("error: ") && error.contains(expected), "{}: {error}", path.display());
        for command in ["plan", "scan"] {
            let flag = if command == "scan" { &["--config"][..] } else { &[] };
            let error = fail(longreel().arg(command).args(flag).arg(&path));
            assert!(error.contains(expected), "{command}: {error}");
        }
    }
}

#[test]
fn a_config_may_have_a_byte_order_mark_or_come_through_a_pipe() {
    let place = Place::videos();
    let config = fs::read_to_string(place.path("config.toml")).unwrap();
    fs::write(place.path("config.toml"), format!("\u{feff}{config}")).unwrap();
    place.train("run", &["train.steps=1"]);
    for (name, unit) in [("little-endian", u16::to_le_bytes as fn(u16) -> [u8; 2]), ("big-endian", u16::to_be_bytes)] {
        let bytes: Vec<u8> = format!("\u{feff}{config}").encode_utf16().flat_map(unit).collect();
        fs::write(place.path("config.toml"), bytes).unwrap();
        place.train(name, &["train.steps=1"]);
    }
    fs::write(place.path("config.toml"), &config).unwrap();
    // Slowly, too, as by a shell's <(...).
    let script = "(head -c 100 \"$0\"; sleep 0.3; tail -c +101 \"$0\") | \"$1\" train /dev/stdin --set train.steps=1 --set run.out=\"$2\"";
    let args = [&place.path("config.toml"), Path::new(env!("CARGO_BIN_EXE_longreel")), &place.path("piped")];
    succeed(Command::new("sh").arg("-c").arg(script).args(args));
    assert!(place.path("piped/checkpoints").is_dir());
    let endless = "cat /dev/zero | \"$1\" train /dev/stdin";
    let output = Command::new("sh").arg("-c").arg(endless).args(args).output().unwrap();
    assert!(error_of(&output).contains("is longer than 1 MiB"));
}

#[test]
fn a_tilde_is_the_home_folder_everywhere() {
    let place = Place::videos();
    let home = |command: &mut Command| {
        command.current_dir(place.path("run.d")).env("HOME", place.path(""));
    };
    fs::create_dir(place.path("run.d")).unwrap();
    let sets = ["--set", "data.path=~/clips", "--set", "run.out=~/run", "--set", "data.heldout=~/heldout"];
    let mut train = longreel();
    train.args(["train", "~/config.toml", "--set", "train.steps=1", "--set", "stash.folder=~"]).args(sets);
    home(&mut train);
    succeed(&mut train);
    // The run's config holds for other homes, too.
    let kept = fs::read_to_string(place.path("run/config.toml")).unwrap();
    assert!(kept.contains(&format!("path = \"{}\"", place.path("clips").display())) && !kept.contains('~'), "{kept}");
    let commands: [(&[&str], &str); 4] = [
        (&["sample", "~/run", "-o=~/sample.png"], "sample.png"),
        (&["sample", "~/run", "--output=~/long.png"], "long.png"),
        (&["scan", "~/clips", "--frames=4", "--height=16", "--width=40", "--sheet=~/sheet.png"], "sheet.png"),
        (&["scan", "--config=~/config.toml", "--sheet=~/second.png"], "second.png"),
    ];
    for (args, made) in commands {
        let mut command = longreel();
        home(command.args(args));
        succeed(&mut command);
        assert!(place.path(made).is_file(), "{args:?}");
    }
    assert_eq!(fs::read_dir(place.path("run.d")).unwrap().count(), 0, "a folder called ~");
    for (set, key) in
        [("data.path=~bob/clips", "data.path"), ("run.out=~bob", "run.out"), ("model.from=~bob/x", "model.from")]
    {
        let error = refusal!(Config, parse(MINIMAL, &[set]));
        let expected = "the home folder of another user is not looked up: write the path out";
        assert!(error.starts_with(&format!("--set {set}: {key} = ")) && error.ends_with(expected), "{error}");
    }
    let output = longreel().args(["sample", "~bob/run", "-o", "x.png"]).output().unwrap();
    assert!(output.status.code() == Some(2) && text(&output.stderr).contains("of another user is not looked up"));
    assert_eq!(parse(MINIMAL, &["data.path=./~bob"]).unwrap().data.path, "./~bob");
}

#[test]
fn words_of_other_trainers_lead_to_the_key_or_say_that_there_is_none() {
    let message = |set: &str| refusal!(Config, parse(MINIMAL, &[set]));
    for (set, expected) in [
        (
            "train.batch_size=4",
            "unknown key `batch_size` in [train]; that is `train.batch` here (clips of a micro-batch",
        ),
        ("train.micro_batch_size_per_gpu=4", "that is `train.batch` here"),
        ("learning_rate=1e-4", "unknown key outside any section `learning_rate`; that is `train.lr` here"),
        ("train.mixed_precision=bf16", "that is `train.dtype` here (\"f32\" or \"bf16\""),
        ("epochs=10", "that is `train.steps` here (counted in optimizer steps: an epoch has clips / (train.batch"),
        ("data.resolution=512", "that is `data.height`, `data.width` and `data.resolutions` here"),
        ("output_dir=x", "that is `run.out` here"),
        ("save_every_n_steps=5", "that is `train.checkpoint_every` here"),
        ("optimizer.type=adamw", "unknown section `optimizer`; the nearest known is `optimizer` in [train]"),
        ("train.lora=true", "unknown key `lora` in [train]; that is `lora.rank` here"),
        ("model.rank=16", "the nearest known is `rank` in [lora]"),
        ("data.captions=true", "captions are NAME.txt beside NAME.mp4"),
        ("train.gradient-accumulation-steps=2", "that is `train.accumulate` here"),
        ("data.validation=x", "that is `data.heldout` here"),
        ("train.seed=1", "unknown key `seed` in [train]; the nearest known is `seed` in [run]"),
        ("parallel.rank=4", "unknown key `rank` in [parallel]; the nearest known is `rank"),
        ("parallel.rnaks=4", "unknown key `rnaks` in [parallel]; the nearest known is `ranks`"),
    ] {
        assert!(message(set).starts_with(&format!("--set {set}: unknown ")), "{}", message(set));
        assert!(message(set).contains(expected), "{set}: {}", message(set));
    }
    // Nothing alike: no guess, but the keys that there are.
    let quiet = message("train.foobar=1");
    assert!(quiet.contains("; the keys of [train] are steps, batch, ") && !quiet.contains("nearest"), "{quiet}");
    let quiet = message("xyzzy.key=1");
    assert!(quiet.ends_with(
        "unknown section `xyzzy`; the sections are run, data, model, lora, vae, text, diffusion, train, parallel, stash, sample"
    ));
}
