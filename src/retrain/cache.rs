//! Photos on this machine, by what they hold, so that no run fetches what an earlier one has.

use super::error::RetrainError;
use crate::{
    labels::LabelledObject,
    split::ContentHash,
    train::images::{ImageSource, SourceError},
};
use bytes::Bytes;
use sha2::{Digest, Sha256};
use std::{
    collections::{HashMap, HashSet},
    fs::{self, File},
    io::{self, Write},
    path::{Path, PathBuf},
    time::SystemTime,
};

/// `photos/` has a file for each content, and `objects/` the content of each object whose etag pins it. Cheap
/// to clone.
#[derive(Clone, Debug)]
pub struct PhotoCache {
    photos: PathBuf,
    objects: PathBuf,
}

impl PhotoCache {
    /// The cache in the folder `work_dir`, made if it is not there.
    ///
    /// # Errors
    /// [`RetrainError::Io`].
    pub fn open(work_dir: &Path) -> Result<Self, RetrainError> {
        let cache = Self { photos: work_dir.join("photos"), objects: work_dir.join("objects") };
        for folder in [&cache.photos, &cache.objects] {
            fs::create_dir_all(folder).map_err(RetrainError::io(folder, "creating the folder"))?;
        }
        Ok(cache)
    }

    /// What an object holds, if its photo is here. One without an etag may hold another one by now.
    pub fn content_of(&self, object: &LabelledObject) -> Option<ContentHash> {
        let content = fs::read_to_string(self.entry(object)?).ok()?.trim().parse().ok()?;
        self.has(&content).then_some(content)
    }

    pub fn has(&self, content: &ContentHash) -> bool {
        self.path(content).is_file()
    }

    /// Keeps a photo, and that `object` holds it.
    ///
    /// # Errors
    /// [`RetrainError::Io`], most likely for lack of space.
    pub fn keep(&self, object: Option<&LabelledObject>, bytes: &[u8]) -> Result<ContentHash, RetrainError> {
        let content = ContentHash::of(bytes);
        let path = self.path(&content);
        if !path.is_file() {
            replace(&path, bytes)?;
        }
        if let Some(entry) = object.and_then(|object| self.entry(object)) {
            replace(&entry, content.to_string().as_bytes())?;
        }
        Ok(content)
    }

    /// The photo's file.
    pub fn path(&self, content: &ContentHash) -> PathBuf {
        let name = content.to_string();
        self.photos.join(&name[..2]).join(name)
    }

    /// The photo, verified.
    ///
    /// # Errors
    /// When it can't be read, or is no longer what it was.
    pub fn read(&self, content: &ContentHash) -> io::Result<Bytes> {
        let bytes = fs::read(self.path(content))?;
        if ContentHash::of(&bytes) != *content {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "its SHA-256 is not its name"));
        }
        Ok(bytes.into())
    }

    /// Removes photos, those first that were written longest ago, until the rest takes `limit` bytes at most;
    /// those in `used` stay in any case.
    ///
    /// # Errors
    /// [`RetrainError::Io`].
    pub fn trim(&self, limit: u64, used: &HashSet<ContentHash>) -> Result<(), RetrainError> {
        let mut photos: Vec<(SystemTime, u64, PathBuf)> = Vec::new();
        for entry in walkdir::WalkDir::new(&self.photos) {
            let Ok(entry) = entry else { continue };
            let Ok(metadata) = entry.metadata() else { continue };
            if metadata.is_file() {
                let written = metadata.modified().unwrap_or(SystemTime::UNIX_EPOCH);
                photos.push((written, metadata.len(), entry.into_path()));
            }
        }
        photos.sort();
        let mut total: u64 = photos.iter().map(|(_, bytes, _)| bytes).sum();
        for (_, bytes, path) in photos {
            if total <= limit {
                break;
            }
            let content = path.file_name().and_then(|name| name.to_str()?.parse().ok());
            if content.is_some_and(|content| used.contains(&content)) {
                continue;
            }
            fs::remove_file(&path).map_err(RetrainError::io(&path, "removing"))?;
            total -= bytes;
        }
        Ok(())
    }

    fn entry(&self, object: &LabelledObject) -> Option<PathBuf> {
        if object.etag.is_empty() {
            return None;
        }
        let mut digest = Sha256::new();
        for part in [&object.bucket, &object.key, &object.etag] {
            digest.update((part.len() as u64).to_le_bytes());
            digest.update(part);
        }
        let name = ContentHash(digest.finalize().into()).to_string();
        Some(self.objects.join(&name[..2]).join(name))
    }
}

