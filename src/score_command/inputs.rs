//! From what the user named to a list of inputs, in the order of the results.

use super::error::ScoreCommandError;
use crate::object::ObjectRef;
use std::{
    ffi::OsStr,
    fs,
    path::{Path, PathBuf},
};
use walkdir::{DirEntry, WalkDir};

/// Names that a folder walk takes for images. HEIC and AVIF are among them: they are not decoded,
/// and the row that says so is better than silence.
const EXTENSIONS: [&str; 14] =
    ["avif", "bmp", "dib", "gif", "heic", "heif", "jfif", "jpe", "jpeg", "jpg", "png", "tif", "tiff", "webp"];

/// The extensions for messages.
pub(super) fn extensions() -> String {
    EXTENSIONS.map(|extension| format!(".{extension}")).join(" ")
}

/// One thing to score.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Input {
    /// What results call it: the path as given or found, or the object's address.
    pub name: String,
    pub source: Source,
}

/// Where an input's bytes are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    File(PathBuf),
    Object(ObjectRef),
    /// Found in a folder, but known to be unreadable: the reason.
    Unreadable(String),
}

/// A bucket, and what the keys in it begin with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Prefix {
    pub bucket: String,
    pub prefix: String,
}

/// What one argument names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Argument {
    /// Files, already listed.
    Local(Vec<Input>),
    /// Objects, still to be listed.
    Remote(Prefix),
}

impl Argument {
    /// Reads one argument: a file is taken as it is, a folder walked.
    ///
    /// # Errors
    /// [`ScoreCommandError`] when the path does not exist or the address is none.
    pub fn read(text: &str) -> Result<Self, ScoreCommandError> {
        if text == "-" {
            return Err(ScoreCommandError::StandardInput);
        }
        if let Some(address) = text.strip_prefix("s3://") {
            let (bucket, prefix) = address.split_once('/').unwrap_or((address, ""));
            if bucket.is_empty() {
                return Err(ScoreCommandError::S3Address(text.into()));
            }
            return Ok(Self::Remote(Prefix { bucket: bucket.into(), prefix: prefix.into() }));
        }
        let path = Path::new(text);
        match fs::metadata(path) {
            Ok(metadata) if metadata.is_dir() => Ok(Self::Local(walk(path))),
            Ok(_) => Ok(Self::Local(vec![Input::file(path)])),
            // A dangling link, or a path through a folder that may not be entered, is as missing.
            Err(_) => Err(ScoreCommandError::Missing(text.into())),
        }
    }
}

impl Input {
    fn file(path: &Path) -> Self {
        Self { name: path.to_string_lossy().into_owned(), source: Source::File(path.to_owned()) }
    }

    /// An object of a bucket, called by its address.
    pub fn object(object: ObjectRef) -> Self {
        Self { name: format!("s3://{object}"), source: Source::Object(object) }
    }
}

impl Prefix {
    /// Whether a listed key is scored: the very key that was named, and images in no hidden folder.
    pub fn takes(&self, key: &str) -> bool {
        let hidden = |part: &str| is_hidden(part.as_ref());
        let below = key.strip_prefix(&self.prefix).unwrap_or(key);
        key == self.prefix || has_image_extension(Path::new(key)) && !below.split('/').any(hidden)
    }
}

/// The images under `folder`, each folder's entries by name; hidden ones are skipped, links followed.
fn walk(folder: &Path) -> Vec<Input> {
    let is_shown = |entry: &DirEntry| entry.depth() == 0 || !is_hidden(entry.file_name());
    WalkDir::new(folder)
        .follow_links(true)
        .sort_by_file_name()
        .into_iter()
        .filter_entry(is_shown)
        .filter_map(|entry| match entry {
            Ok(entry) if entry.file_type().is_file() && has_image_extension(entry.path()) => {
                Some(Input::file(entry.path()))
            }
            Ok(_) => None,
            // A link back to a folder above is no loss: what it holds is found there.
            Err(error) if error.loop_ancestor().is_some() => None,
            Err(error) => {
                let path = error.path().unwrap_or(folder);
                let reason = error.io_error().map_or_else(|| error.to_string(), ToString::to_string);
                Some(Input { name: path.to_string_lossy().into_owned(), source: Source::Unreadable(reason) })
            }
        })
        .collect()
}

