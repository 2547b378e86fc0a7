//! Large memory for the kernels: zeroed, on page boundaries, taken from the machine only where it is written.

use memmap2::{Advice, MmapMut};
use pulp::bytemuck::{cast_slice, cast_slice_mut};

/// Columns of a panel: two AVX-512 registers, or four of AVX2.
pub(super) const WIDTH: usize = 32;

/// A word of each column of a panel, two cache lines.
pub(super) type Line = [u32; WIDTH];

/// A run of lines.
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
        let lines = Self::zeroed(len);
        // Without them it is slower and no less right.
        #[cfg(target_os = "linux")]
        let _ = lines.0.advise(Advice::HugePage);
        lines
    }

    pub(super) fn get(&self) -> &[Line] {
        let whole = self.0.len() / size_of::<Line>() * size_of::<Line>();
        cast_slice(&self.0[..whole])
    }

    pub(super) fn get_mut(&mut self) -> &mut [Line] {
        let whole = self.0.len() / size_of::<Line>() * size_of::<Line>();
        cast_slice_mut(&mut self.0[..whole])
    }
}
