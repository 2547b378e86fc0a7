//! Files on their way in: a multipart body streams into the object store, whatever its size, in the memory of a few pieces.
//!
//! What is cut off, too large, no text or was sent before leaves nothing behind. The work runs in a task of its own, so that a
//! caller who hangs up cannot cut the clearing away short.

use std::time::Duration;

use axum::extract::multipart::{Field, Multipart, MultipartError};
use axum::http::StatusCode;
use bytes::Bytes;
use claimcheck_common::domain::{FileId, FilePurpose};
use claimcheck_common::files::{FileError, FileStore};
use claimcheck_common::store::Pool;
use claimcheck_common::store::files::{self, FileView, NewFile, Whole};
use claimcheck_common::store::idempotency::{Answer, Claim};
use claimcheck_common::store::once::Once;
use sha2::{Digest, Sha256};

use crate::error::{ApiError, Problem};
use crate::extract::Caller;
use crate::idempotent::{bound_to, json_answer};
use crate::validate::jsonl::Jsonl;
use crate::view::FileBody;

/// Most bytes of a file.
pub const FILE_BYTES_MAX: u64 = 200 << 20;
/// A file must come within this: 200 MB at 3 Mbit/s.
pub const UPLOAD_TIME: Duration = Duration::from_mins(10);
/// A piece must come within this.
const PIECE_TIME: Duration = Duration::from_secs(15);
/// So much of a refused body is still read, so that the answer is not lost in a reset connection.
const DRAIN_BYTES: usize = 16 << 20;
const DRAIN_TIME: Duration = Duration::from_secs(10);
const NAME_MAX: usize = 255;
const TTL: std::ops::RangeInclusive<u64> = 3600..=2_592_000;

/// Where files go.
#[derive(Clone)]
pub struct Uploads {
    pool: Pool,
    store: FileStore,
    time: Duration,
}

/// What the parts beside the file say.
#[derive(Default)]
struct Wishes {
    purpose: bool,
    anchor: bool,
    seconds: Option<u64>,
}

/// The file as it came.
struct Received {
    whole: Whole,
    /// Of its bytes, where a key is bound to them.
    sha256: [u8; 32],
}

impl Uploads {
    /// Nothing is opened yet.
    pub const fn new(pool: Pool, store: FileStore) -> Self {
        Self {
            pool,
            store,
            time: UPLOAD_TIME,
        }
    }

    /// The same with another time for a file to come within.
    #[must_use]
    pub fn within(self, time: Duration) -> Self {
        Self { time, ..self }
    }

    /// Receives `{purpose, file}`, in any order, and stores the file, once for each claim. A caller that leaves cannot cut it short.
    pub async fn receive(
        &self,
        caller: &Caller,
        claim: Option<Claim>,
        parts: Multipart,
    ) -> Result<Once<FileView>, ApiError> {
        let (uploads, file) = (self.clone(), new_file(caller));
        let task = tokio::spawn(async move { uploads.receive_all(file, claim, parts).await });
        task.await.map_err(ApiError::internal)?
    }

    /// Stores a file that is here already.
    pub async fn keep(&self, caller: &Caller, name: &str, text: Vec<u8>, lines: u64) -> Result<FileView, ApiError> {
        let file = NewFile {
            filename: name.to_owned(),
            ..new_file(caller)
        };
        let uploads = self.clone();
        let task = tokio::spawn(async move {
            files::begin(&uploads.pool, &file).await?;
            let mut writer = uploads.store.writer(file.id);
            writer.write(Bytes::from(text)).await?;
            let whole = Whole {
                bytes: writer.finish().await?,
                lines,
                ..Whole::default()
            };
            files::finish(&uploads.pool, file.id, whole).await?.ok_or_else(swept)
        });
        task.await.map_err(ApiError::internal)?
    }

    /// Removes a file that nobody sees any more. What fails is left to the sweep.
    pub async fn remove(&self, id: FileId) {
        let outcome = async {
            self.store.discard(id).await?;
            files::forget(&self.pool, id).await?;
            Ok::<(), ApiError>(())
        };
        if let Err(error) = outcome.await {
            tracing::warn!(%error, file = %id, "a file is left for the sweep");
        }
    }

