//! `hf://owner/name[@revision][/path]` names files of a Hugging Face hub repository, wherever a folder or file may be
//! named.
//!
//! Files are kept in Python's cache layout, so what either has fetched serves both. All files of a call are of one
//! commit. Without a network the cache is used as it is. `HF_HOME`, `HF_ENDPOINT` and `HF_TOKEN` are honoured.
//!
//! A hub is trusted to name files and their hashes, no further: [`name`], [`info`] and [`address`] check what becomes a
//! path or an address, the client limits whatever it waits for, and a download gets its name once its bytes have the
//! right hash.
//!
//! Files in the cache are symbolic links: who walks a folder must follow them.

pub mod address;
mod client;
mod download;
mod failure;
mod hash;
pub mod info;
pub mod name;

use crate::terminal::counted;
use crate::{Result, bail, files};
use client::Client;
use download::Place;
use failure::Failure;
use hf_hub::{Cache, RepoType};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use info::{Info, RepoFile, is_commit};
use name::Name;
use std::path::PathBuf;

pub use client::Limits;
pub use hash::Hash;

/// The local path of `spec`: itself, or for `hf://...` the file or folder in the cache, downloaded if it is not there.
///
/// # Errors
/// The name is malformed, there is no such repository, revision or path, no access, no network, no room on the disk, or
/// the hub's answers are not what it announced.
pub fn resolve(spec: &str) -> Result<PathBuf> {
    if spec.starts_with("hf://") { Hub::from_env()?.resolve(spec) } else { Ok(spec.into()) }
}

/// A hub: where it is, where its files are kept, and who asks.
#[derive(Clone)]
pub struct Hub {
    /// `https://huggingface.co`, or a mirror.
    pub endpoint: String,
    /// The cache's folder, Python's `~/.cache/huggingface/hub`.
    pub cache: PathBuf,
    /// An access token, for private and gated repositories.
    pub token: Option<String>,
    /// What the hub may take, in time and bytes.
    pub limits: Limits,
}

/// Without the token, which is nobody's business in a log.
impl std::fmt::Debug for Hub {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let token = self.token.as_ref().map(|_| "(set)");
        let Self { endpoint, cache, limits, .. } = self;
        f.debug_struct("Hub")
            .field("endpoint", endpoint)
            .field("cache", cache)
            .field("token", &token)
            .field("limits", limits)
            .finish()
    }
}

impl Hub {
    /// As the environment says: `HF_ENDPOINT`, `HF_HOME`, `HF_TOKEN` (or the token that `hf auth login` left).
    pub fn from_env() -> Result<Self> {
        let var = |name| std::env::var(name).ok().map(|v| v.trim().to_owned()).filter(|v| !v.is_empty());
        let set = |path: &PathBuf| !path.to_string_lossy().trim().is_empty();
        let default = || std::env::home_dir().filter(set).map(|home| home.join(".cache/huggingface"));
        let Some(home) = std::env::var_os("HF_HOME").map(PathBuf::from).filter(set).or_else(default) else {
            bail!(Environment, "no home folder to keep hub files in: set HF_HOME to a folder");
        };
        let cache = Cache::new(files::expand_home(&home)?.join("hub"));
        let endpoint = var("HF_ENDPOINT").unwrap_or_else(|| "https://huggingface.co".to_owned());
        let token = var("HF_TOKEN").or_else(|| {
            let saved = files::read_text(&cache.token_path(), 1 << 16).ok()?;
            Some(saved.trim().to_owned()).filter(|token| !token.is_empty())
        });
        let endpoint = endpoint.trim_end_matches('/').to_owned();
        Ok(Self { endpoint, cache: cache.path().clone(), token, limits: Limits::default() })
    }

