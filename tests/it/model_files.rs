//! Broken model files are refused before anything is computed, by an error that names the file and the tensor.

use std::collections::HashMap;
use std::path::Path;

use burn::backend::flex::FlexDevice;
use claimcheck_common::domain::Dtype;
use claimcheck_worker::gpt2::{Cpu, Gpt2, ModelFiles};
use safetensors::tensor::TensorView;
use safetensors::{Dtype as FileDtype, SafeTensors};
use tempfile::TempDir;

use crate::parity::{files_in, fixtures, prefill, runner};

const TENSOR: &str = "transformer.h.1.mlp.c_fc.weight";

/// A tensor as it stands in the file.
struct Stored {
    dtype: FileDtype,
    shape: Vec<usize>,
    bytes: Vec<u8>,
}

/// A copy of a good model, to be broken.
fn copy() -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    for file in ["config.json", "model.safetensors"] {
        let from = fixtures().join("parity/plain").join(file);
        std::fs::copy(from, folder.path().join(file)).unwrap();
    }
    folder
}

fn complaint(folder: &Path) -> String {
    match Gpt2::<Cpu>::load(&files_in(folder), Dtype::F32, &FlexDevice) {
        Ok(_) => panic!("a broken model was loaded"),
        Err(error) => error.to_string(),
    }
}

/// Rewrites the weights with one change to them.
fn rewrite(folder: &Path, change: impl FnOnce(&mut HashMap<String, Stored>)) {
    let path = folder.join("model.safetensors");
    let bytes = std::fs::read(&path).unwrap();
    let mut tensors: HashMap<_, _> = SafeTensors::deserialize(&bytes)
        .unwrap()
        .tensors()
        .into_iter()
        .map(|(name, view)| {
            let stored = Stored {
                dtype: view.dtype(),
                shape: view.shape().to_vec(),
                bytes: view.data().to_vec(),
            };
            (name, stored)
        })
        .collect();
    change(&mut tensors);
    let views = tensors.iter().map(|(name, stored)| {
        (
            name,
            TensorView::new(stored.dtype, stored.shape.clone(), &stored.bytes).unwrap(),
        )
    });
    safetensors::serialize_to_file(views, None, &path).unwrap();
}

fn assert_refused(change: impl FnOnce(&mut HashMap<String, Stored>)) {
    let folder = copy();
    rewrite(folder.path(), change);
    let complaint = complaint(folder.path());
    assert!(complaint.contains("model.safetensors"), "{complaint}");
    assert!(complaint.contains(TENSOR), "{complaint}");
}

/// Replaces a text in the configuration.
fn assert_config_refused(from: &str, to: &str, wanted: &str) {
    let folder = copy();
    let path = folder.path().join("config.json");
    let config = std::fs::read_to_string(&path).unwrap();
    assert!(config.contains(from), "{from} is not in the configuration");
    std::fs::write(&path, config.replace(from, to)).unwrap();
    let complaint = complaint(folder.path());
    assert!(complaint.contains(wanted), "{complaint}");
}

#[test]
fn a_rewritten_good_model_is_taken() {
    let folder = copy();
    rewrite(folder.path(), |_| {});
    assert!(Gpt2::<Cpu>::load(&files_in(folder.path()), Dtype::F32, &FlexDevice).is_ok());
}

#[test]
fn a_missing_file_is_named() {
    for file in ["config.json", "model.safetensors"] {
        let folder = copy();
        std::fs::remove_file(folder.path().join(file)).unwrap();
        let complaint = complaint(folder.path());
        assert!(complaint.contains(file), "{complaint}");
    }
    let error = ModelFiles::open(copy().path()).unwrap_err().to_string();
    assert!(error.contains("tokenizer.json"), "{error}");
}

#[test]
fn a_missing_tensor_is_named() {
    assert_refused(|tensors| {
        tensors.remove(TENSOR);
    });
}

#[test]
fn a_tensor_of_another_shape_is_named() {
    assert_refused(|tensors| tensors.get_mut(TENSOR).unwrap().shape.reverse());
}

#[test]
fn a_tensor_of_another_type_is_named() {
    assert_refused(|tensors| tensors.get_mut(TENSOR).unwrap().dtype = FileDtype::I32);
}

#[test]
fn a_tensor_that_holds_no_number_is_named() {
    for value in [f32::NAN, f32::INFINITY] {
        assert_refused(|tensors| {
            tensors.get_mut(TENSOR).unwrap().bytes[80..84].copy_from_slice(&value.to_le_bytes());
        });
    }
}

#[test]
fn weights_cut_short_anywhere_are_refused() {
    let folder = copy();
    let path = folder.path().join("model.safetensors");
    let whole = std::fs::read(&path).unwrap();
    for len in [0, 4, 8, 100, whole.len() / 2, whole.len() - 1] {
        std::fs::write(&path, &whole[..len]).unwrap();
        let complaint = complaint(folder.path());
        assert!(complaint.contains("model.safetensors"), "{len} bytes: {complaint}");
    }
}

#[test]
fn weights_that_are_something_else_are_refused() {
    let folder = copy();
    for bytes in [
        vec![0xff; 64],
        b"<!doctype html><html><body>Not found</body></html>".to_vec(),
    ] {
        std::fs::write(folder.path().join("model.safetensors"), bytes).unwrap();
        let complaint = complaint(folder.path());
        assert!(complaint.contains("model.safetensors"), "{complaint}");
    }
}

/// Makes every tensor BF16, or the F32 that holds the very same values.
fn in_brain_floats(tensors: &mut HashMap<String, Stored>, narrow: bool) {
    for stored in tensors.values_mut() {
        // A BF16 is the upper half of an F32.
        stored.bytes = stored
            .bytes
            .chunks_exact(4)
            .flat_map(|bytes| {
                if narrow {
                    vec![bytes[2], bytes[3]]
                } else {
                    vec![0, 0, bytes[2], bytes[3]]
                }
            })
            .collect();
        stored.dtype = if narrow { FileDtype::BF16 } else { FileDtype::F32 };
    }
}

#[test]
fn weights_in_brain_floats_are_read_exactly() {
    let [narrow, wide] = [true, false].map(|narrow| {
        let folder = copy();
        rewrite(folder.path(), |tensors| in_brain_floats(tensors, narrow));
        prefill(&mut runner(&files_in(folder.path())), &[3, 1, 4, 1, 5, 9], 6)
    });
    assert_eq!(narrow, wide);
}

#[test]
fn attention_of_another_kind_is_refused_by_the_name_of_its_switch() {
    assert_config_refused(
        "\"scale_attn_weights\": true",
        "\"scale_attn_weights\": false",
        "scale_attn_weights",
    );
    assert_config_refused(
        "\"scale_attn_by_inverse_layer_idx\": false",
        "\"scale_attn_by_inverse_layer_idx\": true",
        "scale_attn_by_inverse_layer_idx",
    );
}

#[test]
fn a_configuration_that_cannot_be_is_refused() {
    assert_config_refused("\"n_head\": 4", "\"n_head\": 5", "n_head");
    assert_config_refused("\"n_layer\": 3", "\"n_layer\": 0", "n_layer");
    assert_config_refused("\"n_embd\": 48", "\"n_embd\": \"wide\"", "config.json");
    assert_config_refused("gelu_new", "relu", "relu");
    assert_config_refused(
        "\"layer_norm_epsilon\": 1e-05",
        "\"layer_norm_epsilon\": 0",
        "layer_norm_epsilon",
    );
    assert_config_refused("\"vocab_size\": 311", "\"vocab_size\": 312", "wte.weight");
    assert_config_refused("{", "", "config.json");
}
