//! Writing safetensors: tensors in one file, which appears whole or not at all.

use super::{FileSum, failed, write_summed};
use crate::{Error, Result, bail};
use safetensors::tensor::Dtype;
use serde_json::{Map, json};
use std::collections::BTreeMap;
use std::io::{self, Write};
use std::path::Path;

/// Writes f32 tensors as one safetensors file, atomically; the values may be borrowed or owned (`&[f32]`, `Vec<f32>`).
///
/// # Errors
/// A name twice, values that do not fill their shape, or those of [`atomic_write`].
pub fn write_tensors<N, D>(path: &Path, tensors: impl IntoIterator<Item = (N, Vec<usize>, D)>) -> Result<()>
where
    N: AsRef<str>,
    D: AsRef<[f32]>,
{
    write_tensors_with(path, &[], tensors)
}

/// As [`write_tensors`], with these metadata beside `format`, which [`Tensors::metadata`](super::Tensors::metadata)
/// reads.
pub fn write_tensors_with<N, D>(
    path: &Path,
    metadata: &[(&str, String)],
    tensors: impl IntoIterator<Item = (N, Vec<usize>, D)>,
) -> Result<()>
where
    N: AsRef<str>,
    D: AsRef<[f32]>,
{
    let (mut shapes, mut values) = (vec![], vec![]);
    for (name, shape, data) in tensors {
        let (name, length) = (name.as_ref(), data.as_ref().len());
        if shape.iter().product::<usize>() != length {
            bail!(Shape, "{}: tensor `{name}` of shape {shape:?} was given {length} values", path.display());
        }
        shapes.push((name.to_owned(), shape));
        values.push(data);
    }
    write(path, metadata, &shapes, values.into_iter().map(Ok)).map(drop)
}

/// As [`write_tensors`], with values that need not all be there at once: `pieces`, asked for one after another, are the
/// elements of all tensors in order, cut anywhere.
///
/// Metadata is `{"format": "pt"}`, as diffusers and transformers ask for. Returns the file's checksum.
///
/// # Errors
/// A name twice, a piece that is an error, pieces of another length than the tensors, or those of [`atomic_write`].
pub fn write_pieces<D: AsRef<[f32]>>(
    path: &Path,
    tensors: &[(String, Vec<usize>)],
    pieces: impl IntoIterator<Item = Result<D>>,
) -> Result<FileSum> {
    write(path, &[], tensors, pieces)
}

/// Writes tensors of any type as one safetensors file, atomically: `pieces`, asked for one after another, are the bytes
/// of all tensors in order, cut anywhere. `metadata` is all that the header says beside them.
///
/// # Errors
/// As [`write_pieces`].
pub fn write_bytes(
    path: &Path,
    metadata: &BTreeMap<String, String>,
    tensors: &[(String, Dtype, Vec<usize>)],
    pieces: impl IntoIterator<Item = Result<Vec<u8>>>,
) -> Result<FileSum> {
    write_any(path, json!(metadata), tensors, pieces, |out, piece| {
        out.write_all(&piece)?;
        Ok(piece.len())
    })
}

fn write<D: AsRef<[f32]>>(
    path: &Path,
    metadata: &[(&str, String)],
    tensors: &[(String, Vec<usize>)],
    pieces: impl IntoIterator<Item = Result<D>>,
) -> Result<FileSum> {
    let described = metadata.iter().map(|(key, value)| ((*key).to_owned(), json!(value)));
    let described: Map<_, _> = [("format".to_owned(), json!("pt"))].into_iter().chain(described).collect();
    let tensors: Vec<_> = tensors.iter().map(|(name, shape)| (name.clone(), Dtype::F32, shape.clone())).collect();
    write_any(path, described.into(), &tensors, pieces, |out, piece| {
        write_f32(out, piece.as_ref())?;
        Ok(4 * piece.as_ref().len())
    })
}

/// Writes a header, and pieces by `put`, which returns how many bytes it wrote.
fn write_any<P>(
    path: &Path,
    metadata: serde_json::Value,
    tensors: &[(String, Dtype, Vec<usize>)],
    pieces: impl IntoIterator<Item = Result<P>>,
    put: impl Fn(&mut dyn Write, P) -> io::Result<usize>,
) -> Result<FileSum> {
    let mut header = Map::new();
    header.insert("__metadata__".to_owned(), metadata);
    let mut end = 0;
    for (name, dtype, shape) in tensors {
        let start = end;
        end += dtype.bitsize() / 8 * shape.iter().product::<usize>();
        let entry = json!({"dtype": dtype, "shape": shape, "data_offsets": [start, end]});
        if header.insert(name.clone(), entry).is_some() {
            bail!(Shape, "{}: tensor `{name}` was given twice", path.display());
        }
    }
    let mut header = serde_json::to_vec(&header).map_err(|e| failed(path, e.into()))?;
    header.resize(header.len().next_multiple_of(8), b' '); // the tensors begin aligned
    let mut refusal = None;
    let written = write_summed(path, |out| {
        out.write_all(&(header.len() as u64).to_le_bytes())?;
        out.write_all(&header)?;
        let mut refuse = |e: Error| {
            let stop = io::Error::other(e.to_string());
            refusal = Some(e); // told as it is, not as the file's
            stop
        };
        let mut length = 0;
        for piece in pieces {
            length += put(&mut *out, piece.map_err(&mut refuse)?)?;
        }
        if length != end {
            let message = format!("{}: tensors of {end} bytes were given {length}", path.display());
            return Err(refuse(Error::Shape(message)));
        }
        Ok(())
    });
    match refusal {
        Some(e) => Err(e),
        None => written,
    }
}

fn write_f32(out: &mut dyn Write, data: &[f32]) -> io::Result<()> {
    if cfg!(target_endian = "little") {
        return out.write_all(bytemuck::cast_slice(data));
    }
    data.iter().try_for_each(|x| out.write_all(&x.to_le_bytes()))
}
