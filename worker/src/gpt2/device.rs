//! From the device that was asked for to one that is there, and to a model that runs on it.
//!
//! A device is looked for before anything is started on it: what is missing is one clear line, and `auto` goes on to the next.
//! Must never start a driver that was not asked for.

#[cfg(feature = "cuda")]
mod cuda;
#[cfg(feature = "vulkan")]
mod vulkan;

#[cfg(any(feature = "cuda", feature = "vulkan"))]
use std::ops::Range;

use burn::backend::flex::FlexDevice;
use claimcheck_common::domain::{DeviceChoice, Dtype, Order};

#[cfg(any(feature = "cuda", feature = "vulkan"))]
use super::gpu::{Gpu, Site};
#[cfg(any(feature = "cuda", feature = "vulkan"))]
use super::{BLOCK, Draw, Edit, Method, StepRow};
use super::{
    CacheShape, Cpu, Gpt2, Gpt2Backend, Gpt2Config, Gpt2Runner, LoadError, ModelFiles, StepModel, WeightsCache, cpu,
};

/// Why a device cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    /// The program was built without it.
    #[error("this program was built without --device {0}: build it with the feature `{0}`, or choose another device")]
    NotBuilt(&'static str),
    /// It is not there, or what it needs is not.
    #[error("--device {device}: {complaint}")]
    Missing {
        /// The device.
        device: DeviceChoice,
        /// What is missing.
        complaint: String,
    },
    /// Kernels for such weights exist for the processor alone.
    #[error("weights of {0} are computed on --device cpu alone; a graphics card takes f32 and bf16")]
    Dtype(Dtype),
}

/// A device that is there.
#[derive(Debug, Clone, PartialEq)]
pub enum Device {
    /// The processor.
    Cpu,
    /// A card of NVIDIA's, with its name.
    #[cfg(feature = "cuda")]
    Cuda(cubecl::cuda::CudaDevice, String, Order),
    /// An adapter of Vulkan's, with its name.
    #[cfg(feature = "vulkan")]
    Vulkan(cubecl::wgpu::WgpuDevice, String, Order),
}

/// Whether an adapter counts that is a program on the processor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(not(feature = "vulkan"), allow(dead_code))]
enum Software {
    Taken,
    LeftOut,
}

/// Where weights come from.
#[derive(Debug, Clone, Copy)]
pub enum Weights<'a> {
    /// Files of Hugging Face's, and where there may be what an earlier start made of them.
    Files(&'a ModelFiles, Option<&'a WeightsCache>),
    /// Drawn from a seed.
    Random(&'a Gpt2Config, u64),
}

impl Device {
    /// The device that `choice` means here, for weights of `dtype`.
    pub fn find(choice: DeviceChoice, dtype: Dtype) -> Result<Self, DeviceError> {
        let device = match choice {
            DeviceChoice::Cpu => return Ok(Self::Cpu),
            DeviceChoice::Auto => return Ok(Self::best(dtype)),
            DeviceChoice::Cuda(number) => Self::cuda(number)?,
            DeviceChoice::Vulkan => Self::vulkan(Software::Taken)?,
        };
        match dtype {
            Dtype::Int8 => Err(DeviceError::Dtype(dtype)),
            Dtype::F32 | Dtype::Bf16 => Ok(device),
        }
    }

    fn best(dtype: Dtype) -> Self {
        if dtype == Dtype::Int8 {
            return Self::Cpu;
        }
        let found = Self::cuda(0).or_else(|_| Self::vulkan(Software::LeftOut));
        found.unwrap_or(Self::Cpu)
    }

    #[cfg(feature = "cuda")]
    fn cuda(number: u16) -> Result<Self, DeviceError> {
        cuda::find(number)
    }

    #[cfg(not(feature = "cuda"))]
    const fn cuda(_number: u16) -> Result<Self, DeviceError> {
        Err(DeviceError::NotBuilt("cuda"))
    }

    #[cfg(feature = "vulkan")]
    fn vulkan(software: Software) -> Result<Self, DeviceError> {
        vulkan::find(software)
    }

    #[cfg(not(feature = "vulkan"))]
    const fn vulkan(_software: Software) -> Result<Self, DeviceError> {
        Err(DeviceError::NotBuilt("vulkan"))
    }

