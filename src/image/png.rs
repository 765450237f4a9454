//! PNG, all colour types and depths; an APNG gives its default image.

use super::{
    colour::DeepGray, error::ImageError, library, rgb::RgbImage, settings::ImageSettings, sniff::Format,
};
use ::image::codecs::png::PngDecoder;
use std::io::Cursor;

pub(super) fn open<'a>(
    bytes: &'a [u8],
    settings: &ImageSettings,
) -> Result<PngDecoder<Cursor<&'a [u8]>>, ImageError> {
    PngDecoder::with_limits(Cursor::new(bytes), library::limits(settings))
        .map_err(|error| library::refusal(Format::Png, &error))
}

pub(super) fn decode(bytes: &[u8], settings: &ImageSettings) -> Result<RgbImage, ImageError> {
    let decoder = open(bytes, settings)?;
    let (width, height) = ::image::ImageDecoder::dimensions(&decoder);
    settings.admit_dimensions(width, height)?;
    if ends_inside_a_chunk(bytes) {
        return Err(ImageError::Truncated(Format::Png));
    }
    library::read(decoder, Format::Png, deep_gray(bytes), settings)
}

/// Pillow clips plain 16-bit grey, transparent colour or not, but halves 16-bit grey with alpha.
/// The decoder expands both to the same type, so the header decides: colour type 0 or 4.
fn deep_gray(bytes: &[u8]) -> DeepGray {
    const COLOUR_TYPE: usize = 25;
    if bytes.get(COLOUR_TYPE) == Some(&0) { DeepGray::Clipped } else { DeepGray::HighByte }
}

/// Whether the file stops before a chunk that it began. A missing `IEND` alone costs no pixel and
/// is forgiven.
fn ends_inside_a_chunk(bytes: &[u8]) -> bool {
    const SIGNATURE: usize = 8;
    const LENGTH_TYPE_AND_CRC: usize = 12;
    let mut rest = bytes.get(SIGNATURE..).unwrap_or_default();
    while let Some((&length, after)) = rest.split_first_chunk::<4>() {
        if after.starts_with(b"IEND") {
            return false;
        }
        let whole = LENGTH_TYPE_AND_CRC.saturating_add(u32::from_be_bytes(length) as usize);
        match rest.get(whole..) {
            Some(next) => rest = next,
            None => return true,
        }
    }
    !rest.is_empty()
}
