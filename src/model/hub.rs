//! Models by name: `ORG/NAME` on the Hugging Face hub, or `ORG/NAME/FILE.gguf`.
//!
//! The `hf-hub` crate makes the requests and keeps the cache that other tools share (`HF_HOME`, `HF_ENDPOINT`,
//! `HF_TOKEN` or the token of `hf auth login`). What it leaves to its callers is done here: which files a model is made
//! of, whether a file arrived whole (its size, and its SHA-256 where the hub names it), and one clear line for
//! everything that can go wrong. A file cut short goes on where it ended.

use std::fs;
use std::io::{self, Read};
use std::panic::resume_unwind;
use std::path::{Path, PathBuf};

use hf_hub::api::sync::{Api, ApiBuilder, ApiError, ApiRepo};
use hf_hub::{Cache, Repo, RepoType};
use sha2::{Digest, Sha256};

use super::error::{MOST_REASON_CHARS, quoted};
use super::tokenizer::unwinding;
use super::{Error, Progress, Result, Watch, shards};

/// Where the hub is unless `HF_ENDPOINT` says otherwise.
const ENDPOINT: &str = "https://huggingface.co";
/// Times a broken transfer is taken up again before it is reported.
const RETRIES: usize = 3;
/// What a model may have beside its weights, wanted first: once the weights are there, everything is.
const SMALL_FILES: [&str; 6] = [
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "chat_template.json",
];
/// The weights in one file.
const WEIGHTS: &str = "model.safetensors";
/// The list of the files that the weights are in.
const INDEX: &str = "model.safetensors.index.json";
/// Most GGUF files that a message lists.
const MOST_LISTED: usize = 6;

/// A model on the hub: `ORG/NAME`, and the file in it if it is a GGUF file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Name {
    repo: String,
    file: Option<String>,
}

impl Name {
    /// Reads `ORG/NAME` or `ORG/NAME/FILE.gguf`; `None` for what can only be a path.
    pub fn parse(text: &str) -> Option<Self> {
        let mut parts = text.split('/');
        let (org, name, file) = (parts.next()?, parts.next()?, parts.next());
        let is_whole = parts.next().is_none() && is_plain(org) && is_plain(name);
        let is_file = file.is_none_or(|file| is_plain(file) && is_gguf(file));
        (is_whole && is_file && !is_gguf(name))
            .then(|| Self { repo: format!("{org}/{name}"), file: file.map(ToOwned::to_owned) })
    }
}

impl std::fmt::Display for Name {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.file {
            Some(file) => write!(f, "{}/{file}", self.repo),
            None => f.write_str(&self.repo),
        }
    }
}

/// Letters, digits, `-`, `_` and dots that do not lead: no path leaves its folder by such a name.
fn is_plain(name: &str) -> bool {
    !name.is_empty()
        && name.len() <= 200
        && !name.starts_with('.')
        && name.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'))
}

fn is_gguf(name: &str) -> bool {
    Path::new(name).extension().is_some_and(|extension| extension.eq_ignore_ascii_case("gguf"))
}

/// The hub, as the environment describes it. It has the token, so nothing prints it.
#[derive(Clone)]
pub struct Hub {
    endpoint: String,
    cache: PathBuf,
    token: Option<String>,
}

/// Why a transfer was given up from within its progress.
enum Stop {
    /// The listener asked for it.
    Asked,
    /// More bytes came than the hub promised.
    TooLong,
}

impl Hub {
    /// The hub of `HF_ENDPOINT`, the cache under `HF_HUB_CACHE` or `HF_HOME`, the token of `HF_TOKEN` or of the file that
    /// `hf auth login` writes.
    pub fn from_env() -> Self {
        let set = |name: &str| std::env::var(name).ok().filter(|value| !value.trim().is_empty());
        let cache = set("HF_HUB_CACHE").map_or_else(Cache::from_env, |path| Cache::new(path.into()));
        let token = set("HF_TOKEN").map(|token| token.trim().to_owned()).or_else(|| {
            // The token lies beside the cache's usual place, wherever the cache itself is.
            Cache::from_env().token()
        });
        Self {
            endpoint: set("HF_ENDPOINT").unwrap_or_else(|| ENDPOINT.into()),
            cache: cache.path().clone(),
            token,
        }
    }

