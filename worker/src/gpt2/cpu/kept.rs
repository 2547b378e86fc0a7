//! A model's tensors, packed, as one file of the weights cache, whose memory (`mapped.rs`) the kernels use.
//!
//! A file is the tensors in the order in which a model is put together, each filled up with zeros to whole lines, then a check
//! sum of each [`CHUNK`] of that, then a check sum of the sums, how long the tensors are, and [`MAGIC`]. All sums are looked at
//! before the model is there: a file that does not agree with them is not used. Once written it never changes: nobody may
//! write to it, and another takes its place by its name.

use std::fs::{File, Permissions};
use std::io::{self, ErrorKind};
use std::ops::Range;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::sync::Arc;

use burn::backend::flex::FlexDevice;
use burn::tensor::Tensor;
use burn::tensor::TensorData;
use claimcheck_common::domain::Dtype;
use memmap2::Mmap;
use pulp::bytemuck::{cast_slice, pod_read_unaligned};
use rayon::prelude::*;
use tempfile::NamedTempFile;
use xxhash_rust::xxh3::xxh3_64;

use super::lines::{FixedLines, Line};
use super::panels::Panels;
use super::{Cpu, mapped, with_slice};
use crate::gpt2::load::{Packing, ReadTensor, Tensors, WeightFile, assemble};
use crate::gpt2::weights_cache::Slot;
use crate::gpt2::{Gpt2, Gpt2Backend, Gpt2Config, LoadError, ModelFiles, WeightsCache};

/// Goes up when panels are laid out in another way, or the file is.
const VERSION: u32 = 2;
/// Written as the machine writes numbers, as the tensors are.
const MAGIC: u64 = 0x4b45_5054_5041_4e4c;
/// Bytes that one thread writes or checks at once: a huge page, which the machine may then have them in.
const CHUNK: usize = 2 << 20;
/// Chunks that are written side by side.
const CHUNKS_AT_ONCE: usize = 8;
/// Each tensor begins on a line, as the kernels want it.
const ALIGNMENT: usize = size_of::<Line>();
/// Sum of the sums, length of the tensors, magic.
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
        match read(&file, config.clone(), dtype) {
            Ok(model) => return Ok(model),
            Err(error) => slot.discard(&error),
        }
    }
    pack_and_keep(files, config, dtype, &slot)
}

fn read(file: &File, config: Gpt2Config, dtype: Dtype) -> io::Result<Gpt2<Cpu>> {
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
    memory: Arc<Mmap>,
    dtype: Dtype,
    /// Where the next tensor begins.
    offset: usize,
    /// Where the last one has ended.
    end: usize,
}

impl Kept {
    /// Checks all of `file`.
    fn open(file: &File, dtype: Dtype) -> io::Result<Self> {
        let memory = mapped::bytes(file)?;
        let (rest, trailer) = memory.split_last_chunk::<TRAILER>().ok_or_else(damaged)?;
        let [sum, end, magic]: [u64; 3] = pod_read_unaligned(trailer);
        let tensors = usize::try_from(end).ok().and_then(|end| rest.split_at_checked(end));
        let (tensors, sums) = tensors.filter(|_| magic == MAGIC).ok_or_else(damaged)?;
        if xxh3_64(sums) != sum || sums_of(tensors) != sums {
            return Err(damaged());
        }
        let end = tensors.len();
        Ok(Self {
            memory: Arc::new(memory),
            dtype,
            offset: 0,
            end,
        })
    }

    /// Where so many bytes of the next tensor are.
    fn next(&mut self, len: usize) -> io::Result<Range<usize>> {
        let bytes = self.offset..self.offset + len;
        self.offset = bytes.end.next_multiple_of(ALIGNMENT);
        if self.offset <= self.end {
            Ok(bytes)
        } else {
            Err(damaged())
        }
    }

    fn numbers(&mut self, len: usize) -> io::Result<Vec<f32>> {
        let bytes = self.next(len * size_of::<f32>())?;
        Ok(cast_slice(&self.memory[bytes]).to_vec())
    }

    fn panels(&mut self, [inputs, outputs]: [usize; 2]) -> io::Result<Panels> {
        let bytes = self.next(Panels::bytes_of(inputs, outputs, self.dtype))?;
        let lines = FixedLines::within(self.memory.clone(), bytes);
        let scales = self.numbers(Panels::len_of_scales(outputs, self.dtype))?;
        Ok(Panels::of(inputs, outputs, self.dtype, lines, scales))
    }

    /// Nothing was left over.
    fn end(self) -> io::Result<()> {
        if self.offset == self.end {
            Ok(())
        } else {
            Err(damaged())
        }
    }
}

