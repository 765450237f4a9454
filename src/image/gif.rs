//! GIF: the first frame on its canvas.
//!
//! Straight from the `gif` crate, since the canvas around a smaller frame has, in Pillow, the
//! frame's transparent colour or else its first one.

use super::{error::ImageError, library::one_line, rgb::RgbImage, settings::ImageSettings, sniff::Format};
use ::gif::{ColorOutput, DecodeOptions, Decoder, DecodingError, Frame};

struct FirstFrame<'a> {
    decoder: Decoder<&'a [u8]>,
    canvas: (u32, u32),
    left: usize,
    top: usize,
    width: usize,
    height: usize,
    transparent: Option<u8>,
}

impl<'a> FirstFrame<'a> {
    fn open(bytes: &'a [u8]) -> Result<Self, ImageError> {
        let mut options = DecodeOptions::new();
        options.set_color_output(ColorOutput::Indexed);
        options.allow_unknown_blocks(true);
        let mut decoder = options.read_info(bytes).map_err(refusal)?;
        let screen = (decoder.width(), decoder.height());
        let Some(frame) = decoder.next_frame_info().map_err(refusal)? else {
            return Err(ImageError::Damaged { format: Format::Gif, reason: "no frame in it".to_owned() });
        };
        let &Frame { left, top, width, height, transparent, .. } = frame;
        // A frame that sticks out makes the canvas larger.
        let edge = |screen: u16, start: u16, length: u16| {
            u32::from(screen).max(u32::from(start) + u32::from(length))
        };
        let canvas = (edge(screen.0, left, width), edge(screen.1, top, height));
        Ok(Self {
            decoder,
            canvas,
            left: left.into(),
            top: top.into(),
            width: width.into(),
            height: height.into(),
            transparent,
        })
    }
}

pub(super) fn dimensions(bytes: &[u8]) -> Result<(u32, u32), ImageError> {
    Ok(FirstFrame::open(bytes)?.canvas)
}

pub(super) fn decode(
    buffer: Vec<u8>,
    bytes: &[u8],
    settings: &ImageSettings,
) -> Result<RgbImage, ImageError> {
    let mut frame = FirstFrame::open(bytes)?;
    let (width, height) = frame.canvas;
    settings.admit_dimensions(width, height)?;
    let length = settings.admit_memory(width, height, u64::from(width) * u64::from(height) * 3)?;
    if ends_inside_a_block(bytes) {
        return Err(ImageError::Truncated(Format::Gif));
    }
    let mut indices = vec![0; frame.width * frame.height];
    frame.decoder.read_into_buffer(&mut indices).map_err(refusal)?;
    // Indices beyond the colour table are black.
    let mut colors = [[0; 3]; 256];
    let table = frame.decoder.palette().map_err(refusal)?;
    for (color, entry) in colors.iter_mut().zip(table.as_chunks::<3>().0) {
        *color = *entry;
    }
    let mut pixels = buffer;
    pixels.resize(length, 0);
    pixels.as_chunks_mut().0.fill(colors[usize::from(frame.transparent.unwrap_or(0))]);
    if frame.width > 0 {
        let rows = pixels.chunks_exact_mut(width as usize * 3).skip(frame.top);
        for (row, indices) in rows.zip(indices.chunks_exact(frame.width)) {
            let pixels = row[frame.left * 3..].as_chunks_mut::<3>().0;
            for (pixel, &index) in pixels.iter_mut().zip(indices) {
                *pixel = colors[usize::from(index)];
            }
        }
    }
    RgbImage::new(width, height, pixels)
        .ok_or_else(|| ImageError::Damaged { format: Format::Gif, reason: "no pixels in it".to_owned() })
}

fn refusal(error: DecodingError) -> ImageError {
    match error {
        DecodingError::UnexpectedEof => ImageError::Truncated(Format::Gif),
        DecodingError::Io(reason) if reason.kind() == std::io::ErrorKind::UnexpectedEof => {
            ImageError::Truncated(Format::Gif)
        }
        other => ImageError::Damaged { format: Format::Gif, reason: one_line(&other.to_string()) },
    }
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
