//! One request of HTTP/1.1 in, one answer out, then the connection ends: all that a page on this machine needs.
//!
//! httparse, the parser of hyper and one of our dependencies' already, reads the head; around it everything is bounded:
//! its length, its number of fields, the time it may take. (tiny_http has no such bounds and has had no release since
//! 2022; hyper would bring an async runtime.) A browser's pages from elsewhere do not get in: an address of theirs that
//! leads to this machine comes with their name as `Host`, which is refused. Only GET and HEAD are answered, so nothing
//! can be changed.

use std::fs::File;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

/// Bytes of a request at most, fields of its head, and the time until it is there.
const LONGEST_HEAD: usize = 16 << 10;
const MOST_FIELDS: usize = 64;
const HEAD_TIME: Duration = Duration::from_secs(10);

/// How long an answer may wait for a client that reads nothing. A browser that pauses a video asks again for the rest.
const WRITE_TIME: Duration = Duration::from_secs(10);

/// What the page may load and do: its own files, nothing from elsewhere, nothing inline; nobody may frame it.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; media-src 'self'; \
                      connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// A request that may be answered.
#[derive(Debug, PartialEq)]
pub(super) struct Request {
    /// Whether only the head of the answer is wanted.
    pub head_only: bool,
    /// As sent: names that the page asks for need no escapes, so none are decoded, and one that has some is not found.
    pub path: String,
    /// What follows the `?`.
    pub query: String,
    /// The value of `Range`.
    pub range: Option<String>,
}

impl Request {
    /// A number of the query; 0 if it is not there.
    pub fn number(&self, name: &str) -> u64 {
        let pairs = self.query.split('&').filter_map(|pair| pair.split_once('='));
        pairs.filter(|(key, _)| *key == name).find_map(|(_, value)| value.parse().ok()).unwrap_or(0)
    }
}

/// What is answered.
#[derive(Debug)]
pub(super) struct Answer {
    pub status: u16,
    /// The media type.
    pub kind: &'static str,
    pub body: Body,
}

#[derive(Debug)]
pub(super) enum Body {
    Text(String),
    File(File),
}

impl Answer {
    /// `text` with status 200.
    pub fn text(kind: &'static str, text: impl Into<String>) -> Self {
        Self { status: 200, kind, body: Body::Text(text.into()) }
    }

    /// An error, in one sentence.
    pub fn error(status: u16, why: &str) -> Self {
        Self { status, kind: "text/plain; charset=utf-8", body: Body::Text(format!("{why}\n")) }
    }

    /// There is nothing of that name, or nothing that is shown to anybody.
    pub fn not_found() -> Self {
        Self::error(404, "not found")
    }
}

/// Answers the one request that comes by `stream` with what `answer` makes of it; what is no proper request gets an
/// error.
///
/// # Errors
/// The client is gone, or too slow.
pub(super) fn converse(mut stream: TcpStream, answer: impl FnOnce(&Request) -> Answer) -> io::Result<()> {
    stream.set_write_timeout(Some(WRITE_TIME))?;
    let (request, reply) = match read_head(&mut stream)? {
        Ok(request) => {
            let reply = answer(&request);
            (Some(request), reply)
        }
        Err(refusal) => (None, refusal),
    };
    let head_only = request.as_ref().is_some_and(|request| request.head_only);
    let range = request.and_then(|request| request.range);
    send(&mut stream, &reply, head_only, range.as_deref())?;
    // A client that still sends would otherwise be cut off before it has read the answer.
    stream.shutdown(Shutdown::Write)?;
    stream.set_read_timeout(Some(Duration::from_millis(200)))?;
    let _ = io::copy(&mut stream.take(LONGEST_HEAD as u64), &mut io::sink());
    Ok(())
}

