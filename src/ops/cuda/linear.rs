//! Computes the linear layer and what follows it on a GPU: cuBLAS, which adds to what is there, and the kernels of
//! gelu.cu and gate.cu.

use candle_core::backend::BackendStorage;
use candle_core::cuda_backend::cudarc::driver::{CudaSlice, CudaStream, CudaView, PushKernelArg};
use candle_core::{CudaDevice, DType, Result};
use half::bf16;

use super::low_rank::LayerInput;
use super::{Array, Numbers};
use crate::cuda::{
    Elements, Kernel, Lent, Matrix, PerSample, Reading, Sum, THREADS, TileRows, change, empty, ones, product, sum_runs,
    to_bf16, to_f32,
};
use crate::ops::custom::{Op1, Op2};
use crate::ops::linear::{Linear, Plain, WithGelu, WithResidual};
use crate::ops::residual::{Gate, WithGate};

/// What stands in front of x Wᵀ + b.
enum Start<'a> {
    Nothing,
    Residual(Array<'a>),
}

impl Linear {
    /// start + x Wᵀ + b.
    fn on_gpu(&self, x: Array, start: Start) -> Result<Numbers> {
        let ([n, inner], device) = (x.rows()?, x.device());
        let (out, expected) = self.weight.value.dims2()?;
        if inner != expected {
            candle_core::bail!("{}: input [n, {expected}] wanted, got {:?}", self.weight.name, x.dims())
        }
        let mut y = empty::<f32>(device, n * out)?;
        let add = match start {
            Start::Nothing => false,
            Start::Residual(residual) => {
                if residual.dims() != [n, out] {
                    candle_core::bail!(
                        "{}: a residual [{n}, {out}] wanted, got {:?}",
                        self.weight.name,
                        residual.dims()
                    )
                }
                device.memcpy_dtod(&residual.view()?, &mut y)?;
                true
            }
        };
        let (ones, bias, weight) = (ones(device, n)?, Lent::new(&self.bias.value), Lent::new(&self.weight.value));
        let ones = Lent::new(&ones);
        let column = Matrix { values: Elements::F32(ones.view()?), rows: n, columns: 1, transposed: false };
        let bias = Matrix { values: Elements::F32(bias.view()?), rows: 1, columns: out, transposed: false };
        product(device, &column, &bias, &mut y.as_view_mut(), add)?; // every row starts with the bias
        let (rounded, weight) = (Operand::new(x, self.how.bf16)?, Operand::weight(&weight, self.how.bf16)?);
        product(device, &rounded.matrix(false)?, &weight.matrix(true)?, &mut y.as_view_mut(), true)?;
        if let Some(low_rank) = &self.low_rank {
            low_rank.add_on_gpu(LayerInput { x, rounded: &rounded }, &mut y, self.how.bf16)?;
        }
        Ok(y)
    }

    /// Adds the gradients of weight and bias; returns that of `x`.
    fn back_on_gpu(&self, x: Array, dy: Array) -> Result<Numbers> {
        let ([n, inner], device) = (x.rows()?, x.device());
        let (rounded_x, rounded) = (Operand::new(x, self.how.bf16)?, Operand::new(dy, self.how.bf16)?);
        self.accumulate_products(&rounded_x, &rounded, dy)?;
        let weight = Lent::new(&self.weight.value);
        let weight = Operand::weight(&weight, self.how.bf16)?;
        let mut dx = empty::<f32>(device, n * inner)?;
        product(device, &rounded.matrix(false)?, &weight.matrix(false)?, &mut dx.as_view_mut(), false)?;
        if let Some(low_rank) = &self.low_rank {
            low_rank.back_on_gpu(LayerInput { x, rounded: &rounded_x }, &rounded, &mut dx, self.how.bf16)?;
        }
        Ok(dx)
    }

    /// Adds the gradients of weight and bias.
    pub(in crate::ops) fn accumulate_on_gpu(&self, x: Array, dy: Array) -> Result<()> {
        self.accumulate_products(&Operand::new(x, self.how.bf16)?, &Operand::new(dy, self.how.bf16)?, dy)
    }

    /// The same of operands as they are multiplied; sums of columns are those of `dy` as it is. Nothing of frozen ones.
    fn accumulate_products(&self, x: &Operand, rounded: &Operand, dy: Array) -> Result<()> {
        let (Some(weight), Some(bias)) = (&self.weight.grad, &self.bias.grad) else { return Ok(()) };
        let ([n, out], device) = (dy.rows()?, dy.device());
        change(weight, |mut grad| product(device, &rounded.matrix(true)?, &x.matrix(false)?, &mut grad, true))?;
        let ones = ones(device, n)?;
        let ones = Lent::new(&ones);
        change(bias, |mut grad| {
            let column = Matrix { values: Elements::F32(ones.view()?), rows: n, columns: 1, transposed: true };
            let dy = Matrix { values: Elements::F32(dy.view()?), rows: n, columns: out, transposed: false };
            product(device, &column, &dy, &mut grad, true)
        })
    }
}

