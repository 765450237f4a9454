//! Small files that unpack to much: each is refused, or costs no more than an honest file of its size would.

use super::*;

/// More than any of these files may take. An honest one of their dimensions takes a few hundred kilobytes.
const ROOM: usize = 8 << 20;
/// What the compressed parts unpack to.
const UNPACKED: usize = 128 << 20;

/// A zlib stream of zeros, a thousandth of what it unpacks to.
fn zlib_bomb() -> Vec<u8> {
    let edge = 1 << 13;
    let png = encoded(image::GrayImage::new(edge, 2 * edge), ImageFormat::Png);
    let mut stream = Vec::new();
    let mut rest = &png[8..];
    while let Some((length, after)) = rest.split_first_chunk::<4>() {
        let length = u32::from_be_bytes(*length) as usize;
        if after.starts_with(b"IDAT") {
            stream.extend_from_slice(&after[4..4 + length]);
        }
        rest = &after[4 + length + 4..];
    }
    assert!(stream.len() < UNPACKED / 100, "{} bytes", stream.len());
    stream
}

/// Decodes within [`ROOM`], whatever comes of it.
fn within_room(name: &str, bytes: &[u8]) -> Result<RgbImage, ImageError> {
    let (result, peak) = measured(|| decode(bytes, &worker()));
    assert!(peak < ROOM + bytes.len(), "{name}: {peak} bytes for a file of {}", bytes.len());
    let (_, peak) = measured(|| dimensions(bytes, &worker()));
    assert!(peak < ROOM + bytes.len(), "{name}: {peak} bytes for its dimensions");
    result
}

/// A PNG chunk before the pixels.
fn with_chunk(png: &[u8], kind: &[u8; 4], data: &[u8]) -> Vec<u8> {
    // The signature, and the header's chunk.
    const BEFORE: usize = 8 + 25;
    let mut bytes = png[..BEFORE].to_vec();
    bytes.extend((data.len() as u32).to_be_bytes());
    let start = bytes.len();
    bytes.extend(kind);
    bytes.extend(data);
    let crc = crc32(&bytes[start..]);
    bytes.extend(crc.to_be_bytes());
    bytes.extend(&png[BEFORE..]);
    bytes
}

#[test]
fn what_a_png_has_beside_its_pixels_is_not_unpacked_without_limit() {
    let bomb = zlib_bomb();
    let plain = sample("PNG");
    for (kind, before) in
        [(b"iCCP", &b"profile\0\0"[..]), (b"zTXt", b"Comment\0\0"), (b"iTXt", b"Comment\0\x01\0\0\0")]
    {
        let bytes = with_chunk(&plain, kind, &[before, &bomb].concat());
        let name = String::from_utf8_lossy(kind);
        let image = within_room(&name, &bytes);
        if let Ok(image) = image {
            assert_eq!((image.width(), image.height()), (40, 30), "{name}");
        }
    }
}

#[test]
fn a_png_whose_data_is_longer_than_its_pixels_stops_at_its_pixels() {
    let _ = within_room("PNG", &png(64, 64, &zlib_bomb()));
}

/// A grey TIFF of one strip, `compression` as TIFF numbers it.
fn tiff(width: u32, height: u32, compression: u16, strip: &[u8]) -> Vec<u8> {
    const STRIP: u32 = 8 + 2 + 9 * 12 + 4;
    let entries: [(u16, u16, u32); 9] = [
        (256, 4, width),
        (257, 4, height),
        (258, 3, 8),
        (259, 3, compression.into()),
        (262, 3, 1),
        (273, 4, STRIP),
        (277, 3, 1),
        (278, 4, height),
        (279, 4, strip.len() as u32),
    ];
    let mut bytes = b"II*\0\x08\0\0\0".to_vec();
    bytes.extend((entries.len() as u16).to_le_bytes());
    for (tag, kind, value) in entries {
        bytes.extend(tag.to_le_bytes());
        bytes.extend(kind.to_le_bytes());
        bytes.extend(1_u32.to_le_bytes());
        bytes.extend(value.to_le_bytes());
    }
    bytes.extend([0; 4]);
    assert_eq!(bytes.len(), STRIP as usize);
    bytes.extend(strip);
    bytes
}

