//! The reference's image processor: pad or crop to a square, resize, normalise.

use super::{
    decode::decode_into,
    error::ImageError,
    filter::Dimension,
    resize::{self, Plan},
    rgb::RgbImage,
    settings::{ImageSettings, PreprocessMode},
    simd::Instructions,
};
use crate::fault::Disposition;
use serde::Deserialize;
use std::{
    cell::Cell,
    fs,
    path::{Path, PathBuf},
};

/// How an image that is not square becomes so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fit {
    /// Centred on a square of the mean colour, then resized (`image_aspect_ratio: "pad"`).
    Pad,
    /// Resized by its shorter edge, then cropped around the centre.
    Crop,
}

/// A checkpoint whose preprocessing cannot be followed.
#[derive(Debug, thiserror::Error)]
pub enum PreprocessorError {
    #[error("{path}: {reason}; the checkpoint folder needs this file")]
    Read { path: PathBuf, reason: std::io::Error },
    #[error("{path}: {reason}; copy the file from the published checkpoint")]
    Parse { path: PathBuf, reason: serde_json::Error },
    #[error(
        "{path}: {field} is {found}, and only {expected} is supported; use the published checkpoint's file"
    )]
    Unsupported { path: PathBuf, field: &'static str, found: String, expected: &'static str },
}

impl PreprocessorError {
    /// Stops the process: a model without its preprocessing gives wrong scores.
    pub fn disposition(&self) -> Disposition {
        Disposition::Stop
    }
}

/// Most bytes of a decoded image's memory that a thread keeps for its next one: 22 megapixels.
const MOST_KEPT: usize = 64 << 20;

thread_local! {
    /// Fresh pages for every 12-megapixel photo cost a third as much as decoding it.
    static PIXELS: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
}

/// Turns decoded images into pixel values. Immutable and cheap to share between threads.
///
/// Follows Transformers' `CLIPImageProcessor` 4.31 and the reference's `expand2square`, except that
/// images one or three pixels high are not mistaken for channels-first arrays.
#[derive(Clone, Debug)]
pub struct Preprocessor {
    fit: Fit,
    /// Edge that the square, or the shorter edge, is resized to.
    resize_edge: usize,
    /// Edge of the centre crop: the model's input.
    crop_edge: usize,
    background: [u8; 3],
    /// Normalised value of each sample, by channel.
    normalized: Box<[[f32; 256]; 3]>,
    instructions: Instructions,
}

impl Preprocessor {
    /// From `preprocessor_config.json` and `config.json` of a checkpoint folder.
    ///
    /// Images are padded unless `config.json` names another `image_aspect_ratio`; the reference's
    /// scoring pads always, and [`Preprocessor::with_fit`] overrides the folder.
    ///
    /// # Errors
    /// [`PreprocessorError`] when a file is missing or asks for anything but bicubic resampling,
    /// centre crop, rescaling and normalisation.
    pub fn open(dir: &Path) -> Result<Self, PreprocessorError> {
        let path = dir.join("preprocessor_config.json");
        let config: ProcessorConfig = read_json(&path)?;
        let model: ModelConfig = read_json(&dir.join("config.json"))?;
        let fit = match model.image_aspect_ratio.as_deref() {
            None | Some("pad") => Fit::Pad,
            Some(_) => Fit::Crop,
        };
        config.check(&path)?;
        let (resize_edge, crop_edge) =
            (config.size.edge(&path, "size")?, config.crop_size.edge(&path, "crop_size")?);
        if crop_edge > resize_edge {
            return Err(PreprocessorError::Unsupported {
                path,
                field: "crop_size",
                found: crop_edge.to_string(),
                expected: "an edge no longer than size",
            });
        }
        Ok(Self {
            fit,
            resize_edge,
            crop_edge,
            // What the reference computes: int(mean * 255).
            background: config.image_mean.map(|mean| (mean * 255.0) as u8),
            normalized: normalization(config.rescale_factor, config.image_mean, config.image_std),
            instructions: Instructions::best(),
        })
    }

    /// The same with another way of making images square.
    #[must_use]
    pub fn with_fit(mut self, fit: Fit) -> Self {
        self.fit = fit;
        self
    }

