//! What `s3s-fs` lacks to stand in for S3: conditional reads, ETags of the bytes served, listings of
//! uploads in parts, and keys that are no file paths.

use crate::dev::s3_uploads::Uploads;
use bytes::Bytes;
use s3s::crypto::{Checksum, Md5};
use s3s::dto::{
    AbortMultipartUploadInput, AbortMultipartUploadOutput, CompleteMultipartUploadInput,
    CompleteMultipartUploadOutput, CreateBucketInput, CreateBucketOutput, CreateMultipartUploadInput,
    CreateMultipartUploadOutput, DeleteObjectInput, DeleteObjectOutput, ETag, ETagCondition, GetObjectInput,
    GetObjectOutput, HeadBucketInput, HeadBucketOutput, HeadObjectInput, HeadObjectOutput, ListBucketsInput,
    ListBucketsOutput, ListMultipartUploadsInput, ListMultipartUploadsOutput, ListObjectsV2Input,
    ListObjectsV2Output, ListPartsInput, ListPartsOutput, PutObjectInput, PutObjectOutput, StreamingBlob,
    Timestamp, UploadPartInput, UploadPartOutput,
};
use s3s::{Body, S3, S3Request, S3Response, S3Result, s3_error};
use s3s_fs::FileSystem;
use std::path::{Path, PathBuf};
use std::{fs, io};
use uuid::Uuid;

/// Marks key segments that a file name cannot be. From Unicode's private use area, so that no
/// real key has it and XML may carry it.
const MARKER: char = '\u{e000}';

/// `s3s-fs` keeps notes on each object in a file that bears bucket and key in base64; with a longer
/// key, in bytes, that name is longer than a file's may be.
const LONGEST_NOTED_KEY: usize = 100;

/// The buckets of one folder. Each bucket is a sub-folder, and files put there by other means are
/// served too.
pub(super) struct ObjectFolder {
    files: FileSystem,
    root: PathBuf,
    uploads: Uploads,
}

/// One object, read whole so that its ETag is that of the very bytes that go out.
struct Object {
    content: Bytes,
    etag: String,
    modified: Timestamp,
}

impl ObjectFolder {
    pub(super) fn new(root: &Path) -> Result<Self, s3s_fs::Error> {
        Ok(Self { files: FileSystem::new(root)?, root: root.to_owned(), uploads: Uploads::default() })
    }

    /// Puts an object under a short name and moves it to its own.
    async fn put_long(
        &self,
        mut request: S3Request<PutObjectInput>,
    ) -> S3Result<S3Response<PutObjectOutput>> {
        let bucket = self.root.join(&request.input.bucket);
        let path = bucket.join(&request.input.key);
        // No key's path begins with one marker and another letter.
        request.input.key = format!("{MARKER}put-{}", Uuid::new_v4().simple());
        let staged = bucket.join(&request.input.key);
        let response = self.files.put_object(request).await?;
        if let Some(folder) = path.parent() {
            tokio::fs::create_dir_all(folder).await.map_err(|error| s3_error!(error, InternalError))?;
        }
        tokio::fs::rename(&staged, &path).await.map_err(|error| s3_error!(error, InternalError))?;
        Ok(response)
    }

    /// Replaces the object, or makes it, in one step for readers. Its ETag.
    pub(super) fn place(root: &Path, bucket: &str, key: &str, content: &[u8]) -> io::Result<String> {
        let bucket = root.join(bucket);
        let path = bucket.join(file_key(key));
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder)?;
        }
        let staged = bucket.join(format!("{MARKER}put-{}", Uuid::new_v4().simple()));
        fs::write(&staged, content)?;
        fs::rename(&staged, &path)?;
        Ok(etag_of(content))
    }

    async fn read(&self, bucket: &str, key: &str) -> S3Result<Object> {
        let bucket_folder = self.root.join(bucket);
        if !bucket_folder.is_dir() {
            return Err(s3_error!(NoSuchBucket));
        }
        let path = bucket_folder.join(file_key(key));
        let metadata = tokio::fs::metadata(&path).await.map_err(|error| s3_error!(error, NoSuchKey))?;
        if !metadata.is_file() {
            return Err(s3_error!(NoSuchKey));
        }
        let content = tokio::fs::read(&path).await.map_err(|error| s3_error!(error, NoSuchKey))?;
        let modified = metadata.modified().map_err(|error| s3_error!(error, InternalError))?;
        let etag = etag_of(&content);
        Ok(Object { content: content.into(), etag, modified: modified.into() })
    }
}

