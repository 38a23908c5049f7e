//! The configuration: what is read, what is refused and with which words. Its documentation: `documentation.rs`.

use longreel::config::*;
use longreel::diffusion::DiffusionOptions;
use longreel::engine::stash::StashOptions;
use proptest::prelude::*;
use std::path::Path;

mod sampling;

pub const MINIMAL: &str = r#"# A comment, so that line numbers count.
[data]
path = "clips"
frames = 8
height = 32
width = 48

[model]
patch_size = [1, 8, 8]
num_attention_heads = 3
attention_head_dim = 16
num_layers = 2
ffn_dim = 64
"#;

pub fn parse(text: &str, sets: &[&str]) -> longreel::Result<RunConfig> {
    let sets: Vec<String> = sets.iter().map(|s| s.to_string()).collect();
    RunConfig::parse(text, Path::new("run.toml"), &sets)
}

/// The message of the error that `sets` on top of the minimal config give.
fn refused(sets: &[&str]) -> String {
    refusal!(Config, parse(MINIMAL, sets))
}

/// The message where `from` in the minimal config is replaced by `to`.
fn refused_with(from: &str, to: &str) -> String {
    assert!(MINIMAL.contains(from), "{from} is not in the text");
    refusal!(Config, parse(&MINIMAL.replacen(from, to, 1), &[]))
}

#[test]
fn minimal_config_has_the_defaults() {
    let config = parse(MINIMAL, &[]).unwrap();
    assert_eq!(config.data.frames, 8);
    assert_eq!(config.data.prefetch, 4);
    assert_eq!(config.model.patch_size, [1, 8, 8]);
    assert_eq!(config.model.freq_dim, 256);
    assert_eq!(config.train, Train::default());
    assert_eq!(config.sample, Sample::default());
    config.check().unwrap();
}

#[test]
fn overrides_are_merged_in_order_and_typed() {
    let sets = [
        "train.lr=3e-4",
        "train.steps = 7",
        "train.steps=8",
        "data.path=some folder/clips",
        "data.crop=random",
        "train.betas=[0.8, 0.9]",
        "data.heldout=hf://owner/name@main/sub",
        "run.out=\"quo\\\"ted\"",
        "data.flip=true",
        "train.ema=0",
        "parallel={ ranks = 4, data = 2, ring = 2, head_groups = 3, zero = 2 }",
        "data.label=none",
    ];
    let config = parse(MINIMAL, &sets).unwrap();
    assert_eq!(config.train.lr, 3e-4);
    assert_eq!(config.train.steps, 8);
    assert_eq!(config.data.path, "some folder/clips");
    assert_eq!(config.data.crop, Crop::Random);
    assert_eq!(config.train.betas, [0.8, 0.9]);
    assert_eq!(config.data.heldout.as_deref(), Some("hf://owner/name@main/sub"));
    assert_eq!(config.run.out, Path::new("quo\"ted"));
    assert!(config.data.flip);
    assert_eq!(config.train.ema, 0.0);
    assert_eq!(config.parallel, Parallel { ranks: 4, data: 2, ring: 2, head_groups: 3, zero: 2 });
    // Keys that are not named keep what the file says.
    assert_eq!((config.data.height, config.data.width), (32, 48));
}

#[test]
fn an_override_can_repair_what_the_file_says() {
    let broken = MINIMAL.replace("height = 32", "height = \"tall\"");
    assert!(parse(&broken, &[]).is_err());
    assert_eq!(parse(&broken, &["data.height=64"]).unwrap().data.height, 64);
}

