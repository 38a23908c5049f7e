//! `plan --memory`: the least change of settings that fits, and what it says where none does.

use super::*;

const GIB: f64 = (1u64 << 30) as f64;

/// A plan's need for one rank.
fn need(place: &Place, more: &[&str]) -> u64 {
    planned(place, &[MEDIUM, more].concat())["per_rank"].as_u64().unwrap()
}

/// The settings of a change.
fn settings(change: &Value) -> Vec<&str> {
    change["settings"].as_array().unwrap().iter().map(|setting| setting.as_str().unwrap()).collect()
}

/// A config of Wan 2.1 1.3B by its config.json, on 21 frames of latents of 480 x 832 pixels.
fn wan() -> Place {
    let place = Place::videos();
    fs::create_dir(place.path("wan")).unwrap();
    let network = r#"{"_class_name": "WanTransformer3DModel", "attention_head_dim": 128, "cross_attn_norm": true, "eps": 1e-6,
        "ffn_dim": 8960, "freq_dim": 256, "in_channels": 16, "num_attention_heads": 12, "num_layers": 30, "out_channels": 16,
        "patch_size": [1, 2, 2], "qk_norm": "rms_norm_across_heads", "rope_max_seq_len": 1024, "text_dim": 4096}"#;
    fs::write(place.path("wan/config.json"), network).unwrap();
    let from = place.path("wan").display().to_string();
    let data = "[data]\npath = \"clips\"\nframes = 21\nheight = 60\nwidth = 104\n";
    fs::write(place.path("config.toml"), format!("{data}[model]\nfrom = {from:?}\n")).unwrap();
    place
}

#[test]
fn wan_fits_into_24_gib_with_its_moments_on_disk() {
    let place = wan();
    let found = planned(&place, &["--memory=24GiB"]);
    assert_eq!(found["fits"], false);
    let least = &found["least_change"];
    assert_eq!(settings(least), ["train.moments=disk"]);
    let moments = found["parameters"].as_f64().unwrap() * 12.0;
    let (before, after) = (found["per_rank"].as_f64().unwrap(), least["per_rank"].as_f64().unwrap());
    assert!(before - after <= moments && after <= 24.0 * GIB, "{before} to {after}");
    // Alone, more ranks do it with ZeRO: four with its second stage are the fewest.
    let ranks = &found["with_more_ranks"];
    assert_eq!(settings(ranks), ["parallel.zero=2", "parallel.ranks=4"]);
    // Eight are the issue of a machine each, or of one with 116 GiB.
    let eight = planned(&place, &["--ranks=8", "parallel.zero=3"]);
    let gib = |key: &str| (eight[key].as_f64().unwrap() / GIB * 10.0).round() / 10.0;
    assert_eq!([gib("per_rank"), gib("process")], [14.4, 115.6]);
    let words = text(&succeed(&mut plan(&place, &["--memory=24GiB"])).stdout);
    assert!(words.contains("the least change that fits:\n  --set train.moments=disk\n  needs "), "{words}");
    assert!(words.contains("\n  --set parallel.zero=2 --set parallel.ranks=4\n  needs "), "{words}");
    assert!(words.contains(" a rank, ") && words.contains(" if all 4 ranks are on one machine\n"), "{words}");
}

#[test]
fn a_bf16_stash_never_needs_more_than_an_f32_one() {
    let place = Place::videos();
    // Of two blocks both are read when backward begins: there is nothing to gain.
    for layers in ["3", "4", "6", "12", "30"] {
        let layers = format!("model.num_layers={layers}");
        for more in
            [&[][..], &["train.dtype=bf16"], &["stash.keep_attention=false"], &["model.ffn_dim=4096"], &["--ranks=4"]]
        {
            let with = |dtype| need(&place, &[&[layers.as_str(), dtype], more].concat());
            let [f32, bf16] = ["stash.dtype=f32", "stash.dtype=bf16"].map(with);
            // Four MiB are what its threads round in.
            assert!(bf16 <= f32 + (4 << 20), "{layers} {more:?}: bf16 {bf16}, f32 {f32}");
        }
    }
    // Where the peak is a checkpoint, the stash holds nothing.
    let wan = wan();
    let with = |dtype: &str| planned(&wan, &["data.frames=8", dtype]);
    let [f32, bf16] = ["stash.dtype=f32", "stash.dtype=bf16"].map(with);
    assert_eq!(f32["peak"], "checkpoint, on rank 0");
    let [f32, bf16] = [f32, bf16].map(|plan| plan["per_rank"].as_u64().unwrap());
    assert!(bf16 <= f32 + (4 << 20), "bf16 {bf16}, f32 {f32}");
}

#[test]
fn a_change_fits_and_none_of_its_settings_is_in_vain() {
    let place = Place::videos();
    let deep = ["model.num_layers=12", "train.batch=2"];
    let now = need(&place, &deep);
    let mut seen = vec![];
    for share in [95, 85, 75, 65, 55, 45] {
        let memory = now / 100 * share;
        let plan = planned(&place, &[MEDIUM, &deep, &[&format!("--memory={memory}")]].concat());
        let least = &plan["least_change"];
        if least.is_null() {
            assert!(
                plan["smallest"]["per_rank"].as_u64().unwrap() > memory && !plan["with_more_ranks"].is_null(),
                "{plan}"
            );
            seen.push(vec![]);
            continue;
        }
        let found = settings(least);
        // They can be pasted.
        assert_eq!(need(&place, &[&deep, &found[..]].concat()), least["per_rank"].as_u64().unwrap());
        assert!(least["per_rank"].as_u64().unwrap() <= memory, "{share} %: {least}");
        for without in &found {
            // The two of a smaller batch belong together.
            if without.starts_with("train.batch") || without.starts_with("train.accumulate") {
                continue;
            }
            let rest: Vec<&str> = found.iter().copied().filter(|setting| setting != without).collect();
            assert!(need(&place, &[&deep, &rest[..]].concat()) > memory, "{share} %: {found:?} without {without}");
        }
        seen.push(found.iter().map(|setting| (*setting).to_owned()).collect());
    }
    // What costs no time comes first; of a single setting that is enough none is joined by another.
    assert_eq!(seen[0], ["train.batch=1", "train.accumulate=2"]);
    let last = seen.iter().rfind(|settings| !settings.is_empty()).unwrap();
    assert!(last.len() >= 3, "{seen:?}");
}

#[test]
fn where_no_clip_fits_the_least_need_is_told_with_its_settings() {
    let place = Place::videos();
    let error = fail(&mut plan(&place, &[MEDIUM, &["--memory=1MiB"]].concat()));
    assert!(error.contains(" needs ") && error.contains(" at the least, with --set "), "{error}");
    assert!(error.contains("and 128 ranks do not fit either"), "{error}");
    // This clip does not fit with one rank, a shorter one does, and so does this one on more ranks.
    let long = [MEDIUM, &["data.frames=64", "--memory=300MiB"]].concat();
    let words = text(&succeed(&mut plan(&place, &long)).stdout);
    assert!(
        words.contains("no setting makes this clip fit with these ranks; the least need is with\n  --set "),
        "{words}"
    );
    assert!(words.contains("with more ranks, each of which has 0.293 GiB:\n  --set "), "{words}");
    assert!(words.contains("longest clip of this height and width that fits with other settings: "), "{words}");
}