    /// The same without vector instructions. Gives the same bits, slower.
    #[must_use]
    pub fn without_vector_instructions(mut self) -> Self {
        self.instructions = Instructions::Portable;
        self
    }

    /// How images that are not square become so.
    pub fn fit(&self) -> Fit {
        self.fit
    }

    /// Edge of the model's square input.
    pub fn image_size(&self) -> usize {
        self.crop_edge
    }

    /// Colour of the padding.
    pub fn background(&self) -> [u8; 3] {
        self.background
    }

    /// Decodes `bytes` and writes pixel values into `values`; returns the stored width and height.
    ///
    /// # Errors
    /// [`ImageError`]; `values` then hold what they held before.
    ///
    /// # Panics
    /// Unless `values` holds `3 * image_size * image_size` numbers.
    pub fn read(
        &self,
        bytes: &[u8],
        settings: &ImageSettings,
        values: &mut [f32],
    ) -> Result<(u32, u32), ImageError> {
        let mut stored = None;
        let image = decode_into(PIXELS.take(), bytes, settings, |width, height| {
            stored = Some((width, height));
            match settings.preprocess {
                PreprocessMode::Exact => 1,
                PreprocessMode::Fast => self.reduction(width, height),
            }
        })?;
        self.preprocess(&image, values);
        let stored = stored.unwrap_or((image.width(), image.height()));
        let pixels = image.into_pixels();
        if pixels.capacity() <= MOST_KEPT {
            PIXELS.set(pixels);
        }
        Ok(stored)
    }

    /// Half size where the longer edge then still has four pixels for each of the model's: at that
    /// ratio the difference from the full decode is about that between two JPEG decoders.
    fn reduction(&self, width: u32, height: u32) -> u32 {
        let halved = width.max(height).div_ceil(2) as usize;
        if self.fit == Fit::Pad && halved >= 4 * self.resize_edge { 2 } else { 1 }
    }

    /// Writes the pixel values of `image`, channels first (`[3, image_size, image_size]`), bit-equal
    /// to the reference's.
    ///
    /// # Panics
    /// Unless `values` holds `3 * image_size * image_size` numbers.
    pub fn preprocess(&self, image: &RgbImage, values: &mut [f32]) {
        let edge = self.crop_edge;
        let plane = edge * edge;
        assert_eq!(values.len(), 3 * plane, "a slot holds 3 * {edge} * {edge} values");
        let (red, rest) = values.split_at_mut(plane);
        let (green, blue) = rest.split_at_mut(plane);
        let [red_values, green_values, blue_values] = &*self.normalized;
        resize::resize(image, &self.plan(image), self.instructions, |row, samples| {
            let row = row * edge..(row + 1) * edge;
            let planes = red[row.clone()].iter_mut().zip(&mut green[row.clone()]).zip(&mut blue[row]);
            for (((red, green), blue), pixel) in planes.zip(samples.as_chunks::<3>().0) {
                *red = red_values[usize::from(pixel[0])];
                *green = green_values[usize::from(pixel[1])];
                *blue = blue_values[usize::from(pixel[2])];
            }
        });
    }

    fn plan(&self, image: &RgbImage) -> Plan {
        let (width, height) = (image.width() as usize, image.height() as usize);
        let (short, long) = (width.min(height), width.max(height));
        let dimension = |edge: usize| match self.fit {
            Fit::Pad => {
                let before = (long - edge) / 2;
                self.dimension(long, before..before + edge, self.resize_edge)
            }
            Fit::Crop if edge == short => self.dimension(edge, 0..edge, self.resize_edge),
            Fit::Crop => {
                // The reference divides as floating-point numbers and truncates.
                let resized = (self.resize_edge * long) as f64 / short as f64;
                self.dimension(edge, 0..edge, resized as usize)
            }
        };
        Plan { horizontal: dimension(width), vertical: dimension(height), background: self.background }
    }

    fn dimension(&self, frame: usize, image: std::ops::Range<usize>, resized: usize) -> Dimension {
        let before = (resized - self.crop_edge) / 2;
        Dimension { frame, image, resized, wanted: before..before + self.crop_edge }
    }
}

