//! The cache: Python's names, partial files, locks, and links that lead elsewhere.

use super::server::{SHA, Server, Site, files_below, git, model, serve, sha256};
use longreel::hub::Limits;
use std::fs::File;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::time::Duration;

const WEIGHTS: &str = "transformer/weights.safetensors";

fn repository(server: &Server) -> PathBuf {
    server.hub.cache.join("models--lab--net")
}

fn weights(server: &Server) -> Vec<u8> {
    server.site.lock().unwrap().repos["models/lab/net@main"][WEIGHTS].clone()
}

/// Ranges that were asked for, in order.
fn ranges(server: &Server) -> Vec<Option<String>> {
    let site = server.site.lock().unwrap();
    let files = site.log.iter().filter(|request| request.path.contains("/resolve/"));
    files.map(|request| request.headers.get("range").cloned()).collect()
}

/// The hashes are those that `git hash-object` and `sha256sum` print of "hello\n", and git's of an empty file.
#[test]
fn blobs_and_links_have_pythons_names() {
    let git_of_hello = "ce013625030ba8dba906f756967f9e9ca394464a";
    let sha256_of_hello = "5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03";
    let empty = "e69de29bb2d1d6434b8b29ae775ad8c2e48c5391";
    let body = serde_json::json!({"sha": SHA, "siblings": [
        {"rfilename": "plain.txt", "size": 6, "blobId": git_of_hello},
        {"rfilename": "a/large.bin", "size": 6, "blobId": empty,
            "lfs": {"sha256": sha256_of_hello.to_uppercase(), "size": 6}},
        {"rfilename": "empty.txt", "size": 0, "blobId": empty},
    ]});
    let files: &[(&str, &[u8])] = &[("plain.txt", b"hello\n"), ("a/large.bin", b"hello\n"), ("empty.txt", b"")];
    let server = serve(Site::with("models/lab/net@main", files).instead(move |request, out| {
        let body = body.to_string();
        let info = request.path.starts_with("/api/");
        info.then(|| super::server::plain(out, 200, "application/json", body.as_bytes()))
    }));
    let snapshot = server.hub.resolve("hf://lab/net").unwrap();
    let folder = repository(&server);
    assert_eq!(snapshot, folder.join("snapshots").join(SHA));
    assert_eq!(std::fs::read_to_string(folder.join("refs/main")).unwrap(), SHA);
    let link = |name: &str| std::fs::read_link(snapshot.join(name)).unwrap();
    assert_eq!(link("plain.txt"), Path::new("../../blobs").join(git_of_hello));
    assert_eq!(link("a/large.bin"), Path::new("../../../blobs").join(sha256_of_hello));
    assert_eq!(link("empty.txt"), Path::new("../../blobs").join(empty));
    assert_eq!(std::fs::read(snapshot.join("a/large.bin")).unwrap(), b"hello\n");
    let blobs = files_below(&folder.join("blobs"));
    assert_eq!(blobs.keys().collect::<Vec<_>>(), [sha256_of_hello, git_of_hello, empty]);
    let locks = files_below(&server.hub.cache.join(".locks/models--lab--net"));
    assert!(locks.contains_key(&format!("{git_of_hello}.lock")), "{locks:?}");
}

#[test]
fn hashes_and_sizes_may_come_in_headers_only() {
    for redirect in [false, true] {
        let storage = serve(model());
        let storage = Some(storage.hub.endpoint.clone());
        let server = serve(Site { bare: true, sizeless: true, redirect, storage, ..model() });
        let folder = server.hub.resolve("hf://lab/net/transformer").unwrap();
        assert_eq!(files_below(&folder)["weights.safetensors"], weights(&server));
        let blob = repository(&server).join("blobs").join(sha256(&weights(&server)));
        assert_eq!(std::fs::read(blob).unwrap(), weights(&server));
    }
}

#[test]
fn a_partial_file_is_resumed_or_if_damaged_started_anew() {
    let server = serve(model());
    let (blobs, bytes) = (repository(&server).join("blobs"), weights(&server));
    let partial = blobs.join(format!("{}.incomplete", sha256(&bytes)));
    let spec = format!("hf://lab/net/{WEIGHTS}");
    let from = |begin: usize| Some(format!("bytes={begin}-"));
    for (left, asked) in [
        (bytes[..1234].to_vec(), vec![from(1234)]),
        (vec![0; 1234], vec![from(1234), None]),
        (bytes.clone(), vec![]),
        (vec![0; bytes.len()], vec![None]),
        ([bytes.as_slice(), b"more"].concat(), vec![None]),
        (vec![], vec![None]),
    ] {
        let _ = std::fs::remove_dir_all(&server.hub.cache);
        std::fs::create_dir_all(&blobs).unwrap();
        std::fs::write(&partial, &left).unwrap();
        server.site.lock().unwrap().log.clear();
        let file = server.hub.resolve(&spec).unwrap();
        assert_eq!(std::fs::read(file).unwrap(), bytes);
        assert_eq!(ranges(&server), asked, "{} bytes were left", left.len());
        assert!(!partial.exists());
    }
}