    /// A hub at an address, with a cache and a token of its own.
    pub fn new(endpoint: &str, cache: &Path, token: Option<&str>) -> Self {
        Self { endpoint: endpoint.into(), cache: cache.into(), token: token.map(ToOwned::to_owned) }
    }

    /// The folder or the GGUF file of a model in the cache, fetched if it is not there. A model that is there is used as
    /// it is: nothing is asked of the network.
    ///
    /// # Errors
    /// [`Error::Hub`]: no such model or file, no access, no network, a file that arrived damaged.
    /// [`Error::Stopped`] where the listener asked for it.
    pub fn fetch(&self, name: &Name, watch: &mut Watch<'_>) -> Result<PathBuf> {
        if let Some(path) = self.cached(name) {
            return Ok(path);
        }
        let fault = |reason: String| Error::Hub { name: name.to_string(), reason };
        let builder = ApiBuilder::from_cache(Cache::new(self.cache.clone()))
            .with_endpoint(self.endpoint.trim_end_matches('/').to_owned())
            .with_progress(false)
            .with_retries(RETRIES)
            .with_token(self.token.clone())
            .with_user_agent("kvista", env!("CARGO_PKG_VERSION"));
        let api = builder.build().map_err(|error| fault(self.explain(&error, None)))?;
        Transfer { hub: self, name, api }.run(watch)
    }

    /// What of a model is in the cache, if all of it is.
    fn cached(&self, name: &Name) -> Option<PathBuf> {
        let repo = Cache::new(self.cache.clone()).model(name.repo.clone());
        if let Some(file) = &name.file {
            return repo.get(file);
        }
        let folder = repo.get(SMALL_FILES[0])?.parent()?.to_owned();
        if folder.join(WEIGHTS).exists() {
            return Some(folder);
        }
        let files = shards::files(&folder.join(INDEX)).ok()?;
        files.iter().all(|file| folder.join(file).exists()).then_some(folder)
    }

    fn odd(&self, why: &dyn std::fmt::Display) -> String {
        let why = quoted(&why.to_string(), MOST_REASON_CHARS);
        format!("{} gave an answer that no hub gives ({why}); check HF_ENDPOINT", self.endpoint)
    }

    /// What a failed request means; `file` is what was asked for, the model itself if none.
    fn explain(&self, error: &ApiError, file: Option<&str>) -> String {
        let endpoint = &self.endpoint;
        let unreachable = |why: &dyn std::fmt::Display| {
            let why = quoted(&why.to_string(), MOST_REASON_CHARS);
            format!(
                "cannot reach {endpoint} ({why}); check the network, or give a folder or a .gguf file that is here"
            )
        };
        match error {
            ApiError::RequestError(error) => match &**error {
                ureq::Error::StatusCode(404) => match file {
                    Some(file) => format!("{endpoint} has no file {file} of it (404); check the name"),
                    None => format!(
                        "{endpoint} has no such model (404), and there is no such folder here; check the name"
                    ),
                },
                ureq::Error::StatusCode(code @ (401 | 403)) => match &self.token {
                    None => format!(
                        "{endpoint} refuses access ({code}): no such model, or one that wants a token; accept its terms on its \
                         page and set HF_TOKEN"
                    ),
                    Some(_) => format!(
                        "{endpoint} refuses access ({code}) with the token given; accept the model's terms on its page, or set \
                         HF_TOKEN to one that may read it"
                    ),
                },
                ureq::Error::StatusCode(code) => {
                    format!("{endpoint} answers with status {code}; what was fetched stays, try again later")
                }
                ureq::Error::BadUri(_) | ureq::Error::Http(_) => {
                    format!(
                        "\"{}\" is no address of a hub; set HF_ENDPOINT to one like {ENDPOINT}",
                        quoted(endpoint, 80)
                    )
                }
                ureq::Error::Io(_)
                | ureq::Error::Timeout(_)
                | ureq::Error::HostNotFound
                | ureq::Error::ConnectionFailed
                | ureq::Error::Tls(_) => unreachable(error),
                other => self.odd(other),
            },
            ApiError::TooManyRetries(error) => self.explain(error, file),
            ApiError::IoError(error) => match error.kind() {
                io::ErrorKind::PermissionDenied
                | io::ErrorKind::StorageFull
                | io::ErrorKind::ReadOnlyFilesystem => {
                    format!("{}: {error}; set HF_HOME to a folder with room", self.cache.display())
                }
                _ => format!(
                    "the transfer of {} broke off ({}); run it again, it goes on where it ended",
                    file.unwrap_or("the list of files"),
                    quoted(&error.to_string(), MOST_REASON_CHARS)
                ),
            },
            ApiError::LockAcquisition(path) => format!(
                "another process is fetching it; wait for that one, or remove {} if there is none",
                path.display()
            ),
            other => self.odd(other),
        }
    }
}

