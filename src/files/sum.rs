//! Checksums of files: length and CRC-32C, which finds what disks, copies and editors do to a file, though not malice.
//!
//! CRC-32C because processors compute it faster than disks deliver, and because the checksums of a file's parts,
//! computed in any order by anybody, combine to that of the whole: a file that is read piece by piece is checked
//! without a second pass.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::fs::File;
use std::io::{self, Read, Write};
use std::path::Path;

use crate::{Error, Result, bail};

/// Bytes that are summed and written, or read and summed, at a time: few enough to be in cache for the second of the
/// two.
const PIECE: usize = 1 << 18;

/// What tells a file from any other of its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileSum {
    /// Length in bytes.
    pub bytes: u64,
    /// CRC-32C of the contents (RFC 3720), in JSON as eight hexadecimal digits.
    #[serde(with = "hex")]
    pub crc32c: u32,
}

impl fmt::Display for FileSum {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes with CRC-32C {:08x}", self.bytes, self.crc32c)
    }
}

impl FileSum {
    /// That of the file `path`, which is read once from start to end.
    pub fn of(path: &Path) -> Result<Self> {
        let mut file = File::open(path).map_err(|e| Error::io(path, e))?;
        let (mut sum, mut bytes) = (Summed::default(), vec![0; PIECE]);
        loop {
            match file.read(&mut bytes) {
                Ok(0) => return Ok(sum.sum()),
                Ok(n) => sum.add(&bytes[..n]),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(Error::io(path, e)),
            }
        }
    }

    /// Compares with what `path` was `found` to hold.
    ///
    /// # Errors
    /// They differ.
    pub fn check(&self, found: Self, path: &Path) -> Result<()> {
        self.check_length(found.bytes, path)?;
        if found != *self {
            let path = path.display();
            bail!(
                Checkpoint,
                "{path}: is damaged, or another file was put in its place: it has {found}, where {self} were saved"
            )
        }
        Ok(())
    }

    /// Compares with the length that `path` was `found` to have.
    ///
    /// # Errors
    /// They differ.
    pub fn check_length(&self, found: u64, path: &Path) -> Result<()> {
        let (path, saved) = (path.display(), self.bytes);
        if found < saved {
            bail!(Checkpoint, "{path}: was cut short: it has {found} bytes, where {saved} were saved")
        }
        if found > saved {
            bail!(
                Checkpoint,
                "{path}: is damaged, or another file was put in its place: it has {found} bytes, where {saved} were saved"
            )
        }
        Ok(())
    }
}

/// The checksum of the bytes so far.
#[derive(Clone, Debug, Default)]
pub(crate) struct Summed {
    bytes: u64,
    crc32c: u32,
}

impl Summed {
    /// Adds the next bytes.
    pub fn add(&mut self, bytes: &[u8]) {
        self.crc32c = crc32c::crc32c_append(self.crc32c, bytes);
        self.bytes += bytes.len() as u64;
    }

    /// Adds the next `bytes` bytes, of which the checksum is known.
    pub fn append(&mut self, crc32c: u32, bytes: u64) {
        self.crc32c = crc32c::crc32c_combine(self.crc32c, crc32c, bytes as usize);
        self.bytes += bytes;
    }

    /// CRC-32C of all.
    pub fn crc32c(&self) -> u32 {
        self.crc32c
    }

    /// Length and checksum of all.
    pub fn sum(&self) -> FileSum {
        FileSum { bytes: self.bytes, crc32c: self.crc32c }
    }
}

/// A file that is summed while it is written.
pub(super) struct Summing<'a> {
    file: &'a File,
    pub summed: Summed,
}

impl<'a> Summing<'a> {
    pub fn new(file: &'a File) -> Self {
        Self { file, summed: Summed::default() }
    }
}

impl Write for Summing<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.file.write(&bytes[..bytes.len().min(PIECE)])?;
        self.summed.add(&bytes[..written]);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

/// A CRC as text of eight hexadecimal digits.
mod hex {
    use serde::de::Error;
    use serde::{Deserialize, Deserializer, Serializer};

    pub fn serialize<S: Serializer>(crc: &u32, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(&format_args!("{crc:08x}"))
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<u32, D::Error> {
        let text = String::deserialize(from)?;
        u32::from_str_radix(&text, 16).map_err(|e| D::Error::custom(format!("a CRC-32C is not {text:?}: {e}")))
    }
}
