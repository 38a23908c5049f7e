//! TOML text and overrides to a [`RunConfig`], with errors that say file, line, the line's text and the nearest known
//! key.
//!
//! File and overrides are kept in one text, the overrides below the file, and every value carries its byte range there:
//! one number tells both whether an error is in the file or in a `--set`, and where.

use super::choices::Compute;
use super::run::RunConfig;
use super::{check, example, paths, sections, unknown};
use crate::{Error, Result, terminal};
use serde::Deserialize;
use std::borrow::Cow;
use std::fmt::Display;
use std::ops::Range;
use std::path::Path;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

/// So many bytes of a line are shown.
const LINE: usize = 200;

/// See [`RunConfig::parse`].
pub(super) fn parse(text: &str, origin: &Path, sets: &[String]) -> Result<RunConfig> {
    let source = Source::new(text, origin, sets);
    let mut root = DeTable::parse(text).map_err(|e| source.error(e.span(), e.message()))?;
    let documents: Vec<String> = (0..sets.len()).map(|i| source.as_document(i)).collect();
    for (i, document) in documents.iter().enumerate() {
        override_with(root.get_mut(), &source, i, document)?;
    }
    refuse_unknown(root.get_ref(), &source)?;
    let says_dtype = root.get_ref().get("train").and_then(|train| train.get_ref().get("dtype")).is_some();
    let places = places(root.get_ref());
    let arrays = arrays(root.get_ref());
    let mut config = RunConfig::deserialize(toml::Deserializer::from(root)).map_err(|e| {
        let key = e.span().and_then(|span| key_at(&places, &span));
        // A section that is missing stands nowhere.
        source.error(e.span().filter(|_| key.is_some()), explain(e.message(), key))
    })?;
    if !says_dtype {
        config.train.dtype = Compute::usual(config.train.device);
    }
    paths::expand(&mut config).and_then(|()| check::check(&config)).map_err(|problem| {
        let place = places.iter().find(|(key, _)| key == problem.key).map(|(_, span)| span.clone());
        source.error(place, problem)
    })?;
    // serde takes the first values of an array that is too long, and says nothing.
    let read = toml::Table::try_from(&config).map_err(|e| source.error(None, e))?;
    for (section, key, given, span) in arrays {
        let array = read.get(&section).and_then(|s| s.get(&key)).and_then(toml::Value::as_array);
        let length = array.map_or(given, Vec::len);
        if given != length {
            return Err(source.error(Some(span), format!("{section}.{key}: {given} values, expected {length}")));
        }
    }
    Ok(config)
}

/// The file's text and the overrides, and how to point into them.
struct Source<'a> {
    text: &'a str,
    origin: &'a Path,
    sets: &'a [String],
    /// Where each override begins, counted as if they followed the file.
    starts: Vec<usize>,
}

impl<'a> Source<'a> {
    fn new(text: &'a str, origin: &'a Path, sets: &'a [String]) -> Self {
        let mut starts = Vec::new();
        let mut next = text.len() + 1; // past any range in the file
        for set in sets {
            starts.push(next);
            next += set.len() + 1;
        }
        Self { text, origin, sets, starts }
    }

    /// Override `i` as a TOML document `v=VALUE`, behind blanks that put VALUE's ranges where the override begins.
    fn as_document(&self, i: usize) -> String {
        let set = &self.sets[i];
        let at = set.find('=').map_or(0, |equals| equals + 1);
        let blanks = (self.starts[i] + at).saturating_sub("v=".len());
        format!("{}v={}", " ".repeat(blanks), &set[at..])
    }

    /// An error at `span`, if there is one, else about the file.
    fn error(&self, span: Option<Range<usize>>, message: impl Display) -> Error {
        let origin = self.origin.display();
        let Some(Range { start, .. }) = span else {
            return Error::Config(format!("{origin}: {message}"));
        };
        if let Some(i) = self.starts.iter().rposition(|&s| s <= start) {
            return Error::Config(format!("--set {}: {message}", self.sets[i]));
        }
        let before = &self.text.as_bytes()[..start.min(self.text.len())];
        let number = before.iter().filter(|&&b| b == b'\n').count();
        let line = terminal::shorten(self.text.lines().nth(number).unwrap_or("").trim(), LINE);
        let number = number + 1;
        Error::Config(format!("{origin}:{number}: {message}\n  {number} | {line}"))
    }
}