fn etag_of(content: &[u8]) -> String {
    Md5::checksum(content).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// RFC 9110 section 13: 412 unless `If-Match` holds, 304 if `If-None-Match` does not.
fn check_conditions(
    etag: &str,
    if_match: Option<&ETagCondition>,
    if_none_match: Option<&ETagCondition>,
) -> S3Result<()> {
    let is = |condition: &ETagCondition| match condition {
        ETagCondition::Any => true,
        ETagCondition::ETag(expected) => expected.value() == etag,
    };
    if if_match.is_some_and(|condition| !is(condition)) {
        return Err(s3_error!(PreconditionFailed, "the object has another ETag"));
    }
    if if_none_match.is_some_and(is) {
        return Err(s3_error!(NotModified));
    }
    Ok(())
}

/// The path of `key` inside its bucket's folder: itself, but for segments that are empty, `.` or
/// `..`, which get a marker in front.
fn file_key(key: &str) -> String {
    map_segments(key, |segment| {
        if matches!(segment, "" | "." | "..") || segment.starts_with(MARKER) {
            format!("{MARKER}{segment}")
        } else {
            segment.to_owned()
        }
    })
}

/// Undoes [`file_key`].
fn object_key(path: &str) -> String {
    map_segments(path, |segment| segment.strip_prefix(MARKER).unwrap_or(segment).to_owned())
}

/// A prefix's last segment is only the beginning of one, so it stays.
fn file_prefix(prefix: &str) -> String {
    match prefix.rsplit_once('/') {
        Some((folders, rest)) => format!("{}/{rest}", file_key(folders)),
        None => prefix.to_owned(),
    }
}

fn map_segments(text: &str, map: impl Fn(&str) -> String) -> String {
    text.split('/').map(map).collect::<Vec<_>>().join("/")
}

#[async_trait::async_trait]
impl S3 for ObjectFolder {
    async fn create_bucket(
        &self,
        request: S3Request<CreateBucketInput>,
    ) -> S3Result<S3Response<CreateBucketOutput>> {
        self.files.create_bucket(request).await
    }

    async fn head_bucket(
        &self,
        request: S3Request<HeadBucketInput>,
    ) -> S3Result<S3Response<HeadBucketOutput>> {
        self.files.head_bucket(request).await
    }

    async fn list_buckets(
        &self,
        request: S3Request<ListBucketsInput>,
    ) -> S3Result<S3Response<ListBucketsOutput>> {
        self.files.list_buckets(request).await
    }

    async fn get_object(&self, request: S3Request<GetObjectInput>) -> S3Result<S3Response<GetObjectOutput>> {
        let input = request.input;
        let object = self.read(&input.bucket, &input.key).await?;
        check_conditions(&object.etag, input.if_match.as_ref(), input.if_none_match.as_ref())?;
        let full = object.content.len();
        let mut content = object.content;
        let mut content_range = None;
        if let Some(range) = input.range {
            let range = range.check(full as u64)?;
            content_range = Some(format!("bytes {}-{}/{full}", range.start, range.end - 1));
            let bound = |end: u64| usize::try_from(end).map_err(|error| s3_error!(error, InvalidRange));
            content = content.slice(bound(range.start)?..bound(range.end)?);
        }
        Ok(S3Response::new(GetObjectOutput {
            content_length: i64::try_from(content.len()).ok(),
            content_range,
            accept_ranges: Some("bytes".to_owned()),
            e_tag: Some(ETag::Strong(object.etag)),
            last_modified: Some(object.modified),
            body: Some(StreamingBlob::from(Body::from(content))),
            ..GetObjectOutput::default()
        }))
    }

    async fn head_object(
        &self,
        request: S3Request<HeadObjectInput>,
    ) -> S3Result<S3Response<HeadObjectOutput>> {
        let input = request.input.clone();
        let object = self.read(&input.bucket, &input.key).await?;
        check_conditions(&object.etag, input.if_match.as_ref(), input.if_none_match.as_ref())?;
        let mut noted = request;
        noted.input.key = file_key(&input.key);
        let noted = self.files.head_object(noted).await.ok().map(|response| response.output);
        // What is noted of an object says nothing of one that was put in its place by other means.
        let noted = noted.filter(|noted| match &noted.e_tag {
            Some(ETag::Strong(etag)) => *etag == object.etag || etag.contains('-'),
            _ => false,
        });
        let noted = noted.and_then(|noted| noted.metadata);
        Ok(S3Response::new(HeadObjectOutput {
            metadata: noted,
            content_length: i64::try_from(object.content.len()).ok(),
            accept_ranges: Some("bytes".to_owned()),
            e_tag: Some(ETag::Strong(object.etag)),
            last_modified: Some(object.modified),
            ..HeadObjectOutput::default()
        }))
    }

    async fn put_object(
        &self,
        mut request: S3Request<PutObjectInput>,
    ) -> S3Result<S3Response<PutObjectOutput>> {
        if !self.root.join(&request.input.bucket).is_dir() {
            return Err(s3_error!(NoSuchBucket));
        }
        request.input.key = file_key(&request.input.key);
        let exists = self.root.join(&request.input.bucket).join(&request.input.key).exists();
        if exists
            && request.input.if_none_match.as_ref().is_some_and(|condition| *condition == ETagCondition::Any)
        {
            return Err(s3_error!(PreconditionFailed, "the object exists"));
        }
        if request.input.key.len() > LONGEST_NOTED_KEY {
            return self.put_long(request).await;
        }
        self.files.put_object(request).await
    }

    async fn delete_object(
        &self,
        mut request: S3Request<DeleteObjectInput>,
    ) -> S3Result<S3Response<DeleteObjectOutput>> {
        request.input.key = file_key(&request.input.key);
        self.files.delete_object(request).await
    }

    async fn create_multipart_upload(
        &self,
        mut request: S3Request<CreateMultipartUploadInput>,
    ) -> S3Result<S3Response<CreateMultipartUploadOutput>> {
        if !self.root.join(&request.input.bucket).is_dir() {
            return Err(s3_error!(NoSuchBucket));
        }
        let (bucket, key) = (request.input.bucket.clone(), request.input.key.clone());
        request.input.key = file_key(&key);
        if request.input.key.len() > LONGEST_NOTED_KEY {
            return Err(s3_error!(KeyTooLongError, "upload it in one request"));
        }
        let response = self.files.create_multipart_upload(request).await?;
        if let Some(id) = &response.output.upload_id {
            self.uploads.begin(id.clone(), bucket, key);
        }
        Ok(response)
    }

    async fn upload_part(
        &self,
        request: S3Request<UploadPartInput>,
    ) -> S3Result<S3Response<UploadPartOutput>> {
        let (id, number) = (request.input.upload_id.clone(), request.input.part_number);
        let size = request.input.content_length.unwrap_or_default();
        if !self.uploads.has(&id) {
            return Err(s3_error!(NoSuchUpload));
        }
        let sent = self.files.upload_part(request).await;
        // Meanwhile another request may have ended it.
        if !self.uploads.has(&id) {
            return Err(s3_error!(NoSuchUpload));
        }
        let response = sent?;
        self.uploads.add_part(&id, number, response.output.e_tag.clone(), size);
        Ok(response)
    }

    async fn complete_multipart_upload(
        &self,
        mut request: S3Request<CompleteMultipartUploadInput>,
    ) -> S3Result<S3Response<CompleteMultipartUploadOutput>> {
        let id = request.input.upload_id.clone();
        let upload = self.uploads.take(&id).ok_or_else(|| s3_error!(NoSuchUpload))?;
        request.input.key = file_key(&request.input.key);
        let completed = self.files.complete_multipart_upload(request).await;
        if completed.is_err() {
            self.uploads.put_back(id, upload);
        }
        completed
    }

    async fn abort_multipart_upload(
        &self,
        mut request: S3Request<AbortMultipartUploadInput>,
    ) -> S3Result<S3Response<AbortMultipartUploadOutput>> {
        self.uploads.take(&request.input.upload_id).ok_or_else(|| s3_error!(NoSuchUpload))?;
        request.input.key = file_key(&request.input.key);
        self.files.abort_multipart_upload(request).await
    }

    async fn list_multipart_uploads(
        &self,
        request: S3Request<ListMultipartUploadsInput>,
    ) -> S3Result<S3Response<ListMultipartUploadsOutput>> {
        Ok(S3Response::new(self.uploads.list(request.input)))
    }

    async fn list_parts(&self, request: S3Request<ListPartsInput>) -> S3Result<S3Response<ListPartsOutput>> {
        let listed = self.uploads.list_parts(&request.input.upload_id);
        listed.map(S3Response::new).ok_or_else(|| s3_error!(NoSuchUpload))
    }

    async fn list_objects_v2(
        &self,
        mut request: S3Request<ListObjectsV2Input>,
    ) -> S3Result<S3Response<ListObjectsV2Output>> {
        let asked = request.input.prefix.clone();
        request.input.prefix = asked.as_deref().map(file_prefix);
        request.input.start_after = request.input.start_after.as_deref().map(file_key);
        let mut response = self.files.list_objects_v2(request).await?;
        let listing = &mut response.output;
        listing.prefix = asked;
        for object in listing.contents.iter_mut().flatten() {
            object.key = object.key.as_deref().map(object_key);
        }
        for folder in listing.common_prefixes.iter_mut().flatten() {
            folder.prefix = folder.prefix.as_deref().map(object_key);
        }
        Ok(response)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn ordinary_keys_are_their_own_paths() {
        for key in ["a.jpg", "a/b c+d.jpg", "%2F/ü.png", ".hidden/x"] {
            assert_eq!(file_key(key), key);
        }
    }

    #[tokio::test]
    async fn a_key_of_any_allowed_length_can_be_put() {
        let server = crate::dev::TestS3::create().await.unwrap();
        for length in [LONGEST_NOTED_KEY, LONGEST_NOTED_KEY + 1, 240] {
            let key = format!("a/{}", "k".repeat(length - 2));
            let etag = server.put(&key, "content").await.unwrap();
            let object = server.client().get_object().bucket(server.bucket()).key(&key).send().await.unwrap();
            assert_eq!(object.e_tag().unwrap().trim_matches('"'), etag);
            assert_eq!(object.body.collect().await.unwrap().to_vec(), b"content");
        }
    }

    proptest! {
        #[test]
        fn every_key_has_one_path_below_its_bucket(key in "[a./\u{e000}]{1,12}") {
            let path = file_key(&key);
            prop_assert_eq!(object_key(&path), key);
            prop_assert!(path.split('/').all(|segment| !matches!(segment, "" | "." | "..")));
        }

        #[test]
        fn a_prefix_of_a_key_is_a_prefix_of_its_path(key in "[ab/]{1,12}", cut in 0_usize..12) {
            let prefix = &key[..cut.min(key.len())];
            // Inside a segment, the rest decides whether a marker is needed.
            let whole_segments = prefix.ends_with('/') || prefix.is_empty();
            prop_assume!(whole_segments);
            prop_assert!(file_key(&key).starts_with(&file_prefix(prefix)));
        }
    }
}
