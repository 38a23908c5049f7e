//! `hf://` names against a local server that answers as the hub does: repository info, ranges, redirects to storage.

use longreel::hub::{self, Hub};
use std::collections::{BTreeMap, HashMap};
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex};

const SHA: &str = "0123456789abcdef0123456789abcdef01234567";

/// What the server has and how it misbehaves.
#[derive(Default)]
struct Site {
    /// `models/owner/name@revision` or `datasets/...` to its files.
    repos: HashMap<String, BTreeMap<String, Vec<u8>>>,
    /// Asked for without which every answer is 401.
    token: Option<String>,
    /// Answer everything with this status.
    status: Option<u16>,
    /// Send only this many bytes of any file, though the info announces all.
    cut: Option<usize>,
    /// With `cut`: announce all bytes in the answer too, then hang up.
    hang_up: bool,
    /// Answer files by redirecting to a storage path, as the hub does for large ones.
    redirect: bool,
    /// A file name that is announced but leads outside.
    evil: Option<String>,
    /// Every request's line.
    log: Vec<String>,
}

impl Site {
    fn with(repo: &str, files: &[(&str, &[u8])]) -> Self {
        let files = files.iter().map(|(name, bytes)| (name.to_string(), bytes.to_vec())).collect();
        Self { repos: HashMap::from([(repo.to_owned(), files)]), ..Self::default() }
    }
}

/// A server that lives as long as the test's process, and a hub that asks it, with an empty cache.
struct Server {
    hub: Hub,
    site: Arc<Mutex<Site>>,
    _cache: tempfile::TempDir,
}

fn serve(site: Site) -> Server {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    let site = Arc::new(Mutex::new(site));
    let shared = site.clone();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let shared = shared.clone();
            std::thread::spawn(move || {
                let _ = answer(stream, &shared);
            });
        }
    });
    let cache = tempfile::tempdir().unwrap();
    let hub = Hub { endpoint, cache: cache.path().join("hub"), token: None };
    Server { hub, site, _cache: cache }
}

impl Server {
    fn requests(&self) -> usize {
        self.site.lock().unwrap().log.len()
    }

    fn error(&self, spec: &str) -> String {
        self.hub.resolve(spec).expect_err("must fail").to_string()
    }
}

