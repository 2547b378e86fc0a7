//! From Hugging Face files to a model. The header is checked against the configuration before any weight is read.
//!
//! GPT-2's `Conv1D` stores `[in, out]`, which is the order the model multiplies in: nothing is transposed but the tied head.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::ops::Range;
use std::path::{Path, PathBuf};

use claimcheck_common::domain::Dtype;
use safetensors::Dtype as FileDtype;
use safetensors::tensor::Metadata;

use super::files::read;
use super::model::{Block, Linear, Norm};
use super::{Gpt2, Gpt2Backend, Gpt2Config, LoadError, ModelFiles};

/// A header is some hundred bytes a tensor.
const LONGEST_HEADER: u64 = 16 << 20;

impl Gpt2Config {
    /// Reads and checks `config.json`.
    pub fn read(path: &Path) -> Result<Self, LoadError> {
        let malformed = |complaint| LoadError::Malformed {
            path: path.to_owned(),
            complaint,
        };
        let config: Self = serde_json::from_slice(&read(path)?).map_err(|error| malformed(error.to_string()))?;
        match config.complaint() {
            Some(complaint) => Err(malformed(complaint)),
            None => Ok(config),
        }
    }
}

impl<B: Gpt2Backend> Gpt2<B> {
    /// Loads the model in `files`, its matrices as `dtype`.
    pub fn load(files: &ModelFiles, dtype: Dtype, device: &B::Device) -> Result<Self, LoadError> {
        let config = Gpt2Config::read(&files.config)?;
        let mut weights = WeightFile::open(&files.weights)?;
        weights.check(&config)?;
        assemble(config, dtype, device, &mut |name, shape, rows| {
            weights.read(name, shape, rows)
        })
    }
}

/// Every tensor of a model with its shape, in the order of the forward pass.
pub(super) fn tensors(config: &Gpt2Config) -> Vec<(String, Vec<usize>)> {
    let (width, inner) = (config.n_embd, config.inner());
    let mut all = vec![
        ("wte.weight".to_owned(), vec![config.vocab_size, width]),
        ("wpe.weight".to_owned(), vec![config.n_positions, width]),
    ];
    for layer in 0..config.n_layer {
        let block: [(&str, Vec<usize>); 12] = [
            ("ln_1.weight", vec![width]),
            ("ln_1.bias", vec![width]),
            ("attn.c_attn.weight", vec![width, 3 * width]),
            ("attn.c_attn.bias", vec![3 * width]),
            ("attn.c_proj.weight", vec![width, width]),
            ("attn.c_proj.bias", vec![width]),
            ("ln_2.weight", vec![width]),
            ("ln_2.bias", vec![width]),
            ("mlp.c_fc.weight", vec![width, inner]),
            ("mlp.c_fc.bias", vec![inner]),
            ("mlp.c_proj.weight", vec![inner, width]),
            ("mlp.c_proj.bias", vec![width]),
        ];
        all.extend(
            block
                .into_iter()
                .map(|(name, shape)| (format!("h.{layer}.{name}"), shape)),
        );
    }
    all.extend([
        ("ln_f.weight".to_owned(), vec![width]),
        ("ln_f.bias".to_owned(), vec![width]),
    ]);
    if !config.tie_word_embeddings {
        all.push(("lm_head.weight".to_owned(), vec![config.vocab_size, width]));
    }
    all
}

/// Gives some rows of the tensor of that name and shape, one run of rows after the other and each once.
pub(super) type ReadTensor<'a, E> = dyn FnMut(&str, &[usize], Range<usize>) -> Result<Vec<f32>, E> + 'a;

/// Builds a model from a source of tensors: a file, or a random generator.
pub(super) fn assemble<B: Gpt2Backend, E>(
    config: Gpt2Config,
    dtype: Dtype,
    device: &B::Device,
    read: &mut ReadTensor<'_, E>,
) -> Result<Gpt2<B>, E> {
    let (width, inner, vocab) = (config.n_embd, config.inner(), config.vocab_size);
    let mut source = Source { read, dtype, device };
    let tokens = source.transposed("wte.weight", [width, vocab])?;
    let positions = source.floats("wpe.weight", [config.n_positions, width])?;
    let mut blocks = Vec::with_capacity(config.n_layer);
    for layer in 0..config.n_layer {
        let name = |part: &str| format!("h.{layer}.{part}");
        blocks.push(Block {
            attention_norm: source.norm(&name("ln_1"), width)?,
            qkv: source.linear(&name("attn.c_attn"), [width, 3 * width])?,
            attention_out: source.linear(&name("attn.c_proj"), [width, width])?,
            feed_forward_norm: source.norm(&name("ln_2"), width)?,
            up: source.linear(&name("mlp.c_fc"), [width, inner])?,
            down: source.linear(&name("mlp.c_proj"), [inner, width])?,
        });
    }
    let last_norm = source.norm("ln_f", width)?;
    let head = if config.tie_word_embeddings {
        None
    } else {
        Some(source.transposed("lm_head.weight", [width, vocab])?)
    };
    Ok(Gpt2 {
        config,
        dtype,
        tokens,
        positions,
        blocks,
        last_norm,
        head,
        device: device.clone(),
    })
}

struct Source<'a, 'r, B: Gpt2Backend, E> {
    read: &'a mut ReadTensor<'r, E>,
    dtype: Dtype,
    device: &'a B::Device,
}

impl<B: Gpt2Backend, E> Source<'_, '_, B, E> {
    fn floats(&mut self, name: &str, shape: [usize; 2]) -> Result<B::Floats, E> {
        Ok(B::floats((self.read)(name, &shape, 0..shape[0])?, shape, self.device))
    }

