//! The bytes of uploaded files and of batches' outputs: in a folder, or in a bucket that speaks S3.
//!
//! Knows a file by its id alone; who may read it stands in `store/files.rs`. Reads and writes go through in pieces, so that a
//! file of any size takes the memory of two of them. Next: `store/files.rs`.

use std::io;
use std::path::{Path as FolderPath, PathBuf};
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use futures::stream::BoxStream;
use futures::{StreamExt, TryStreamExt, stream};
use object_store::buffered::BufWriter;
use object_store::path::Path;
use object_store::{GetOptions, GetRange, ObjectStore, ObjectStoreExt, parse_url_opts};
use tokio::fs::{self, File};
use tokio::io::{AsyncReadExt, AsyncSeekExt, AsyncWriteExt};

use crate::config::FilesConfig;
use crate::domain::FileId;

/// The smallest piece that S3 takes.
const PIECE: usize = 5 << 20;
const PIECES_ON_THE_WAY: usize = 1;
/// What is read from a folder at a time.
const READ: usize = 256 << 10;

/// What can go wrong with a file's bytes.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// There is no such file.
    #[error("the file is not there")]
    Missing,
    /// The bucket cannot be reached, or refuses.
    #[error("the bucket failed")]
    Bucket(#[from] object_store::Error),
    /// The folder cannot be read or written.
    #[error("the folder failed")]
    Folder(#[from] io::Error),
    /// The place for files is not usable.
    #[error("CLAIMCHECK_FILES ({0}) is not usable")]
    Place(String, #[source] Box<dyn std::error::Error + Send + Sync>),
}

type FileResult<T> = Result<T, FileError>;

/// Where files lie. Cheap to clone.
#[derive(Debug, Clone)]
pub struct FileStore(Place);

#[derive(Debug, Clone)]
enum Place {
    Folder(Arc<FolderPath>),
    Bucket(Arc<dyn ObjectStore>, Path),
}

impl FileStore {
    /// Opens a folder (made if it is not there) or `s3://bucket/prefix`. A bucket is not asked yet.
    pub fn open(config: &FilesConfig) -> FileResult<Self> {
        let place = |error| FileError::Place(config.place.clone(), error);
        let Some(url) = config.bucket_url() else {
            let folder = PathBuf::from(&config.place);
            std::fs::create_dir_all(&folder).map_err(|error| place(error.into()))?;
            return Ok(Self(Place::Folder(folder.into())));
        };
        crate::tls::install_default();
        let opened = parse_url_opts(&url, config.s3.iter().cloned());
        let (objects, prefix) = opened.map_err(|error| place(error.into()))?;
        Ok(Self(Place::Bucket(objects.into(), prefix)))
    }

    /// A new file. It is there as a whole once it is finished, and not at all before.
    pub fn writer(&self, id: FileId) -> FileWriter {
        let on_its_way = match &self.0 {
            Place::Folder(folder) => OnItsWay::Folder {
                folder: folder.clone(),
                id,
                file: None,
            },
            Place::Bucket(objects, prefix) => {
                let objects = BufWriter::with_capacity(objects.clone(), object(prefix, id), PIECE);
                OnItsWay::Bucket(objects.with_max_concurrency(PIECES_ON_THE_WAY))
            }
        };
        FileWriter {
            on_its_way: Some(on_its_way),
            written: 0,
        }
    }

    /// The file's bytes from that place on.
    pub async fn read(&self, id: FileId, from: u64) -> FileResult<BoxStream<'static, FileResult<Bytes>>> {
        match &self.0 {
            Place::Folder(folder) => {
                let mut file = File::open(whole(folder, id)).await.map_err(missing)?;
                file.seek(io::SeekFrom::Start(from)).await?;
                Ok(stream::try_unfold(file, read_piece).boxed())
            }
            Place::Bucket(objects, prefix) => {
                let options = GetOptions {
                    range: (from > 0).then_some(GetRange::Offset(from)),
                    ..GetOptions::default()
                };
                match objects.get_opts(&object(prefix, id), options).await {
                    Ok(found) => Ok(found.into_stream().map_err(FileError::from).boxed()),
                    Err(object_store::Error::NotFound { .. }) => Err(FileError::Missing),
                    Err(error) => Err(error.into()),
                }
            }
        }
    }

    /// Removes the file, and what an upload that was cut off left of it. Safe to repeat.
    pub async fn discard(&self, id: FileId) -> FileResult<()> {
        match &self.0 {
            Place::Folder(folder) => {
                for path in [whole(folder, id), half(folder, id)] {
                    match fs::remove_file(path).await {
                        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error.into()),
                        _ => {}
                    }
                }
                Ok(())
            }
            Place::Bucket(objects, prefix) => match objects.delete(&object(prefix, id)).await {
                Err(object_store::Error::NotFound { .. }) | Ok(()) => Ok(()),
                Err(error) => Err(error.into()),
            },
        }
    }
}

fn object(prefix: &Path, id: FileId) -> Path {
    prefix.clone().join(id.to_string())
}

fn whole(folder: &FolderPath, id: FileId) -> PathBuf {
    folder.join(id.to_string())
}

