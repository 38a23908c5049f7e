//! Computes LayerNorm and RMSNorm with RoPE on a GPU, by the kernels of kernels/layer_norm.cu and rms_rope.cu.

use candle_core::cuda_backend::cudarc::driver::{CudaSlice, CudaStream, DevicePtr, DeviceRepr, PushKernelArg};
use candle_core::{CudaDevice, Result};
use std::sync::Arc;

use super::{Array, Numbers};
use crate::cuda::{Kernel, Lent, PerSample, RUN, Reading, Sum, THREADS, TileRows, empty, sum_runs};
use crate::ops::norm::{Affine, LayerNorm, RmsNorm};
use crate::ops::rope::Rope;

/// `Rope` of rms_rope.cu: a table of (cos, sin), the grid, the rank's first token and the features of a head.
#[derive(Clone, Copy)]
#[repr(C)]
struct Turn {
    table: u64,
    grid: [i32; 3],
    first: i64,
    d: i32,
}

// SAFETY: an address on the device and plain values, laid out as in C.
unsafe impl DeviceRepr for Turn {}

/// What a row is multiplied with and shifted by, `one` of kernels/layer_norm.cu, and whose row it is.
struct Places<'a> {
    scale: PerSample,
    shift: PerSample,
    one: f32,
    rows: TileRows,
    _reading: Vec<Reading<'a>>,
}

impl LayerNorm {
    fn gpu_affine<'a>(&self, lent: &'a [Lent], stream: &'a CudaStream, width: usize) -> Result<Places<'a>> {
        let places = |scale, shift, one, rows| {
            let ((scale, reading), (shift, too)) = (scale, shift);
            Places { scale, shift, one, rows, _reading: vec![reading, too] }
        };
        Ok(match (&self.affine, lent) {
            (Affine::Weights { .. }, [weight, bias]) => {
                let at = |lent| PerSample::at(lent, stream, 0, 0);
                places(at(weight)?, at(bias)?, 0.0, TileRows::ANY)
            }
            (Affine::Modulation { modulation, shift, scale, rows }, [lent]) => {
                let stride = modulation.value.dims()[1] * width;
                let at = |index| PerSample::at(lent, stream, index * width, stride);
                places(at(*scale)?, at(*shift)?, 1.0, TileRows::new(rows.start, rows.tokens))
            }
            _ => {
                let (scale, shift) = (PerSample::NONE, PerSample::NONE);
                Places { scale, shift, one: 0.0, rows: TileRows::ANY, _reading: vec![] }
            }
        })
    }

    /// The affine's values, locked.
    fn gpu_hold(&self) -> Vec<Lent<'_>> {
        match &self.affine {
            Affine::None => vec![],
            Affine::Weights { weight, bias } => vec![Lent::new(&weight.value), Lent::new(&bias.value)],
            Affine::Modulation { modulation, .. } => vec![Lent::new(&modulation.value)],
        }
    }

    pub(in crate::ops) fn on_gpu(&self, x: Array) -> Result<Numbers> {
        let ([n, width], device) = (x.rows()?, x.device());
        let (lent, stream) = (self.gpu_hold(), device.cuda_stream());
        let Places { scale, shift, one, rows, _reading } = self.gpu_affine(&lent, &stream, width)?;
        let mut y = empty::<f32>(device, n * width)?;
        let kernel = Kernel::of(device, "layer_norm_forward_f32")?;
        let (x, features, eps) = (x.view()?, width as i32, self.eps as f32);
        let mut call = kernel.call();
        call.arg(&x).arg(&mut y).arg(&scale).arg(&shift).arg(&rows).arg(&features).arg(&one).arg(&eps);
        // SAFETY: the kernel's arguments; a row is a block.
        unsafe { kernel.launch(call, [n, 1, 1]) }?;
        Ok(y)
    }

    pub(in crate::ops) fn back_on_gpu(&self, x: Array, dy: Array) -> Result<Numbers> {
        let ([n, width], device) = (x.rows()?, x.device());
        let (lent, stream) = (self.gpu_hold(), device.cuda_stream());
        let Places { scale, one, rows, _reading, .. } = self.gpu_affine(&lent, &stream, width)?;
        let [first, samples, runs] = rows.samples(n);
        let mut dx = empty::<f32>(device, n * width)?;
        let mut saved = empty::<f32>(device, 2 * n)?;
        let (x, dy, features, eps) = (x.view()?, dy.view()?, width as i32, self.eps as f32);
        let kernel = Kernel::of(device, "layer_norm_backward_f32")?;
        let mut call = kernel.call();
        call.arg(&x).arg(&dy).arg(&mut dx).arg(&mut saved).arg(&scale).arg(&rows).arg(&features).arg(&one).arg(&eps);
        // SAFETY: the kernel's arguments; a row is a block, and leaves two values in `saved`.
        unsafe { kernel.launch(call, [n, 1, 1]) }?;
        drop(_reading);
        if lent.is_empty() {
            return Ok(dx);
        }
        let mut parts = empty::<f32>(device, samples * runs * 2 * width)?;
        let kernel = Kernel::of(device, "layer_norm_columns_f32")?;
        let count = n as i64;
        let mut call = kernel.call();
        call.arg(&x).arg(&dy).arg(&saved).arg(&mut parts).arg(&rows).arg(&count).arg(&features);
        // SAFETY: the kernel's arguments; a block for 256 columns of each run of each sample.
        unsafe { kernel.launch(call, [width.div_ceil(THREADS), runs, samples]) }?;
        drop(lent);
        let sum = Sum { which: 0, count: 2, width, samples, runs, offset: 0, stride: 0 };
        match &self.affine {
            Affine::None => {}
            Affine::Weights { weight, bias } => {
                sum_runs(device, &parts, weight.grad.as_ref(), sum)?;
                sum_runs(device, &parts, bias.grad.as_ref(), Sum { which: 1, ..sum })?;
            }
            Affine::Modulation { modulation, shift, scale, .. } => {
                let k = modulation.value.dims()[1];
                let at =
                    |which, index: usize| Sum { which, offset: (first * k + index) * width, stride: k * width, ..sum };
                sum_runs(device, &parts, modulation.grad.as_ref(), at(0, *scale))?;
                sum_runs(device, &parts, modulation.grad.as_ref(), at(1, *shift))?;
            }
        }
        Ok(dx)
    }
}

