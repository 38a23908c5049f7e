//! The text that guidance leads away from, where a run does not say one.

use crate::config::RunConfig;
use crate::model::ModelConfig;

/// Wan's own, by which its networks are meant to be sampled (`sample_neg_prompt` in Wan-Video/Wan2.1,
/// wan/configs/shared_config.py).
pub const WAN: &str = "色调艳丽，过曝，静态，细节模糊不清，字幕，风格，作品，画作，画面，静止，整体发灰，最差质量，低质量，\
                       JPEG压缩残留，丑陋的，残缺的，多余的手指，画得不好的手部，画得不好的脸部，畸形的，毁容的，\
                       形态畸形的肢体，手指融合，静止不动的画面，杂乱的背景，三条腿，背景人很多，倒着走";

/// Features of a token of UMT5-XXL, which only networks of Wan take here.
const WAN_TEXT: usize = 4096;

/// What `config` says; else Wan's own for a network of Wan's text, or the empty text.
pub(super) fn of(config: &RunConfig, model: &ModelConfig) -> String {
    let usual = if model.text_dim == WAN_TEXT && config.model.from.is_some() { WAN } else { "" };
    config.sample.negative.as_deref().unwrap_or(usual).to_owned()
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_text_is_one_line() {
        assert!(super::WAN.starts_with("色调艳丽，过曝") && super::WAN.ends_with("倒着走"));
        assert!(super::WAN.contains("低质量，JPEG压缩残留") && super::WAN.contains("毁容的，形态畸形的肢体"));
        assert!(!super::WAN.contains(char::is_whitespace));
    }
}
