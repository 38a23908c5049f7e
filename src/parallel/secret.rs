//! Reads or makes the secret that the processes of a job share, so that a rank takes no stranger for another rank.
//!
//! It comes from the environment, or from a file of this user's which rank 0 makes. It never travels: a
//! [`handshake`](super::handshake) proves that both sides know it.

use hmac::{Hmac, KeyInit, Mac};
use rustix::fs::OFlags;
use rustix::rand::{GetRandomFlags, getrandom};
use sha2::Sha256;
use std::fmt::{self, Write as _};
use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind, Read, Write as _};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use crate::{Error, Result, bail, terminal};

/// The variable that holds a secret.
pub(super) const TEXT: &str = "LONGREEL_JOB_SECRET";
/// The variable that names a file with one.
pub(super) const FILE: &str = "LONGREEL_JOB_SECRET_FILE";
/// Bytes of a secret: a shorter one could be guessed from a recorded handshake.
const SHORTEST: usize = 16;
const LONGEST: usize = 4096;
/// How often a rank looks for the file that rank 0 makes.
const LOOK: Duration = Duration::from_millis(50);

/// Where a process has its job's secret from.
#[derive(Clone, PartialEq, Eq)]
pub enum Secret {
    /// The secret itself.
    Text(String),
    /// A file with it, which rank 0 makes if there is none.
    File(PathBuf),
    /// There is none, and ranks may be on several machines: they cannot meet.
    Missing,
}

/// The secret is no part of what is printed.
impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Text(_) => f.write_str("Text(..)"),
            Self::File(path) => f.debug_tuple("File").field(path).finish(),
            Self::Missing => f.write_str("Missing"),
        }
    }
}

impl Secret {
    /// Of variables that `get` gives. Without one, ranks of `one_machine` share a file in the folder for temporary
    /// files.
    ///
    /// # Errors
    /// Both variables are set, or the secret is too short or too long.
    pub(super) fn from(get: impl Fn(&str) -> Option<String>, one_machine: bool) -> Result<Self> {
        let set = |name: &str| get(name).map(|text| text.trim().to_owned()).filter(|text| !text.is_empty());
        match (set(TEXT), set(FILE)) {
            (Some(_), Some(_)) => bail!(Environment, "{TEXT} and {FILE} are both set: set one of them"),
            (Some(text), None) => {
                long_enough(text.as_bytes()).map_err(|why| Error::Environment(format!("{TEXT} {why}")))?;
                Ok(Self::Text(text))
            }
            (None, Some(path)) => Ok(Self::File(path.into())),
            (None, None) if one_machine => {
                let user = rustix::process::geteuid().as_raw();
                Ok(Self::File(std::env::temp_dir().join(format!("longreel-job-secret-{user}"))))
            }
            (None, None) => Ok(Self::Missing),
        }
    }

    /// The key that is made of the secret. Rank 0 makes the file of a [`Secret::File`]; the others wait for it `until`
    /// then.
    ///
    /// # Errors
    /// There is no secret; its file cannot be read or made, others than this user could read or change it, or it does
    /// not come.
    pub(super) fn key(&self, rank: usize, until: Instant) -> Result<Key> {
        let path = match self {
            Self::Text(text) => return Ok(Key::new(text.as_bytes())),
            Self::Missing => bail!(
                Environment,
                "this job has no secret, by which its ranks know each other on several machines: set {TEXT} to the same random text of at \
                 least {SHORTEST} bytes for all processes (openssl rand -hex 32), or {FILE} to a file that all of them see"
            ),
            Self::File(path) => path,
        };
        let shown = terminal::name(path);
        loop {
            match read(path) {
                Ok(secret) => return Ok(Key::new(&secret)),
                Err(e) if e.kind() == ErrorKind::NotFound && rank == 0 => {
                    make(path).map_err(|e| {
                        Error::Environment(format!("{shown}: no job secret can be kept there: {e}; set {TEXT} instead"))
                    })?;
                }
                Err(e) if e.kind() == ErrorKind::NotFound => {
                    if Instant::now() > until {
                        bail!(
                            Environment,
                            "there is no job secret at {shown}, where rank 0 makes it: if it is on another file system or of another user, \
                             set {TEXT} to the same random text for all processes"
                        );
                    }
                    thread::sleep(LOOK);
                }
                Err(e) => bail!(Environment, "{shown} holds no job secret: {e}; remove it, or set {TEXT} instead"),
            }
        }
    }
}

fn long_enough(secret: &[u8]) -> std::result::Result<(), String> {
    match secret.len() {
        SHORTEST..=LONGEST => Ok(()),
        n => Err(format!(
            "has {n} bytes; a job's secret is a random text of {SHORTEST} to {LONGEST} (openssl rand -hex 32)"
        )),
    }
}

/// The secret in a file that only this user can read or change.
fn read(path: &Path) -> io::Result<Vec<u8>> {
    let unfit = |why: String| io::Error::new(ErrorKind::InvalidData, why);
    // What others may have put there is not waited for.
    let flags = (OFlags::NOFOLLOW | OFlags::NONBLOCK).bits() as i32;
    let file = OpenOptions::new().read(true).custom_flags(flags).open(path)?;
    let meta = file.metadata()?;
    if !meta.is_file() {
        return Err(unfit("it is no file".into()));
    }
    if meta.uid() != rustix::process::geteuid().as_raw() {
        return Err(unfit(format!("it belongs to another user (number {})", meta.uid())));
    }
    if meta.mode() & 0o077 != 0 {
        return Err(unfit(format!(
            "its mode is {:o}, so that others can read or change it: it must be 600",
            meta.mode() & 0o777
        )));
    }
    let mut secret = vec![];
    file.take(LONGEST as u64 + 1).read_to_end(&mut secret)?;
    let secret = secret.trim_ascii();
    long_enough(secret).map_err(unfit)?;
    Ok(secret.to_vec())
}

