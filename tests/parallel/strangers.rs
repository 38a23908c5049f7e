//! Tests strangers at the port where ranks meet, and ranks that lie: no stranger gets in, ends the job of others, keeps
//! it waiting, or takes memory. What they say is made here, byte by byte, from the description of the protocol.

use super::bootstrap::{SECRET, free_port, job, limits, messages, on_all};
use super::fails;
use hmac::{Hmac, KeyInit, Mac};
use longreel::Result;
use longreel::parallel::{ControlPlane, Limits, Secret, TorchrunEnv};
use sha2::Sha256;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::{Duration, Instant};

/// HMAC-SHA256.
fn tag(key: &[u8], text: &[&[u8]]) -> [u8; 32] {
    let mut mac = Hmac::<Sha256>::new_from_slice(key).unwrap();
    text.iter().for_each(|part| mac.update(part));
    mac.finalize().into_bytes().into()
}

fn connect(port: u16) -> TcpStream {
    let until = Instant::now() + Duration::from_secs(10);
    loop {
        match TcpStream::connect(("127.0.0.1", port)) {
            Ok(stream) => {
                stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
                return stream;
            }
            Err(e) => assert!(Instant::now() < until, "{e}"),
        }
    }
}

/// What a rank says first.
fn hello(rank: u32, size: u32) -> Vec<u8> {
    [b"longreel\0\0\0\x03", &rank.to_le_bytes()[..], &size.to_le_bytes(), &[9; 32]].concat()
}

/// What comes until the other side closes; reset or not.
fn rest(stream: &mut TcpStream) -> Vec<u8> {
    let mut bytes = vec![];
    let _ = stream.read_to_end(&mut bytes);
    bytes
}

/// A rank that has proven that it knows a secret, or tried to.
struct Rank {
    stream: TcpStream,
    /// Of the frames that it sends.
    key: [u8; 32],
    sent: u64,
    /// Rank 0's proof is right.
    known: bool,
    answer: [u8; 32],
}

impl Rank {
    fn greet(port: u16, rank: u32, size: u32, secret: &str) -> Self {
        let mut stream = connect(port);
        let (own, mut other) = (hello(rank, size), [0; 52]);
        stream.write_all(&own).unwrap();
        stream.read_exact(&mut other).unwrap();
        let said = |words: &[u8; 16]| tag(secret.as_bytes(), &[words, &own, &other]);
        let (proof, mut answer) = (said(b"longreel rank:  "), [0; 32]);
        stream.write_all(&proof).unwrap();
        stream.read_exact(&mut answer).unwrap();
        let known = answer == said(b"longreel rank 0:");
        Self { stream, key: said(b"longreel frames "), sent: 0, known, answer }
    }

    /// A frame with its tag.
    fn frame(&mut self, kind: u8, body: &[u8]) -> Vec<u8> {
        self.sent += 1;
        let head = [&[kind][..], &(body.len() as u32).to_le_bytes()].concat();
        let tag = tag(&self.key, &[&self.sent.to_le_bytes(), &head, body]);
        [&head, body, &tag].concat()
    }
}

/// A process of a job, in a thread, which meets the others, exchanges its rank, and ends well.
fn good(job: TorchrunEnv, limits: Limits) -> Receiver<Result<Vec<Vec<u8>>>> {
    let (send, receive) = mpsc::channel();
    thread::spawn(move || {
        send.send(ControlPlane::join(&job, limits).and_then(|party| {
            let all = party.exchange(&[job.rank as u8]);
            party.finish_together(all.as_ref().map(drop).map_err(|e| longreel::Error::Environment(e.to_string())))?;
            all
        }))
    });
    receive
}

fn end<T>(outcome: Receiver<Result<T>>) -> Result<T> {
    outcome.recv_timeout(Duration::from_secs(30)).expect("a rank hangs")
}

