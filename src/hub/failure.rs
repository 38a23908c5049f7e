//! Says why a request or a download came to nothing, and what that means to the user.

use crate::Error;

pub(super) type Result<T> = std::result::Result<T, Failure>;

/// Why a request came to nothing; `from` says who answered, or did not.
#[derive(Debug)]
pub(super) enum Failure {
    /// The answer is a status that tells of an error.
    Status { from: String, status: u16 },
    /// No connection, or no answer in time.
    Network { from: String, text: String },
    /// An answer that no hub gives.
    Answer { from: String, text: String },
    /// A download ended early, and what came of it is kept.
    Windows(String),
    /// Anything else; the text is the whole story.
    Other(String),
}

/// Of a file on this machine.
impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Other(error.to_string())
    }
}

impl Failure {
    /// The error for the user; `what` is the name, and the file, that it is about.
    pub fn explain(self, what: &str) -> Error {
        match self {
            Self::Status { from, status: status @ (401 | 403) } => {
                Error::Data(format!("{what}: {from} answered {status}: set HF_TOKEN to a token that may read it"))
            }
            Self::Status { from, status: 404 } => Error::Data(format!("{what}: {from} has no such file")),
            Self::Status { from, status: status @ 400.. } => {
                Error::Data(format!("{what}: {from} answered {status}; try again later"))
            }
            Self::Status { from, status } => Error::Data(format!(
                "{what}: {from} does not answer like a hub (with status {status}); see HF_ENDPOINT"
            )),
            Self::Network { from, text } => Error::Environment(format!(
                "{what}: {from} cannot be reached ({text}): check the network, or name a local folder"
            )),
            Self::Answer { from, text } => {
                Error::Data(format!("{what}: {from} does not answer like a hub ({text}); see HF_ENDPOINT"))
            }
            Self::Windows(text) => {
                Error::Environment(format!("{what}: {text}; a second try takes up the download where it ended"))
            }
            Self::Other(text) => Error::Environment(format!("{what}: {text}")),
        }
    }
}