/// Makes the file with a random secret, unless another has made it meanwhile. It appears whole, and with mode 600.
fn make(path: &Path) -> io::Result<()> {
    let mut text = String::new();
    for byte in random::<32>()? {
        let _ = write!(text, "{byte:02x}");
    }
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut file = tempfile::NamedTempFile::new_in(folder)?; // of mode 600
    writeln!(file, "{text}")?;
    file.as_file().sync_all()?;
    match file.persist_noclobber(path) {
        Err(e) if e.error.kind() != ErrorKind::AlreadyExists => Err(e.error),
        _ => File::open(folder)?.sync_all(),
    }
}

/// Random bytes of the system's, which nobody can foretell.
pub(super) fn random<const N: usize>() -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    match getrandom(&mut bytes, GetRandomFlags::empty())? {
        n if n == N => Ok(bytes),
        n => Err(io::Error::other(format!("the system gave {n} random bytes of {N}"))),
    }
}

/// HMAC-SHA256 (RFC 2104) with a key.
#[derive(Clone)]
pub struct Key(Hmac<Sha256>);

impl Key {
    /// Of these bytes.
    pub fn new(key: &[u8]) -> Self {
        Self(Hmac::new_from_slice(key).expect("HMAC takes keys of any length"))
    }

    /// Of `parts` one after the other. Their lengths are no part of it, so they must follow from what comes first.
    pub fn tag(&self, parts: &[&[u8]]) -> [u8; 32] {
        self.over(parts).finalize().into_bytes().into()
    }

    /// Whether `tag` is that of `parts`, in a time that does not depend on where it differs.
    pub fn fits(&self, parts: &[&[u8]], tag: &[u8]) -> bool {
        self.over(parts).verify_slice(tag).is_ok()
    }

    fn over(&self, parts: &[&[u8]]) -> Hmac<Sha256> {
        let mut mac = self.0.clone();
        parts.iter().for_each(|part| mac.update(part));
        mac
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::{PermissionsExt, symlink};

    fn fails(path: &Path, rank: usize) -> String {
        Secret::File(path.into()).key(rank, Instant::now()).err().expect("no key").to_string()
    }

    #[test]
    fn tags_are_those_of_rfc_4231() {
        let tag = Key::new(b"Jefe").tag(&[b"what do ya want ", b"for nothing?"]);
        let expected = "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843";
        assert_eq!(tag.iter().map(|byte| format!("{byte:02x}")).collect::<String>(), expected);
        assert!(Key::new(b"Jefe").fits(&[b"what do ya want for nothing?"], &tag));
        assert!(!Key::new(b"Jefe").fits(&[b"what do ya want for nothing!"], &tag));
        assert!(!Key::new(b"Jefe").fits(&[b"what do ya want for nothing?"], &tag[..31]), "a part of a tag is none");
    }

    #[test]
    fn rank_0_makes_the_file_for_this_user_alone_and_all_read_the_same() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("secret");
        assert!(fails(&path, 1).contains("there is no job secret at "), "only rank 0 makes it");
        let secret = Secret::File(path.clone());
        let later = thread::spawn({
            let secret = secret.clone();
            move || secret.key(1, Instant::now() + Duration::from_secs(20)).unwrap().tag(&[])
        });
        let tag = secret.key(0, Instant::now()).unwrap().tag(&[]);
        assert_eq!(later.join().unwrap(), tag);
        assert_eq!(secret.key(0, Instant::now()).unwrap().tag(&[]), tag, "and finds it again");
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        assert_eq!(fs::read_to_string(&path).unwrap().trim().len(), 64);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "nothing is left beside it");
        fs::remove_file(&path).unwrap();
        assert_ne!(secret.key(0, Instant::now()).unwrap().tag(&[]), tag, "a random one");
    }

    #[test]
    fn secret_file_readable_by_others_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("secret");
        let put = |text: &str, mode: u32| {
            fs::write(&path, text).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        };
        for mode in [0o640, 0o604, 0o620, 0o666] {
            put(&"x".repeat(32), mode);
            for rank in [0, 1] {
                assert!(fails(&path, rank).contains(&format!("its mode is {mode:o}")), "{}", fails(&path, rank));
            }
        }
        put("x", 0o600);
        assert!(fails(&path, 0).contains("has 1 bytes"));
        put(&"x".repeat(5000), 0o600);
        assert!(fails(&path, 0).contains("has 4097 bytes"), "and no more is read");
        fs::remove_file(&path).unwrap();
        symlink("/etc/hostname", &path).unwrap();
        assert!(fails(&path, 1).contains("holds no job secret"));
        fs::remove_file(&path).unwrap();
        fs::create_dir(&path).unwrap();
        assert!(fails(&path, 0).contains("it is no file"));
        assert!(fails(&folder.path().join("none/secret"), 0).contains("no job secret can be kept there"));
    }
}
