//! The kernels that no device at hand runs, or that use what few others do, as CUDA's compiler would be given them. That needs
//! no card and no driver; where there is a compiler besides (nvrtc, and headers under `CUDA_PATH`), it has to take them.

use cubecl::Compiler;
use cubecl::cuda::{CudaRuntime, install};
use cubecl::prelude::*;
use cudarc::nvrtc::{CompileOptions, compile_ptx_with_opts};

use super::layout::WORDS;
use super::linear::Epilogue;
use super::{draw, norm, tensor, tests};
use crate::gpt2::Activation;

type Cuda = <CudaRuntime as Runtime>::Compiler;

fn array<T: CubePrimitive>(builder: &mut KernelBuilder) -> <Array<T> as CubeType>::ExpandType {
    Array::<T>::expand_output(&ArrayCompilationArg { inplace: None }, builder)
}

fn number(builder: &mut KernelBuilder) -> <usize as CubeType>::ExpandType {
    usize::expand(&(), builder)
}

/// A kernel of so many units in CUDA's C, whose arguments and body `define` makes.
fn source(name: &str, units: usize, define: impl FnOnce(&mut KernelBuilder)) -> String {
    let mut builder = KernelBuilder::default();
    builder.runtime_properties(CudaRuntime::target_properties());
    AddressType::U32.register(&mut builder.scope);
    define(&mut builder);
    let settings = KernelSettings::default()
        .cube_dim(CubeDim::new_1d(units as u32))
        .kernel_name(name);
    let mut compiler = Cuda::default();
    let kernel = compiler.compile(
        builder.build(settings),
        &<Cuda as Compiler>::CompilationOptions::default(),
        ExecutionMode::Unchecked,
        AddressType::U32.unsigned_type(),
    );
    kernel.unwrap().to_string()
}

/// Compiles for every kind of card that is to run it, if there is a compiler.
fn assert_compiles(source: &str) {
    // SAFETY: only loads the library, which runs its own initializers.
    #[allow(unsafe_code)]
    let there = unsafe { cudarc::nvrtc::sys::is_culib_present() };
    let headers = install::cuda_path().map(|path| path.join("include"));
    let Some(headers) = headers.filter(|path| there && path.join("cuda_runtime.h").exists()) else {
        return;
    };
    for arch in ["sm_80", "sm_90a", "sm_100a"] {
        let options = CompileOptions {
            include_paths: vec![headers.display().to_string()],
            arch: Some(arch),
            ..CompileOptions::default()
        };
        if let Err(error) = compile_ptx_with_opts(source, options) {
            panic!("{arch}: {error:?}\n{source}");
        }
    }
}

/// All that [`tensor::Shape::of`] answers.
const SHAPES: [tensor::Shape; 6] = [
    tensor::Shape::of(1, 768),
    tensor::Shape::of(32, 768),
    tensor::Shape::of(32, 50_257),
    tensor::Shape::of(512, 768),
    tensor::Shape::of(1024, 768),
    tensor::Shape::of(64, 50_257),
];

/// The product on tensor cores, in one shape: of rows that it normalizes, if it does that.
fn product(shape: tensor::Shape, width: Option<usize>, epilogue: Epilogue) -> String {
    source("product", tensor::UNITS, |builder| {
        let x = array::<Vector<f32, Const<2>>>(builder);
        let (gamma, beta) = (array(builder), array(builder));
        let weight = array::<Vector<u32, Const<WORDS>>>(builder);
        let (bias, residual, y) = (array(builder), array(builder), array(builder));
        let (rows, inputs, outputs) = (number(builder), number(builder), number(builder));
        let epsilon = f32::expand(&(), builder);
        let scope = &mut builder.scope;
        match shape {
            tensor::Shape::Few(shape) => tensor::few::project::expand(
                scope, x, gamma, beta, weight, bias, residual, y, rows, inputs, outputs, epsilon, shape, width,
                epilogue,
            ),
            tensor::Shape::Many(shape) => tensor::many::project::expand(
                scope, x, weight, bias, residual, y, rows, inputs, outputs, shape, epilogue,
            ),
        }
    })
}

