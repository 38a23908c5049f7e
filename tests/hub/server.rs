//! A local server that answers as the hub does, or as badly as a test wants: repository info, ranges, redirects to
//! storage.

use longreel::hub::{Hub, Limits};
use sha2::Digest;
use std::collections::{BTreeMap, HashMap};
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

pub const SHA: &str = "0123456789abcdef0123456789abcdef01234567";

/// Files longer than this are in LFS.
const LARGE: usize = 100_000;

/// One request as it came.
#[derive(Clone, Debug)]
pub struct Request {
    pub method: String,
    /// Unescaped.
    pub path: String,
    /// As it was sent.
    pub address: String,
    pub headers: HashMap<String, String>,
}

/// Answers a request in the hub's place; none: the hub answers.
pub type Answer = dyn Fn(&Request, &mut TcpStream) -> Option<std::io::Result<()>> + Send + Sync;

/// What the server has and how it misbehaves.
#[derive(Default)]
pub struct Site {
    /// `models/owner/name@revision` or `datasets/...` to its files.
    pub repos: HashMap<String, BTreeMap<String, Vec<u8>>>,
    /// Asked for without which every answer is 401.
    pub token: Option<String>,
    /// Answer everything with this status.
    pub status: Option<u16>,
    /// Send only this many bytes of any file, though the info announces all.
    pub cut: Option<usize>,
    /// With `cut`: announce all bytes in the answer too, then hang up.
    pub hang_up: bool,
    /// Answer files by redirecting to a storage path, as the hub does for large ones.
    pub redirect: bool,
    /// With `redirect`: the storage is there, another server.
    pub storage: Option<String>,
    /// A file name that is announced but leads outside.
    pub evil: Option<String>,
    /// The info has no hashes; the headers of the files have.
    pub bare: bool,
    /// The info says nothing of sizes.
    pub sizeless: bool,
    /// Send these bytes for every file, whatever its hash.
    pub forged: Option<Vec<u8>>,
    /// Answers before the hub does.
    pub instead: Option<Arc<Answer>>,
    /// Every request.
    pub log: Vec<Request>,
}

impl Site {
    pub fn with(repo: &str, files: &[(&str, &[u8])]) -> Self {
        let files = files.iter().map(|(name, bytes)| (name.to_string(), bytes.to_vec())).collect();
        Self { repos: HashMap::from([(repo.to_owned(), files)]), ..Self::default() }
    }

    /// The same site with an answer of a test's own to some requests.
    pub fn instead(
        self,
        answer: impl Fn(&Request, &mut TcpStream) -> Option<std::io::Result<()>> + Send + Sync + 'static,
    ) -> Self {
        Self { instead: Some(Arc::new(answer)), ..self }
    }
}

/// A server that lives as long as the test's process, and a hub that asks it, with an empty cache.
pub struct Server {
    pub hub: Hub,
    pub site: Arc<Mutex<Site>>,
    /// The cache's parent.
    pub folder: tempfile::TempDir,
}

pub fn serve(site: Site) -> Server {
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
    let folder = tempfile::tempdir().unwrap();
    let hub = Hub { endpoint, cache: folder.path().join("hub"), token: None, limits: Limits::default() };
    Server { hub, site, folder }
}

impl Server {
    /// The same with limits that a test can wait for.
    pub fn hurried(mut self) -> Self {
        self.hub.limits = Limits {
            response: Duration::from_secs(2),
            stall: Duration::from_secs(1),
            stall_bytes: 1000,
            info_time: Duration::from_secs(3),
            info_bytes: 100_000,
            file_bytes: 500_000,
            ..Limits::default()
        };
        self
    }

    pub fn requests(&self) -> usize {
        self.site.lock().unwrap().log.len()
    }

    pub fn error(&self, spec: &str) -> String {
        self.hub.resolve(spec).expect_err("must fail").to_string()
    }

