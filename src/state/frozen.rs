//! Loads a frozen network with adapters once for all ranks that are threads of this process.

use parking_lot::Mutex;

use crate::Result;
use crate::model::Model;

/// A frozen network with adapters, which the ranks of this process share.
pub struct FrozenModel {
    /// The model, and how many ranks will take it still.
    loaded: Mutex<(Option<Model>, usize)>,
}

impl FrozenModel {
    /// For so many ranks of this process.
    pub fn new(ranks: usize) -> Self {
        Self { loaded: Mutex::new((None, ranks)) }
    }

    /// The rank's model, its adapters drawn from `seed`: the first one's is what `load` makes, the others share its
    /// frozen values. Each rank calls it once.
    ///
    /// # Errors
    /// Those of `load`.
    pub fn take(&self, seed: u64, load: impl FnOnce() -> Result<Model>) -> Result<Model> {
        let mut loaded = self.loaded.lock();
        let model = match loaded.0.take() {
            Some(model) => model,
            None => load()?,
        };
        loaded.1 = loaded.1.saturating_sub(1);
        if loaded.1 == 0 {
            return Ok(model);
        }
        let own = model.sharing(seed)?;
        loaded.0 = Some(model);
        Ok(own)
    }
}