#[test]
fn unknown_keys_name_line_text_and_the_nearest_key() {
    let message = refused_with("height = 32", "hieght = 32");
    assert_eq!(message, "run.toml:5: unknown key `hieght` in [data]; the nearest known is `height`\n  5 | hieght = 32");
    let message = refused_with("[model]", "[modle]");
    assert_eq!(message, "run.toml:8: unknown section `modle`; the nearest known is [model]\n  8 | [modle]");
    let message = refused_with("[data]", "steps = 3\n[data]");
    assert!(
        message.starts_with("run.toml:2: unknown key outside any section `steps`; the nearest known is `steps` in [")
    );
    // A key that belongs to another section is found there.
    let message = refused_with("width = 48", "width = 48\nnum_layers = 4");
    assert!(message.contains(":7: unknown key `num_layers` in [data]; the nearest known is `num_layers` in [model]"));
    let message = refused(&["train.stpes=3"]);
    assert_eq!(message, "--set train.stpes=3: unknown key `stpes` in [train]; the nearest known is `steps`");
    assert!(refused(&["lr=3"]).contains("`lr` in [train]"));
    assert!(refused(&["trian.lr=3"]).contains("nearest known is [train]"));
    // Also inside inline tables and dotted keys of the file.
    let message = refused_with("# A comment", "train = { stps = 3 } # A comment");
    assert!(message.starts_with("run.toml:1: unknown key `stps` in [train]"), "{message}");
    let message = refused_with("# A comment", "train.stps = 3 # A comment");
    assert!(message.starts_with("run.toml:1: unknown key `stps` in [train]"), "{message}");
}

#[test]
fn wrong_types_name_line_key_and_what_is_expected() {
    for (from, to, expected) in [
        (
            "height = 32",
            "height = \"32\"",
            "run.toml:5: data.height: string \"32\", expected a whole number, 0 or more",
        ),
        ("height = 32", "height = -32", "run.toml:5: data.height: integer `-32`, expected a whole number, 0 or more"),
        ("height = 32", "height = 32.5", "run.toml:5: data.height: floating point `32.5`, expected a whole number"),
        ("path = \"clips\"", "path = 3", "run.toml:3: data.path: integer `3`, expected a string"),
        ("[1, 8, 8]", "[1, 8]", "run.toml:9: model.patch_size: invalid length 2, expected 3 values in brackets"),
        ("[1, 8, 8]", "[1, 8, 8, 8]", "run.toml:9: model.patch_size: 4 values, expected 3"),
        ("[1, 8, 8]", "[1, \"8\", 8]", "run.toml:9: model.patch_size: string \"8\", expected a whole number"),
        ("width = 48", "width = 48\ncrop = \"middle\"", "run.toml:7: data.crop: unknown variant `middle`, expected `c"),
        ("width = 48", "width = 48\nflip = 1", "run.toml:7: data.flip: integer `1`, expected a boolean"),
        ("width = 48", "width = 48\nfps = \"24\"", "run.toml:7: data.fps: string \"24\", expected a number"),
        ("# A", "train = 3 # A", "run.toml:1: train: integer `3`, expected a section of keys"),
        ("height = 32", "height = 99999999999999999999", "run.toml:5: "),
    ] {
        let message = refused_with(from, to);
        assert!(message.starts_with(expected), "{to}: {message}");
        let line = to.lines().last().unwrap();
        assert!(message.contains(" | ") && message.contains(line), "{to} must be shown: {message}");
    }
    assert_eq!(refused(&["train.lr=fast"]), "--set train.lr=fast: train.lr: string \"fast\", expected a number");
    assert!(refused(&["run.out=2024"]).contains("run.out: integer `2024`, expected a string"));
    assert!(refused(&["train.betas=[0.9, 0.95, 0.99]"]).contains("3 values, expected 2"));
}

#[test]
fn missing_keys_and_sections_are_named() {
    assert!(refused_with("height = 32\n", "").starts_with("run.toml:2: [data] has no `height`, which has no default"));
    let no_model = &MINIMAL[..MINIMAL.find("[model]").unwrap()];
    let message = refusal!(Config, parse(no_model, &[]));
    assert!(message.starts_with("run.toml") && message.contains("no section [model]"), "{message}");
    // An example stands below, which mends the file.
    let lines: Vec<&str> = message.lines().skip(1).map(str::trim).collect();
    assert_eq!(lines[0], "[model]");
    parse(&format!("{no_model}{}", lines.join("\n").replace("[2, 8, 8]", "[1, 8, 8]")), &[]).unwrap();
    let message = refusal!(Config, parse("", &[]));
    assert!(message.contains("no section [data]") && message.contains("\n  path = \"clips\""), "{message}");
}

