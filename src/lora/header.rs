//! Reads and writes what the header of a LoRA file says: peft's ranks and scales, and facts of the run.

use serde_json::{Map, Value, json};
use std::collections::BTreeMap;

use super::{Adapter, AdapterModule, pattern};

/// The header's key with peft's settings as JSON.
pub(super) const PEFT: &str = "lora_adapter_metadata";

/// What the fields of [`PEFT`] begin with.
pub(super) const TRANSFORMER: &str = "transformer.";

/// Facts of the run that made an adapter, which file managers show and people look for.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RunFacts {
    /// What the adapter is for, such as `wan2.1/lora`.
    pub architecture: Option<String>,
    pub learning_rate: Option<f64>,
    pub steps: Option<u64>,
    pub epoch: Option<u64>,
    pub seed: Option<u64>,
    /// The file's name without what marks its form.
    pub name: Option<String>,
    /// When the run started, in seconds since 1970.
    pub started: Option<u64>,
    /// The run's config, as JSON.
    pub config: Option<Value>,
    /// What the base model is called, and the SHA-256 of its weights.
    pub base: Option<String>,
    pub base_sha256: Option<String>,
    /// `high` or `low`, of a model of two experts.
    pub expert: Option<String>,
}

impl RunFacts {
    /// The header's entries.
    pub fn metadata(&self) -> BTreeMap<String, String> {
        let number = |n: Option<u64>| n.map(|n| n.to_string());
        let entries = [
            ("modelspec.architecture", self.architecture.clone()),
            ("ss_learning_rate", self.learning_rate.map(|rate| rate.to_string())),
            ("ss_steps", number(self.steps)),
            ("ss_epoch", number(self.epoch)),
            ("ss_seed", number(self.seed)),
            ("ss_output_name", self.name.clone()),
            ("ss_training_started_at", number(self.started)),
            ("longreel.config", self.config.as_ref().map(Value::to_string)),
            ("longreel.base", self.base.clone()),
            ("longreel.base_sha256", self.base_sha256.clone()),
            ("longreel.expert", self.expert.clone()),
        ];
        entries.into_iter().filter_map(|(key, value)| Some((key.to_owned(), value?))).collect()
    }
}

