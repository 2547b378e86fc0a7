//! Who the caller is, from one run to the next: a file that its owner alone can read.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::failure::Failure;

/// What `login` leaves behind.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Credentials {
    /// Where the service is.
    pub(crate) url: String,
    /// Whose they are, where a user logged in.
    #[serde(default)]
    pub(crate) username: Option<String>,
    /// An API key, or an access token.
    pub(crate) secret: String,
    /// Makes a new access token when the old one has expired.
    #[serde(default)]
    pub(crate) refresh_token: Option<String>,
}

impl Credentials {
    /// Those of an earlier `login`, if there was one.
    pub(crate) fn read(path: &Path) -> Result<Option<Self>, Failure> {
        match fs::read(path) {
            Ok(bytes) => serde_json::from_slice(&bytes)
                .map(Some)
                .map_err(|error| Failure::file(path, format!("is no credentials file ({error}); log in again"))),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(Failure::file(path, error)),
        }
    }

    /// Keeps them, readable for their owner alone. Whoever reads meanwhile finds the old ones or the new ones.
    pub(crate) fn write(&self, path: &Path) -> Result<(), Failure> {
        let failed = |error: std::io::Error| Failure::file(path, error);
        if let Some(folder) = path.parent() {
            let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(folder);
            made.map_err(failed)?;
        }
        let new = path.with_extension("new");
        let _left_over = fs::remove_file(&new);
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&new)
            .map_err(failed)?;
        let text = serde_json::to_string_pretty(self)?;
        file.write_all(text.as_bytes())
            .and_then(|()| file.sync_all())
            .map_err(failed)?;
        fs::rename(&new, path).map_err(failed)
    }

    /// Forgets them. Answers whether there were any.
    pub(crate) fn remove(path: &Path) -> Result<bool, Failure> {
        match fs::remove_file(path) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(Failure::file(path, error)),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn credentials_read_back_and_only_their_owner_may_read_them() {
        let folder = std::env::temp_dir().join(format!("claimcheck-{}", uuid::Uuid::now_v7()));
        let path = folder.join("deep/credentials.json");
        assert_eq!(Credentials::read(&path).unwrap(), None);
        let kept = Credentials {
            url: "http://127.0.0.1:8080".to_owned(),
            secret: "cck_secret".to_owned(),
            ..Credentials::default()
        };
        for _ in 0..2 {
            kept.write(&path).unwrap();
        }
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(&path), mode(path.parent().unwrap())), (0o600, 0o700));
        assert_eq!(Credentials::read(&path).unwrap(), Some(kept));
        assert!(Credentials::remove(&path).unwrap() && !Credentials::remove(&path).unwrap());
        fs::remove_dir_all(folder).unwrap();
    }
}
