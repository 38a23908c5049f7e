//! The hashes that a hub names files by: SHA-256 for files in Git LFS, git's own for others. A download's bytes are
//! compared with them.

use crate::files::digest_of;
use sha1::Sha1;
use sha2::{Digest, Sha256};
use std::fs::File;
use std::io::{self, Seek};

/// A file's hash, in lower-case hexadecimal digits: the name of its blob in the cache.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Hash {
    /// SHA-256 of the bytes, which Git LFS calls a file by.
    Sha256(String),
    /// SHA-1 of `blob`, the length, and the bytes, which git calls a file by.
    Git(String),
}

impl Hash {
    /// A hash by its digits: 64 for [`Sha256`](Self::Sha256), 40 for [`Git`](Self::Git), nothing else.
    pub fn parse(digits: &str) -> Option<Self> {
        if !digits.bytes().all(|b| b.is_ascii_hexdigit()) {
            return None;
        }
        match digits.len() {
            64 => Some(Self::Sha256(digits.to_ascii_lowercase())),
            40 => Some(Self::Git(digits.to_ascii_lowercase())),
            _ => None,
        }
    }

    /// The hash in an `ETag` or `X-Linked-Etag` header, if it is one.
    pub fn from_etag(etag: &str) -> Option<Self> {
        Self::parse(etag.strip_prefix("W/").unwrap_or(etag).trim_matches('"'))
    }

    /// The digits.
    pub fn digits(&self) -> &str {
        let (Self::Sha256(digits) | Self::Git(digits)) = self;
        digits
    }

    /// What people call this kind of hash.
    pub(super) fn kind(&self) -> &'static str {
        match self {
            Self::Sha256(_) => "SHA-256",
            Self::Git(_) => "git hash",
        }
    }

    /// The hash of a file's bytes, of the same kind as this one.
    pub(super) fn of(&self, file: &mut File) -> io::Result<Self> {
        file.rewind()?;
        Ok(match self {
            Self::Sha256(_) => Self::Sha256(digest_of(Sha256::new(), file)?),
            Self::Git(_) => {
                let header = format!("blob {}\0", file.metadata()?.len());
                Self::Git(digest_of(Sha1::new_with_prefix(header), file)?)
            }
        })
    }
}