#[test]
fn a_server_without_ranges_sends_all_again() {
    for status in ["200 OK", "416 Not Satisfiable", "206 Partial\r\nContent-Range: bytes 0-9/300000"] {
        let server = serve(model());
        let bytes = weights(&server);
        let site = std::mem::take(&mut *server.site.lock().unwrap());
        let body = bytes.clone();
        *server.site.lock().unwrap() = site.instead(move |request, out| {
            let ranged = if request.headers.contains_key("range") { status } else { "200 OK" };
            let answer = format!("HTTP/1.1 {ranged}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", body.len());
            let answer = [answer.as_bytes(), &body].concat();
            request.path.contains("/resolve/").then(|| std::io::Write::write_all(out, &answer))
        });
        let blobs = repository(&server).join("blobs");
        std::fs::create_dir_all(&blobs).unwrap();
        std::fs::write(blobs.join(format!("{}.incomplete", sha256(&bytes))), &bytes[..1234]).unwrap();
        let file = server.hub.resolve(&format!("hf://lab/net/{WEIGHTS}")).unwrap();
        assert_eq!(std::fs::read(file).unwrap(), bytes, "{status}");
    }
}

#[test]
fn one_process_at_a_time_downloads_a_file() {
    let mut server = serve(model());
    server.hub.limits.stall = Duration::from_millis(200);
    let locks = server.hub.cache.join(".locks/models--lab--net");
    std::fs::create_dir_all(&locks).unwrap();
    let lock = File::create(locks.join(format!("{}.lock", git(b"read me")))).unwrap();
    lock.lock().unwrap();
    let message = server.error_soon("hf://lab/net/README.md");
    assert!(message.contains("another process has locked") && message.contains("end it and try again"), "{message}");
    assert_eq!(ranges(&server), [], "nothing was asked for");
    server.hub.limits = Limits::default();
    let hub = server.hub.clone();
    let second = std::thread::spawn(move || hub.resolve("hf://lab/net/README.md"));
    std::thread::sleep(Duration::from_millis(300));
    drop(lock); // as a crash does
    let file = second.join().unwrap().unwrap();
    assert_eq!(std::fs::read(file).unwrap(), b"read me");
}

#[test]
fn links_that_lead_elsewhere_are_never_followed() {
    let server = serve(model());
    let precious = server.folder.path().join("precious");
    let (folder, spec) = (repository(&server), "hf://lab/net/README.md");
    let file = folder.join("snapshots").join(SHA).join("README.md");
    let partial = folder.join("blobs").join(format!("{}.incomplete", git(b"read me")));
    std::fs::write(&precious, "private").unwrap(); // as long as the file

    std::fs::create_dir_all(file.parent().unwrap()).unwrap();
    symlink(&precious, &file).unwrap();
    assert_eq!(std::fs::read(server.hub.resolve(spec).unwrap()).unwrap(), b"read me");

    std::fs::remove_dir_all(&server.hub.cache).unwrap();
    std::fs::create_dir_all(partial.parent().unwrap()).unwrap();
    symlink(&precious, &partial).unwrap();
    let message = server.error(spec);
    assert!(message.starts_with(&format!("{spec}: README.md: ")) && message.contains("symbolic link"), "{message}");

    std::fs::remove_dir_all(&server.hub.cache).unwrap();
    let elsewhere = server.folder.path().join("elsewhere");
    std::fs::create_dir_all(elsewhere.join("transformer")).unwrap();
    std::fs::create_dir_all(file.parent().unwrap()).unwrap();
    symlink(elsewhere.join("transformer"), file.with_file_name("transformer")).unwrap();
    let message = server.error("hf://lab/net/transformer");
    assert!(message.contains("outside the cache: remove it and try again"), "{message}");
    assert!(files_below(&elsewhere).is_empty());

    std::fs::remove_dir_all(&server.hub.cache).unwrap();
    let named = folder.join("refs/main");
    std::fs::create_dir_all(named.parent().unwrap()).unwrap();
    symlink(&precious, &named).unwrap();
    assert!(server.error(spec).contains("symbolic link"));
    assert_eq!(std::fs::read_to_string(&precious).unwrap(), "private");
}

#[test]
fn a_ref_that_is_no_commit_leads_nowhere() {
    let mut server = serve(model());
    let before = server.hub.resolve("hf://lab/net/README.md").unwrap();
    server.hub.endpoint = "http://127.0.0.1:1".to_owned();
    assert_eq!(server.hub.resolve("hf://lab/net/README.md").unwrap(), before);
    std::fs::create_dir_all(server.folder.path().join("README.md")).unwrap();
    std::fs::write(repository(&server).join("refs/main"), "../../..").unwrap();
    assert!(server.error("hf://lab/net/README.md").contains("cannot be reached"));
}

#[test]
fn two_downloads_of_a_file_at_a_time_are_one() {
    let server = serve(model());
    let resolve = || server.hub.resolve(&format!("hf://lab/net/{WEIGHTS}")).unwrap();
    let (first, second) = std::thread::scope(|scope| {
        let threads = [scope.spawn(resolve), scope.spawn(resolve)];
        let [first, second] = threads.map(|thread| thread.join().unwrap());
        (first, second)
    });
    assert_eq!((std::fs::read(&first).unwrap(), first), (weights(&server), second));
    assert_eq!(ranges(&server).len(), 1, "the second finds it in the cache");
}
