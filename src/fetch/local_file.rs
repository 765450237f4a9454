//! A file on its way to S3.

use crate::fetch::UploadError;
use bytes::Bytes;
use sha2::{Digest, Sha256};
use std::fs::File;
use std::io::{self, Read};
use std::path::Path;
use std::sync::Arc;

/// A file to upload, whose digest is known.
#[derive(Clone, Copy, Debug)]
pub struct LocalFile<'a> {
    pub path: &'a Path,
    pub bytes: u64,
    /// 64 digits.
    pub sha256: &'a str,
}

/// Reads a file from its beginning, and hashes it on the way.
pub(super) struct FileReader {
    path: Arc<Path>,
    // `None` only while a read is under way.
    open: Option<(File, Sha256)>,
}

impl FileReader {
    pub(super) fn open(path: &Path) -> Result<Self, UploadError> {
        let file = File::open(path).map_err(|source| UploadError::File { path: path.to_owned(), source })?;
        Ok(Self { path: path.into(), open: Some((file, Sha256::new())) })
    }

    /// The next `length` bytes.
    pub(super) async fn next(&mut self, length: u64) -> Result<Bytes, UploadError> {
        let (path, open) = (Arc::clone(&self.path), self.open.take());
        let read = tokio::task::spawn_blocking(move || {
            let (mut file, mut hasher) = open.ok_or_else(|| io::Error::other("its read was cancelled"))?;
            let mut content = vec![0; usize::try_from(length).map_err(io::Error::other)?];
            file.read_exact(&mut content)?;
            hasher.update(&content);
            Ok((content, (file, hasher)))
        });
        match read.await.unwrap_or_else(|error| Err(io::Error::other(error))) {
            Ok((content, open)) => {
                self.open = Some(open);
                Ok(content.into())
            }
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                Err(UploadError::Changed { path: path.to_path_buf() })
            }
            Err(source) => Err(UploadError::File { path: path.to_path_buf(), source }),
        }
    }

    /// Whether what was read is the whole of `file`.
    pub(super) async fn check(&mut self, file: LocalFile<'_>) -> Result<(), UploadError> {
        let changed = || UploadError::Changed { path: file.path.to_owned() };
        let (mut open, hasher) = self.open.take().ok_or_else(changed)?;
        let digest = hexadecimal(&hasher.finalize());
        let more =
            open.read(&mut [0]).map_err(|source| UploadError::File { path: file.path.to_owned(), source })?;
        if more > 0 || digest != file.sha256 { Err(changed()) } else { Ok(()) }
    }
}

pub(super) fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_file_that_is_not_what_it_was_is_not_taken_for_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("weights");
        std::fs::write(&path, b"twelve bytes").unwrap();
        let sha256 = hexadecimal(&Sha256::digest(b"twelve bytes"));
        for (content, bytes, fine) in [
            (&b"twelve bytes"[..], 12, true),
            (b"twelve bites", 12, false),
            (b"twelve", 12, false),
            (b"twelve bytes more", 12, false),
        ] {
            std::fs::write(&path, content).unwrap();
            let mut reader = FileReader::open(&path).unwrap();
            let file = LocalFile { path: &path, bytes, sha256: &sha256 };
            let result = match reader.next(bytes).await {
                Ok(_) => reader.check(file).await,
                Err(error) => Err(error),
            };
            assert_eq!(result.is_ok(), fine, "{content:?}: {result:?}");
            assert!(fine || matches!(result, Err(UploadError::Changed { .. })), "{content:?}");
        }
    }
}
