//! Runs a model forward only, for held-out losses, samples and `longreel forward`.

use candle_core::{Device, Tensor};
use std::ops::Range;

use super::{Engine, Pass, Source};
use crate::Result;
use crate::model::Conditioning;
use crate::observe::meter::Phase;
use crate::ops::Tape;

impl Engine<'_> {
    /// The network's outputs, tile by tile: `take` gets each run of rows and its output `[n, pt ph pw C]`.
    pub fn predict(
        &self,
        conditioning: &Conditioning,
        source: &dyn Source,
        mut take: impl FnMut(Range<usize>, Tensor) -> Result<()>,
    ) -> Result<()> {
        let (condition, x) = self.embed(conditioning, source)?;
        let x = self.forward(&condition, x, None)?;
        self.enter(Phase::Head);
        self.with_unit(self.model.head.unit, Pass::Forward, || {
            let head = self.model.head.begin(&condition)?;
            self.each_tile(self.per_row.head, |tile| {
                let output =
                    self.model.head.forward(&Tape::off(), &self.rows_of(&x, &tile)?, &head, self.sample_rows(&tile))?;
                take(tile, output.to_device(&Device::Cpu)?)
            })
        })
    }
}
