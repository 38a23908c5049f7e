//! Writes the checkpoints of a run while it trains.

use super::rank::Rank;
use super::report::Report;
use crate::Result;
use crate::state::checkpoint::{DataCounts, State};

impl Rank<'_> {
    /// Rank 0 writes a checkpoint, of what all hand to it; all wait for it.
    pub fn save(&self, step: u64, position: u64, report: &mut Report) -> Result<()> {
        self.weights.check_finite(step)?;
        let recorded = report.sync(); // first, so that no checkpoint counts steps that a crash takes from the metrics
        let writes = self.mesh.world.rank() == 0;
        let saving = if writes { Some(self.setup.folder.begin(step)?) } else { None };
        let record = if writes { self.setup.adapter_record()? } else { None };
        self.weights.save(saving.as_ref(), record.as_ref())?;
        if let Some(saving) = saving {
            let config = &self.setup.config;
            if let Some(record) = &record {
                self.setup.export_adapters(&saving, step, record)?;
            }
            let mut state = State::new(config.to_toml()?, config.run.seed, step, position);
            state.run = Some(self.setup.name.clone());
            state.fps = self.setup.fps();
            state.data = Some(DataCounts::of(&self.setup.clips));
            state.classes = self.setup.clips.classes().to_vec();
            let path = saving.finish(&state, config.train.keep)?;
            tracing::info!("saved {}", path.display());
        }
        recorded?; // weights are worth more than their record: they are saved all the same
        self.mesh.world.barrier()
    }
}
