//! What processes of a [`Party`](super::Party) send each other: frames of a kind, a length and bytes. Nothing that comes is
//! believed beyond a length that was checked, and no more memory taken than that.

use std::io::{self, ErrorKind, Read, Write};
use std::net::TcpStream;
use std::time::Duration;

/// The most bytes of one frame.
pub(super) const LONGEST: usize = 64 << 10;
/// The most of a message that is passed on.
const MESSAGE: usize = 16 << 10;

#[derive(Clone, Debug, PartialEq)]
pub(super) enum Frame {
    /// The sender lives.
    Beat,
    Data(Vec<u8>),
    Failed(Failure),
    /// The sender's work has ended well; from rank 0: that of all.
    Left,
    /// All have come.
    Ready,
}

#[derive(Clone, Debug, PartialEq)]
pub(super) struct Failure {
    pub rank: usize,
    pub message: String,
    /// It is not there any more.
    pub lost: bool,
}

pub(super) fn write(to: &mut impl Write, frame: &Frame) -> io::Result<()> {
    let (kind, bytes) = match frame {
        Frame::Beat => (0, vec![]),
        Frame::Data(bytes) => (1, bytes.clone()),
        Frame::Failed(Failure { rank, message, lost }) => {
            let mut bytes = (*rank as u32).to_le_bytes().to_vec();
            bytes.push(u8::from(*lost));
            bytes.extend(message.bytes().take(MESSAGE));
            (2, bytes)
        }
        Frame::Left => (3, vec![]),
        Frame::Ready => (4, vec![]),
    };
    let mut whole = vec![kind];
    whole.extend((bytes.len() as u32).to_le_bytes());
    whole.extend(bytes);
    to.write_all(&whole)
}

pub(super) fn read(from: &mut impl Read) -> io::Result<Frame> {
    let nonsense = |what: String| io::Error::new(ErrorKind::InvalidData, what);
    let mut head = [0; 5];
    from.read_exact(&mut head)?;
    let length = u32::from_le_bytes([head[1], head[2], head[3], head[4]]) as usize;
    let most = match head[0] {
        1 => LONGEST,
        2 => MESSAGE + 5,
        _ => 0,
    };
    if length > most {
        return Err(nonsense(format!("it sends {length} bytes where no more than {most} can be meant")));
    }
    let mut bytes = vec![0; length];
    from.read_exact(&mut bytes)?;
    Ok(match (head[0], &bytes[..]) {
        (0, _) => Frame::Beat,
        (1, _) => Frame::Data(bytes),
        (2, [a, b, c, d, lost, message @ ..]) => Frame::Failed(Failure {
            rank: u32::from_le_bytes([*a, *b, *c, *d]) as usize,
            message: String::from_utf8_lossy(message).into_owned(),
            lost: *lost != 0,
        }),
        (3, _) => Frame::Left,
        (4, _) => Frame::Ready,
        (kind, _) => return Err(nonsense(format!("it sends what no longreel sends (a frame of kind {kind})"))),
    })
}

/// The next frame but beats, which is to come within `limit`.
pub(super) fn expect(from: &mut TcpStream, limit: Duration) -> io::Result<Frame> {
    from.set_read_timeout(Some(limit))?;
    loop {
        match read(from)? {
            Frame::Beat => {}
            frame => return Ok(frame),
        }
    }
}

/// Why nothing more comes by a line, for people, where `silence` is how long was waited.
pub(super) fn told(e: &io::Error, silence: Duration) -> String {
    match e.kind() {
        ErrorKind::WouldBlock | ErrorKind::TimedOut => format!(
            "nothing was heard from it for {} s: it was stopped or killed, or its host is down or cut off",
            silence.as_secs_f32()
        ),
        ErrorKind::UnexpectedEof | ErrorKind::ConnectionReset | ErrorKind::BrokenPipe => {
            "it ended or was killed: its connection was closed".into()
        }
        _ => e.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn through(frame: &Frame) -> Frame {
        let mut bytes = vec![];
        write(&mut bytes, frame).unwrap();
        read(&mut &bytes[..]).unwrap()
    }

    #[test]
    fn frames_come_as_they_were_sent_and_nothing_else_is_taken() {
        let failure = Failure { rank: 3, message: "ä".into(), lost: true };
        for frame in
            [Frame::Beat, Frame::Data(vec![1; LONGEST]), Frame::Failed(failure.clone()), Frame::Left, Frame::Ready]
        {
            assert_eq!(through(&frame), frame);
        }
        let Frame::Failed(cut) = through(&Frame::Failed(Failure { message: "x".repeat(LONGEST), ..failure })) else {
            panic!()
        };
        assert_eq!(cut.message.len(), MESSAGE, "a long message is cut");
        for bad in [
            &[9, 0, 0, 0, 0][..],
            &[1, 255, 255, 255, 255],
            &[0, 1, 0, 0, 0, 7],
            &[2, 2, 0, 0, 0, 7, 7],
            &[1, 9, 0, 0, 0, 1],
        ] {
            assert!(read(&mut &bad[..]).is_err(), "{bad:?}");
        }
    }
}
