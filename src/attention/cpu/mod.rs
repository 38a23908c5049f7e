//! placeholder
use crate::Result;
use candle_core::Tensor;
pub fn forward(_q: &Tensor, _k: &Tensor, _v: &Tensor, _scale: f64) -> Result<(Tensor, Tensor)> {
    crate::bail!("not yet")
}
pub fn backward(
    _q: &Tensor,
    _k: &Tensor,
    _v: &Tensor,
    _d_o: &Tensor,
    _lse: &Tensor,
    _delta: &Tensor,
    _scale: f64,
) -> Result<(Tensor, Tensor, Tensor)> {
    crate::bail!("not yet")
}
