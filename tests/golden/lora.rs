//! `longreel forward --lora` against diffusers and peft: sample, loss and the gradients of every A and B, on 1, 2 and 3
//! ranks, for scales other than 1, ranks and scales by layer, some layers only, and layers outside of blocks.

use super::*;

/// Bound on the norm of the difference over the norm, tensor by tensor.
const CLOSE: f64 = 2e-6;

/// Runs a case with the adapters of `file`, over the transformer and inputs of the case `base`.
fn adapted(base: &str, name: &str, file: &str, flags: &[&str]) -> BTreeMap<String, Values> {
    let dir = TempDir::new().unwrap();
    let (base, out) = (case("lora").join(base), dir.path().join("out"));
    let (model, inputs, lora) =
        (base.join("transformer"), base.join("inputs.safetensors"), case("lora").join(name).join(file));
    let mut args = vec![model.to_str().unwrap(), inputs.to_str().unwrap(), "-o", out.to_str().unwrap()];
    args.extend(["--lora", lora.to_str().unwrap()]);
    args.extend(flags);
    let (ok, said) = forward(&args);
    assert!(ok, "{name} {flags:?}: {said}");
    read(&out)
}

fn agrees(base: &str, name: &str) {
    let mut want = read(&case("lora").join(name).join("expected.safetensors"));
    want.retain(|name, _| !name.starts_with("scale."));
    for ranks in ["1", "2", "3"] {
        let got = adapted(base, name, "diffusers.safetensors", &["--grads", "--ranks", ranks]);
        assert!(got.keys().eq(want.keys()), "{name}: {:?}\nare not\n{:?}", got.keys(), want.keys());
        let mut worst = ("", 0.0);
        for tensor in want.keys() {
            let off = error(&got, &want, [tensor.as_str()].into_iter());
            assert!(off <= CLOSE, "{name} on {ranks} ranks: {tensor} is off by {off:.1e}");
            if off > worst.1 {
                worst = (tensor, off);
            }
        }
        println!("{name} on {ranks} ranks: worst {} {:.1e}", worst.0, worst.1);
    }
}

#[test]
fn adapters_of_the_ten_linears_of_every_block() {
    agrees("t2v", "t2v");
}

#[test]
fn adapters_whose_alpha_is_not_their_rank() {
    agrees("t2v", "t2v_scaled");
}

#[test]
fn adapters_of_ranks_and_scales_by_layer() {
    agrees("t2v", "t2v_mixed");
}

#[test]
fn adapters_of_attention_alone() {
    agrees("t2v", "t2v_attention_only");
}

#[test]
fn adapters_of_text_time_and_head() {
    agrees("t2v_everything", "t2v_everything");
}

/// The four forms of one adapter give one sample; in ComfyUI's the scale is in B, whose gradient is 1 / s of it.
#[test]
fn every_form_gives_the_same_sample() {
    let want = read(&case("lora").join("t2v_scaled").join("expected.safetensors"));
    for file in ["comfy", "comfy_alpha", "kohya"] {
        let got = adapted("t2v", "t2v_scaled", &format!("{file}.safetensors"), &[]);
        let off = error(&got, &want, ["sample"].into_iter());
        assert!(off <= CLOSE, "{file}: {off:.1e}");
    }
}

/// A merged network gives the sample of its adapter beside the network.
#[test]
fn merged_network_gives_the_adapters_sample() {
    let dir = TempDir::new().unwrap();
    let (base, merged, out) = (case("lora").join("t2v"), dir.path().join("merged"), dir.path().join("out"));
    let lora = case("lora").join("t2v_scaled").join("kohya.safetensors");
    let done = Command::new(env!("CARGO_BIN_EXE_longreel"))
        .args(["lora", "merge", base.join("transformer").to_str().unwrap(), lora.to_str().unwrap()])
        .args(["-o", merged.to_str().unwrap()])
        .output()
        .unwrap();
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    let inputs = base.join("inputs.safetensors");
    let (ok, said) = forward(
        &[&merged, &inputs]
            .map(|p| p.to_str().unwrap())
            .into_iter()
            .chain(["-o", out.to_str().unwrap()])
            .collect::<Vec<_>>(),
    );
    assert!(ok, "{said}");
    let ours = adapted("t2v", "t2v_scaled", "diffusers.safetensors", &[]);
    let off = error(&read(&out), &ours, ["sample"].into_iter());
    assert!(off <= 1e-6, "{off:.1e}");
}

/// In bf16 the frozen network is held in bf16, and the sample stays as close as diffusers' own bf16.
#[test]
fn adapters_in_bf16_are_close() {
    let want = read(&case("lora").join("t2v").join("expected.safetensors"));
    let got = adapted("t2v", "t2v", "diffusers.safetensors", &["--grads", "--dtype", "bf16", "--ranks", "2"]);
    let grads = want.keys().map(String::as_str).filter(|name| name.starts_with("grad."));
    let (sample, gradient) = (error(&got, &want, ["sample"].into_iter()), error(&got, &want, grads));
    println!("bf16: sample {sample:.1e}, gradient {gradient:.1e}");
    assert!((1e-4..2e-2).contains(&sample) && (1e-4..4e-2).contains(&gradient), "{sample:.1e}, {gradient:.1e}");
}

#[test]
fn adapters_of_another_network_are_refused() {
    let dir = TempDir::new().unwrap();
    let (base, out) = (case("lora").join("t2v"), dir.path().join("out"));
    for (name, said_of) in [("i2v", "image"), ("t2v_everything", "")] {
        let lora = case("lora").join(name).join("diffusers.safetensors");
        let (model, inputs) = (base.join("transformer"), base.join("inputs.safetensors"));
        let args = [&model, &inputs, &lora].map(|path| path.to_str().unwrap());
        let (ok, said) = forward(&[args[0], args[1], "-o", out.to_str().unwrap(), "--lora", args[2]]);
        // That of the ten linears and more of one block fits a network of two, too.
        assert_eq!(ok, said_of.is_empty(), "{name}: {said}");
        assert!(said.contains(said_of), "{name}: {said}");
    }
}
