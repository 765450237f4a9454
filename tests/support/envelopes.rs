//! Input records in every envelope that upload events come in.

use serde_json::{Value, json};

/// An object in a bucket.
#[derive(Clone, Debug)]
pub struct Upload {
    pub bucket: String,
    pub key: String,
    pub etag: String,
    pub size: usize,
}

/// A record to produce.
#[derive(Clone, Debug)]
pub struct Record {
    pub payload: Option<Vec<u8>>,
    pub headers: Vec<(&'static str, String)>,
}

impl Record {
    pub fn plain(payload: String) -> Self {
        Self { payload: Some(payload.into_bytes()), headers: Vec::new() }
    }

    pub fn tombstone() -> Self {
        Self { payload: None, headers: Vec::new() }
    }
}

/// The envelopes, as their senders write them.
#[derive(Clone, Copy, Debug)]
pub enum Envelope {
    Aws,
    AwsThreeItems,
    Minio,
    Sns,
    EventBridge,
    CloudEventsStructured,
    CloudEventsBinary,
    Plain,
    PlainWithEtag,
}

impl Envelope {
    pub const ALL: [Self; 9] = [
        Self::Aws,
        Self::AwsThreeItems,
        Self::Minio,
        Self::Sns,
        Self::EventBridge,
        Self::CloudEventsStructured,
        Self::CloudEventsBinary,
        Self::Plain,
        Self::PlainWithEtag,
    ];

    /// Items in one record.
    pub fn items(self) -> usize {
        if matches!(self, Self::AwsThreeItems) { 3 } else { 1 }
    }

    pub fn record(self, uploads: &[&Upload]) -> Record {
        let first = uploads[0];
        let Upload { bucket, key, etag, size, .. } = first;
        let aws = json!({"Records": uploads.iter().map(|upload| aws_item(upload)).collect::<Vec<_>>()});
        let mut headers =
            vec![("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01".to_owned())];
        let value = match self {
            Self::Aws | Self::AwsThreeItems => aws,
            Self::Minio => json!({
                "EventName": "s3:ObjectCreated:Put", "Key": format!("{bucket}/{key}"),
                "Records": [aws_item(first)],
            }),
            Self::Sns => json!({"Type": "Notification", "MessageId": "m", "Message": aws.to_string()}),
            Self::EventBridge => json!({
                "version": "0", "id": "e", "detail-type": "Object Created", "source": "aws.s3",
                "detail": {"version": "0", "bucket": {"name": bucket},
                    "object": {"key": key, "size": size, "etag": etag, "sequencer": "0055AED6DCD90281E5"}},
            }),
            Self::CloudEventsStructured => json!({
                "specversion": "1.0", "id": "c", "source": "uploads", "type": "photo.uploaded",
                "data": {"bucket": bucket, "key": key, "etag": etag, "size": size},
            }),
            Self::CloudEventsBinary => {
                headers.extend([
                    ("ce_specversion", "1.0".to_owned()),
                    ("ce_id", "b".to_owned()),
                    ("ce_source", "uploads".to_owned()),
                    ("ce_type", "photo.uploaded".to_owned()),
                ]);
                json!({"bucket": bucket, "key": key})
            }
            Self::Plain => json!({"bucket": bucket, "key": key}),
            Self::PlainWithEtag => json!({"bucket": bucket, "key": key, "etag": format!("\"{etag}\"")}),
        };
        Record { payload: Some(value.to_string().into_bytes()), headers }
    }
}

fn aws_item(upload: &Upload) -> Value {
    let form_encoded: String = url::form_urlencoded::byte_serialize(upload.key.as_bytes()).collect();
    json!({
        "eventVersion": "2.1", "eventSource": "aws:s3", "eventName": "ObjectCreated:Put",
        "s3": {"s3SchemaVersion": "1.0", "bucket": {"name": upload.bucket},
            "object": {"key": form_encoded, "size": upload.size, "eTag": upload.etag, "sequencer": "0055AED6DCD90281E5"}},
    })
}
