//! Where a model's files are, and what can be wrong with them.

use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

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
    /// Which weights: a hub commit, or a digest of the folder's files.
    pub revision: String,
    /// `config.json`
    pub config: PathBuf,
    /// `model.safetensors`
    pub weights: PathBuf,
    /// SHA-256 of the weights in hexadecimal, if it was computed on the way.
    pub weights_sha256: Option<String>,
    /// `tokenizer.json`
    pub tokenizer: PathBuf,
}

impl ModelFiles {
    /// The model in a folder. Its name is the folder's, its revision a digest of its weights and configuration.
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
        let weights_sha256 = sha256(&weights)?;
        let revision = Sha256::new()
            .chain_update(read(&config)?)
            .chain_update(&weights_sha256)
            .finalize();
        let name = folder.canonicalize().unwrap_or_else(|_| folder.to_owned());
        let name = name
            .file_name()
            .map_or_else(|| "model".to_owned(), |name| name.to_string_lossy().into_owned());
        Ok(Self {
            name,
            revision: hex::encode(&revision[..8]),
            config,
            weights,
            weights_sha256: Some(weights_sha256),
            tokenizer,
        })
    }

    /// SHA-256 of the weights in hexadecimal; reads the whole file unless it is known.
    pub fn weights_sha256(&self) -> Result<String, LoadError> {
        self.weights_sha256.clone().map_or_else(|| sha256(&self.weights), Ok)
    }
}

pub(super) fn read(path: &Path) -> Result<Vec<u8>, LoadError> {
    std::fs::read(path).map_err(|cause| LoadError::Unreadable {
        path: path.to_owned(),
        cause,
    })
}

fn sha256(path: &Path) -> Result<String, LoadError> {
    let mut hasher = Sha256::new();
    let copied = std::fs::File::open(path).and_then(|mut file| std::io::copy(&mut file, &mut hasher));
    copied.map_err(|cause| LoadError::Unreadable {
        path: path.to_owned(),
        cause,
    })?;
    Ok(hex::encode(hasher.finalize()))
}
