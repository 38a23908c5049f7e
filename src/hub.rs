//! `hf://owner/name[@revision][/path]`: files of a Hugging Face hub repository, wherever a folder or file may be named.
//!
//! hf-hub does the downloading and keeps Python's cache layout, so what either has fetched serves both. What is added here:
//! the name's syntax, whole folders, one commit for all files of a call, the cache as it is where there is no network, and
//! errors that say what to do. `HF_HOME`, `HF_ENDPOINT` and `HF_TOKEN` are honoured.
//!
//! Files in the cache are symbolic links: who walks a folder must follow them.

use crate::{Error, Result, bail};
use hf_hub::api::sync::{Api, ApiBuilder, ApiError};
use hf_hub::{Cache, Repo, RepoType};
use serde::Deserialize;
use std::io::IsTerminal;
use std::path::{Component, Path, PathBuf};
use std::time::Duration;

/// How long the hub may take to answer what a repository holds, before it counts as out of reach.
const PATIENCE: Duration = Duration::from_secs(30);

/// The local path of `spec`: itself, or for `hf://...` the file or folder in the cache, downloaded if it is not there.
///
/// # Errors
/// The name is malformed, there is no such repository, revision or path, no access, no network, or no room on the disk.
pub fn resolve(spec: &str) -> Result<PathBuf> {
    if spec.starts_with("hf://") { Hub::from_env()?.resolve(spec) } else { Ok(spec.into()) }
}

/// A hub: where it is, where its files are kept, and who asks.
#[derive(Clone, Debug)]
pub struct Hub {
    /// `https://huggingface.co`, or a mirror.
    pub endpoint: String,
    /// The cache's folder, Python's `~/.cache/huggingface/hub`.
    pub cache: PathBuf,
    /// An access token, for private and gated repositories.
    pub token: Option<String>,
}

impl Hub {
    /// As the environment says: `HF_ENDPOINT`, `HF_HOME`, `HF_TOKEN` (or the token that `hf auth login` left).
    pub fn from_env() -> Result<Self> {
        let var = |name| std::env::var(name).ok().map(|v| v.trim().to_owned()).filter(|v| !v.is_empty());
        if var("HF_HOME").is_none() && std::env::home_dir().is_none() {
            bail!("no home folder to keep hub files in: set HF_HOME to a folder");
        }
        let cache = if var("HF_HOME").is_some() { Cache::from_env() } else { Cache::default() };
        let endpoint = var("HF_ENDPOINT").unwrap_or_else(|| "https://huggingface.co".to_owned());
        let token = var("HF_TOKEN").or_else(|| cache.token());
        Ok(Self { endpoint: endpoint.trim_end_matches('/').to_owned(), cache: cache.path().clone(), token })
    }

    /// See [`resolve`].
    pub fn resolve(&self, spec: &str) -> Result<PathBuf> {
        let Some(name) = spec.strip_prefix("hf://") else { return Ok(spec.into()) };
        let wanted = Wanted::parse(spec, name)?;
        let mut refused = 404;
        for &kind in &wanted.kinds {
            let repo = Repo::with_revision(wanted.id.clone(), kind, wanted.revision.clone());
            let error = match self.info(repo.clone()) {
                Ok(info) => return self.fetch(&wanted, &repo, &info),
                Err(error) => error,
            };
            match status(&error) {
                Some(404) => {}
                // The hub says 401 of what does not exist, too; so a plain "not found" never hides a refusal.
                Some(status @ (401 | 403)) => refused = status,
                _ => {
                    let cached = wanted.kinds.iter().find_map(|&kind| self.cached(&wanted, kind));
                    let Some(path) = cached else { return Err(self.explain(spec, error)) };
                    tracing::warn!("{}; going on with what is in the cache", self.explain(spec, error));
                    return Ok(path);
                }
            }
        }
        let Wanted { id, revision, .. } = &wanted;
        match (refused, &self.token) {
            (404, _) => bail!("{spec}: {} has no repository {id} with a revision {revision}", self.endpoint),
            (_, None) => bail!(
                "{spec}: {} answered {refused}: {id} does not exist, or is private or gated: set HF_TOKEN to a token that \
                 may read it",
                self.endpoint
            ),
            (_, Some(_)) => bail!(
                "{spec}: {} answered {refused}: the token in use (HF_TOKEN) may not read {id}, or it does not exist; for a \
                 gated one, accept its terms on its page first",
                self.endpoint
            ),
        }
    }

    /// What the repository holds at its revision.
    fn info(&self, repo: Repo) -> std::result::Result<Info, ApiError> {
        let request = self.api()?.repo(repo).info_request().query("blobs", "true");
        let request = request.config().timeout_connect(Some(PATIENCE)).timeout_recv_response(Some(PATIENCE)).build();
        let mut response = request.call().map_err(Box::new)?;
        Ok(response.body_mut().with_config().limit(1 << 30).read_json().map_err(Box::new)?)
    }

