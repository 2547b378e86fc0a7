//! Models from the hub, into and out of the cache that every Hugging Face tool shares.
//!
//! One commit is resolved first, then the three files are taken of that commit: never a mixture of two. Blocks, so it is
//! called on a thread that may.

use std::path::{Path, PathBuf};

use claimcheck_common::config::HubConfig;
use hf_hub::api::sync::{Api, ApiBuilder, ApiError, ApiRepo};
use hf_hub::{Cache, Repo, RepoType};

use super::{LoadError, ModelFiles};

const FILES: [&str; 3] = ["config.json", "model.safetensors", "tokenizer.json"];
const DEFAULT_REVISION: &str = "main";

/// Whether a text can be a model's name on the hub: `name` or `owner/name`.
pub fn is_name(text: &str) -> bool {
    let part = |part: &str| {
        part.starts_with(|first: char| first.is_ascii_alphanumeric())
            && part
                .chars()
                .all(|one| one.is_ascii_alphanumeric() || "-_.".contains(one))
    };
    text.split('/').count() <= 2 && text.split('/').all(part)
}

/// The files of a model on the hub, downloaded unless the cache has them. Offline, and while the hub is out of reach,
/// the cache alone answers. They say which commit was found.
pub fn fetch(name: &str, revision: Option<&str>, config: &HubConfig) -> Result<ModelFiles, LoadError> {
    let asked = Asked {
        name,
        revision: revision.unwrap_or(DEFAULT_REVISION),
        cache: config
            .home
            .as_ref()
            .map_or_else(Cache::default, |home| Cache::new(home.join("hub"))),
    };
    if config.offline {
        return asked
            .cached()
            .ok_or_else(|| asked.error("it is not in the cache, and HF_HUB_OFFLINE is set"));
    }
    match asked.download(config.endpoint.as_deref()) {
        Err(Failure::Unreachable(complaint)) => match asked.cached() {
            Some(files) => {
                tracing::warn!(
                    model = name,
                    complaint,
                    "the hub cannot be reached, the cached model is taken"
                );
                Ok(files)
            }
            None => Err(asked.error(complaint)),
        },
        Err(Failure::Refused(complaint)) => Err(asked.error(complaint)),
        Ok(files) => Ok(files),
    }
}

enum Failure {
    /// The hub did not answer, or will not now.
    Unreachable(String),
    /// It did, but not with the files.
    Refused(String),
}

struct Asked<'a> {
    name: &'a str,
    revision: &'a str,
    cache: Cache,
}

