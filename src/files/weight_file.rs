//! Opens files of weights of either kind: safetensors, whole or in shards, and what `torch.save` wrote.

use safetensors::tensor::Dtype;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::path::Path;

use super::{PthTensors, Tensors};
use crate::{Error, Result, bail};

/// Named tensors, read when asked for.
#[derive(Debug)]
pub enum WeightFile {
    /// Safetensors, whole or in shards.
    Safetensors(Tensors),
    /// PyTorch's own format.
    Pth(PthTensors),
}

impl WeightFile {
    /// Opens a file of weights, or the index of shards (`*.json`); which kind it is, its first bytes tell.
    ///
    /// # Errors
    /// The file is missing, damaged, or of another kind; GGUF is named.
    pub fn open(path: &Path) -> Result<Self> {
        if path.extension().is_some_and(|extension| extension == "json") {
            return Tensors::open_sharded(path).map(Self::Safetensors);
        }
        let metadata = std::fs::metadata(path).map_err(|e| Error::io(path, e))?;
        if !metadata.is_file() {
            bail!(Data, "{}: is not a file", path.display());
        }
        let mut first = vec![];
        let file = std::fs::File::open(path).map_err(|e| Error::io(path, e))?;
        file.take(4).read_to_end(&mut first).map_err(|e| Error::io(path, e))?;
        match &first[..] {
            b"GGUF" => bail!(
                Data,
                "{}: is a GGUF file, whose weights are quantised; use the model's safetensors in bf16 or f16",
                path.display()
            ),
            [b'P', b'K', ..] => PthTensors::open(path).map(Self::Pth),
            // A pickle's first operation, and the version of the protocol.
            [0x80, 2..=5, ..] => bail!(
                Data,
                "{}: was written by PyTorch before 1.6; load and save it with a newer one, best as safetensors",
                path.display()
            ),
            _ => Tensors::open(path).map(Self::Safetensors),
        }
    }

    /// The file, or the index of its shards.
    pub fn path(&self) -> &Path {
        match self {
            Self::Safetensors(tensors) => tensors.path(),
            Self::Pth(tensors) => tensors.path(),
        }
    }

    /// The files that hold the tensors, as they were opened.
    pub fn files(&self) -> Vec<(&Path, &File)> {
        match self {
            Self::Safetensors(tensors) => tensors.files(),
            Self::Pth(tensors) => vec![(tensors.path(), tensors.file())],
        }
    }

    /// Names and shapes of all tensors.
    pub fn shapes(&self) -> BTreeMap<String, Vec<usize>> {
        match self {
            Self::Safetensors(tensors) => tensors.shapes(),
            Self::Pth(tensors) => tensors.shapes(),
        }
    }

    /// The stored type of a tensor.
    ///
    /// # Errors
    /// There is no such tensor.
    pub fn dtype(&self, name: &str) -> Result<Dtype> {
        match self {
            Self::Safetensors(tensors) => tensors.dtype(name),
            Self::Pth(tensors) => tensors.dtype(name),
        }
    }

    /// Refuses 8-bit floats, whose scales are tensors beside them.
    ///
    /// # Errors
    /// There are such floats, or scales of them; the first is named.
    pub fn check_floats(&self) -> Result<()> {
        let scaled = |name: &str| name == "scaled_fp8" || name.ends_with(".scale_weight");
        for name in self.shapes().keys() {
            let dtype = self.dtype(name)?;
            if scaled(name) || matches!(dtype, Dtype::F8_E4M3 | Dtype::F8_E5M2) {
                bail!(
                    Data,
                    "{}: holds 8-bit floats (`{name}` is {dtype}); use the model's file in bf16 or f16",
                    self.path().display()
                );
            }
        }
        Ok(())
    }

    /// Fills `out` with a tensor's elements in row-major order from number `first` on. Types as
    /// [`Tensors::read_f32`].
    ///
    /// # Errors
    /// There is no such tensor, it is no float or too short, or the file cannot be read.
    pub fn read_f32_at(&self, name: &str, first: usize, out: &mut [f32]) -> Result<()> {
        match self {
            Self::Safetensors(tensors) => tensors.read_f32_at(name, first, out),
            Self::Pth(tensors) => tensors.read_f32_at(name, first, out),
        }
    }
}
