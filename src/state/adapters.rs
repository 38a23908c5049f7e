//! What a checkpoint of adapters says beside their values: their layers, and the network that they belong to.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::files::Tensors;
use crate::model::folder::Folder;
use crate::model::{LoraSpec, ModelConfig};
use crate::{Error, Result, bail};

/// The config.json of a checkpoint's adapters.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AdapterRecord {
    /// The config of the network.
    pub network: Value,
    pub base: BaseRecord,
    pub lora: LoraSpec,
}

/// The frozen network that adapters were trained on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BaseRecord {
    /// A folder's absolute path, or a hub's name.
    pub from: String,
    /// The [`fingerprint`] of its weights.
    pub weights: String,
}

impl AdapterRecord {
    /// Reads it from the folder of a checkpoint's adapters.
    ///
    /// # Errors
    /// It is none.
    pub fn of(folder: &Folder) -> Result<Self> {
        let record = serde_json::from_value(folder.config().clone());
        record.map_err(|e| Error::Checkpoint(format!("{}: is no record of adapters: {e}", folder.dir().display())))
    }

    /// As JSON.
    pub fn to_json(&self) -> Value {
        serde_json::to_value(self).expect("plain fields")
    }

    /// The network's config.
    ///
    /// # Errors
    /// It is of no network that longreel knows.
    pub fn network(&self) -> Result<ModelConfig> {
        ModelConfig::from_json(&self.network)
    }

    /// Refuses a base of other weights.
    ///
    /// # Errors
    /// `weights`, the fingerprint of what was read from `from`, is not the base's.
    pub fn check_base(&self, from: &str, weights: &str) -> Result<()> {
        if self.base.weights != weights {
            bail!(
                Checkpoint,
                "{from}: has other weights than the network that the adapters were trained on ({}): fingerprint {weights}, then {}; put \
                 back what was there, or start a new run from the adapters with lora.from",
                self.base.from,
                self.base.weights
            )
        }
        Ok(())
    }
}

/// A fingerprint of weights that have been read, of their names and checksums: it tells other weights, not forgery.
pub fn fingerprint(weights: &Tensors) -> String {
    let mut hash = 0xcbf2_9ce4_8422_2325u64; // FNV-1a
    for (name, sum) in weights.tensor_sums() {
        let bytes = name.bytes().chain(sum.to_le_bytes());
        hash = bytes.fold(hash, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3));
    }
    format!("{hash:016x}")
}