#[test]
fn the_product_on_tensor_cores_multiplies_fragments_of_bf16_and_adds_up_in_f32() {
    for shape in SHAPES {
        for (activation, width) in [
            (None, None),
            (None, Some(768)),
            (Some(Activation::GeluTanh), Some(1600)),
            (Some(Activation::GeluErf), Some(48)),
        ] {
            let epilogue = Epilogue {
                bias: activation.is_some(),
                activation,
                residual: width.is_none(),
            };
            let source = product(shape, width, epilogue);
            assert!(source.contains("m16n8k16"), "{source}");
            assert_compiles(&source);
        }
    }
}

#[test]
fn every_shape_of_the_product_is_tested_on_a_card() {
    let products = tests::PRODUCTS.map(|(rows, _, outputs)| tensor::Shape::of(rows, outputs));
    let alone = tests::ALONE.map(|(_, outputs, rows)| tensor::Shape::of(rows, outputs));
    for shape in SHAPES {
        assert!(products.contains(&shape), "{shape:?}");
        // Who is compared with all is alone, or one of a few.
        let few = matches!(shape, tensor::Shape::Few(_));
        assert!(few || alone.contains(&shape), "{shape:?}");
    }
}

#[test]
fn every_shape_of_the_product_that_gpt2_takes_is_compiled_before_the_first_job() {
    let widths = [768, 1024, 1280, 1600].into_iter();
    let outputs = widths.flat_map(|width| [1, 3, 4].map(|times| width * times));
    for outputs in outputs.chain([50_257]) {
        let warm = super::WARM.map(|rows| tensor::Shape::of(rows, outputs));
        for rows in 1..=8192 {
            let shape = tensor::Shape::of(rows, outputs);
            assert!(SHAPES.contains(&shape), "{shape:?}");
            assert!(warm.contains(&shape), "{rows} rows, {outputs} outputs: {shape:?}");
        }
    }
}

#[test]
fn the_norm_is_what_cudas_compiler_takes() {
    for width in [5, 768] {
        // By the kernel's name, which must be none of CUDA's own.
        assert_compiles(&source("layer_norm", super::sums::UNITS, |builder| {
            let (x, gamma, beta, y) = (array(builder), array(builder), array(builder), array(builder));
            let (rows, epsilon) = (number(builder), f32::expand(&(), builder));
            norm::layer_norm::expand(&mut builder.scope, x, gamma, beta, y, rows, epsilon, width);
        }));
    }
}

#[test]
fn the_kernels_that_draw_are_what_cudas_compiler_takes() {
    let sources = [
        source("scout", draw::UNITS, |builder| {
            let (logits, parts, bins) = (array(builder), array(builder), array(builder));
            let width = number(builder);
            draw::scout::expand(&mut builder.scope, logits, parts, bins, width);
        }),
        source("weigh", draw::UNITS, |builder| {
            let (logits, asks, parts) = (array(builder), array(builder), array(builder));
            let (sums, bins, width) = (array(builder), array(builder), number(builder));
            draw::weigh::expand(&mut builder.scope, logits, asks, parts, sums, bins, width);
        }),
        source("collect", draw::UNITS, |builder| {
            let (logits, asks, parts) = (array(builder), array(builder), array(builder));
            let (bins, likeliest, width) = (array(builder), array(builder), number(builder));
            draw::collect::expand(&mut builder.scope, logits, asks, parts, bins, likeliest, width);
        }),
        source("choose", draw::UNITS, |builder| {
            let (logits, asks, parts) = (array(builder), array(builder), array(builder));
            let (sums, bins, likeliest) = (array(builder), array(builder), array(builder));
            let (drawn, width, of_row) = (array(builder), number(builder), number(builder));
            draw::choose::expand(
                &mut builder.scope,
                logits,
                asks,
                parts,
                sums,
                bins,
                likeliest,
                drawn,
                width,
                of_row,
            );
        }),
        source("survey", draw::UNITS, |builder| {
            let (logits, asks, shortlists) = (array(builder), array(builder), array(builder));
            let (sums, width) = (array(builder), number(builder));
            draw::survey::expand(&mut builder.scope, logits, asks, shortlists, sums, width);
        }),
        source("tell", draw::UNITS, |builder| {
            let (logits, asks, shortlists) = (array(builder), array(builder), array(builder));
            let (sums, drawn) = (array(builder), array(builder));
            let (width, of_row) = (number(builder), number(builder));
            draw::tell::expand(&mut builder.scope, logits, asks, shortlists, sums, drawn, width, of_row);
        }),
    ];
    for source in sources {
        assert!(source.contains("__syncthreads()"), "{source}");
        assert_compiles(&source);
    }
}