#[test]
fn strangers_are_sent_away_and_do_not_keep_ranks_apart() {
    let port = free_port();
    let (send, receive) = mpsc::channel();
    thread::spawn(move || {
        send.send(ControlPlane::join(&job(0, 2, port), limits()).and_then(|party| party.exchange(b"0")))
    });
    let connect = || connect(port);
    let silent = connect(); // says nothing, as long as it is there
    let mut http = connect();
    http.write_all(b"GET / HTTP/1.1\r\nHost: longreel\r\n\r\n").unwrap();
    let mut answer = vec![];
    let _ = http.read_to_end(&mut answer); // closed, with or without a reset
    assert!(answer.is_empty(), "{answer:?}");
    let mut older = connect(); // another version of the protocol
    older.write_all(b"longreel\0\0\0\x01\x01\0\0\0\x02\0\0\0").unwrap();
    older.write_all(&[7; 32]).unwrap();
    let _ = older.read_to_end(&mut answer);
    assert!(answer.is_empty(), "{answer:?}");
    drop(connect()); // goes at once
    let mut half = connect(); // goes in the middle
    half.write_all(b"longr").unwrap();
    drop(half);
    let party = ControlPlane::join(&job(1, 2, port), limits()).unwrap();
    assert_eq!(party.exchange(b"1").unwrap(), [b"0", b"1"]);
    assert!(receive.recv_timeout(Duration::from_secs(20)).unwrap().is_ok());
    drop(silent);
}

#[test]
fn no_stranger_gets_in_or_keeps_a_job_of_three_from_its_end() {
    let port = free_port();
    let began = Instant::now();
    let limits = Limits { joining: Duration::from_secs(20), ..limits() };
    let zero = good(job(0, 3, port), limits);
    let idle: Vec<TcpStream> = (0..200).map(|_| connect(port)).collect();
    let slow = connect(port);
    let mut drips = slow.try_clone().unwrap();
    thread::spawn(move || {
        hello(1, 3).iter().all(|byte| {
            thread::sleep(Duration::from_millis(100));
            drips.write_all(&[*byte]).is_ok()
        })
    });
    let mut huge = connect(port);
    let _ = huge.write_all(&vec![0xff; 1 << 20]);
    assert!(rest(&mut huge).is_empty());
    // The right words with the wrong secret, for both ranks that are awaited; nor with words of rank 0's.
    for rank in [1, 2] {
        let mut stranger = Rank::greet(port, rank, 3, "another secret, as long");
        assert_eq!((stranger.answer, rest(&mut stranger.stream)), ([0; 32], vec![]), "it is refused and told nothing");
    }
    let mut mirror = connect(port);
    mirror.write_all(&hello(1, 3)).unwrap();
    let mut other = [0; 52];
    mirror.read_exact(&mut other).unwrap();
    assert_eq!(&other[..20], b"longreel\0\0\0\x03\0\0\0\0\x03\0\0\0");
    mirror.write_all(&[0; 32]).unwrap();
    assert_eq!(rest(&mut mirror), [0; 32]);
    // One that has the secret, but a rank that is taken: it is told so, and the rank stays where it was.
    let one = good(job(1, 3, port), limits);
    thread::sleep(Duration::from_millis(300));
    let mut second = Rank::greet(port, 1, 3, SECRET);
    assert!(second.known, "it knows the secret, and is shown that rank 0 does");
    let told = String::from_utf8_lossy(&rest(&mut second.stream)).into_owned();
    assert!(told.contains("two processes have RANK=1: each needs its own"), "{told}");
    let mut beyond = Rank::greet(port, 3, 3, SECRET);
    assert!(String::from_utf8_lossy(&rest(&mut beyond.stream)).contains("RANK=3"));
    let two = good(job(2, 3, port), limits);
    for rank in [zero, one, two] {
        assert_eq!(end(rank).unwrap(), [[0], [1], [2]]);
    }
    assert!(began.elapsed() < Duration::from_secs(5), "it was kept waiting: {:?}", began.elapsed());
    drop((idle, slow));
}

