//! Describes the network's shape: the fields of diffusers' config.json for `WanTransformer3DModel`, and longreel's own.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::folder::Folder;
use super::layout::of_wans_own;
use super::spec;
use crate::{Error, Result, bail};

/// More positions along an axis are a mistake.
pub const MOST_POSITIONS: usize = 1 << 20;

/// A larger model is a mistake: 2^40 parameters are 4 TiB.
const MOST_PARAMETERS: u128 = 1 << 40;

/// What a model is. Fields keep diffusers' names; `text_dim = 0`, `num_classes` and `pos_embed` are longreel's.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ModelConfig {
    /// Patch size (frames, height, width) in pixels or latents.
    pub patch_size: [usize; 3],
    /// Attention heads H.
    pub num_attention_heads: usize,
    /// Features of a head d; the width D is H d.
    pub attention_head_dim: usize,
    /// Channels of the input: 3 for pixels, 16 for Wan's latents.
    pub in_channels: usize,
    /// Channels of the output.
    #[serde(deserialize_with = "or_zero")]
    pub out_channels: usize,
    /// Features of a text token; 0: no text and no cross-attention.
    #[serde(deserialize_with = "or_zero")]
    pub text_dim: usize,
    /// Sinusoidal features of the timestep.
    pub freq_dim: usize,
    /// Hidden width of the MLP.
    pub ffn_dim: usize,
    /// Blocks L.
    pub num_layers: usize,
    /// LayerNorm with weights before cross-attention.
    pub cross_attn_norm: bool,
    /// Normalisation of q and k: only "rms_norm_across_heads", as in diffusers.
    pub qk_norm: Option<String>,
    /// Epsilon of every normalisation.
    pub eps: f64,
    /// Positions along an axis in diffusers' table of angles. No limit: angles are computed, for as many as there are.
    pub rope_max_seq_len: usize,
    /// Classes; one null class is added for guidance. 0: no class labels.
    pub num_classes: usize,
    /// Fixed sine-cosine positions are added to the embedded patches (see [`Embed`](super::Embed)).
    pub pos_embed: bool,
}

impl Default for ModelConfig {
    /// diffusers' defaults (Wan 2.1 14B).
    fn default() -> Self {
        Self {
            patch_size: [1, 2, 2],
            num_attention_heads: 40,
            attention_head_dim: 128,
            in_channels: 16,
            out_channels: 16,
            text_dim: 4096,
            freq_dim: 256,
            ffn_dim: 13824,
            num_layers: 40,
            cross_attn_norm: true,
            qk_norm: Some("rms_norm_across_heads".into()),
            eps: 1e-6,
            rope_max_seq_len: 1024,
            num_classes: 0,
            pos_embed: false,
        }
    }
}

/// diffusers writes null where a size is absent.
fn or_zero<'de, D: serde::Deserializer<'de>>(value: D) -> std::result::Result<usize, D::Error> {
    Ok(Option::deserialize(value)?.unwrap_or(0))
}

impl ModelConfig {
    /// The width D = H d.
    pub fn width(&self) -> usize {
        self.num_attention_heads * self.attention_head_dim
    }

    /// Elements in a patch of the input: channels x frames x height x width.
    pub fn patch_in(&self) -> usize {
        self.in_channels * self.patch_size.iter().product::<usize>()
    }

    /// Elements in a patch of the output.
    pub fn patch_out(&self) -> usize {
        self.out_channels * self.patch_size.iter().product::<usize>()
    }

    /// Elements of the widest row that any layer takes or makes of a token.
    pub fn widest_row(&self) -> usize {
        [self.width(), self.ffn_dim, self.patch_in(), self.patch_out()].into_iter().fold(1, usize::max)
    }

    /// Tokens along (time, height, width) of a clip of `size` (frames, height, width); an error if a patch does not
    /// divide it, or an axis has more than [`MOST_POSITIONS`].
    pub fn grid(&self, size: [usize; 3]) -> Result<[usize; 3]> {
        let mut grid = [0; 3];
        for (axis, name) in ["frames", "height", "width"].into_iter().enumerate() {
            let (n, patch) = (size[axis], self.patch_size[axis]);
            if n == 0 || !n.is_multiple_of(patch) {
                bail!(Shape, "{name} {n} is not a multiple of the patch's {patch} (patch_size = {:?})", self.patch_size)
            }
            grid[axis] = n / patch;
            if grid[axis] > MOST_POSITIONS {
                bail!(Shape, "{name} {n} gives {} positions; it must be at most {MOST_POSITIONS}", grid[axis])
            }
        }
        Ok(grid)
    }

