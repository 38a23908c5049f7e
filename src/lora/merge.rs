//! Adds adapters to a base model's weights and writes the sum, one tensor after another, as files of the base's kind.

use rayon::prelude::*;
use safetensors::tensor::Dtype;
use std::collections::BTreeSet;
use std::path::Path;

use super::{Adapter, AdapterModule};
use crate::files::model_folder::write_folder_with;
use crate::files::{Tensors, write_bytes};
use crate::model::ModelConfig;
use crate::model::layout::Layout;
use crate::{Error, Result, bail};

/// What became of the weights.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Merged {
    /// Layers that adapters were added to.
    pub layers: usize,
    /// Elements of these layers whose sum with the adapters differs from the base in f32.
    pub changed: u64,
    /// How many of them were rounded back to the base's stored value.
    pub swallowed: u64,
}

/// Writes W + sum of scale (alpha / r) B A for every layer of `base`: summed in f32, rounded once to the type that the
/// base stores. Everything else is copied as it is. A base that is a folder gives a new folder `out` of one weights
/// file with the base's config.json and names; a file gives a file.
///
/// # Errors
/// An adapter is not for this network; a tensor cannot be read; `out` is there already or cannot be written.
pub fn merge(base: &Layout, adapters: &[(&Adapter, f64)], out: &Path) -> Result<Merged> {
    let config = ModelConfig::from_json(&base.config).map_err(|e| e.at(base.path.display()))?;
    adapters.iter().try_for_each(|(adapter, _)| adapter.check(&config))?;
    let of = |key: &str| -> Vec<(&AdapterModule, f64)> {
        let name = base.naming.name(key);
        let Some(layer) = name.as_deref().and_then(|name| name.strip_suffix(".weight")) else { return vec![] };
        let modules = adapters.iter().filter_map(|(adapter, scale)| Some((adapter.module(layer)?, *scale)));
        modules.collect()
    };
    let wanted: BTreeSet<&str> =
        adapters.iter().flat_map(|(adapter, _)| adapter.modules.iter().map(|module| module.name.as_str())).collect();
    let keys: Vec<&str> = base.tensors.names().collect();
    let found = keys.iter().filter(|key| !of(key).is_empty()).count();
    if found < wanted.len() {
        bail!(
            Data,
            "{}: has {found} of the {} layers that the adapters are for: its weights are incomplete",
            base.path.display(),
            wanted.len()
        )
    }
    let describe = |key: &&str| Ok(((*key).to_owned(), base.tensors.dtype(key)?, base.tensors.shape(key)?.to_vec()));
    let tensors = keys.iter().map(describe).collect::<Result<Vec<_>>>()?;
    let mut merged = Merged { layers: wanted.len(), ..Merged::default() };
    let pieces = keys.iter().map(|key| match of(key) {
        none if none.is_empty() => base.tensors.bytes(key),
        modules => merge_tensor(&base.tensors, key, &modules, &mut merged),
    });
    let mut metadata = base.tensors.all_metadata();
    metadata.insert("format".to_owned(), "pt".to_owned());
    let write = |file: &Path| write_bytes(file, &metadata, &tensors, pieces).map(drop);
    if base.path.is_dir() {
        write_folder_with(out, &base.config, write).map(drop)?
    } else {
        write(out)?
    }
    Ok(merged)
}

/// Adds what adapters, each with its scale, add to the weight of this name, diffusers', to `values`: its f32 elements.
/// The adapters have been checked against the network.
pub fn add_adapters(adapters: &[(&Adapter, f64)], name: &str, values: &mut [f32]) {
    let Some(layer) = name.strip_suffix(".weight") else { return };
    let modules: Vec<(&AdapterModule, f64)> =
        adapters.iter().filter_map(|(adapter, scale)| Some((adapter.module(layer)?, *scale))).collect();
    if let Some((module, _)) = modules.first() {
        add(values, module.inner, &modules);
    }
}

/// W += the sum of scale (alpha / r) B A.
fn add(weight: &mut [f32], inner: usize, modules: &[(&AdapterModule, f64)]) {
    weight.par_chunks_mut(inner).enumerate().for_each(|(row, sums)| {
        let mut delta = vec![0f32; inner];
        for (module, scale) in modules {
            let scale = (scale * module.scale()) as f32;
            for (b, a) in module.b[row * module.rank..][..module.rank].iter().zip(module.a.chunks_exact(inner)) {
                delta.iter_mut().zip(a).for_each(|(d, a)| *d += scale * b * a);
            }
        }
        sums.iter_mut().zip(&delta).for_each(|(w, d)| *w += d);
    });
}

/// The bytes of a weight with adapters added.
fn merge_tensor(
    tensors: &Tensors,
    key: &str,
    modules: &[(&AdapterModule, f64)],
    merged: &mut Merged,
) -> Result<Vec<u8>> {
    let dtype = tensors.dtype(key)?;
    let base = tensors.read_f32(key)?;
    let &[out, inner] = tensors.shape(key)? else { bail!(Shape, "{}: `{key}` is no matrix", tensors.path().display()) };
    if let Some((module, _)) = modules.iter().find(|(module, _)| [module.out, module.inner] != [out, inner]) {
        bail!(
            Shape,
            "{}: `{key}` is [{out}, {inner}], the adapter's [{}, {}]",
            tensors.path().display(),
            module.out,
            module.inner
        )
    }
    let mut sum = base.clone();
    add(&mut sum, inner, modules);
    if let Some(value) = sum.iter().find(|x| !x.is_finite()) {
        bail!(Data, "{}: `{key}` with the adapters has a value that is {value}", tensors.path().display())
    }
    let (bytes, kept): (Vec<u8>, fn(f32) -> f32) = match dtype {
        Dtype::F32 => (sum.iter().flat_map(|x| x.to_le_bytes()).collect(), |x| x),
        Dtype::F64 => (sum.iter().flat_map(|x| f64::from(*x).to_le_bytes()).collect(), |x| x),
        Dtype::BF16 => (sum.iter().flat_map(|x| half::bf16::from_f32(*x).to_le_bytes()).collect(), |x| {
            half::bf16::from_f32(x).to_f32()
        }),
        Dtype::F16 => (sum.iter().flat_map(|x| half::f16::from_f32(*x).to_le_bytes()).collect(), |x| {
            half::f16::from_f32(x).to_f32()
        }),
        other => return Err(Error::Data(format!("{}: `{key}` is {other}", tensors.path().display()))),
    };
    for (sum, base) in sum.iter().zip(&base) {
        merged.changed += u64::from(sum != base);
        merged.swallowed += u64::from(sum != base && kept(*sum) == *base);
    }
    Ok(bytes)
}