impl RmsNorm {
    /// The table's place on the device, what is to be dropped after the launch, and how rows belong to samples.
    fn gpu_turn<'a>(
        &self,
        table: Option<&'a CudaSlice<f32>>,
        stream: &'a CudaStream,
    ) -> (Turn, Option<Reading<'a>>, TileRows) {
        match (&self.turn, table) {
            (Some((rope, rows)), Some(table)) => {
                let (pointer, reading) = table.device_ptr(stream);
                let turn = Turn {
                    table: pointer,
                    grid: rope.grid.map(|n| n as i32),
                    first: rope.first as i64,
                    d: rope.d as i32,
                };
                (turn, Some(reading), TileRows::new(rows.start, rows.tokens))
            }
            _ => (Turn { table: 0, grid: [1; 3], first: 0, d: 2 }, None, TileRows::ANY),
        }
    }

    fn gpu_table(&self, device: &CudaDevice) -> Result<Option<Arc<CudaSlice<f32>>>> {
        self.turn.as_ref().map(|(rope, _)| rope.on_gpu(device)).transpose()
    }

    pub(in crate::ops) fn on_gpu(&self, x: Array) -> Result<Numbers> {
        let ([n, width], device) = (x.rows()?, x.device());
        let (table, stream) = (self.gpu_table(device)?, device.cuda_stream());
        let (turn, _reading, rows) = self.gpu_turn(table.as_deref(), &stream);
        let lent = Lent::new(&self.weight.value);
        let mut y = empty::<f32>(device, n * width)?;
        let kernel = Kernel::of(device, "rms_rope_forward_f32")?;
        let (x, weight, features, eps) = (x.view()?, lent.view::<f32>()?, width as i32, self.eps as f32);
        let mut call = kernel.call();
        call.arg(&x).arg(&mut y).arg(&weight).arg(&turn).arg(&rows).arg(&features).arg(&eps);
        // SAFETY: the kernel's arguments; a row is a block.
        unsafe { kernel.launch(call, [n, 1, 1]) }?;
        Ok(y)
    }

    pub(in crate::ops) fn back_on_gpu(&self, x: Array, dy: Array) -> Result<Numbers> {
        let ([n, width], device) = (x.rows()?, x.device());
        let (table, stream) = (self.gpu_table(device)?, device.cuda_stream());
        let (turn, _reading, rows) = self.gpu_turn(table.as_deref(), &stream);
        let runs = n.div_ceil(RUN); // of all rows: samples do not matter to the weight
        let (mut dx, mut saved) = (empty::<f32>(device, n * width)?, empty::<f32>(device, n)?);
        let mut parts = empty::<f32>(device, runs * width)?;
        {
            let lent = Lent::new(&self.weight.value);
            let (x, dy, weight) = (x.view()?, dy.view()?, lent.view::<f32>()?);
            let (features, eps, count) = (width as i32, self.eps as f32, n as i64);
            let kernel = Kernel::of(device, "rms_rope_backward_f32")?;
            let mut call = kernel.call();
            call.arg(&x)
                .arg(&dy)
                .arg(&mut dx)
                .arg(&mut saved)
                .arg(&weight)
                .arg(&turn)
                .arg(&rows)
                .arg(&features)
                .arg(&eps);
            // SAFETY: the kernel's arguments; a row is a block, and leaves a number in `saved`.
            unsafe { kernel.launch(call, [n, 1, 1]) }?;
            let kernel = Kernel::of(device, "rms_rope_columns_f32")?;
            let mut call = kernel.call();
            call.arg(&x).arg(&dy).arg(&saved).arg(&mut parts).arg(&turn).arg(&rows).arg(&count).arg(&features);
            // SAFETY: the kernel's arguments; a block for 256 pairs of columns of each run.
            unsafe { kernel.launch(call, [(width / 2).div_ceil(THREADS), runs, 1]) }?;
        }
        let sum = Sum { which: 0, count: 1, width, samples: 1, runs, offset: 0, stride: 0 };
        sum_runs(device, &parts, self.weight.grad.as_ref(), sum)?;
        Ok(dx)
    }
}

impl Rope {
    /// The table of (cos, sin) for all positions of each axis, on the device; made once.
    pub(in crate::ops) fn on_gpu(&self, device: &CudaDevice) -> Result<Arc<CudaSlice<f32>>> {
        if let Some(table) = self.gpu.get() {
            return Ok(table.clone());
        }
        let table = Arc::new(device.clone_htod(&self.table())?);
        Ok(self.gpu.get_or_init(|| table).clone())
    }
}