/// Strangers say what a rank says, spoiled; some stay, others hang up at once.
#[test]
fn spoiled_greetings_neither_end_a_job_nor_get_in() {
    let port = free_port();
    let limits = Limits { joining: Duration::from_secs(20), ..limits() };
    let zero = good(job(0, 2, port), limits);
    let greeting = [hello(1, 2), vec![7; 32]].concat();
    let mut staying = vec![];
    crate::mutated::mutated(&greeting, 100, |bytes| {
        let mut stranger = connect(port);
        let _ = stranger.write_all(bytes);
        staying.extend((bytes.len() % 2 == 0).then_some(stranger));
    });
    let one = good(job(1, 2, port), limits);
    for rank in [zero, one] {
        assert_eq!(end(rank).unwrap(), [[0], [1]]);
    }
}

#[test]
fn more_strangers_than_are_kept_drive_nobody_away_for_good() {
    let port = free_port();
    let limits = Limits { joining: Duration::from_secs(20), ..limits() };
    let zero = good(job(0, 2, port), limits);
    let idle: Vec<TcpStream> = (0..600).map(|_| connect(port)).collect();
    let one = good(job(1, 2, port), limits);
    assert_eq!((end(zero).unwrap(), end(one).unwrap()), (vec![vec![0], vec![1]], vec![vec![0], vec![1]]));
    drop(idle);
}

#[test]
fn slow_stranger_is_sent_away_in_time() {
    let port = free_port();
    let limits = Limits { joining: Duration::from_secs(20), ..limits() };
    let zero = good(job(0, 2, port), limits);
    let (mut slow, began) = (connect(port), Instant::now());
    let mut drips = slow.try_clone().unwrap();
    thread::spawn(move || {
        hello(1, 2).iter().all(|byte| {
            thread::sleep(Duration::from_millis(400));
            drips.write_all(&[*byte]).is_ok()
        })
    });
    assert!(rest(&mut slow).is_empty());
    let took = began.elapsed();
    assert!(took > Duration::from_secs(4) && took < Duration::from_secs(8), "five seconds for all of it: {took:?}");
    let one = good(job(1, 2, port), limits);
    assert!(end(zero).is_ok() && end(one).is_ok());
}

#[test]
fn a_recorded_handshake_counts_once() {
    let (port, proxy) = (free_port(), TcpListener::bind("127.0.0.1:0").unwrap());
    let between = proxy.local_addr().unwrap().port();
    // What rank 1 says on its way to rank 0 is kept.
    let (keep, kept) = mpsc::channel();
    thread::spawn(move || {
        let (mut rank, mut rank_0) = (proxy.accept().unwrap().0, connect(port));
        let (mut back, mut to) = (rank_0.try_clone().unwrap(), rank.try_clone().unwrap());
        thread::spawn(move || std::io::copy(&mut back, &mut to));
        let mut said = [0; 52 + 32];
        for part in [0..52, 52..84] {
            rank.read_exact(&mut said[part.clone()]).unwrap();
            rank_0.write_all(&said[part]).unwrap();
        }
        keep.send(said).unwrap();
        let _ = std::io::copy(&mut rank, &mut rank_0);
    });
    let (zero, one) =
        (good(job(0, 2, port), limits()), good(TorchrunEnv { port: between, ..job(1, 2, port) }, limits()));
    assert!(end(zero).is_ok() && end(one).is_ok(), "a proxy that changes nothing is no harm");
    let said = kept.recv_timeout(Duration::from_secs(10)).unwrap();
    let zero = good(job(0, 2, port), Limits { joining: Duration::from_secs(20), ..limits() });
    let mut replay = connect(port);
    let mut other = [0; 52];
    replay.write_all(&said[..52]).unwrap();
    replay.read_exact(&mut other).unwrap();
    replay.write_all(&said[52..]).unwrap();
    assert_eq!(rest(&mut replay), [0; 32], "refused");
    assert!(end(good(job(1, 2, port), limits())).is_ok() && end(zero).is_ok());
}

