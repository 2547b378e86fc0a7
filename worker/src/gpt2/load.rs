//! From Hugging Face files to a model. The header is checked against the configuration before any weight is read.
//!
//! GPT-2's `Conv1D` stores `[in, out]`, which is the order the model multiplies in: nothing is transposed but the tied head.

use std::fs::File;
use std::io::{self, Read};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use claimcheck_common::domain::Dtype;
use half::{bf16, f16};
use pulp::bytemuck::cast_slice_mut;
use rayon::prelude::*;
use safetensors::Dtype as FileDtype;
use safetensors::tensor::Metadata;

use super::files::read;
use super::model::{Block, Linear};
use super::{Gpt2, Gpt2Backend, Gpt2Config, LoadError, ModelFiles, Norm};

/// A header is some hundred bytes a tensor.
const LONGEST_HEADER: u64 = 16 << 20;
/// Numbers that are read at once by one thread: they stay in its cache until they are converted.
const PIECE: usize = 1 << 18;

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

impl Gpt2Config {
    /// Bytes of the weights in memory, matrices as `dtype`; what fills up panels and the scales of `int8` are not counted.
    pub(super) fn bytes(&self, dtype: Dtype) -> u64 {
        let bytes = |(name, shape): (String, Vec<usize>)| {
            let is_matrix = shape.len() == 2 && name != "wpe.weight";
            let of_number = if is_matrix { dtype } else { Dtype::F32 }.bytes();
            (shape.iter().product::<usize>() * of_number) as u64
        };
        tensors(self).into_iter().map(bytes).sum()
    }
}