    /// The device, computing in this order. On a processor there is the fixed one alone: its kernels are the fastest at hand for
    /// any number of rows.
    #[must_use]
    pub fn in_order(self, order: Order) -> Self {
        match self {
            Self::Cpu => {
                if order == Order::Fast {
                    tracing::info!("on a processor --order fast changes nothing");
                }
                Self::Cpu
            }
            #[cfg(feature = "cuda")]
            Self::Cuda(device, name, _) => Self::Cuda(device, name, order),
            #[cfg(feature = "vulkan")]
            Self::Vulkan(device, name, _) => Self::Vulkan(device, name, order),
        }
    }

    /// The order that it computes in.
    pub const fn order(&self) -> Order {
        match self {
            Self::Cpu => Order::Fixed,
            #[cfg(feature = "cuda")]
            Self::Cuda(_, _, order) => *order,
            #[cfg(feature = "vulkan")]
            Self::Vulkan(_, _, order) => *order,
        }
    }

    /// Bytes that the model of `config` takes, with a cache of as many blocks as `blocks` says; what a step needs besides is not
    /// counted.
    pub fn bytes(&self, config: &Gpt2Config, dtype: Dtype, blocks: &dyn Fn(usize, usize) -> usize) -> u64 {
        let shape = CacheShape::of(config, dtype, 1);
        let of_block = match self {
            Self::Cpu => Cpu::block_bytes(shape),
            #[cfg(feature = "cuda")]
            Self::Cuda(..) => super::gpu::Cuda::block_bytes(shape),
            #[cfg(feature = "vulkan")]
            Self::Vulkan(..) => super::gpu::Vulkan::block_bytes(shape),
        };
        config.bytes(dtype) + (blocks(of_block, config.n_positions) * of_block) as u64
    }

    /// Loads a model onto the device, with a cache of as many blocks as `blocks` says for the bytes of a block and the context
    /// length.
    pub fn load(
        &self,
        weights: Weights<'_>,
        dtype: Dtype,
        blocks: &dyn Fn(usize, usize) -> usize,
    ) -> Result<Box<dyn StepModel>, LoadError> {
        match self {
            Self::Cpu => Ok(with_cache(load_cpu(weights, dtype)?, blocks)),
            #[cfg(feature = "cuda")]
            Self::Cuda(device, _, order) => load::<cubecl::cuda::CudaRuntime>(device, *order, weights, dtype, blocks),
            #[cfg(feature = "vulkan")]
            Self::Vulkan(device, _, order) => load::<cubecl::wgpu::WgpuRuntime>(device, *order, weights, dtype, blocks),
        }
    }
}

fn load_cpu(weights: Weights<'_>, dtype: Dtype) -> Result<Gpt2<Cpu>, LoadError> {
    match weights {
        Weights::Files(files, cache) => cpu::load(files, cache, dtype),
        Weights::Random(config, seed) => Ok(Gpt2::random(config.clone(), seed, dtype, &FlexDevice)),
    }
}

#[cfg(any(feature = "cuda", feature = "vulkan"))]
fn load<R: cubecl::Runtime>(
    device: &R::Device,
    order: Order,
    weights: Weights<'_>,
    dtype: Dtype,
    blocks: &dyn Fn(usize, usize) -> usize,
) -> Result<Box<dyn StepModel>, LoadError>
where
    Gpt2<Gpu<R>>: Send,
{
    let site = Site::new(device, order);
    Gpu::tell_order(&site, dtype);
    let model = match weights {
        // A card takes the numbers as they stand in the files.
        Weights::Files(files, _) => Gpt2::<Gpu<R>>::load(files, dtype, &site)?,
        Weights::Random(config, seed) => Gpt2::random(config.clone(), seed, dtype, &site),
    };
    let model = warmed(with_cache(model, blocks), Gpu::warm(&site, dtype))?;
    // A warm step is larger than most that come.
    site.clear();
    Ok(model)
}

/// A runner of the model, with a cache of as many blocks as `blocks` says.
fn with_cache<B: Gpt2Backend>(model: Gpt2<B>, blocks: &dyn Fn(usize, usize) -> usize) -> Box<dyn StepModel>
where
    Gpt2<B>: Send,
{
    let blocks = blocks(model.block_bytes(), model.config().n_positions);
    Box::new(Gpt2Runner::new(model, blocks))
}

