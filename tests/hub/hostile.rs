//! A server that means harm: names that lead out of the cache, bytes that are not the file's, redirects that would
//! take the token along.

use super::server::{SHA, Server, Site, files_below, git, model, plain, serve, sha256};
use longreel::hub::address::{range_start, redirected};
use longreel::hub::info::Info;
use longreel::hub::{Hash, name};
use std::io::Write;
use std::path::Path;

const WEIGHTS: &str = "transformer/weights.safetensors";

/// A file of the user's beside the cache, which no server may touch.
fn precious(server: &Server) -> std::path::PathBuf {
    let path = server.folder.path().join("precious");
    std::fs::write(&path, "precious").unwrap();
    path
}

/// Nothing lies outside the cache but what was there, and no blob has a name that its bytes do not have.
fn check_cache(server: &Server) {
    let outside: Vec<_> = std::fs::read_dir(server.folder.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert!(outside.iter().all(|name| name == "hub" || name == "precious"), "{outside:?}");
    if let Ok(text) = std::fs::read_to_string(server.folder.path().join("precious")) {
        assert_eq!(text, "precious");
    }
    for (name, bytes) in files_below(&server.hub.cache) {
        if name.contains("/blobs/") && !name.ends_with(".incomplete") {
            let digits = Path::new(&name).file_name().unwrap().to_str().unwrap();
            assert!([git(&bytes), sha256(&bytes)].contains(&digits.to_owned()), "{name}");
        }
    }
}

#[test]
fn no_file_is_written_outside_the_cache() {
    for evil in ["../../evil", "/tmp/evil", "a/../../evil", "a/./b", "a//b", "", "a\0b"] {
        let server = serve(Site { evil: Some(evil.to_owned()), ..model() });
        let message = server.error("hf://lab/net");
        assert!(message.contains("outside the cache"), "{message}");
        assert!(!server.hub.cache.exists());
    }
}

#[test]
fn no_header_becomes_a_file_name() {
    for header in ["ETag", "X-Linked-Etag", "X-Repo-Commit"] {
        for levels in 0..8 {
            let server = serve(Site { bare: true, ..model() });
            let precious = precious(&server);
            let value = match levels {
                0 => precious.display().to_string(),
                levels => format!("{}precious", "../".repeat(levels)),
            };
            let line = format!("{header}: \"{value}\"");
            let site = std::mem::take(&mut *server.site.lock().unwrap());
            *server.site.lock().unwrap() = site.instead(move |request, out| {
                let answer =
                    format!("HTTP/1.1 200 OK\r\n{line}\r\nContent-Length: 7\r\nConnection: close\r\n\r\nread me");
                request.path.contains("/resolve/").then(|| out.write_all(answer.as_bytes()))
            });
            let message = server.error("hf://lab/net/README.md");
            assert!(message.starts_with("hf://lab/net/README.md: README.md: "), "{message}");
            assert!(message.contains("names neither a SHA-256 nor a git hash"), "{message}");
            check_cache(&server);
        }
    }
}

#[test]
fn no_commit_or_hash_of_the_info_becomes_a_file_name() {
    let good = git(b"read me");
    for (sha, blob, sha256, complaint) in [
        ("../../../precious", good.as_str(), None, "a commit `../../../precious`"),
        ("", &good, None, "a commit ``"),
        ("main", &good, None, "a commit `main`"),
        (SHA, "../../../precious", None, "README.md has the hash `../../../precious`"),
        (SHA, "", None, "README.md has the hash ``"),
        (SHA, &good, Some("/etc/passwd"), "README.md has the hash `/etc/passwd`"),
        (SHA, &good, Some(good.as_str()), "README.md has the hash"),
        ("\u{1b}[2J\n", &good, None, r"a commit `\x1b[2J\n`"),
    ] {
        let mut file = serde_json::json!({"rfilename": "README.md", "size": 7, "blobId": blob});
        if let Some(sha256) = sha256 {
            file["lfs"] = serde_json::json!({"sha256": sha256, "size": 7});
        }
        let body = serde_json::json!({"sha": sha, "siblings": [file]}).to_string();
        let server = serve(model().instead(move |request, out| {
            request.path.starts_with("/api/").then(|| plain(out, 200, "application/json", body.as_bytes()))
        }));
        precious(&server);
        let message = server.error("hf://lab/net/README.md");
        assert!(message.starts_with("hf://lab/net/README.md: ") && message.contains(complaint), "{message}");
        check_cache(&server);
    }
}

#[test]
fn bytes_with_another_hash_are_refused_and_removed() {
    for bare in [false, true] {
        for (file, length, kind) in [("README.md", 7, "git hash"), (WEIGHTS, 300_000, "SHA-256")] {
            let server = serve(Site { bare, forged: Some(vec![b'x'; length]), ..model() });
            let message = server.error(&format!("hf://lab/net/{file}"));
            assert!(
                message.starts_with(&format!("hf://lab/net/{file}: {file}: what came has the {kind} ")),
                "{message}"
            );
            let left: Vec<_> = files_below(&server.hub.cache).into_keys().collect();
            assert!(left.iter().all(|name| name.ends_with(".lock")), "{left:?}");
            server.site.lock().unwrap().forged = None;
            server.hub.resolve(&format!("hf://lab/net/{file}")).unwrap();
        }
    }
}

#[test]
fn a_token_goes_to_the_endpoint_alone() {
    let storage = serve(model());
    let site =
        Site { redirect: true, token: Some("secret".into()), storage: Some(storage.hub.endpoint.clone()), ..model() };
    let mut server = serve(site);
    server.hub.token = Some("secret".into());
    server.hub.resolve(&format!("hf://lab/net/{WEIGHTS}")).unwrap();
    let tokens = |server: &Server| -> Vec<_> {
        let site = server.site.lock().unwrap();
        site.log.iter().map(|request| request.headers.get("authorization").cloned()).collect()
    };
    assert_eq!(tokens(&server), vec![Some("Bearer secret".to_owned()); 2]);
    assert_eq!(tokens(&storage), [None], "another port is another origin");

    server.hub.token = Some("se\ncret".into());
    let message = server.error("hf://lab/net/README.md");
    assert!(message.contains("HF_TOKEN") && !message.contains("cret"), "{message}");
}

#[test]
fn redirects_that_lead_nowhere_are_errors() {
    for (answer, complaint) in [
        ("302 Found\r\nLocation: /api/resolve/again", "redirects more than 5 times"),
        ("302 Found", "answers 302 and does not say where to go"),
        ("301 Moved\r\nLocation:", "no address of http or https"),
        ("307 Moved\r\nLocation: file:///etc/passwd", "no address of http or https"),
        ("308 Moved\r\nLocation: http://user:password@localhost/", "no address of http or https"),
        ("303 See\r\nLocation: \u{1b}[2J", "does not answer like a hub"),
        ("304 Not Modified", "status 304"),
        ("300 Choices\r\nLocation: /x", "status 300"),
        ("204 No Content", "status 204"),
        ("206 Partial\r\nContent-Range: bytes 0-6/7", "a part of the file where all of it was asked for"),
    ] {
        for what in ["/api/", "/resolve/"] {
            if what == "/api/" && answer.starts_with("206") {
                continue;
            }
            let server = serve(model().instead(move |request, out| {
                let answer = format!("HTTP/1.1 {answer}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
                request.path.contains(what).then(|| out.write_all(answer.as_bytes()))
            }));
            let message = server.error_soon("hf://lab/net/README.md");
            let place =
                if what == "/api/" { "hf://lab/net/README.md: " } else { "hf://lab/net/README.md: README.md: " };
            assert!(message.starts_with(place) && message.contains(complaint), "{answer}: {message}");
            assert!(!message.contains('\u{1b}'), "{message}");
            check_cache(&server);
        }
    }
}

#[test]
fn what_a_server_says_is_shown_without_control_characters_and_short() {
    let server = serve(model().instead(|request, out| {
        let body = format!("{{\"sha\": {{\"\u{1b}[2J{}\": 1}}}}", "a".repeat(5000));
        request.path.starts_with("/api/").then(|| plain(out, 200, "application/json", body.as_bytes()))
    }));
    let message = server.error("hf://lab/net");
    assert!(message.contains("does not answer like a hub") && message.len() < 500, "{message}");
    assert!(!message.chars().any(char::is_control), "{message:?}");
    let names: Vec<_> = (0..50).map(|i| format!("{i}\u{1b}]0;{}\u{7}", "a".repeat(100))).collect();
    let files: Vec<(&str, &[u8])> = names.iter().map(|name| (name.as_str(), b"x".as_slice())).collect();
    let message = serve(Site::with("models/lab/net@main", &files)).error("hf://lab/net/none");
    assert!(message.contains("no such file or folder; it has: 0\\x1b]0;a") && message.len() < 500, "{message}");
    assert!(!message.chars().any(char::is_control), "{message:?}");
}

proptest::proptest! {
    #[test]
    fn parsers_refuse_or_return_what_is_safe(
        text in "\\PC*|[a-z./@%:?#\\\\ \"{}\\[\\]\u{0}\u{1b}-]{0,40}",
        number in 0u64..,
    ) {
        let inside = |path: &str| Path::new(path).components().all(|c| matches!(c, std::path::Component::Normal(_)));
        for before in ["", "hf://", "hf://lab/net@", "hf://lab/net/"] {
            let spec = format!("{before}{text}");
            if let Ok(name) = name::parse(&spec) {
                assert!(inside(&name.id) && inside(&name.revision) && inside(&name.path), "{spec:?}: {name:?}");
            }
        }
        let file = serde_json::json!({"rfilename": text, "size": number, "blobId": text});
        for json in [text.clone(), serde_json::json!({"sha": SHA, "siblings": [file]}).to_string()] {
            for file in Info::parse(json.as_bytes()).into_iter().flat_map(|info| info.files) {
                assert!(inside(&file.name), "{json}");
            }
        }
        if let Ok(uri) = redirected(&"https://hub.example/a/b".parse().unwrap(), &text) {
            assert_eq!(uri.scheme_str(), Some("https"));
        }
        range_start(&text);
        assert_eq!(range_start(&format!("bytes {number}-{text}")), Some(number));
        assert_eq!(Hash::from_etag(&text), None); // too short, or no digits
    }
}
