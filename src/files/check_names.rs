//! Compares the names and shapes of a file's tensors with those of a model.

use std::collections::BTreeMap;
use std::path::Path;

use crate::{Result, bail};

/// How many names of each kind an error lists.
const LISTED: usize = 4;

/// Checks that a file's tensors are exactly `expected`: names with shapes.
///
/// # Errors
/// One that counts the missing, the extra and the misshapen and names the first of each.
pub fn check_names(path: &Path, found: &BTreeMap<String, Vec<usize>>, expected: &[(String, Vec<usize>)]) -> Result<()> {
    let wanted: BTreeMap<&str, &[usize]> = expected.iter().map(|(n, s)| (n.as_str(), s.as_slice())).collect();
    let quoted = |n: &&str| format!("`{n}`");
    let missing: Vec<_> = wanted.keys().filter(|n| !found.contains_key(**n)).map(quoted).collect();
    let extra: Vec<_> =
        found.keys().filter(|n| !wanted.contains_key(n.as_str())).map(|n| quoted(&n.as_str())).collect();
    let misshapen: Vec<_> = wanted
        .iter()
        .filter_map(|(name, shape)| {
            let found = found.get(*name)?;
            (found != shape).then(|| format!("`{name}` is {found:?}, not {shape:?}"))
        })
        .collect();
    let parts: Vec<_> = [("missing", missing), ("not known", extra), ("of another shape", misshapen)]
        .into_iter()
        .filter(|(_, list)| !list.is_empty())
        .map(|(what, list)| {
            let more = if list.len() > LISTED { ", ..." } else { "" };
            format!("{} {what} ({}{more})", list.len(), list[..list.len().min(LISTED)].join(", "))
        })
        .collect();
    if !parts.is_empty() {
        let (path, total) = (path.display(), wanted.len());
        bail!(Shape, "{path}: does not fit the model of {total} tensors: {}", parts.join("; "));
    }
    Ok(())
}