    async fn receive_all(
        &self,
        file: NewFile,
        claim: Option<Claim>,
        mut parts: Multipart,
    ) -> Result<Once<FileView>, ApiError> {
        files::begin(&self.pool, &file).await?;
        // Not around the note: what is noted is a file, and stays one.
        let came = self.receive_parts(file.id, claim.is_some(), &mut parts);
        let came = tokio::time::timeout(self.time, came).await;
        let outcome = match came.unwrap_or(Err(ApiError::SlowRequest)) {
            Ok(received) => self.note(file.id, received, claim).await,
            Err(error) => Err(error),
        };
        if !matches!(outcome, Ok(Once::Done(_))) {
            self.remove(file.id).await;
            let _late = tokio::time::timeout(DRAIN_TIME, drain(parts)).await;
        }
        outcome
    }

    async fn receive_parts(&self, id: FileId, is_keyed: bool, parts: &mut Multipart) -> Result<Received, ApiError> {
        let mut wishes = Wishes::default();
        let mut received = None;
        let mut filename = None;
        while let Some(mut part) = in_time(parts.next_field()).await? {
            let name = part.name().unwrap_or_default().to_owned();
            if name == "file" {
                if received.is_some() {
                    return Err(twice("file"));
                }
                filename = part.file_name().map(readable_name);
                received = Some(self.store_part(id, is_keyed, &mut part).await?);
            } else {
                wishes.take(&name, &mut part).await?;
            }
        }
        let missing =
            |name: &str| ApiError::Invalid(Problem::new("missing_field", format!("`{name}` is required.")).at(name));
        if !wishes.purpose {
            return Err(missing("purpose"));
        }
        let ttl = wishes.ttl()?;
        let mut received = received.ok_or_else(|| missing("file"))?;
        received.whole = Whole {
            filename,
            ttl,
            ..received.whole
        };
        Ok(received)
    }

    async fn store_part(&self, id: FileId, is_keyed: bool, part: &mut Field<'_>) -> Result<Received, ApiError> {
        let mut writer = self.store.writer(id);
        let mut text = Jsonl::default();
        let mut digest = is_keyed.then(Sha256::new);
        let mut bytes = 0;
        while let Some(piece) = in_time(part.chunk()).await? {
            bytes += piece.len() as u64;
            if bytes > FILE_BYTES_MAX {
                return Err(ApiError::TooLarge(FILE_BYTES_MAX as usize));
            }
            text.see(&piece)?;
            if let Some(digest) = &mut digest {
                digest.update(&piece);
            }
            writer.write(piece).await?;
        }
        let lines = text.finish()?;
        Ok(Received {
            whole: Whole {
                bytes: writer.finish().await?,
                lines,
                ..Whole::default()
            },
            sha256: digest.map(|digest| digest.finalize().into()).unwrap_or_default(),
        })
    }

    async fn note(&self, id: FileId, received: Received, claim: Option<Claim>) -> Result<Once<FileView>, ApiError> {
        let claim = claim.map(|claim| Claim {
            request_sha256: received.request_sha256(),
            ..claim
        });
        match files::finish_once(&self.pool, id, received.whole, claim, render).await? {
            Once::Done(noted) => noted.map(Once::Done).ok_or_else(swept),
            Once::Before(before) => Ok(Once::Before(before)),
        }
    }
}

impl Received {
    /// What the request's key is bound to. Not the raw body: the boundary of a form is another each time.
    fn request_sha256(&self) -> [u8; 32] {
        let Whole { ttl, filename, .. } = &self.whole;
        let seconds = ttl.unwrap_or_default().as_secs();
        let name = filename.as_deref().unwrap_or_default();
        bound_to(&format!("file batch {seconds} {name}"), &self.sha256)
    }
}

/// The answer to a file that was uploaded, and to its request whenever it is repeated.
pub fn render(file: &FileView) -> Answer {
    json_answer(StatusCode::OK, [], &FileBody::from(file))
}

fn swept() -> ApiError {
    ApiError::internal("an upload was swept while it was stored")
}

