//! The uploads in parts that are under way, which `s3s-fs` can neither list nor say the ETags of.

use s3s::dto::{
    ETag, ListMultipartUploadsInput, ListMultipartUploadsOutput, ListPartsOutput, MultipartUpload, Part,
    Timestamp,
};
use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

/// Since the server was started.
#[derive(Default)]
pub(super) struct Uploads {
    /// By id.
    begun: Mutex<BTreeMap<String, Upload>>,
}

/// One upload that was begun.
pub(super) struct Upload {
    bucket: String,
    key: String,
    initiated: Timestamp,
    /// By number: ETag and size.
    parts: BTreeMap<i32, (Option<ETag>, i64)>,
}

impl Uploads {
    pub fn begin(&self, id: String, bucket: String, key: String) {
        let initiated = SystemTime::now().into();
        self.lock().insert(id, Upload { bucket, key, initiated, parts: BTreeMap::new() });
    }

    pub fn add_part(&self, id: &str, number: i32, etag: Option<ETag>, size: i64) {
        if let Some(upload) = self.lock().get_mut(id) {
            upload.parts.insert(number, (etag, size));
        }
    }

    /// Takes an upload out, for good unless it is put back; `None` where there is no such upload.
    pub fn take(&self, id: &str) -> Option<Upload> {
        self.lock().remove(id)
    }

    pub fn put_back(&self, id: String, upload: Upload) {
        self.lock().insert(id, upload);
    }

    pub fn has(&self, id: &str) -> bool {
        self.lock().contains_key(id)
    }

    pub fn list(&self, input: ListMultipartUploadsInput) -> ListMultipartUploadsOutput {
        let prefix = input.prefix.clone().unwrap_or_default();
        let begun = self.lock();
        let uploads = begun
            .iter()
            .filter(|(_, upload)| upload.bucket == input.bucket && upload.key.starts_with(&prefix))
            .map(|(id, upload)| MultipartUpload {
                key: Some(upload.key.clone()),
                upload_id: Some(id.clone()),
                initiated: Some(upload.initiated.clone()),
                ..MultipartUpload::default()
            });
        ListMultipartUploadsOutput {
            uploads: Some(uploads.collect()),
            bucket: Some(input.bucket),
            prefix: input.prefix,
            is_truncated: Some(false),
            ..ListMultipartUploadsOutput::default()
        }
    }

    /// `None` where there is no such upload.
    pub fn list_parts(&self, id: &str) -> Option<ListPartsOutput> {
        let begun = self.lock();
        let upload = begun.get(id)?;
        let parts = upload.parts.iter().map(|(number, (etag, size))| Part {
            part_number: Some(*number),
            e_tag: etag.clone(),
            size: Some(*size),
            ..Part::default()
        });
        Some(ListPartsOutput {
            parts: Some(parts.collect()),
            bucket: Some(upload.bucket.clone()),
            key: Some(upload.key.clone()),
            upload_id: Some(id.to_owned()),
            is_truncated: Some(false),
            ..ListPartsOutput::default()
        })
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Upload>> {
        self.begun.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
