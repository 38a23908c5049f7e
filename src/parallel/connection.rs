//! A connection carries authenticated frames between two processes of a job, each frame within a time limit.
//!
//! A limit holds for a whole frame, and for a whole handshake, so that a peer that sends a byte now and then gets no
//! more time.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::time::{Duration, Instant};

use super::handshake::{PROOF, Seal};
use super::wire::{self, Frame, HEAD};

/// What is left to a process that stood still itself: what has come meanwhile is there to be read.
const AWOKEN: Duration = Duration::from_secs(1);

/// A connection until a moment.
pub(super) struct Until<'a> {
    stream: &'a TcpStream,
    end: Instant,
    /// Bytes that came or went.
    moved: usize,
}

impl<'a> Until<'a> {
    pub fn new(stream: &'a TcpStream, end: Instant) -> Self {
        Self { stream, end, moved: 0 }
    }

    fn left(&self) -> io::Result<Option<Duration>> {
        match self.end.saturating_duration_since(Instant::now()) {
            Duration::ZERO => Err(ErrorKind::TimedOut.into()),
            left => Ok(Some(left)),
        }
    }

    fn counted(&mut self, moved: io::Result<usize>) -> io::Result<usize> {
        match &moved {
            Ok(n) => self.moved += n,
            // So a wait ends where a process was stopped and goes on.
            Err(e) if e.kind() == ErrorKind::Interrupted => self.end = self.end.max(Instant::now() + AWOKEN),
            Err(_) => {}
        }
        moved
    }
}

impl Read for Until<'_> {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        self.stream.set_read_timeout(self.left()?)?;
        let moved = self.stream.read(bytes);
        self.counted(moved)
    }
}

impl Write for Until<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.stream.set_write_timeout(self.left()?)?;
        let moved = self.stream.write(bytes);
        self.counted(moved)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Whether a connection waited too long.
pub(super) fn late(e: &io::Error) -> bool {
    matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut)
}

/// Both halves of a connection.
pub(super) struct Connection {
    pub out: Outgoing,
    pub input: Incoming,
}

impl Connection {
    /// After a handshake, with its seals of what is sent and what comes. A frame may take `limit`.
    pub fn new(stream: TcpStream, [sends, receives]: [Seal; 2], limit: Duration) -> io::Result<Self> {
        stream.set_nonblocking(false)?;
        stream.set_nodelay(true)?;
        let input = Incoming { stream: stream.try_clone()?, seal: receives };
        Ok(Self { out: Outgoing { stream, seal: sends, limit }, input })
    }

    /// Whether the other side is still there.
    pub fn there(&self) -> bool {
        let stream = &self.out.stream;
        let looked = stream.set_nonblocking(true).and_then(|()| stream.peek(&mut [0]));
        let _ = stream.set_nonblocking(false);
        !matches!(looked, Ok(0)) && looked.err().is_none_or(|e| e.kind() == ErrorKind::WouldBlock)
    }
}

/// What is sent by a connection.
pub(super) struct Outgoing {
    stream: TcpStream,
    seal: Seal,
    limit: Duration,
}

impl Outgoing {
    pub fn send(&mut self, frame: &Frame) -> io::Result<()> {
        let mut bytes = frame.to_bytes();
        let (head, body) = bytes.split_at(HEAD);
        let tag = self.seal.next(head, body);
        bytes.extend(tag);
        Until::new(&self.stream, Instant::now() + self.limit).write_all(&bytes)
    }

    pub fn shutdown(&self, how: Shutdown) {
        let _ = self.stream.shutdown(how);
    }
}

/// What comes by a connection.
pub(super) struct Incoming {
    stream: TcpStream,
    seal: Seal,
}

impl Incoming {
    /// The next frame, which is to come as a whole within `limit`.
    pub fn next(&mut self, limit: Duration) -> io::Result<Frame> {
        let mut from = Until::new(&self.stream, Instant::now() + limit);
        let read = Self::read(&mut from, &mut self.seal);
        let moved = from.moved;
        read.map_err(|e| match late(&e) && moved > 0 {
            true => wire::nonsense(format!("it sent only {moved} bytes of a message within {} s", limit.as_secs_f32())),
            false => e,
        })
    }

    fn read(from: &mut impl Read, seal: &mut Seal) -> io::Result<Frame> {
        let mut head = [0; HEAD];
        from.read_exact(&mut head)?;
        let mut rest = vec![0; wire::body_length(&head)? + PROOF];
        from.read_exact(&mut rest)?;
        let (body, tag) = rest.split_at(rest.len() - PROOF);
        if !seal.fits(&head, body, tag) {
            return Err(wire::nonsense(
                "a message in its name is not its own: somebody on the way has changed or added it".into(),
            ));
        }
        Frame::of(&head, body)
    }

    /// The next frame but beats, which is to come within `limit`.
    pub fn expect(&mut self, limit: Duration) -> io::Result<Frame> {
        let end = Instant::now() + limit;
        loop {
            match self.next(end.saturating_duration_since(Instant::now()))? {
                Frame::Heartbeat(_) => {}
                frame => return Ok(frame),
            }
        }
    }
}
