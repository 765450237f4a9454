//! The photos: found as `score` finds them, uploaded, and announced as S3 announces uploads.

use super::{error::DemoError, servers::BUCKET};
use crate::{
    dev::{DevError, s3_put},
    score_command::inputs::{Argument, Source},
};
use rdkafka::producer::{FutureProducer, FutureRecord};
use serde_json::json;
use std::{
    collections::HashSet,
    path::{Path, PathBuf},
    time::Duration,
};

/// S3's limit for a key, in bytes.
const KEY_LIMIT: usize = 1024;
const PRODUCE_TIMEOUT: Duration = Duration::from_secs(30);

/// A file below the folder, and the object that it becomes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Photo {
    /// What `score` calls it.
    pub image: String,
    /// Its path below the folder, which is its key.
    pub key: String,
    pub path: PathBuf,
}

/// Photos, and files that cannot be read, with the reasons.
#[derive(Debug, Default)]
pub struct Found {
    pub photos: Vec<Photo>,
    pub unreadable: Vec<(String, String)>,
}

/// The images below `folder`, in the order of `score`.
///
/// # Errors
/// [`DemoError`] when it is no folder or holds no image.
pub fn find(folder: &Path) -> Result<Found, DemoError> {
    let no_folder = || DemoError::NoFolder(folder.to_owned());
    if !folder.is_dir() {
        return Err(no_folder());
    }
    let Argument::Local(inputs) = Argument::read(folder.to_str().ok_or_else(no_folder)?)? else {
        return Err(no_folder());
    };
    let mut found = Found::default();
    let mut taken = HashSet::new();
    for input in inputs {
        match input.source {
            Source::File(path) => {
                let key = key(folder, &path, found.photos.len(), &mut taken);
                found.photos.push(Photo { image: input.name, key, path });
            }
            Source::Unreadable(reason) => found.unreadable.push((input.name, reason)),
            Source::Object(_) => {}
        }
    }
    if found.photos.is_empty() && found.unreadable.is_empty() {
        return Err(crate::score_command::ScoreCommandError::NoImages(folder.display().to_string()).into());
    }
    Ok(found)
}

/// The path below `folder`. A key is UTF-8 and has a longest length, which a path has not.
fn key(folder: &Path, path: &Path, number: usize, taken: &mut HashSet<String>) -> String {
    let below = path.strip_prefix(folder).unwrap_or(path);
    let mut key = below.to_string_lossy().into_owned();
    if key.len() >= KEY_LIMIT {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        key = format!("deep/{number}/{name}");
    }
    while !taken.insert(key.clone()) {
        key.push('~');
    }
    key
}

/// Uploads a photo and returns its notification, or `Err(Ok(reason))` for a file that cannot be read.
pub async fn upload(
    client: &aws_sdk_s3::Client,
    photo: &Photo,
    sequence: u64,
) -> Result<Result<String, String>, DevError> {
    let content = match tokio::fs::read(&photo.path).await {
        Ok(content) => content,
        Err(error) => return Ok(Err(error.to_string())),
    };
    let size = content.len();
    let etag = s3_put(client, BUCKET, &photo.key, content.into()).await?;
    Ok(Ok(notification(&photo.key, &etag, size, sequence)))
}

/// What S3 sends when an object was put: the key form-encoded, the sequencer in hexadecimal.
fn notification(key: &str, etag: &str, size: usize, sequence: u64) -> String {
    let key: String = url::form_urlencoded::byte_serialize(key.as_bytes()).collect();
    json!({"Records": [{
        "eventVersion": "2.1", "eventSource": "aws:s3", "eventName": "ObjectCreated:Put",
        "s3": {
            "s3SchemaVersion": "1.0",
            "bucket": {"name": BUCKET},
            "object": {"key": key, "size": size, "eTag": etag, "sequencer": format!("{sequence:016X}")},
        },
    }]})
    .to_string()
}

/// Appends a notification to `topic`.
pub async fn announce(
    producer: &FutureProducer,
    topic: &str,
    photo: &Photo,
    notification: &str,
) -> Result<(), DemoError> {
    let key = format!("{BUCKET}/{}", photo.key);
    let record = FutureRecord::to(topic).key(&key).payload(notification);
    producer.send(record, PRODUCE_TIMEOUT).await.map(drop).map_err(|(error, _)| error.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        object::ObjectRef,
        record::input::{Item, parse},
    };
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_notification_names_the_object_it_is_about(key in "\\PC{1,40}", etag in "[0-9a-f]{32}", size in 0_usize..1 << 40) {
            let text = notification(&key, &etag, size, 26);
            let parsed = parse(Some(text.as_bytes()), &[], &[BUCKET.to_owned()]);
            let mut expected = ObjectRef::new(BUCKET, key);
            expected.etag = Some(etag);
            expected.size = Some(size as u64);
            expected.sequencer = Some("000000000000001A".into());
            prop_assert_eq!(&parsed.items[0].outcome, &Ok(Item::Score(expected)));
        }
    }

    #[test]
    fn keys_are_the_paths_below_the_folder_and_differ() {
        let folder = Path::new("/photos");
        let mut taken = HashSet::new();
        let mut key = |path: &Path| key(folder, path, 7, &mut taken);
        assert_eq!(key(Path::new("/photos/a b/ü+.jpg")), "a b/ü+.jpg");
        let long = format!("/photos/{}/x.jpg", "d/".repeat(600));
        assert_eq!(key(Path::new(&long)), "deep/7/x.jpg");
        #[cfg(unix)]
        {
            use std::{ffi::OsStr, os::unix::ffi::OsStrExt};
            let bytes = |last: u8| [b"/photos/".as_slice(), &[last], b".jpg"].concat();
            let first = key(Path::new(OsStr::from_bytes(&bytes(0xff))));
            let second = key(Path::new(OsStr::from_bytes(&bytes(0xfe))));
            assert_ne!(first, second);
        }
    }

    #[test]
    fn a_folder_without_images_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("notes.txt"), "no image").unwrap();
        assert_eq!(find(folder.path()).unwrap_err().exit_code(), 2);
        assert_eq!(find(&folder.path().join("notes.txt")).unwrap_err().exit_code(), 2);
        assert_eq!(find(Path::new("s3://bucket")).unwrap_err().exit_code(), 2);
    }
}