#[test]
fn text_that_is_not_toml_names_the_line() {
    for (text, line) in [("[data\npath = 1", 1), ("[data]\npath = \n", 2), ("[data]\npath = \"a\"\npath = \"b\"", 3)] {
        let message = refusal!(Config, parse(text, &[]));
        assert!(message.starts_with(&format!("run.toml:{line}: ")), "{message}");
    }
}

#[test]
fn malformed_overrides_are_refused() {
    for (set, expected) in [
        ("train.lr", "written section.key=value"),
        ("=3", "written section.key=value"),
        (".lr=3", "written section.key=value"),
        ("train..lr=3", "written section.key=value"),
        ("train.=3", "written section.key=value"),
        ("", "written section.key=value"),
        ("train.lr=", "has no value"),
        ("train.lr= ", "has no value"),
        ("data.path.deeper=3", "path is no section"),
        ("train.lr.deeper=3", "train.lr"),
        ("train.steps=1\nbatch = 2", "train.steps: string"),
        ("train=3", "expected a section of keys"),
        ("train.steps=☃", "expected a whole number"),
    ] {
        let message = refused(&[set]);
        assert!(message.starts_with(&format!("--set {set}: ")) && message.contains(expected), "{set}: {message}");
    }
    // Of several, the right one is blamed, behind multi-byte text too.
    let message = parse(&MINIMAL.replace("clips", "klîps ☃"), &["train.lr=1", "train.steps=x", "train.ema=0"]);
    assert!(message.unwrap_err().to_string().starts_with("--set train.steps=x: "));
}