/// Photos of samples that are in the cache.
pub struct CachedPhotos {
    pub cache: PhotoCache,
    /// What the image of each name is.
    pub contents: HashMap<String, ContentHash>,
}

impl ImageSource for CachedPhotos {
    fn read(&self, name: &str, limit: u64) -> Result<Bytes, SourceError> {
        let content = self.contents.get(name);
        let content = content.ok_or_else(|| SourceError::Image(format!("{name}: was never fetched")))?;
        let bytes = self.cache.read(content).map_err(|error| {
            let path = self.cache.path(content);
            SourceError::Unavailable(format!("{}: {error}; start again to fetch it anew", path.display()))
        })?;
        match bytes.len() as u64 {
            length if length > limit => {
                Err(SourceError::Image(format!("{name}: {length} bytes are more than image.max_bytes")))
            }
            _ => Ok(bytes),
        }
    }
}

/// Writes a file that is there whole or not at all.
pub(super) fn replace(path: &Path, bytes: &[u8]) -> Result<(), RetrainError> {
    let folder = path.parent().unwrap_or(Path::new("."));
    fs::create_dir_all(folder).map_err(RetrainError::io(folder, "creating the folder"))?;
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(format!(".{}.partial", uuid::Uuid::new_v4()));
    let partial = folder.join(name);
    let written = File::create(&partial).and_then(|mut file| {
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&partial, path)
    });
    written.map_err(|error| {
        // The error to report is the one that came first.
        let _ = fs::remove_file(&partial);
        RetrainError::io(path, "writing")(error)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn object(etag: &str) -> LabelledObject {
        LabelledObject { bucket: "b".into(), key: "k".into(), etag: etag.into() }
    }

    #[test]
    fn a_photo_is_kept_once_and_found_by_every_object_that_is_pinned() {
        let folder = tempfile::tempdir().unwrap();
        let cache = PhotoCache::open(folder.path()).unwrap();
        let content = cache.keep(Some(&object("1")), b"one").unwrap();
        assert_eq!(cache.keep(Some(&object("")), b"one").unwrap(), content);
        assert_eq!(cache.content_of(&object("1")), Some(content));
        assert_eq!(cache.content_of(&object("")), None);
        assert_eq!(cache.content_of(&object("2")), None);
        assert_eq!(cache.read(&content).unwrap(), "one");

        let contents = HashMap::from([("b/k".to_owned(), content)]);
        let photos = CachedPhotos { cache: cache.clone(), contents };
        assert_eq!(photos.read("b/k", 3).unwrap(), "one");
        assert!(matches!(photos.read("b/k", 2), Err(SourceError::Image(_))));
        assert!(matches!(photos.read("b/l", 9), Err(SourceError::Image(_))));
        fs::write(cache.path(&content), b"two").unwrap();
        assert!(matches!(photos.read("b/k", 9), Err(SourceError::Unavailable(_))));
    }

    #[test]
    fn room_is_made_of_what_is_not_used() {
        let folder = tempfile::tempdir().unwrap();
        let cache = PhotoCache::open(folder.path()).unwrap();
        let contents: Vec<ContentHash> = (0..4_u8)
            .map(|index| cache.keep(Some(&object(&index.to_string())), &[index; 100]).unwrap())
            .collect();
        cache.trim(400, &HashSet::new()).unwrap();
        assert!(contents.iter().all(|content| cache.has(content)));
        cache.trim(150, &HashSet::from([contents[0]])).unwrap();
        assert!(cache.has(&contents[0]));
        assert_eq!(contents.iter().filter(|content| cache.has(content)).count(), 1);
        assert_eq!(cache.content_of(&object("0")), Some(contents[0]));
        let gone = (0..4_u8).filter(|index| cache.content_of(&object(&index.to_string())).is_none());
        assert_eq!(gone.count(), 3);
    }
}
