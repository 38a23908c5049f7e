//! Sends requests to a hub and receives its answers. A server may be broken or hostile, so each wait, each answer and
//! each chain of redirects has a limit, and only the hub's own origin sees the token.

use super::address::{self, Origin, redirected};
use super::failure::{Failure, Result};
use super::info::Info;
use super::{Hub, shown};
use crate::bail;
use crossbeam_channel::RecvTimeoutError;
use parking_lot::Mutex;
use std::io::Read;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::{Duration, Instant};
use ureq::http::{HeaderMap, HeaderValue, Method, Request, StatusCode, Uri, header};
use ureq::{Agent, Body};

/// What a hub may take, in time and bytes. An honest download may go on for as long as it needs.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Time to connect, TLS included.
    pub connect: Duration,
    /// Time from a request to the end of the answer's headers.
    pub response: Duration,
    /// Time in which at least [`stall_bytes`](Self::stall_bytes) of an answer must come.
    pub stall: Duration,
    /// See [`stall`](Self::stall); an answer's last bytes may be fewer.
    pub stall_bytes: u64,
    /// Time for the whole answer to what a repository holds.
    pub info_time: Duration,
    /// Bytes of that answer.
    pub info_bytes: u64,
    /// Redirects in a row.
    pub redirects: u32,
    /// Bytes of a file whose size nobody says.
    pub file_bytes: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(30),
            response: Duration::from_secs(30),
            stall: Duration::from_secs(30),
            stall_bytes: 32 << 10,
            info_time: Duration::from_secs(300),
            info_bytes: 64 << 20,
            redirects: 5,
            file_bytes: 64 << 30,
        }
    }
}

/// An answer whose body is still to come.
pub(super) struct Answer {
    /// Who gave it: the hub, or where it redirected to.
    pub from: String,
    pub status: u16,
    pub headers: HeaderMap,
    body: Body,
}

impl Answer {
    /// A header's text, if it is there and is plain text.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }

    /// A header that is a number.
    pub fn number(&self, name: &str) -> Option<u64> {
        self.header(name)?.trim().parse().ok()
    }

    pub fn refused(&self) -> Failure {
        Failure::Status { from: self.from.clone(), status: self.status }
    }

    pub fn wrong(&self, text: impl Into<String>) -> Failure {
        Failure::Answer { from: self.from.clone(), text: text.into() }
    }
}

pub(super) struct Client {
    agent: Agent,
    endpoint: String,
    origin: Origin,
    token: Option<HeaderValue>,
    pub limits: Limits,
}

impl Client {
    /// # Errors
    /// The endpoint is not an address, or the token holds what no header may.
    pub fn new(hub: &Hub) -> crate::Result<Self> {
        let Hub { endpoint, token, limits, .. } = hub;
        let Some(origin) = endpoint.parse().ok().and_then(|uri| Origin::of(&uri)) else {
            bail!(Config, "{endpoint} is not an address; HF_ENDPOINT must be like https://huggingface.co");
        };
        let token = match token.as_ref().map(|token| HeaderValue::try_from(format!("Bearer {token}"))) {
            Some(Err(_)) => bail!(Config, "the token in use (HF_TOKEN) holds characters that no token has"),
            Some(Ok(mut value)) => {
                value.set_sensitive(true);
                Some(value)
            }
            None => None,
        };
        // Redirects are followed here, for the agent would neither see an end nor where a token may go.
        let agent = Agent::config_builder()
            .max_redirects(0)
            .max_redirects_will_error(false)
            .http_status_as_error(false)
            .user_agent(concat!("longreel/", env!("CARGO_PKG_VERSION")))
            .accept_encoding("identity")
            .timeout_connect(Some(limits.connect))
            .timeout_send_request(Some(limits.connect))
            .timeout_recv_response(Some(limits.response))
            .build()
            .new_agent();
        Ok(Self { agent, endpoint: endpoint.clone(), origin, token, limits: limits.clone() })
    }

    /// What a repository (`models/owner/name`) holds at a revision.
    pub fn info(&self, repo: &str, revision: &str) -> Result<Info> {
        let revision = address::escape(revision).replace('/', "%2F");
        let answer = self.get(&format!("{}/api/{repo}/revision/{revision}?blobs=true", self.endpoint), 0)?;
        if answer.status != 200 {
            return Err(answer.refused());
        }
        let (from, limits, started) = (answer.from.clone(), &self.limits, Instant::now());
        let mut json = Vec::new();
        self.receive(answer, |bytes| {
            if (json.len() + bytes.len()) as u64 > limits.info_bytes {
                let text = format!("it lists more than {} bytes of files", limits.info_bytes);
                return Err(Failure::Answer { from: from.clone(), text });
            }
            if started.elapsed() > limits.info_time {
                let text = format!("its answer is not complete after {:?}", limits.info_time);
                return Err(Failure::Network { from: from.clone(), text });
            }
            json.extend_from_slice(bytes);
            Ok(())
        })
        .map_err(|e| match e {
            Failure::Windows(text) => Failure::Network { from: from.clone(), text },
            other => other,
        })?;
        Info::parse(&json).map_err(|e| Failure::Answer { from, text: e.to_string() })
    }

    /// The address of a file; `repo` is `owner/name` or `datasets/owner/name`.
    pub fn file(&self, repo: &str, commit: &str, name: &str) -> String {
        format!("{}/{repo}/resolve/{commit}/{}", self.endpoint, address::escape(name))
    }