#[test]
fn values_that_are_not_allowed_name_key_value_and_rule() {
    for (set, expected) in [
        ("data.frames=0", "data.frames = 0: must be in 1..="),
        ("data.height=0", "data.height = 0"),
        ("data.width=9999999", "data.width = 9999999"),
        ("data.stride=0", "data.stride = 0"),
        ("data.fps=0", "data.fps = 0.0: must be above 0"),
        ("data.fps=nan", "data.fps = NaN"),
        ("data.prefetch=0", "data.prefetch = 0: must be in 1..=1024"),
        ("data.path=\"\"", "data.path = \"\""),
        ("data.heldout=\"\"", "data.heldout = \"\""),
        ("run.out=\"\"", "run.out = \"\""),
        ("run.seed=18446744073709551615", "run.seed = 18446744073709551615: must be below 2^63"),
        ("model.patch_size=[0,8,8]", "model.patch_size = [0, 8, 8]: must be three sizes"),
        ("model.patch_size=[3,8,8]", "3 must divide data.frames = 8"),
        ("model.patch_size=[1,5,8]", "5 must divide data.height = 32"),
        ("model.patch_size=[1,8,5]", "5 must divide data.width = 48"),
        ("model.num_attention_heads=0", "model.num_attention_heads = 0"),
        ("model.attention_head_dim=12", "model.attention_head_dim = 12: must be a multiple of 8"),
        ("model.attention_head_dim=264", "model.attention_head_dim = 264"),
        ("model.attention_head_dim=0", "model.attention_head_dim = 0"),
        ("model.num_layers=0", "model.num_layers = 0"),
        ("model.ffn_dim=0", "model.ffn_dim = 0"),
        ("model.freq_dim=7", "model.freq_dim = 7: must be even"),
        ("model.freq_dim=0", "model.freq_dim = 0"),
        ("model.num_classes=10", "model.num_classes = 10: needs labels"),
        ("data.label=folder", "model.num_classes = 0: must be the number of class folders"),
        ("model.from=folder", "model.from = \"folder\": is the whole of [model]"),
        ("diffusion.logit_mean=inf", "diffusion.logit_mean = inf"),
        ("diffusion.logit_std=0", "diffusion.logit_std = 0.0: must be above 0"),
        ("diffusion.shift=-1", "diffusion.shift = -1.0: must be at least 0"),
        ("diffusion.shift_base_tokens=0", "diffusion.shift_base_tokens = 0"),
        ("diffusion.clamp=0", "diffusion.clamp = 0.0: must be above 0"),
        ("diffusion.clamp=nan", "diffusion.clamp = NaN"),
        ("diffusion.caption_dropout=-1", "diffusion.caption_dropout = -1.0: must be in 0..=1"),
        ("sample.prompts=[\"a fox\"]", "sample.prompts = [\"a fox\"]: needs a text encoder"),
        ("sample.negative=blurred", "sample.negative = \"blurred\": needs a text encoder"),
        ("text.from=\"\"", "text.from = \"\": must name a text encoder's folder"),
        ("text.cache=\"\"", "text.cache = \"\": must name a folder"),
        ("diffusion.label_dropout=1.5", "diffusion.label_dropout = 1.5: must be in 0..=1"),
        ("train.steps=0", "train.steps = 0"),
        ("train.batch=0", "train.batch = 0"),
        ("train.accumulate=0", "train.accumulate = 0"),
        ("train.lr=-1", "train.lr = -1.0"),
        ("train.lr=nan", "train.lr = NaN"),
        ("train.betas=[0.9,1]", "train.betas = [0.9, 1.0]: must be two numbers"),
        ("train.betas=[-0.1,0.9]", "train.betas"),
        ("train.eps=0", "train.eps = 0.0"),
        ("train.weight_decay=-1", "train.weight_decay"),
        ("train.clip=inf", "train.clip = inf"),
        ("train.ema=1", "train.ema = 1.0"),
        ("train.tile=9999999", "train.tile = 9999999"),
        ("train.keep=0", "train.keep = 0"),
        ("train.warmup=9999999999999999", "train.warmup"),
        ("train.sample_every=9999999999999999", "train.sample_every"),
        ("parallel.ranks=0", "parallel.ranks = 0"),
        ("parallel.data=0", "parallel.data = 0"),
        ("parallel={ranks=4, data=3}", "parallel.data = 3: must divide parallel.ranks = 4"),
        ("stash.folder=\"\"", "stash.folder = \"\": must name a folder"),
        ("parallel.head_groups=0", "parallel.head_groups = 0: must be in 1..="),
        ("parallel.zero=4", "parallel.zero = 4: must be a stage of ZeRO, 0 (none) to 3"),
        ("parallel={ranks=12, data=2, ring=4}", "parallel.ring = 4: must divide the 6 ranks of a sequence"),
        ("sample.steps=0", "sample.steps = 0"),
        ("sample.count=0", "sample.count = 0"),
        ("sample.guidance=inf", "sample.guidance = inf"),
        ("sample.guidance_interval=[0.5,0.1]", "sample.guidance_interval = [0.5, 0.1]"),
        ("sample.guidance_interval=[0,nan]", "sample.guidance_interval"),
        ("sample.shift=-1", "sample.shift"),
    ] {
        let message = refused(&[set]);
        assert!(message.contains(expected), "{set}: {message}");
    }
    // In the file, the line is named.
    let message = refused_with("num_layers = 2", "num_layers = 0");
    assert_eq!(message, "run.toml:12: model.num_layers = 0: must be in 1..=10000\n  12 | num_layers = 0");
}

#[test]
fn dtype_is_bf16_on_a_gpu_unless_it_is_given() {
    let dtype = |sets: &[&str]| {
        let sets: Vec<String> = sets.iter().map(|set| set.to_string()).collect();
        let config = parse(MINIMAL, &sets.iter().map(String::as_str).collect::<Vec<_>>()).unwrap();
        let again = RunConfig::parse(&config.to_toml().unwrap(), Path::new("config.toml"), &[]).unwrap();
        assert_eq!(again.train.dtype, config.train.dtype, "what is written says it");
        config.train.dtype
    };
    assert_eq!(dtype(&[]), Compute::F32);
    assert_eq!(dtype(&["train.device=cuda"]), Compute::Bf16);
    assert_eq!(dtype(&["train.device=cuda", "train.dtype=f32"]), Compute::F32);
    assert_eq!(dtype(&["train.dtype=bf16"]), Compute::Bf16);
}

