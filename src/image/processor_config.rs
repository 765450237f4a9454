//! What a checkpoint folder says about its images.

use crate::fault::Disposition;
use serde::Deserialize;
use std::{
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

/// `preprocessor_config.json` and the one field of `config.json` that concerns images.
pub(super) struct ProcessorConfig {
    pub fit: Fit,
    pub resize_edge: usize,
    pub crop_edge: usize,
    pub rescale_factor: f64,
    pub mean: [f64; 3],
    pub std: [f64; 3],
}

impl ProcessorConfig {
    pub fn read(dir: &Path) -> Result<Self, PreprocessorError> {
        let path = dir.join("preprocessor_config.json");
        let file: ProcessorFile = read_json(&path)?;
        let model: ModelFile = read_json(&dir.join("config.json"))?;
        file.check(&path)?;
        let config = Self {
            fit: match model.image_aspect_ratio.as_deref() {
                None | Some("pad") => Fit::Pad,
                Some(_) => Fit::Crop,
            },
            resize_edge: file.size.edge(&path, "size")?,
            crop_edge: file.crop_size.edge(&path, "crop_size")?,
            rescale_factor: file.rescale_factor,
            mean: file.image_mean,
            std: file.image_std,
        };
        if config.crop_edge > config.resize_edge {
            return Err(PreprocessorError::Unsupported {
                path,
                field: "crop_size",
                found: config.crop_edge.to_string(),
                expected: "an edge no longer than size",
            });
        }
        Ok(config)
    }
}

fn read_json<T: for<'de> Deserialize<'de>>(path: &Path) -> Result<T, PreprocessorError> {
    let text = fs::read(path).map_err(|reason| PreprocessorError::Read { path: path.to_owned(), reason })?;
    serde_json::from_slice(&text).map_err(|reason| PreprocessorError::Parse { path: path.to_owned(), reason })
}

#[derive(Deserialize)]
struct ModelFile {
    image_aspect_ratio: Option<String>,
}

/// With Transformers' defaults.
#[derive(Deserialize)]
struct ProcessorFile {
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

impl ProcessorFile {
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
        if self.image_std.iter().any(|&std| std < f64::from(f32::MIN_POSITIVE)) {
            return unsupported("image_std", format!("{:?}", self.image_std), "a positive number a channel");
        }
        if !self.image_mean.iter().all(|mean| (0.0..=1.0).contains(mean)) {
            return unsupported(
                "image_mean",
                format!("{:?}", self.image_mean),
                "a number from 0 to 1 a channel",
            );
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

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    /// The published configuration with `change` merged into it.
    fn read(change: Value, model: Value) -> Result<ProcessorConfig, PreprocessorError> {
        let folder = tempfile::tempdir().unwrap();
        let mut config = json!({
            "size": 448, "crop_size": 448, "resample": 3,
            "image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.3, 0.4],
        });
        for (key, value) in change.as_object().unwrap() {
            config[key] = value.clone();
        }
        fs::write(folder.path().join("preprocessor_config.json"), config.to_string()).unwrap();
        fs::write(folder.path().join("config.json"), model.to_string()).unwrap();
        ProcessorConfig::read(folder.path())
    }

    #[test]
    fn every_spelling_of_an_edge_is_read() {
        for size in [json!(336), json!({"shortest_edge": 336}), json!({"height": 336, "width": 336})] {
            let config = read(json!({"size": size, "crop_size": size}), json!({})).unwrap();
            assert_eq!((config.resize_edge, config.crop_edge), (336, 336));
        }
    }

    #[test]
    fn only_another_aspect_ratio_crops() {
        let fit = |model| read(json!({}), model).unwrap().fit;
        assert_eq!(fit(json!({})), Fit::Pad);
        assert_eq!(fit(json!({"image_aspect_ratio": null})), Fit::Pad);
        assert_eq!(fit(json!({"image_aspect_ratio": "pad"})), Fit::Pad);
        assert_eq!(fit(json!({"image_aspect_ratio": "square"})), Fit::Crop);
    }

    #[test]
    fn what_is_not_supported_is_named() {
        for (change, field) in [
            (json!({"resample": 2}), "resample"),
            (json!({"do_center_crop": false}), "do_center_crop"),
            (json!({"do_normalize": false}), "do_normalize"),
            (json!({"image_std": [0.2, 0.0, 0.4]}), "image_std"),
            (json!({"image_mean": [0.2, 104.0, 0.4]}), "image_mean"),
            (json!({"size": {"height": 3, "width": 4}}), "size"),
            (json!({"size": 0, "crop_size": 0}), "size"),
            (json!({"crop_size": 500}), "crop_size"),
        ] {
            let error = read(change, json!({})).err().expect(field);
            assert_eq!(error.disposition(), Disposition::Stop);
            let message = error.to_string();
            assert!(message.contains(field) && message.contains("preprocessor_config.json"), "{message}");
        }
    }

    #[test]
    fn a_missing_or_broken_file_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let missing = ProcessorConfig::read(folder.path()).err().unwrap().to_string();
        assert!(missing.contains("preprocessor_config.json"), "{missing}");
        fs::write(folder.path().join("preprocessor_config.json"), "{").unwrap();
        let broken = ProcessorConfig::read(folder.path()).err().unwrap().to_string();
        assert!(broken.contains("preprocessor_config.json"), "{broken}");
    }
}
