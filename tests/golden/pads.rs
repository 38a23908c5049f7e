//! `longreel forward` on texts with pads: rows of zeros at the end of `encoder_hidden_states` take part as the tokens
//! that they are.

use super::{case, error, forward, read};
use longreel::files::write_tensors;
use std::path::Path;
use tempfile::TempDir;

/// Tokens of a text with its pads.
const LENGTH: usize = 40;

/// Runs the case on its texts, of which sample i keeps all but i tokens, padded by `pad`; on so many ranks.
fn padded(dir: &Path, pad: f32, ranks: &str) -> std::collections::BTreeMap<String, super::Values> {
    let case = case("batch");
    let inputs = read(&case.join("inputs.safetensors"));
    let mut named: Vec<(String, Vec<usize>, Vec<f32>)> = vec![];
    for (name, values) in inputs {
        let mut data: Vec<f32> = values.data.iter().map(|&x| x as f32).collect();
        let mut shape = values.shape;
        if name == "encoder_hidden_states" {
            let &[samples, tokens, features] = &shape[..] else { panic!("{shape:?}") };
            let texts = (0..samples).flat_map(|i| {
                let mut text = data[i * tokens * features..][..(tokens - i) * features].to_vec();
                text.resize(LENGTH * features, pad);
                text
            });
            (data, shape) = (texts.collect(), vec![samples, LENGTH, features]);
        }
        named.push((name, shape, data));
    }
    let (inputs, out) = (dir.join(format!("{pad}")), dir.join(format!("{pad}-{ranks}")));
    write_tensors(&inputs, named).unwrap();
    let model = case.join("transformer");
    let (ok, said) = forward(&[
        model.to_str().unwrap(),
        inputs.to_str().unwrap(),
        "-o",
        out.to_str().unwrap(),
        "--grads",
        "--ranks",
        ranks,
    ]);
    assert!(ok, "{said}");
    read(&out)
}

/// What is all but zero is a token like any other, and gives what zeros give.
#[test]
fn rows_of_zeros_are_tokens_of_zeros() {
    let dir = TempDir::new().unwrap();
    let want = padded(dir.path(), 1e-30, "1");
    for ranks in ["1", "2", "3"] {
        let got = padded(dir.path(), 0.0, ranks);
        assert!(got.keys().eq(want.keys()));
        for name in want.keys() {
            let off = error(&got, &want, [name.as_str()].into_iter());
            assert!(off < 1e-5, "{name} on {ranks} ranks is off by {off:.1e}");
        }
    }
}
