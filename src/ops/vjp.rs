//! The vector-Jacobian product through a tile's graph.

use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor, Var};

/// The gradients of `inputs`, given the gradients of `outputs` that were computed from them: pairs (output, its gradient).
///
/// Candle's `backward` starts from ones; so each output is tied to a scalar 0 whose backward hands out the given gradient.
/// Ops that own weights add their weight gradients on the way.
pub fn vjp(outputs: &[(&Tensor, &Tensor)], inputs: &[&Var]) -> Result<Vec<Tensor>> {
    let mut root: Option<Tensor> = None;
    for (output, gradient) in outputs {
        if output.dims() != gradient.dims() {
            candle_core::bail!("vjp: output {:?} against gradient {:?}", output.dims(), gradient.dims())
        }
        let seed = output.apply_op1(Seed((*gradient).clone()))?;
        root = Some(match root {
            None => seed,
            Some(sum) => (sum + seed)?,
        });
    }
    let Some(root) = root else { return inputs.iter().map(|input| input.zeros_like()).collect() };
    let mut gradients = root.backward()?;
    inputs.iter().map(|input| gradients.remove(input).map_or_else(|| input.zeros_like(), Ok)).collect()
}

/// Scalar 0 forward, the gradient it holds backward.
struct Seed(Tensor);

impl CustomOp1 for Seed {
    fn name(&self) -> &'static str {
        "seed"
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        Ok((CpuStorage::F32(vec![0.0]), Shape::from(())))
    }

    fn bwd(&self, _: &Tensor, _: &Tensor, _: &Tensor) -> Result<Option<Tensor>> {
        Ok(Some(self.0.clone()))
    }
}
