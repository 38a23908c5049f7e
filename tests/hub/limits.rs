//! A server that takes its time or has no end: every wait and every answer is bounded.

use super::server::{Request, Server, Site, files_below, model, plain, serve};
use longreel::hub::{Hub, Limits};
use std::io::Write;
use std::net::TcpStream;
use std::time::Duration;

/// A server that answers requests for `what` with `head`, and then with `more` again and again.
fn endless(site: Site, what: &'static str, head: &'static str, more: &'static str, pause: Duration) -> Server {
    let answer = move |request: &Request, out: &mut TcpStream| {
        let mut flow = || -> std::io::Result<()> {
            out.write_all(head.as_bytes())?;
            loop {
                out.write_all(more.as_bytes())?;
                std::thread::sleep(pause);
            }
        };
        (request.method == "GET" && request.path.contains(what)).then(&mut flow)
    };
    serve(site.instead(answer)).hurried()
}

/// No blob is there, whole or not that large.
fn check_small(server: &Server) {
    for (name, bytes) in files_below(&server.hub.cache) {
        assert!(!name.contains("/blobs/") || (name.ends_with(".incomplete") && bytes.len() <= 500_000), "{name}");
    }
}

const DRIP: Duration = Duration::from_millis(20);
const QUIET: Duration = Duration::from_secs(100);
const SPEC: &str = "hf://lab/net/transformer/weights.safetensors";

#[test]
fn a_server_that_is_silent_or_drips_is_left() {
    let cases = [
        ("/api/", "", "", QUIET, "timeout"),
        ("/api/", "HTTP/1.1 200 OK\r\n", "", QUIET, "timeout"),
        ("/api/", "HTTP/1.1 200 OK\r\nX: ", "x", DRIP, "timeout"),
        ("/api/", "HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n{", " ", DRIP, "fewer than 1000 bytes in 1s"),
        ("/api/", "HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n{", "", QUIET, "fewer than 1000 bytes in 1s"),
        ("/resolve/", "", "", QUIET, "timeout"),
        ("/resolve/", "HTTP/1.1 302 Found\r\nLocation: /", "x", DRIP, "timeout"),
        ("/resolve/", "HTTP/1.1 200 OK\r\nContent-Length: 300000\r\n\r\n", "x", DRIP, "fewer than 1000 bytes in 1s"),
        ("/resolve/", "HTTP/1.1 200 OK\r\nContent-Length: 300000\r\n\r\n", "", QUIET, "fewer than 1000 bytes in 1s"),
        ("/resolve/", "HTTP/1.1 200 OK\r\n\r\n", "x", DRIP, "fewer than 1000 bytes in 1s"),
        // A chunk's header that never ends gives the reader no byte at all.
        (
            "/resolve/",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n8;x=",
            "x",
            DRIP,
            "fewer than 1000 bytes in 1s",
        ),
    ];
    let check = |(what, head, more, pause, complaint)| {
        let server = endless(model(), what, head, more, pause);
        let message = server.error_soon(SPEC);
        let file = if what == "/api/" { "" } else { "transformer/weights.safetensors: " };
        assert!(
            message.starts_with(&format!("{SPEC}: {file}")) && message.contains(complaint),
            "{head:?} {more:?}: {message}"
        );
        check_small(&server);
    };
    std::thread::scope(|scope| cases.map(|case| scope.spawn(move || check(case))).map(|thread| thread.join().unwrap()));
}

#[test]
fn a_slow_but_steady_download_arrives() {
    let server = serve(model().instead(|request, out| {
        let bytes: Vec<u8> = (0..300_000u32).map(|i| (i * 7 + i / 256) as u8).collect();
        let mut flow = || -> std::io::Result<()> {
            write!(out, "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", bytes.len())?;
            for piece in bytes.chunks(6000) {
                out.write_all(piece)?;
                std::thread::sleep(Duration::from_millis(50));
            }
            Ok(())
        };
        request.path.contains("/resolve/").then(&mut flow)
    }))
    .hurried();
    let hub = Hub { limits: Limits { stall_bytes: 20_000, ..server.hub.limits.clone() }, ..server.hub.clone() };
    let file = hub.resolve(SPEC).unwrap();
    assert_eq!(std::fs::metadata(file).unwrap().len(), 300_000);
}