/// One request a connection.
fn answer(stream: TcpStream, site: &Mutex<Site>) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut line = String::new();
    reader.read_line(&mut line)?;
    let mut headers = HashMap::new();
    loop {
        let mut header = String::new();
        reader.read_line(&mut header)?;
        let Some((name, value)) = header.trim().split_once(": ") else { break };
        headers.insert(name.to_lowercase(), value.to_owned());
    }
    let path = unescape(line.split(' ').nth(1).unwrap_or("/"));
    let mut site = site.lock().unwrap();
    site.log.push(line.trim().to_owned());
    let mut out = stream;
    let mut plain = |status: u16, kind: &str, body: &[u8]| {
        let length = body.len();
        write!(
            out,
            "HTTP/1.1 {status} x\r\nContent-Type: {kind}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n"
        )?;
        out.write_all(body)
    };
    if let Some(status) = site.status {
        return plain(status, "text/plain", b"no");
    }
    if let Some(token) = &site.token
        && headers.get("authorization") != Some(&format!("Bearer {token}"))
    {
        return plain(401, "text/plain", b"who are you?");
    }
    if let Some(rest) = path.strip_prefix("/api/") {
        let name = rest.trim_end_matches("?blobs=true").replacen("/revision/", "@", 1);
        let Some(files) = site.repos.get(&name) else { return plain(404, "text/plain", b"no such repo") };
        let mut siblings: Vec<_> =
            files.iter().map(|(f, b)| serde_json::json!({"rfilename": f, "size": b.len()})).collect();
        siblings.extend(site.evil.iter().map(|f| serde_json::json!({"rfilename": f, "size": 3})));
        let body = serde_json::json!({"id": name, "sha": SHA, "siblings": siblings}).to_string();
        return plain(200, "application/json", body.as_bytes());
    }
    // /owner/name/resolve/SHA/file, for data sets below /datasets; storage: /storage/owner/name/resolve/...
    let (stored, rest) = match path.strip_prefix("/storage") {
        Some(rest) => (true, rest),
        None => (false, path.as_str()),
    };
    let found = rest.split_once(&format!("/resolve/{SHA}/")).and_then(|(repo, file)| {
        let repo = if repo.starts_with("/datasets/") { repo[1..].to_owned() } else { format!("models{repo}") };
        let of_repo = |(name, files): (&String, &BTreeMap<String, Vec<u8>>)| {
            (name.split('@').next() == Some(&repo)).then(|| files.get(file).cloned())
        };
        site.repos.iter().find_map(of_repo).flatten()
    });
    let Some(bytes) = found else { return plain(404, "text/plain", b"no such file") };
    let etag = format!("{:08x}-{}", crc32c::crc32c(&bytes), bytes.len());
    if site.redirect && !stored {
        let host = headers.get("host").cloned().unwrap_or_default();
        let to = line.split(' ').nth(1).unwrap();
        return write!(
            out,
            "HTTP/1.1 302 Found\r\nLocation: http://{host}/storage{to}\r\nX-Linked-Etag: \"{etag}\"\r\n\
             X-Repo-Commit: {SHA}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
        );
    }
    let range = headers.get("range").and_then(|r| r.strip_prefix("bytes=")).and_then(|r| r.split_once('-'));
    let (from, to) = range.expect("hf-hub asks for ranges");
    let from: usize = from.parse().unwrap();
    let to = to.parse().unwrap_or(bytes.len() - 1).min(bytes.len() - 1);
    let piece = &bytes[from..=to];
    let sent = piece.len().min(site.cut.unwrap_or(usize::MAX).max(1));
    write!(
        out,
        "HTTP/1.1 206 Partial\r\nContent-Range: bytes {from}-{to}/{}\r\nETag: \"{etag}\"\r\nX-Repo-Commit: {SHA}\r\n\
         Content-Length: {}\r\nConnection: close\r\n\r\n",
        bytes.len(),
        if site.hang_up { piece.len() } else { sent },
    )?;
    out.write_all(&piece[..sent])
}

fn unescape(path: &str) -> String {
    let mut out = Vec::new();
    let mut rest = path.as_bytes();
    while let Some((&byte, tail)) = rest.split_first() {
        let code = (byte == b'%').then(|| u8::from_str_radix(std::str::from_utf8(&tail[..2]).unwrap(), 16).unwrap());
        out.push(code.unwrap_or(byte));
        rest = if code.is_some() { &tail[2..] } else { tail };
    }
    String::from_utf8(out).unwrap()
}

fn files_below(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let walk = walkdir::WalkDir::new(folder).follow_links(true).into_iter().map(|e| e.unwrap());
    let files = walk.filter(|e| e.file_type().is_file());
    let name = |path: &Path| path.strip_prefix(folder).unwrap().to_str().unwrap().to_owned();
    files.map(|e| (name(e.path()), std::fs::read(e.path()).unwrap())).collect()
}

fn model() -> Site {
    let long: Vec<u8> = (0..300_000u32).map(|i| (i * 7 + i / 256) as u8).collect();
    Site::with(
        "models/lab/net@main",
        &[
            (".gitattributes", b"hidden"),
            ("README.md", b"read me"),
            ("transformer/config.json", b"{}"),
            ("transformer/weights.safetensors", &long),
            ("transformer2/config.json", b"another"),
        ],
    )
}

#[test]
fn plain_paths_pass_through() {
    for path in ["runs/a", "/abs", "hf:/x", "", "./hf://x", "C:\\x"] {
        assert_eq!(hub::resolve(path).unwrap(), PathBuf::from(path));
    }
}