fn is_hidden(name: &OsStr) -> bool {
    name.as_encoded_bytes().starts_with(b".")
}

/// Whether a folder walk or an S3 listing takes this name for an image.
fn has_image_extension(path: &Path) -> bool {
    path.extension()
        .and_then(OsStr::to_str)
        .is_some_and(|extension| EXTENSIONS.iter().any(|known| extension.eq_ignore_ascii_case(known)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    fn names(argument: &str) -> Vec<String> {
        match Argument::read(argument).unwrap() {
            Argument::Local(inputs) => inputs.into_iter().map(|input| input.name).collect(),
            Argument::Remote(prefix) => panic!("{prefix:?}"),
        }
    }

    #[test]
    fn a_folder_is_walked_in_order_without_hidden_files_and_other_kinds() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path();
        for directory in ["b", ".hidden", "b/inner"] {
            fs::create_dir(root.join(directory)).unwrap();
        }
        for file in [
            "c.JPG",
            "a.png",
            ".d.jpg",
            "e.txt",
            "b/z.webp",
            "b/inner/é.tiff",
            ".hidden/f.jpg",
            "noextension",
        ] {
            fs::write(root.join(file), "").unwrap();
        }
        symlink(root, root.join("b/loop")).unwrap();
        symlink(root.join("a.png"), root.join("link.png")).unwrap();
        let root = root.to_str().unwrap();
        let expected = ["a.png", "b/inner/é.tiff", "b/z.webp", "c.JPG", "link.png"];
        assert_eq!(names(root), expected.map(|name| format!("{root}/{name}")));
        let named = format!("{root}/e.txt");
        assert_eq!(names(&named), std::slice::from_ref(&named));
    }

    #[test]
    fn a_dangling_link_in_a_folder_is_listed_as_unreadable() {
        let folder = tempfile::tempdir().unwrap();
        symlink("nowhere", folder.path().join("a.jpg")).unwrap();
        let Argument::Local(inputs) = Argument::read(folder.path().to_str().unwrap()).unwrap() else {
            panic!()
        };
        assert!(matches!(&inputs[..], [Input { source: Source::Unreadable(_), .. }]), "{inputs:?}");
    }

    #[test]
    fn what_is_not_there_is_named() {
        let error = Argument::read("/no/such/place.jpg").unwrap_err();
        assert!(error.to_string().starts_with("/no/such/place.jpg: "), "{error}");
        assert_eq!(error.exit_code(), 2);
        assert_eq!(Argument::read("-").unwrap_err().exit_code(), 2);
    }

    #[test]
    fn s3_addresses_keep_their_prefix_as_it_is() {
        let remote = |text: &str| match Argument::read(text) {
            Ok(Argument::Remote(Prefix { bucket, prefix })) => Some((bucket, prefix)),
            _ => None,
        };
        assert_eq!(remote("s3://b"), Some(("b".into(), String::new())));
        assert_eq!(remote("s3://b/"), Some(("b".into(), String::new())));
        assert_eq!(remote("s3://b/a//c+d%2F"), Some(("b".into(), "a//c+d%2F".into())));
        assert_eq!(remote("s3:///key"), None);
    }

    #[test]
    fn of_the_keys_under_a_prefix_images_are_taken() {
        let prefix = Prefix { bucket: "b".into(), prefix: "album/raw".into() };
        let taken = [
            "album/raw",
            "album/raw/1.jpg",
            "album/raw/.thumbs/1.jpg",
            "album/raw/1.xmp",
            "album/raws//2.PNG",
        ]
        .map(|key| prefix.takes(key));
        assert_eq!(taken, [true, true, false, false, true]);
    }
}