    /// Downloads what is wanted and not in the cache yet, all of commit `info.sha`.
    fn fetch(&self, wanted: &Wanted, repo: &Repo, info: &Info) -> Result<PathBuf> {
        let spec = &wanted.spec;
        let files: Vec<&File> = info.siblings.iter().filter(|file| wanted.holds(&file.rfilename)).collect();
        if files.is_empty() {
            let mut top: Vec<_> = info.siblings.iter().filter_map(|f| f.rfilename.split('/').next()).collect();
            top.dedup();
            top.truncate(12);
            bail!("{spec}: {} has no such file or folder; it has: {}", wanted.id, top.join(", "));
        }
        if let Some(name) = info.siblings.iter().map(|f| &f.rfilename).chain([&info.sha]).find(|n| !is_inside(n)) {
            bail!("{spec}: the hub names a file `{name}`, which would lie outside the cache");
        }
        let cache = Cache::new(self.cache.clone());
        let snapshot = cache.repo(repo.clone()).pointer_path(&info.sha);
        let lacks = |file: &&&File| {
            let have = snapshot.join(&file.rfilename).metadata();
            !have.is_ok_and(|m| file.size.is_none_or(|size| size == m.len()))
        };
        let lacking: Vec<_> = files.iter().filter(lacks).collect();
        if !lacking.is_empty() {
            let megabytes = lacking.iter().filter_map(|f| f.size).sum::<u64>() as f64 / 1e6;
            tracing::info!("{spec}: downloading {} of {} files, {megabytes:.1} MB", lacking.len(), files.len());
        }
        let commit = Repo::with_revision(wanted.id.clone(), wanted.kind_of(repo), info.sha.clone());
        for file in lacking {
            self.download(&commit, file, &snapshot).map_err(|e| {
                let what = format!("{spec}: {}", file.rfilename);
                match e {
                    Failure::Api(e) => self.explain(&what, e),
                    Failure::Other(text) => Error::Invalid(format!("{what}: {text}")),
                }
            })?;
        }
        // Only now: without a network, a revision's name leads to a snapshot that was once complete.
        cache.repo(repo.clone()).create_ref(&info.sha).map_err(|e| Error::io(&self.cache, e))?;
        Ok(wanted.below(&snapshot))
    }

    /// Downloads one file into the snapshot's folder.
    fn download(&self, commit: &Repo, file: &File, snapshot: &Path) -> std::result::Result<(), Failure> {
        let target = snapshot.join(&file.rfilename);
        if let Some(parent) = target.parent() {
            std::fs::create_dir_all(parent)?;
        }
        if file.size == Some(0) {
            std::fs::write(&target, [])?; // there is no range of bytes to ask for
            return Ok(());
        }
        // hf-hub puts names into addresses as they are, so they are escaped here, and unescaped on disk.
        let got = self.api()?.repo(commit.clone()).download(&escape(&file.rfilename))?;
        if got != target {
            std::fs::rename(&got, &target)?;
        }
        let length = target.metadata()?.len();
        if let Some(size) = file.size.filter(|&size| size != length) {
            let blob = target.canonicalize()?;
            std::fs::remove_file(&target)?;
            std::fs::remove_file(blob)?;
            return Err(Failure::Other(format!("{length} bytes came where {size} should have; try again")));
        }
        Ok(())
    }

    /// What the cache has of the revision, without asking anyone.
    fn cached(&self, wanted: &Wanted, kind: RepoType) -> Option<PathBuf> {
        let repo = Repo::with_revision(wanted.id.clone(), kind, wanted.revision.clone());
        let named = self.cache.join(repo.folder_name()).join("refs").join(&wanted.revision);
        let sha = std::fs::read_to_string(named).unwrap_or_else(|_| wanted.revision.clone());
        let path = wanted.below(&Cache::new(self.cache.clone()).repo(repo).pointer_path(sha.trim()));
        path.exists().then_some(path)
    }

    fn api(&self) -> std::result::Result<Api, ApiError> {
        ApiBuilder::from_cache(Cache::new(self.cache.clone()))
            .with_endpoint(self.endpoint.clone())
            .with_token(self.token.clone())
            .with_progress(std::io::stderr().is_terminal())
            .with_user_agent("longreel", env!("CARGO_PKG_VERSION"))
            .build()
    }

