//! Cleans captions as Wan's pipelines do before they are tokenized.
//!
//! The pipelines call ftfy, unescape HTML twice and make each run of white space one space. Of ftfy there is here what
//! changes tokens of ordinary captions: straight quotation marks, control characters, entities. Not here: the repair of
//! mojibake; and ligatures, full-width letters and composed accents, which the tokenizer of umT5 makes equal itself.

/// The caption as it is tokenized.
pub fn clean(caption: &str) -> String {
    // ftfy takes text with a tag in it for HTML, and leaves its entities to the pipeline.
    let text = if caption.contains('<') { caption.into() } else { htmlize::unescape(caption) };
    let text: String = text.chars().filter(|&c| !is_control(c)).map(straight).collect();
    let once = htmlize::unescape(&text);
    let twice = htmlize::unescape(&*once);
    twice.split(is_space).filter(|word| !word.is_empty()).collect::<Vec<_>>().join(" ")
}

/// A curly quotation mark's straight form.
fn straight(c: char) -> char {
    match c {
        '\u{2bc}' | '\u{2018}'..='\u{201b}' => '\'',
        '\u{201c}'..='\u{201f}' => '"',
        c => c,
    }
}

/// What ftfy removes: control characters but white space, and Unicode's that mark nothing that is seen.
fn is_control(c: char) -> bool {
    matches!(c, '\0'..='\x08' | '\x0b' | '\x0e'..='\x1f' | '\x7f')
        || matches!(c, '\u{206a}'..='\u{206f}' | '\u{feff}' | '\u{fff9}'..='\u{fffc}')
}

/// White space as Python's regular expressions have it.
fn is_space(c: char) -> bool {
    c.is_whitespace() || matches!(c, '\x1c'..='\x1f')
}
