//! The wire format of the [`ControlPlane`](super::ControlPlane): frames of a kind, a length, bytes, and a tag that
//! authenticates them.
//!
//! A received length is checked first, and no more memory is taken than that.

use std::io::{self, ErrorKind};

use crate::{Error, terminal};

/// The most bytes of one frame.
pub(super) const LONGEST: usize = 64 << 10;
/// The most of a message that is passed on.
const MESSAGE: usize = 16 << 10;
/// Bytes before a frame's own: its kind, and their number.
pub(super) const HEAD: usize = 5;

/// A message between two processes of a job.
#[derive(Clone, Debug, PartialEq)]
pub enum Frame {
    /// Tells that the sender lives, and what it is at.
    Heartbeat(Presence),
    /// A message for a call.
    Data(Vec<u8>),
    /// The sender, or a rank that it tells of, has failed.
    Failed(Failure),
    /// The work of this rank, well or not, has ended: the sender's, or one that rank 0 tells of.
    Left(usize),
    /// All have come.
    Ready,
}

/// What a rank is at.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Presence {
    /// Calls begun.
    pub calls: u64,
    /// It calls from threads beside its main one too, so it may go on although a call waits.
    pub off_main: bool,
    /// The call in which it waits for others.
    pub waits: Option<String>,
}

/// What ended a run.
#[derive(Clone, Debug, PartialEq)]
pub struct Failure {
    /// The rank that failed first.
    pub rank: usize,
    /// Its error.
    pub message: String,
    /// It is not there any more.
    pub lost: bool,
}

impl Failure {
    /// As the calls of all ranks return it.
    pub fn error(&self) -> Error {
        Error::Rank { rank: self.rank, message: self.message.clone() }
    }
}

impl Frame {
    /// The frame as it is sent, without its tag.
    pub fn to_bytes(&self) -> Vec<u8> {
        let (kind, bytes) = match self {
            Self::Heartbeat(presence) if *presence == Presence::default() => (0, vec![]),
            Self::Heartbeat(Presence { calls, off_main, waits }) => {
                let mut bytes = calls.to_le_bytes().to_vec();
                bytes.push(u8::from(*off_main) + 2 * u8::from(waits.is_some()));
                bytes.extend(terminal::shorten(waits.as_deref().unwrap_or_default(), MESSAGE).bytes());
                (0, bytes)
            }
            Self::Data(bytes) => (1, bytes.clone()),
            Self::Failed(Failure { rank, message, lost }) => {
                let mut bytes = (*rank as u32).to_le_bytes().to_vec();
                bytes.push(u8::from(*lost));
                bytes.extend(terminal::shorten(message, MESSAGE).bytes());
                (2, bytes)
            }
            Self::Left(rank) => (3, (*rank as u32).to_le_bytes().to_vec()),
            Self::Ready => (4, vec![]),
        };
        [&[kind][..], &(bytes.len() as u32).to_le_bytes(), &bytes].concat()
    }

    /// A whole frame, without its tag, of bytes that anybody may have sent.
    ///
    /// # Errors
    /// They are no frame, or more than one.
    pub fn parse(bytes: &[u8]) -> io::Result<Self> {
        let Some((head, body)) = bytes.split_first_chunk() else {
            return Err(nonsense(format!("it sends {} bytes, fewer than a frame has", bytes.len())));
        };
        match body_length(head)? {
            length if length == body.len() => Self::of(head, body),
            length => Err(nonsense(format!("it sends {} bytes in a frame of {length}", body.len()))),
        }
    }

    /// With its head and as many bytes as the head says.
    pub(super) fn of(head: &[u8; HEAD], body: &[u8]) -> io::Result<Self> {
        Ok(match (head[0], body) {
            (0, []) => Self::Heartbeat(Presence::default()),
            (0, [a, b, c, d, e, f, g, h, flags @ 0..=3, waits @ ..]) => Self::Heartbeat(Presence {
                calls: u64::from_le_bytes([*a, *b, *c, *d, *e, *f, *g, *h]),
                off_main: flags & 1 != 0,
                waits: (flags & 2 != 0).then(|| String::from_utf8_lossy(waits).into_owned()),
            }),
            (1, _) => Self::Data(body.to_vec()),
            (2, [a, b, c, d, lost, message @ ..]) => Self::Failed(Failure {
                rank: u32::from_le_bytes([*a, *b, *c, *d]) as usize,
                message: String::from_utf8_lossy(message).into_owned(),
                lost: *lost != 0,
            }),
            (3, [a, b, c, d]) => Self::Left(u32::from_le_bytes([*a, *b, *c, *d]) as usize),
            (4, []) => Self::Ready,
            (kind, _) => return Err(nonsense(format!("it sends what no longreel sends (a frame of kind {kind})"))),
        })
    }
}

/// How many bytes follow a head.
///
/// # Errors
/// More than a frame of its kind may have.
pub(super) fn body_length(head: &[u8; HEAD]) -> io::Result<usize> {
    let length = u32::from_le_bytes([head[1], head[2], head[3], head[4]]) as usize;
    let most = match head[0] {
        0 => MESSAGE + 9,
        1 => LONGEST,
        2 => MESSAGE + 5,
        3 => 4,
        _ => 0,
    };
    if length > most {
        return Err(nonsense(format!("it sends {length} bytes where no more than {most} can be meant")));
    }
    Ok(length)
}

pub(super) fn nonsense(what: String) -> io::Error {
    io::Error::new(ErrorKind::InvalidData, what)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn through(frame: &Frame) -> Frame {
        Frame::parse(&frame.to_bytes()).unwrap()
    }

    #[test]
    fn frame_survives_the_wire_and_malformed_bytes_are_errors() {
        let failure = Failure { rank: 3, message: "ä".into(), lost: true };
        let waits = Presence { calls: 7, off_main: true, waits: Some("barrier".into()) };
        for frame in [
            Frame::Heartbeat(Presence::default()),
            Frame::Heartbeat(Presence { waits: None, ..waits.clone() }),
            Frame::Heartbeat(waits),
            Frame::Data(vec![1; LONGEST]),
            Frame::Failed(failure.clone()),
            Frame::Left(70_000),
            Frame::Ready,
        ] {
            assert_eq!(through(&frame), frame);
        }
        let Frame::Failed(cut) = through(&Frame::Failed(Failure { message: "x".repeat(LONGEST), ..failure.clone() }))
        else {
            panic!()
        };
        assert_eq!(cut.message.len(), MESSAGE, "a long message is cut");
        let Frame::Failed(cut) =
            through(&Frame::Failed(Failure { message: "x".to_owned() + &"ä".repeat(LONGEST), ..failure }))
        else {
            panic!()
        };
        assert!(cut.message.len() == MESSAGE - 1 && cut.message.ends_with('ä'), "between characters");
        for bad in [
            &[][..],
            &[0, 0, 0, 0],
            &[9, 0, 0, 0, 0],
            &[1, 255, 255, 255, 255],
            &[0, 1, 0, 0, 0, 7],
            &[2, 2, 0, 0, 0, 7, 7],
            &[3, 0, 0, 0, 0],
            &[1, 9, 0, 0, 0, 1],
            &[1, 1, 0, 0, 0, 1, 1],
        ] {
            assert!(Frame::parse(bad).is_err(), "{bad:?}");
        }
    }
}
