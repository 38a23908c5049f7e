//! Reads what a hub says of a repository: its commit and its files, with sizes and hashes. All of them are checked, for
//! names, commits and hashes become paths in the cache.

use super::hash::Hash;
use super::name::is_inside;
use super::shown;
use crate::{Result, bail};
use serde::Deserialize;

/// What a repository holds at a revision.
#[derive(Clone, Debug)]
pub struct Info {
    /// The commit, 40 or 64 hexadecimal digits.
    pub commit: String,
    /// Its files.
    pub files: Vec<RepoFile>,
}

/// A file of a repository.
#[derive(Clone, Debug)]
pub struct RepoFile {
    /// A relative path that stays inside the repository.
    pub name: String,
    /// Bytes, if the hub says so.
    pub size: Option<u64>,
    /// What its bytes are compared with, if the hub says so here; otherwise the headers of the file's own answer do.
    pub hash: Option<Hash>,
}

impl Info {
    /// Parses the JSON of `/api/models/owner/name/revision/main?blobs=true`.
    ///
    /// # Errors
    /// It is not such JSON, a file's name leads out of the repository, or a commit or hash is none.
    pub fn parse(json: &[u8]) -> Result<Self> {
        let raw: RawInfo = match serde_json::from_slice(json) {
            Ok(raw) => raw,
            Err(e) => bail!(Data, "{}", shown(&e.to_string())),
        };
        if !is_commit(&raw.sha) {
            bail!(Data, "it names a commit `{}`, which is no commit's hash", shown(&raw.sha));
        }
        let files = raw.siblings.into_iter().map(RawFile::check).collect::<Result<_>>()?;
        Ok(Self { commit: raw.sha, files })
    }
}

/// Whether `text` is a commit's hash: the name of a snapshot's folder.
pub(super) fn is_commit(text: &str) -> bool {
    matches!(text.len(), 40 | 64) && text.bytes().all(|b| b.is_ascii_hexdigit())
}

#[derive(Deserialize)]
struct RawInfo {
    sha: String,
    siblings: Vec<RawFile>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawFile {
    rfilename: String,
    size: Option<u64>,
    blob_id: Option<String>,
    lfs: Option<RawLfs>,
}

#[derive(Deserialize)]
struct RawLfs {
    sha256: String,
}

impl RawFile {
    fn check(self) -> Result<RepoFile> {
        let Self { rfilename: name, size, blob_id, lfs } = self;
        if !is_inside(&name) {
            bail!(Data, "it names a file `{}`, which would lie outside the cache", shown(&name));
        }
        // The blob of a file in LFS is only its pointer, so there the other hash counts.
        let hash = match (lfs, blob_id) {
            (Some(lfs), _) => Some((Hash::parse(&lfs.sha256).filter(|h| matches!(h, Hash::Sha256(_))), lfs.sha256)),
            (None, Some(id)) => Some((Hash::parse(&id).filter(|h| matches!(h, Hash::Git(_))), id)),
            (None, None) => None,
        };
        let hash = match hash {
            Some((None, said)) => {
                bail!(Data, "it says that {} has the hash `{}`, which is none", shown(&name), shown(&said))
            }
            Some((hash, _)) => hash,
            None => None,
        };
        Ok(RepoFile { name, size, hash })
    }
}
