//! Translates the names of the transformer's parameters and layers between diffusers and Wan's own files.
//!
//! longreel's names are diffusers'; files with other names are translated as they are read or written. The names of
//! image-conditioned variants are known too, so that messages can say what a file is.

/// Layers and norms of a block, `blocks.N.`: Wan's name and diffusers', in the network's order. Norms without weights
/// are there too: Wan counts them as they stand, diffusers as they were added.
const BLOCK: [(&str, &str); 21] = [
    ("self_attn.q", "attn1.to_q"),
    ("self_attn.k", "attn1.to_k"),
    ("self_attn.v", "attn1.to_v"),
    ("self_attn.o", "attn1.to_out.0"),
    ("self_attn.norm_q", "attn1.norm_q"),
    ("self_attn.norm_k", "attn1.norm_k"),
    ("cross_attn.q", "attn2.to_q"),
    ("cross_attn.k", "attn2.to_k"),
    ("cross_attn.v", "attn2.to_v"),
    ("cross_attn.o", "attn2.to_out.0"),
    ("cross_attn.norm_q", "attn2.norm_q"),
    ("cross_attn.norm_k", "attn2.norm_k"),
    ("cross_attn.k_img", "attn2.add_k_proj"),
    ("cross_attn.v_img", "attn2.add_v_proj"),
    ("cross_attn.norm_k_img", "attn2.norm_added_k"),
    ("ffn.0", "ffn.net.0.proj"),
    ("ffn.2", "ffn.net.2"),
    ("norm1", "norm1"),
    ("norm2", "norm3"),
    ("norm3", "norm2"),
    ("modulation", "scale_shift_table"),
];

/// Layers and tables outside the blocks, those of the embedding, then those of the head.
const OUTSIDE: [(&str, &str); 13] = [
    ("patch_embedding", "patch_embedding"),
    ("time_embedding.0", "condition_embedder.time_embedder.linear_1"),
    ("time_embedding.2", "condition_embedder.time_embedder.linear_2"),
    ("time_projection.1", "condition_embedder.time_proj"),
    ("text_embedding.0", "condition_embedder.text_embedder.linear_1"),
    ("text_embedding.2", "condition_embedder.text_embedder.linear_2"),
    ("img_emb.proj.0", "condition_embedder.image_embedder.norm1"),
    ("img_emb.proj.1", "condition_embedder.image_embedder.ff.net.0.proj"),
    ("img_emb.proj.3", "condition_embedder.image_embedder.ff.net.2"),
    ("img_emb.proj.4", "condition_embedder.image_embedder.norm2"),
    ("img_emb.emb_pos", "condition_embedder.image_embedder.pos_embed"),
    ("head.head", "proj_out"),
    ("head.modulation", "scale_shift_table"),
];

/// How many of [`OUTSIDE`] come before the blocks.
const BEFORE_BLOCKS: usize = 11;

/// Parameters of one tensor that have no `.weight` and `.bias`: tables.
const TABLES: [&str; 4] = ["scale_shift_table", "modulation", "pos_embed", "emb_pos"];

/// The parameter that shows Wan's own names.
pub const FIRST_ORIGINAL: &str = "blocks.0.self_attn.q.weight";

/// The parameter that shows diffusers' names.
pub const FIRST: &str = "blocks.0.attn1.to_q.weight";

/// diffusers' name of the parameter that Wan calls `original`, such as `blocks.0.self_attn.q.weight`; none of a name
/// that Wan's transformer does not have.
pub fn parameter(original: &str) -> Option<String> {
    translated(original, layer)
}

/// Wan's name of the parameter that diffusers calls `name`; none of what Wan's transformer does not have.
pub fn original_parameter(name: &str) -> Option<String> {
    translated(name, original_layer)
}

/// diffusers' name of the layer, norm or table that Wan calls `original`, such as `blocks.0.self_attn.q`.
pub fn layer(original: &str) -> Option<String> {
    replaced(original, |(theirs, ours)| (theirs, ours))
}

