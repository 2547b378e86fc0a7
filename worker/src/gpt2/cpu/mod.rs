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

use super::{Around, CacheShape, Gpt2Backend, Norm, Span, StepError};

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

    fn project(x: &Self::Floats, weight: &Self::Matrix, around: Around<'_, Self>) -> Self::Floats {
        let [rows, _] = x.dims();
        let normalized = around.norm.map(|norm| normalize(x, norm));
        let y = with_slice(normalized.as_ref().unwrap_or(x), |x| match around.bias {
            Some(bias) => with_slice(bias, |bias| {
                weight.multiply(Arch::new(), x, Some(bias), around.activation)
            }),
            None => weight.multiply(Arch::new(), x, None, around.activation),
        });
        let y = matrix(y, rows);
        match around.residual {
            Some(residual) => y + residual.clone(),
            None => y,
        }
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

fn normalize(x: &Tensor<Cpu, 2>, norm: &Norm<Cpu>) -> Tensor<Cpu, 2> {
    let [rows, _] = x.dims();
    let values = with_slice(x, |x| {
        with_slice(&norm.gamma, |gamma| {
            with_slice(&norm.beta, |beta| norm::rows(Arch::new(), x, gamma, beta, norm.epsilon))
        })
    });
    matrix(values, rows)
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
