//! WebP, lossy and lossless; an animation gives its first frame.

use super::{
    colour::DeepGray, error::ImageError, library, rgb::RgbImage, settings::ImageSettings, sniff::Format,
};
use ::image::{ImageDecoder, codecs::webp::WebPDecoder};
use std::io::Cursor;

pub(super) fn open(bytes: &[u8]) -> Result<WebPDecoder<Cursor<&[u8]>>, ImageError> {
    WebPDecoder::new(Cursor::new(bytes)).map_err(|error| {
        // The decoder reports a cut container as a damaged one.
        if ends_early(bytes) {
            ImageError::Truncated(Format::WebP)
        } else {
            library::refusal(Format::WebP, &error)
        }
    })
}

pub(super) fn decode(
    buffer: Vec<u8>,
    bytes: &[u8],
    settings: &ImageSettings,
) -> Result<RgbImage, ImageError> {
    let decoder = open(bytes)?;
    let (width, height) = decoder.dimensions();
    settings.admit_dimensions(width, height)?;
    if ends_early(bytes) {
        return Err(ImageError::Truncated(Format::WebP));
    }
    library::read(buffer, decoder, Format::WebP, DeepGray::HighByte, settings)
}

/// Whether the file is shorter than its RIFF header says.
fn ends_early(bytes: &[u8]) -> bool {
    const BEFORE_SIZE: usize = 4;
    const HEADER: u64 = 8;
    match bytes.get(BEFORE_SIZE..).and_then(|rest| rest.first_chunk::<4>()) {
        Some(&size) => HEADER + u64::from(u32::from_le_bytes(size)) > bytes.len() as u64,
        None => true,
    }
}
