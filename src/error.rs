//! The library's one error type.
//!
//! Every message says what was wrong, where (file, key, clip, rank, step) and what to do about it. The variants say
//! what kind of thing was wrong, so that callers and tests need not read the words. The binary prints the message and
//! exits with a code that is not 0.

use std::path::{Path, PathBuf};

/// What can go wrong in longreel.
///
/// The first five variants hold the whole message.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// What the user asked for cannot be done: a config key, a command-line value or the name of a file to write is
    /// wrong, or does not go with another.
    #[error("{0}")]
    Config(String),
    /// Sizes, tensors, ranks or the calls of ranks do not fit the network or one another.
    #[error("{0}")]
    Shape(String),
    /// Media, a dataset, a caption, a model file or a hub's answer is damaged, missing or not what it should be.
    #[error("{0}")]
    Data(String),
    /// A checkpoint or another part of a run's folder is damaged, missing, in the way, or of another run.
    #[error("{0}")]
    Checkpoint(String),
    /// The machine, its processes, threads, GPUs, disks or network, the launcher or how longreel was built does not
    /// allow it.
    #[error("{0}")]
    Environment(String),
    /// The operating system refused a file operation.
    #[error("{}: {source}{}", crate::terminal::name(path), whole(path, source))]
    Io { path: PathBuf, source: std::io::Error },
    /// A loss or gradient was NaN or infinite.
    #[error("step {step}: {tensor} is {value}; the run stops here, the last good checkpoint is untouched")]
    NonFinite { step: u64, tensor: String, value: f64 },
    /// Another rank failed first; `message` is that rank's error.
    #[error("rank {rank} failed: {message}")]
    Rank { rank: usize, message: String },
    /// The user asked to stop, and a step that would have gone on for long was abandoned; a checkpoint has what came
    /// before it.
    #[error("step {step} was abandoned as asked: nothing of it is saved; go on after step {} with --resume", step - 1)]
    Abandoned { step: u64 },
    /// Candle reported an error.
    #[error(transparent)]
    Candle(candle_core::Error),
}

/// With the feature `cuda`, src/cuda/errors.rs converts, since it knows what a driver's errors mean.
#[cfg(not(feature = "cuda"))]
impl From<candle_core::Error> for Error {
    fn from(e: candle_core::Error) -> Self {
        Self::Candle(e)
    }
}

/// Of a relative path that leads nowhere, where it was looked for.
fn whole(path: &Path, source: &std::io::Error) -> String {
    let missing = source.kind() == std::io::ErrorKind::NotFound && path.is_relative();
    let absolute = std::path::absolute(path).ok().filter(|_| missing);
    absolute.map_or(String::new(), |path| format!("; that is {}", crate::terminal::name(path)))
}

/// `std::result::Result` with longreel's [`Error`].
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// An [`Error::Io`] about `path`.
    pub fn io(path: impl AsRef<Path>, source: std::io::Error) -> Self {
        Self::Io { path: path.as_ref().to_owned(), source }
    }

    /// The same error, its message preceded by where it happened: a file, a key, a clip.
    pub fn at(self, place: impl std::fmt::Display) -> Self {
        self.reworded(|message| format!("{place}: {message}"))
    }

    /// The same kind of error with another message. Errors that are more than a message stay as they are.
    pub(crate) fn reworded(self, change: impl FnOnce(String) -> String) -> Self {
        match self {
            Self::Config(message) => Self::Config(change(message)),
            Self::Shape(message) => Self::Shape(change(message)),
            Self::Data(message) => Self::Data(change(message)),
            Self::Checkpoint(message) => Self::Checkpoint(change(message)),
            Self::Environment(message) => Self::Environment(change(message)),
            other => other,
        }
    }

    /// The same error as a Candle error, for use inside custom ops.
    pub fn into_candle(self) -> candle_core::Error {
        match self {
            Self::Candle(e) => e,
            other => candle_core::Error::wrap(other),
        }
    }
}

/// Returns early with an [`Error`](crate::Error) of the kind that comes first, its message formatted like `format!`:
/// `bail!(Config, "steps = {steps}: must be at least 1")`.
#[macro_export]
macro_rules! bail {
    ($kind:ident, $($arg:tt)*) => { return Err($crate::Error::$kind(format!($($arg)*))) };
}
