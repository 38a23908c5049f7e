//! What a plan says of adapters over a frozen network, against a rehearsal and against counts.

use super::{MEDIUM, check, large_clips, part, planned, rehearsed};
use crate::train::Place;
use candle_core::DType;
use longreel::model::folder::write_folder;
use longreel::model::{Model, ModelConfig};
use std::fs;

/// Blocks of 3 million parameters, so that their bytes are beyond the margin, and 2048 tokens.
fn network() -> ModelConfig {
    ModelConfig {
        patch_size: [1, 8, 8],
        num_attention_heads: 16,
        attention_head_dim: 32,
        in_channels: 3,
        out_channels: 3,
        text_dim: 0,
        freq_dim: 64,
        ffn_dim: 2048,
        num_layers: 6,
        ..ModelConfig::default()
    }
}

/// A place whose config trains adapters over such a network.
fn place() -> Place {
    let place = large_clips();
    let config = network();
    let model = Model::init(&config, DType::F32, false, 1).unwrap();
    let tensors = model.units.iter().flat_map(|unit| {
        unit.entries.iter().map(|entry| {
            let values = unit.value.narrow(0, entry.range.start, entry.range.len()).unwrap();
            (entry.name.clone(), entry.shape.clone(), values.to_vec1::<f32>().unwrap())
        })
    });
    write_folder(&place.path("base"), &config.to_json(), tensors).unwrap();
    let text = fs::read_to_string(place.path("config.toml")).unwrap();
    let (before, rest) = text.split_once("[model]").unwrap();
    let (_, after) = rest.split_once("[train]").unwrap();
    let text = format!("{before}[model]\nfrom = \"{}\"\n[train]{after}", place.path("base").display());
    fs::write(place.path("config.toml"), text).unwrap();
    place
}

/// The keys of MEDIUM that are not the network's, and rank 16.
fn case<'a>(more: &[&'a str]) -> Vec<&'a str> {
    let medium = MEDIUM.iter().copied().filter(|key| !key.starts_with("model."));
    medium.chain(["lora.rank=16"]).chain(more.iter().copied()).collect()
}

#[test]
fn a_rehearsal_of_adapters_has_what_the_plan_says() {
    let place = place();
    for more in [&["train.dtype=bf16"][..], &[], &["train.dtype=bf16", "--ranks=2", "parallel.zero=3"]] {
        let case = case(more);
        for (what, both) in rehearsed(&place, &case) {
            // The plan counts what a tile keeps for its weights' gradients, which frozen layers do not: it says some
            // MiB too much. Two ranks' kept panels are the process's, and both are seldom at their peak at once.
            check(&case, &what, both, if more.len() > 1 { 32.0 } else { 16.0 });
        }
    }
}

#[test]
fn a_frozen_network_takes_its_bytes_once_and_adapters_all_else() {
    let (place, network) = (place(), network());
    let parts = |more: &[&str]| {
        let plan = planned(&place, &case(more));
        let peak = plan["phases"][0]["parts"].clone();
        let part = |name: &str| peak[name].as_u64().unwrap_or_default();
        let of =
            ["frozen network, its share", "parameters", "gradients", "optimizer moments", "moving average"].map(part);
        (of, plan["trained"].as_u64().unwrap(), plan["parameters"].as_u64().unwrap())
    };
    let all = Model::count_of(&network) as u64;
    let matrices = 6 * (4 * 512 * 512 + 2 * 512 * 2048); // of the blocks
    let trained = 6 * 16 * (4 * (512 + 512) + 2 * (512 + 2048));
    for (more, frozen) in [
        (&["train.dtype=f32"][..], 4 * all),
        (&["train.dtype=bf16"], 4 * all - 2 * matrices),
        (&["train.dtype=bf16", "--ranks=2"], (4 * all - 2 * matrices) / 2),
    ] {
        let (of, adapters, parameters) = parts(more);
        assert_eq!(of, [frozen, 4 * trained, 4 * trained, 8 * trained, 4 * trained], "{more:?}");
        assert_eq!((adapters, parameters), (trained, all + trained));
    }
    let (of, ..) = parts(&["lora.targets=[\"attn1.to_q\"]"]);
    assert_eq!(of[1], 4 * 6 * 16 * (512 + 512));
}

/// Muon's matrices are then the adapters': their momentum, and the room that making them orthogonal takes.
#[test]
fn muon_needs_what_adapters_take_and_nothing_for_the_frozen_network() {
    let place = place();
    let muon = |more: &[&str]| planned(&place, &case(&[&["train.optimizer=muon"], more].concat()));
    let (block, matrix, square) = (16 * (4 * (512 + 512) + 2 * (512 + 2048)), 16 * 2048, 16 * 16);
    for (more, ranks) in [(&[][..], 1), (&["--ranks=2", "parallel.zero=1"], 2)] {
        let plan = muon(more);
        assert_eq!(part(&plan, "optimizer moments"), 4 * 6 * block / ranks, "{more:?}");
        let room = 4 * (5 * block / ranks + 2 * matrix + 3 * square);
        assert_eq!(part(&plan, "matrices being orthogonalised"), room, "{more:?}");
    }
    // The head's adapter is AdamW's, with both moments: Muon takes matrices of blocks.
    let targets = "lora.targets=[\"blocks.*\", \"proj_out\"]";
    let more = part(&muon(&[targets]), "optimizer moments") - part(&muon(&[]), "optimizer moments");
    assert_eq!(more, 8 * 16 * (512 + 3 * 8 * 8));
}