#[test]
fn a_tiff_strip_that_unpacks_to_more_than_the_image_stays_within_the_image() {
    const DEFLATE: u16 = 8;
    const PACK_BITS: u16 = 32773;
    let _ = within_room("deflate", &tiff(64, 64, DEFLATE, &zlib_bomb()));
    // Each pair of bytes unpacks to 128.
    let _ = within_room("PackBits", &tiff(64, 64, PACK_BITS, &[0x81, 0].repeat(1 << 19)));
}

#[test]
fn a_tiff_that_claims_more_pixels_than_allowed_is_refused_before_any_allocation() {
    let bytes = tiff(60_000, 60_000, 1, &[0; 64]);
    let error = within_room("TIFF", &bytes).expect_err("too many pixels");
    assert_eq!(error.code(), ErrorCode::TooManyPixels, "{error}");
    // Rows of one strip that claims to be everything, in an image that is small.
    let mut bytes = tiff(64, 64, 1, &[0; 64]);
    let rows = 8 + 2 + 7 * 12 + 8;
    bytes[rows..rows + 4].fill(0xFF);
    let _ = within_room("TIFF", &bytes);
}

#[test]
fn a_gif_frame_larger_than_its_screen_is_not_allocated() {
    let mut bytes = gif_frames(&[0]);
    let frame = bytes.iter().rposition(|&byte| byte == 0x2C);
    let frame = bytes[13 + 768..].iter().position(|&byte| byte == 0x2C).map(|at| at + 13 + 768).or(frame);
    let frame = frame.expect("an image descriptor");
    // Left, top, width and height, 16 bits each.
    bytes[frame + 5..frame + 9].fill(0xFF);
    let error = within_room("GIF", &bytes).expect_err("a frame beyond the screen");
    assert!(!matches!(error, ImageError::TooMuchMemory { .. }) || error.code() == ErrorCode::TooManyPixels);
}

#[test]
fn a_webp_whose_canvas_is_smaller_than_its_picture_is_not_allocated() {
    let mut lossless = sample("WebP")[12..].to_vec();
    assert!(lossless.starts_with(b"VP8L"), "the encoder writes lossless WebP");
    // 16,384 pixels each way, behind a canvas of 40 by 30.
    lossless[9..13].copy_from_slice(&[0xFF, 0xFF, 0xFF, 0x0F]);
    let mut canvas = b"VP8X\x0a\0\0\0\0\0\0\0".to_vec();
    canvas.extend([39, 0, 0, 29, 0, 0]);
    let length = 4 + canvas.len() + lossless.len();
    let bytes = [&b"RIFF"[..], &(length as u32).to_le_bytes(), b"WEBP", &canvas, &lossless].concat();
    within_room("WebP", &bytes).expect_err("a picture that is not the canvas");
}

/// A scan costs a pass over the whole image, and 20 bytes.
#[test]
fn a_progressive_jpeg_of_a_thousand_scans_is_refused() {
    let mut compressor = turbojpeg::Compressor::new().expect("a compressor");
    compressor.set_progressive(true).expect("progressive");
    let bytes = compressor.compress_to_vec(raw(&photo(64, 64))).expect("an encodable image");
    assert!(within_room("JPEG", &bytes).is_ok());
    let scan = bytes.windows(2).rposition(|pair| pair == [0xFF, 0xDA]).expect("a scan");
    let end = bytes.len() - 2;
    assert_eq!(bytes[end..], [0xFF, 0xD9]);
    let repeated = |times: usize| [&bytes[..end], &bytes[scan..end].repeat(times), &bytes[end..]].concat();
    let error = within_room("JPEG", &repeated(1_000)).expect_err("a thousand scans");
    assert_eq!(error.code(), ErrorCode::DecodeFailed);
    assert!(error.to_string().contains("scans"), "{error}");
}