impl Plain {
    pub(in crate::ops) fn on_gpu(&self, x: Array) -> Result<Numbers> {
        self.0.on_gpu(x, Start::Nothing)
    }

    pub(in crate::ops) fn back_on_gpu(&self, x: Array, dy: Array) -> Result<Numbers> {
        self.0.back_on_gpu(x, dy)
    }
}

impl WithGelu {
    pub(in crate::ops) fn on_gpu(&self, x: Array) -> Result<Numbers> {
        let sums = self.linear.on_gpu(x, Start::Nothing)?;
        let y = gelu(x.device(), &sums)?;
        self.preactivation.save(sums);
        Ok(y)
    }

    pub(in crate::ops) fn back_on_gpu(&self, x: Array, dy: Array) -> Result<Numbers> {
        let d_sums = dy.tensor(gelu_backward(self.preactivation.get::<Numbers>()?, dy)?);
        self.linear.back_on_gpu(x, Lent::new(&d_sums).array(Self::NAME)?)
    }
}

impl WithResidual {
    pub(in crate::ops) fn on_gpu(&self, residual: Array, x: Array) -> Result<Numbers> {
        self.0.on_gpu(x, Start::Residual(residual))
    }

    pub(in crate::ops) fn back_on_gpu(&self, x: Array, dy: Array) -> Result<[Option<Numbers>; 2]> {
        Ok([None, Some(self.0.back_on_gpu(x, dy)?)])
    }
}

impl WithGate {
    pub(in crate::ops) fn on_gpu(&self, residual: Array, x: Array) -> Result<Numbers> {
        if self.skipped {
            let values = residual.view()?;
            let mut copy = empty::<f32>(residual.device(), values.len())?;
            residual.device().memcpy_dtod(&values, &mut copy)?;
            return Ok(copy);
        }
        let sums = self.linear.on_gpu(x, Start::Nothing)?;
        let y = self.gate.on_gpu(residual, &sums)?;
        self.preactivation.save(sums);
        Ok(y)
    }

    pub(in crate::ops) fn back_on_gpu(&self, x: Array, dy: Array) -> Result<[Option<Numbers>; 2]> {
        // A frozen gate's kernel reads y for a sum that nobody takes: any values serve.
        let y = match self.skipped {
            true => dy.view()?,
            false => self.preactivation.get::<Numbers>()?.as_view(),
        };
        let d_sums = dy.tensor(self.gate.back_on_gpu(&y, dy)?);
        Ok([None, Some(self.linear.back_on_gpu(x, Lent::new(&d_sums).array(Self::NAME)?)?)])
    }
}

/// An operand of a product, as it is or rounded to bf16.
pub(super) enum Operand<'a> {
    F32(Array<'a>),
    Bf16(CudaView<'a, bf16>, [usize; 2]),
    OwnF32(CudaSlice<f32>, [usize; 2]),
    OwnBf16(CudaSlice<bf16>, [usize; 2]),
}

impl<'a> Operand<'a> {
    pub fn new(x: Array<'a>, bf16: bool) -> Result<Self> {
        Ok(if bf16 { Self::OwnBf16(x.to_bf16()?, x.rows()?) } else { Self::F32(x) })
    }

    /// Of a weight, which may be bf16 where the layer is not.
    pub fn weight(lent: &'a Lent, bf16: bool) -> Result<Self> {
        if lent.storage()?.dtype() != DType::BF16 {
            return Self::new(lent.array("linear")?, bf16);
        }
        let (rows, columns) = lent.layout().shape().dims2()?;
        let values = lent.view()?.slice(..rows * columns);
        Ok(match bf16 {
            true => Self::Bf16(values, [rows, columns]),
            false => Self::OwnF32(to_f32(&lent.storage()?.device, &values)?, [rows, columns]),
        })
    }

    /// Of a product's result.
    pub fn own(device: &CudaDevice, values: CudaSlice<f32>, dims: [usize; 2], bf16: bool) -> Result<Self> {
        Ok(match bf16 {
            true => Self::OwnBf16(to_bf16(device, &values.as_view())?, dims),
            false => Self::OwnF32(values, dims),
        })
    }

    pub fn matrix(&self, transposed: bool) -> Result<Matrix<'_>> {
        let (values, [rows, columns]) = match self {
            Self::F32(x) => (Elements::F32(x.view()?), x.rows()?),
            Self::Bf16(x, dims) => (Elements::Bf16(x.slice(..)), *dims),
            Self::OwnF32(x, dims) => (Elements::F32(x.as_view()), *dims),
            Self::OwnBf16(x, dims) => (Elements::Bf16(x.as_view()), *dims),
        };
        Ok(Matrix { values, rows, columns, transposed })
    }
}