/// The entries that tell kohya's tools and file managers of ranks and scales.
pub(super) fn network(adapter: &Adapter) -> [(&'static str, String); 4] {
    let one = |value: fn(&AdapterModule) -> String| {
        let mut values: Vec<String> = adapter.modules.iter().map(value).collect();
        values.dedup();
        if let [value] = values.as_slice() { value.clone() } else { "Dynamic".to_owned() }
    };
    [
        ("ss_base_model_version", "wan".to_owned()),
        ("ss_network_module", "networks.lora_wan".to_owned()),
        ("ss_network_dim", one(|module| module.rank.to_string())),
        ("ss_network_alpha", one(|module| module.alpha.to_string())),
    ]
}

/// Peft's settings as the JSON that diffusers reads: every field of it becomes one of peft's `LoraConfig`.
pub(super) fn peft_json(adapter: &Adapter) -> String {
    let commonest = |values: Vec<f64>| {
        let count = |value: f64| values.iter().filter(|other| **other == value).count();
        values.iter().copied().max_by(|a, b| count(*a).cmp(&count(*b)).then(b.total_cmp(a))).unwrap_or(1.0)
    };
    let rank = commonest(adapter.modules.iter().map(|module| module.rank as f64).collect());
    let alpha = commonest(adapter.modules.iter().map(|module| module.alpha).collect());
    let (mut ranks, mut alphas) = (Map::new(), Map::new());
    for module in &adapter.modules {
        let pattern = || format!("^{}", module.name);
        if module.rank as f64 != rank {
            ranks.insert(pattern(), json!(module.rank));
        }
        if module.alpha != alpha {
            alphas.insert(pattern(), number(module.alpha));
        }
    }
    // Whole names: the end of one, such as `to_q`, would also name layers that this adapter leaves alone.
    let targets: Vec<&str> = adapter.modules.iter().map(|module| module.name.as_str()).collect();
    let fields = [
        ("alpha_pattern", Value::Object(alphas)),
        ("bias", json!("none")),
        ("init_lora_weights", json!(false)),
        ("lora_alpha", number(alpha)),
        ("lora_bias", json!(false)),
        ("lora_dropout", json!(0.0)),
        ("r", number(rank)),
        ("rank_pattern", Value::Object(ranks)),
        ("target_modules", json!(targets)),
        ("use_dora", json!(false)),
        ("use_rslora", json!(false)),
    ];
    let fields: BTreeMap<String, Value> =
        fields.into_iter().map(|(field, value)| (format!("{TRANSFORMER}{field}"), value)).collect();
    json!(fields).to_string()
}

/// A number as JSON, whole ones without a point.
fn number(value: f64) -> Value {
    let whole = value as i64;
    if whole as f64 == value { json!(whole) } else { json!(value) }
}

/// Ranks and scales as peft's settings have them.
#[derive(Debug)]
pub(super) struct Peft {
    rank: usize,
    alpha: f64,
    ranks: Vec<(String, f64)>,
    alphas: Vec<(String, f64)>,
    /// The scale is alpha / sqrt(r).
    rslora: bool,
}

impl Peft {
    /// Reads settings whose fields begin with `prefix`; other fields are none of ours.
    ///
    /// # Errors
    /// A field is not of its type, or asks for what is not supported.
    pub fn parse(json: &Value, prefix: &str) -> Result<Self, String> {
        let field = |name: &str| json.get(format!("{prefix}{name}")).filter(|value| !value.is_null());
        for name in ["use_dora", "lora_bias", "use_qalora"] {
            if field(name).is_some_and(|value| value != &json!(false)) {
                return Err(format!("`{name}` is set, which is not supported: train or export without it"));
            }
        }
        if let Some(bias) = field("bias").filter(|bias| *bias != "none") {
            return Err(format!("`bias` is {bias}, so biases were trained too, which is not supported"));
        }
        let number = |name: &str| match field(name) {
            None => Ok(None),
            Some(value) => match value.as_f64().filter(|n| n.is_finite()) {
                Some(n) => Ok(Some(n)),
                None => Err(format!("`{name}` is {value}, not a number")),
            },
        };
        let patterns = |name: &str| match field(name) {
            None => Ok(vec![]),
            Some(Value::Object(map)) => map
                .iter()
                .map(|(pattern, value)| match value.as_f64().filter(|n| n.is_finite()) {
                    Some(n) => Ok((pattern.clone(), n)),
                    None => Err(format!("`{name}` has {value} for `{pattern}`, not a number")),
                })
                .collect(),
            Some(other) => Err(format!("`{name}` is {other}, not an object")),
        };
        Ok(Self {
            rank: number("r")?.unwrap_or(8.0) as usize, // peft's defaults
            alpha: number("lora_alpha")?.unwrap_or(8.0),
            ranks: patterns("rank_pattern")?,
            alphas: patterns("alpha_pattern")?,
            rslora: field("use_rslora") == Some(&json!(true)),
        })
    }

    /// alpha of a layer whose tensors have this rank.
    ///
    /// # Errors
    /// The settings give it another rank, or more than one value.
    pub fn alpha(&self, layer: &str, rank: usize) -> Result<f64, String> {
        let wanted = named(&self.ranks, layer)?.map_or(self.rank, |rank| rank as usize);
        if wanted != rank {
            return Err(format!("{layer} has rank {rank} in the file, and {wanted} in the settings"));
        }
        let alpha = named(&self.alphas, layer)?.unwrap_or(self.alpha);
        Ok(if self.rslora { alpha * (rank as f64).sqrt() } else { alpha })
    }
}

/// What the patterns give a layer.
fn named(patterns: &[(String, f64)], layer: &str) -> Result<Option<f64>, String> {
    let mut found: Option<(&str, f64)> = None;
    for (pattern, value) in patterns {
        if pattern::names(pattern, layer)? {
            match found {
                Some((first, other)) if other != *value => {
                    return Err(format!("`{first}` and `{pattern}` give {layer} two values, {other} and {value}"));
                }
                _ => found = Some((pattern, *value)),
            }
        }
    }
    Ok(found.map(|(_, value)| value))
}