impl Asked<'_> {
    fn error(&self, complaint: impl Into<String>) -> LoadError {
        LoadError::Hub {
            model: self.name.to_owned(),
            revision: self.revision.to_owned(),
            complaint: complaint.into(),
        }
    }

    fn repo(&self, revision: &str) -> Repo {
        Repo::with_revision(self.name.to_owned(), RepoType::Model, revision.to_owned())
    }

    /// Where the cache has the files of a commit, whoever put them there and whatever refers to it.
    fn snapshot(&self, commit: &str) -> PathBuf {
        self.cache.repo(self.repo(commit)).pointer_path(commit)
    }

    /// What an earlier download left, if it is whole.
    fn cached(&self) -> Option<ModelFiles> {
        let repo = self.cache.repo(self.repo(self.revision));
        let config = repo.get(FILES[0]).or_else(|| {
            // Asked for by its commit, which no reference has to name.
            Some(self.snapshot(self.revision).join(FILES[0])).filter(|path| path.exists())
        })?;
        let folder = config.parent()?;
        let paths = FILES.map(|file| folder.join(file));
        let commit = folder.file_name()?.to_string_lossy();
        paths
            .iter()
            .all(|path| path.exists())
            .then(|| self.files(&commit, paths.clone()))
    }

    fn download(&self, endpoint: Option<&str>) -> Result<ModelFiles, Failure> {
        let mut builder = ApiBuilder::from_cache(self.cache.clone()).with_progress(false);
        if let Some(endpoint) = endpoint {
            builder = builder.with_endpoint(endpoint.trim_end_matches('/').to_owned());
        }
        let api = builder.build().map_err(|error| failure(FILES[0], &error))?;
        let named = api.repo(self.repo(self.revision));
        let metadata = api
            .metadata(&named.url(FILES[0]))
            .map_err(|error| failure(FILES[0], &error))?;
        let commit = metadata.commit_hash();
        let of_commit = api.repo(self.repo(commit));
        let paths = FILES.map(|file| self.snapshot(commit).join(file));
        let mut all_known = true;
        for (file, path) in FILES.iter().zip(&paths) {
            if !path.exists() {
                all_known = false;
                download_file(&api, &of_commit, file)?;
            }
        }
        match self.refer(commit) {
            // A cache that is only to be read, filled by somebody else.
            Err(error) if all_known => tracing::debug!(%error, "the cache does not keep which commit this revision is"),
            Err(error) => return Err(Failure::Refused(format!("the cache cannot be written: {error}"))),
            Ok(()) => {}
        }
        Ok(self.files(commit, paths))
    }

    /// Notes in the cache which commit the revision is, unless that stands there.
    fn refer(&self, commit: &str) -> std::io::Result<()> {
        let repo = self.cache.repo(self.repo(self.revision));
        if repo.get(FILES[0]) == Some(self.snapshot(commit).join(FILES[0])) {
            return Ok(());
        }
        repo.create_ref(commit)
    }

    fn files(&self, commit: &str, [config, weights, tokenizer]: [PathBuf; 3]) -> ModelFiles {
        ModelFiles {
            name: self.name.to_owned(),
            commit: Some(commit.to_owned()),
            config,
            weights,
            tokenizer,
        }
    }
}

/// Downloads a file into the cache, and takes it out again if it is not of the size that the hub announced.
fn download_file(api: &Api, repo: &ApiRepo, file: &str) -> Result<(), Failure> {
    let failed = |error: ApiError| failure(file, &error);
    let wanted = api.metadata(&repo.url(file)).map_err(failed)?.size() as u64;
    let path = repo.download(file).map_err(failed)?;
    let unreadable = |error: std::io::Error| Failure::Refused(format!("{file}: {error}"));
    let size = std::fs::metadata(&path).map_err(unreadable)?.len();
    if size != wanted {
        remove(&path).map_err(unreadable)?;
        return Err(Failure::Refused(format!(
            "{file}: {size} bytes came, {wanted} were announced"
        )));
    }
    Ok(())
}

/// Removes a file of the cache and what it links to.
fn remove(path: &Path) -> std::io::Result<()> {
    let content = path.canonicalize()?;
    std::fs::remove_file(path)?;
    match std::fs::remove_file(content) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// What an error of the client means.
fn failure(file: &str, error: &ApiError) -> Failure {
    if let ApiError::RequestError(request) = error {
        return match request.as_ref() {
            ureq::Error::StatusCode(code @ (401 | 403 | 404)) => {
                Failure::Refused(format!("the hub has no `{file}` of it for us (status {code})"))
            }
            // Too slow, or too many at a time: the next try may be answered.
            ureq::Error::StatusCode(code) if *code < 500 && ![408, 429].contains(code) => {
                Failure::Refused(format!("{file}: status {code}"))
            }
            _ => Failure::Unreachable(format!("{file}: {request}")),
        };
    }
    Failure::Refused(format!("{file}: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_no_name_on_the_hub() {
        for name in ["gpt2", "openai-community/gpt2", "a/b.c_d-1"] {
            assert!(is_name(name), "{name}");
        }
        for path in [
            "",
            "/models/gpt2",
            "./gpt2",
            "../gpt2",
            "a/b/c",
            "a/",
            "a b",
            "~/x",
            "a/../b",
        ] {
            assert!(!is_name(path), "{path}");
        }
    }
}
