//! What a terminal may be shown: text from outside without control characters, and colours only where they are wanted.
//!
//! File names, a hub's answers and other ranks' messages may hold escape sequences, which clear screens and do worse,
//! newlines, which forge lines of a log, and characters that turn the direction of writing. [`name`] is for names and
//! for whatever is to stay in one line; [`message`] for errors and log lines; [`lines`] for whole reports whose names
//! went through [`name`].
//! [`json`] leaves values as they are: JSON has escapes of its own.

use std::ffi::OsStr;
use std::fmt::Display;
use std::io::IsTerminal;
use std::time::Duration;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::{FormatTime, SystemTime};

/// A longer message is cut: no message of ours is so long, only what others sent.
const LONGEST: usize = 16 << 10;

/// A name, or other text that is to stay in one line, with every control character escaped: `\n`, `\x1b`, `\u{202e}`.
pub fn name(name: impl AsRef<OsStr>) -> String {
    escape(&name.as_ref().to_string_lossy(), |_, _| false)
}

/// An error or log line. Newlines stay where two blanks follow, which is how messages of ours go on in a second line,
/// so that no name within it can forge a line of its own; all other control characters but tabs are escaped. More than
/// 16 KiB are cut.
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
pub fn counted<N: Copy + Display + PartialEq + From<u8>>(n: N, one: &str, many: &str) -> String {
    format!("{n} {}", if n == N::from(1) { one } else { many })
}

/// A rate in three digits: 853, 12.4k, 3.05M.
pub fn rate(rate: f64) -> String {
    let (value, unit) = match rate {
        r if r >= 999_500.0 => (r / 1e6, "M"),
        r if r >= 999.5 => (r / 1e3, "k"),
        r => (r, ""),
    };
    let decimals = if unit.is_empty() || value >= 99.95 {
        0
    } else if value >= 9.995 {
        1
    } else {
        2
    };
    format!("{value:.decimals$}{unit}")
}

/// The time of day, UTC, to the second: `2026-11-30T01:35:19Z`.
pub fn utc() -> String {
    let mut text = String::new();
    let _ = SystemTime.format_time(&mut Writer::new(&mut text)); // with microseconds; a String takes all that is written
    shorten(&text, "2026-11-30T01:35:19".len()).to_owned() + "Z"
}

/// A duration in its two largest units: 59s, 1m 01s, 2h 12m.
pub fn clock(time: Duration) -> String {
    let s = time.as_secs();
    match (s / 86400, s / 3600 % 24, s / 60 % 60, s % 60) {
        (0, 0, 0, s) => format!("{s}s"),
        (0, 0, m, s) => format!("{m}m {s:02}s"),
        (0, h, m, _) => format!("{h}h {m:02}m"),
        (d, h, _, _) => format!("{d}d {h:02}h"),
    }
}

/// The epoch that is at work, from 1, once the data have been gone through `times` times.
pub fn epoch(times: f64) -> u64 {
    (times - 1e-9).ceil().max(1.0) as u64 // a whole number may have come out as a little more
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

/// Whether what goes to stderr is coloured: on a terminal, unless `NO_COLOR` is set (<https://no-color.org>) or
/// `CLICOLOR` is 0.
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

/// Control characters (C0, DEL, C1), separators of lines and paragraphs, the byte-order mark, and what turns the
/// direction of writing (Unicode's Bidi_Control).
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
        assert_eq!([files(0usize), files(1), files(2)], ["0 files", "1 file", "2 files"]);
    }

    #[test]
    fn rates_durations_and_epochs_are_short() {
        for (number, text) in [(0.0, "0"), (999.4, "999"), (999.6, "1.00k"), (99_960.0, "100k"), (3_049_000.0, "3.05M")]
        {
            assert_eq!(rate(number), text);
        }
        for (s, text) in [(59, "59s"), (61, "1m 01s"), (3661, "1h 01m"), (90_000, "1d 01h")] {
            assert_eq!(clock(Duration::from_secs(s)), text);
        }
        assert_eq!([0.0, 0.2, 1.0, 1.0 + 1e-15, 1.01, 21.3].map(epoch), [1, 1, 1, 1, 2, 22]);
    }

    #[test]
    fn a_message_has_only_the_newlines_that_are_ours() {
        assert_eq!(message("a:1: wrong\n  1 | a\tb"), "a:1: wrong\n  1 | a\tb");
        assert_eq!(message("a\nerror: forged\r\n b"), r"a\nerror: forged\r\n b");
        let cut = message(&"ä".repeat(LONGEST));
        assert!(cut.len() < LONGEST + 20 && cut.ends_with("ä... (cut)"), "{}", cut.len());
    }
}
