//! The header of a safetensors file: 8 bytes of its length (little endian), then JSON.
//! <https://github.com/huggingface/safetensors#format>

use super::Summed;
use safetensors::tensor::{Dtype, Metadata};
use std::collections::HashMap;
use std::io::{self, Read};

/// A header longer than this is refused before it is read; the format's own limit.
const MAX_HEADER: u64 = 100_000_000;

/// What the header of a safetensors file says, checked against the file's length.
#[derive(Clone, Debug)]
pub struct Header {
    pub tensors: Vec<TensorPlace>,
    /// What the file says of itself.
    pub metadata: HashMap<String, String>,
    /// Of the header, with the bytes that tell its length.
    pub(super) sum: Summed,
}

/// A tensor, and where it lies in its file.
#[derive(Clone, Debug)]
pub struct TensorPlace {
    pub name: String,
    pub dtype: Dtype,
    pub shape: Vec<usize>,
    /// Its first byte, counted from the file's start.
    pub start: u64,
    /// Its bytes.
    pub bytes: u64,
}

impl Header {
    /// Reads the header of a file of `length` bytes; no more than the header is allocated, and that only if the file
    /// can hold it.
    ///
    /// # Errors
    /// The reason why it is no safetensors file, or a damaged one.
    pub fn read(mut file: impl Read, length: u64) -> std::result::Result<Self, String> {
        let mut word = [0; 8];
        if length < 8 {
            return Err(format!("{length} bytes are too few for a safetensors file; it was cut short"));
        }
        let unreadable = |e: io::Error| format!("cannot be read ({e})");
        file.read_exact(&mut word).map_err(unreadable)?;
        let other = |why: String| other_format(&word).map_or(why, str::to_owned);
        let size = u64::from_le_bytes(word);
        if size > MAX_HEADER {
            return Err(other(format!("is not a safetensors file (its header would have {size} bytes)")));
        }
        if size > length - 8 {
            return Err(other(format!("was cut short: its header has {size} bytes, the whole file {length}")));
        }
        let mut text = vec![0; size as usize];
        file.read_exact(&mut text).map_err(unreadable)?;
        let header: Metadata =
            serde_json::from_slice(&text).map_err(|e| other(format!("is not a safetensors file, or damaged: {e}")))?;
        let data = header.data_len() as u64;
        if data != length - 8 - size {
            let what = if length - 8 - size < data { "was cut short" } else { "is damaged" };
            let expected = u128::from(data) + u128::from(size) + 8;
            return Err(format!("{what}: {length} bytes, where its header says {expected}"));
        }
        let tensors = header.tensors().into_iter().map(|(name, info)| {
            let (start, end) = info.data_offsets;
            let (start, bytes) = (8 + size + start as u64, (end - start) as u64);
            TensorPlace { name, dtype: info.dtype, shape: info.shape.clone(), start, bytes }
        });
        let mut sum = Summed::default();
        sum.add(&word);
        sum.add(&text);
        let metadata = header.metadata().clone().unwrap_or_default();
        Ok(Self { tensors: tensors.collect(), metadata, sum })
    }
}

/// What a file that begins with these bytes and is no safetensors file is, of those that are given for one. (A
/// safetensors file may begin with the same bytes: they are the length of its header.)
fn other_format(begin: &[u8; 8]) -> Option<&'static str> {
    match begin {
        [b'G', b'G', b'U', b'F', ..] => Some(
            "is a GGUF file, whose quantised weights are not read: take the same model as safetensors in bf16, f16 or \
             f32",
        ),
        [b'P', b'K', 3, 4, ..] | [0x80, 2, 0x8a, 0x0a, b'l', ..] => {
            Some("is a PyTorch file (pickle); a safetensors file is needed here")
        }
        _ => None,
    }
}
