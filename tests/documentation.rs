//! What the documentation says is what the code does.

use crate::config::{MINIMAL, parse};
use longreel::config::sections;
use std::collections::BTreeMap;
use std::path::Path;

/// Every section's table in docs/configuration.md: key to default, as written there.
fn documented() -> BTreeMap<String, BTreeMap<String, String>> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/configuration.md");
    let mut tables: BTreeMap<String, BTreeMap<String, String>> = BTreeMap::new();
    let mut section = String::new();
    for line in std::fs::read_to_string(path).unwrap().lines() {
        if let Some(heading) = line.strip_prefix("## `[") {
            section = heading.split(']').next().unwrap().to_owned();
            tables.entry(section.clone()).or_default();
        }
        let Some(row) = line.strip_prefix("| `") else { continue };
        let (key, rest) = row.split_once("` | ").unwrap();
        let (default, meaning) = rest.split_once(" | ").unwrap();
        assert!(meaning.len() > 10, "{section}.{key} needs a meaning");
        let twice = tables.get_mut(&section).unwrap().insert(key.to_owned(), default.to_owned());
        assert!(twice.is_none(), "{section}.{key} is documented twice");
    }
    tables
}

#[test]
fn every_key_is_documented_with_its_default() {
    let tables = documented();
    let names: Vec<&str> = sections().into_iter().map(|(s, _)| s).collect();
    assert_eq!(tables.len(), names.len(), "sections of the code: {names:?}, of the page: {:?}", tables.keys());
    let values = toml::Table::try_from(parse(MINIMAL, &[]).unwrap()).unwrap();
    for (section, keys) in sections() {
        let table = tables.get(section).unwrap_or_else(|| panic!("[{section}] is not documented"));
        let extra: Vec<_> = table.keys().filter(|key| !keys.contains(&key.as_str())).collect();
        assert!(extra.is_empty(), "[{section}] has no such keys: {extra:?}");
        for &key in keys {
            let place = format!("{section}.{key}");
            let default = table.get(key).unwrap_or_else(|| panic!("{place} is not documented"));
            let value = values[section].as_table().unwrap().get(key);
            match default.as_str() {
                "*required*" => {
                    // It is in the minimal config, and cannot be left out of it.
                    let line = MINIMAL.lines().find(|l| l.starts_with(&format!("{key} ="))).expect(&place);
                    assert!(parse(&MINIMAL.replace(line, ""), &[]).is_err(), "{place} has a default");
                }
                "*none*" => assert_eq!(value, None, "{place}"),
                written => {
                    let written = written.trim_matches('`');
                    let expected: toml::Table =
                        format!("v = {written}").parse().unwrap_or_else(|e| panic!("{place}: {e}"));
                    assert_eq!(value, Some(&expected["v"]), "{place}");
                }
            }
        }
    }
}
