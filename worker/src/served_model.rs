//! What this worker serves: files become a model in memory, its tokenizer, and what the database is told of them.
//!
//! Owns the choice of the files by the configuration. Must never compute a step. Next: `announce.rs`, `engine/`.

use std::path::Path;
use std::sync::Arc;

use claimcheck_common::config::{HubConfig, WeightsCacheConfig, WorkerConfig};
use claimcheck_common::domain::{DeviceChoice, Dtype, ModelRef, ModelSource, Order};
use claimcheck_common::store::models::NewModel;
use claimcheck_common::tokenizer::{Tokenizer, TokenizerError};
use sha2::{Digest, Sha256};
use tokio::sync::oneshot;

use crate::gpt2::{
    BLOCK, Device, DeviceError, Gpt2Config, LoadError, ModelFiles, StepModel, Weights, WeightsCache, end_tokens, hub,
};
use crate::model_memory::TooLarge;
use crate::unloadable::{Memory, Unloadable};

/// Why there is nothing to serve.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// Nobody said which model.
    #[error("no model: set CLAIMCHECK_MODEL or --model to a folder with Hugging Face files or to a name on the hub")]
    Unnamed,
    /// Its weights or its configuration.
    #[error("the model cannot be loaded")]
    Load(#[from] LoadError),
    /// There is never room for it beside the limit.
    #[error("the model `{0}` does not fit into memory: {1}")]
    TooLarge(String, TooLarge),
    /// The device to compute on.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// Its tokenizer.
    #[error("the model's tokenizer cannot be loaded")]
    Tokenizer(#[from] TokenizerError),
    /// A text could become ids that the model has no embedding for.
    #[error("the tokenizer has {tokenizer} tokens and the model {model}: they do not belong together")]
    Mismatched {
        /// Tokens of `tokenizer.json`.
        tokenizer: usize,
        /// `vocab_size` of `config.json`.
        model: usize,
    },
    /// The loading thread panicked; its message stands above in the log.
    #[error("the model could not be loaded")]
    Panicked,
}

/// A model that is ready to run.
pub struct LoadedModel {
    /// Computes the steps.
    pub model: Box<dyn StepModel>,
    /// Its own tokenizer.
    pub tokenizer: Arc<Tokenizer>,
}

/// A model that is ready to run, and what the database is to know of it.
pub struct ServedModel {
    /// What runs.
    pub loaded: LoadedModel,
    /// What is announced.
    pub announced: NewModel,
}

/// Which model, and how much of it.
#[derive(Debug, Clone)]
pub struct ModelChoice {
    /// A folder with Hugging Face files, or a name on the hub.
    pub source: String,
    /// Which revision of a hub model (`main`).
    pub revision: Option<String>,
    /// The name that requests use. The folder's or the hub's name unless set.
    pub name: Option<String>,
    /// What its matrices are kept in.
    pub dtype: Dtype,
    /// Where it is to be computed.
    pub device: DeviceChoice,
    /// In which order it may compute.
    pub order: Order,
    /// Sequences that are generated side by side.
    pub slots: u16,
    /// Most memory for keys and values, in MiB.
    pub kv_cache_mib: u32,
    /// Where a hub model comes from.
    pub hub: HubConfig,
    /// Where an earlier start may have left its weights.
    pub weights_cache: WeightsCacheConfig,
}

impl ModelChoice {
    /// One of the models that the configuration names.
    pub fn of(model: ModelSource, config: &WorkerConfig) -> Self {
        Self {
            source: model.source,
            revision: model.revision,
            name: model.name,
            dtype: config.dtype,
            device: config.device,
            order: config.order,
            slots: config.slots,
            kv_cache_mib: config.kv_cache_mib,
            hub: config.hub.clone(),
            weights_cache: config.weights_cache.clone(),
        }
    }

    /// Loads what runs, for good. Which weights they are is not looked into, for nobody is told.
    pub async fn load(self) -> Result<LoadedModel, ServeError> {
        on_a_thread(move || {
            let files = self.find()?;
            Ok(load(&self, &files, None)?.0)
        })
        .await
    }

    /// Loads what runs, for good or within the `memory` that it shares with others, and finds out which weights they are.
    pub async fn load_to_serve(self, memory: Option<Arc<Memory>>) -> Result<ServedModel, ServeError> {
        on_a_thread(move || load_to_serve(self, memory.as_ref())).await
    }

    fn find(&self) -> Result<ModelFiles, LoadError> {
        find(&self.source, self.revision.as_deref(), &self.hub)
    }
}

/// A process that is told to stop does not wait for a thread of its own.
async fn on_a_thread<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, ServeError> + Send + 'static,
) -> Result<T, ServeError> {
    let (done, outcome) = oneshot::channel();
    std::thread::spawn(move || {
        // Nobody listens any more when the process stops.
        let _ = done.send(work());
    });
    outcome.await.map_err(|_| ServeError::Panicked)?
}

