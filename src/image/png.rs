//! PNG, all colour types and depths; an APNG gives its default image.

use super::{
    colour::DeepGray, error::ImageError, library, rgb::RgbImage, settings::ImageSettings, sniff::Format,
};
use ::image::{ImageDecoder, Limits, codecs::png::PngDecoder};
use std::io::Cursor;

/// What the decoder may take beside the pixels: two rows, and this for a colour profile, which it unpacks
/// and nothing here uses. It goes on without a larger one.
const BESIDE_PIXELS: u64 = 4 << 20;

pub(super) fn open<'a>(
    bytes: &'a [u8],
    settings: &ImageSettings,
) -> Result<PngDecoder<Cursor<&'a [u8]>>, ImageError> {
    const TYPE: usize = 12;
    const WIDTH: usize = 16;
    const BYTES_A_PIXEL: u64 = 4 * 2;
    // Without this chunk the file is no PNG whatever its first bytes say, and has no size to judge.
    let begins = bytes.get(TYPE..WIDTH) == Some(b"IHDR");
    let number = |at: usize| Some(u32::from_be_bytes(*bytes.get(at..)?.first_chunk()?)).filter(|_| begins);
    let (width, height) = (number(WIDTH).unwrap_or_default(), number(WIDTH + 4).unwrap_or_default());
    settings.admit_dimensions(width, height)?;
    let mut limits = Limits::no_limits();
    limits.max_alloc = Some(BESIDE_PIXELS + 2 * BYTES_A_PIXEL * u64::from(width));
    PngDecoder::with_limits(Cursor::new(bytes), limits)
        .map_err(|error| early_end_or(library::refusal(Format::Png, &error), bytes))
}

pub(super) fn decode(
    buffer: Vec<u8>,
    bytes: &[u8],
    settings: &ImageSettings,
) -> Result<RgbImage, ImageError> {
    let decoder = open(bytes, settings)?;
    let (width, height) = decoder.dimensions();
    settings.admit_dimensions(width, height)?;
    if end(bytes) == End::InsideAChunk {
        return Err(ImageError::Truncated(Format::Png));
    }
    library::read(buffer, decoder, Format::Png, deep_gray(bytes), settings)
        .map_err(|error| early_end_or(error, bytes))
}

/// The decoder calls some early ends damage.
fn early_end_or(error: ImageError, bytes: &[u8]) -> ImageError {
    match error {
        ImageError::Damaged { .. } if end(bytes) != End::Marked => ImageError::Truncated(Format::Png),
        other => other,
    }
}

/// Pillow clips plain 16-bit grey, transparent colour or not, but halves 16-bit grey with alpha.
/// The decoder expands both to the same type, so the header decides: colour type 0 or 4.
fn deep_gray(bytes: &[u8]) -> DeepGray {
    const COLOUR_TYPE: usize = 25;
    if bytes.get(COLOUR_TYPE) == Some(&0) { DeepGray::Clipped } else { DeepGray::HighByte }
}

/// How a file's chain of chunks ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// With `IEND`.
    Marked,
    /// Between two chunks: without a pixel lost if all their data is there.
    BetweenChunks,
    InsideAChunk,
}

fn end(bytes: &[u8]) -> End {
    const SIGNATURE: usize = 8;
    const LENGTH_TYPE_AND_CRC: usize = 12;
    let mut rest = bytes.get(SIGNATURE..).unwrap_or_default();
    while let Some((&length, after)) = rest.split_first_chunk::<4>() {
        if after.starts_with(b"IEND") {
            return End::Marked;
        }
        let whole = LENGTH_TYPE_AND_CRC.saturating_add(u32::from_be_bytes(length) as usize);
        match rest.get(whole..) {
            Some(next) => rest = next,
            None => return End::InsideAChunk,
        }
    }
    if rest.is_empty() { End::BetweenChunks } else { End::InsideAChunk }
}
