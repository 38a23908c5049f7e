//! What is said of LoRA files that programs read differently, of those for other networks, and of what is no LoRA: a
//! warning or an error each, with the keys it is of.

use super::command::{fail, longreel, text};
use super::{CASES, Named, changed, golden, refused, values};
use longreel::files::write_tensors_with;
use std::fs;
use std::path::{Path, PathBuf};
use tempfile::TempDir;

/// The warnings of `longreel lora show`, which must succeed.
fn warnings(path: &Path) -> Vec<String> {
    let (ok, _, said) = longreel(&["lora", "show", text(path)]);
    assert!(ok, "{said}");
    said.lines().filter_map(|line| Some(line.split_once(" WARN ")?.1.to_owned())).collect()
}

/// A key's tensor of one value.
fn one(key: &str, value: f32) -> (String, Vec<usize>, Vec<f32>) {
    (key.to_owned(), vec![], vec![value])
}

/// Changes a golden file's tensors.
type Edit<'a> = &'a dyn Fn(&mut Named);

#[test]
fn scales_that_other_programs_take_differently_are_warnings() {
    for case in CASES {
        for form in ["diffusers", "comfy", "comfy_alpha", "kohya"] {
            let said = warnings(&golden(case).join(format!("{form}.safetensors")));
            // diffusers does not load alphas of text, time and head; see golden/lora/report.json.
            let outside = case == "t2v_everything" && ["comfy_alpha", "kohya"].contains(&form);
            assert_eq!(said.len(), usize::from(outside), "{case} {form}: {said:?}");
            let word = "condition_embedder.time_proj";
            assert!(!outside || said[0].contains("outside the blocks") && said[0].contains(word), "{said:?}");
        }
    }
    let under_diffusers: Edit = &|all| all.push(one("transformer.blocks.0.attn1.to_q.alpha", 4.0));
    let lacking: Edit = &|all| all.retain(|(key, ..)| key != "diffusion_model.blocks.0.self_attn.q.alpha");
    let of_the_head: Edit = &|all| all.push(one("diffusion_model.head.head.alpha", 2.0));
    for (case, form, edit, reason) in [
        ("t2v", "diffusers", under_diffusers, "has alpha tensors under diffusers' names, which diffusers refuses"),
        ("t2v_scaled", "comfy_alpha", lacking, "1 of 20 layers have no alpha; it is their rank"),
        ("t2v_everything", "comfy", of_the_head, "has alpha tensors of proj_out, outside the blocks"),
    ] {
        let (_dir, path) = changed(case, form, edit);
        let said = warnings(&path);
        assert!(said.iter().any(|said| said.contains(reason)), "{reason}: {said:?}");
        assert!(said.iter().all(|said| said.contains(text(&path))), "{said:?}");
    }
    // Scales that only the header tells, where ComfyUI does not look.
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("x.safetensors");
    let peft = r#"{"transformer.r": 4, "transformer.lora_alpha": 6}"#;
    for (metadata, reason) in [
        (&[("lora_adapter_metadata", peft)][..], "has settings of peft, but its names are not diffusers'"),
        (&[("ss_network_dim", "4"), ("ss_network_alpha", "1")], "its header says alpha 1 of rank 4"),
    ] {
        let metadata: Vec<_> = metadata.iter().map(|(key, value)| (*key, (*value).to_owned())).collect();
        write_tensors_with(&path, &metadata, values(&golden("t2v_scaled").join("comfy.safetensors"))).unwrap();
        let said = warnings(&path);
        assert!(said.len() == 1 && said[0].contains(reason), "{said:?}");
    }
}

