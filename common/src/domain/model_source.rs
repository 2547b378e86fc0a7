//! Which model a worker is to serve, as an operator writes it.

use std::fmt;
use std::str::FromStr;

use serde::Deserialize;

/// A model to serve, written `[NAME=]SOURCE[@REVISION]`.
///
/// `SOURCE` is a folder with Hugging Face files or a name on the hub (`gpt2`, `openai-community/gpt2`). Only a name on the hub can
/// be followed by a revision: a folder may have an `@` in its path.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct ModelSource {
    /// A folder, or a name on the hub.
    pub source: String,
    /// The name that requests use. The folder's or the hub's name unless set.
    pub name: Option<String>,
    /// Which revision of a hub model (`main`).
    pub revision: Option<String>,
}

impl ModelSource {
    /// What it is called before its files are found: its name, else where it comes from.
    pub fn label(&self) -> &str {
        self.name.as_deref().unwrap_or(&self.source)
    }
}

impl fmt::Display for ModelSource {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(name) = &self.name {
            write!(formatter, "{name}=")?;
        }
        formatter.write_str(&self.source)?;
        match &self.revision {
            Some(revision) => write!(formatter, "@{revision}"),
            None => Ok(()),
        }
    }
}

impl FromStr for ModelSource {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (name, source) = match text.trim().split_once('=') {
            Some((name, source)) => (Some(name.trim().to_owned()), source.trim()),
            None => (None, text.trim()),
        };
        let (source, revision) = match source.split_once('@') {
            Some((hub, revision)) if is_on_hub(hub) => (hub, Some(revision.to_owned())),
            _ => (source, None),
        };
        let empty = |part: &Option<String>| part.as_deref().is_some_and(str::is_empty);
        if source.is_empty() || empty(&name) || empty(&revision) {
            return Err(format!(
                "`{text}` names no model: write [NAME=]SOURCE[@REVISION], where SOURCE is a folder or a name on the hub"
            ));
        }
        Ok(Self {
            source: source.to_owned(),
            name,
            revision,
        })
    }
}

impl TryFrom<String> for ModelSource {
    type Error = String;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

/// `model` or `owner/model`.
fn is_on_hub(source: &str) -> bool {
    !source.starts_with(['.', '/', '~']) && source.matches('/').count() < 2
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_source_reads_as_it_is_written() {
        let source = |source: &str, name: Option<&str>, revision: Option<&str>| ModelSource {
            source: source.to_owned(),
            name: name.map(str::to_owned),
            revision: revision.map(str::to_owned),
        };
        for (text, wanted) in [
            ("gpt2", source("gpt2", None, None)),
            ("gpt2@main", source("gpt2", None, Some("main"))),
            (
                "a=openai-community/gpt2@refs/pr/1",
                source("openai-community/gpt2", Some("a"), Some("refs/pr/1")),
            ),
            (
                "tiny=/srv/us@home/tiny",
                source("/srv/us@home/tiny", Some("tiny"), None),
            ),
            ("./tiny@2", source("./tiny@2", None, None)),
        ] {
            assert_eq!(text.parse(), Ok(wanted.clone()));
            assert_eq!(wanted.to_string(), text);
        }
    }

    #[test]
    fn what_names_no_model_says_how_to_write_one() {
        for text in ["", "=gpt2", "a=", "gpt2@", " "] {
            let complaint = text.parse::<ModelSource>().unwrap_err();
            assert!(complaint.contains("[NAME=]SOURCE[@REVISION]"), "{complaint}");
        }
    }
}
