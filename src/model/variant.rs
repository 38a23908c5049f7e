//! Says which of Wan's models a transformer is, by the sizes in its config, and whether longreel runs it.

use serde_json::Value;

use super::layout::of_wans_own;
use super::{Model, ModelConfig};
use crate::Result;

/// What a transformer is: its sizes, those of its image conditioning, and what Wan calls it.
#[derive(Clone, Debug)]
pub struct Variant {
    pub config: ModelConfig,
    pub image: ImageSizes,
}

/// Sizes of the parts that only image-conditioned variants have; none in the others.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ImageSizes {
    /// Features of a token of the image encoder.
    pub image_dim: Option<usize>,
    /// Features that keys and values of image tokens are made of.
    pub added_kv_proj_dim: Option<usize>,
    /// Tokens that learned positions are added to.
    pub pos_embed_seq_len: Option<usize>,
}

impl Variant {
    /// Reads a config.json, diffusers' or Wan's own, of a variant that need not be one which longreel runs.
    ///
    /// # Errors
    /// Those of [`ModelConfig::from_json`] but for image conditioning.
    pub fn of_config(json: &Value) -> Result<Self> {
        let mut plain = of_wans_own(json).unwrap_or_else(|| json.clone());
        let mut take = |key: &str| {
            let size = plain.get(key).and_then(Value::as_u64).map(|size| size as usize);
            if let Some(map) = plain.as_object_mut() {
                map.remove(key);
            }
            size
        };
        let image = ImageSizes {
            image_dim: take("image_dim"),
            added_kv_proj_dim: take("added_kv_proj_dim"),
            pos_embed_seq_len: take("pos_embed_seq_len"),
        };
        Ok(Self { config: ModelConfig::from_json(&plain)?, image })
    }

    /// What Wan calls it, or its sizes.
    pub fn name(&self) -> String {
        let config = &self.config;
        let published = |[width, heads, ffn, layers]: [usize; 4]| {
            [config.width(), config.num_attention_heads, config.ffn_dim, config.num_layers]
                == [width, heads, ffn, layers]
        };
        let ([small, middle, large], channels) = (
            [[1536, 12, 8960, 30], [3072, 24, 14336, 30], [5120, 40, 13824, 40]].map(published),
            [config.in_channels, config.out_channels],
        );
        match (channels, self.image) {
            ([16, 16], ImageSizes { image_dim: None, .. }) if small => "Wan 2.1 T2V 1.3B".to_owned(),
            ([48, 48], ImageSizes { image_dim: None, .. }) if middle => "Wan 2.2 TI2V 5B".to_owned(),
            ([16, 16], ImageSizes { image_dim: None, .. }) if large => {
                "Wan 2.1 T2V 14B, or an expert of Wan 2.2 T2V A14B (they have the same sizes)".to_owned()
            }
            ([36, 16], ImageSizes { image_dim: None, .. }) if large => "an expert of Wan 2.2 I2V A14B".to_owned(),
            ([36, 16], ImageSizes { pos_embed_seq_len: Some(_), .. }) if large => "Wan 2.1 FLF2V 14B".to_owned(),
            ([36, 16], ImageSizes { image_dim: Some(_), .. }) if large => "Wan 2.1 I2V 14B".to_owned(),
            _ => format!("a transformer of Wan's kind, {} wide", config.width()),
        }
    }

    /// Why longreel does not train and sample it; none of what it does.
    pub fn unsupported(&self) -> Option<&'static str> {
        let config = &self.config;
        if self.image.image_dim.is_some() {
            return Some("it takes tokens of an image encoder (I2V), which is not supported");
        }
        let taken = config.in_channels > config.out_channels;
        taken.then_some("it takes an image's latents beside the noise (I2V), which is not supported")
    }

    /// Names and shapes of every parameter, those of image conditioning last.
    pub fn shapes(&self) -> Vec<(String, Vec<usize>)> {
        let mut shapes = Model::shapes(&self.config);
        let width = self.config.width();
        let mut add = |name: String, shape: &[usize]| shapes.push((name, shape.to_vec()));
        if let Some(features) = self.image.image_dim {
            let at = |name: &str| format!("condition_embedder.image_embedder.{name}");
            if let Some(tokens) = self.image.pos_embed_seq_len {
                add(at("pos_embed"), &[1, tokens, features]);
            }
            for (norm, n) in [("norm1", features), ("norm2", width)] {
                add(at(&format!("{norm}.weight")), &[n]);
                add(at(&format!("{norm}.bias")), &[n]);
            }
            for (layer, out) in [("ff.net.0.proj", features), ("ff.net.2", width)] {
                add(at(&format!("{layer}.weight")), &[out, features]);
                add(at(&format!("{layer}.bias")), &[out]);
            }
        }
        if let Some(features) = self.image.added_kv_proj_dim {
            for block in 0..self.config.num_layers {
                for layer in ["add_k_proj", "add_v_proj"] {
                    add(format!("blocks.{block}.attn2.{layer}.weight"), &[width, features]);
                    add(format!("blocks.{block}.attn2.{layer}.bias"), &[width]);
                }
                add(format!("blocks.{block}.attn2.norm_added_k.weight"), &[width]);
            }
        }
        shapes
    }
}