/// gelu(x).
fn gelu(device: &CudaDevice, x: &CudaSlice<f32>) -> Result<Numbers> {
    let mut y = empty::<f32>(device, x.len())?;
    let kernel = Kernel::of(device, "gelu_forward_f32")?;
    let n = x.len() as i64;
    let mut call = kernel.call();
    call.arg(x).arg(&mut y).arg(&n);
    // SAFETY: the kernel's arguments, of `n` elements each.
    unsafe { kernel.launch(call, [x.len().div_ceil(THREADS), 1, 1]) }?;
    Ok(y)
}

/// The gradient of x, given that of gelu(x).
fn gelu_backward(x: &CudaSlice<f32>, dy: Array) -> Result<Numbers> {
    let device = dy.device();
    let mut dx = empty::<f32>(device, x.len())?;
    let kernel = Kernel::of(device, "gelu_backward_f32")?;
    let (dy, n) = (dy.view()?, x.len() as i64);
    let mut call = kernel.call();
    call.arg(x).arg(&dy).arg(&mut dx).arg(&n);
    // SAFETY: as in `gelu`.
    unsafe { kernel.launch(call, [x.len().div_ceil(THREADS), 1, 1]) }?;
    Ok(dx)
}

impl Gate {
    /// The gates of all samples, in the modulation that is held, and from one sample's to the next.
    fn per_sample<'a>(&self, lent: &'a Lent, stream: &'a CudaStream) -> Result<((PerSample, Reading<'a>), usize)> {
        let dims = self.modulation.value.dims();
        let stride = dims[1] * dims[2];
        Ok((PerSample::at(lent, stream, self.index * dims[2], stride)?, stride))
    }

    /// residual + gate * y.
    pub(in crate::ops) fn on_gpu(&self, residual: Array, y: &CudaSlice<f32>) -> Result<Numbers> {
        let ([n, width], device) = (residual.rows()?, residual.device());
        let (lent, stream) = (Lent::new(&self.modulation.value), device.cuda_stream());
        let ((gate, _reading), _) = self.per_sample(&lent, &stream)?;
        let mut out = empty::<f32>(device, n * width)?;
        let kernel = Kernel::of(device, "gate_forward_f32")?;
        let (x, rows, count, features) =
            (residual.view()?, TileRows::new(self.rows.start, self.rows.tokens), n as i64, width as i32);
        let mut call = kernel.call();
        call.arg(&x).arg(y).arg(&mut out).arg(&gate).arg(&rows).arg(&count).arg(&features);
        // SAFETY: the kernel's arguments; a block for 256 columns of 64 rows.
        unsafe { kernel.launch(call, [width.div_ceil(THREADS), n.div_ceil(crate::cuda::RUN), 1]) }?;
        Ok(out)
    }

    /// The gradient of y; the gate's is added to the modulation's.
    pub(in crate::ops) fn back_on_gpu(&self, y: &CudaView<'_, f32>, d_out: Array) -> Result<Numbers> {
        let ([n, width], device) = (d_out.rows()?, d_out.device());
        let rows = TileRows::new(self.rows.start, self.rows.tokens);
        let [first, samples, runs] = rows.samples(n);
        let (mut dy, mut parts) = (empty::<f32>(device, n * width)?, empty::<f32>(device, samples * runs * width)?);
        let stride = {
            let (lent, stream) = (Lent::new(&self.modulation.value), device.cuda_stream());
            let ((gate, _reading), stride) = self.per_sample(&lent, &stream)?;
            let kernel = Kernel::of(device, "gate_backward_f32")?;
            let (d_out, count, features) = (d_out.view()?, n as i64, width as i32);
            let mut call = kernel.call();
            call.arg(y).arg(&d_out).arg(&mut dy).arg(&mut parts).arg(&gate).arg(&rows).arg(&count).arg(&features);
            // SAFETY: the kernel's arguments; a block for 256 columns of each run of each sample.
            unsafe { kernel.launch(call, [width.div_ceil(THREADS), runs, samples]) }?;
            stride
        };
        let offset = first * stride + self.index * width;
        let sum = Sum { which: 0, count: 1, width, samples, runs, offset, stride };
        sum_runs(device, &parts, self.modulation.grad.as_ref(), sum)?;
        Ok(dy)
    }
}
