//! GPT-2 on Burn: files to weights, tokens to logits.
//!
//! The model is written once (`model.rs`), generic over [`Gpt2Backend`], whose few operations
//! (`ops.rs`) are plain Burn in `reference.rs` and own kernels in `cpu/` and `gpu/`; `device.rs` finds the device that was
//! asked for. Must never schedule, nor draw otherwise than `engine/sampler.rs` does (`draw.rs`): it computes one step of rows that
//! the engine chose. Next: `engine/`.
//!
//! The same answer in any company: every element of a row is reduced in one fixed order, whatever other rows, chunks or
//! threads share the step.

mod byte_tokenizer;
mod config;
mod cpu;
mod device;
mod draw;
mod end_tokens;
mod files;
#[cfg(any(feature = "cuda", feature = "vulkan"))]
mod gpu;
pub mod hub;
mod load;
mod model;
mod ops;
#[cfg(test)]
mod reference;
mod runner;
mod save;
mod step;
#[cfg(test)]
mod tests;
mod weights_cache;

pub(crate) use byte_tokenizer::json as byte_tokenizer_json;
pub use config::{Activation, Gpt2Config};
pub use cpu::Cpu;
pub use device::{Device, DeviceError, Weights};
pub use draw::{Draw, Drawn, Edit, Likely, Method};
pub use end_tokens::end_tokens;
pub use files::{Identity, LoadError, ModelFiles};
#[cfg(all(test, any(feature = "cuda", feature = "vulkan")))]
pub(crate) use gpu::{CARD, drawn as drawn_by_card};
pub use model::Gpt2;
pub use ops::{Around, BLOCK, CacheShape, Gpt2Backend, Norm, Span};
pub use runner::Gpt2Runner;
pub use save::save_random;
pub use step::{StepError, StepModel, StepRow, Woken};
pub use weights_cache::WeightsCache;
