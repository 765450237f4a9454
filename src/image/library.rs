//! What the decoders of the `image` crate have in common.

use super::{
    colour::{self, DeepGray},
    error::ImageError,
    rgb::RgbImage,
    settings::ImageSettings,
    sniff::Format,
};
use ::image::{ImageDecoder, ImageError as LibraryError, Limits};
use std::io::ErrorKind;

/// The pixels of a decoder of the `image` crate, which has read its header and no more, in the
/// memory of `buffer`.
pub(super) fn read(
    mut buffer: Vec<u8>,
    mut decoder: impl ImageDecoder,
    format: Format,
    deep_gray: DeepGray,
    settings: &ImageSettings,
) -> Result<RgbImage, ImageError> {
    let (width, height) = decoder.dimensions();
    settings.admit_dimensions(width, height)?;
    let samples = settings.admit_memory(width, height, decoder.total_bytes())?;
    let rgb = settings.admit_memory(width, height, u64::from(width) * u64::from(height) * 3)?;
    decoder.set_limits(limits(settings)).map_err(|error| refusal(format, &error))?;
    let color = decoder.color_type();
    // Not every decoder writes every pixel of a sparse image.
    buffer.clear();
    buffer.resize(samples.max(rgb), 0);
    decoder.read_image(&mut buffer[..samples]).map_err(|error| refusal(format, &error))?;
    colour::into_rgb(buffer, color, deep_gray, (width, height), format)
}

/// What a decoder may allocate: its output, and as much again for its own work.
pub(super) fn limits(settings: &ImageSettings) -> Limits {
    let mut limits = Limits::no_limits();
    limits.max_alloc = Some(settings.max_alloc_bytes.saturating_mul(2));
    limits
}

/// The `image` crate's error in this module's terms.
pub(super) fn refusal(format: Format, error: &LibraryError) -> ImageError {
    if ran_out_of_bytes(error) {
        return ImageError::Truncated(format);
    }
    let reason = one_line(&error.to_string());
    match error {
        LibraryError::Unsupported(_) => ImageError::Unsupported {
            what: format!("this kind of {format} is not decoded here ({reason})"),
            remedy: "re-export it as JPEG or PNG with eight bits a channel",
        },
        _ => ImageError::Damaged { format, reason },
    }
}

fn ran_out_of_bytes(error: &LibraryError) -> bool {
    let early_end = |io: &std::io::Error| io.kind() == ErrorKind::UnexpectedEof;
    if let LibraryError::IoError(io) = error {
        return early_end(io);
    }
    let mut cause = std::error::Error::source(error);
    while let Some(current) = cause {
        if current.downcast_ref().is_some_and(early_end) {
            return true;
        }
        cause = current.source();
    }
    false
}

/// A library's message without line breaks, cut to what a reader can use.
pub(super) fn one_line(message: &str) -> String {
    const LONGEST: usize = 160;
    let line = message.split_whitespace().collect::<Vec<_>>().join(" ");
    line.chars().take(LONGEST).collect()
}