impl Wishes {
    async fn take(&mut self, name: &str, part: &mut Field<'_>) -> Result<(), ApiError> {
        let text = short_text(name, part).await?;
        match name {
            "purpose" if self.purpose => Err(twice(name)),
            "purpose" if text == "batch" => {
                self.purpose = true;
                Ok(())
            }
            "purpose" => Err(ApiError::invalid(name, "`purpose` must be `batch`.")),
            "expires_after[anchor]" if self.anchor => Err(twice(name)),
            "expires_after[anchor]" if text == "created_at" => {
                self.anchor = true;
                Ok(())
            }
            "expires_after[anchor]" => Err(ApiError::invalid(name, "`expires_after[anchor]` must be `created_at`.")),
            "expires_after[seconds]" if self.seconds.is_some() => Err(twice(name)),
            "expires_after[seconds]" => {
                let seconds = text.parse().ok().filter(|seconds| TTL.contains(seconds));
                self.seconds = Some(seconds.ok_or_else(|| {
                    let (least, most) = (TTL.start(), TTL.end());
                    let message = format!("`{name}` must be a whole number from {least} to {most}.");
                    ApiError::invalid(name, message)
                })?);
                Ok(())
            }
            other => {
                let shown: String = other.chars().take(64).collect();
                let message = format!(
                    "`{shown}` is not a field here; known fields: purpose, file, expires_after[anchor], \
                     expires_after[seconds]."
                );
                Err(ApiError::Invalid(Problem::new("unknown_field", message).at(shown)))
            }
        }
    }

    fn ttl(&self) -> Result<Option<Duration>, ApiError> {
        match (self.anchor, self.seconds) {
            (false, None) => Ok(None),
            (true, Some(seconds)) => Ok(Some(Duration::from_secs(seconds))),
            _ => {
                let message = "`expires_after` takes an `anchor` and `seconds`, both.";
                Err(ApiError::invalid("expires_after", message))
            }
        }
    }
}

fn new_file(caller: &Caller) -> NewFile {
    NewFile {
        id: FileId::new(),
        tenant_id: caller.tenant_id,
        project_id: caller.project_id,
        purpose: FilePurpose::Batch,
        filename: "file".to_owned(),
        ttl: None,
    }
}

/// What a caller's system calls the file, without what a header or a page could not show.
fn readable_name(name: &str) -> String {
    let name: String = name
        .chars()
        .filter(|letter| !letter.is_control())
        .take(NAME_MAX)
        .collect();
    if name.is_empty() { "file".to_owned() } else { name }
}

async fn short_text(name: &str, part: &mut Field<'_>) -> Result<String, ApiError> {
    const MOST: usize = 64;
    let mut text = Vec::new();
    while let Some(piece) = in_time(part.chunk()).await? {
        text.extend_from_slice(&piece);
        if text.len() > MOST {
            let name: String = name.chars().take(MOST).collect();
            return Err(ApiError::invalid(
                &name,
                format!("`{name}` must have at most {MOST} bytes."),
            ));
        }
    }
    Ok(String::from_utf8_lossy(&text).into_owned())
}

fn twice(name: &str) -> ApiError {
    ApiError::Invalid(Problem::new("duplicate_field", format!("`{name}` is given twice.")).at(name))
}

/// Waits for the next piece, as long as one may take.
async fn in_time<T>(piece: impl Future<Output = Result<T, MultipartError>>) -> Result<T, ApiError> {
    let came = tokio::time::timeout(PIECE_TIME, piece).await;
    came.map_err(|_| ApiError::SlowRequest)?.map_err(|_| {
        let message = "The upload ended early, or is no multipart form; nothing of it was kept. Send it again.";
        ApiError::Invalid(Problem::new("invalid_body", message))
    })
}

async fn drain(mut parts: Multipart) {
    let mut seen = 0;
    while let Ok(Some(mut part)) = parts.next_field().await {
        while let Ok(Some(piece)) = part.chunk().await {
            seen += piece.len();
            if seen > DRAIN_BYTES {
                return;
            }
        }
    }
}

impl From<FileError> for ApiError {
    fn from(error: FileError) -> Self {
        match error {
            FileError::Missing => Self::internal(error),
            FileError::Bucket(_) | FileError::Folder(_) | FileError::Place(..) => Self::Unavailable {
                message: "The service cannot reach its file store right now; try again in a moment.",
                retry_after: crate::error::RETRY_AFTER_OUTAGE,
                cause: Some(error.into()),
            },
        }
    }
}
