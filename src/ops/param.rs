//! [`Param`]: a named weight and the gradient it accumulates, both views into their unit's flat buffers.

use candle_core::{Result, Tensor, bail};

use super::{Real, read, write};

/// A named tensor and its accumulated gradient, of one shape.
///
/// Parameters live outside autograd: ops hold a `Param` (two reference-counted views), read `value` and add into
/// `grad`. Shared conditions (modulation, text keys) are `Param`s too: leaves whose gradient is summed over tiles.
#[derive(Clone, Debug)]
pub struct Param {
    /// The checkpoint's name for it.
    pub name: String,
    /// Its values.
    pub value: Tensor,
    /// The sum of its gradients since they were last zeroed; none if it is frozen: what is added then is dropped.
    pub grad: Option<Tensor>,
}

impl Param {
    /// A leaf with a gradient of zeros.
    pub fn leaf(name: impl Into<String>, value: Tensor) -> Result<Self> {
        let value = value.contiguous()?;
        let grad = Tensor::zeros(value.shape(), value.dtype(), value.device())?;
        Ok(Self { name: name.into(), value, grad: Some(grad) })
    }

    /// Whether it has no gradient.
    pub fn is_frozen(&self) -> bool {
        self.grad.is_none()
    }

    /// The gradient.
    ///
    /// # Errors
    /// It is frozen.
    pub fn grad(&self) -> Result<&Tensor> {
        match &self.grad {
            Some(grad) => Ok(grad),
            None => bail!("{} is frozen and has no gradient", self.name),
        }
    }

    /// Element `index` of its first dim, with that of the gradient.
    pub fn get(&self, index: usize) -> Result<Self> {
        let grad = self.grad.as_ref().map(|grad| grad.get(index)).transpose()?;
        Ok(Self { name: self.name.clone(), value: self.value.get(index)?, grad })
    }

    /// These elements of its first dim, with those of the gradient.
    pub fn narrow(&self, range: std::ops::Range<usize>) -> Result<Self> {
        let part = |x: &Tensor| x.narrow(0, range.start, range.len());
        Ok(Self { name: self.name.clone(), value: part(&self.value)?, grad: self.grad.as_ref().map(part).transpose()? })
    }

    /// The same elements in another shape.
    pub fn reshape(&self, shape: (usize, usize)) -> Result<Self> {
        let grad = self.grad.as_ref().map(|grad| grad.reshape(shape)).transpose()?;
        Ok(Self { name: self.name.clone(), value: self.value.reshape(shape)?, grad })
    }

    /// Adds `values` into the gradient from element `offset` on.
    pub(crate) fn add_grad<T: Real>(&self, offset: usize, values: &[T]) -> Result<()> {
        let Some(grad) = &self.grad else { return Ok(()) };
        write(grad, |grad: &mut [T]| {
            for (g, v) in grad[offset..offset + values.len()].iter_mut().zip(values) {
                *g += *v;
            }
        })
    }

    /// Adds a tensor of the parameter's shape into the gradient.
    pub fn accumulate(&self, g: &Tensor) -> Result<()> {
        if self.is_frozen() {
            return Ok(());
        }
        let g = g.contiguous()?;
        #[cfg(feature = "cuda")]
        if g.device().is_cuda() {
            return crate::cuda::add_assign(self.grad()?, &g);
        }
        match g.dtype() {
            candle_core::DType::F64 => self.add_grad::<f64>(0, &read(&g)?),
            _ => self.add_grad::<f32>(0, &read(&g)?),
        }
    }
}
