//! A folder of what was worked out of weight files before: their digests, and their tensors as a device takes them.
//!
//! All of it can be made again. What is missing, damaged or of a file that has changed since is made anew, and a folder
//! that cannot be used makes a start slower and nothing else. A file is known by what the system says of it (which file, how
//! long, when changed), not by its content: finding it costs nothing. Entries are written beside their name and renamed, and
//! those that were not used for the longest time make room.

use std::fs::{DirBuilder, File, FileTimes, Metadata};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use claimcheck_common::config::WeightsCacheConfig;
use sha2::{Digest, Sha256};
use tempfile::NamedTempFile;
use xxhash_rust::xxh3::xxh3_64;

/// What an entry's name ends with; other files of the folder are left alone.
const ENDINGS: [&str; 3] = ["tensors", "sha256", "begun"];
/// A file that changed this lately may change once more without a trace in its times, so nothing is kept of it.
const SETTLED: Duration = Duration::from_secs(2);

/// The folder, and how much may lie there.
#[derive(Debug, Clone)]
pub struct WeightsCache {
    folder: PathBuf,
    most_bytes: u64,
}

/// A place for one thing about one state of one file.
#[derive(Debug)]
pub(super) struct Slot {
    cache: WeightsCache,
    source: PathBuf,
    about: &'static str,
    detail: String,
    /// The entry's name, of what the system said of the source when the slot was made.
    path: PathBuf,
}

impl WeightsCache {
    /// `None` where none is configured.
    pub fn new(config: &WeightsCacheConfig) -> Option<Self> {
        config.folder.as_ref().map(|folder| Self {
            folder: folder.clone(),
            most_bytes: u64::from(config.most_mib) << 20,
        })
    }

    /// The place for tensors of `weights`; `detail` is all that they depend on beside the file.
    pub(super) fn tensors(&self, weights: &Path, detail: String) -> Option<Slot> {
        self.slot(weights, ENDINGS[0], detail)
    }

    /// SHA-256 of a file in hexadecimal, if it was told before.
    fn sha256(&self, file: &Path) -> Option<String> {
        let mut entry = self.slot(file, ENDINGS[1], String::new())?.open()?;
        let text = io::read_to_string(&mut entry).ok()?;
        let (digest, sum) = text.trim_end().split_once(' ')?;
        (sum == check(digest)).then(|| digest.to_owned())
    }

    /// SHA-256 of a file in hexadecimal; reads it, and keeps what came out, unless it was told before.
    pub(super) fn digest(&self, file: &Path) -> io::Result<String> {
        if let Some(digest) = self.sha256(file) {
            return Ok(digest);
        }
        // Before it is read: what is kept is of this state of the file, if it is still the same at the end.
        let slot = self.slot(file, ENDINGS[1], String::new());
        let digest = sha256(file)?;
        if let Some(slot) = slot {
            slot.keep_or_warn(|entry| writeln!(entry, "{digest} {}", check(&digest)));
        }
        Ok(digest)
    }

    fn slot(&self, source: &Path, about: &'static str, detail: String) -> Option<Slot> {
        let metadata = std::fs::metadata(source).ok()?;
        let name = name(&metadata, about, &detail);
        Some(Slot {
            cache: self.clone(),
            source: source.to_owned(),
            path: self.folder.join(format!("{name}.{about}")),
            about,
            detail,
        })
    }

    /// Removes entries until the folder holds no more than it may.
    fn make_room(&self) -> io::Result<()> {
        let mut entries = Vec::new();
        for entry in std::fs::read_dir(&self.folder)? {
            let path = entry?.path();
            let ours = path
                .extension()
                .is_some_and(|ending| ENDINGS.iter().any(|one| ending == *one));
            // Another process may remove it at the same time.
            if let (true, Ok(metadata)) = (ours, std::fs::metadata(&path)) {
                entries.push((metadata.modified()?, metadata.len(), path));
            }
        }
        let mut held: u64 = entries.iter().map(|(_, len, _)| len).sum();
        entries.sort();
        for (_, len, path) in entries {
            if held <= self.most_bytes {
                break;
            }
            let _ = std::fs::remove_file(path);
            held -= len;
        }
        Ok(())
    }
}

