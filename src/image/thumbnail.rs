//! Small upright copies, for reports and for telling photos apart.

use super::{
    decode::decode_into,
    error::ImageError,
    library::one_line,
    orientation::Orientation,
    resize,
    rgb::RgbImage,
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
    let upright = upright(bytes, settings, max_edge, |width, height| {
        let longest = width.max(height);
        let scaled = |edge: u32| {
            let edge = (f64::from(edge) * f64::from(max_edge) / f64::from(longest)).round();
            (edge as u32).clamp(1, max_edge)
        };
        if longest > max_edge { (scaled(width), scaled(height)) } else { (width, height) }
    })?;
    let pixels = turbojpeg::Image {
        pixels: upright.pixels(),
        width: upright.width() as usize,
        pitch: upright.width() as usize * 3,
        height: upright.height() as usize,
        format: turbojpeg::PixelFormat::RGB,
    };
    let format = sniff::sniff(bytes)?;
    turbojpeg::compress(pixels, QUALITY, turbojpeg::Subsamp::Sub2x2)
        .map(|jpeg| jpeg.to_vec())
        .map_err(|error| unmade(format, &format!("could not be written: {}", one_line(&error.to_string()))))
}

/// The whole image in a square of `edge` pixels, stretched to it and turned upright by the file's EXIF
/// orientation: what two files of one photo have in common.
///
/// # Errors
/// [`ImageError`], as [`decode`](super::decode) has them.
pub fn upright_square(bytes: &[u8], settings: &ImageSettings, edge: u32) -> Result<RgbImage, ImageError> {
    let edge = edge.max(1);
    upright(bytes, settings, edge, |_, _| (edge, edge))
}

/// The image in the size that `resized` returns for its width and height as stored, turned upright. Of a
/// large JPEG no more is decoded than leaves twice `edge` pixels along the longer edge.
fn upright(
    bytes: &[u8],
    settings: &ImageSettings,
    edge: u32,
    resized: impl FnOnce(u32, u32) -> (u32, u32),
) -> Result<RgbImage, ImageError> {
    let image = decode_into(Vec::new(), bytes, settings, |width, height| {
        // The largest power of two that leaves twice the pixels that are needed.
        let spare = width.max(height) / (2 * edge);
        [8, 4, 2].into_iter().find(|&divisor| divisor <= spare).unwrap_or(1)
    })?;
    let format = sniff::sniff(bytes)?;
    let (width, height) = resized(image.width(), image.height());
    let image = if (width, height) == (image.width(), image.height()) {
        image
    } else {
        resize::stretched(&image, width, height).ok_or_else(|| unmade(format, "could not be made"))?
    };
    // A TIFF is turned upright by its decoder.
    Ok(if format == Format::Tiff { image } else { Orientation::of_file(bytes).apply(image) })
}

fn unmade(format: Format, reason: &str) -> ImageError {
    ImageError::Damaged { format, reason: format!("a smaller copy {reason}") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::{decode, dimensions};

    /// A JPEG, red on the left and blue on the right, with an EXIF orientation.
    fn jpeg(width: usize, height: usize, orientation: u8) -> Vec<u8> {
        let color = |index: usize| if index % width < width / 2 { [250, 0, 0] } else { [0, 0, 250] };
        let pixels: Vec<u8> = (0..width * height).flat_map(color).collect();
        let image = turbojpeg::Image {
            pixels: pixels.as_slice(),
            width,
            pitch: width * 3,
            height,
            format: turbojpeg::PixelFormat::RGB,
        };
        let plain = turbojpeg::compress(image, 95, turbojpeg::Subsamp::None).unwrap();
        let mut exif = b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0".to_vec();
        exif.extend([orientation, 0, 0, 0, 0, 0, 0]);
        let length = (exif.len() as u16 + 2).to_be_bytes();
        [&plain[..2], b"\xFF\xE1", &length, &exif, &plain[2..]].concat()
    }

    #[test]
    fn thumbnails_are_upright_small_and_without_metadata() {
        let photo = jpeg(640, 320, 6);
        assert_eq!(Orientation::of_file(&photo), Orientation::from_exif(6));
        let small = thumbnail(&photo, &ImageSettings::default(), 100).unwrap();
        assert_eq!(dimensions(&small, &ImageSettings::default()), Ok((50, 100)));
        assert!(!small.windows(4).any(|window| window == b"Exif"));
        // Turned clockwise, the left side comes to the top.
        let upright = decode(&small, &ImageSettings::default()).unwrap();
        assert!(upright.pixel(25, 10)[0] > 200 && upright.pixel(25, 90)[2] > 200);
    }

    #[test]
    fn small_images_keep_their_size_and_narrow_ones_a_pixel() {
        let edges = |photo: Vec<u8>| {
            let small = thumbnail(&photo, &ImageSettings::default(), 64).unwrap();
            dimensions(&small, &ImageSettings::default()).unwrap()
        };
        assert_eq!(edges(jpeg(30, 20, 1)), (30, 20));
        assert_eq!(edges(jpeg(2000, 3, 1)), (64, 1));
    }
}
