//! Says which network a config means.

use super::named::NamedModel;
use crate::config::RunConfig;
use crate::model::ModelConfig;
use crate::model::folder::read_config;
use crate::{Result, hub};

/// The network of a config: the sizes it names, or the config.json of the folder that it names. No weights are read.
pub fn network(config: &RunConfig) -> Result<ModelConfig> {
    let Some(from) = &config.model.from else { return Ok(described(config)) };
    let path = NamedModel::find(&hub::resolve(from)?)?.dir.join("config.json");
    let json = read_config(&path).map_err(|e| e.at("model.from"))?;
    ModelConfig::from_json(&json).map_err(|e| e.at(path.display()))
}

/// The network `[model]` describes: on pixels, without text.
pub fn described(config: &RunConfig) -> ModelConfig {
    let m = &config.model;
    ModelConfig {
        patch_size: m.patch_size,
        num_attention_heads: m.num_attention_heads,
        attention_head_dim: m.attention_head_dim,
        in_channels: 3,
        out_channels: 3,
        text_dim: 0,
        freq_dim: m.freq_dim,
        ffn_dim: m.ffn_dim,
        num_layers: m.num_layers,
        num_classes: m.num_classes,
        pos_embed: m.pos_embed,
        ..ModelConfig::default()
    }
}