#[test]
fn check_also_serves_configs_made_by_code() {
    let mut config = parse(MINIMAL, &[]).unwrap();
    config.parallel = Parallel { ranks: 6, data: 4, ..Parallel::default() };
    assert_eq!(refusal!(Config, config.check()), "parallel.data = 4: must divide parallel.ranks = 6");
    config.parallel.data = 3;
    config.check().unwrap();
}

#[test]
fn a_model_from_a_folder_stands_alone() {
    let text = &MINIMAL[..MINIMAL.find("patch_size").unwrap()];
    let config = parse(text, &["model.from=hf://owner/name/transformer"]).unwrap();
    assert_eq!(config.model.from.as_deref(), Some("hf://owner/name/transformer"));
    // The patch is the checkpoint's and checked with it; labels too.
    parse(text, &["model.from=folder", "data.label=folder"]).unwrap();
}

#[test]
fn a_missing_file_is_named() {
    let error = RunConfig::load(Path::new("no/such/run.toml"), &[]).unwrap_err().to_string();
    assert!(error.starts_with("no/such/run.toml: No such file"), "{error}");
    let whole = std::env::current_dir().unwrap().join("no/such/run.toml");
    assert!(error.ends_with(&format!("; that is {}", whole.display())), "{error}");
}

fn floats() -> impl Strategy<Value = f64> {
    prop_oneof![Just(0.0), 1e-12..1.0, 1.0..1e12]
}

prop_compose! {
    fn data()(
        path in "[a-zA-Z0-9 \"'\\\\\n☃=#.]{1,12}", heldout in proptest::option::of("[ -}][ -~]{0,8}"), sizes in [1..9usize, 1..9, 1..9],
        stride in 1..5usize, fps in proptest::option::of(1e-3..1e3f64), random in any::<bool>(), flip in any::<bool>(),
        deinterlace in any::<bool>(), tonemap in any::<bool>(), prefetch in 1..=1024usize,
    ) -> Data {
        let crop = if random { Crop::Random } else { Crop::Center };
        let label = Label::None;
        let caption_prefix = heldout.clone().unwrap_or_default();
        let data = Data { heldout, stride, fps, crop, flip, label, deinterlace, tonemap, prefetch, ..Data::new(path, sizes) };
        Data { repeats: stride, caption_prefix, ..data }
    }
}

prop_compose! {
    fn stash()(
        disk in any::<bool>(), folder in proptest::option::of("[a-z/\"]{1,9}"), bf16 in any::<bool>(), keep_attention in any::<bool>(),
    ) -> StashOptions {
        let place = if disk { Place::Disk } else { Place::Ram };
        let dtype = if bf16 { Compute::Bf16 } else { Compute::F32 };
        options!(StashOptions::default(); place, folder: folder.map(Into::into), dtype, keep_attention)
    }
}

