//! Matches names of layers with the patterns of peft's `rank_pattern` and `alpha_pattern`. They are regular
//! expressions; those that name layers are understood.

/// Whether `pattern` names `layer` as peft has it: the layer's whole name, or its end after a dot; `^` at the front
/// asks for the whole name. A dot of the pattern stands for any character, as in a regular expression.
///
/// # Errors
/// The pattern is a regular expression with more than dots.
pub(super) fn names(pattern: &str, layer: &str) -> Result<bool, String> {
    let (whole, rest) = pattern.strip_prefix('^').map_or((false, pattern), |rest| (true, rest));
    let rest = rest.strip_suffix('$').unwrap_or(rest).replace("\\.", ".");
    if rest.is_empty() || rest.contains(['\\', '*', '+', '?', '(', ')', '[', ']', '{', '}', '|', '^', '$']) {
        return Err(format!("the pattern `{pattern}` is a regular expression that is not understood"));
    }
    let (rest, layer) = (rest.as_bytes(), layer.as_bytes());
    let Some(start) = layer.len().checked_sub(rest.len()) else { return Ok(false) };
    let equal = rest.iter().zip(&layer[start..]).all(|(p, c)| p == c || *p == b'.');
    Ok(equal && (start == 0 || !whole && layer[start - 1] == b'.'))
}

#[cfg(test)]
mod tests {
    use super::names;

    #[test]
    fn a_pattern_names_a_layer_or_the_end_of_its_name() {
        assert_eq!(names("^blocks.1.attn1.to_q", "blocks.1.attn1.to_q"), Ok(true));
        assert_eq!(names("^attn1.to_q", "blocks.1.attn1.to_q"), Ok(false));
        assert_eq!(names("attn1.to_q", "blocks.1.attn1.to_q"), Ok(true));
        assert_eq!(names("to_q$", "blocks.11.attn1.to_q"), Ok(true));
        assert_eq!(names("1.attn1.to_q", "blocks.11.attn1.to_q"), Ok(false));
        assert_eq!(names(r"blocks\.1\.ffn\.net\.2", "blocks.1.ffn.net.2"), Ok(true));
        assert_eq!(names("blocks.1.attn1.to_q.and.more", "to_q"), Ok(false));
        assert!(names("blocks.[01].attn1.to_q", "blocks.1.attn1.to_q").is_err());
    }
}