    /// Asks for what is at an address, from a byte on (0: for all of it).
    pub fn get(&self, address: &str, begin: u64) -> Result<Answer> {
        self.ask(&Method::GET, address, begin)
    }

    /// The headers that the hub itself has for a file; where the bytes lie elsewhere, this is a redirect.
    pub fn head(&self, address: &str) -> Result<Answer> {
        self.ask(&Method::HEAD, address, 0)
    }

    fn ask(&self, method: &Method, address: &str, begin: u64) -> Result<Answer> {
        let wrong = |from: &str, text: String| Failure::Answer { from: from.to_owned(), text };
        let mut uri = address::parse(address).map_err(|e| wrong(&self.endpoint, e.to_string()))?;
        for _ in 0..=self.limits.redirects {
            let own = Origin::of(&uri).is_some_and(|origin| origin == self.origin);
            let from = match Origin::of(&uri) {
                Some(origin) if !own => origin.to_string(),
                _ => self.endpoint.clone(),
            };
            let response = self.request(method, &uri, begin, own).map_err(|e| {
                let text = shown(&e.to_string());
                match e {
                    ureq::Error::Protocol(_) | ureq::Error::Http(_) | ureq::Error::LargeResponseHeader(..) => {
                        wrong(&from, text)
                    }
                    _ => Failure::Network { from: from.clone(), text },
                }
            })?;
            let (parts, body) = response.into_parts();
            let answer = Answer { from, status: parts.status.as_u16(), headers: parts.headers, body };
            if !is_redirect(parts.status) {
                return Ok(answer);
            }
            let Some(location) = answer.header("location") else {
                return Err(answer.wrong(format!("it answers {} and does not say where to go", answer.status)));
            };
            let next = redirected(&uri, location).map_err(|e| answer.wrong(e.to_string()))?;
            if method == Method::HEAD && Origin::of(&next).is_none_or(|origin| origin != self.origin) {
                return Ok(answer);
            }
            uri = next;
        }
        Err(wrong(&self.endpoint, format!("it redirects more than {} times", self.limits.redirects)))
    }

    fn request(
        &self,
        method: &Method,
        uri: &Uri,
        begin: u64,
        own: bool,
    ) -> std::result::Result<ureq::http::Response<Body>, ureq::Error> {
        let mut request = Request::builder().method(method).uri(uri.clone());
        if begin > 0 {
            request = request.header(header::RANGE, format!("bytes={begin}-"));
        }
        if let Some(token) = self.token.as_ref().filter(|_| own) {
            request = request.header(header::AUTHORIZATION, token.clone());
        }
        self.agent.run(request.body(()).map_err(ureq::Error::Http)?)
    }

    /// Hands an answer's body to `sink`, piece by piece; ends with an error once it comes slower than the limits allow.
    ///
    /// A read that waits for too long is ended by shutting the agent's connections: whatever layer it waits in (a
    /// TLS record that comes byte by byte, a chunk's header), it returns. That ends the client, too.
    pub fn receive(&self, answer: Answer, mut sink: impl FnMut(&[u8]) -> Result<()>) -> Result<()> {
        let Limits { stall, stall_bytes, .. } = self.limits;
        let Answer { from, mut body, .. } = answer;
        let stalled = || Failure::Windows(format!("{from} sent fewer than {stall_bytes} bytes in {stall:?}"));
        let (waiting, ended) = (Mutex::new(None::<Instant>), AtomicBool::new(false));
        let waits = |since| *waiting.lock() = since;
        let (done, over) = crossbeam_channel::bounded::<()>(0);
        let watch = || {
            while over.recv_timeout(stall / 4) == Err(RecvTimeoutError::Timeout) {
                let since = *waiting.lock();
                if since.is_some_and(|since| since.elapsed() > stall) {
                    ended.store(true, SeqCst);
                    return self.agent.clone().shutdown();
                }
            }
        };
        std::thread::scope(|scope| {
            let watcher = std::thread::Builder::new().name("hub".to_owned()).spawn_scoped(scope, watch);
            watcher.map_err(|e| Failure::Other(format!("no thread can be started: {e}")))?;
            let _done = done; // dropped at the end, which ends the watcher
            let mut reader = body.as_reader();
            let mut buffer = vec![0; 128 << 10];
            let (mut waited, mut received) = (Duration::ZERO, 0);
            loop {
                let started = Instant::now();
                waits(Some(started));
                let read = reader.read(&mut buffer);
                waits(None);
                // Only time on the network counts: a slow disk is not the hub's fault.
                waited += started.elapsed();
                if ended.load(SeqCst) {
                    return Err(stalled());
                }
                match read {
                    Ok(0) => return Ok(()),
                    Ok(n) => {
                        sink(&buffer[..n])?;
                        received += n as u64;
                    }
                    Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
                    Err(e) => {
                        return Err(Failure::Windows(format!(
                            "{from} ended its answer early ({})",
                            shown(&e.to_string())
                        )));
                    }
                }
                if waited > stall {
                    if received < stall_bytes {
                        return Err(stalled());
                    }
                    (waited, received) = (Duration::ZERO, 0);
                }
            }
        })
    }
}

fn is_redirect(status: StatusCode) -> bool {
    matches!(status.as_u16(), 301 | 302 | 303 | 307 | 308)
}
