//! A kept file's bytes as memory that does not change.
//!
//! The file is mapped where nobody may write to it and the machine has it in huge pages, so that nothing is copied and the
//! processes that serve a model share its memory. Otherwise it is read into memory of its own. With `x86.rs` the only place with
//! `unsafe` here.

#![allow(unsafe_code)]

use std::fs::File;
use std::hint::black_box;
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};

use memmap2::{Advice, Mmap};
use rayon::prelude::*;
use rustix::process::geteuid;

use super::lines::huge;

/// Bytes that one thread reads at once.
const CHUNK: usize = 1 << 20;
/// A huge page.
#[cfg(target_os = "linux")]
const HUGE: usize = 2 << 20;
/// So much is streamed through as fast in small pages.
#[cfg(target_os = "linux")]
const SMALL: usize = 8 * HUGE;

/// The bytes of `file`, on a page boundary.
pub(super) fn bytes(file: &File) -> io::Result<Mmap> {
    let metadata = file.metadata()?;
    let is_fixed = metadata.is_file() && is_fixed(metadata.mode(), metadata.uid(), geteuid().as_raw());
    if is_fixed {
        // SAFETY: What is mapped must not change. Nobody may write to this file, and who could allow it again, its owner, is this
        // user or root. Of them, we write an entry before it has its name and takes this permission (`kept.rs`), never
        // after; that others do not is asked of whoever runs the program (docs/OPERATIONS.md). Removing it or putting another
        // in its place leaves what is mapped as it is.
        let map = unsafe { Mmap::map(file) };
        if let Ok(map) = map
            && is_fast(&map)
        {
            return Ok(map);
        }
    }
    read(file, metadata.len() as usize)
}

/// Whether nobody may write to a file, and nobody but `user` and root can change that.
fn is_fixed(mode: u32, owner: u32, user: u32) -> bool {
    mode & 0o222 == 0 && [user, 0].contains(&owner)
}

/// Whether the machine has `map` in huge pages, by some of them. It does where its file system keeps files in such (large
/// folios) and had them free; without, weights are read from memory a third slower (benchmarks/engine-cpu.md).
#[cfg(target_os = "linux")]
fn is_fast(map: &Mmap) -> bool {
    if map.len() <= SMALL {
        return true;
    }
    // What is not in memory yet is then read in huge pages.
    let _ = map.advise(Advice::HugePage);
    let pages = map.chunks_exact(HUGE);
    let apart = pages.len() / 16 + 1;
    let looked_at: Vec<u8> = black_box(pages.step_by(apart).map(|page| page[0]).collect());
    let huge = smaps_kib(map, "FilePmdMapped:").unwrap_or(0) << 10;
    huge >= looked_at.len() * HUGE / 4 * 3
}

#[cfg(not(target_os = "linux"))]
const fn is_fast(_map: &Mmap) -> bool {
    true
}

/// What the system says of a map under that name (proc(5)).
#[cfg(target_os = "linux")]
fn smaps_kib(map: &Mmap, name: &str) -> Option<usize> {
    let smaps = std::fs::read_to_string("/proc/self/smaps").ok()?;
    // With eight digits at least.
    let first = format!("{:08x}-", map.as_ptr().addr());
    let mut lines = smaps.lines().skip_while(|line| !line.starts_with(&first));
    let line = lines.find_map(|line| line.strip_prefix(name))?;
    line.trim().strip_suffix(" kB")?.parse().ok()
}

fn read(file: &File, len: usize) -> io::Result<Mmap> {
    let mut bytes = huge(len)?;
    let chunks = bytes.par_chunks_mut(CHUNK).enumerate();
    chunks.try_for_each(|(number, chunk)| file.read_exact_at(chunk, (number * CHUNK) as u64))?;
    bytes.make_read_only()
}

#[cfg(test)]
mod tests {
    use std::fs::Permissions;
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_file_is_mapped_if_nobody_may_write_to_it_and_nobody_else_can_change_that() {
        for (mode, owner, mapped) in [
            (0o400, 1000, true),
            (0o444, 1000, true),
            (0o444, 0, true),
            (0o600, 1000, false),
            (0o420, 1000, false),
            (0o402, 0, false),
            (0o444, 1001, false),
        ] {
            assert_eq!(is_fixed(0o100_000 | mode, owner, 1000), mapped, "{mode:o} of {owner}");
        }
    }

    #[test]
    fn bytes_that_are_read_are_those_of_the_file() {
        let file = tempfile::tempfile().unwrap();
        let wanted: Vec<u8> = (0..CHUNK + 7).map(|at| (at / 3) as u8).collect();
        file.write_all_at(&wanted, 0).unwrap();
        assert!(bytes(&file).unwrap()[..] == wanted[..]);
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn what_the_system_says_of_a_map_is_found() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(64 << 10).unwrap();
        file.set_permissions(Permissions::from_mode(0o400)).unwrap();
        let map = bytes(&file).unwrap();
        assert_eq!(smaps_kib(&map, "Size:"), Some(64));
        assert_eq!(smaps_kib(&map, "FilePmdMapped:"), Some(0));
        assert_eq!(smaps_kib(&map, "Unheard-of:"), None);
    }
}
