//! The kernels that no device at hand runs, or that use what few others do, as CUDA's compiler would be given them. That needs
//! no card and no driver; where there is a compiler besides (nvrtc, and headers under `CUDA_PATH`), it has to take them.

use cubecl::Compiler;
use cubecl::cuda::{CudaRuntime, install};
use cubecl::prelude::*;
use cudarc::nvrtc::{CompileOptions, compile_ptx_with_opts};

use super::linear::{Epilogue, Plan, WORDS};
use super::words::Word;
use super::{Activation, draw, sums, tensor};

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
    let mut compiler = <CudaRuntime as Runtime>::Compiler::default();
    let kernel = compiler.compile(
        builder.build(settings),
        &Default::default(),
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

/// The product on tensor cores of a matrix with so many outputs.
fn product(outputs: usize, epilogue: Epilogue) -> String {
    source("product", sums::UNITS, |builder| {
        let (x, weight) = (array(builder), array::<Vector<u32, Const<WORDS>>>(builder));
        let (bias, y) = (array(builder), array(builder));
        let (rows, inputs, all) = (number(builder), number(builder), number(builder));
        let plan = Plan::new(Word::Two, outputs);
        tensor::project::expand(
            &mut builder.scope,
            x,
            weight,
            bias,
            y,
            rows,
            inputs,
            all,
            plan,
            epilogue,
        );
    })
}

#[test]
fn the_product_on_tensor_cores_multiplies_fragments_of_bf16_and_adds_up_in_f32() {
    for outputs in [768, 5000, 50_257] {
        for activation in [None, Some(Activation::GeluTanh), Some(Activation::GeluErf)] {
            let source = product(
                outputs,
                Epilogue {
                    bias: activation.is_some(),
                    activation,
                },
            );
            let count = |what: &str| source.matches(what).count();
            // Two halves of x, two by two fragments of a plane, two of them deep.
            assert_eq!(count("mma_sync("), 16, "{source}");
            // A fragment of weights serves two of x.
            assert_eq!(count("load_matrix_sync("), 4 + 16, "{source}");
            assert_eq!(count("store_matrix_sync("), 4, "{source}");
            assert!(source.contains("16, 16, 16, __nv_bfloat16, "), "{source}");
            assert!(source.contains("16, 16, 16, float>"), "{source}");
            assert_compiles(&source);
        }
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