#[test]
fn answers_without_end_are_cut() {
    let json = "{\"sha\":\"0\",\"siblings\":[{\"rfilename\":\"aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa\"},";
    let server = endless(model(), "/api/", "HTTP/1.1 200 OK\r\n\r\n", json, Duration::ZERO);
    assert!(server.error_soon(SPEC).contains("lists more than 100000 bytes of files"));
    let drip = "                                                                                                    ";
    let server = endless(model(), "/api/", "HTTP/1.1 200 OK\r\n\r\n{", drip, Duration::from_millis(5));
    assert!(server.error_soon(SPEC).contains("not complete after 3s"));

    let bytes = "0123456789012345678901234567890123456789012345678901234567890123456789012345678901234567890123456789";
    let chunk = "a\r\n0123456789\r\n";
    for (head, more, complaint) in [
        ("HTTP/1.1 200 OK\r\n\r\n", bytes, "sends more than the 300000 bytes"),
        ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", chunk, "sends more than the 300000 bytes"),
        ("HTTP/1.1 200 OK\r\nContent-Length: 300001\r\n\r\n", bytes, "announces 300001 bytes where 300000 should come"),
        ("HTTP/1.1 200 OK\r\nContent-Length: 18446744073709551615\r\n\r\n", bytes, "where 300000 should come"),
        // As many as announced, and the server goes on: they are read no further, and their hash is not the file's.
        ("HTTP/1.1 200 OK\r\nContent-Length: 300000\r\n\r\n", bytes, "what came has the SHA-256"),
    ] {
        let server = endless(model(), "/resolve/", head, more, Duration::ZERO);
        let message = server.error_soon(SPEC);
        assert!(message.starts_with(&format!("{SPEC}: transformer/weights.safetensors: ")), "{message}");
        assert!(message.contains(complaint), "{head:?}: {message}");
        check_small(&server);
        assert!(files_below(&server.hub.cache).values().all(Vec::is_empty), "nothing of it is kept");
    }
    // Where nobody says a size there is still an end.
    let site = Site { sizeless: true, ..model() };
    let server = endless(site, "/resolve/", "HTTP/1.1 200 OK\r\n\r\n", bytes, Duration::ZERO);
    let message = server.error_soon(SPEC);
    assert!(message.contains("sends more than the 500000 bytes"), "{message}");
    check_small(&server);
}

#[test]
fn json_that_is_deep_or_no_infos_is_an_error() {
    let deep = "[".repeat(90_000);
    for body in ["", "null", "[]", "{}", "{\"sha\": 1}", "<html>", "{\"sha\": \"x\", \"siblings\": 3}", "\u{0}", &deep]
    {
        let owned = body.to_owned();
        let server = serve(model().instead(move |request, out| {
            request.path.contains("/api/").then(|| plain(out, 200, "application/json", owned.as_bytes()))
        }));
        let message = server.hurried().error_soon(SPEC);
        assert!(message.contains("does not answer like a hub"), "{body:.20}: {message}");
    }
}

#[test]
fn sizes_beyond_the_disk_are_refused_before_anything_comes() {
    for size in [1u64 << 60, u64::MAX] {
        let server = serve(model().instead(move |request, out| {
            let hash = "0".repeat(64);
            let file = |name| serde_json::json!({"rfilename": name, "size": size, "lfs": {"sha256": hash}});
            let sha = super::server::SHA;
            let body = serde_json::json!({"sha": sha, "siblings": [file("a"), file("b")]}).to_string();
            request.path.contains("/api/").then(|| plain(out, 200, "application/json", body.as_bytes()))
        }));
        let message = server.error("hf://lab/net");
        assert!(message.contains("are free: make room, or set HF_HOME"), "{message}");
        assert_eq!(server.requests(), 1);
    }
}