/// The files of a model: those of the folder `source` if there is one, of the hub's model of that name otherwise. Blocks.
pub fn find(source: &str, revision: Option<&str>, config: &HubConfig) -> Result<ModelFiles, LoadError> {
    let folder = Path::new(source);
    if folder.exists() || !hub::is_name(source) {
        ModelFiles::open(folder)
    } else {
        hub::fetch(source, revision, config)
    }
}

fn load_to_serve(choice: ModelChoice, memory: Option<&Arc<Memory>>) -> Result<ServedModel, ServeError> {
    let files = choice.find()?;
    // Beside each other: both read the whole file.
    let (loaded, identity) = std::thread::scope(|scope| {
        let cache = WeightsCache::new(&choice.weights_cache);
        let files = &files;
        let identity = scope.spawn(move || files.identity(cache.as_ref()));
        (load(&choice, files, memory), identity.join())
    });
    let (loaded, tokenizer) = loaded?;
    let identity = identity.map_err(|_| ServeError::Panicked)??;
    let announced = NewModel {
        model: ModelRef {
            name: choice.name.unwrap_or(files.name),
            revision: identity.revision,
        },
        context_length: loaded.model.context_length() as u32,
        vocabulary_size: loaded.model.vocab_size() as u32,
        dtype: choice.dtype.to_string(),
        weights_sha256: identity.weights_sha256,
        tokenizer_sha256: hex::encode(Sha256::digest(&tokenizer)),
        tokenizer,
    };
    Ok(ServedModel { loaded, announced })
}

/// The model and the bytes of its tokenizer.
fn load(
    choice: &ModelChoice,
    files: &ModelFiles,
    memory: Option<&Arc<Memory>>,
) -> Result<(LoadedModel, Vec<u8>), ServeError> {
    let device = Device::find(choice.device, choice.dtype)?.in_order(choice.order);
    let (model, tokenizer) = std::thread::scope(|scope| {
        let tokenizer = scope.spawn(|| read_tokenizer(files));
        let model = match memory {
            None => load_model(choice, files, &device).map_err(ServeError::from),
            Some(memory) => load_unloadable(choice, files, &device, memory),
        };
        (model, tokenizer.join())
    });
    let (model, (tokenizer, bytes)) = (model?, tokenizer.map_err(|_| ServeError::Panicked)??);
    tracing::info!(%device, order = %device.order(), dtype = %choice.dtype, "the model is loaded");
    // The other way round is common: a vocabulary that is padded to a round number.
    if tokenizer.vocabulary_size() > model.vocab_size() {
        return Err(ServeError::Mismatched {
            tokenizer: tokenizer.vocabulary_size(),
            model: model.vocab_size(),
        });
    }
    let tokenizer = Arc::new(tokenizer);
    Ok((LoadedModel { model, tokenizer }, bytes))
}

fn load_model(choice: &ModelChoice, files: &ModelFiles, device: &Device) -> Result<Box<dyn StepModel>, LoadError> {
    let cache = WeightsCache::new(&choice.weights_cache);
    let weights = Weights::Files(files, cache.as_ref());
    device.load(weights, choice.dtype, &|block_bytes, context_length| {
        blocks(choice, block_bytes, context_length)
    })
}