/// One model being fetched.
struct Transfer<'a> {
    hub: &'a Hub,
    name: &'a Name,
    api: Api,
}

impl Transfer<'_> {
    fn fault(&self, reason: String) -> Error {
        Error::Hub { name: self.name.to_string(), reason }
    }

    fn run(&self, watch: &mut Watch<'_>) -> Result<PathBuf> {
        let info = self.guarded(None, || self.api.model(self.name.repo.clone()).info())?;
        if !is_plain(&info.sha) {
            return Err(self.fault(format!("{} names no commit; check HF_ENDPOINT", self.hub.endpoint)));
        }
        let has = |file: &str| info.siblings.iter().any(|sibling| sibling.rfilename == file);
        // One commit for all files, even if the model is changed meanwhile.
        let revision = Repo::with_revision(self.name.repo.clone(), RepoType::Model, info.sha.clone());
        let repo = self.api.repo(revision);
        let one_file = match &self.name.file {
            Some(file) => Some(file.clone()),
            None if has(WEIGHTS) || has(INDEX) => None,
            None => {
                let files: Vec<&str> = info
                    .siblings
                    .iter()
                    .map(|sibling| sibling.rfilename.as_str())
                    .filter(|file| is_gguf(file) && is_plain(file))
                    .collect();
                Some(self.only(&files)?)
            }
        };
        let path = if let Some(file) = &one_file {
            self.file(&repo, file, watch)?
        } else {
            for file in SMALL_FILES.into_iter().filter(|file| has(file)) {
                self.file(&repo, file, watch)?;
            }
            let mut path = self.file(&repo, if has(WEIGHTS) { WEIGHTS } else { INDEX }, watch)?;
            if !has(WEIGHTS) {
                for file in shards::files(&path)? {
                    self.file(&repo, &file, watch)?;
                }
            }
            path.pop();
            path
        };
        Cache::new(self.hub.cache.clone())
            .model(self.name.repo.clone())
            .create_ref(&info.sha)
            .map_err(|error| self.fault(self.hub.explain(&error.into(), None)))?;
        Ok(path)
    }

    /// The one GGUF file of a model without safetensors.
    fn only(&self, files: &[&str]) -> Result<String> {
        match files {
            [file] => Ok((*file).to_owned()),
            [] => Err(self.fault(format!(
                "it has neither {WEIGHTS} nor a GGUF file; choose a model with weights in one of these formats"
            ))),
            files => {
                let more = if files.len() > MOST_LISTED { " …" } else { "" };
                let listed = files[..files.len().min(MOST_LISTED)].join(" ");
                Err(self.fault(format!(
                    "it has {} GGUF files; name one, as in {}/{} (there are {listed}{more})",
                    files.len(),
                    self.name.repo,
                    files[0]
                )))
            }
        }
    }

    /// One file, from the cache or the hub.
    fn file(&self, repo: &ApiRepo, file: &str, watch: &mut Watch<'_>) -> Result<PathBuf> {
        let metadata = self.guarded(Some(file), || self.api.metadata(&repo.url(file)))?;
        let (etag, size) = (metadata.etag(), metadata.size() as u64);
        // Both become parts of paths; a weak tag is no worse as one.
        if !is_plain(etag.strip_prefix("W/").unwrap_or(etag)) || !is_plain(metadata.commit_hash()) {
            return Err(self.fault(format!(
                "{} names {file} by \"{}\", which no hub does; check HF_ENDPOINT",
                self.hub.endpoint,
                quoted(etag, 40)
            )));
        }
        let cached = Cache::new(self.hub.cache.clone()).model(self.name.repo.clone());
        let blob = cached.blob_path(etag);
        let pointer = cached.pointer_path(metadata.commit_hash()).join(file);
        if pointer.exists() && size_of(&pointer) == Some(size) {
            return Ok(pointer);
        }
        let part = blob.with_extension("part");
        let resumed = size_of(&part).is_some_and(|bytes| bytes > 0);
        if size_of(&part).is_some_and(|bytes| bytes > size) {
            remove(&part);
        }
        let mut outcome = self.transfer(repo, file, size, &blob, etag, watch);
        if resumed && matches!(outcome, Err(Error::Hub { .. })) && !part.exists() {
            // What lay there was not the beginning of this file, or the hub does not go on in the middle.
            outcome = self.transfer(repo, file, size, &blob, etag, watch);
        }
        outcome
    }

    fn transfer(
        &self,
        repo: &ApiRepo,
        file: &str,
        size: u64,
        blob: &Path,
        etag: &str,
        watch: &mut Watch<'_>,
    ) -> Result<PathBuf> {
        let what = format!("{}/{file}", self.name.repo);
        let progress = Counter { what: &what, done_bytes: 0, total_bytes: size, watch };
        let outcome = unwinding(|| repo.download_with_progress(file, progress));
        let path = match outcome {
            Ok(outcome) => outcome.map_err(|error| self.fault(self.hub.explain(&error, Some(file))))?,
            Err(reason) => match reason.downcast_ref::<Stop>() {
                Some(Stop::Asked) => return Err(Error::Stopped),
                Some(Stop::TooLong) => {
                    remove(&blob.with_extension("part"));
                    return Err(self.fault(format!(
                        "{file}: more than the {size} bytes that {} promised came; what came is removed, run it again",
                        self.hub.endpoint
                    )));
                }
                None => return Err(self.fault(self.hub.odd(&"malformed"))),
            },
        };
        let found = size_of(&path).unwrap_or(0);
        let fault = if found == size {
            // The hub names large files by their SHA-256.
            let is_sum = etag.len() == 64 && etag.bytes().all(|b| b.is_ascii_hexdigit());
            let damaged = is_sum && !etag.eq_ignore_ascii_case(&checksum(&path)?);
            damaged.then(|| format!("{file}: its SHA-256 is not the hub's {etag}"))
        } else {
            Some(format!("{file}: {found} bytes came, the hub promised {size}"))
        };
        match fault {
            None => Ok(path),
            Some(fault) => {
                remove(&path);
                remove(blob);
                Err(self.fault(format!("{fault}; what came is removed, run it again")))
            }
        }
    }

    /// A request whose answer may be such that the crate panics where it should refuse.
    fn guarded<T>(
        &self,
        file: Option<&str>,
        request: impl FnOnce() -> std::result::Result<T, ApiError>,
    ) -> Result<T> {
        match unwinding(request) {
            Ok(answer) => answer.map_err(|error| self.fault(self.hub.explain(&error, file))),
            Err(_) => Err(self.fault(self.hub.odd(&"malformed"))),
        }
    }
}

