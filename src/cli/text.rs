//! Runs `longreel forward` on a text encoder.

use std::path::Path;

use super::forward::ForwardArgs;
use crate::config::{Compute, Hardware};
use crate::files::{Tensors, write_tensors};
use crate::text::TextModel;
use crate::{Result, bail};

/// Whether a file of inputs is for a text encoder, which a pipeline's folder has beside its transformer.
pub(super) fn has_ids(inputs: &Path) -> bool {
    Tensors::open(inputs).is_ok_and(|file| file.contains("input_ids"))
}

/// Encodes `input_ids`, as far as `attention_mask` goes.
pub(super) fn forward(args: &ForwardArgs, path: &Path, ranks: usize) -> Result<()> {
    let unfit = [
        (args.grads, "--grads: a text encoder is frozen, it has no gradients"),
        (args.device == Some(Hardware::Cuda), "--device: a text encoder runs on the CPU"),
        (args.tile.is_some(), "--tile: only a VAE works on tiles of pixels"),
        (ranks > 1, "--ranks: a text encoder runs on one rank"),
    ];
    if let Some((_, why)) = unfit.into_iter().find(|(given, _)| *given) {
        bail!(Config, "{why}");
    }
    let model = TextModel::open(path)?.with_bf16(args.dtype == Compute::Bf16);
    let (texts, most) = texts(&Tensors::open(&args.inputs)?)?;
    let (rows, features) = (texts.len(), model.config().width);
    let some: Vec<Vec<u32>> = texts.iter().filter(|ids| !ids.is_empty()).cloned().collect();
    let mut states = model.encode_ids(&some, &mut |_, _| ())?.into_iter();
    let mut hidden = vec![0.0; rows * most * features];
    for (row, ids) in hidden.chunks_exact_mut(most * features).zip(&texts) {
        if ids.is_empty() {
            continue; // a row of padding alone
        }
        let state = states.next().expect("one a text").flatten_all()?.to_vec1::<f32>()?;
        row[..state.len()].copy_from_slice(&state);
    }
    write_tensors(&args.output, [("last_hidden_state", vec![rows, most, features], hidden)])
}

/// The ids of each row up to where its mask ends, and the length of a row.
fn texts(file: &Tensors) -> Result<(Vec<Vec<u32>>, usize)> {
    let at = |what: &str| format!("{}: `{what}`", file.path().display());
    let &[rows, most] = file.shape("input_ids")? else {
        bail!(Shape, "{} is {:?}; [B, L] is wanted", at("input_ids"), file.shape("input_ids")?)
    };
    if file.shape("attention_mask")? != [rows, most] || rows * most == 0 {
        bail!(
            Shape,
            "{} is {:?}; as many as of `input_ids` are wanted, [{rows}, {most}], at least one",
            at("attention_mask"),
            file.shape("attention_mask")?
        )
    }
    let (ids, mask) = (file.read_numbers("input_ids")?, file.read_numbers("attention_mask")?);
    let mut texts = vec![];
    for (row, (ids, mask)) in ids.chunks_exact(most).zip(mask.chunks_exact(most)).enumerate() {
        let n = mask.iter().take_while(|&&m| m == 1.0).count();
        if mask[n..].iter().any(|&m| m != 0.0) {
            bail!(Data, "{}: row {row} must be ones and then zeros: padding comes last", at("attention_mask"))
        }
        if let Some(id) = ids[..n].iter().find(|&&id| id < 0.0 || id.fract() != 0.0 || id > 16_777_215.0) {
            bail!(Data, "{}: row {row} has {id}, which is no token's id", at("input_ids"))
        }
        texts.push(ids[..n].iter().map(|&id| id as u32).collect());
    }
    Ok((texts, most))
}
