//! Where a model's files are, and what can be wrong with them.

use std::path::{Path, PathBuf};

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
        let revision = digest(&[&config, &weights])?;
        let name = folder.canonicalize().unwrap_or_else(|_| folder.to_owned());
        let name = name
            .file_name()
            .map_or_else(|| "model".to_owned(), |name| name.to_string_lossy().into_owned());
        Ok(Self {
            name,
            revision,
            config,
            weights,
            tokenizer,
        })
    }
}

pub(super) fn read(path: &Path) -> Result<Vec<u8>, LoadError> {
    std::fs::read(path).map_err(|cause| LoadError::Unreadable {
        path: path.to_owned(),
        cause,
    })
}

/// The first 16 hexadecimal digits of SHA-256 over the files.
fn digest(paths: &[&Path]) -> Result<String, LoadError> {
    use sha2::{Digest, Sha256};
    let mut hasher = Sha256::new();
    for path in paths {
        let unreadable = |cause| LoadError::Unreadable {
            path: (*path).to_owned(),
            cause,
        };
        let mut file = std::fs::File::open(path).map_err(unreadable)?;
        std::io::copy(&mut file, &mut hasher).map_err(unreadable)?;
    }
    Ok(hex::encode(&hasher.finalize()[..8]))
}
