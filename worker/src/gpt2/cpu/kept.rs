//! A model's tensors, packed, as one file of the weights cache: read straight into the memory that the kernels use.
//!
//! A file is the tensors in the order in which a model is put together, then a check sum of each [`CHUNK`] of each of them, then
//! their number, a check sum of the sums, and [`MAGIC`]. A file that does not agree with all of its sums is not used.

use std::fs::File;
use std::io::{self, ErrorKind};
use std::os::unix::fs::FileExt;

use burn::backend::flex::FlexDevice;
use burn::tensor::Tensor;
use burn::tensor::TensorData;
use claimcheck_common::domain::Dtype;
use pulp::bytemuck::{cast_slice, cast_slice_mut};
use rayon::prelude::*;
use tempfile::NamedTempFile;
use xxhash_rust::xxh3::xxh3_64;

use super::panels::Panels;
use super::{Cpu, with_slice};
use crate::gpt2::load::{Packing, ReadTensor, Tensors, WeightFile, assemble};
use crate::gpt2::weights_cache::Slot;
use crate::gpt2::{Gpt2, Gpt2Backend, Gpt2Config, LoadError, ModelFiles, WeightsCache};

/// Goes up when panels are laid out in another way, or the file is.
const VERSION: u32 = 1;
/// Written as the machine writes numbers, as the tensors are.
const MAGIC: u64 = 0x4b45_5054_5041_4e4c;
/// Bytes that one thread reads and checks at once.
const CHUNK: usize = 1 << 20;
/// Number of sums, sum of the sums, magic.
const TRAILER: usize = 3 * size_of::<u64>();

/// Loads the model in `files`: from the cache if it is there, else from its own files and into the cache.
pub(in crate::gpt2) fn load(
    files: &ModelFiles,
    cache: Option<&WeightsCache>,
    dtype: Dtype,
) -> Result<Gpt2<Cpu>, LoadError> {
    let config = Gpt2Config::read(&files.config)?;
    let detail = format!("{VERSION} {} {dtype} {config:?}", cfg!(target_endian = "little"));
    let Some(slot) = cache.and_then(|cache| cache.tensors(&files.weights, detail)) else {
        return Gpt2::load(files, dtype, &FlexDevice);
    };
    if let Some(file) = slot.open() {
        match read(file, config.clone(), dtype) {
            Ok(model) => return Ok(model),
            Err(error) => slot.discard(&error),
        }
    }
    pack_and_keep(files, config, dtype, &slot)
}

fn read(file: File, config: Gpt2Config, dtype: Dtype) -> io::Result<Gpt2<Cpu>> {
    let mut kept = Kept::open(file, dtype)?;
    let model = assemble(config, dtype, &FlexDevice, &mut kept)?;
    kept.end()?;
    Ok(model)
}

fn pack_and_keep(files: &ModelFiles, config: Gpt2Config, dtype: Dtype, slot: &Slot) -> Result<Gpt2<Cpu>, LoadError> {
    let weights = WeightFile::open(&files.weights, &config)?;
    let mut read = |name: &str, shape: &[usize], rows| weights.read(name, shape, rows);
    let mut keeping = Keeping {
        read: &mut read,
        dtype,
        entry: slot.begin().map(Entry::new),
    };
    let model = assemble(config, dtype, &FlexDevice, &mut keeping)?;
    if let Some(entry) = keeping.entry
        && let Err(error) = entry.end().and_then(|file| slot.keep(file))
    {
        slot.warn(&error);
    }
    Ok(model)
}

/// A file that is read.
struct Kept {
    file: File,
    dtype: Dtype,
    /// Where the next tensor begins.
    offset: u64,
    sums: Vec<u64>,
    /// How many of them were used.
    used: usize,
}