    /// Reads a config.json, diffusers' or Wan's own. Keys that diffusers writes for other models are refused if they
    /// ask for what longreel does not have, and named in the log if they are merely unknown.
    pub fn from_json(json: &Value) -> Result<Self> {
        if let Some(ours) = of_wans_own(json) {
            let kind = json.get("model_type").and_then(Value::as_str).unwrap_or("t2v");
            if !["t2v", "ti2v"].contains(&kind) {
                bail!(Data, "config.json: model_type is {kind}; image-conditioned models (I2V) are not supported")
            }
            return Self::from_json(&ours);
        }
        let Some(map) = json.as_object() else { bail!(Data, "config.json: an object wanted") };
        if let Some(class) = map.get("_class_name").and_then(Value::as_str)
            && class != "WanTransformer3DModel"
        {
            bail!(Data, "config.json: _class_name is {class}; longreel runs WanTransformer3DModel")
        }
        for key in ["image_dim", "added_kv_proj_dim", "pos_embed_seq_len"] {
            if map.get(key).is_some_and(|v| !v.is_null()) {
                bail!(Data, "config.json: {key} is set; image-conditioned models (I2V) are not supported")
            }
        }
        let known = serde_json::to_value(Self::default()).expect("plain fields");
        for key in map.keys().filter(|k| !k.starts_with('_') && !IGNORED.contains(&k.as_str())) {
            if known.get(key).is_none() {
                tracing::warn!("config.json: unknown key {key} is ignored");
            }
        }
        let mut config: Self = serde_path_to_error::deserialize(json)
            .map_err(|e| Error::Data(format!("config.json: {}: {}", e.path(), e.inner())))?;
        if config.out_channels == 0 {
            config.out_channels = config.in_channels; // as diffusers does for null
        }
        config.check()?;
        Ok(config)
    }

    /// The config of a model folder, as [`from_json`](Self::from_json) reads it; errors name the folder.
    pub fn of(folder: &Folder) -> Result<Self> {
        Self::from_json(folder.config()).map_err(|e| e.at(folder.dir().display()))
    }

    /// The config.json diffusers would write, with longreel's own keys only where they are used.
    pub fn to_json(&self) -> Value {
        let mut map = Map::new();
        map.insert("_class_name".into(), "WanTransformer3DModel".into());
        map.insert("_diffusers_version".into(), "0.42.1".into());
        let fields = serde_json::to_value(self).expect("plain fields");
        map.extend(fields.as_object().expect("a struct").clone());
        if self.num_classes == 0 {
            map.remove("num_classes");
        }
        if !self.pos_embed {
            map.remove("pos_embed");
        }
        for key in IGNORED {
            map.insert(key.into(), Value::Null);
        }
        Value::Object(map)
    }

    /// Refuses sizes that cannot be run, naming the field. Whoever multiplies sizes afterwards cannot overflow, and the
    /// list of parameters is short enough to be made and compared with what a weights file holds before anything is
    /// allocated.
    pub fn check(&self) -> Result<()> {
        let [t, h, w] = self.patch_size;
        let bounds = [
            ("num_attention_heads", self.num_attention_heads, 1, 1 << 12),
            ("attention_head_dim", self.attention_head_dim, 1, usize::MAX),
            ("in_channels", self.in_channels, 1, 1 << 16),
            ("out_channels", self.out_channels, 1, 1 << 16),
            ("ffn_dim", self.ffn_dim, 1, 1 << 24),
            ("num_layers", self.num_layers, 1, 1 << 12),
            ("patch_size", t.saturating_mul(h).saturating_mul(w), 1, 1 << 24),
            ("text_dim", self.text_dim, 0, 1 << 20),
            ("freq_dim", self.freq_dim, 0, 1 << 20),
            ("num_classes", self.num_classes, 0, 1 << 24),
            ("rope_max_seq_len", self.rope_max_seq_len, 0, 1 << 24),
        ];
        for (name, value, least, most) in bounds {
            if value < least {
                bail!(Config, "model: {name} is 0; it must be at least 1")
            }
            if value > most {
                bail!(Config, "model: {name} is {value}; it must be at most {most}")
            }
        }
        if !self.attention_head_dim.is_multiple_of(8) || self.attention_head_dim > 256 {
            bail!(
                Config,
                "model: attention_head_dim is {}; a multiple of 8 up to 256 is wanted",
                self.attention_head_dim
            )
        }
        if self.freq_dim == 0 || !self.freq_dim.is_multiple_of(2) {
            bail!(Config, "model: freq_dim is {}; an even number is wanted", self.freq_dim)
        }
        if !(self.eps > 0.0 && self.eps.is_finite()) {
            bail!(Config, "model: eps is {}; a number above 0 is wanted", self.eps)
        }
        if let Some(other) = self.qk_norm.as_deref().filter(|norm| *norm != "rms_norm_across_heads") {
            bail!(Config, "model: qk_norm is {other}; only rms_norm_across_heads is known")
        }
        let count = spec::count(self);
        if count > MOST_PARAMETERS {
            bail!(Config, "model: its sizes make {count} parameters; it must be at most {MOST_PARAMETERS}")
        }
        Ok(())
    }
}

/// Keys of diffusers' config that are null in a text-to-video model.
const IGNORED: [&str; 3] = ["added_kv_proj_dim", "image_dim", "pos_embed_seq_len"];
