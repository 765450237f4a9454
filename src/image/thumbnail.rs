//! Small upright copies for reports.

use super::{
    decode::decode_into,
    error::ImageError,
    library::one_line,
    orientation::Orientation,
    resize,
    settings::ImageSettings,
    sniff::{self, Format},
};

const QUALITY: i32 = 82;

/// A JPEG of at most `max_edge` pixels along either edge, turned upright by the file's EXIF
/// orientation and without any metadata. An image that is small already keeps its size.
///
/// # Errors
/// [`ImageError`], as [`decode`](super::decode) has them.
pub fn thumbnail(bytes: &[u8], settings: &ImageSettings, max_edge: u32) -> Result<Vec<u8>, ImageError> {
    let max_edge = max_edge.max(1);
    let image = decode_into(Vec::new(), bytes, settings, |width, height| {
        // The largest power of two that leaves twice the pixels that are needed.
        let spare = width.max(height) / (2 * max_edge).max(1);
        [8, 4, 2].into_iter().find(|&divisor| divisor <= spare).unwrap_or(1)
    })?;
    let format = sniff::sniff(bytes)?;
    let unmade = |reason: String| ImageError::Damaged { format, reason };
    let longest = image.width().max(image.height());
    let image = if longest > max_edge {
        let scaled = |edge: u32| {
            let edge = (f64::from(edge) * f64::from(max_edge) / f64::from(longest)).round();
            (edge as u32).clamp(1, max_edge)
        };
        resize::stretched(&image, scaled(image.width()), scaled(image.height()))
            .ok_or_else(|| unmade("no thumbnail could be made".to_owned()))?
    } else {
        image
    };
    // A TIFF is turned upright by its decoder.
    let upright = if format == Format::Tiff { image } else { Orientation::of_file(bytes).apply(image) };
    let pixels = turbojpeg::Image {
        pixels: upright.pixels(),
        width: upright.width() as usize,
        pitch: upright.width() as usize * 3,
        height: upright.height() as usize,
        format: turbojpeg::PixelFormat::RGB,
    };
    turbojpeg::compress(pixels, QUALITY, turbojpeg::Subsamp::Sub2x2).map(|jpeg| jpeg.to_vec()).map_err(
        |error| unmade(format!("its thumbnail could not be written: {}", one_line(&error.to_string()))),
    )
}