#[test]
fn whole_repositories_folders_and_files_are_downloaded() {
    let server = serve(model());
    let all = files_below(&server.hub.resolve("hf://lab/net").unwrap());
    let expected = server.site.lock().unwrap().repos["models/lab/net@main"].clone();
    let visible: BTreeMap<_, _> = expected.into_iter().filter(|(name, _)| !name.starts_with('.')).collect();
    assert_eq!(all, visible);

    let server = serve(model());
    let folder = server.hub.resolve("hf://lab/net/transformer/").unwrap();
    assert_eq!(files_below(&folder).keys().collect::<Vec<_>>(), ["config.json", "weights.safetensors"]);
    // A folder's name must not match another's beginning.
    assert!(!folder.with_file_name("transformer2").exists());

    let file = server.hub.resolve("hf://models/lab/net@main/README.md").unwrap();
    assert_eq!(std::fs::read(file).unwrap(), b"read me");
    let hidden = server.hub.resolve("hf://lab/net/.gitattributes").unwrap();
    assert_eq!(std::fs::read(hidden).unwrap(), b"hidden");
}

#[test]
fn large_files_come_through_redirects() {
    let server = serve(Site { redirect: true, ..model() });
    let file = server.hub.resolve("hf://lab/net/transformer/weights.safetensors").unwrap();
    assert_eq!(std::fs::read(file).unwrap().len(), 300_000);
    assert!(server.site.lock().unwrap().log.iter().any(|line| line.contains("/storage/")));
}

#[test]
fn names_that_need_escaping_and_empty_files_arrive() {
    let odd: &[(&str, &[u8])] =
        &[("my clips/a b#1?.mp4", b"mp4"), ("my clips/ümläut%20.txt", b"txt"), ("empty.txt", b"")];
    let server = serve(Site::with("datasets/lab/clips@main", odd));
    let folder = server.hub.resolve("hf://datasets/lab/clips").unwrap();
    let expected: BTreeMap<String, Vec<u8>> = odd.iter().map(|(n, b)| (n.to_string(), b.to_vec())).collect();
    assert_eq!(files_below(&folder), expected);
    let before = server.requests();
    assert_eq!(server.hub.resolve("hf://datasets/lab/clips").unwrap(), folder);
    assert_eq!(server.requests(), before + 1, "the second time only the info is asked for");
}

#[test]
fn data_sets_are_found_after_models() {
    let server = serve(Site::with("datasets/lab/clips@main", &[("a.txt", b"a")]));
    let folder = server.hub.resolve("hf://lab/clips").unwrap();
    assert!(folder.to_str().unwrap().contains("datasets--lab--clips"));
    assert_eq!(files_below(&folder).len(), 1);
    assert!(server.error("hf://models/lab/clips").contains("no repository lab/clips with a revision main"));
}

#[test]
fn revisions_are_asked_for_by_name() {
    let server = serve(Site::with("models/lab/net@refs/pr/1", &[("a.txt", b"pr")]));
    let file = server.hub.resolve("hf://lab/net@refs%2Fpr%2F1/a.txt").unwrap();
    assert_eq!(std::fs::read(file).unwrap(), b"pr");
    assert!(server.error("hf://lab/net/a.txt").contains("no repository lab/net with a revision main"));
    assert!(server.error("hf://lab/net@nope").contains("revision nope"));
}

#[test]
fn a_token_is_sent_and_its_lack_explained() {
    let mut server = serve(Site { token: Some("secret".into()), ..model() });
    let message = server.error("hf://lab/net");
    assert!(message.contains("401") && message.contains("private or gated: set HF_TOKEN"), "{message}");
    server.hub.token = Some("wrong".into());
    let message = server.error("hf://lab/net");
    assert!(message.contains("the token in use (HF_TOKEN) may not read lab/net"), "{message}");
    assert!(!message.contains("wrong"), "a token must not be shown: {message}");
    server.hub.token = Some("secret".into());
    server.hub.resolve("hf://lab/net/README.md").unwrap();
}

#[test]
fn what_is_not_there_is_named() {
    let server = serve(model());
    let message = server.error("hf://lab/nothing");
    assert!(message.starts_with("hf://lab/nothing: ") && message.contains("no repository lab/nothing"), "{message}");
    let message = server.error("hf://lab/net/vae");
    assert!(message.contains("no such file or folder; it has: .gitattributes, README.md, transformer"), "{message}");
}