#[test]
fn ranks_with_different_secrets_are_an_error_of_all() {
    let port = free_port();
    let other = TorchrunEnv { secret: Secret::Text("another secret, as long".into()), ..job(2, 3, port) };
    let said = messages(on_all(vec![job(0, 3, port), job(1, 3, port), other], limits(), |_| Ok(())));
    for said in &said[..2] {
        assert!(said.contains("of 3 processes 1 did not come") && said.contains("within 1.5 s: rank 2;"), "{said}");
        assert!(
            said.contains("a process at 127.0.0.1 has another job secret: give all processes of a job the same"),
            "{said}"
        );
        assert!(!said.contains(SECRET));
    }
    let expected = "rank 0 there has another job secret: give all processes of a job the same LONGREEL_JOB_SECRET";
    assert!(
        said[2].starts_with("rank 2 failed: rank 2 did not reach rank 0") && said[2].contains(expected),
        "{}",
        said[2]
    );
}

#[test]
fn listener_without_the_secret_is_not_taken_for_rank_0() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let mut said = [0; 52];
            let _ = stream.read_exact(&mut said).and_then(|()| stream.write_all(&hello(0, 2)));
            // the rank's own proof
            let _ = stream.read_exact(&mut said[..32]).and_then(|()| stream.write_all(&said[..32]));
        }
    });
    let said = fails(ControlPlane::join(&job(1, 2, port), limits())).to_string();
    assert!(said.contains("what listens there does not know the job's secret"), "{said}");
}

#[test]
fn rank_that_sends_nonsense_is_lost_and_takes_no_memory() {
    let flip = |mut frame: Vec<u8>, at: usize| {
        frame[at] ^= 1;
        frame
    };
    let not_its_own = "a message in its name is not its own";
    type Bytes<'a> = &'a dyn Fn(&mut Rank) -> Vec<u8>;
    let cases: [(Bytes, &str); 6] = [
        (&|_| b"\x01\xff\xff\xff\xff".to_vec(), "it sends 4294967295 bytes where no more than 65536 can be meant"),
        (&|rank| flip(rank.frame(1, b"x"), 5), not_its_own),
        (&|rank| flip(rank.frame(1, b"x"), 37), not_its_own),
        (&|rank| rank.frame(0, b"").repeat(2), not_its_own), // repeated
        (&|rank| [rank.frame(0, b""), rank.frame(0, b"")].concat().split_off(37), not_its_own), // the first left out
        (&|rank| rank.frame(7, b""), "it sends what no longreel sends (a frame of kind 7)"),
    ];
    for (bad, expected) in cases {
        let port = free_port();
        let zero = good(job(0, 2, port), limits());
        let mut rank = Rank::greet(port, 1, 2, SECRET);
        assert!(rank.known);
        let bytes = bad(&mut rank);
        rank.stream.write_all(&bytes).unwrap();
        let said = fails(end(zero)).to_string();
        assert!(said.contains(&format!("rank 1 failed: {expected}")), "{said}");
    }
}

#[test]
fn rank_that_sends_single_bytes_counts_as_silent() {
    let port = free_port();
    let silence = Duration::from_secs(1);
    let zero = good(job(0, 2, port), Limits { silence, ..limits() });
    let mut rank = Rank::greet(port, 1, 2, SECRET);
    let (frame, began) = (rank.frame(1, b"x"), Instant::now());
    thread::spawn(move || {
        frame.iter().all(|byte| {
            thread::sleep(Duration::from_millis(300));
            rank.stream.write_all(&[*byte]).is_ok()
        })
    });
    let said = fails(end(zero)).to_string();
    assert!(said.contains("rank 1 failed: it sent only ") && said.contains(" bytes of a message within 1 s"), "{said}");
    assert!(began.elapsed() < Duration::from_secs(6), "{:?}", began.elapsed());
}