prop_compose! {
    fn config()(
        data in data(), seed in 0..=i64::MAX as u64, out in "[a-z/\"\\\\é]{1,9}", heads in 1..99usize, dim in 1..=32usize,
        patch in [1..4usize, 1..4, 1..4], x in any::<bool>(), uniform in any::<bool>(), bf16 in any::<bool>(),
        stash in stash(), n in [floats(), floats(), floats(), floats(), floats()], unit in [0.0..1.0, 0.0..1.0, 0.0..1.0f64],
        steps in 1..1u64 << 40, cosine in any::<bool>(), mesh in [1..9usize, 1..9], kind in 0..4usize,
    ) -> RunConfig {
        let [t, h, w] = patch;
        let data = Data { frames: data.frames * t, height: data.height * h, width: data.width * w, ..data };
        let model = Model {
            patch_size: patch, num_attention_heads: heads, attention_head_dim: 8 * dim, num_layers: heads, ffn_dim: dim,
            ..Model::default()
        };
        let diffusion = options!(
            DiffusionOptions::default();
            prediction: if x { Prediction::X } else { Prediction::V },
            timesteps: if uniform { Timesteps::Uniform } else { Timesteps::LogitNormal },
            logit_mean: -n[0], logit_std: n[1] + 1e-9, shift: n[2], label_dropout: unit[0],
            caption_dropout: unit[1]
        );
        let train = Train {
            steps, lr: n[3], weight_decay: n[4], betas: [unit[1], unit[2]], warmup: steps / 2, tile: dim,
            dtype: if bf16 { Compute::Bf16 } else { Compute::F32 },
            schedule: if cosine { Schedule::Cosine } else { Schedule::Constant }, ..Train::default()
        };
        let sampler = [SamplerKind::Euler, SamplerKind::Heun, SamplerKind::Dpmpp, SamplerKind::Unipc][kind];
        let low = unit[0].min(unit[1]);
        let (guidance, shift) = (x.then_some(n[0] - n[1]), bf16.then_some(n[2]));
        let guidance_interval = [low, unit[1].max(low)];
        let sample = Sample { sampler: Some(sampler), guidance, shift, guidance_interval,
            prompts: vec![out.clone(); kind], negative: x.then(String::new), ..Sample::default() };
        let parallel =
            Parallel { ranks: mesh[0] * mesh[1], data: mesh[0], ring: mesh[1], head_groups: heads, zero: kind };
        let by_hand = Data { frames: 0, height: 0, width: 0, buckets: vec![[w, h, t], [2 * w, h, 3 * t]], ..data.clone() };
        let by_area = Data { buckets: vec![], resolutions: vec![8, 64], frame_counts: vec![t, 2 * t], ..by_hand.clone() };
        let mut data = DataSections::from(if kind == 1 { by_hand.clone() } else { data });
        [by_hand, by_area].into_iter().take(kind % 3).for_each(|section| data.push(section));
        let vae = Vae { cache: Some("some/folder".into()), dtype: train.dtype, ..Vae::default() };
        let text = Text { from: Some("an encoder".into()), dtype: train.dtype, ..Text::default() };
        let (run, lora) = (Run { out: out.into(), seed }, Lora::default());
        RunConfig { run, data, model, lora, vae, text, diffusion, train, parallel, stash, sample }
    }
}

proptest! {
    #[test]
    fn toml_round_trips(config in config()) {
        config.check().unwrap();
        let text = config.to_toml().unwrap();
        prop_assert_eq!(parse(&text, &[]).unwrap(), config);
    }

    /// Whatever stands in a file or an override: an answer, never a panic.
    #[test]
    fn no_text_makes_it_panic(text in "[a-z\\[\\]=.\"'0-9 \n☃#{},-]{0,60}", set in "[a-z.=\\[\\]\"0-9 \n☃]{0,20}") {
        let _ = parse(&text, &[]);
        let _ = parse(&format!("{MINIMAL}{text}"), &[&set]);
    }
}

#[test]
fn a_wrong_letter_anywhere_still_finds_the_key() {
    for (section, keys) in sections() {
        for key in keys.iter().filter(|key| key.len() >= 4) {
            for place in 0..key.len() {
                let typed = format!("{}0{}", &key[..place], &key[place + 1..]);
                let message = refused(&[&format!("{section}.{typed}=1")]);
                assert!(message.ends_with(&format!("in [{section}]; the nearest known is `{key}`")), "{message}");
            }
        }
    }
}

/// Sections behind `[run]`, as `MINIMAL` has them, with `data` in place of its own.
fn with_data(data: &str) -> String {
    format!("{data}\n[model]{}", MINIMAL.split_once("[model]").unwrap().1)
}

