//! The servers that every contender is measured on, and what is announced on them.

use crate::support::topics::Anything;
use roc4mllm::dev::{S3Server, TestKafka, scratch};
use serde_json::json;
use tempfile::TempDir;

pub const BUCKET: &str = "photos";

pub struct Servers {
    pub kafka: TestKafka,
    pub s3: S3Server,
    _folder: TempDir,
}

/// Objects that are in the bucket, and the records that announce them, as AWS sends them.
pub struct Uploads {
    pub records: Vec<Vec<u8>>,
    pub object_bytes: usize,
}

impl Servers {
    pub async fn start() -> Result<Self, Anything> {
        let folder = scratch::folder("bench")?;
        let s3 = S3Server::start(folder.path())?;
        s3.create_bucket(BUCKET)?;
        Ok(Self { kafka: TestKafka::real().await?, s3, _folder: folder })
    }

    /// Puts `count` copies of `jpeg` into the bucket, each with its number behind the end of the picture: no
    /// content comes twice.
    pub fn upload(&self, prefix: &str, count: usize, jpeg: &[u8]) -> Result<Uploads, Anything> {
        let object_bytes = jpeg.len() + size_of::<usize>();
        let records = (0..count).map(|number| {
            let key = format!("{prefix}/{number:06}.jpg");
            let content = [jpeg, &number.to_le_bytes()].concat();
            let etag = self.s3.put(BUCKET, &key, &content)?;
            let object = json!({"key": key, "size": object_bytes, "eTag": etag});
            let item = json!({
                "eventVersion": "2.1", "eventSource": "aws:s3", "eventName": "ObjectCreated:Put",
                "s3": {"bucket": {"name": BUCKET}, "object": object},
            });
            Ok::<_, Anything>(json!({"Records": [item]}).to_string().into_bytes())
        });
        Ok(Uploads { records: records.collect::<Result<_, _>>()?, object_bytes })
    }
}

/// The number in an object's key.
pub fn number_in(key: &str) -> Option<usize> {
    key.rsplit_once('/')?.1.strip_suffix(".jpg")?.parse().ok()
}
