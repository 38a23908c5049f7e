//! What a checkpoint of adapters says beside their values: their layers, and the network that they belong to.

use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::files::{KnownHashes, Tensors, to_hex};
use crate::model::folder::Folder;
use crate::model::{LoraSpec, ModelConfig};
use crate::{Error, Result, bail};

/// What is hashed of a base, and the version of how.
const HASHED: &str = "network below adapters 1";

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
    /// Their [`base_sha256`]; none in checkpoints of before it was kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sha256: Option<String>,
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
        self.check(from, "fingerprint", weights, &self.base.weights)
    }

    /// As [`check_base`](Self::check_base), by the [`base_sha256`] of the weights, if it is known which it was.
    ///
    /// # Errors
    /// As there.
    pub fn check_sha256(&self, from: &str, sha256: &str) -> Result<()> {
        self.base.sha256.as_ref().map_or(Ok(()), |was| self.check(from, "SHA-256", sha256, was))
    }

    fn check(&self, from: &str, what: &str, is: &str, was: &str) -> Result<()> {
        if is != was {
            bail!(
                Checkpoint,
                "{from}: has other weights than the network that the adapters were trained on ({}): {what} {is}, then {was}; put \
                 back what was there, or start a new run from the adapters with lora.from",
                self.base.from,
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

/// The SHA-256 of weights: of the names, types, shapes and stored bytes of all tensors, in the order of the names. It
/// is the same in one file and in shards. Every byte is read, unless it is `known` of an earlier time.
///
/// # Errors
/// A file cannot be read.
pub fn base_sha256(weights: &Tensors, known: Option<&KnownHashes>) -> Result<String> {
    let compute = || {
        let names: Vec<&str> = weights.names().collect();
        let sums = names.par_iter().map(|name| weights.sha256(name)).collect::<Result<Vec<_>>>()?;
        let mut all = Sha256::new();
        for (name, sum) in names.iter().zip(sums) {
            all.update(format!("{name} {:?} {:?} ", weights.dtype(name)?, weights.shape(name)?));
            all.update(sum);
        }
        Ok(to_hex(all.finalize()))
    };
    match known {
        Some(known) => known.get(HASHED, &weights.files(), compute),
        None => compute(),
    }
}
