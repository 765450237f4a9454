//! The one way from bytes to pixels: every limit is checked and every panic contained here.

use super::{
    bmp,
    error::ImageError,
    gif, jpeg, png,
    rgb::RgbImage,
    settings::ImageSettings,
    sniff::{self, Format},
    tiff, webp,
};
use ::image::ImageDecoder;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// The pixels of an image file, as Pillow's `Image.open(..).convert("RGB")` gives them.
///
/// EXIF orientation is ignored except in TIFF, where Pillow applies it; alpha is dropped, not
/// blended; the first frame stands for an animation; 16-bit grey is clipped at 255, other 16-bit
/// samples keep their high byte; CMYK turns to RGB by Pillow's formula.
///
/// # Errors
/// [`ImageError`], whatever the bytes: no input panics.
pub fn decode(bytes: &[u8], settings: &ImageSettings) -> Result<RgbImage, ImageError> {
    decode_into(Vec::new(), bytes, settings, |_, _| 1)
}

/// [`decode`] into the memory of `buffer`, whatever it holds, so that an image need not cost the
/// pages it is written to anew. A JPEG comes out smaller by the power of two that `reduction`
/// returns for its width and height: 1, 2, 4 or 8.
pub(super) fn decode_into(
    buffer: Vec<u8>,
    bytes: &[u8],
    settings: &ImageSettings,
    reduction: impl FnOnce(u32, u32) -> u32,
) -> Result<RgbImage, ImageError> {
    settings.admit_bytes(bytes.len())?;
    let format = sniff::sniff(bytes)?;
    contain(format, || match format {
        Format::Jpeg => jpeg::decode(buffer, bytes, settings, reduction),
        Format::Png => png::decode(buffer, bytes, settings),
        Format::WebP => webp::decode(buffer, bytes, settings),
        Format::Gif => gif::decode(buffer, bytes, settings),
        Format::Bmp => bmp::decode(buffer, bytes, settings),
        Format::Tiff => tiff::decode(buffer, bytes, settings),
    })
}

/// Width and height of an image file by its header alone, within the limits of `settings`.
///
/// A TIFF's are those before its orientation is applied.
///
/// # Errors
/// [`ImageError`], whatever the bytes: no input panics.
pub fn dimensions(bytes: &[u8], settings: &ImageSettings) -> Result<(u32, u32), ImageError> {
    settings.admit_bytes(bytes.len())?;
    let format = sniff::sniff(bytes)?;
    let (width, height) = contain(format, || match format {
        Format::Jpeg => jpeg::dimensions(bytes),
        Format::Png => Ok(png::open(bytes, settings)?.dimensions()),
        Format::WebP => Ok(webp::open(bytes)?.dimensions()),
        Format::Gif => gif::dimensions(bytes),
        Format::Bmp => Ok(bmp::open(bytes)?.dimensions()),
        Format::Tiff => Ok(tiff::open(bytes)?.dimensions()),
    })?;
    settings.admit_dimensions(width, height)?;
    Ok((width, height))
}

/// A decoder's panic is its way of refusing the data: the item is rejected and the thread lives on.
fn contain<T>(format: Format, work: impl FnOnce() -> Result<T, ImageError>) -> Result<T, ImageError> {
    // Unwind safe: `work` owns or only reads what it touches, and nothing of it is seen afterwards.
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|_| {
        Err(ImageError::Damaged { format, reason: "the decoder gave up on it".to_owned() })
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use sha2::{Digest, Sha256};
    use std::{collections::BTreeSet, fs, path::Path};

    #[test]
    fn every_kind_of_file_decodes_to_pillows_pixels() {
        let folder = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/formats"));
        let expected: serde_json::Value =
            serde_json::from_slice(&fs::read(folder.join("pillow.json")).unwrap()).unwrap();
        let mut different = BTreeSet::new();
        for (name, expected) in expected["files"].as_object().unwrap() {
            let bytes = fs::read(folder.join(name)).unwrap();
            match decode(&bytes, &ImageSettings::local()) {
                Ok(image) => {
                    let digest = Sha256::digest(image.pixels());
                    let digest: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
                    if expected["width"] != image.width()
                        || expected["height"] != image.height()
                        || expected["rgb_sha256"] != digest
                    {
                        different.insert(format!("{name}: {image:?}"));
                    }
                }
                Err(error) => {
                    different.insert(format!("{name}: {error}"));
                }
            }
        }
        assert_eq!(different, BTreeSet::new());
    }
}