fn half(folder: &FolderPath, id: FileId) -> PathBuf {
    folder.join(format!("{id}.part"))
}

fn missing(error: io::Error) -> FileError {
    match error.kind() {
        io::ErrorKind::NotFound => FileError::Missing,
        _ => error.into(),
    }
}

async fn read_piece(mut file: File) -> FileResult<Option<(Bytes, File)>> {
    let mut piece = BytesMut::with_capacity(READ);
    let length = file.read_buf(&mut piece).await?;
    Ok((length > 0).then(|| (piece.freeze(), file)))
}

/// A file on its way. One that is dropped half-way leaves nothing.
pub struct FileWriter {
    on_its_way: Option<OnItsWay>,
    written: u64,
}

enum OnItsWay {
    Folder {
        folder: Arc<FolderPath>,
        id: FileId,
        file: Option<File>,
    },
    Bucket(BufWriter),
}

impl FileWriter {
    /// Adds a piece.
    pub async fn write(&mut self, bytes: Bytes) -> FileResult<()> {
        self.written += bytes.len() as u64;
        match &mut self.on_its_way {
            Some(OnItsWay::Folder { folder, id, file }) => {
                Ok(opened(folder, *id, file).await?.write_all(&bytes).await?)
            }
            Some(OnItsWay::Bucket(objects)) => Ok(objects.put(bytes).await?),
            None => Err(FileError::Missing),
        }
    }

    /// The file is whole, also after a power cut. Answers its length in bytes.
    pub async fn finish(mut self) -> FileResult<u64> {
        match &mut self.on_its_way {
            Some(OnItsWay::Folder { folder, id, file }) => {
                let file = opened(folder, *id, file).await?;
                file.flush().await?;
                file.sync_all().await?;
                fs::rename(half(folder, *id), whole(folder, *id)).await?;
                File::open(&**folder).await?.sync_all().await?;
            }
            Some(OnItsWay::Bucket(objects)) => objects.shutdown().await?,
            None => {}
        }
        self.on_its_way = None;
        Ok(self.written)
    }
}

async fn opened<'f>(folder: &FolderPath, id: FileId, file: &'f mut Option<File>) -> io::Result<&'f mut File> {
    match file {
        Some(file) => Ok(file),
        none => Ok(none.insert(File::create(half(folder, id)).await?)),
    }
}

impl Drop for FileWriter {
    fn drop(&mut self) {
        let (Some(on_its_way), Ok(runtime)) = (self.on_its_way.take(), tokio::runtime::Handle::try_current()) else {
            return;
        };
        // What fails here is left to the sweep.
        match on_its_way {
            OnItsWay::Folder { folder, id, .. } => drop(runtime.spawn(fs::remove_file(half(&folder, id)))),
            OnItsWay::Bucket(mut objects) => drop(runtime.spawn(async move { objects.abort().await })),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn store(folder: &std::path::Path) -> FileStore {
        FileStore::open(&FilesConfig {
            place: folder.join("files").display().to_string(),
            ..FilesConfig::default()
        })
        .unwrap()
    }

    async fn all(store: &FileStore, id: FileId, from: u64) -> Vec<u8> {
        let stream = store.read(id, from).await.unwrap();
        stream.try_collect::<Vec<_>>().await.unwrap().concat()
    }

    #[tokio::test]
    async fn a_file_of_several_pieces_reads_back_from_any_place_and_can_be_discarded_twice() {
        let folder = tempfile::tempdir().unwrap();
        let (store, id) = (store(folder.path()), FileId::new());
        let mut writer = store.writer(id);
        let piece = Bytes::from(vec![7; 3 << 20]);
        for _ in 0..4 {
            writer.write(piece.clone()).await.unwrap();
        }
        writer.write(Bytes::from_static(b"end")).await.unwrap();
        assert!(
            matches!(store.read(id, 0).await.err(), Some(FileError::Missing)),
            "not before its end"
        );
        assert_eq!(writer.finish().await.unwrap(), (12 << 20) + 3);
        assert_eq!(all(&store, id, 0).await.len(), (12 << 20) + 3);
        assert_eq!(all(&store, id, 12 << 20).await, b"end");
        store.discard(id).await.unwrap();
        store.discard(id).await.unwrap();
        assert!(matches!(store.read(id, 0).await.err(), Some(FileError::Missing)));
    }

    #[tokio::test]
    async fn an_upload_that_is_dropped_or_cut_off_leaves_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let (store, dropped, killed) = (store(folder.path()), FileId::new(), FileId::new());
        for id in [dropped, killed] {
            let mut writer = store.writer(id);
            writer.write(Bytes::from(vec![7; PIECE + 1])).await.unwrap();
            if id == killed {
                // A process that is killed drops nothing.
                std::mem::forget(writer);
            }
        }
        store.discard(killed).await.unwrap();
        let empty = async || std::fs::read_dir(folder.path().join("files")).unwrap().next().is_none();
        let mut looks = 0;
        while !empty().await && looks < 100 {
            looks += 1;
            tokio::task::yield_now().await;
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
        assert!(empty().await);
    }
}
