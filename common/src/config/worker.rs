//! What a worker serves, with how much of the machine.

use std::collections::HashSet;
use std::net::SocketAddr;
use std::time::Duration;

use serde::Deserialize;

use super::{ConfigError, HubConfig, WeightsCacheConfig, default_drain, from_env};
use crate::domain::{DeviceChoice, Dtype, ModelSource, Order};

/// What the worker process alone needs.
#[derive(Debug, Clone, Deserialize)]
pub struct WorkerConfig {
    /// `CLAIMCHECK_WORKER_HTTP_ADDR`: where health and metrics are served (127.0.0.1:9091).
    #[serde(default = "default_worker_http_addr")]
    pub worker_http_addr: SocketAddr,
    /// `CLAIMCHECK_MODEL`: what to serve, one or several with commas between them, each a folder with Hugging Face files or a name
    /// on the hub, written `[NAME=]SOURCE[@REVISION]`.
    #[serde(default, rename = "model")]
    pub models: Vec<ModelSource>,
    /// `CLAIMCHECK_MODEL_NAME`: the name of a single model, if it has none yet.
    #[serde(default)]
    pub model_name: Option<String>,
    /// `CLAIMCHECK_MODEL_REVISION`: the revision of a single hub model, if it has none yet.
    #[serde(default)]
    pub model_revision: Option<String>,
    /// `CLAIMCHECK_DTYPE`: what weight matrices are kept in: `f32` (default), `bf16`, `int8`.
    #[serde(default)]
    pub dtype: Dtype,
    /// `CLAIMCHECK_DEVICE`: where to compute: `auto` (default), `cpu`, `cuda`, `cuda:N`, `vulkan`.
    #[serde(default)]
    pub device: DeviceChoice,
    /// `CLAIMCHECK_ORDER`: `fixed` (default), so that a job's output does not depend on its company, or `fast`.
    #[serde(default)]
    pub order: Order,
    /// Where hub models come from.
    #[serde(skip)]
    pub hub: HubConfig,
    /// Where weights are kept as the kernels take them.
    #[serde(skip)]
    pub weights_cache: WeightsCacheConfig,
    /// `CLAIMCHECK_SLOTS`: sequences of a model that are generated side by side (32).
    #[serde(default = "default_slots")]
    pub slots: u16,
    /// `CLAIMCHECK_KV_CACHE_MIB`: most memory for keys and values of a model (1024). It is taken as sequences grow into it; beyond it they
    /// make room for each other. Never less than one sequence of full length needs, nor more than all slots can use.
    #[serde(default = "default_kv_cache_mib")]
    pub kv_cache_mib: u32,
    /// `CLAIMCHECK_MODEL_MEMORY_MIB`: most memory for all models together, weights and the most that keys and values may take. Models
    /// without work leave it for others, the least recently used first. Unset: all stay.
    #[serde(default)]
    pub model_memory_mib: Option<u32>,
    /// `CLAIMCHECK_STEP_LIMIT`: a step of the model that takes longer hangs, and the worker ends (1 min).
    #[serde(default = "default_step_limit", with = "humantime_serde")]
    pub step_limit: Duration,
    /// `CLAIMCHECK_DRAIN`: how long running jobs may go on after a stop signal (20 s).
    #[serde(default = "default_drain", with = "humantime_serde")]
    pub drain: Duration,
}

impl WorkerConfig {
    /// Reads `CLAIMCHECK_*`, and for the hub `HF_*`.
    pub fn from_env() -> Result<Self, ConfigError> {
        let config: Self = from_env("CLAIMCHECK_")?;
        if config.slots == 0 {
            return Err(ConfigError::Invalid("CLAIMCHECK_SLOTS must be at least 1".to_owned()));
        }
        let given = |value: Option<String>| value.filter(|text| !text.is_empty());
        Ok(Self {
            hub: HubConfig::from_env()?,
            weights_cache: WeightsCacheConfig::from_env()?,
            model_name: given(config.model_name),
            model_revision: given(config.model_revision),
            ..config
        })
    }

    /// The models to serve, each under a name of its own.
    pub fn sources(&self) -> Result<Vec<ModelSource>, ConfigError> {
        let mut sources = self.models.clone();
        match sources.as_mut_slice() {
            [only] => {
                only.name = only.name.take().or_else(|| self.model_name.clone());
                only.revision = only.revision.take().or_else(|| self.model_revision.clone());
            }
            [_, _, ..] if self.model_name.is_some() || self.model_revision.is_some() => {
                return Err(ConfigError::Invalid(
                    "the name and the revision of several models stand beside each: NAME=SOURCE@REVISION, instead of \
                     CLAIMCHECK_MODEL_NAME and CLAIMCHECK_MODEL_REVISION"
                        .to_owned(),
                ));
            }
            _ => {}
        }
        let mut labels = HashSet::new();
        if let Some(twice) = sources.iter().find(|source| !labels.insert(source.label())) {
            let label = twice.label();
            return Err(ConfigError::Invalid(format!(
                "two models are called {label}: give one another name, NAME={label}"
            )));
        }
        Ok(sources)
    }
}

fn default_worker_http_addr() -> SocketAddr {
    ([127, 0, 0, 1], 9091).into()
}

const fn default_slots() -> u16 {
    32
}

const fn default_kv_cache_mib() -> u32 {
    1024
}

const fn default_step_limit() -> Duration {
    Duration::from_mins(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(variables: &[(&str, &str)]) -> Result<WorkerConfig, ConfigError> {
        let variables = variables
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        Ok(envy::prefixed("CLAIMCHECK_").from_iter(variables)?)
    }

    fn sources(variables: &[(&str, &str)]) -> Result<Vec<String>, String> {
        let sources = config(variables).and_then(|config| config.sources());
        sources
            .map(|sources| sources.iter().map(ToString::to_string).collect())
            .map_err(|error| error.to_string())
    }

    #[test]
    fn a_single_model_takes_its_name_and_revision_from_variables_of_their_own_too() {
        let one = [
            ("CLAIMCHECK_MODEL", "openai-community/gpt2"),
            ("CLAIMCHECK_MODEL_NAME", "gpt2"),
            ("CLAIMCHECK_MODEL_REVISION", "main"),
        ];
        assert_eq!(sources(&one).unwrap(), ["gpt2=openai-community/gpt2@main"]);
        assert_eq!(sources(&[]).unwrap(), [""; 0]);
    }

    #[test]
    fn several_models_stand_with_commas_between_them_each_under_a_name_of_its_own() {
        let both = ("CLAIMCHECK_MODEL", "small=gpt2,./tiny");
        assert_eq!(sources(&[both]).unwrap(), ["small=gpt2", "./tiny"]);
        let complaint = sources(&[both, ("CLAIMCHECK_MODEL_NAME", "gpt2")]).unwrap_err();
        assert!(complaint.contains("NAME=SOURCE@REVISION"), "{complaint}");
        let complaint = sources(&[("CLAIMCHECK_MODEL", "gpt2,gpt2@main")]).unwrap_err();
        assert!(complaint.contains("two models are called gpt2"), "{complaint}");
    }
}