    /// See [`resolve`].
    pub fn resolve(&self, spec: &str) -> Result<PathBuf> {
        if !spec.starts_with("hf://") {
            return Ok(spec.into());
        }
        let name = name::parse(spec)?;
        let client = Client::new(self).map_err(|e| e.at(spec))?;
        let mut refused = 404;
        for &kind in &name.kinds {
            let error = match client.info(&format!("{}/{}", plural(kind), name.id), &name.revision) {
                Ok(info) => return self.fetch(&client, &name, kind, &info),
                Err(error) => error,
            };
            match error {
                Failure::Status { status: 404, .. } => {}
                // The hub says 401 of what does not exist, too; so a plain "not found" never hides a refusal.
                Failure::Status { status: status @ (401 | 403), .. } => refused = status,
                error => {
                    let error = error.explain(spec);
                    let Some(path) = name.kinds.iter().find_map(|&kind| self.cached(&name, kind)) else {
                        return Err(error);
                    };
                    tracing::warn!("{error}; going on with what is in the cache");
                    return Ok(path);
                }
            }
        }
        let Name { id, revision, .. } = &name;
        match (refused, &self.token) {
            (404, _) => bail!(Data, "{spec}: {} has no repository {id} with a revision {revision}", self.endpoint),
            (_, None) => bail!(
                Data,
                "{spec}: {} answered {refused}: {id} does not exist, or is private or gated: set HF_TOKEN to a token \
                 that may read it",
                self.endpoint
            ),
            (_, Some(_)) => bail!(
                Data,
                "{spec}: {} answered {refused}: the token in use (HF_TOKEN) may not read {id}, or it does not exist; \
                 for a gated one, accept its terms on its page first",
                self.endpoint
            ),
        }
    }

    /// Downloads what is wanted and not in the cache yet, all of one commit.
    fn fetch(&self, client: &Client, name: &Name, kind: RepoType, info: &Info) -> Result<PathBuf> {
        let (spec, commit) = (&name.spec, &info.commit);
        let wanted: Vec<&RepoFile> = info.files.iter().filter(|file| name.holds(&file.name)).collect();
        if wanted.is_empty() {
            let mut top: Vec<_> = info.files.iter().filter_map(|f| f.name.split('/').next()).collect();
            top.dedup();
            top.truncate(12);
            bail!(Data, "{spec}: {} has no such file or folder; it has: {}", name.id, shown(&top.join(", ")));
        }
        let place = Place::new(&self.cache, &name.repo(kind));
        let lacking: Vec<_> = wanted.iter().copied().filter(|file| !place.has(commit, file)).collect();
        if !lacking.is_empty() {
            let size = files::file_size(lacking.iter().filter_map(|f| f.size).fold(0, u64::saturating_add));
            let all = counted(wanted.len(), "file", "files");
            tracing::info!("{spec}: downloading {} of {all}, {size}", lacking.len());
            place.check_space(&lacking).map_err(|e| e.explain(spec))?;
        }
        let repo = if let RepoType::Dataset = kind { format!("datasets/{}", name.id) } else { name.id.clone() };
        for file in lacking {
            let (address, bar) = (client.file(&repo, commit, &file.name), progress(file));
            let downloaded = place.download(client, &address, commit, file, &bar);
            bar.finish_and_clear();
            downloaded.map_err(|e| e.explain(&format!("{spec}: {}", shown(&file.name))))?;
        }
        // Only now: without a network, a revision's name leads to a snapshot that was once complete.
        let named = place.refs().join(&name.revision);
        files::create_folders(files::parent(&named))?;
        files::atomic_write(&named, |out| out.write_all(commit.as_bytes()))?;
        Ok(name.below(&place.snapshot(commit)))
    }

    /// What the cache has of the revision, without asking anyone.
    fn cached(&self, name: &Name, kind: RepoType) -> Option<PathBuf> {
        let place = Place::new(&self.cache, &name.repo(kind));
        let named = files::read_text(&place.refs().join(&name.revision), 1 << 10).ok();
        let commit = named.unwrap_or_else(|| name.revision.clone());
        let path = is_commit(commit.trim()).then(|| name.below(&place.snapshot(commit.trim())))?;
        path.exists().then_some(path)
    }
}

/// A bar on a terminal, nothing elsewhere.
fn progress(file: &RepoFile) -> ProgressBar {
    if !crate::terminal::renews_lines() {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::with_draw_target(file.size, ProgressDrawTarget::stderr_with_hz(8));
    let template = "{bar:24.cyan/blue} {bytes}/{total_bytes} {bytes_per_sec} {msg}";
    // The template is a constant, so the fallback is never seen.
    let style = ProgressStyle::with_template(template).unwrap_or(ProgressStyle::default_bar());
    bar.set_style(style.progress_chars("━╸─"));
    bar.set_message(shown(&file.name));
    bar
}

/// What a hub said, for an error: in one line, without control characters, and not long.
fn shown(text: &str) -> String {
    let short = crate::terminal::shorten(text, 200);
    crate::terminal::name(short) + if short.len() < text.len() { "..." } else { "" }
}

fn plural(kind: RepoType) -> &'static str {
    if let RepoType::Dataset = kind { "datasets" } else { "models" }
}
