//! What a terminal may be shown: text from outside without control characters, and colours only where they are wanted.
//!
//! File names, a hub's answers and other ranks' messages may hold escape sequences, which clear screens and do worse, newlines,
//! which forge lines of a log, and characters that turn the direction of writing. [`name`] is for names and for whatever
//! is to stay in one line; [`message`] for errors and log lines; [`lines`] for whole reports whose names went through [`name`].
//! [`json`] leaves values as they are: JSON has escapes of its own.

use std::ffi::OsStr;
use std::io::IsTerminal;

/// A longer message is cut: no message of ours is so long, only what others sent.
const LONGEST: usize = 16 << 10;

/// A name, or other text that is to stay in one line, with every control character escaped: `\n`, `\x1b`, `\u{202e}`.
pub fn name(name: impl AsRef<OsStr>) -> String {
    escape(&name.as_ref().to_string_lossy(), |_, _| false)
}

/// An error or log line. Newlines stay where two blanks follow, which is how messages of ours go on in a second line, so that
/// no name within it can forge a line of its own; all other control characters but tabs are escaped. More than 16 KiB are cut.
pub fn message(text: &str) -> String {
    let shown = escape(shorten(text, LONGEST), |c, rest| c == '\t' || (c == '\n' && rest.starts_with("  ")));
    if text.len() > LONGEST { shown + "... (cut)" } else { shown }
}

/// A report of many lines: newlines and tabs stay, all other control characters are escaped.
pub fn lines(text: &str) -> String {
    escape(text, |c, _| matches!(c, '\n' | '\t'))
}

/// JSON with the control characters escaped that JSON itself lets through; every value stays as it is.
pub fn json(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        // In JSON such characters stand in strings only, but for newlines between values.
        if is_unsafe(c) && c != '\n' { out.push_str(&format!("\\u{:04x}", c as u32)) } else { out.push(c) }
    }
    out
}

/// `n` things: `counted(1, "file", "files")` is "1 file".
pub fn counted(n: usize, one: &str, many: &str) -> String {
    format!("{n} {}", if n == 1 { one } else { many })
}

/// What another library says of an error, in one line: some messages end with a newline, or hold one.
pub fn one_line(error: impl std::fmt::Display) -> String {
    error.to_string().split_whitespace().collect::<Vec<_>>().join(" ")
}

/// At most the first `most` bytes of `text`, whole characters.
pub fn shorten(text: &str, most: usize) -> &str {
    let end = (0..=most.min(text.len())).rev().find(|&end| text.is_char_boundary(end));
    &text[..end.unwrap_or(0)]
}

/// Whether stderr is a terminal that can renew a line: not one that says `TERM=dumb`.
pub fn renews_lines() -> bool {
    std::io::stderr().is_terminal() && std::env::var_os("TERM").is_none_or(|term| term != "dumb")
}

/// Whether what goes to stderr is coloured: on a terminal, unless `NO_COLOR` is set (<https://no-color.org>) or `CLICOLOR` is 0.
pub fn has_colours() -> bool {
    let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty());
    renews_lines() && set("NO_COLOR").is_none() && set("CLICOLOR").is_none_or(|value| value != "0")
}

/// `text` with its unsafe characters escaped, but for those that `stays` takes, which is given what follows, too.
fn escape(text: &str, stays: impl Fn(char, &str) -> bool) -> String {
    let mut out = String::with_capacity(text.len());
    for (at, c) in text.char_indices() {
        match c {
            c if !is_unsafe(c) || stays(c, &text[at + c.len_utf8()..]) => out.push(c),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            c if (c as u32) < 0x100 => out.push_str(&format!("\\x{:02x}", c as u32)),
            c => out.push_str(&format!("\\u{{{:x}}}", c as u32)),
        }
    }
    out
}

/// Control characters (C0, DEL, C1), separators of lines and paragraphs, the byte-order mark, and what turns the direction of writing
/// (Unicode's Bidi_Control).
fn is_unsafe(c: char) -> bool {
    let turns = matches!(c, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    c.is_control() || turns || matches!(c, '\u{2028}' | '\u{2029}' | '\u{feff}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_characters_are_escaped_and_other_text_is_not() {
        assert_eq!(name("bad\x1b[2J\r\n\t\u{9b}31m\u{202e}gpj\u{7f}"), r"bad\x1b[2J\r\n\t\x9b31m\u{202e}gpj\x7f");
        let plain = "käse ☃ 日本語 עברית 👩‍🚀 a\\b 'c' \"d\"";
        assert_eq!(name(plain), plain);
        assert_eq!((message(plain), lines(plain), json(plain)), (plain.into(), plain.into(), plain.into()));
        assert_eq!(lines("a\n\tb\x07"), "a\n\tb\\x07");
        assert_eq!(json("{\n\"a\": \"\u{9b}\u{202e}\u{7f}\"}"), "{\n\"a\": \"\\u009b\\u202e\\u007f\"}");
    }

    #[test]
    fn things_are_counted_in_words() {
        let files = |n| counted(n, "file", "files");
        assert_eq!([files(0), files(1), files(2)], ["0 files", "1 file", "2 files"]);
    }

    #[test]
    fn a_message_has_only_the_newlines_that_are_ours() {
        assert_eq!(message("a:1: wrong\n  1 | a\tb"), "a:1: wrong\n  1 | a\tb");
        assert_eq!(message("a\nerror: forged\r\n b"), r"a\nerror: forged\r\n b");
        let cut = message(&"ä".repeat(LONGEST));
        assert!(cut.len() < LONGEST + 20 && cut.ends_with("ä... (cut)"), "{}", cut.len());
    }
}
