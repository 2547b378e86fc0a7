//! The CPU backend: Burn's `flex`, with own kernels where stock Burn copies or where its order of reduction depends on
//! the shape of the step.
//!
//! `panels.rs` packs weights, `kept.rs` has them from an earlier start (`mapped.rs` as memory), `linear.rs` multiplies with them by the micro-kernels of `float.rs` and `int8.rs`, `attention.rs`
//! uses the same on its cache; `threads.rs` keeps those awake that share the work. Every kernel reduces an element in one fixed order, so that a row's result is bit-equal alone,
//! in any company, in any blocks of the cache, in one prefill chunk or many, on any number of threads. The machine's vector instructions
//! are chosen at run time (crate `pulp`).

// What runs under `Arch::dispatch` must be inlined into it to be compiled for the chosen vector instructions.
#![allow(clippy::inline_always)]

mod attention;
mod float;
mod int8;
mod kept;
mod linear;
mod lines;
mod mapped;
mod math;
mod norm;
mod panels;
#[cfg(test)]
mod tests;
mod threads;
#[cfg(target_arch = "x86_64")]
mod x86;

use std::ops::Range;

use burn::backend::Flex;
use burn::backend::flex::{FlexDevice, FlexTensor};
use burn::tensor::{Int, Tensor, TensorData, TensorPrimitive};
use claimcheck_common::domain::Dtype;
use pulp::Arch;

pub(super) use kept::load;

use super::{Activation, CacheShape, Gpt2Backend, Span, StepError};

/// The backend of `--device cpu`.
pub type Cpu = Flex;

impl Gpt2Backend for Cpu {
    type Device = FlexDevice;
    type Floats = Tensor<Self, 2>;
    type Vector = Tensor<Self, 1>;
    type Matrix = panels::Panels;
    type Cache = attention::Cache;

    fn share<T: Send + 'static>(_device: &Self::Device, multiplications: usize, step: impl FnOnce() -> T + Send) -> T {
        threads::share(multiplications, step)
    }

    fn floats(values: Vec<f32>, shape: [usize; 2], device: &Self::Device) -> Self::Floats {
        Tensor::from_data(TensorData::new(values, shape), device)
    }

    fn vector(values: Vec<f32>, device: &Self::Device) -> Self::Vector {
        Tensor::from_data(values.as_slice(), device)
    }

    fn values(floats: Self::Floats) -> Result<Vec<f32>, StepError> {
        Ok(floats.into_data().into_vec().expect("all floats are f32"))
    }

    fn rows(floats: &Self::Floats, which: &[usize]) -> Self::Floats {
        let which: Vec<i32> = which.iter().map(|row| *row as i32).collect();
        let which = Tensor::<Self, 1, Int>::from_data(which.as_slice(), &floats.device());
        floats.clone().select(0, which)
    }

    fn pack(weight: Self::Floats, dtype: Dtype) -> Self::Matrix {
        let [rows, columns] = weight.dims();
        with_slice(&weight, |weight| panels::Panels::pack(weight, rows, columns, dtype))
    }

    fn pack_transposed<E>(
        [inputs, outputs]: [usize; 2],
        dtype: Dtype,
        _device: &Self::Device,
        read: &mut dyn FnMut(Range<usize>) -> Result<Vec<f32>, E>,
    ) -> Result<Self::Matrix, E> {
        panels::Panels::pack_transposed(inputs, outputs, dtype, read)
    }

    fn embed(weight: &Self::Matrix, positions: &Self::Floats, ids: &[u32], places: &[u32]) -> Self::Floats {
        let [_, width] = positions.dims();
        let mut rows: Vec<f32> = ids.iter().flat_map(|id| weight.column(*id as usize)).collect();
        with_slice(positions, |positions| {
            for (row, place) in rows.chunks_exact_mut(width).zip(places) {
                let position = &positions[*place as usize * width..][..width];
                row.iter_mut()
                    .zip(position)
                    .for_each(|(row, position)| *row += position);
            }
        });
        matrix(rows, ids.len())
    }

    fn project(
        x: &Self::Floats,
        weight: &Self::Matrix,
        bias: Option<&Self::Vector>,
        activation: Option<Activation>,
    ) -> Self::Floats {
        let rows = x.dims()[0];
        let y = with_slice(x, |x| match bias {
            Some(bias) => with_slice(bias, |bias| weight.multiply(Arch::new(), x, Some(bias), activation)),
            None => weight.multiply(Arch::new(), x, None, activation),
        });
        matrix(y, rows)
    }

    fn add_norm(
        x: Self::Floats,
        residual: Option<Self::Floats>,
        gamma: &Self::Vector,
        beta: &Self::Vector,
        epsilon: f32,
    ) -> (Self::Floats, Self::Floats) {
        let [rows, _] = x.dims();
        let sum = match residual {
            Some(residual) => x + residual,
            None => x,
        };
        let norm = with_slice(&sum, |sum| {
            with_slice(gamma, |gamma| {
                with_slice(beta, |beta| norm::rows(Arch::new(), sum, gamma, beta, epsilon))
            })
        });
        (sum, matrix(norm, rows))
    }

    fn block_bytes(shape: CacheShape) -> usize {
        attention::Cache::block_bytes(shape)
    }

    fn new_cache(shape: CacheShape, _device: &Self::Device) -> Self::Cache {
        attention::Cache::new(shape)
    }

    fn attend(qkv: &Self::Floats, cache: &mut Self::Cache, layer: usize, spans: &[Span<'_>]) -> Self::Floats {
        let rows = qkv.dims()[0];
        matrix(
            with_slice(qkv, |qkv| cache.attend(Arch::new(), qkv, layer, spans)),
            rows,
        )
    }
}

fn with_slice<const D: usize, T>(tensor: &Tensor<Cpu, D>, work: impl FnOnce(&[f32]) -> T) -> T {
    // Cloning a tensor clones a reference.
    let TensorPrimitive::Float(tensor) = tensor.clone().into_primitive() else {
        unreachable!("activations and norms are not quantized")
    };
    let contiguous: FlexTensor = if tensor.is_contiguous() {
        tensor
    } else {
        tensor.to_contiguous()
    };
    work(contiguous.as_slice::<f32>().expect("contiguous f32"))
}

fn matrix(values: Vec<f32>, rows: usize) -> Tensor<Cpu, 2> {
    let columns = values.len() / rows.max(1);
    let tensor = FlexTensor::from_data(TensorData::new(values, [rows, columns]));
    Tensor::from_primitive(TensorPrimitive::Float(tensor))
}