#[test]
fn alphas_of_nothing_are_refused_by_name() {
    let query = "diffusion_model.blocks.0.self_attn.q";
    for (key, values, reason) in [
        (format!("{query}.alpha"), &[2.0, 2.0][..], "has 2 values; one is needed"),
        (format!("{query}.alpha"), &[f32::NAN], "is NaN"),
        (format!("{query}.lora_A.alpha"), &[2.0], "no layer of Wan"),
        ("diffusion_model.blocks.7.self_attn.q.alpha".into(), &[2.0], "blocks.7.attn1.to_q, but neither A nor B"),
        ("diffusion_model.blocks.0.norm3.alpha".into(), &[2.0], "no linear layers"),
        ("alpha".into(), &[2.0], "no layer of Wan"),
        ("network_alpha".into(), &[2.0], "no layer of Wan"),
    ] {
        let shape = vec![values.len()];
        let (_dir, path) = changed("t2v", "comfy", |all| all.push((key.clone(), shape, values.to_vec())));
        let said = refused(&path);
        let named = said.contains(&key) || reason.starts_with("blocks.7.");
        assert!(said.contains(reason) && named, "{key}: {said}");
    }
}

/// A LoRA of these layers alone, each mapping 4 features to 4.
fn lora_of(layers: &[&str]) -> (TempDir, PathBuf) {
    changed("t2v", "comfy", |all| {
        all.clear();
        for layer in layers {
            all.push((format!("{layer}.lora_down.weight"), vec![2, 4], vec![1.0; 8]));
            all.push((format!("{layer}.lora_up.weight"), vec![4, 2], vec![1.0; 8]));
        }
    })
}

#[test]
fn a_lora_for_another_kind_of_model_is_known_as_one_and_its_keys_are_named() {
    for (layers, listed) in [
        (
            &["transformer.single_transformer_blocks.0.attn.to_q", "transformer.single_transformer_blocks.7.attn.to_q"]
                [..],
            "transformer.single_transformer_blocks.{N}.attn.to_q.lora_down.weight (2 blocks)",
        ),
        (&["lora_unet_double_blocks_3_img_attn_qkv"], "lora_unet_double_blocks_3_img_attn_qkv.lora_up.weight"),
        (
            &["lora_te1_text_model_encoder_layers_0_mlp_fc1", "lora_te1_text_model_encoder_layers_1_mlp_fc1"],
            "lora_te1_text_model_encoder_layers_{N}_mlp_fc1.lora_up.weight (2 blocks)",
        ),
    ] {
        let (_dir, path) = lora_of(layers);
        let said = refused(&path);
        assert!(said.contains("a LoRA for another kind of model") && said.contains(listed), "{said}");
        assert!(said.contains(&format!("none of its {} keys", 2 * layers.len())), "{said}");
        for command in [&["show"][..], &["lora", "show"]] {
            let said = fail(&[command, &[text(&path)]].concat());
            assert!(said.contains(listed), "{command:?}: {said}");
        }
    }
    // One of two networks at once: what is Wan's is not taken alone.
    let (_dir, path) = lora_of(&["diffusion_model.blocks.0.self_attn.q", "lora_te1_text_model_encoder_layers_0_fc"]);
    let said = refused(&path);
    assert!(said.contains("2 keys of no layer of Wan's transformer: lora_te1_text_model"), "{said}");
}

#[test]
fn a_file_of_whole_changes_alone_and_a_folder_are_known_for_what_they_are() {
    let (_dir, path) = changed("t2v", "comfy", |all| {
        *all = vec![one("diffusion_model.blocks.0.norm3.diff", 1.0), one("diffusion_model.head.head.diff_b", 1.0)];
    });
    let dir = TempDir::new().unwrap();
    let out = dir.path().join("out.safetensors");
    for command in [&["show"][..], &["lora", "show"], &["lora", "convert", "-o", text(&out)]] {
        let said = fail(&[command, &[text(&path)]].concat());
        assert!(said.contains("2 keys with whole changes") && said.contains("head.head.diff_b"), "{command:?}: {said}");
    }
    fs::copy(golden("t2v").join("comfy.safetensors"), dir.path().join("lora.safetensors")).unwrap();
    let said = fail(&["lora", "show", text(dir.path())]);
    assert!(said.contains("a folder without adapter_model.safetensors") && said.contains("name the LoRA"), "{said}");
}
