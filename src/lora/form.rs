//! Reads the key of a LoRA file's tensor: whose naming it has, which layer it adapts, and what it is of that layer.

use crate::model::names;

/// A file's naming.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[cfg_attr(feature = "cli", derive(clap::ValueEnum))]
#[cfg_attr(feature = "cli", value(rename_all = "lowercase"))]
pub enum Form {
    /// `diffusion_model.blocks.0.self_attn.q.lora_A.weight`: ComfyUI's, which diffusers reads too.
    Comfy,
    /// `transformer.blocks.0.attn1.to_q.lora_A.weight`, scales in the header: diffusers'; peft's `base_model.model.`.
    Diffusers,
    /// `lora_unet_blocks_0_self_attn_q.lora_down.weight`, with alpha tensors: kohya's tools.
    Kohya,
    /// `blocks.0.self_attn.q.lora_A.default.weight`, no prefix: DiffSynth.
    #[cfg_attr(feature = "cli", value(skip))]
    Plain,
}

impl Form {
    /// Its name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Comfy => "comfy",
            Self::Diffusers => "diffusers",
            Self::Kohya => "kohya",
            Self::Plain => "plain",
        }
    }

    /// Whose form it is, and how its keys begin.
    pub fn described(self) -> &'static str {
        match self {
            Self::Comfy => "ComfyUI's form (diffusion_model. and Wan's names)",
            Self::Diffusers => "diffusers' form (transformer. and diffusers' names, scales in the header)",
            Self::Kohya => "kohya's form (lora_unet_ and Wan's names with underscores, alpha tensors)",
            Self::Plain => "DiffSynth's form (names without a prefix)",
        }
    }
}

/// What a tensor is of its layer's adapter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Part {
    A,
    B,
    Alpha,
}

/// A key that was understood.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Key {
    pub form: Form,
    /// diffusers' name of the layer.
    pub layer: String,
    pub part: Part,
}

/// Why a key was not understood.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Unknown {
    /// No layer of Wan's transformer, or nothing of an adapter.
    Key,
    /// An adapter of a norm, a table or the patch embedding.
    NotLinear,
    /// A change of weights, biases or norms as they are.
    Diff,
    /// The magnitudes of weight-decomposed adapters.
    Dora,
    /// A bias of A or B.
    Bias,
    /// Another decomposition than A and B: LoHa, LoKr, LoCon.
    Decomposition,
    /// The second expert of a pipeline of two.
    Expert,
}

impl Unknown {
    /// What such keys are and what to do about them.
    pub fn described(self) -> &'static str {
        match self {
            Self::Key => "of no layer of Wan's transformer",
            Self::NotLinear => "of norms, tables or the patch embedding, which are no linear layers",
            Self::Diff => {
                "with whole changes of weights, biases or norms (as distilled and extracted LoRAs have them), which \
                 are not supported: merge the file into the base with the tool that made it"
            }
            Self::Dora => "with magnitudes of DoRA, which is not supported: train or export without it",
            Self::Bias => "with biases of A or B, which are not supported: export without them",
            Self::Decomposition => "of another decomposition than B A (LoHa, LoKr, LoCon), which is not supported",
            Self::Expert => "of a pipeline's second expert: save it as a file of its own",
        }
    }
}

/// What ends a key, and what it is.
const PARTS: [(&str, Part); 7] = [
    (".lora_A.weight", Part::A),
    (".lora_A.default.weight", Part::A),
    (".lora_down.weight", Part::A),
    (".lora_B.weight", Part::B),
    (".lora_B.default.weight", Part::B),
    (".lora_up.weight", Part::B),
    (".alpha", Part::Alpha),
];

/// What ends or is in keys of other kinds of adapters.
const OTHERS: [(&str, Unknown); 15] = [
    (".diff", Unknown::Diff),
    (".diff_b", Unknown::Diff),
    (".set_weight", Unknown::Diff),
    (".w_norm", Unknown::Diff),
    (".b_norm", Unknown::Diff),
    (".dora_scale", Unknown::Dora),
    (".lora_magnitude_vector", Unknown::Dora),
    (".lora_A.bias", Unknown::Bias),
    (".lora_B.bias", Unknown::Bias),
    (".lora_A.default.bias", Unknown::Bias),
    (".lora_B.default.bias", Unknown::Bias),
    (".lora_up.bias", Unknown::Bias),
    (".lora_mid.weight", Unknown::Decomposition),
    (".hada_w", Unknown::Decomposition),
    (".lokr_w", Unknown::Decomposition),
];

/// Whether a tensor of this key is one of an adapter, of whatever network, understood or not.
pub fn is_adapter_key(key: &str) -> bool {
    match parse(key) {
        Ok(key) => key.part != Part::Alpha,
        Err(Unknown::Key | Unknown::NotLinear | Unknown::Expert) => key.contains(".lora_"),
        Err(_) => true,
    }
}

/// Takes a key apart.
pub(super) fn parse(key: &str) -> Result<Key, Unknown> {
    if key.starts_with("transformer_2.") {
        return Err(Unknown::Expert);
    }
    let Some((stem, part)) = PARTS.iter().find_map(|(end, part)| Some((key.strip_suffix(end)?, *part))) else {
        let other = OTHERS.iter().find(|(mark, _)| {
            key.ends_with(mark) || key.contains(&format!("{mark}.")) || (mark.ends_with("_w") && key.contains(mark))
        });
        return Err(other.map_or(Unknown::Key, |(_, unknown)| *unknown));
    };
    let prefixes = [
        ("diffusion_model.", Form::Comfy),
        ("model.diffusion_model.", Form::Comfy),
        ("transformer.", Form::Diffusers),
        ("base_model.model.", Form::Diffusers),
    ];
    let (form, layer) = if let Some(rest) = stem.strip_prefix("lora_unet_") {
        (Form::Kohya, names::layer_of_underscored(rest))
    } else {
        let found = prefixes.iter().find_map(|(prefix, form)| Some((stem.strip_prefix(prefix)?, *form)));
        let (rest, form) = found.unwrap_or((stem, Form::Plain));
        // Wan's names where there are any; no layer has the same name in both but the patch embedding.
        (form, names::layer(rest).or_else(|| names::place(rest).map(|_| rest.to_owned())))
    };
    let layer = layer.ok_or(Unknown::Key)?;
    if !names::is_linear(&layer) {
        return Err(Unknown::NotLinear);
    }
    Ok(Key { form, layer, part })
}

/// `keys` for people, each named once: those that differ in the number of their block or layer alone are one, with how
/// many there are.
pub(super) fn listed<'a>(keys: impl IntoIterator<Item = &'a str>) -> String {
    let mut groups: Vec<(String, &str, usize)> = vec![];
    for key in keys {
        let group = without_block(key).unwrap_or_else(|| key.to_owned());
        match groups.iter_mut().find(|(name, ..)| *name == group) {
            Some((.., count)) => *count += 1,
            None => groups.push((group, key, 1)),
        }
    }
    let shown = groups.into_iter().map(|(group, key, count)| match count {
        1 => key.to_owned(),
        _ => format!("{group} ({count} blocks)"),
    });
    shown.collect::<Vec<_>>().join(", ")
}

/// The key with the number of its block, or in other networks of its layer, replaced by `{N}`.
fn without_block(key: &str) -> Option<String> {
    let after = |word: &str| key.find(word).map(|at| at + word.len() + 1);
    let start = after("blocks").or_else(|| after("layers"))?;
    let digits = key.get(start..)?.bytes().take_while(u8::is_ascii_digit).count();
    (digits > 0).then(|| format!("{}{{N}}{}", &key[..start], &key[start + digits..]))
}
