//! A frame's rows over ranks: each holds a run of latent rows and the pixels under them, and lends its neighbours the
//! rows at its ends.

use candle_core::{Device, Tensor};
use std::ops::Range;
use std::sync::Arc;

use crate::Result;
use crate::parallel::{Communicator, Split};
use crate::vae::{Frame, RowShards};

/// How the frames of one clip are split over the ranks of a communicator. Where there are more ranks than latent rows,
/// the last ones hold none.
pub struct Rows {
    comm: Arc<dyn Communicator>,
    /// Of the ranks that hold rows; none where this rank holds none.
    group: Option<Arc<dyn Communicator>>,
    split: Split,
}

impl Rows {
    /// Splits `latent_rows` over the ranks of `comm`, which all call this.
    ///
    /// # Errors
    /// Those of [`Communicator::split`].
    pub fn new(comm: Arc<dyn Communicator>, latent_rows: usize) -> Result<Self> {
        let split = Split::new(latent_rows, comm.size().min(latent_rows).max(1));
        let holds = comm.rank() < split.parts;
        let group = match split.parts == comm.size() {
            true => comm.clone(),
            false => comm.split(usize::from(!holds), comm.rank())?,
        };
        Ok(Self { comm, group: holds.then_some(group), split })
    }

    /// Latent rows of this rank.
    pub fn latent(&self) -> Range<usize> {
        self.latent_of(self.comm.rank())
    }

    fn latent_of(&self, rank: usize) -> Range<usize> {
        if rank < self.split.parts { self.split.range(rank) } else { self.split.total..self.split.total }
    }

    /// Pixel rows of this rank: `scale` for each latent row, the last one holding what is left of `rows`.
    pub fn pixels(&self, scale: usize, rows: usize) -> Range<usize> {
        let latent = self.latent();
        let end = if latent.end == self.split.total { rows } else { latent.end * scale };
        if latent.is_empty() { rows..rows } else { latent.start * scale..end }
    }

    /// The rows of other ranks for the VAE's layers; none where this rank holds no rows.
    pub fn shards(&self) -> Option<Neighbours<'_>> {
        self.group.as_deref().map(Neighbours)
    }

    /// The whole frame from every rank's rows, on all ranks. `part` is this rank's, empty where it holds none; `scale`
    /// rows for each latent row.
    ///
    /// # Errors
    /// Those of the exchange.
    pub fn gather(&self, part: &Frame, scale: usize) -> Result<Frame> {
        let (width, channels) = (part.width, part.channels);
        let shapes: Vec<_> =
            (0..self.comm.size()).map(|r| vec![self.latent_of(r).len() * scale * width * channels]).collect();
        let values = gathered(self.comm.as_ref(), &part.values, &shapes)?;
        Ok(Frame::new([self.split.total * scale, width, channels], values))
    }
}

/// All ranks' values, one after another.
fn gathered(comm: &dyn Communicator, own: &[f32], shapes: &[Vec<usize>]) -> Result<Vec<f32>> {
    let parts = comm.all_gather(&Tensor::from_slice(own, own.len(), &Device::Cpu)?, shapes)?;
    let mut values = Vec::with_capacity(shapes.iter().map(|shape| shape[0]).sum());
    for part in parts {
        values.extend(part.to_vec1::<f32>()?);
    }
    Ok(values)
}

/// The rows beyond this rank's, from the ranks beside it.
pub struct Neighbours<'a>(&'a dyn Communicator);

impl RowShards for Neighbours<'_> {
    fn is_whole(&self) -> bool {
        self.0.size() == 1
    }

    fn neighbours(&self, [first, last]: [&[f32]; 2]) -> Result<[Option<Vec<f32>>; 2]> {
        let (rank, size, row) = (self.0.rank(), self.0.size(), first.len());
        let beside = |r: usize| r + 1 == rank || r == rank + 1;
        let send = (0..size).map(|r| {
            let values = match r {
                r if r + 1 == rank => first,
                r if r == rank + 1 => last,
                _ => &[],
            };
            Tensor::from_slice(values, values.len(), &Device::Cpu)
        });
        let shapes: Vec<_> = (0..size).map(|r| vec![if beside(r) { row } else { 0 }]).collect();
        let parts = self.0.all_to_all(send.collect::<candle_core::Result<_>>()?, &shapes)?;
        let mut rows = [None, None];
        if rank > 0 {
            rows[0] = Some(parts[rank - 1].to_vec1::<f32>()?);
        }
        if rank + 1 < size {
            rows[1] = Some(parts[rank + 1].to_vec1::<f32>()?);
        }
        Ok(rows)
    }

    fn gather(&self, values: &[f32]) -> Result<Vec<f32>> {
        // Rows are shared out as even as can be, but not evenly.
        let count = Tensor::new(&[values.len() as f64], &Device::Cpu)?;
        let counts = self.0.all_gather(&count, &vec![vec![1]; self.0.size()])?;
        let shapes = counts.iter().map(|count| Ok(vec![count.to_vec1::<f64>()?[0] as usize]));
        gathered(self.0, values, &shapes.collect::<Result<Vec<_>>>()?)
    }
}
