//! The source photographs, small enough to be cut from quickly, on the side of the split where they stay.

use super::{DemoModelError, degrade::jpeg};
use crate::image::{ImageSettings, decode};
use clap::Args;
use image::imageops::{self, FilterType};
use sha2::{Digest, Sha256};
use std::{
    fmt, fs,
    path::{Path, PathBuf},
};

/// The long edge of what is written, in pixels, at most.
const EDGE: u32 = 768;
const QUALITY: i32 = 95;
/// One source photograph in so many is held out.
const HELD_OUT: u64 = 4;
/// Decides which. The first under which no photograph is held out that was when the degradations were chosen.
const SALT: &[u8] = b"demo-model/24";

/// Divide source photographs into those to train on and those held out, and make them small
#[derive(Args, Clone, Debug)]
pub struct SourcesArgs {
    /// Source photographs
    #[arg(long, value_name = "DIR")]
    pub photos: PathBuf,
    /// Where `train/` and `held-out/` are written
    #[arg(long, value_name = "DIR")]
    pub output: PathBuf,
}

/// What a photograph is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    Train,
    HeldOut,
}

impl Side {
    /// The name of its folder and its samples.
    pub fn name(self) -> &'static str {
        match self {
            Self::Train => "train",
            Self::HeldOut => "held-out",
        }
    }

    /// Its folder below `parent`.
    pub fn folder(self, parent: &Path) -> PathBuf {
        parent.join(self.name())
    }

    /// By content and not by place in the folder: another photograph moves none to the other side.
    fn of(bytes: &[u8]) -> Self {
        let digest = Sha256::new().chain_update(SALT).chain_update(bytes).finalize();
        let held_out = digest.last().is_some_and(|last| u64::from(*last).is_multiple_of(HELD_OUT));
        if held_out { Self::HeldOut } else { Self::Train }
    }
}

/// A photograph to cut parts from.
pub struct Source {
    pub name: String,
    pub photo: image::RgbImage,
}

/// How many were written.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct DividedSources {
    pub train: usize,
    pub held_out: usize,
}

impl fmt::Display for DividedSources {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(formatter, "{} source photographs to train on, {} held out", self.train, self.held_out)
    }
}

/// Writes each photograph on its side.
///
/// # Errors
/// [`DemoModelError`] for a photograph that can't be decoded, a folder without any, or one that can't be
/// written.
pub fn divide(args: &SourcesArgs) -> Result<DividedSources, DemoModelError> {
    let paths = photographs(&args.photos)?;
    let failed = |path: &Path| {
        let path = path.to_owned();
        move |source| DemoModelError::Write { path, source }
    };
    for side in [Side::Train, Side::HeldOut] {
        let folder = side.folder(&args.output);
        fs::create_dir_all(&folder).map_err(failed(&folder))?;
    }
    let mut divided = DividedSources::default();
    for path in paths {
        let unreadable = |reason: String| DemoModelError::Photograph { path: path.clone(), reason };
        let bytes = fs::read(&path).map_err(|error| unreadable(error.to_string()))?;
        let side = Side::of(&bytes);
        let source = Source::decode(&path, &bytes)?;
        let small = jpeg(&shrunk(source.photo), QUALITY).map_err(|error| unreadable(error.to_string()))?;
        let place = side.folder(&args.output).join(format!("{}.jpg", source.name));
        fs::write(&place, small).map_err(failed(&place))?;
        match side {
            Side::Train => divided.train += 1,
            Side::HeldOut => divided.held_out += 1,
        }
    }
    Ok(divided)
}

/// The photographs of a folder, in the order of their names.
///
/// # Errors
/// [`DemoModelError`] for one that can't be decoded, or a folder without any.
pub fn read_sources(folder: &Path) -> Result<Vec<Source>, DemoModelError> {
    photographs(folder)?.iter().map(|path| Source::read(path)).collect()
}

impl Source {
    /// # Errors
    /// [`DemoModelError::Photograph`] where there is none, or none that can be decoded.
    pub fn read(path: &Path) -> Result<Self, DemoModelError> {
        let unreadable = |reason: String| DemoModelError::Photograph { path: path.to_owned(), reason };
        Self::decode(path, &fs::read(path).map_err(|error| unreadable(error.to_string()))?)
    }

    fn decode(path: &Path, bytes: &[u8]) -> Result<Self, DemoModelError> {
        let unreadable = |reason: String| DemoModelError::Photograph { path: path.to_owned(), reason };
        let rgb = decode(bytes, &ImageSettings::local()).map_err(|error| unreadable(error.to_string()))?;
        let photo = image::RgbImage::from_raw(rgb.width(), rgb.height(), rgb.pixels().to_vec())
            .ok_or_else(|| unreadable("it has no pixels".into()))?;
        let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        Ok(Self { name, photo })
    }
}

fn photographs(folder: &Path) -> Result<Vec<PathBuf>, DemoModelError> {
    let absent = || DemoModelError::NoPhotographs(folder.to_owned());
    let is_photograph =
        |path: &PathBuf| path.extension().is_some_and(|extension| extension == "jpg" || extension == "png");
    let entries = fs::read_dir(folder).map_err(|_| absent())?;
    let mut paths: Vec<PathBuf> =
        entries.filter_map(|entry| entry.ok().map(|entry| entry.path())).filter(is_photograph).collect();
    paths.sort();
    if paths.is_empty() { Err(absent()) } else { Ok(paths) }
}

fn shrunk(photo: image::RgbImage) -> image::RgbImage {
    let (width, height) = photo.dimensions();
    let scale = f64::from(EDGE) / f64::from(width.max(height).max(1));
    if scale >= 1.0 {
        return photo;
    }
    let scaled = |length: u32| (f64::from(length) * scale).round().max(1.0) as u32;
    imageops::resize(&photo, scaled(width), scaled(height), FilterType::CatmullRom)
}
