//! What one rank can see wrong in its own arguments to a collective, the same for every backend. What it can move
//! is the backend's to say: `movable` refuses a tensor that is elsewhere or of another kind.

use candle_core::{DType, Tensor};

use crate::{Result, bail};

pub(super) fn all_to_all(
    send: &[Tensor],
    shapes: &[Vec<usize>],
    size: usize,
    movable: impl Fn(&Tensor) -> Result<()>,
) -> Result<()> {
    if send.len() != size || shapes.len() != size {
        bail!(
            Shape,
            "all_to_all over {size} ranks was given {} tensors and {} shapes; it needs one a rank",
            send.len(),
            shapes.len()
        );
    }
    for t in send {
        movable(t)?;
        if t.dtype() != send[0].dtype() {
            bail!(
                Shape,
                "all_to_all was given tensors of {:?} and of {:?}; they must agree",
                send[0].dtype(),
                t.dtype()
            );
        }
    }
    Ok(())
}

/// The one check that takes both sides: what rank `from` sends is what rank `to` expects.
pub(super) fn sent(dims: &[usize], from: usize, expected: &[usize], to: usize) -> Result<()> {
    if dims != expected {
        bail!(Shape, "all_to_all: rank {from} sends {dims:?} to rank {to}, which expects {expected:?}");
    }
    Ok(())
}

pub(super) fn all_gather(
    send: &Tensor,
    shapes: &[Vec<usize>],
    rank: usize,
    size: usize,
    movable: impl Fn(&Tensor) -> Result<()>,
) -> Result<()> {
    if shapes.len() != size {
        bail!(Shape, "all_gather over {size} ranks was given {} shapes; it needs one a rank", shapes.len());
    }
    if send.dims() != shapes[rank] {
        bail!(Shape, "all_gather: rank {rank} sends {:?}, but shapes says {:?}", send.dims(), shapes[rank]);
    }
    movable(send)
}

pub(super) fn reduce_scatter(
    buffer: &Tensor,
    counts: &[usize],
    size: usize,
    movable: impl Fn(&Tensor) -> Result<()>,
) -> Result<()> {
    if counts.len() != size {
        bail!(Shape, "reduce_scatter over {size} ranks was given {} counts; it needs one a rank", counts.len());
    }
    if buffer.rank() != 1 || counts.iter().sum::<usize>() != buffer.elem_count() {
        bail!(Shape, "reduce_scatter: counts {counts:?} do not add up to a 1-D buffer of shape {:?}", buffer.dims());
    }
    reducible(buffer, movable)
}

pub(super) fn all_reduce(buffer: &Tensor, movable: impl Fn(&Tensor) -> Result<()>) -> Result<()> {
    contiguous("all_reduce", buffer)?;
    reducible(buffer, movable)
}

pub(super) fn broadcast(
    buffer: &Tensor,
    root: usize,
    size: usize,
    movable: impl Fn(&Tensor) -> Result<()>,
) -> Result<()> {
    if root >= size {
        bail!(Shape, "broadcast from rank {root}, but there are only {size} ranks");
    }
    contiguous("broadcast", buffer)?;
    movable(buffer)
}

fn contiguous(call: &str, buffer: &Tensor) -> Result<()> {
    if !buffer.is_contiguous() {
        bail!(
            Shape,
            "{call} writes in place and needs a contiguous tensor, got {:?} with strides {:?}",
            buffer.dims(),
            buffer.stride()
        );
    }
    Ok(())
}

fn reducible(buffer: &Tensor, movable: impl Fn(&Tensor) -> Result<()>) -> Result<()> {
    if !matches!(buffer.dtype(), DType::F32 | DType::F64) {
        bail!(Shape, "only f32 and f64 are reduced over ranks, got {:?}; convert the buffer first", buffer.dtype());
    }
    movable(buffer)
}
