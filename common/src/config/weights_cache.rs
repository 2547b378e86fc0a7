//! Where workers keep what they worked out of weight files.

use std::path::PathBuf;

use serde::Deserialize;

use super::{ConfigError, from_env};

const DEFAULT_MIB: u32 = 4096;

/// Where weights are kept as the kernels take them, so that the next start need not work them out again.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct WeightsCacheConfig {
    /// `CLAIMCHECK_WEIGHTS_CACHE`: the folder (`claimcheck/weights` in the user's cache folder). Set and empty: nothing is kept.
    pub folder: Option<PathBuf>,
    /// `CLAIMCHECK_WEIGHTS_CACHE_MIB`: most that is kept there; what was not used for the longest time goes first (4096).
    pub most_mib: u32,
}

#[derive(Deserialize)]
struct Ours {
    weights_cache: Option<PathBuf>,
    weights_cache_mib: Option<u32>,
}

/// The user's folders, as the XDG base directory specification has them.
#[derive(Deserialize)]
struct User {
    xdg_cache_home: Option<PathBuf>,
    home: Option<PathBuf>,
}

impl User {
    fn cache(self) -> Option<PathBuf> {
        // A relative path is to be ignored, says the specification.
        let given = self.xdg_cache_home.filter(|path| path.is_absolute());
        given.or_else(|| Some(self.home?.join(".cache")).filter(|path| path.is_absolute()))
    }
}

impl WeightsCacheConfig {
    /// Reads `CLAIMCHECK_WEIGHTS_CACHE*`, and for the user's cache folder `XDG_CACHE_HOME` and `HOME`.
    pub fn from_env() -> Result<Self, ConfigError> {
        Ok(Self::new(from_env("CLAIMCHECK_")?, envy::from_env()?))
    }

    fn new(ours: Ours, user: User) -> Self {
        let folder = match ours.weights_cache {
            Some(folder) => Some(folder).filter(|folder| !folder.as_os_str().is_empty()),
            None => user.cache().map(|cache| cache.join("claimcheck/weights")),
        };
        Self {
            folder,
            most_mib: ours.weights_cache_mib.unwrap_or(DEFAULT_MIB),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder(given: Option<&str>, xdg: Option<&str>, home: Option<&str>) -> Option<String> {
        let path = |text: Option<&str>| text.map(PathBuf::from);
        let ours = Ours {
            weights_cache: path(given),
            weights_cache_mib: None,
        };
        let user = User {
            xdg_cache_home: path(xdg),
            home: path(home),
        };
        let folder = WeightsCacheConfig::new(ours, user).folder;
        folder.map(|folder| folder.display().to_string())
    }

    #[test]
    fn the_folder_is_the_one_given_else_in_the_users_cache_and_none_where_it_is_empty() {
        let user = Some("/home/us/.cache/claimcheck/weights".to_owned());
        assert_eq!(folder(None, None, Some("/home/us")), user);
        assert_eq!(folder(None, Some("not/absolute"), Some("/home/us")), user);
        let xdg = folder(None, Some("/cache"), Some("/home/us"));
        assert_eq!(xdg.unwrap(), "/cache/claimcheck/weights");
        assert_eq!(folder(Some("here"), Some("/cache"), None).unwrap(), "here");
        assert_eq!(folder(Some(""), Some("/cache"), None), None);
        assert_eq!(folder(None, None, None), None);
    }
}
