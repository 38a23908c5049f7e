//! [`Server`] answers on 127.0.0.1, a thread a connection, so that a slow client keeps nobody waiting.

use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use super::http::{self, Answer};
use super::page::Page;
use crate::{Result, bail};

/// Connections at once at most; more are told to come again.
const MOST_CONNECTIONS: usize = 64;

/// Shows runs to browsers on this machine.
#[derive(Debug)]
pub struct Server {
    listener: TcpListener,
    page: Arc<Page>,
}

impl Server {
    /// Begins to listen on `port` of 127.0.0.1, 0 being any free one, to show the runs at and below `places`.
    ///
    /// # Errors
    /// The port is taken or not allowed.
    pub fn bind(places: Vec<PathBuf>, port: u16) -> Result<Self> {
        match TcpListener::bind((Ipv4Addr::LOCALHOST, port)) {
            Ok(listener) => Ok(Self { listener, page: Arc::new(Page::new(places)) }),
            Err(e) => bail!(
                Environment,
                "port {port} of 127.0.0.1: {e}; choose another with --port, or 0 for any that is free"
            ),
        }
    }

    /// Where it listens.
    ///
    /// # Errors
    /// The system does not say.
    pub fn address(&self) -> Result<SocketAddr> {
        self.listener.local_addr().map_err(|e| crate::Error::io("127.0.0.1", e))
    }

    /// Answers until the process ends.
    pub fn serve(&self) -> ! {
        let slots = Arc::new(());
        loop {
            match self.listener.accept() {
                Ok((stream, _)) => self.start(stream, &slots),
                Err(_) => thread::sleep(Duration::from_millis(50)), // no more open files, for one
            }
        }
    }

    fn start(&self, stream: TcpStream, slots: &Arc<()>) {
        let full = Arc::strong_count(slots) > MOST_CONNECTIONS;
        let (page, slot) = (self.page.clone(), slots.clone());
        let work = move || {
            let _slot = slot; // until the thread ends, however it ends
            let answer = |request: &http::Request| match full {
                true => Answer::error(503, "too many connections at once; try again"),
                false => page.answer(request),
            };
            let _ = http::converse(stream, answer); // a client that is gone needs no answer
        };
        // Where there is no thread to be had the connection is dropped, and the browser tries again.
        if Arc::strong_count(slots) <= 2 * MOST_CONNECTIONS {
            let _ = thread::Builder::new().name("watch".to_owned()).spawn(work);
        }
    }
}
