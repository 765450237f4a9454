//! From an input to its bytes: a local file, or an object in S3.

use super::{
    error::ScoreCommandError,
    inputs::{Input, Prefix, Source},
};
use crate::{
    fault::{ErrorCode, ItemError, Stage},
    fetch::{FetchError, Fetcher, S3Settings},
    image::ImageError,
    object::ObjectRef,
    retry::RetrySettings,
};
use bytes::Bytes;
use futures_util::TryStreamExt;
use std::{env, fmt::Display};
use tokio::{fs, sync::OnceCell};

/// Somebody waits for this command: a passing fault is given a minute, not the worker's quarter of
/// an hour.
pub(super) const RETRY: RetrySettings = RetrySettings { initial_ms: 200, max_ms: 5_000, deadline_ms: 60_000 };

/// Reads inputs. The S3 client is made when the first prefix is listed.
#[derive(Default)]
pub struct Reader {
    fetcher: OnceCell<Fetcher>,
}

impl Reader {
    /// The images under `prefix`, in the order of their keys; hidden ones are skipped, as in a folder.
    ///
    /// # Errors
    /// [`FetchError`] when the bucket cannot be listed.
    pub async fn list(&self, prefix: &Prefix) -> Result<Vec<Input>, ScoreCommandError> {
        let fetcher = self.fetcher().await?;
        let objects: Vec<ObjectRef> = fetcher.list(&prefix.bucket, &prefix.prefix).try_collect().await?;
        Ok(objects.into_iter().filter(|object| prefix.takes(&object.key)).map(Input::object).collect())
    }

    /// The whole file, if it has at most `limit` bytes.
    ///
    /// # Errors
    /// The [`ItemError`] that the input is rejected with.
    pub async fn read(&self, input: &Input, limit: u64) -> Result<Bytes, ItemError> {
        match &input.source {
            Source::File(path) => {
                let bytes = fs::metadata(path).await.map_err(|error| unreadable(input, error))?.len();
                if bytes > limit {
                    return Err(ImageError::TooLarge { bytes, limit }.item_error(&input.name));
                }
                fs::read(path).await.map(Bytes::from).map_err(|error| unreadable(input, error))
            }
            Source::Object(object) => {
                let fetcher = self.fetcher().await.map_err(|error| error.item_error())?;
                let fetched = fetcher.fetch_with_retries(object, limit, &RETRY).await;
                fetched.map(|image| image.bytes).map_err(|gave_up| gave_up.error.item_error())
            }
            Source::Unreadable(reason) => Err(unreadable(input, reason)),
        }
    }

    async fn fetcher(&self) -> Result<&Fetcher, FetchError> {
        self.fetcher.get_or_try_init(async || Fetcher::connect(&s3_settings()).await).await
    }
}

/// The standard environment decides, as with AWS's own tools: `AWS_ENDPOINT_URL_S3`, `AWS_REGION`,
/// `AWS_PROFILE` and so on. An object that has been listed needs no grace to appear.
pub(super) fn s3_settings() -> S3Settings {
    let endpoint =
        ["AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"].into_iter().find_map(|name| env::var(name).ok());
    S3Settings { endpoint, missing_grace_ms: 0, ..S3Settings::default() }
}

fn unreadable(input: &Input, reason: impl Display) -> ItemError {
    ItemError::new(
        ErrorCode::ObjectMissing,
        Stage::Fetch,
        format!("{}: cannot be read ({reason}); check that it is there and may be read", input.name),
    )
}
