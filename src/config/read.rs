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
    refuse_sizeless(root.get_ref(), &source)?;
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
        let place = places.iter().find(|place| (&*place.key, place.section) == (problem.key, problem.section));
        source.error(place.map(|place| place.span.clone()), problem)
    })?;
    // serde takes the first values of an array that is too long, and says nothing.
    let read = toml::Table::try_from(&config).map_err(|e| source.error(None, e))?;
    for (place, given) in arrays {
        let lengths = lengths_read(&read, &place).unwrap_or_else(|| given.clone());
        if let Some((given, length)) = given.iter().zip(&lengths).find(|(given, length)| given != length) {
            let message = format!("{}: {given} values, expected {length}", place.key);
            return Err(source.error(Some(place.span), message));
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
        table = match inner.get_mut() {
            DeValue::Table(inner) => inner,
            DeValue::Array(sections) => {
                let count = sections.len();
                let number = parts.next().and_then(|number| number.parse::<usize>().ok()?.checked_sub(1));
                match number.and_then(|number| sections.get_mut(number)).map(Spanned::get_mut) {
                    Some(DeValue::Table(inner)) if parts.peek().is_some() => inner,
                    _ => {
                        return fail(&format!(
                            "{part} is repeated: {part}.1.key is the first, {part}.{count}.key the last"
                        ));
                    }
                }
            }
            _ => return fail(&format!("{part} is no section in the file")),
        };
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
        for (key, _) in tables(name, value).into_iter().flat_map(|(table, _)| table.iter()) {
            if !keys.contains(&&**key.get_ref()) {
                return Err(source.error(Some(key.span()), unknown::key(key.get_ref(), name)));
            }
        }
    }
    Ok(())
}

/// The tables of a section, each with its place: one, or those of `[[data]]`.
fn tables<'a, 'd>(section: &str, value: &'a Spanned<DeValue<'d>>) -> Vec<(&'a DeTable<'d>, Range<usize>)> {
    let repeated = value.get_ref().as_array().filter(|_| section == "data");
    let values: Vec<&Spanned<DeValue>> = repeated.map_or_else(|| vec![value], |array| array.iter().collect());
    values.into_iter().filter_map(|value| Some((value.get_ref().as_table()?, value.span()))).collect()
}

/// Refuses `[data]` without a size of clips: which keys it needs depends on others.
fn refuse_sizeless(root: &DeTable, source: &Source) -> Result<()> {
    let Some(value) = root.get("data") else { return Ok(()) };
    for (table, place) in tables("data", value) {
        let missing = ["frames", "height", "width"].into_iter().find(|key| !table.contains_key(*key));
        let sizes = ["buckets", "resolutions", "frame_counts"].into_iter().any(|key| table.contains_key(key));
        if let Some(key) = missing.filter(|_| !sizes && table.contains_key("path")) {
            return Err(source.error(Some(place), format!("[data] has no `{key}`, which has no default")));
        }
    }
    Ok(())
}

/// Where a value stands.
struct Place {
    /// The section, or `section.key`.
    key: String,
    /// Of sections that are repeated, which one, from 0.
    section: usize,
    span: Range<usize>,
}

/// Where the value of every section and `section.key` stands.
fn places(root: &DeTable) -> Vec<Place> {
    let mut places = Vec::new();
    for (name, value) in root.iter() {
        places.push(Place { key: name.get_ref().to_string(), section: 0, span: value.span() });
        for (section, (table, span)) in tables(name.get_ref(), value).into_iter().enumerate() {
            places.push(Place { key: name.get_ref().to_string(), section, span });
            let keys = table.iter();
            places.extend(keys.map(|(key, value)| Place {
                key: format!("{}.{}", name.get_ref(), key.get_ref()),
                section,
                span: value.span(),
            }));
        }
    }
    places
}

/// Every value that is an array, with the lengths that it has: its own, and those of arrays in it.
fn arrays(root: &DeTable) -> Vec<(Place, Vec<usize>)> {
    let mut arrays = Vec::new();
    for (name, value) in root.iter() {
        for (section, (table, _)) in tables(name.get_ref(), value).into_iter().enumerate() {
            for (key, value) in table.iter() {
                let Some(array) = value.get_ref().as_array() else { continue };
                let inner = array.iter().filter_map(|value| Some(value.get_ref().as_array()?.len()));
                let lengths = std::iter::once(array.len()).chain(inner).collect();
                let key = format!("{}.{}", name.get_ref(), key.get_ref());
                arrays.push((Place { key, section, span: value.span() }, lengths));
            }
        }
    }
    arrays
}

/// The lengths of the array `section.key` as it was read.
fn lengths_read(read: &toml::Table, place: &Place) -> Option<Vec<usize>> {
    let (section, key) = place.key.split_once('.')?;
    let section = match read.get(section)? {
        toml::Value::Array(sections) => sections.get(place.section)?,
        section => section,
    };
    let array = section.get(key)?.as_array()?;
    let inner = array.iter().filter_map(|value| Some(value.as_array()?.len()));
    Some(std::iter::once(array.len()).chain(inner).collect())
}

/// The innermost key whose value holds `span`.
fn key_at<'a>(places: &'a [Place], span: &Range<usize>) -> Option<&'a str> {
    let holding = places.iter().filter(|place| place.span.start <= span.start && span.end <= place.span.end);
    holding.min_by_key(|place| place.span.len()).map(|place| place.key.as_str())
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
