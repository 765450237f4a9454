//! `pixel_values*.safetensors` and `preprocess_notes.json`: what the model reads of each image.

use crate::{
    images::{Described, described},
    raw,
};
use roc4mllm::image::{Fit, Preprocessor, RgbImage};
use std::collections::{BTreeMap, BTreeSet};

const PADDED: &str = "pixel_values.safetensors";
const CROPPED: &str = "pixel_values_nopad.safetensors";
const SANE: &str = "pixel_values_sane.safetensors";
const NOTES: &str = "preprocess_notes.json";

fn open(checkpoint: &str) -> Preprocessor {
    Preprocessor::open(&raw::folder().join(checkpoint))
        .unwrap_or_else(|error| panic!("{checkpoint}/preprocessor_config.json: {error}"))
}

fn preprocessor() -> Preprocessor {
    open(&raw::checkpoints()[0])
}

/// Compares bits, so that a changed sign of zero or a NaN is seen too.
fn assert_bits(file: &str, name: &str, tensor: &raw::Tensor, preprocessor: &Preprocessor, image: &RgbImage) {
    let edge = preprocessor.image_size();
    let expected = raw::floats(file, name, tensor, &[3, edge, edge]);
    let mut values = vec![f32::NAN; 3 * edge * edge];
    preprocessor.preprocess(image, &mut values);
    let different =
        values.iter().zip(&expected).filter(|(ours, theirs)| ours.to_bits() != theirs.to_bits()).count();
    assert_eq!(different, 0, "{file}: {name}: values that differ, of {}", expected.len());
}

/// The image as the reference sees it where it takes three rows for three channels.
///
/// An array of three rows has a first dimension of three, which the reference's guess at the
/// channel dimension looks at first: row, column and channel turn to channel, row and column.
fn misread(image: &RgbImage) -> RgbImage {
    assert_eq!(image.height(), 3);
    let mut pixels = Vec::new();
    for row in 0..image.width() {
        for column in 0..3 {
            pixels.extend((0..3).map(|channel| image.pixel(row, channel)[column]));
        }
    }
    RgbImage::new(3, image.width(), pixels).expect("as many samples as before")
}

/// The reference's padding to a square.
fn padded(image: &RgbImage, background: [u8; 3]) -> RgbImage {
    let edge = image.width().max(image.height());
    let (left, top) = ((edge - image.width()) / 2, (edge - image.height()) / 2);
    let mut pixels = Vec::new();
    for y in 0..edge {
        for x in 0..edge {
            let inside = x >= left && x < left + image.width() && y >= top && y < top + image.height();
            pixels.extend(if inside { image.pixel(x - left, y - top) } else { background });
        }
    }
    RgbImage::new(edge, edge, pixels).expect("a square")
}

fn longest(image: &Described) -> u32 {
    image.width.max(image.height)
}

/// Stems of the images that `preprocess_notes.json` says the reference fails on.
fn failing(prefix: &str) -> BTreeSet<String> {
    let notes = raw::json(NOTES);
    let errors = notes["pixel_errors"].as_object().unwrap_or_else(|| panic!("{NOTES}: no pixel_errors"));
    errors
        .keys()
        .filter_map(|key| match key.split_once('/') {
            Some((before, stem)) => (before == prefix).then(|| stem.to_owned()),
            None => prefix.is_empty().then(|| key.clone()),
        })
        .collect()
}

/// The tensors of `file` with their images; together with the failing ones they must be all.
fn with_images(file: &str, failing: &BTreeSet<String>) -> Vec<(Described, raw::Tensor)> {
    let mut tensors = raw::tensors(file);
    let mut pairs = Vec::new();
    for image in described() {
        match tensors.remove(image.stem()) {
            Some(tensor) => {
                assert!(!failing.contains(image.stem()), "{NOTES}: {} has values in {file}", image.stem());
                pairs.push((image, tensor));
            }
            None => assert!(
                failing.contains(image.stem()),
                "{file}: {}: no values, and no error in {NOTES}",
                image.stem()
            ),
        }
    }
    let strangers: Vec<_> = tensors.keys().collect();
    assert!(strangers.is_empty(), "{file}: no such images: {strangers:?}");
    pairs
}

#[test]
fn golden_pixel_values_are_reproduced_bit_for_bit() {
    let preprocessor = preprocessor().with_fit(Fit::Pad);
    let sane: BTreeSet<String> = raw::tensors(SANE).into_keys().collect();
    for (image, tensor) in with_images(PADDED, &failing("")) {
        let decoded = image.decoded();
        let seen = if longest(&image) == 3 {
            assert!(sane.contains(image.stem()), "{SANE}: {}: missing", image.stem());
            misread(&padded(&decoded, preprocessor.background()))
        } else {
            decoded
        };
        assert_bits(PADDED, image.stem(), &tensor, &preprocessor, &seen);
    }
}