impl Kept {
    fn open(file: File, dtype: Dtype) -> io::Result<Self> {
        let len = file.metadata()?.len();
        let end = len.checked_sub(TRAILER as u64).ok_or_else(damaged)?;
        let mut trailer = [0_u64; 3];
        file.read_exact_at(cast_slice_mut(&mut trailer), end)?;
        let [count, sum, magic] = trailer;
        let table = count.checked_mul(8).and_then(|bytes| end.checked_sub(bytes));
        let table = table.filter(|_| magic == MAGIC).ok_or_else(damaged)?;
        let mut sums = vec![0; count as usize];
        file.read_exact_at(cast_slice_mut(&mut sums), table)?;
        if xxh3_64(cast_slice(&sums)) != sum {
            return Err(damaged());
        }
        Ok(Self {
            file,
            dtype,
            offset: 0,
            sums,
            used: 0,
        })
    }

    fn fill(&mut self, bytes: &mut [u8]) -> io::Result<()> {
        let chunks = bytes.len().div_ceil(CHUNK);
        let sums = self.sums.get(self.used..self.used + chunks).ok_or_else(damaged)?;
        let (file, offset) = (&self.file, self.offset);
        let chunks_of_bytes = bytes.par_chunks_mut(CHUNK).zip(sums).enumerate();
        chunks_of_bytes.try_for_each(|(number, (chunk, sum))| {
            file.read_exact_at(chunk, offset + (number * CHUNK) as u64)?;
            if xxh3_64(chunk) == *sum { Ok(()) } else { Err(damaged()) }
        })?;
        self.used += chunks;
        self.offset += bytes.len() as u64;
        Ok(())
    }

    fn numbers(&mut self, len: usize) -> io::Result<Vec<f32>> {
        let mut values = vec![0.0; len];
        self.fill(cast_slice_mut(&mut values))?;
        Ok(values)
    }

    fn panels(&mut self, [inputs, outputs]: [usize; 2]) -> io::Result<Panels> {
        let mut panels = Panels::empty(inputs, outputs, self.dtype);
        self.fill(panels.bytes_mut())?;
        self.fill(cast_slice_mut(&mut panels.scales))?;
        Ok(panels)
    }

    /// Nothing was left over.
    fn end(self) -> io::Result<()> {
        if self.used == self.sums.len() {
            Ok(())
        } else {
            Err(damaged())
        }
    }
}

impl Tensors<Cpu> for Kept {
    type Error = io::Error;

    fn floats(&mut self, _name: &str, shape: [usize; 2]) -> io::Result<<Cpu as Gpt2Backend>::Floats> {
        let values = self.numbers(shape.iter().product())?;
        Ok(Tensor::from_data(TensorData::new(values, shape), &FlexDevice))
    }

    fn vector(&mut self, _name: &str, width: usize) -> io::Result<<Cpu as Gpt2Backend>::Vector> {
        Ok(Cpu::vector(self.numbers(width)?, &FlexDevice))
    }

    fn matrix(&mut self, _name: &str, shape: [usize; 2]) -> io::Result<Panels> {
        self.panels(shape)
    }

    fn transposed(&mut self, _name: &str, shape: [usize; 2]) -> io::Result<Panels> {
        self.panels(shape)
    }
}

fn damaged() -> io::Error {
    io::Error::new(ErrorKind::InvalidData, "it is not as it was written")
}

/// A file that is written.
struct Entry {
    file: NamedTempFile,
    offset: u64,
    sums: Vec<u64>,
    /// The first write that failed; nothing is written after it.
    failed: Option<io::Error>,
}

impl Entry {
    const fn new(file: NamedTempFile) -> Self {
        Self {
            file,
            offset: 0,
            sums: Vec::new(),
            failed: None,
        }
    }

    fn add(&mut self, bytes: &[u8]) {
        if self.failed.is_some() {
            return;
        }
        let (file, offset) = (self.file.as_file(), self.offset);
        let chunks = bytes.par_chunks(CHUNK).enumerate();
        let written = chunks.map(|(number, chunk)| {
            file.write_all_at(chunk, offset + (number * CHUNK) as u64)?;
            Ok(xxh3_64(chunk))
        });
        match written.collect::<io::Result<Vec<_>>>() {
            Ok(sums) => self.sums.extend(sums),
            Err(error) => self.failed = Some(error),
        }
        self.offset += bytes.len() as u64;
    }