    /// The error, which must come in bounded time.
    pub fn error_soon(&self, spec: &str) -> String {
        let (hub, owned, (sender, receiver)) = (self.hub.clone(), spec.to_owned(), std::sync::mpsc::channel());
        std::thread::spawn(move || sender.send(hub.resolve(&owned)));
        let end = receiver.recv_timeout(Duration::from_secs(40));
        end.expect("neither hangs nor panics").expect_err("must fail").to_string()
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
    let mut words = line.split(' ').map(str::to_owned);
    let (method, address) = (words.next().unwrap_or_default(), words.next().unwrap_or("/".to_owned()));
    let request = Request { method, path: unescape(&address), address, headers };
    let mut out = stream;
    let instead = {
        let mut site = site.lock().unwrap();
        site.log.push(request.clone());
        site.instead.clone()
    };
    if let Some(done) = instead.and_then(|instead| instead(&request, &mut out)) {
        return done;
    }
    let site = site.lock().unwrap();
    let path = request.path.as_str();
    if let Some(status) = site.status {
        return plain(&mut out, status, "text/plain", b"no");
    }
    if let Some(token) = &site.token
        && request.headers.get("authorization") != Some(&format!("Bearer {token}"))
    {
        return plain(&mut out, 401, "text/plain", b"who are you?");
    }
    if let Some(rest) = path.strip_prefix("/api/") {
        let name = rest.trim_end_matches("?blobs=true").replacen("/revision/", "@", 1);
        let Some(files) = site.repos.get(&name) else { return plain(&mut out, 404, "text/plain", b"no such repo") };
        let body = info(&site, &name, files);
        return plain(&mut out, 200, "application/json", body.as_bytes());
    }
    file(&site, &request, &mut out)
}

pub fn plain(out: &mut TcpStream, status: u16, kind: &str, body: &[u8]) -> std::io::Result<()> {
    let length = body.len();
    write!(
        out,
        "HTTP/1.1 {status} x\r\nContent-Type: {kind}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n"
    )?;
    out.write_all(body)
}

fn info(site: &Site, name: &str, files: &BTreeMap<String, Vec<u8>>) -> String {
    let sibling = |(name, bytes): (&String, &Vec<u8>)| {
        let mut file = serde_json::json!({"rfilename": name});
        if !site.sizeless {
            file["size"] = bytes.len().into();
        }
        if !site.bare {
            file["blobId"] = git(bytes).into();
        }
        if !site.bare && bytes.len() > LARGE {
            file["blobId"] = git(b"the pointer").into();
            file["lfs"] = serde_json::json!({"sha256": sha256(bytes), "size": bytes.len(), "pointerSize": 134});
        }
        file
    };
    let mut siblings: Vec<_> = files.iter().map(sibling).collect();
    siblings.extend(site.evil.iter().map(|f| serde_json::json!({"rfilename": f, "size": 3})));
    serde_json::json!({"id": name, "sha": SHA, "siblings": siblings}).to_string()
}

/// `/owner/name/resolve/SHA/file`, for data sets below /datasets; storage: `/storage/owner/name/resolve/...`
fn file(site: &Site, request: &Request, out: &mut TcpStream) -> std::io::Result<()> {
    let (stored, rest) = match request.path.strip_prefix("/storage") {
        Some(rest) => (true, rest),
        None => (false, request.path.as_str()),
    };
    let found = rest.split_once(&format!("/resolve/{SHA}/")).and_then(|(repo, file)| {
        let repo = if repo.starts_with("/datasets/") { repo[1..].to_owned() } else { format!("models{repo}") };
        let of_repo = |(name, files): (&String, &BTreeMap<String, Vec<u8>>)| {
            (name.split('@').next() == Some(&repo)).then(|| files.get(file).cloned())
        };
        site.repos.iter().find_map(of_repo).flatten()
    });
    let Some(bytes) = found else { return plain(out, 404, "text/plain", b"no such file") };
    let etag = if bytes.len() > LARGE { sha256(&bytes) } else { git(&bytes) };
    if site.redirect && !stored {
        let host = request.headers.get("host").cloned().unwrap_or_default();
        let (size, storage) = (bytes.len(), site.storage.clone().unwrap_or(format!("http://{host}")));
        return write!(
            out,
            "HTTP/1.1 302 Found\r\nLocation: {storage}/storage{}\r\nX-Linked-Etag: \"{etag}\"\r\n\
             X-Linked-Size: {size}\r\nX-Repo-Commit: {SHA}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n",
            request.address
        );
    }
    let bytes = site.forged.clone().unwrap_or(bytes);
    let from = request.headers.get("range").map(|range| {
        let from = range.strip_prefix("bytes=").and_then(|range| range.strip_suffix('-'));
        from.expect("a range to the end").parse::<usize>().unwrap()
    });
    let piece = &bytes[from.unwrap_or(0)..];
    let sent = piece.len().min(site.cut.unwrap_or(usize::MAX));
    let status = match from {
        Some(from) => format!("206 Partial\r\nContent-Range: bytes {from}-{}/{}", bytes.len() - 1, bytes.len()),
        None => "200 OK".to_owned(),
    };
    write!(
        out,
        "HTTP/1.1 {status}\r\nETag: \"{etag}\"\r\nX-Repo-Commit: {SHA}\r\nContent-Length: {}\r\n\
         Connection: close\r\n\r\n",
        if site.hang_up { piece.len() } else { sent },
    )?;
    if request.method == "HEAD" { Ok(()) } else { out.write_all(&piece[..sent]) }
}

pub fn sha256(bytes: &[u8]) -> String {
    hex(&sha2::Sha256::digest(bytes))
}

pub fn git(bytes: &[u8]) -> String {
    hex(&sha1::Sha1::digest([format!("blob {}\0", bytes.len()).as_bytes(), bytes].concat()))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
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

pub fn files_below(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    if !folder.exists() {
        return BTreeMap::new();
    }
    let walk = walkdir::WalkDir::new(folder).follow_links(true).into_iter().map(|e| e.unwrap());
    let files = walk.filter(|e| e.file_type().is_file());
    let name = |path: &Path| path.strip_prefix(folder).unwrap().to_str().unwrap().to_owned();
    files.map(|e| (name(e.path()), std::fs::read(e.path()).unwrap())).collect()
}

pub fn model() -> Site {
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