impl Slot {
    /// The entry, if there is one; it counts as used.
    pub(super) fn open(&self) -> Option<File> {
        let file = File::open(&self.path).ok()?;
        // Of a folder that may only be read the order of removal does not matter.
        let _ = file.set_times(FileTimes::new().set_modified(SystemTime::now()));
        Some(file)
    }

    /// Says that the entry is not what it should be, and removes it.
    pub(super) fn discard(&self, error: &io::Error) {
        tracing::warn!(%error, entry = %self.path.display(), "what was kept of the weights is damaged and is made anew");
        let _ = std::fs::remove_file(&self.path);
    }

    /// A file beside the entry, to be handed to [`Self::keep`] when it is written. `None`: nothing is to be kept.
    pub(super) fn begin(&self) -> Option<NamedTempFile> {
        if !self.is_settled() {
            return None;
        }
        let begun = || {
            DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(&self.cache.folder)?;
            tempfile::Builder::new()
                .suffix(".begun")
                .tempfile_in(&self.cache.folder)
        };
        begun().inspect_err(|error| self.warn(error)).ok()
    }

    /// Makes `entry` the entry, unless the source has changed meanwhile or it is more than the folder may hold.
    pub(super) fn keep(&self, entry: NamedTempFile) -> io::Result<()> {
        let fits = entry.as_file().metadata()?.len() <= self.cache.most_bytes;
        let same = std::fs::metadata(&self.source).is_ok_and(|now| {
            let name = name(&now, self.about, &self.detail);
            self.path.file_stem().is_some_and(|stem| stem == name.as_str())
        });
        if fits && same {
            entry.persist(&self.path)?;
            self.cache.make_room()?;
        }
        Ok(())
    }

    /// Says once that nothing could be kept.
    pub(super) fn warn(&self, error: &io::Error) {
        let folder = self.cache.folder.display();
        tracing::warn!(%error, %folder, "the weights cannot be kept for the next start (CLAIMCHECK_WEIGHTS_CACHE)");
    }

    fn keep_or_warn(&self, write: impl FnOnce(&mut NamedTempFile) -> io::Result<()>) {
        let Some(mut entry) = self.begin() else { return };
        if let Err(error) = write(&mut entry).and_then(|()| self.keep(entry)) {
            self.warn(&error);
        }
    }

    fn is_settled(&self) -> bool {
        let modified = std::fs::metadata(&self.source).and_then(|metadata| metadata.modified());
        let age = modified.map(|modified| SystemTime::now().duration_since(modified));
        age.is_ok_and(|age| age.is_ok_and(|age| age >= SETTLED))
    }
}

/// SHA-256 of a file in hexadecimal.
pub(super) fn sha256(path: &Path) -> io::Result<String> {
    let mut hasher = Sha256::new();
    io::copy(&mut File::open(path)?, &mut hasher)?;
    Ok(hex::encode(hasher.finalize()))
}

/// What the system says of a file: another text where it may hold something else.
pub(super) fn state(metadata: &Metadata) -> String {
    let (changed, modified) = (
        (metadata.ctime(), metadata.ctime_nsec()),
        (metadata.mtime(), metadata.mtime_nsec()),
    );
    let (device, number, len) = (metadata.dev(), metadata.ino(), metadata.len());
    format!("{device} {number} {len} {modified:?} {changed:?}")
}

/// The name of what is kept about a file in this state.
fn name(metadata: &Metadata, about: &str, detail: &str) -> String {
    let state = format!("{} {about} {detail}", state(metadata));
    hex::encode(&Sha256::digest(state)[..16])
}

fn check(digest: &str) -> String {
    format!("{:016x}", xxh3_64(digest.as_bytes()))
}