impl<B: Gpt2Backend> Gpt2<B> {
    /// Loads the model in `files`, its matrices as `dtype`.
    pub fn load(files: &ModelFiles, dtype: Dtype, device: &B::Device) -> Result<Self, LoadError> {
        let config = Gpt2Config::read(&files.config)?;
        let weights = WeightFile::open(&files.weights, &config)?;
        let mut read = |name: &str, shape: &[usize], rows| weights.read(name, shape, rows);
        let mut tensors = Packing {
            read: &mut read,
            dtype,
            device,
        };
        assemble(config, dtype, device, &mut tensors)
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

/// A model's tensors as a device takes them, each asked for once and in the order of the forward pass.
pub(super) trait Tensors<B: Gpt2Backend> {
    /// Why there is none.
    type Error;

    /// `[rows, columns]`
    fn floats(&mut self, name: &str, shape: [usize; 2]) -> Result<B::Floats, Self::Error>;

    /// `[width]`
    fn vector(&mut self, name: &str, width: usize) -> Result<B::Vector, Self::Error>;

    /// The matrix `[in, out]`.
    fn matrix(&mut self, name: &str, shape: [usize; 2]) -> Result<B::Matrix, Self::Error>;

    /// The matrix `[in, out]` that is stored the other way round.
    fn transposed(&mut self, name: &str, shape: [usize; 2]) -> Result<B::Matrix, Self::Error>;
}

/// Builds a model of its tensors.
pub(super) fn assemble<B: Gpt2Backend, T: Tensors<B>>(
    config: Gpt2Config,
    dtype: Dtype,
    device: &B::Device,
    tensors: &mut T,
) -> Result<Gpt2<B>, T::Error> {
    let (width, inner, vocab) = (config.n_embd, config.inner(), config.vocab_size);
    let tokens = tensors.transposed("wte.weight", [width, vocab])?;
    let positions = tensors.floats("wpe.weight", [config.n_positions, width])?;
    let mut blocks = Vec::with_capacity(config.n_layer);
    for layer in 0..config.n_layer {
        let name = |part: &str| format!("h.{layer}.{part}");
        blocks.push(Block {
            attention_norm: norm(tensors, &name("ln_1"), &config)?,
            qkv: linear(tensors, &name("attn.c_attn"), [width, 3 * width])?,
            attention_out: linear(tensors, &name("attn.c_proj"), [width, width])?,
            feed_forward_norm: norm(tensors, &name("ln_2"), &config)?,
            up: linear(tensors, &name("mlp.c_fc"), [width, inner])?,
            down: linear(tensors, &name("mlp.c_proj"), [inner, width])?,
        });
    }
    let last_norm = norm(tensors, "ln_f", &config)?;
    let head = if config.tie_word_embeddings {
        None
    } else {
        Some(tensors.transposed("lm_head.weight", [width, vocab])?)
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

fn norm<B: Gpt2Backend, T: Tensors<B>>(tensors: &mut T, name: &str, config: &Gpt2Config) -> Result<Norm<B>, T::Error> {
    Ok(Norm {
        gamma: tensors.vector(&format!("{name}.weight"), config.n_embd)?,
        beta: tensors.vector(&format!("{name}.bias"), config.n_embd)?,
        epsilon: config.layer_norm_epsilon,
    })
}

fn linear<B: Gpt2Backend, T: Tensors<B>>(
    tensors: &mut T,
    name: &str,
    shape: [usize; 2],
) -> Result<Linear<B>, T::Error> {
    Ok(Linear {
        weight: tensors.matrix(&format!("{name}.weight"), shape)?,
        bias: tensors.vector(&format!("{name}.bias"), shape[1])?,
    })
}

/// Tensors of numbers that are read from a file or drawn, brought to the device and packed there.
pub(super) struct Packing<'a, 'r, B: Gpt2Backend, E> {
    pub(super) read: &'a mut ReadTensor<'r, E>,
    pub(super) dtype: Dtype,
    pub(super) device: &'a B::Device,
}

impl<B: Gpt2Backend, E> Tensors<B> for Packing<'_, '_, B, E> {
    type Error = E;

    fn floats(&mut self, name: &str, shape: [usize; 2]) -> Result<B::Floats, E> {
        Ok(B::floats((self.read)(name, &shape, 0..shape[0])?, shape, self.device))
    }

    fn vector(&mut self, name: &str, width: usize) -> Result<B::Vector, E> {
        Ok(B::vector((self.read)(name, &[width], 0..width)?, self.device))
    }

    fn matrix(&mut self, name: &str, shape: [usize; 2]) -> Result<B::Matrix, E> {
        Ok(B::pack(self.floats(name, shape)?, self.dtype))
    }

    fn transposed(&mut self, name: &str, [inputs, outputs]: [usize; 2]) -> Result<B::Matrix, E> {
        B::pack_transposed([inputs, outputs], self.dtype, self.device, &mut |rows| {
            (self.read)(name, &[outputs, inputs], rows)
        })
    }
}

/// An open `model.safetensors` whose header was read and is what the configuration wants.
pub(super) struct WeightFile {
    path: PathBuf,
    file: File,
    header: Metadata,
    /// Where the tensors begin.
    start: u64,
    /// `transformer.` or nothing.
    prefix: &'static str,
}

impl WeightFile {
    pub(super) fn open(path: &Path, config: &Gpt2Config) -> Result<Self, LoadError> {
        let weights = Self::open_any(path)?;
        weights.check(config)?;
        Ok(weights)
    }

    fn open_any(path: &Path) -> Result<Self, LoadError> {
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

    /// Reads, converts and looks through some rows of a tensor, in pieces side by side.
    pub(super) fn read(&self, name: &str, shape: &[usize], rows: Range<usize>) -> Result<Vec<f32>, LoadError> {
        let name = self.name_in_file(name);
        let info = self.header.info(&name).expect("checked against the configuration");
        let (from, to) = info.data_offsets;
        let row = (to - from) / shape[0];
        let numbers: usize = shape[1..].iter().product();
        let start = self.start + (from + rows.start * row) as u64;
        let mut values = vec![0.0; rows.len() * numbers];
        let pieces = values.par_chunks_mut(PIECE).enumerate();
        let read = pieces.try_for_each(|(piece, values)| {
            let offset = start + (piece * PIECE * (row / numbers)) as u64;
            self.read_piece(info.dtype, offset, values)
        });
        read.map_err(|cause| LoadError::Unreadable {
            path: self.path.clone(),
            cause,
        })?;
        match values.par_iter().position_first(|value| !value.is_finite()) {
            None => Ok(values),
            Some(at) => {
                let complaint = format!(
                    "holds {} at {}: weights are finite",
                    values[at],
                    rows.start * numbers + at
                );
                Err(LoadError::Tensor {
                    path: self.path.clone(),
                    tensor: name,
                    complaint,
                })
            }
        }
    }

    fn read_piece(&self, dtype: FileDtype, offset: u64, values: &mut [f32]) -> io::Result<()> {
        if dtype == FileDtype::F32 {
            self.file.read_exact_at(cast_slice_mut(values), offset)?;
            for value in values {
                *value = f32::from_bits(u32::from_le(value.to_bits()));
            }
            return Ok(());
        }
        let mut bytes = vec![[0; 2]; values.len()];
        self.file.read_exact_at(bytes.as_flattened_mut(), offset)?;
        for (value, bytes) in values.iter_mut().zip(bytes) {
            *value = match dtype {
                FileDtype::F16 => f16::from_le_bytes(bytes).to_f32(),
                _ => bf16::from_le_bytes(bytes).to_f32(),
            };
        }
        Ok(())
    }
}