    fn add_panels(&mut self, panels: &Panels) {
        self.add(panels.bytes());
        self.add(cast_slice(&panels.scales));
    }

    fn end(mut self) -> io::Result<NamedTempFile> {
        if let Some(error) = self.failed.take() {
            return Err(error);
        }
        let sums: &[u8] = cast_slice(&self.sums);
        let trailer = [self.sums.len() as u64, xxh3_64(sums), MAGIC];
        let file = self.file.as_file();
        file.write_all_at(sums, self.offset)?;
        file.write_all_at(cast_slice(&trailer), self.offset + sums.len() as u64)?;
        Ok(self.file)
    }
}

/// Tensors of a weight file, each written to the entry as it is packed.
struct Keeping<'a, 'r> {
    read: &'a mut ReadTensor<'r, LoadError>,
    dtype: Dtype,
    entry: Option<Entry>,
}

impl<'r> Keeping<'_, 'r> {
    const fn packing(&mut self) -> Packing<'_, 'r, Cpu, LoadError> {
        Packing {
            read: &mut *self.read,
            dtype: self.dtype,
            device: &FlexDevice,
        }
    }

    fn kept(&mut self, panels: Panels) -> Panels {
        if let Some(entry) = &mut self.entry {
            entry.add_panels(&panels);
        }
        panels
    }

    fn kept_numbers<const D: usize>(&mut self, numbers: Tensor<Cpu, D>) -> Tensor<Cpu, D> {
        if let Some(entry) = &mut self.entry {
            with_slice(&numbers, |numbers| entry.add(cast_slice(numbers)));
        }
        numbers
    }
}

impl Tensors<Cpu> for Keeping<'_, '_> {
    type Error = LoadError;

    fn floats(&mut self, name: &str, shape: [usize; 2]) -> Result<<Cpu as Gpt2Backend>::Floats, LoadError> {
        let floats = self.packing().floats(name, shape)?;
        Ok(self.kept_numbers(floats))
    }

    fn vector(&mut self, name: &str, width: usize) -> Result<<Cpu as Gpt2Backend>::Vector, LoadError> {
        let vector = self.packing().vector(name, width)?;
        Ok(self.kept_numbers(vector))
    }

    fn matrix(&mut self, name: &str, shape: [usize; 2]) -> Result<Panels, LoadError> {
        let panels = self.packing().matrix(name, shape)?;
        Ok(self.kept(panels))
    }

