//! Tensors of golden files, and inputs of `longreel forward`, for the tests of this program and of tests/gpu.rs.

use safetensors::{Dtype, SafeTensors, tensor::TensorView};
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

/// A tensor's shape and values.
pub type Values = (Vec<usize>, Vec<f64>);

/// The tensors of a file; pixels of u8 become -1..1.
pub fn read(path: &Path) -> BTreeMap<String, Values> {
    let bytes = fs::read(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let values = |view: &TensorView| {
        let data = view.data();
        let values = match view.dtype() {
            Dtype::F32 => data.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap()).into()).collect(),
            Dtype::F64 => data.chunks_exact(8).map(|b| f64::from_le_bytes(b.try_into().unwrap())).collect(),
            Dtype::U8 => data.iter().map(|&b| f64::from(b) / 127.5 - 1.0).collect(),
            other => panic!("{other:?}"),
        };
        (view.shape().to_vec(), values)
    };
    file.tensors().into_iter().map(|(name, view)| (name, values(&view))).collect()
}

/// Writes one tensor as f32.
pub fn write(path: &Path, name: &str, (shape, values): &Values) {
    let bytes: Vec<u8> = values.iter().flat_map(|&x| (x as f32).to_le_bytes()).collect();
    let view = TensorView::new(Dtype::F32, shape.clone(), &bytes).unwrap();
    safetensors::serialize_to_file([(name, view)], None, path).unwrap();
}