    fn vector(&mut self, name: &str, width: usize) -> Result<B::Vector, E> {
        Ok(B::vector((self.read)(name, &[width], 0..width)?, self.device))
    }

    /// The matrix `[in, out]` that is stored the other way round.
    fn transposed(&mut self, name: &str, [inputs, outputs]: [usize; 2]) -> Result<B::Matrix, E> {
        B::pack_transposed([inputs, outputs], self.dtype, self.device, &mut |rows| {
            (self.read)(name, &[outputs, inputs], rows)
        })
    }

    fn norm(&mut self, name: &str, width: usize) -> Result<Norm<B>, E> {
        Ok(Norm {
            gamma: self.vector(&format!("{name}.weight"), width)?,
            beta: self.vector(&format!("{name}.bias"), width)?,
        })
    }

    fn linear(&mut self, name: &str, shape: [usize; 2]) -> Result<Linear<B>, E> {
        Ok(Linear {
            weight: B::pack(self.floats(&format!("{name}.weight"), shape)?, self.dtype),
            bias: self.vector(&format!("{name}.bias"), shape[1])?,
        })
    }
}

/// An open `model.safetensors` whose header was read.
struct WeightFile {
    path: PathBuf,
    file: File,
    header: Metadata,
    /// Where the tensors begin.
    start: u64,
    /// `transformer.` or nothing.
    prefix: &'static str,
}

impl WeightFile {
    fn open(path: &Path) -> Result<Self, LoadError> {
        let unreadable = |cause| LoadError::Unreadable {
            path: path.to_owned(),
            cause,
        };
        let malformed = |complaint: String| LoadError::Malformed {
            path: path.to_owned(),
            complaint,
        };
        let mut file = File::open(path).map_err(unreadable)?;
        let len = file.metadata().map_err(unreadable)?.len();
        let mut size = [0; 8];
        file.read_exact(&mut size)
            .map_err(|_| malformed("is no safetensors file: it has no header".to_owned()))?;
        let size = u64::from_le_bytes(size);
        if size > LONGEST_HEADER || size + 8 > len {
            return Err(malformed(format!(
                "is no safetensors file: its header would have {size} bytes"
            )));
        }
        let mut header = vec![0; size as usize];
        file.read_exact(&mut header).map_err(unreadable)?;
        let header: Metadata = serde_json::from_slice(&header)
            .map_err(|error| malformed(format!("is no safetensors file: its header does not read: {error}")))?;
        let (start, data) = (8 + size, header.data_len() as u64);
        if start + data != len {
            return Err(malformed(format!(
                "has {len} bytes where its header speaks of {}",
                start + data
            )));
        }
        let prefix = if header.info("transformer.wte.weight").is_some() {
            "transformer."
        } else {
            ""
        };
        Ok(Self {
            path: path.to_owned(),
            file,
            header,
            start,
            prefix,
        })
    }

    /// Names the first tensor that is missing or of another shape or type than the configuration wants.
    fn check(&self, config: &Gpt2Config) -> Result<(), LoadError> {
        for (name, shape) in tensors(config) {
            let name = self.name_in_file(&name);
            let complaint = match self.header.info(&name) {
                None => "is missing".to_owned(),
                Some(info) if info.shape != shape => {
                    format!("has the shape {:?} where config.json wants {shape:?}", info.shape)
                }
                Some(info) if !matches!(info.dtype, FileDtype::F32 | FileDtype::F16 | FileDtype::BF16) => {
                    format!("is of type {:?}; F32, F16 and BF16 can be read", info.dtype)
                }
                Some(_) => continue,
            };
            return Err(LoadError::Tensor {
                path: self.path.clone(),
                tensor: name,
                complaint,
            });
        }
        Ok(())
    }

    fn name_in_file(&self, name: &str) -> String {
        // The head stands beside the transformer, not in it.
        if name.starts_with("lm_head") {
            name.to_owned()
        } else {
            format!("{}{name}", self.prefix)
        }
    }

    fn read(&mut self, name: &str, shape: &[usize], rows: Range<usize>) -> Result<Vec<f32>, LoadError> {
        let name = self.name_in_file(name);
        let info = self.header.info(&name).expect("checked against the configuration");
        let (from, to) = info.data_offsets;
        let row = (to - from) / shape[0];
        let mut bytes = vec![0; rows.len() * row];
        let read = self
            .file
            .seek(SeekFrom::Start(self.start + (from + rows.start * row) as u64))
            .and_then(|_| self.file.read_exact(&mut bytes));
        read.map_err(|cause| LoadError::Unreadable {
            path: self.path.clone(),
            cause,
        })?;
        let values: Vec<f32> = match info.dtype {
            FileDtype::F32 => bytes
                .as_chunks()
                .0
                .iter()
                .map(|bytes| f32::from_le_bytes(*bytes))
                .collect(),
            FileDtype::F16 => bytes
                .as_chunks()
                .0
                .iter()
                .map(|bytes| half::f16::from_le_bytes(*bytes).to_f32())
                .collect(),
            _ => bytes
                .as_chunks()
                .0
                .iter()
                .map(|bytes| half::bf16::from_le_bytes(*bytes).to_f32())
                .collect(),
        };
        match values.iter().position(|value| !value.is_finite()) {
            None => Ok(values),
            Some(at) => {
                let place = rows.start * shape[1..].iter().product::<usize>() + at;
                let complaint = format!("holds {} at {place}: weights are finite", values[at]);
                Err(LoadError::Tensor {
                    path: self.path.clone(),
                    tensor: name,
                    complaint,
                })
            }
        }
    }
}