    fn transposed(&mut self, name: &str, shape: [usize; 2]) -> Result<Panels, LoadError> {
        let panels = self.packing().transposed(name, shape)?;
        Ok(self.kept(panels))
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use claimcheck_common::config::WeightsCacheConfig;

    use super::*;
    use crate::gpt2::weights_cache::age;
    use crate::gpt2::{Gpt2Runner, StepModel, StepRow, save_random};

    struct World {
        folder: tempfile::TempDir,
        files: ModelFiles,
        cache: WeightsCache,
    }

    /// A model of random weights, untied and of sizes that fill no panel, that was written a while ago.
    fn world() -> World {
        world_of(&Gpt2Config {
            vocab_size: 61,
            n_positions: 40,
            n_embd: 36,
            n_layer: 2,
            n_head: 3,
            tie_word_embeddings: false,
            ..Gpt2Config::named("tiny").unwrap()
        })
    }

    fn world_of(config: &Gpt2Config) -> World {
        let folder = tempfile::tempdir().unwrap();
        save_random(config, 7, folder.path()).unwrap();
        let files = ModelFiles::open(folder.path()).unwrap();
        age(&files.weights);
        let config = WeightsCacheConfig {
            folder: Some(folder.path().join("cache")),
            most_mib: 64,
        };
        let cache = WeightsCache::new(&config).unwrap();
        World { folder, files, cache }
    }

    impl World {
        fn load(&self, dtype: Dtype) -> Vec<u32> {
            logits(load(&self.files, Some(&self.cache), dtype).unwrap())
        }

        fn entry(&self) -> PathBuf {
            let mut entries = std::fs::read_dir(self.folder.path().join("cache")).unwrap();
            let entry = entries.next().unwrap().unwrap().path();
            assert!(entries.next().is_none(), "one model, one entry");
            entry
        }

        fn read_entry(&self, dtype: Dtype) -> io::Result<Vec<u32>> {
            let config = Gpt2Config::read(&self.files.config).unwrap();
            read(File::open(self.entry()).unwrap(), config, dtype).map(logits)
        }
    }

    fn logits(model: Gpt2<Cpu>) -> Vec<u32> {
        let row = StepRow {
            blocks: vec![0],
            position: 0,
            tokens: vec![3, 1, 4, 1, 5],
            wants_logits: true,
        };
        let logits = Gpt2Runner::new(model, 1).step(&[row]).unwrap();
        logits.iter().map(|logit| logit.to_bits()).collect()
    }

    #[test]
    fn what_was_kept_computes_bit_for_bit_what_the_files_do() {
        for dtype in Dtype::ALL {
            let world = world();
            let without = logits(Gpt2::load(&world.files, dtype, &FlexDevice).unwrap());
            assert_eq!(world.load(dtype), without, "packed and kept");
            assert_eq!(world.read_entry(dtype).unwrap(), without, "kept");
            assert_eq!(world.load(dtype), without, "found");
        }
    }

    #[test]
    fn a_model_takes_the_memory_that_its_configuration_says() {
        let config = Gpt2Config::named("tiny").unwrap();
        for dtype in Dtype::ALL {
            let world = world_of(&config);
            world.load(dtype);
            let kept = std::fs::metadata(world.entry()).unwrap().len() as f64;
            let share = config.bytes(dtype) as f64 / kept;
            assert!((0.93..=1.0).contains(&share), "{share} of the {dtype} weights");
        }
    }

    #[test]
    fn an_entry_that_is_damaged_anywhere_is_not_used_and_made_anew() {
        let world = world();
        let wanted = world.load(Dtype::Int8);
        let whole = std::fs::read(world.entry()).unwrap();
        let places = (0..whole.len())
            .step_by(whole.len() / 50)
            .chain(whole.len() - 40..whole.len());
        let flipped = places.map(|place| {
            let mut damaged = whole.clone();
            damaged[place] ^= 1;
            damaged
        });
        let cut = [0, 1, TRAILER, whole.len() / 2, whole.len() - 1].map(|len| whole[..len].to_vec());
        let longer = [whole.clone(), vec![0; 64]].concat();
        for damaged in flipped.chain(cut).chain([longer]) {
            std::fs::write(world.entry(), damaged).unwrap();
            assert!(world.read_entry(Dtype::Int8).is_err());
            assert_eq!(world.load(Dtype::Int8), wanted);
            assert_eq!(world.read_entry(Dtype::Int8).unwrap(), wanted, "it is whole again");
        }
    }

    #[test]
    fn an_entry_of_another_shape_is_not_used() {
        let world = world();
        world.load(Dtype::F32);
        let mut config = Gpt2Config::read(&world.files.config).unwrap();
        config.n_layer = 1;
        assert!(read(File::open(world.entry()).unwrap(), config, Dtype::F32).is_err());
        assert!(world.read_entry(Dtype::Bf16).is_err());
    }

    #[test]
    fn weights_that_were_cut_short_since_are_refused_by_name_all_the_same() {
        let world = world();
        world.load(Dtype::F32);
        let whole = std::fs::read(&world.files.weights).unwrap();
        std::fs::write(&world.files.weights, &whole[..whole.len() - 1]).unwrap();
        age(&world.files.weights);
        let Err(error) = load(&world.files, Some(&world.cache), Dtype::F32) else {
            panic!("weights without an end");
        };
        assert!(error.to_string().contains("model.safetensors"), "{error}");
    }
}