fn size_of(path: &Path) -> Option<u64> {
    fs::metadata(path).ok().map(|metadata| metadata.len())
}

/// What cannot be removed is found again by the next run.
fn remove(path: &Path) {
    let _ = fs::remove_file(path);
}

fn checksum(path: &Path) -> Result<String> {
    let fault = |source| Error::Read { path: path.display().to_string(), source };
    let mut file = fs::File::open(path).map_err(fault)?;
    let (mut sum, mut buffer) = (Sha256::new(), vec![0; 1 << 20]);
    loop {
        match file.read(&mut buffer).map_err(fault)? {
            0 => return Ok(format!("{:x}", sum.finalize())),
            read => sum.update(&buffer[..read]),
        }
    }
}

/// Bytes as they come.
struct Counter<'a, 'b> {
    what: &'a str,
    done_bytes: u64,
    total_bytes: u64,
    watch: &'a mut Watch<'b>,
}

impl hf_hub::api::Progress for Counter<'_, '_> {
    fn init(&mut self, _size: usize, _file: &str) {
        self.done_bytes = 0;
    }

    fn update(&mut self, bytes: usize) {
        self.done_bytes += bytes as u64;
        // The crate has no way to end a transfer; unwinding without a panic's message is the one left.
        if self.done_bytes > self.total_bytes {
            resume_unwind(Box::new(Stop::TooLong));
        }
        let progress =
            Progress { what: self.what, done_bytes: self.done_bytes, total_bytes: self.total_bytes };
        if (self.watch)(&progress).is_break() {
            resume_unwind(Box::new(Stop::Asked));
        }
    }

    fn finish(&mut self) {}
}

#[cfg(test)]
mod tests;