#[test]
fn malformed_names_ask_nobody() {
    let server = serve(model());
    for spec in [
        "hf://",
        "hf:///",
        "hf://lab",
        "hf://lab/",
        "hf://lab/@main",
        "hf://lab/net@",
        "hf://la b/net",
        "hf://lab//x",
        "hf://../net",
        "hf://lab/..",
        "hf://lab/net/../x",
        "hf://lab/net@../x",
        "hf://datasets/lab",
        "hf://lab/net/a//b",
        "hf://lab/net@%2Fetc",
    ] {
        let message = server.error(spec);
        assert!(message.starts_with(&format!("{spec}: a hub name is written hf://owner/name")), "{message}");
    }
    assert_eq!(server.requests(), 0);
}

#[test]
fn a_server_in_trouble_or_no_hub_is_told_apart() {
    let server = serve(Site { status: Some(503), ..model() });
    assert!(server.error("hf://lab/net").contains("answered 503; try again later"));
    let mut server = serve(model());
    server.hub.endpoint += "/storage"; // answers, but not with a hub's JSON
    assert!(server.error("hf://lab/net").contains("no repository"));
    server.hub.endpoint = "not an address".into();
    let message = server.error("hf://lab/net");
    assert!(message.contains("HF_ENDPOINT must be like"), "{message}");
}

#[test]
fn without_a_network_there_is_one_clear_error_or_the_cache() {
    let mut server = serve(model());
    let before = server.hub.resolve("hf://lab/net/transformer").unwrap();
    let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap(); // closed again: refuses
    server.hub.endpoint = format!("http://{free}");
    assert_eq!(server.hub.resolve("hf://lab/net/transformer").unwrap(), before);
    let message = server.error("hf://lab/net/vae");
    assert!(message.contains("cannot be reached") && message.contains("check the network"), "{message}");
    assert_eq!(message.lines().count(), 1);
}

#[test]
fn a_download_cut_short_is_an_error_and_leaves_no_file() {
    let server = serve(Site { cut: Some(1000), ..model() });
    let message = server.error("hf://lab/net/transformer/weights.safetensors");
    assert!(message.contains("1000 bytes came where 300000 should have"), "{message}");
    {
        let mut site = server.site.lock().unwrap();
        (site.hang_up, site.cut) = (true, Some(100_000));
    }
    let message = server.error("hf://lab/net/transformer/weights.safetensors");
    assert!(message.contains("a second try takes up the download where it ended"), "{message}");
    server.site.lock().unwrap().cut = None;
    let file = server.hub.resolve("hf://lab/net/transformer/weights.safetensors").unwrap();
    assert_eq!(
        std::fs::read(file).unwrap(),
        server.site.lock().unwrap().repos["models/lab/net@main"]["transformer/weights.safetensors"]
    );
}

#[test]
fn no_file_is_written_outside_the_cache() {
    for evil in ["../../evil", "/tmp/evil", "a/../../evil"] {
        let server = serve(Site { evil: Some(evil.to_owned()), ..model() });
        let message = server.error("hf://lab/net");
        assert!(message.contains("outside the cache"), "{message}");
        assert!(!server.hub.cache.exists());
    }
}

/// The environment is read by the binary: a process of its own, so that tests do not disturb each other.
#[test]
fn the_environment_names_hub_cache_and_token() {
    let site = Site { token: Some("from-env".into()), ..model() };
    let server = serve(site);
    let home = server.hub.cache.parent().unwrap().to_owned();
    let child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "hub::child_resolves", "--ignored", "--nocapture"])
        .env("HF_ENDPOINT", format!("{}/", server.hub.endpoint))
        .env("HF_HOME", &home)
        .env("HF_TOKEN", "from-env")
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&child.stdout);
    assert!(child.status.success() && text.contains("resolved:"), "{text}");
    let file = home.join("hub/models--lab--net/snapshots").join(SHA).join("README.md");
    assert_eq!(std::fs::read(file).unwrap(), b"read me");
}

#[test]
#[ignore = "run by the_environment_names_hub_cache_and_token"]
fn child_resolves() {
    if std::env::var("HF_TOKEN").as_deref() == Ok("from-env") {
        println!("resolved:{}", hub::resolve("hf://lab/net/README.md").unwrap().display());
    }
}
