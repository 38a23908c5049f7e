//! Keys and sections that nobody knows: refused with what was probably meant.

use super::{sections, words};

/// A word is taken for another one mistyped if at most this share of its letters differs.
const ALIKE: f64 = 1.0 / 3.0;

/// Why the section, or the key outside any section, `name` is refused.
pub(super) fn section(name: &str, is_table: bool) -> String {
    let what = if is_table { "section" } else { "key outside any section" };
    let known = sections().iter().map(|(section, _)| *section).collect::<Vec<_>>().join(", ");
    format!("unknown {what} `{name}`; {}", meant(name, None).unwrap_or(format!("the sections are {known}")))
}

/// Why key `name` of the known section `section` is refused.
pub(super) fn key(name: &str, section: &str) -> String {
    let keys = sections().into_iter().find(|(known, _)| *known == section).map_or(&[][..], |(_, keys)| keys);
    format!(
        "unknown key `{name}` in [{section}]; {}",
        meant(name, Some(section)).unwrap_or(format!("the keys of [{section}] are {}", keys.join(", ")))
    )
}

/// What `name` means to say: a key of another section, another trainer's word, or what is most alike.
fn meant(name: &str, section: Option<&str>) -> Option<String> {
    let found = nearest(name, section);
    let nearest = found.as_ref().map(|(_, shown)| format!("the nearest known is {shown}"));
    match found {
        Some((0, _)) => nearest,
        _ => words::meaning(name).or(nearest),
    }
}

/// The known key most like `name`, preferably in `section`, and how many letters differ; for a name outside any
/// section, that or a section. None where nothing is much alike.
fn nearest(name: &str, section: Option<&str>) -> Option<(usize, String)> {
    let name = name.to_lowercase();
    let mut best: Option<(f64, usize, String)> = None;
    let mut offer = |candidate: &str, bonus: f64, shown: String| {
        let distance = strsim::osa_distance(&name, candidate);
        let share = distance as f64 / name.chars().count().max(candidate.len()) as f64;
        let score = 1.0 - share + bonus;
        if share <= ALIKE && best.as_ref().is_none_or(|(most, ..)| score > *most) {
            best = Some((score, distance, shown));
        }
    };
    for (s, keys) in sections() {
        if section.is_none() {
            offer(s, 0.1, format!("[{s}]"));
        }
        for key in keys {
            let here = section == Some(s);
            // Only a key that is much more alike is worth sending the reader to another section.
            let shown = if here { format!("`{key}`") } else { format!("`{key}` in [{s}]") };
            offer(key, if here { 0.25 } else { 0.0 }, shown);
        }
    }
    best.map(|(_, distance, shown)| (distance, shown))
}