/// Wanted logits of a step, at most, until the kernels that make them have all run.
#[cfg(any(feature = "cuda", feature = "vulkan"))]
const LOGITS: usize = 64;

/// Computes steps of every kind of shape, so that all kernels are compiled before the first job comes.
#[cfg(any(feature = "cuda", feature = "vulkan"))]
fn warmed(mut model: Box<dyn StepModel>, sizes: &[usize]) -> Result<Box<dyn StepModel>, LoadError> {
    let context = model.context_length();
    let row = |blocks: Range<usize>, tokens: usize| StepRow {
        blocks: blocks.map(|block| block as u32).collect(),
        position: 0,
        tokens: vec![0; tokens],
        wants_logits: true,
    };
    let mut steps = Vec::new();
    for size in sizes {
        // Rows of one token, which want their logits, and prompts, whose keys and values are written apart.
        if *size <= LOGITS {
            let rows = (*size).min(model.blocks());
            steps.push((0..rows).map(|block| row(block..block + 1, 1)).collect::<Vec<_>>());
        }
        let mut prompts = Vec::new();
        let (mut left, mut blocks) = (*size, 0..model.blocks());
        while left > 0 && !blocks.is_empty() {
            let tokens = left.min(context).min(blocks.len() * BLOCK);
            let own = blocks.start..blocks.start + tokens.div_ceil(BLOCK);
            blocks.start = own.end;
            left -= tokens;
            prompts.push(row(own, tokens));
        }
        steps.push(prompts);
    }
    for step in steps {
        model
            .step(&step)
            .map_err(|error| LoadError::Device(error.to_string()))?;
    }
    if model.draws() {
        // An edit, a cut and likely tokens, for the kernels that most draws do without.
        let draw = Draw {
            method: Method::Random {
                temperature: 1.0,
                top_k: None,
                top_p: 0.5,
                min_p: 0.0,
            },
            edits: vec![Edit {
                token: 0,
                repetition: Some(2.0),
                less: None,
                bias: None,
            }],
            top: Some(1),
            ..Draw::GREEDY
        };
        let drawn = model.draw(&[row(0..1, 1)], &[draw]);
        drawn.map_err(|error| LoadError::Device(error.to_string()))?;
    }
    Ok(model)
}

impl std::fmt::Display for Device {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Cpu => formatter.write_str("cpu"),
            #[cfg(feature = "cuda")]
            Self::Cuda(device, name, _) => write!(formatter, "cuda:{} ({name})", device.index),
            #[cfg(feature = "vulkan")]
            Self::Vulkan(_, name, _) => write!(formatter, "vulkan ({name})"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_processor_is_always_there() {
        for dtype in Dtype::ALL {
            assert_eq!(Device::find(DeviceChoice::Cpu, dtype).unwrap(), Device::Cpu);
        }
        // Nothing else computes with these.
        assert_eq!(Device::find(DeviceChoice::Auto, Dtype::Int8).unwrap(), Device::Cpu);
    }

    #[test]
    fn a_processor_computes_in_the_fixed_order_whatever_is_allowed() {
        for order in [Order::Fixed, Order::Fast] {
            assert_eq!(Device::Cpu.in_order(order).order(), Order::Fixed);
        }
    }

    #[cfg(feature = "vulkan")]
    #[test]
    fn a_card_computes_in_the_order_that_is_asked_for_and_in_the_fixed_one_by_default() {
        let card = Device::find(DeviceChoice::Vulkan, Dtype::F32).unwrap();
        assert_eq!(card.order(), Order::Fixed);
        assert_eq!(card.in_order(Order::Fast).order(), Order::Fast);
    }

    #[cfg(not(any(feature = "cuda", feature = "vulkan")))]
    #[test]
    fn a_device_that_is_not_built_in_is_refused_in_one_line() {
        assert_eq!(Device::find(DeviceChoice::Auto, Dtype::F32).unwrap(), Device::Cpu);
        for (choice, feature) in [
            (DeviceChoice::Cuda(0), "`cuda`"),
            (DeviceChoice::Cuda(3), "`cuda`"),
            (DeviceChoice::Vulkan, "`vulkan`"),
        ] {
            let error = Device::find(choice, Dtype::F32).unwrap_err().to_string();
            assert!(error.contains(feature) && !error.contains('\n'), "{error}");
        }
    }
}