fn load_unloadable(
    choice: &ModelChoice,
    files: &ModelFiles,
    device: &Device,
    memory: &Arc<Memory>,
) -> Result<Box<dyn StepModel>, ServeError> {
    let config = Gpt2Config::read(&files.config)?;
    let bytes = device.bytes(&config, choice.dtype, &|block_bytes, context_length| {
        blocks(choice, block_bytes, context_length)
    });
    let name = choice.name.clone().unwrap_or_else(|| files.name.clone());
    let (choice, files, device) = (choice.clone(), files.clone(), device.clone());
    // What was announced is what runs, also after a return to memory.
    let state = files.state()?;
    let load = move || {
        if files.state()? == state {
            load_model(&choice, &files, &device)
        } else {
            Err(LoadError::Malformed {
                path: files.weights.clone(),
                complaint: "it was changed while the worker served it; start the worker again".to_owned(),
            })
        }
    };
    let place = memory
        .place(bytes)
        .map_err(|error| ServeError::TooLarge(name.clone(), error))?;
    Ok(Box::new(Unloadable::load(name, place, Box::new(load))?))
}

fn read_tokenizer(files: &ModelFiles) -> Result<(Tokenizer, Vec<u8>), ServeError> {
    let bytes = std::fs::read(&files.tokenizer).map_err(|cause| LoadError::Unreadable {
        path: files.tokenizer.clone(),
        cause,
    })?;
    let tokenizer = Tokenizer::from_bytes(&bytes)?.with_end_tokens(end_tokens(&files.config)?);
    // The first text has the pattern compiled that texts are cut with, which takes longer than reading the file.
    tokenizer.encode(" ")?;
    Ok((tokenizer, bytes))
}

/// Blocks of the cache: what fits into the memory, no more than full slots need, no fewer than one full sequence needs.
fn blocks(choice: &ModelChoice, block_bytes: usize, context_length: usize) -> usize {
    let of_sequence = context_length.div_ceil(BLOCK);
    let fit = (u64::from(choice.kv_cache_mib) << 20) / block_bytes as u64;
    let all = usize::from(choice.slots) * of_sequence;
    usize::try_from(fit)
        .unwrap_or(all)
        .clamp(of_sequence, all.max(of_sequence))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gpt2::{Gpt2Config, byte_tokenizer_json, save_random};

    fn small(folder: &Path) -> ModelChoice {
        let config = Gpt2Config {
            vocab_size: 200,
            ..Gpt2Config::named("tiny").unwrap()
        };
        save_random(&config, 1, folder).unwrap();
        ModelChoice {
            source: folder.to_str().unwrap().to_owned(),
            revision: None,
            name: None,
            dtype: Dtype::default(),
            device: DeviceChoice::Cpu,
            order: Order::Fixed,
            slots: 1,
            kv_cache_mib: 1,
            hub: HubConfig::default(),
            weights_cache: WeightsCacheConfig::default(),
        }
    }

    #[tokio::test]
    async fn a_model_comes_with_the_end_tokens_of_its_configuration() {
        let folder = tempfile::tempdir().unwrap();
        let choice = small(folder.path());
        let path = folder.path().join("config.json");
        let mut config: serde_json::Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        config["eos_token_id"] = serde_json::json!([7, 9]);
        std::fs::write(&path, config.to_string()).unwrap();
        let Ok(loaded) = choice.load().await else {
            panic!("a model");
        };
        assert_eq!(loaded.tokenizer.end_tokens(), [7, 9]);
    }

    #[tokio::test]
    async fn a_tokenizer_of_another_model_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let choice = small(folder.path());
        assert!(choice.clone().load().await.is_ok());
        let larger = byte_tokenizer_json(201);
        std::fs::write(folder.path().join("tokenizer.json"), larger).unwrap();
        let Err(error) = choice.load().await else {
            panic!("a token without an embedding");
        };
        assert_eq!(
            error.to_string(),
            "the tokenizer has 201 tokens and the model 200: they do not belong together"
        );
    }

    #[test]
    fn the_cache_has_what_fits_between_one_sequence_and_full_slots() {
        let blocks = |slots, kv_cache_mib| {
            let choice = ModelChoice {
                source: String::new(),
                revision: None,
                name: None,
                dtype: Dtype::default(),
                device: DeviceChoice::Cpu,
                order: Order::Fixed,
                slots,
                kv_cache_mib,
                hub: HubConfig::default(),
                weights_cache: WeightsCacheConfig::default(),
            };
            // GPT-2 in f32: 2.25 MiB a block, 32 of them for a sequence.
            blocks(&choice, 9 << 18, 1024)
        };
        assert_eq!(blocks(32, 1024), 455);
        assert_eq!(blocks(32, 0), 32);
        assert_eq!(blocks(2, 1024), 64);
        assert_eq!(blocks(32, u32::MAX), 1024);
    }
}
