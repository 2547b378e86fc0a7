//! How a file looks to its owner: OpenAI's file object.

use claimcheck_common::domain::FilePurpose;
use claimcheck_common::store::files::FileView;
use serde::Serialize;
use time::OffsetDateTime;
use utoipa::ToSchema;

/// A file.
#[derive(Debug, Serialize, ToSchema)]
pub struct FileBody {
    /// `file-…`; ids sort by creation.
    pub id: String,
    /// Always `file`.
    pub object: &'static str,
    /// Its length.
    pub bytes: u64,
    /// When its upload began.
    pub created_at: i64,
    /// When it goes by itself.
    #[schema(required)]
    pub expires_at: Option<i64>,
    /// What its owner calls it.
    pub filename: String,
    /// `batch` or `batch_output`.
    pub purpose: &'static str,
    /// Always `processed`.
    pub status: &'static str,
    /// Always null.
    #[schema(required)]
    pub status_details: Option<String>,
    /// Its lines that are not blank.
    pub lines: u64,
}

impl From<&FileView> for FileBody {
    fn from(file: &FileView) -> Self {
        Self {
            id: file.id.to_string(),
            object: "file",
            bytes: file.bytes,
            created_at: file.created_at.unix_timestamp(),
            expires_at: file.expires_at.map(OffsetDateTime::unix_timestamp),
            filename: file.filename.clone(),
            purpose: FilePurpose::as_str(file.purpose),
            status: "processed",
            status_details: None,
            lines: file.lines,
        }
    }
}

/// A page of files.
#[derive(Debug, Serialize, ToSchema)]
pub struct FileList {
    /// Always `list`.
    pub object: &'static str,
    /// Newest first, unless asked otherwise.
    pub data: Vec<FileBody>,
    /// The first one's id.
    #[schema(required)]
    pub first_id: Option<String>,
    /// The last one's id: the next page's `after`.
    #[schema(required)]
    pub last_id: Option<String>,
    /// Whether there is a next page.
    pub has_more: bool,
}

/// What is left of a deleted file.
#[derive(Debug, Serialize, ToSchema)]
pub struct DeletedFile {
    /// The file.
    pub id: String,
    /// Always `file`.
    pub object: &'static str,
    /// Always true.
    pub deleted: bool,
}