    /// What an error of hf-hub means to the user.
    fn explain(&self, what: &str, error: ApiError) -> Error {
        let endpoint = &self.endpoint;
        Error::Invalid(match error {
            ApiError::RequestError(e) => match *e {
                ureq::Error::StatusCode(status @ (401 | 403)) => {
                    format!("{what}: {endpoint} answered {status}: set HF_TOKEN to a token that may read it")
                }
                ureq::Error::StatusCode(404) => format!("{what}: {endpoint} has no such file"),
                ureq::Error::StatusCode(status) => format!("{what}: {endpoint} answered {status}; try again later"),
                ureq::Error::Json(e) => format!("{what}: {endpoint} does not answer like a hub ({e}); see HF_ENDPOINT"),
                ureq::Error::BadUri(_) | ureq::Error::Http(_) => {
                    format!("{what}: {endpoint} is not an address; HF_ENDPOINT must be like https://huggingface.co")
                }
                e => format!("{what}: {endpoint} cannot be reached ({e}): check the network, or name a local folder"),
            },
            ApiError::LockAcquisition(path) => {
                format!("{what}: another process is downloading it ({} is locked); wait for it", path.display())
            }
            ApiError::InvalidResume => {
                let blobs = self.cache.join("*").join("blobs").join("*.part");
                format!("{what}: an older download of it is damaged: remove {}", blobs.display())
            }
            ApiError::IoError(e) => format!("{what}: {e}; a second try takes up the download where it ended"),
            e => format!("{what}: {endpoint} does not answer like a hub ({e}); see HF_ENDPOINT"),
        })
    }
}

/// A parsed `hf://` name.
struct Wanted {
    spec: String,
    id: String,
    revision: String,
    /// What it may be, in the order to try.
    kinds: Vec<RepoType>,
    /// A file or folder in the repository; empty: all of it.
    path: String,
}

impl Wanted {
    fn parse(spec: &str, name: &str) -> Result<Self> {
        let mut parts: Vec<&str> = name.trim_end_matches('/').split('/').collect();
        let kinds = match parts.first() {
            Some(&"datasets") => vec![RepoType::Dataset],
            Some(&"models") => vec![RepoType::Model],
            _ => vec![RepoType::Model, RepoType::Dataset],
        };
        if kinds.len() == 1 {
            parts.remove(0);
        }
        let (owner, rest) = parts.split_first().unwrap_or((&"", &[]));
        let (last, path) = rest.split_first().unwrap_or((&"", &[]));
        let (repo, revision) = last.split_once('@').unwrap_or((last, "main"));
        // A branch such as refs/pr/1 is written refs%2Fpr%2F1.
        let revision = revision.replace("%2F", "/").replace("%2f", "/");
        let plain = |s: &str| {
            let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
            !s.is_empty() && s.chars().all(allowed) && s != "." && s != ".."
        };
        if !plain(owner) || !plain(repo) || !is_inside(&revision) || !path.iter().all(|part| is_inside(part)) {
            bail!(
                "{spec}: a hub name is written hf://owner/name, hf://owner/name@revision or hf://owner/name/path (and \
                 hf://datasets/owner/name for a data set)"
            );
        }
        Ok(Self { spec: spec.to_owned(), id: format!("{owner}/{repo}"), revision, kinds, path: path.join("/") })
    }

    /// Whether a file is wanted; hidden ones (.gitattributes) only by name.
    fn holds(&self, file: &str) -> bool {
        let below = match file.strip_prefix(self.path.as_str()) {
            Some(rest) if self.path.is_empty() => rest,
            Some("") => return true,
            Some(rest) if rest.starts_with('/') => rest,
            _ => return false,
        };
        below.split('/').all(|part| !part.starts_with('.'))
    }

    fn below(&self, snapshot: &Path) -> PathBuf {
        if self.path.is_empty() { snapshot.to_owned() } else { snapshot.join(&self.path) }
    }

    fn kind_of(&self, repo: &Repo) -> RepoType {
        if repo.url().starts_with("datasets/") { RepoType::Dataset } else { RepoType::Model }
    }
}

/// What the hub tells of a repository.
#[derive(Deserialize)]
struct Info {
    sha: String,
    siblings: Vec<File>,
}

#[derive(Deserialize)]
struct File {
    rfilename: String,
    size: Option<u64>,
}

enum Failure {
    Api(ApiError),
    Other(String),
}

impl From<ApiError> for Failure {
    fn from(error: ApiError) -> Self {
        Self::Api(error)
    }
}

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Self {
        Self::Other(error.to_string())
    }
}

/// The HTTP status that an error is about.
fn status(error: &ApiError) -> Option<u16> {
    match error {
        ApiError::RequestError(e) => match **e {
            ureq::Error::StatusCode(status) => Some(status),
            _ => None,
        },
        _ => None,
    }
}

/// Whether a relative path stays inside the folder that it is relative to.
fn is_inside(path: &str) -> bool {
    !path.is_empty() && Path::new(path).components().all(|c| matches!(c, Component::Normal(_)))
}

/// Percent-encodes what may not stand in an address's path.
fn escape(path: &str) -> String {
    let mut out = String::new();
    for byte in path.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' | b'/' => out.push(byte as char),
            other => out.push_str(&format!("%{other:02X}")),
        }
    }
    out
}