/// Makes a file one that was written a minute ago.
#[cfg(test)]
pub(super) fn age(path: &Path) {
    let times = FileTimes::new().set_modified(SystemTime::now() - Duration::from_mins(1));
    let file = File::options().write(true).open(path).unwrap();
    file.set_times(times).unwrap();
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Kept {
        folder: tempfile::TempDir,
        cache: WeightsCache,
    }

    /// A cache, and a file that was written a while ago.
    fn kept(most_mib: u32) -> (Kept, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let config = WeightsCacheConfig {
            folder: Some(folder.path().join("cache")),
            most_mib,
        };
        let cache = WeightsCache::new(&config).unwrap();
        let file = folder.path().join("file");
        write_long_ago(&file, b"weights");
        (Kept { folder, cache }, file)
    }

    fn write_long_ago(path: &Path, bytes: &[u8]) {
        std::fs::write(path, bytes).unwrap();
        age(path);
    }

    fn entries(cache: &WeightsCache) -> Vec<PathBuf> {
        let entries =
            std::fs::read_dir(&cache.folder).map(|entries| entries.map(|entry| entry.unwrap().path()).collect());
        entries.unwrap_or_default()
    }

    #[test]
    fn a_digest_is_known_again_until_the_file_changes() {
        let (kept, file) = kept(1);
        assert_eq!(kept.cache.sha256(&file), None);
        let digest = kept.cache.digest(&file).unwrap();
        assert_eq!(digest, hex::encode(Sha256::digest(b"weights")));
        assert_eq!(kept.cache.sha256(&file), Some(digest));
        write_long_ago(&file, b"WEIGHTS");
        assert_eq!(kept.cache.sha256(&file), None);
    }

    #[test]
    fn a_damaged_digest_is_not_believed() {
        let (kept, file) = kept(1);
        kept.cache.digest(&file).unwrap();
        let entry = entries(&kept.cache).remove(0);
        let text = std::fs::read_to_string(&entry).unwrap();
        let first = if text.starts_with('0') { "1" } else { "0" };
        for damaged in [format!("{first}{}", &text[1..]), text[..40].to_owned(), String::new()] {
            std::fs::write(&entry, damaged).unwrap();
            assert_eq!(kept.cache.sha256(&file), None);
        }
    }

    #[test]
    fn nothing_is_kept_of_a_file_that_was_written_just_now_or_while_it_was_read() {
        let (kept, file) = kept(1);
        let slot = kept.cache.tensors(&file, String::new()).unwrap();
        let begun = slot.begin().unwrap();
        write_long_ago(&file, b"more weights");
        slot.keep(begun).unwrap();
        std::fs::write(&file, b"weights").unwrap();
        assert!(kept.cache.digest(&file).is_ok());
        assert_eq!(entries(&kept.cache), [] as [PathBuf; 0]);
    }

    #[test]
    fn what_was_not_used_for_longest_makes_room_and_nobody_elses_file_does() {
        let (kept, file) = kept(1);
        let slot = |detail: &str| kept.cache.tensors(&file, detail.to_owned()).unwrap();
        let keep = |detail: &str, long_ago: u64| {
            let mut begun = slot(detail).begin().unwrap();
            begun.write_all(&vec![1; 400 << 10]).unwrap();
            slot(detail).keep(begun).unwrap();
            let times = FileTimes::new().set_modified(SystemTime::now() - Duration::from_secs(long_ago));
            let entry = File::options().write(true).open(slot(detail).path).unwrap();
            entry.set_times(times).unwrap();
        };
        std::fs::create_dir_all(&kept.cache.folder).unwrap();
        let foreign = kept.cache.folder.join("letter.txt");
        std::fs::write(&foreign, vec![0; 2 << 20]).unwrap();
        keep("a", 30);
        keep("b", 20);
        assert!(slot("a").open().is_some(), "and now it was used just now");
        keep("c", 0);
        assert!(slot("b").open().is_none());
        assert!(slot("a").open().is_some() && slot("c").open().is_some());
        assert!(foreign.exists());
    }

    #[test]
    fn a_folder_that_cannot_be_made_is_no_error() {
        let (kept, file) = kept(1);
        let config = WeightsCacheConfig {
            folder: Some(file.join("in a file")),
            most_mib: 1,
        };
        let cache = WeightsCache::new(&config).unwrap();
        assert_eq!(cache.digest(&file).unwrap(), hex::encode(Sha256::digest(b"weights")));
        assert!(kept.folder.path().exists());
    }
}
