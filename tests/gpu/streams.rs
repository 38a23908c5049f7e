//! What our kernels read by its address is told to other streams, by the events that cudarc keeps with an allocation,
//! until they are launched and not only before. On the emulated driver a stream that is told too little ends the
//! process.

use candle_core::backend::BackendStorage;
use candle_core::cuda_backend::cudarc::driver::CudaStream;
use candle_core::{CpuStorage, CudaStorage, DType, InplaceOp1, Layout};
use longreel::ops::{Affine, Param, Rows, Tape, layer_norm};
use std::sync::Arc;

use super::{gpu, normal, values};

/// Zeros a tensor in a stream, which waits for what cudarc knows of it.
struct Zero(Arc<CudaStream>);

impl InplaceOp1 for Zero {
    fn name(&self) -> &'static str {
        "zero"
    }

    fn cpu_fwd(&self, _: &mut CpuStorage, _: &Layout) -> candle_core::Result<()> {
        unreachable!("the tensor is on a GPU")
    }

    fn cuda_fwd(&self, storage: &mut CudaStorage, _: &Layout) -> candle_core::Result<()> {
        assert_eq!(storage.dtype(), DType::F32);
        self.0.memset_zeros(storage.as_cuda_slice_mut::<f32>()?).map_err(candle_core::Error::wrap)
    }
}

#[test]
fn a_modulation_is_not_written_over_while_it_is_read() {
    let gpu = gpu();
    let other = gpu.as_cuda_device().unwrap().cuda_stream().context().new_stream().unwrap();
    let (n, width) = (128, 64);
    let x = normal(&[n, width], 0, DType::F32).to_device(&gpu).unwrap();
    let mut outputs = vec![];
    for zeroed in [false, true] {
        let value = normal(&[2, 2, width], 1, DType::F32).to_device(&gpu).unwrap();
        let modulation = Param::leaf("modulation", value.clone()).unwrap();
        let rows = Rows { start: 0, tokens: n / 2 };
        let affine = Affine::Modulation { modulation, shift: 0, scale: 1, rows };
        let y = layer_norm(&Tape::off(), &x, affine, 1e-6).unwrap();
        if zeroed {
            value.inplace_op1(&Zero(other.clone())).unwrap();
        }
        outputs.push(values(&y));
        assert_eq!(values(&value).iter().all(|&v| v == 0.0), zeroed);
    }
    assert_eq!(outputs[0], outputs[1]);
}
