//! Files to the service and back, in pieces, whatever their size.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;

use futures::{TryStreamExt, stream};
use reqwest::Body;
use reqwest::multipart::{Form, Part};
use serde_json::Value;
use tokio::io::AsyncReadExt;

use crate::client::{Client, chain};
use crate::failure::Failure;

const PIECE: usize = 64 << 10;

/// Uploads a shard; answers its file's id.
pub(super) async fn upload(client: &Client, path: &Path, size: u64) -> Result<String, Failure> {
    // What is wrong with the file is not to be taken for a fault of the connection.
    let _readable = File::open(path).map_err(|error| Failure::file(path, error))?;
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let file: Value = client
        .upload("/v1/files", |request| {
            let part = Part::stream_with_length(pieces(path), size).file_name(name.clone());
            request.multipart(Form::new().text("purpose", "batch").part("file", part))
        })
        .await?;
    let id = file["id"].as_str();
    id.map(str::to_owned)
        .ok_or_else(|| Failure::Other("the service gave the file no id".to_owned()))
}

fn pieces(path: &Path) -> Body {
    let opened = stream::once(tokio::fs::File::open(path.to_owned()));
    Body::wrap_stream(opened.map_ok(|file| stream::try_unfold(file, piece)).try_flatten())
}

async fn piece(mut file: tokio::fs::File) -> std::io::Result<Option<(Vec<u8>, tokio::fs::File)>> {
    let mut piece = vec![0; PIECE];
    let got = file.read(&mut piece).await?;
    piece.truncate(got);
    Ok((got > 0).then_some((piece, file)))
}

/// Adds the content of a file of the service to `to`; answers how many lines it had.
pub(super) async fn download(client: &Client, file: &str, to: &mut BufWriter<File>) -> Result<u64, Failure> {
    let cut_off = |error: reqwest::Error| Failure::Unreachable {
        url: client.url().to_owned(),
        complaint: chain(&error),
    };
    let mut answer = client.open(&format!("/v1/files/{file}/content"), &[]).await?;
    let mut lines = 0;
    while let Some(piece) = answer.chunk().await.map_err(cut_off)? {
        lines += piece.split(|byte| *byte == b'\n').count() as u64 - 1;
        to.write_all(&piece)?;
    }
    Ok(lines)
}
