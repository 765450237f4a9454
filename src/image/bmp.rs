//! BMP, all depths and run-length encodings.

use super::{
    colour::DeepGray, error::ImageError, library, rgb::RgbImage, settings::ImageSettings, sniff::Format,
};
use ::image::codecs::bmp::BmpDecoder;
use std::io::Cursor;

pub(super) fn open(bytes: &[u8]) -> Result<BmpDecoder<Cursor<&[u8]>>, ImageError> {
    BmpDecoder::new(Cursor::new(bytes)).map_err(|error| library::refusal(Format::Bmp, &error))
}

pub(super) fn decode(
    buffer: Vec<u8>,
    bytes: &[u8],
    settings: &ImageSettings,
) -> Result<RgbImage, ImageError> {
    let decoder = open(bytes)?;
    library::read(buffer, decoder, Format::Bmp, DeepGray::HighByte, settings).map_err(|error| match error {
        // Run-length data that stops is reported as corrupt; the header says how long it should be.
        ImageError::Damaged { .. } if ends_early(bytes) => ImageError::Truncated(Format::Bmp),
        other => other,
    })
}

/// Whether the file is shorter than its pixel data's stated place and size.
fn ends_early(bytes: &[u8]) -> bool {
    let field = |at: usize| {
        bytes
            .get(at..)
            .and_then(|rest| rest.first_chunk::<4>())
            .map(|&value| u64::from(u32::from_le_bytes(value)))
    };
    const PIXEL_DATA_OFFSET: usize = 10;
    const PIXEL_DATA_SIZE: usize = 34;
    match (field(PIXEL_DATA_OFFSET), field(PIXEL_DATA_SIZE)) {
        (Some(offset), Some(size)) => offset + size > bytes.len() as u64,
        _ => true,
    }
}