/// Puts override `i` into the table; `document` is its [`Source::as_document`].
fn override_with<'d>(root: &mut DeTable<'d>, source: &Source, i: usize, document: &'d str) -> Result<()> {
    let (set, start) = (&source.sets[i], source.starts[i]);
    let fail = |message: &str| Err(source.error(Some(start..start), message));
    let Some((key, text)) = set.split_once('=') else {
        return fail("an override is written section.key=value");
    };
    let text = text.trim();
    if text.is_empty() {
        return fail("has no value; an empty text is written \"\"");
    }
    // Bare words (paths, names of variants) are strings; so is what would smuggle in a second key.
    let parsed = DeTable::parse(document).ok().map(Spanned::into_inner).filter(|table| table.len() == 1);
    let value = match parsed.and_then(|table| table.into_iter().next()) {
        Some((name, value)) if name.get_ref() == "v" => value,
        _ => Spanned::new(start..start + set.len(), DeValue::String(Cow::Owned(text.to_owned()))),
    };
    let span = start..start + key.len();
    let mut table = root;
    let mut parts = key.split('.').map(str::trim).peekable();
    while let Some(part) = parts.next() {
        if part.is_empty() {
            return fail("an override is written section.key=value");
        }
        let name = Spanned::new(span.clone(), Cow::Owned(part.to_owned()));
        if parts.peek().is_none() {
            table.remove(&name); // the old key's place would stay
            table.insert(name, value);
            return Ok(());
        }
        let inner = table.entry(name).or_insert_with(|| Spanned::new(span.clone(), DeValue::Table(DeTable::new())));
        let DeValue::Table(inner) = inner.get_mut() else {
            return fail(&format!("{part} is no section in the file"));
        };
        table = inner;
    }
    Ok(())
}

/// Refuses sections and keys that are not known, with what was probably meant.
fn refuse_unknown(root: &DeTable, source: &Source) -> Result<()> {
    let known = sections();
    for (section, value) in root.iter() {
        let name: &str = section.get_ref();
        let Some((_, keys)) = known.iter().find(|(s, _)| *s == name) else {
            let is_table = value.get_ref().is_table() || value.get_ref().is_array();
            return Err(source.error(Some(section.span()), unknown::section(name, is_table)));
        };
        for (key, _) in value.get_ref().as_table().into_iter().flat_map(|table| table.iter()) {
            if !keys.contains(&&**key.get_ref()) {
                return Err(source.error(Some(key.span()), unknown::key(key.get_ref(), name)));
            }
        }
    }
    Ok(())
}

/// Where the value of every section and `section.key` stands.
fn places(root: &DeTable) -> Vec<(String, Range<usize>)> {
    let mut places = Vec::new();
    for (section, value) in root.iter() {
        places.push((section.get_ref().to_string(), value.span()));
        for (key, value) in value.get_ref().as_table().into_iter().flat_map(|table| table.iter()) {
            places.push((format!("{}.{}", section.get_ref(), key.get_ref()), value.span()));
        }
    }
    places
}

/// Section, key, length and place of every value that is an array.
fn arrays(root: &DeTable) -> Vec<(String, String, usize, Range<usize>)> {
    let mut arrays = Vec::new();
    for (section, value) in root.iter() {
        for (key, value) in value.get_ref().as_table().into_iter().flat_map(|table| table.iter()) {
            if let Some(array) = value.get_ref().as_array() {
                arrays.push((section.get_ref().to_string(), key.get_ref().to_string(), array.len(), value.span()));
            }
        }
    }
    arrays
}

/// The innermost key whose value holds `span`.
fn key_at<'a>(places: &'a [(String, Range<usize>)], span: &Range<usize>) -> Option<&'a str> {
    let holding = places.iter().filter(|(_, place)| place.start <= span.start && span.end <= place.end);
    holding.min_by_key(|(_, place)| place.len()).map(|(key, _)| key.as_str())
}

/// The message about a section that must be there and is not.
fn missing_section(name: &str) -> String {
    let (says, example) = match name {
        "data" => ("which clips to train on", example::data(Path::new("clips"))),
        _ => ("which network to train, a new one or one to start from", example::MODEL.to_owned()),
    };
    let example = example::indented(&example);
    format!("has no section [{name}], which is needed: it says {says}, for example{example}")
}

/// serde's message about `key`, in words that do not need Rust.
fn explain(message: &str, key: Option<&str>) -> String {
    if let Some(missing) = message.strip_prefix("missing field `").and_then(|m| m.strip_suffix('`')) {
        return match key {
            Some(section) => format!("[{section}] has no `{missing}`, which has no default"),
            None => missing_section(missing),
        };
    }
    let Some((what, expected)) = message.rsplit_once(", expected ") else {
        return format!("{}: {message}", key.unwrap_or("the file"));
    };
    let what = what.trim_start_matches("invalid type: ").trim_start_matches("invalid value: ");
    let expected = match expected {
        "usize" | "u64" => "a whole number, 0 or more",
        "f64" | "f32" => "a number",
        "path string" => "a string",
        section if section.starts_with("struct ") => "a section of keys",
        other => match other.strip_prefix("an array of length ") {
            Some(length) => &format!("{length} values in brackets"),
            None => other,
        },
    };
    format!("{}: {what}, expected {expected}", key.unwrap_or("the file"))
}