/// Wan's name of the layer, norm or table that diffusers calls `name`, such as `blocks.0.attn1.to_q`.
pub fn original_layer(name: &str) -> Option<String> {
    replaced(name, |(theirs, ours)| (ours, theirs))
}

/// diffusers' name of the layer that Wan calls `underscored`, its dots being underscores: `blocks_0_self_attn_q`.
pub fn layer_of_underscored(underscored: &str) -> Option<String> {
    let plain = |(theirs, ours): (&'static str, &'static str)| (theirs.replace('.', "_"), ours);
    if let Some(rest) = underscored.strip_prefix("blocks_") {
        let (number, rest) = rest.split_once('_')?;
        let block = block_number(number)?;
        let (_, name) = BLOCK.into_iter().map(plain).find(|(theirs, _)| *theirs == rest)?;
        return Some(format!("blocks.{block}.{name}"));
    }
    let (_, name) = OUTSIDE.into_iter().map(plain).find(|(theirs, _)| *theirs == underscored)?;
    Some(name.to_owned())
}

/// Where diffusers' layer `name` stands in the network: (part, place in it), where the part is 0 for the embedding,
/// 1 + N for block N, the largest number for the head. None of a name that neither Wan nor diffusers has.
pub fn place(name: &str) -> Option<(usize, usize)> {
    if let Some((block, rest)) = in_block(name) {
        let place = BLOCK.iter().position(|(_, ours)| *ours == rest)?;
        return Some((1 + block, place));
    }
    let place = OUTSIDE.iter().position(|(_, ours)| *ours == name)?;
    Some((if place < BEFORE_BLOCKS { 0 } else { usize::MAX }, place))
}

/// The block that a layer or parameter of either naming is in.
pub fn block_of(name: &str) -> Option<usize> {
    in_block(name).map(|(block, _)| block)
}

/// Whether a layer or parameter (diffusers' name) is one that only image-conditioned variants have.
pub fn is_of_images(name: &str) -> bool {
    ["add_k_proj", "add_v_proj", "norm_added_k", "norm_added_q", "image_embedder"]
        .iter()
        .any(|part| name.split('.').any(|word| word == *part))
}

/// Whether diffusers' layer `name` is a linear layer, and no norm, table or convolution.
pub fn is_linear(name: &str) -> bool {
    let last = name.rsplit('.').next().unwrap_or(name);
    place(name).is_some() && !last.starts_with("norm") && last != "patch_embedding" && !TABLES.contains(&last)
}

/// Splits `blocks.N.rest`.
fn in_block(name: &str) -> Option<(usize, &str)> {
    let (number, rest) = name.strip_prefix("blocks.")?.split_once('.')?;
    Some((block_number(number)?, rest))
}

/// A block's number as files write it: digits, no sign, no zero in front.
fn block_number(digits: &str) -> Option<usize> {
    let number: usize = digits.parse().ok()?;
    (number < 1 << 16 && number.to_string() == digits).then_some(number)
}

/// A parameter's name with its layer's name changed.
fn translated(name: &str, layer: fn(&str) -> Option<String>) -> Option<String> {
    match name.rsplit_once('.') {
        Some((owner, kind @ ("weight" | "bias"))) => {
            let table = layer(owner)?;
            (!TABLES.iter().any(|t| table.ends_with(t))).then(|| format!("{table}.{kind}"))
        }
        _ => {
            let name = layer(name)?;
            TABLES.iter().any(|t| name.ends_with(t)).then_some(name)
        }
    }
}

/// `name` with what the table pairs it with, after `side` has put what is looked for first.
fn replaced(name: &str, side: fn((&'static str, &'static str)) -> (&'static str, &'static str)) -> Option<String> {
    let find = |table: &[(&'static str, &'static str)], what: &str| {
        table.iter().map(|pair| side(*pair)).find(|(from, _)| *from == what).map(|(_, to)| to)
    };
    match in_block(name) {
        Some((block, rest)) => find(&BLOCK, rest).map(|to| format!("blocks.{block}.{to}")),
        None => find(&OUTSIDE, name).map(str::to_owned),
    }
}