#[test]
fn golden_pixel_values_without_vector_instructions_are_the_same() {
    let preprocessor = preprocessor().with_fit(Fit::Pad).without_vector_instructions();
    for (image, tensor) in with_images(PADDED, &failing("")) {
        if longest(&image) != 3 {
            assert_bits(PADDED, image.stem(), &tensor, &preprocessor, &image.decoded());
        }
    }
}

#[test]
fn golden_pixel_values_nopad_are_reproduced_bit_for_bit() {
    let preprocessor = preprocessor().with_fit(Fit::Crop);
    for (image, tensor) in with_images(CROPPED, &failing("nopad")) {
        let decoded = image.decoded();
        let seen = if image.height == 3 { misread(&decoded) } else { decoded };
        assert_bits(CROPPED, image.stem(), &tensor, &preprocessor, &seen);
    }
}

#[test]
fn golden_pixel_values_sane_are_reproduced_bit_for_bit() {
    let preprocessor = preprocessor().with_fit(Fit::Pad);
    let images: BTreeMap<String, Described> =
        described().into_iter().map(|image| (image.stem().to_owned(), image)).collect();
    for (stem, tensor) in raw::tensors(SANE) {
        let image = images.get(&stem).unwrap_or_else(|| panic!("{SANE}: {stem}: no such image"));
        assert!(matches!(longest(image), 1 | 3), "{SANE}: {stem}: the reference gets this one right");
        assert_bits(SANE, &stem, &tensor, &preprocessor, &image.decoded());
    }
}

#[test]
fn golden_preprocessor_configs_agree() {
    let fit = preprocessor().fit();
    let (file, prefix) = if fit == Fit::Pad { (PADDED, "") } else { (CROPPED, "nopad") };
    let pairs = with_images(file, &failing(prefix));
    let (image, tensor) = pairs
        .iter()
        .find(|(image, _)| image.width != image.height && longest(image) > 3 && image.height > 3)
        .unwrap_or_else(|| panic!("{file}: no image to compare"));
    let decoded = image.decoded();
    for checkpoint in raw::checkpoints() {
        let preprocessor = open(&checkpoint);
        assert_eq!(preprocessor.fit(), fit, "{checkpoint}/config.json: image_aspect_ratio");
        let file = format!("{checkpoint}/preprocessor_config.json, against {file}");
        assert_bits(&file, image.stem(), tensor, &preprocessor, &decoded);
    }
}

#[test]
fn golden_preprocess_notes_follow_from_the_images() {
    const NO_MEAN: &str = "ValueError: mean must have 1 elements if it is an iterable, got 3";
    let notes = raw::json(NOTES);
    let mut errors = BTreeMap::new();
    let mut unconverted = BTreeMap::new();
    for image in described() {
        if longest(&image) == 1 {
            errors.insert(image.stem().to_owned(), NO_MEAN);
        }
        if image.height == 1 {
            errors.insert(format!("nopad/{}", image.stem()), NO_MEAN);
        }
        let outcome = without_conversion(&image).unwrap_or(NO_MEAN);
        unconverted.insert(image.file.clone(), format!("{}: {outcome}", image.pil_mode));
    }
    let strings = |field: &str| -> BTreeMap<String, String> {
        serde_json::from_value(notes[field].clone())
            .unwrap_or_else(|error| panic!("{NOTES}: {field}: {error}"))
    };
    let errors: BTreeMap<String, String> =
        errors.into_iter().map(|(key, error)| (key, error.to_owned())).collect();
    assert_eq!(strings("pixel_errors"), errors, "{NOTES}: pixel_errors");
    assert_eq!(strings("without_convert_rgb"), unconverted, "{NOTES}: without_convert_rgb");
}

/// What becomes of an image that is padded in its own mode and converted to RGB afterwards: a
/// square one is not padded; three numbers are no colour in the grey modes, and another colour in
/// palette and ink modes. `None` where the mean has too many elements.
fn without_conversion(image: &Described) -> Option<&'static str> {
    if longest(image) == 1 {
        return None;
    }
    let square = image.width == image.height;
    Some(match image.pil_mode.as_str() {
        "1" | "L" | "I;16" if !square => "TypeError: color must be int or single-element tuple",
        "LA" if !square => "TypeError: color must be int, or tuple of one or two elements",
        "P" | "CMYK" if !square => "ok, but differs from the converted one",
        _ => "ok",
    })
}