/// `(sample * factor - mean) / std` as numpy computes it: the product in doubles, rounded to single
/// precision, the rest in single precision.
fn normalization(factor: f64, mean: [f64; 3], std: [f64; 3]) -> Box<[[f32; 256]; 3]> {
    let mut table = Box::new([[0.0; 256]; 3]);
    for (channel, values) in table.iter_mut().enumerate() {
        for (sample, value) in values.iter_mut().enumerate() {
            *value = ((sample as f64 * factor) as f32 - mean[channel] as f32) / std[channel] as f32;
        }
    }
    table
}

fn read_json<T: for<'de> Deserialize<'de>>(path: &Path) -> Result<T, PreprocessorError> {
    let text = fs::read(path).map_err(|reason| PreprocessorError::Read { path: path.to_owned(), reason })?;
    serde_json::from_slice(&text).map_err(|reason| PreprocessorError::Parse { path: path.to_owned(), reason })
}

/// The part of `config.json` that concerns images.
#[derive(Deserialize)]
struct ModelConfig {
    image_aspect_ratio: Option<String>,
}

/// `preprocessor_config.json`, with Transformers' defaults.
#[derive(Deserialize)]
struct ProcessorConfig {
    size: Size,
    crop_size: Size,
    image_mean: [f64; 3],
    image_std: [f64; 3],
    #[serde(default = "bicubic")]
    resample: u8,
    #[serde(default = "one_in_255")]
    rescale_factor: f64,
    #[serde(default = "yes")]
    do_resize: bool,
    #[serde(default = "yes")]
    do_center_crop: bool,
    #[serde(default = "yes")]
    do_rescale: bool,
    #[serde(default = "yes")]
    do_normalize: bool,
}

/// Pillow's number of the bicubic filter.
const BICUBIC: u8 = 3;

fn bicubic() -> u8 {
    BICUBIC
}

fn one_in_255() -> f64 {
    1.0 / 255.0
}

fn yes() -> bool {
    true
}

impl ProcessorConfig {
    fn check(&self, path: &Path) -> Result<(), PreprocessorError> {
        let unsupported = |field, found: String, expected| {
            Err(PreprocessorError::Unsupported { path: path.to_owned(), field, found, expected })
        };
        if self.resample != BICUBIC {
            return unsupported("resample", self.resample.to_string(), "3 (bicubic)");
        }
        let steps = [
            ("do_resize", self.do_resize),
            ("do_center_crop", self.do_center_crop),
            ("do_rescale", self.do_rescale),
            ("do_normalize", self.do_normalize),
        ];
        if let Some((field, _)) = steps.into_iter().find(|(_, done)| !done) {
            return unsupported(field, "false".to_owned(), "true");
        }
        if self.image_std.iter().any(|&std| std.abs() < f64::from(f32::MIN_POSITIVE)) {
            return unsupported("image_std", format!("{:?}", self.image_std), "a positive number a channel");
        }
        Ok(())
    }
}

/// An edge, in any of the spellings that Transformers has had.
#[derive(Deserialize)]
#[serde(untagged)]
enum Size {
    Edge(usize),
    Shortest { shortest_edge: usize },
    Both { height: usize, width: usize },
}

impl Size {
    fn edge(&self, path: &Path, field: &'static str) -> Result<usize, PreprocessorError> {
        let unsupported = |found: String, expected| PreprocessorError::Unsupported {
            path: path.to_owned(),
            field,
            found,
            expected,
        };
        let edge = match *self {
            Self::Edge(edge) | Self::Shortest { shortest_edge: edge } => edge,
            Self::Both { height, width } if height == width => height,
            Self::Both { height, width } => return Err(unsupported(format!("{height}x{width}"), "a square")),
        };
        // Far above any model; keeps three planes of it within reason.
        const LONGEST: usize = 8192;
        if (1..=LONGEST).contains(&edge) {
            Ok(edge)
        } else {
            Err(unsupported(edge.to_string(), "an edge of 1 to 8192 pixels"))
        }
    }
}