/// The request, or what to answer instead.
fn read_head(stream: &mut TcpStream) -> io::Result<Result<Request, Answer>> {
    let (mut head, start) = (Vec::with_capacity(1024), Instant::now());
    let mut more = [0; 2048];
    loop {
        let left = HEAD_TIME.saturating_sub(start.elapsed());
        if left.is_zero() {
            return Ok(Err(Answer::error(408, "the request took too long")));
        }
        stream.set_read_timeout(Some(left))?;
        let count = match stream.read(&mut more) {
            Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
            Ok(count) => count,
            Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted) => {
                continue;
            }
            Err(e) => return Err(e),
        };
        head.extend(&more[..count]);
        if let Some(result) = parse(&head) {
            return Ok(result);
        }
        if head.len() > LONGEST_HEAD {
            return Ok(Err(Answer::error(431, "the request is too long")));
        }
    }
}

/// The request that `head` is, or what to answer instead; none while it is incomplete.
fn parse(head: &[u8]) -> Option<Result<Request, Answer>> {
    let mut fields = [httparse::EMPTY_HEADER; MOST_FIELDS];
    let mut parsed = httparse::Request::new(&mut fields);
    match parsed.parse(&head[..head.len().min(LONGEST_HEAD)]) {
        Ok(httparse::Status::Partial) => return None,
        Ok(httparse::Status::Complete(_)) => {}
        Err(httparse::Error::TooManyHeaders) => {
            return Some(Err(Answer::error(431, "the request has too many fields")));
        }
        Err(e) => return Some(Err(Answer::error(400, &format!("not a request: {e}")))),
    }
    let method = parsed.method.unwrap_or_default();
    if !matches!(method, "GET" | "HEAD") {
        return Some(Err(Answer::error(405, "this page can only be read")));
    }
    let field = |name: &str| {
        let values = parsed.headers.iter().filter(|field| field.name.eq_ignore_ascii_case(name));
        values.map(|field| std::str::from_utf8(field.value).unwrap_or_default().trim()).collect::<Vec<_>>()
    };
    if !matches!(field("host")[..], [host] if is_this_machine(host)) {
        return Some(Err(Answer::error(403, "this page answers to the names 127.0.0.1 and localhost only")));
    }
    let target = parsed.path.unwrap_or_default();
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let range = field("range").first().map(|&range| range.to_owned());
    Some(Ok(Request { head_only: method == "HEAD", path: path.to_owned(), query: query.to_owned(), range }))
}

/// Whether a `Host` is a name of this machine for itself. Any port will do: an SSH tunnel has its own.
fn is_this_machine(host: &str) -> bool {
    let name =
        host.rsplit_once(':').filter(|(_, port)| port.bytes().all(|b| b.is_ascii_digit())).map_or(host, |(n, _)| n);
    ["127.0.0.1", "[::1]"].contains(&name) || name.eq_ignore_ascii_case("localhost")
}

fn send(stream: &mut TcpStream, answer: &Answer, head_only: bool, range: Option<&str>) -> io::Result<()> {
    let whole = match &answer.body {
        Body::Text(text) => text.len() as u64,
        Body::File(file) => file.metadata()?.len(),
    };
    let wanted = match (&answer.body, range) {
        (Body::File(_), Some(range)) => part(range, whole),
        _ => Wanted::All,
    };
    let (status, bytes, place) = match wanted {
        Wanted::All => (answer.status, 0..whole, String::new()),
        Wanted::Part(part) => {
            let place = format!("Content-Range: bytes {}-{}/{whole}\r\n", part.start, part.end - 1);
            (206, part, place)
        }
        Wanted::Nothing => (416, 0..0, format!("Content-Range: bytes */{whole}\r\n")),
    };
    let more = match (&answer.body, status) {
        (Body::File(_), _) => "Accept-Ranges: bytes\r\nCache-Control: no-cache\r\n",
        (_, 405) => "Allow: GET, HEAD\r\nCache-Control: no-store\r\n",
        _ => "Cache-Control: no-store\r\n",
    };
    let head = format!(
        "HTTP/1.1 {status} {}\r\nContent-Type: {}\r\nContent-Length: {}\r\n{place}{more}\
         Content-Security-Policy: {POLICY}\r\nX-Content-Type-Options: nosniff\r\n\
         Referrer-Policy: no-referrer\r\nCross-Origin-Resource-Policy: same-origin\r\n\
         Connection: close\r\n\r\n",
        reason(status),
        answer.kind,
        bytes.end - bytes.start
    );
    stream.write_all(head.as_bytes())?;
    match &answer.body {
        _ if head_only => Ok(()),
        Body::Text(text) => stream.write_all(text.as_bytes()),
        Body::File(file) => send_file(stream, file, bytes),
    }
}

