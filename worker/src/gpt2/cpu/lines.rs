//! Large memory for the kernels, on page boundaries.

use std::io;
use std::ops::Range;
use std::sync::Arc;

use memmap2::{Advice, Mmap, MmapMut};
use pulp::bytemuck::{cast_slice, cast_slice_mut};

/// Columns of a panel: two AVX-512 registers, or four of AVX2.
pub(super) const WIDTH: usize = 32;

/// A word of each column of a panel, two cache lines.
pub(super) type Line = [u32; WIDTH];

/// A run of lines that are written: zeroed, taken from the machine only where they are.
pub(super) struct Lines(MmapMut);

impl Lines {
    /// So many lines of zeros.
    ///
    /// # Panics
    ///
    /// If the machine does not give the memory.
    pub(super) fn zeroed(len: usize) -> Self {
        // A map is never empty.
        let bytes = (len * size_of::<Line>()).max(1);
        Self(MmapMut::map_anon(bytes).expect("memory for weights and cache"))
    }

    /// The same on huge pages, where the machine has them: for what is streamed through from one end to the other.
    pub(super) fn zeroed_huge(len: usize) -> Self {
        Self(huge(len * size_of::<Line>()).expect("memory for weights and cache"))
    }

    pub(super) fn get_mut(&mut self) -> &mut [Line] {
        let whole = self.0.len() / size_of::<Line>() * size_of::<Line>();
        cast_slice_mut(&mut self.0[..whole])
    }

    /// The lines when all are written.
    ///
    /// # Panics
    ///
    /// If the machine does not take the right to write to its memory back.
    pub(super) fn fixed(self) -> FixedLines {
        let bytes = 0..self.0.len() / size_of::<Line>() * size_of::<Line>();
        let memory = self.0.make_read_only().expect("memory that is only read");
        FixedLines::within(Arc::new(memory), bytes)
    }
}

/// So many bytes of zeros on huge pages, where the machine has them. A map is never empty.
pub(super) fn huge(len: usize) -> io::Result<MmapMut> {
    let bytes = MmapMut::map_anon(len.max(1))?;
    // Without them it is slower and no less right.
    #[cfg(target_os = "linux")]
    let _ = bytes.advise(Advice::HugePage);
    Ok(bytes)
}

/// A run of lines that are only read: a part of memory that others may have parts of.
pub(super) struct FixedLines {
    memory: Arc<Mmap>,
    bytes: Range<usize>,
}

impl FixedLines {
    /// The lines at `bytes`, which begin and end at lines of the memory.
    pub(super) const fn within(memory: Arc<Mmap>, bytes: Range<usize>) -> Self {
        Self { memory, bytes }
    }

    pub(super) fn get(&self) -> &[Line] {
        cast_slice(self.bytes())
    }

    pub(super) fn bytes(&self) -> &[u8] {
        &self.memory[self.bytes.clone()]
    }
}
