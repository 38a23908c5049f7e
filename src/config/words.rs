//! Other trainers' words: what their keys are called here, or that there is no such thing here yet. The table is
//! words.txt.

const TABLE: &str = include_str!("words.txt");

/// Words for one thing: a line of the table.
struct Entry<'a> {
    /// In lower case, with underscores.
    words: Vec<&'a str>,
    /// What has the same meaning here, as `section.key`; none: there is no such thing.
    keys: Vec<&'a str>,
    /// What differs; of what there is not, a sentence.
    note: &'a str,
}

fn entries() -> impl Iterator<Item = Entry<'static>> {
    TABLE.lines().filter(|line| !line.starts_with('#')).filter_map(|line| {
        let (words, rest) = line.split_once('|')?;
        let (keys, note) = rest.split_once('|')?;
        let split = |text: &'static str| text.split_whitespace().collect();
        Some(Entry { words: split(words), keys: split(keys), note: note.trim() })
    })
}

/// What `word` of another trainer is here, as the end of a sentence that names it; none where it is nobody's word.
pub(super) fn meaning(word: &str) -> Option<String> {
    let word = word.to_lowercase().replace('-', "_");
    let entry = entries().find(|entry| entry.words.contains(&word.as_str()))?;
    let keys: Vec<String> = entry.keys.iter().map(|key| format!("`{key}`")).collect();
    Some(match (keys.as_slice(), entry.note) {
        ([], note) => note.to_owned(),
        (keys, "") => format!("that is {} here", list(keys)),
        (keys, note) => format!("that is {} here ({note})", list(keys)),
    })
}

/// `a`, `a and b`, `a, b and c`.
fn list(words: &[String]) -> String {
    match words.split_last() {
        Some((last, rest)) if !rest.is_empty() => format!("{} and {last}", rest.join(", ")),
        _ => words.concat(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::sections;
    use std::collections::BTreeSet;

    #[test]
    fn every_word_leads_to_a_key_that_exists_or_to_a_sentence() {
        let sections = sections();
        let keys_of = |&(section, keys): &(&str, &[&str])| keys.iter().map(|key| format!("{section}.{key}")).collect();
        let known: BTreeSet<String> = sections.iter().flat_map::<Vec<String>, _>(keys_of).collect();
        let mut seen = BTreeSet::new();
        for Entry { words, keys, note } in entries() {
            assert!(!words.is_empty() && (!keys.is_empty() || note.len() > 20), "{words:?}");
            assert!(keys.iter().all(|key| known.contains(*key)), "{words:?} lead to {keys:?}");
            // Keys that the notes and sentences name exist, too.
            for word in note.split(|c: char| !c.is_alphanumeric() && !"._".contains(c)) {
                let word = word.trim_end_matches('.');
                let named = sections.iter().any(|(section, _)| word.starts_with(&format!("{section}.")));
                assert!(!named || known.contains(word), "{words:?}: {word}");
            }
            for word in words {
                assert!(sections.iter().all(|(_, keys)| !keys.contains(&word)), "{word} is a key itself");
                assert!(seen.insert(word), "{word} is there twice");
                assert_eq!(word.to_lowercase().replace('-', "_"), *word, "nobody would find {word}");
                assert!(meaning(word).is_some_and(|meaning| keys.iter().all(|key| meaning.contains(key))), "{word}");
            }
        }
        let lines = TABLE.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
        assert_eq!(lines.count(), entries().count(), "a line of the table has no three columns");
        assert!(seen.len() > 200, "{}", seen.len());
    }
}