fn send_file(stream: &mut TcpStream, file: &File, mut bytes: Range<u64>) -> io::Result<()> {
    let mut piece = vec![0; 64 << 10];
    while !bytes.is_empty() {
        let most = piece.len().min((bytes.end - bytes.start) as usize);
        let count = file.read_at(&mut piece[..most], bytes.start)?;
        if count == 0 {
            return Err(ErrorKind::UnexpectedEof.into()); // it was cut meanwhile
        }
        stream.write_all(&piece[..count])?;
        bytes.start += count as u64;
    }
    Ok(())
}

/// What a `Range` asks for.
#[derive(Debug, PartialEq)]
enum Wanted {
    All,
    Part(Range<u64>),
    Nothing,
}

/// The part of a file of `whole` bytes that `range` names. What is not understood, or is several parts, is taken as no
/// range at all.
fn part(range: &str, whole: u64) -> Wanted {
    let numbers = range.strip_prefix("bytes=").and_then(|range| range.split_once('-'));
    let number = |text: &str| text.bytes().all(|b| b.is_ascii_digit()).then(|| text.parse::<u64>().ok()).flatten();
    let bytes = match numbers {
        Some(("", last)) => number(last).map(|last| whole.saturating_sub(last)..whole),
        Some((first, "")) => number(first).map(|first| first..whole),
        Some((first, last)) => match (number(first), number(last)) {
            (Some(first), Some(last)) if first <= last => Some(first..last.saturating_add(1).min(whole)),
            _ => None,
        },
        None => None,
    };
    match bytes {
        None => Wanted::All,
        Some(bytes) if bytes.is_empty() => Wanted::Nothing,
        Some(bytes) => Wanted::Part(bytes),
    }
}

fn reason(status: u16) -> &'static str {
    match status {
        200 => "OK",
        206 => "Partial Content",
        400 => "Bad Request",
        403 => "Forbidden",
        404 => "Not Found",
        405 => "Method Not Allowed",
        408 => "Request Timeout",
        416 => "Range Not Satisfiable",
        431 => "Request Header Fields Too Large",
        503 => "Service Unavailable",
        _ => "Error",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_cut_to_the_file_and_nonsense_is_no_range() {
        assert_eq!(part("bytes=0-", 10), Wanted::Part(0..10));
        assert_eq!(part("bytes=2-3", 10), Wanted::Part(2..4));
        assert_eq!(part("bytes=5-99", 10), Wanted::Part(5..10));
        assert_eq!(part("bytes=-4", 10), Wanted::Part(6..10));
        assert_eq!(part("bytes=-40", 10), Wanted::Part(0..10));
        for (range, whole) in [("bytes=10-", 10), ("bytes=-0", 10), ("bytes=0-", 0)] {
            assert_eq!(part(range, whole), Wanted::Nothing, "{range}");
        }
        for range in [
            "",
            "bytes=",
            "bytes=-",
            "bytes=3-2",
            "bytes=0-1,4-5",
            "bytes=+1-2",
            "lines=1-2",
            "bytes=99999999999999999999-",
        ] {
            assert_eq!(part(range, 10), Wanted::All, "{range}");
        }
    }

    #[test]
    fn only_names_of_this_machine_for_itself_are_answered() {
        for host in ["127.0.0.1", "127.0.0.1:7007", "localhost", "LocalHost:80", "[::1]", "[::1]:7007"] {
            assert!(is_this_machine(host), "{host}");
        }
        for host in [
            "",
            "evil.example",
            "evil.example:7007",
            "127.0.0.1.evil.example",
            "localhost.evil.example",
            "127.0.0.1:x",
            "[::1]x",
        ] {
            assert!(!is_this_machine(host), "{host}");
        }
    }
}
