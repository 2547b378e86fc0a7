//! Where a model's files are, and what can be wrong with them.

use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use super::WeightsCache;
use super::weights_cache::{sha256, state};

/// A model that cannot be loaded. Names the file, and the tensor where there is one.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The file is not there or cannot be read.
    #[error("{}: {cause}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What the system said.
        cause: std::io::Error,
    },
    /// The file is there and is not what it should be.
    #[error("{}: {complaint}", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        complaint: String,
    },
    /// A tensor is missing or not what the configuration says.
    #[error("{}: tensor `{tensor}` {complaint}", path.display())]
    Tensor {
        /// The file.
        path: PathBuf,
        /// The tensor's name in it.
        tensor: String,
        /// What is wrong.
        complaint: String,
    },
    /// The device did not compute a first step with it.
    #[error("the device does not run this model: {0}")]
    Device(String),
    /// The hub did not give the file.
    #[error("{model} at revision {revision}: {complaint}")]
    Hub {
        /// The model's name on the hub.
        model: String,
        /// The revision that was asked for.
        revision: String,
        /// What is wrong.
        complaint: String,
    },
}

/// The three files of a model and what it is called.
#[derive(Debug, Clone)]
pub struct ModelFiles {
    /// The name that requests use.
    pub name: String,
    /// The hub's commit, if they come from there.
    pub commit: Option<String>,
    /// `config.json`
    pub config: PathBuf,
    /// `model.safetensors`
    pub weights: PathBuf,
    /// `tokenizer.json`
    pub tokenizer: PathBuf,
}

/// What tells a model's weights from all others.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// The hub's commit, or a digest of the folder's weights and configuration.
    pub revision: String,
    /// SHA-256 of the weights in hexadecimal.
    pub weights_sha256: String,
}

impl ModelFiles {
    /// The model in a folder, under the folder's name.
    pub fn open(folder: &Path) -> Result<Self, LoadError> {
        let file = |name: &str| {
            let path = folder.join(name);
            match std::fs::metadata(&path) {
                Ok(_) => Ok(path),
                Err(cause) => Err(LoadError::Unreadable { path, cause }),
            }
        };
        let (config, weights, tokenizer) = (
            file("config.json")?,
            file("model.safetensors")?,
            file("tokenizer.json")?,
        );
        let name = folder.canonicalize().unwrap_or_else(|_| folder.to_owned());
        let name = name
            .file_name()
            .map_or_else(|| "model".to_owned(), |name| name.to_string_lossy().into_owned());
        Ok(Self {
            name,
            commit: None,
            config,
            weights,
            tokenizer,
        })
    }

    /// What the system says of configuration and weights: another text where they may be others now.
    pub fn state(&self) -> Result<String, LoadError> {
        let state = |path: &PathBuf| match std::fs::metadata(path) {
            Ok(metadata) => Ok(state(&metadata)),
            Err(cause) => Err(LoadError::Unreadable {
                path: path.clone(),
                cause,
            }),
        };
        Ok(format!("{} {}", state(&self.config)?, state(&self.weights)?))
    }

    /// Which weights these are; reads all of them unless the cache knows.
    pub fn identity(&self, cache: Option<&WeightsCache>) -> Result<Identity, LoadError> {
        let digest = cache.map_or_else(|| sha256(&self.weights), |cache| cache.digest(&self.weights));
        let weights_sha256 = digest.map_err(|cause| LoadError::Unreadable {
            path: self.weights.clone(),
            cause,
        })?;
        let revision = if let Some(commit) = &self.commit {
            commit.clone()
        } else {
            let digest = Sha256::new()
                .chain_update(read(&self.config)?)
                .chain_update(&weights_sha256)
                .finalize();
            hex::encode(&digest[..8])
        };
        Ok(Identity {
            revision,
            weights_sha256,
        })
    }
}

pub(super) fn read(path: &Path) -> Result<Vec<u8>, LoadError> {
    std::fs::read(path).map_err(|cause| LoadError::Unreadable {
        path: path.to_owned(),
        cause,
    })
}
