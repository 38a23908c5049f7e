//! The smallest config, for errors about what has none.

use std::path::Path;

/// `[data]` of a folder of clips.
pub(super) fn data(path: &Path) -> String {
    // A string of Rust's debug format is one of TOML, but for escapes of characters that no sensible path has.
    format!("[data]\npath = {:?}\nframes = 16\nheight = 64\nwidth = 112", path.to_string_lossy())
}

/// `[model]` for [`data`].
pub(super) const MODEL: &str = "[model]
patch_size = [2, 8, 8]      # frames, height, width
num_attention_heads = 4
attention_head_dim = 48
num_layers = 6
ffn_dim = 768";

/// `text` as further lines of an error.
pub(super) fn indented(text: &str) -> String {
    text.lines().map(|line| format!("\n  {line}")).collect()
}

#[cfg(test)]
mod tests {
    use crate::config::RunConfig;
    use std::path::Path;

    #[test]
    fn the_example_is_a_config() {
        let text = format!("{}\n{}", super::data(Path::new("some \"clips\"")), super::MODEL);
        let config = RunConfig::parse(&text, Path::new("example"), &[]).unwrap();
        assert_eq!(config.data.path, "some \"clips\"");
        assert!(text.lines().count() <= 12);
    }
}