/// The check sum of each chunk, as they stand in a file.
fn sums_of(tensors: &[u8]) -> Vec<u8> {
    let sums: Vec<u64> = tensors.par_chunks(CHUNK).map(xxh3_64).collect();
    cast_slice(&sums).to_vec()
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

/// A file that is written, from its beginning to its end in whole chunks.
struct Entry {
    file: NamedTempFile,
    /// Where the next chunk begins.
    offset: u64,
    /// What is not written yet.
    pending: Vec<u8>,
    sums: Vec<u8>,
    /// The first write that failed; nothing is written after it.
    failed: Option<io::Error>,
}

impl Entry {
    fn new(file: NamedTempFile) -> Self {
        Self {
            file,
            offset: 0,
            pending: Vec::with_capacity(CHUNKS_AT_ONCE * CHUNK),
            sums: Vec::new(),
            failed: None,
        }
    }

    fn add(&mut self, mut bytes: &[u8]) {
        let filling = bytes.len().next_multiple_of(ALIGNMENT) - bytes.len();
        while self.failed.is_none() {
            let room = CHUNKS_AT_ONCE * CHUNK - self.pending.len();
            let (now, later) = bytes.split_at(room.min(bytes.len()));
            self.pending.extend_from_slice(now);
            if later.is_empty() {
                break;
            }
            self.write();
            bytes = later;
        }
        self.pending.resize(self.pending.len() + filling, 0);
    }

    /// Writes what is pending.
    fn write(&mut self) {
        if self.failed.is_some() {
            return;
        }
        let (file, offset) = (self.file.as_file(), self.offset);
        let chunks = self.pending.par_chunks(CHUNK).enumerate();
        let written = chunks.try_for_each(|(number, chunk)| file.write_all_at(chunk, offset + (number * CHUNK) as u64));
        self.failed = written.err();
        self.sums.extend(sums_of(&self.pending));
        self.offset += self.pending.len() as u64;
        self.pending.clear();
    }

    fn add_panels(&mut self, panels: &Panels) {
        self.add(panels.bytes());
        self.add(cast_slice(&panels.scales));
    }

    fn end(mut self) -> io::Result<NamedTempFile> {
        self.write();
        if let Some(error) = self.failed {
            return Err(error);
        }
        let trailer = [xxh3_64(&self.sums), self.offset, MAGIC];
        let file = self.file.as_file();
        file.write_all_at(&self.sums, self.offset)?;
        file.write_all_at(cast_slice(&trailer), self.offset + self.sums.len() as u64)?;
        // Such a file is mapped.
        file.set_permissions(Permissions::from_mode(0o400))?;
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
            read(&File::open(self.entry()).unwrap(), config, dtype).map(logits)
        }

        /// Puts another file in the place of the entry.
        fn replace_entry(&self, bytes: &[u8], mode: u32) {
            let (entry, other) = (self.entry(), self.folder.path().join("other"));
            std::fs::write(&other, bytes).unwrap();
            std::fs::set_permissions(&other, Permissions::from_mode(mode)).unwrap();
            std::fs::rename(other, entry).unwrap();
        }
    }

    /// Modes of files that are mapped, and that are read.
    const MODES: [u32; 2] = [0o400, 0o600];

    fn logits(model: Gpt2<Cpu>) -> Vec<u32> {
        step(&mut Gpt2Runner::new(model, 1))
    }

    fn step(runner: &mut Gpt2Runner<Cpu>) -> Vec<u32> {
        let row = StepRow {
            blocks: vec![0],
            position: 0,
            tokens: vec![3, 1, 4, 1, 5],
            wants_logits: true,
        };
        let logits = runner.step(&[row]).unwrap();
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
        for (damaged, mode) in flipped.chain(cut).chain([longer]).zip(MODES.into_iter().cycle()) {
            world.replace_entry(&damaged, mode);
            assert!(world.read_entry(Dtype::Int8).is_err());
            assert_eq!(world.load(Dtype::Int8), wanted);
            assert_eq!(world.read_entry(Dtype::Int8).unwrap(), wanted, "it is whole again");
        }
    }

    #[test]
    fn an_entry_that_may_be_written_to_is_read_and_computes_the_same() {
        let world = world();
        for dtype in Dtype::ALL {
            let wanted = world.load(dtype);
            let whole = std::fs::read(world.entry()).unwrap();
            for mode in MODES {
                world.replace_entry(&whole, mode);
                assert_eq!(world.read_entry(dtype).unwrap(), wanted, "{mode:o}");
            }
            std::fs::remove_file(world.entry()).unwrap();
        }
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn a_kept_model_lies_in_its_file_also_when_that_is_gone_and_until_it_is_dropped() {
        let world = world();
        let wanted = world.load(Dtype::F32);
        let entry = world.entry();
        let is_mapped = || {
            let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
            maps.contains(entry.to_str().unwrap())
        };
        assert!(!is_mapped(), "what was packed just now lies in memory of its own");
        let model = load(&world.files, Some(&world.cache), Dtype::F32).unwrap();
        assert!(is_mapped());
        let mut runner = Gpt2Runner::new(model, 1);
        assert_eq!(step(&mut runner), wanted);
        world.replace_entry(b"something else", 0o400);
        assert_eq!(step(&mut runner), wanted, "another file has its name");
        std::fs::remove_file(&entry).unwrap();
        assert_eq!(step(&mut runner), wanted, "none has");
        drop(runner);
        assert!(!is_mapped());
    }

    #[test]
    fn tensors_of_any_length_are_found_again_each_on_a_line() {
        let lens = [5, CHUNKS_AT_ONCE * CHUNK + 1, 0, 300, 3 * CHUNK, ALIGNMENT, 1];
        let tensors = lens.map(|len| (0..len).map(|at| (at / 3) as u8).collect::<Vec<_>>());
        let mut entry = Entry::new(NamedTempFile::new().unwrap());
        for tensor in &tensors {
            entry.add(tensor);
        }
        let file = entry.end().unwrap();
        let mut kept = Kept::open(file.as_file(), Dtype::F32).unwrap();
        for tensor in tensors {
            let bytes = kept.next(tensor.len()).unwrap();
            assert_eq!(bytes.start % ALIGNMENT, 0);
            assert!(kept.memory[bytes] == tensor[..]);
        }
        kept.end().unwrap();
    }

    #[test]
    fn an_entry_of_another_shape_is_not_used() {
        let world = world();
        world.load(Dtype::F32);
        let mut config = Gpt2Config::read(&world.files.config).unwrap();
        config.n_layer = 1;
        assert!(read(&File::open(world.entry()).unwrap(), config, Dtype::F32).is_err());
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
