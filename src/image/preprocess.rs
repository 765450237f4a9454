//! The reference's image processor: pad or crop to a square, resize, normalise.

use super::{
    decode::decode_into,
    error::ImageError,
    filter::Dimension,
    processor_config::{Fit, PreprocessorError, ProcessorConfig},
    resize::{self, Plan},
    rgb::RgbImage,
    settings::{ImageSettings, PreprocessMode},
    simd::Instructions,
};
use std::{cell::Cell, path::Path};

/// Most bytes of a decoded image's memory that a thread keeps for its next one: 22 megapixels.
const MOST_KEPT: usize = 64 << 20;

/// Mean and standard deviation of each channel that CLIP was trained with (`OPENAI_CLIP_MEAN` and
/// `OPENAI_CLIP_STD` of Transformers).
const CLIP_MEAN: [f64; 3] = [0.48145466, 0.4578275, 0.40821073];
const CLIP_STD: [f64; 3] = [0.26862954, 0.26130258, 0.27577711];

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
        let config = ProcessorConfig::read(dir)?;
        Ok(Self {
            fit: config.fit,
            resize_edge: config.resize_edge,
            crop_edge: config.crop_edge,
            // What the reference computes: int(mean * 255).
            background: config.mean.map(|mean| (mean * 255.0) as u8),
            normalized: normalization(config.rescale_factor, config.mean, config.std),
            instructions: Instructions::best(),
        })
    }

    /// For a square input of `image_size` pixels a side, with CLIP's published normalisation, and
    /// padding: what a checkpoint asks for that says nothing else.
    pub fn clip(image_size: usize) -> Self {
        Self {
            fit: Fit::Pad,
            resize_edge: image_size,
            crop_edge: image_size,
            background: CLIP_MEAN.map(|mean| (mean * 255.0) as u8),
            normalized: normalization(1.0 / 255.0, CLIP_MEAN, CLIP_STD),
            instructions: Instructions::best(),
        }
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn preprocessor(edge: usize) -> Preprocessor {
        let folder = tempfile::tempdir().unwrap();
        let config = format!(
            r#"{{"size": {edge}, "crop_size": {edge}, "image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.3, 0.4]}}"#
        );
        fs::write(folder.path().join("preprocessor_config.json"), config).unwrap();
        fs::write(folder.path().join("config.json"), "{}").unwrap();
        Preprocessor::open(folder.path()).unwrap()
    }

    fn jpeg(width: usize, height: usize) -> Vec<u8> {
        let wave = |x: usize, y: usize, speed: f64| {
            128.0 + 90.0 * (x as f64 * speed).sin() * (y as f64 * speed / 2.0).cos()
        };
        let pixels: Vec<u8> = (0..width * height)
            .flat_map(|index| [0.11, 0.07, 0.03].map(|speed| wave(index % width, index / width, speed) as u8))
            .collect();
        let image = turbojpeg::Image {
            pixels: pixels.as_slice(),
            width,
            pitch: width * 3,
            height,
            format: turbojpeg::PixelFormat::RGB,
        };
        turbojpeg::compress(image, 90, turbojpeg::Subsamp::Sub2x2).unwrap().to_vec()
    }

    fn read(preprocessor: &Preprocessor, bytes: &[u8], preprocess: PreprocessMode) -> Vec<f32> {
        let mut values = vec![f32::NAN; 3 * preprocessor.image_size() * preprocessor.image_size()];
        let settings = ImageSettings { preprocess, ..ImageSettings::default() };
        preprocessor.read(bytes, &settings, &mut values).unwrap();
        values
    }

    #[test]
    fn padding_has_the_mean_colour_and_the_image_its_place() {
        let preprocessor = preprocessor(8);
        let image = RgbImage::new(8, 4, vec![255; 8 * 4 * 3]).unwrap();
        let mut values = vec![0.0; 3 * 8 * 8];
        preprocessor.preprocess(&image, &mut values);
        let [red, _, _] = &*preprocessor.normalized;
        assert_eq!(values[0], red[usize::from(preprocessor.background()[0])]);
        assert_eq!(values[3 * 8 + 4], red[255]);
        assert_eq!(preprocessor.background(), [127, 102, 76]);
    }

    #[test]
    fn one_pixel_is_enough() {
        let preprocessor = preprocessor(5);
        let mut values = vec![f32::NAN; 3 * 5 * 5];
        preprocessor.preprocess(&RgbImage::new(1, 1, vec![10, 20, 30]).unwrap(), &mut values);
        let tables = preprocessor.normalized.iter().zip([10, 20, 30]);
        let expected: Vec<f32> = tables.flat_map(|(table, sample)| [table[sample]; 25]).collect();
        assert_eq!(values, expected);
    }

    #[test]
    fn fast_differs_little_and_only_for_large_jpegs() {
        let preprocessor = preprocessor(56);
        let small = jpeg(400, 300);
        assert_eq!(
            read(&preprocessor, &small, PreprocessMode::Fast),
            read(&preprocessor, &small, PreprocessMode::Exact)
        );
        let large = jpeg(900, 600);
        let fast = read(&preprocessor, &large, PreprocessMode::Fast);
        let exact = read(&preprocessor, &large, PreprocessMode::Exact);
        let difference: f32 = fast.iter().zip(&exact).map(|(fast, exact)| (fast - exact).abs()).sum();
        assert!(difference > 0.0, "decoded at full size");
        assert!(difference / (fast.len() as f32) < 0.01, "{}", difference / fast.len() as f32);
    }

    /// The threshold is where `reduction` says: four pixels for each of the model's, in the half size.
    #[test]
    fn fast_is_fast_from_a_long_edge_of_eight_times_the_models() {
        let preprocessor = preprocessor(16);
        for (edge, differs) in [(126, false), (127, true), (128, true), (300, true)] {
            let bytes = jpeg(edge, 90);
            let fast = read(&preprocessor, &bytes, PreprocessMode::Fast);
            assert_eq!(fast != read(&preprocessor, &bytes, PreprocessMode::Exact), differs, "{edge}");
        }
    }

    /// The model's own edge, and the smallest photo that is decoded at half size: what is larger differs less.
    #[test]
    fn fast_differs_by_less_than_a_jpeg_decoder_does() {
        let preprocessor = preprocessor(448);
        let bytes = jpeg(3584, 2016);
        let fast = read(&preprocessor, &bytes, PreprocessMode::Fast);
        let exact = read(&preprocessor, &bytes, PreprocessMode::Exact);
        let differences: Vec<f64> =
            fast.iter().zip(&exact).map(|(fast, exact)| f64::from((fast - exact).abs())).collect();
        let mean = differences.iter().sum::<f64>() / differences.len() as f64;
        let largest = differences.iter().copied().fold(0.0, f64::max);
        assert!(mean > 0.0, "decoded at full size");
        // What docs/operating.md states of photographs, in normalised units.
        assert!(mean <= 0.003 && largest <= 0.15, "mean {mean}, largest {largest}");
    }

    #[test]
    fn fast_reads_every_format_but_jpeg_exactly() {
        let preprocessor = preprocessor(2);
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/formats");
        let mut differing = std::collections::BTreeSet::new();
        let mut equal = 0;
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let extension = path.extension().and_then(|extension| extension.to_str()).unwrap_or_default();
            if ["py", "json"].contains(&extension) {
                continue;
            }
            let bytes = fs::read(&path).unwrap();
            let fast = read(&preprocessor, &bytes, PreprocessMode::Fast);
            if fast == read(&preprocessor, &bytes, PreprocessMode::Exact) {
                equal += 1;
            } else {
                differing.insert(extension.to_owned());
            }
        }
        assert!(equal >= 30, "{equal} of the files read");
        assert_eq!(differing, ["jpg".to_owned()].into());
    }

    #[test]
    fn reading_gives_the_stored_size_and_forgets_the_last_image() {
        let preprocessor = preprocessor(56);
        let (large, small) = (jpeg(900, 600), jpeg(40, 30));
        let alone = read(&preprocessor, &small, PreprocessMode::Exact);
        let mut values = vec![0.0; 3 * 56 * 56];
        let fast = ImageSettings { preprocess: PreprocessMode::Fast, ..ImageSettings::default() };
        assert_eq!(preprocessor.read(&large, &fast, &mut values), Ok((900, 600)));
        assert_eq!(preprocessor.read(&small, &fast, &mut values), Ok((40, 30)));
        assert_eq!(values, alone);
    }
}