#[test]
fn folders_repeat_and_have_sizes_of_their_own() {
    let text = with_data(
        "[[data]]\npath = \"videos\"\nbuckets = [[48, 32, 8], [32, 48, 8]]\nfps = 16\nrepeats = 3\n\
         [[data]]\npath = \"pictures\"\nresolutions = [64]\nframe_counts = [8, 16]\ncaption_prefix = \"a photo, \"\n",
    );
    let config = parse(&text, &[]).unwrap();
    let sections: Vec<&Data> = config.data.iter().collect();
    assert_eq!((sections[0].repeats, sections[0].fps, sections[1].repeats), (3, Some(16.0), 1));
    assert_eq!((&*sections[0].buckets, &*sections[1].frame_counts), (&[[48, 32, 8], [32, 48, 8]][..], &[8, 16][..]));
    assert!(!config.data.has_one_size() && parse(MINIMAL, &[]).unwrap().data.has_one_size());
    assert_eq!(parse(&config.to_toml().unwrap(), &[]).unwrap(), config);
    let set = parse(&text, &["data.2.path=photos", "data.1.repeats=2"]).unwrap();
    assert_eq!(set.data.iter().map(|section| &*section.path).collect::<Vec<_>>(), ["videos", "photos"]);
    assert_eq!(set.data.repeats, 2);
}

#[test]
fn bad_folders_and_sizes_are_one_error_with_the_line() {
    let one = "[[data]]\npath = \"a\"\nframes = 8\nheight = 32\nwidth = 48\n";
    for (second, says) in [
        ("repeats = 0", ":10: data.repeats = 0: must be in 1..="),
        ("class = \"cat\"\nlabel = \"folder\"", ":10: data.class = \"cat\": is the class of all clips, and data.label"),
        ("prefetch = 9", ":10: data.prefetch = 9: is the run's"),
        ("hieght = 3", ":10: unknown key `hieght` in [data]; the nearest known is `height`"),
        ("stride = 1.5", ":10: data.stride: floating point `1.5`"),
        ("buckets = [[48, 32, 8]]", ":8: data.frames = 8: must be left out where data.buckets"),
        ("resolutions = [64]", ":8: data.frames = 8: must be left out where data.resolutions"),
        ("frame_counts = [8]", ":10: data.frame_counts = [8]: goes with data.resolutions"),
    ] {
        let text = with_data(&format!("{one}[[data]]\npath = \"b\"\nframes = 8\n{second}\nheight = 32\nwidth = 48\n"));
        // The second section begins on line 6; its key under test stands behind path and frames.
        let message = refusal!(Config, parse(&text, &[]));
        let says = says.replace(":10:", ":9:");
        assert!(message.contains(&says), "{second}: {message}");
    }
    for (sizes, says) in [
        ("buckets = []", "data.frames = 0: must be in"),
        ("buckets = [[48, 32, 8, 1]]", "data.buckets: 4 values, expected 3"),
        ("buckets = [[48, 32]]", "data.buckets"),
        ("buckets = [[48, 30, 8]]", "the nearest to 48x30x8 is 48x32x8 (width x height x frames)"),
        ("buckets = [[48, 32, 8]]\nresolutions = [64]", "data.resolutions = [64]: must be left out"),
        ("resolutions = [64]", "data.frame_counts = []: must be the frames that clips may have, such as"),
        ("resolutions = [64]\nframe_counts = [1, 7]", "the nearest to"),
        ("resolutions = [4]\nframe_counts = [8]", "4 is too small: for aspect ratios of 0.5 to 2"),
        ("resolutions = [64]\nframe_counts = [8]\naspects = 0", "data.aspects = 0"),
        ("resolutions = [64]\nframe_counts = [8]\naspect_range = [2, 1]", "data.aspect_range = [2.0, 1.0]"),
        ("frames = 8\nheight = 32", "has no `width`"),
        ("class = \"\"\nframes = 8\nheight = 32\nwidth = 48", "data.class = \"\""),
        (
            "class = \"cat\"\nframes = 8\nheight = 32\nwidth = 48",
            "model.num_classes = 0: must be the number of classes: data.class",
        ),
    ] {
        let message = refusal!(
            Config,
            parse(&with_data(&format!("[data]\npath = \"a\"\n{sizes}\n")), &["model.patch_size=[2, 8, 8]"])
        );
        assert!(message.contains(says), "{sizes}: {message}");
    }
    let message = refusal!(Config, parse(&with_data(one), &["data.path=b"]));
    assert!(message.contains("data is repeated: data.1.key is the first"), "{message}");
}
