//! Self-contained HTML pages: a [`gallery`] of scores, and an [`evaluation`] of models by labels.
//!
//! A page loads nothing, and its content security policy forbids it to: styles and script are inline,
//! thumbnails are `data:` addresses. What pages share is in `shell` and `axis`; only encoded thumbnails
//! are held in memory.

mod axis;
pub mod evaluation;
pub mod gallery;
mod shell;
mod statistics;

pub use gallery::{Entry, EntryScore, ReportMeta, write};
pub use shell::STYLE;

use std::{
    fs::{self, File},
    io::{self, BufWriter, Write},
    path::{Path, PathBuf},
};

/// The longest edge of a thumbnail, in pixels: twice what a page shows, for dense screens.
pub const THUMBNAIL_EDGE: u32 = 512;

/// Whether a report can be written to `path`, tried out before the work that it reports on.
///
/// # Errors
/// When the folder does not exist or takes no file.
pub fn check(path: &Path) -> io::Result<()> {
    if path.is_dir() {
        return Err(io::ErrorKind::IsADirectory.into());
    }
    let partial = partial_path(path);
    File::create(&partial)?;
    fs::remove_file(&partial)
}

/// Writes a page. A reader of `path` sees the old page or the whole new one.
fn replace(path: &Path, page: impl FnOnce(&mut BufWriter<File>) -> io::Result<()>) -> io::Result<()> {
    let partial = partial_path(path);
    let written = File::create(&partial).and_then(|file| {
        let mut out = BufWriter::new(file);
        page(&mut out)?;
        out.flush()?;
        fs::rename(&partial, path)
    });
    if written.is_err() {
        // The error to report is the one that came first.
        let _ = fs::remove_file(&partial);
    }
    written
}

fn partial_path(path: &Path) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".partial");
    path.with_file_name(name)
}
