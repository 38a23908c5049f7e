//! The communicator of one rank: nothing moves, but arguments are checked as by the other backends.

use candle_core::Tensor;
use std::sync::Arc;

use super::{Communicator, Reduce, check};
use crate::Result;
use crate::ops::bytes;

/// A group of one rank. Its collectives return what the rank gave: [`all_to_all`](Communicator::all_to_all) hands the
/// tensor back, [`all_gather`](Communicator::all_gather) and [`reduce_scatter`](Communicator::reduce_scatter) copy it.
#[derive(Clone, Copy, Debug, Default)]
pub struct Single;

impl Communicator for Single {
    fn rank(&self) -> usize {
        0
    }

    fn size(&self) -> usize {
        1
    }

    fn all_to_all(&self, send: Vec<Tensor>, shapes: &[Vec<usize>]) -> Result<Vec<Tensor>> {
        check::all_to_all(&send, shapes, 1, bytes::check_here)?;
        check::sent(send[0].dims(), 0, &shapes[0], 0)?;
        Ok(send.iter().map(Tensor::detach).collect())
    }

    fn all_gather(&self, send: &Tensor, shapes: &[Vec<usize>]) -> Result<Vec<Tensor>> {
        check::all_gather(send, shapes, 0, 1, bytes::check_here)?;
        Ok(vec![bytes::duplicate(send)?])
    }

    fn reduce_scatter(&self, buffer: &Tensor, counts: &[usize]) -> Result<Tensor> {
        check::reduce_scatter(buffer, counts, 1, bytes::check_here)?;
        bytes::duplicate(buffer)
    }

    fn all_reduce(&self, buffer: &Tensor, _op: Reduce) -> Result<()> {
        check::all_reduce(buffer, bytes::check_here)
    }

    fn broadcast(&self, buffer: &Tensor, root: usize) -> Result<()> {
        check::broadcast(buffer, root, 1, bytes::check_here)
    }

    fn barrier(&self) -> Result<()> {
        Ok(())
    }

    fn split(&self, _color: usize, _key: usize) -> Result<Arc<dyn Communicator>> {
        Ok(Arc::new(Self))
    }
}
