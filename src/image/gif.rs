//! GIF: the first frame on its canvas.

use super::{
    colour::DeepGray, error::ImageError, library, rgb::RgbImage, settings::ImageSettings, sniff::Format,
};
use ::image::{ImageDecoder, codecs::gif::GifDecoder};
use std::io::Cursor;

pub(super) fn open(bytes: &[u8]) -> Result<GifDecoder<Cursor<&[u8]>>, ImageError> {
    GifDecoder::new(Cursor::new(bytes)).map_err(|error| library::refusal(Format::Gif, &error))
}

pub(super) fn decode(bytes: &[u8], settings: &ImageSettings) -> Result<RgbImage, ImageError> {
    let decoder = open(bytes)?;
    let (width, height) = decoder.dimensions();
    settings.admit_dimensions(width, height)?;
    if ends_inside_a_block(bytes) {
        return Err(ImageError::Truncated(Format::Gif));
    }
    library::read(decoder, Format::Gif, DeepGray::HighByte, settings)
}

/// Whether the file stops inside a block, of whichever frame. A missing trailer alone costs no
/// pixel and is forgiven.
fn ends_inside_a_block(bytes: &[u8]) -> bool {
    walk(bytes).is_none()
}

/// Steps over every block up to the trailer or the end; `None` where one is cut.
fn walk(bytes: &[u8]) -> Option<()> {
    const EXTENSION: u8 = 0x21;
    const IMAGE: u8 = 0x2C;
    const TRAILER: u8 = 0x3B;
    const SIGNATURE_TO_FLAGS: usize = 10;
    let mut position = SIGNATURE_TO_FLAGS;
    let flags = *bytes.get(position)?;
    position += 3 + color_table(flags);
    bytes.get(..position)?;
    while let Some(&kind) = bytes.get(position) {
        position += 1;
        match kind {
            TRAILER => return Some(()),
            EXTENSION => position = after_sub_blocks(bytes, position + 1)?,
            IMAGE => {
                const POSITION_AND_SIZE: usize = 8;
                const FLAGS_AND_CODE_SIZE: usize = 2;
                let flags = *bytes.get(position + POSITION_AND_SIZE)?;
                position += POSITION_AND_SIZE + color_table(flags) + FLAGS_AND_CODE_SIZE;
                position = after_sub_blocks(bytes, position)?;
            }
            // Stray bytes between blocks are stepped over, as browsers and Pillow do.
            _ => {}
        }
    }
    Some(())
}

/// Bytes of the colour table that a flags byte announces.
fn color_table(flags: u8) -> usize {
    if flags & 0x80 == 0 { 0 } else { 3 << ((flags & 7) + 1) }
}

/// Each sub-block starts with its length; a length of 0 ends the chain.
fn after_sub_blocks(bytes: &[u8], mut position: usize) -> Option<usize> {
    loop {
        let length = usize::from(*bytes.get(position)?);
        position += 1 + length;
        if length == 0 {
            return Some(position);
        }
    }
}
