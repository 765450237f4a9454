//! What becomes of files that are no photos, or only parts of one, or more than one bargained for.

#[path = "bad_images/bombs.rs"]
mod bombs;

use image::{DynamicImage, ImageFormat, Rgb};
use proptest::prelude::*;
use roc4mllm::{
    fault::{ErrorCode, ItemError, Stage},
    image::{ImageError, ImageSettings, RgbImage, decode, dimensions, thumbnail},
};
use std::{
    alloc::{GlobalAlloc, Layout, System},
    cell::Cell,
    io::Cursor,
};

/// Counts what each thread has allocated, so that a test sees its own peak only.
struct Counting;

thread_local! {
    static LIVE: Cell<isize> = const { Cell::new(0) };
    static PEAK: Cell<isize> = const { Cell::new(0) };
}

fn count(change: isize) {
    // A thread that is ending has no counters any more.
    let _ = LIVE.try_with(|live| {
        live.set(live.get() + change);
        let _ = PEAK.try_with(|peak| peak.set(peak.get().max(live.get())));
    });
}

// SAFETY: every call is passed on to the system's allocator unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as isize);
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as isize);
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count(size as isize - layout.size() as isize);
        unsafe { System.realloc(pointer, layout, size) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        count(-(layout.size() as isize));
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// The result of `work` and the most bytes that it held at once on this thread.
fn measured<T>(work: impl FnOnce() -> T) -> (T, usize) {
    let before = LIVE.get();
    PEAK.set(before);
    let result = work();
    (result, (PEAK.get() - before) as usize)
}

fn worker() -> ImageSettings {
    ImageSettings::default()
}

/// The code of the error that decoding must end in; its message must be one line that says what to
/// do.
fn refused(bytes: &[u8]) -> (ErrorCode, String) {
    let error = decode(bytes, &worker()).expect_err("bytes that are no image");
    let item: ItemError = error.item_error("bucket/photo.jpg");
    assert_eq!(item.stage, Stage::Decode);
    assert_eq!(item.code, error.code());
    assert!(
        item.message.starts_with("bucket/photo.jpg: ") && item.message.contains("; "),
        "{}",
        item.message
    );
    assert!(!item.message.contains('\n'), "{}", item.message);
    let by_header = dimensions(bytes, &worker()).err().map(|error| error.code());
    assert!(by_header.is_none_or(|code| code == item.code), "{by_header:?}: {}", item.message);
    assert!(thumbnail(bytes, &worker(), 64).is_err());
    (item.code, item.message)
}

/// A computed photo: smooth areas, edges and some noise.
fn photo(width: u32, height: u32) -> image::RgbImage {
    image::RgbImage::from_fn(width, height, |x, y| {
        let wave = ((x as f32 / 7.0).sin() * 60.0 + (y as f32 / 11.0).cos() * 60.0) as i32;
        let noise = (x.wrapping_mul(2_654_435_761) ^ y.wrapping_mul(40_503)) >> 28;
        let edge = if (x / 16 + y / 16) % 2 == 0 { 40 } else { 0 };
        let sample = |base: i32| (base + wave + edge + noise as i32).clamp(0, 255) as u8;
        Rgb([sample(90), sample(110), sample(130)])
    })
}

fn encoded(image: impl Into<DynamicImage>, format: ImageFormat) -> Vec<u8> {
    let mut bytes = Cursor::new(Vec::new());
    image.into().write_to(&mut bytes, format).expect("an encodable image");
    bytes.into_inner()
}

/// The pixels of `image` as the JPEG encoder takes them.
fn raw(image: &image::RgbImage) -> turbojpeg::Image<&[u8]> {
    turbojpeg::Image {
        pixels: image.as_raw().as_slice(),
        width: image.width() as usize,
        pitch: image.width() as usize * 3,
        height: image.height() as usize,
        format: turbojpeg::PixelFormat::RGB,
    }
}

fn jpeg(image: &image::RgbImage) -> Vec<u8> {
    turbojpeg::compress(raw(image), 85, turbojpeg::Subsamp::Sub2x2).expect("an encodable image").to_vec()
}

fn gif_frames(frames: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    let palette: Vec<u8> = (0..=255).flat_map(|level| [level, 255 - level, level / 2]).collect();
    let mut encoder = gif::Encoder::new(&mut bytes, 40, 30, &palette).expect("a GIF header");
    for &first in frames {
        let indices: Vec<u8> =
            (0..40 * 30).map(|index: u32| first.wrapping_add((index % 97) as u8)).collect();
        encoder.write_frame(&gif::Frame::from_indexed_pixels(40, 30, indices, None)).expect("a GIF frame");
    }
    drop(encoder);
    bytes
}

/// A small file of each format.
fn samples() -> Vec<(&'static str, Vec<u8>)> {
    let photo = photo(40, 30);
    vec![
        ("JPEG", jpeg(&photo)),
        ("PNG", encoded(photo.clone(), ImageFormat::Png)),
        ("GIF", gif_frames(&[0, 100])),
        ("WebP", encoded(photo.clone(), ImageFormat::WebP)),
        ("BMP", encoded(photo.clone(), ImageFormat::Bmp)),
        ("TIFF", encoded(photo, ImageFormat::Tiff)),
    ]
}

fn sample(format: &str) -> Vec<u8> {
    samples().into_iter().find(|(name, _)| *name == format).expect("a format of the samples").1
}

/// Every cut of a file but those that lose nothing but its end mark (`forgiven` bytes).
fn every_cut_is_an_early_end(format: &str, forgiven: usize) {
    let whole = sample(format);
    assert!(decode(&whole, &worker()).is_ok());
    for length in 1..whole.len() - forgiven {
        let error = decode(&whole[..length], &worker()).expect_err("a truncated file");
        assert_eq!(
            error.code(),
            ErrorCode::ImageTruncated,
            "{format} cut to {length} of {} bytes: {error}",
            whole.len()
        );
    }
}

#[test]
fn an_empty_object_is_truncated() {
    let (code, message) = refused(b"");
    assert_eq!(code, ErrorCode::ImageTruncated);
    assert!(message.contains("empty"), "{message}");
}

#[test]
fn html_named_jpg_is_unsupported() {
    let (code, message) = refused(b"<!DOCTYPE html>\n<html><body>404 Not Found</body></html>");
    assert_eq!(code, ErrorCode::Unsupported);
    assert!(message.contains("HTML"), "{message}");
}

#[test]
fn a_truncated_jpeg_is_truncated_wherever_it_ends() {
    every_cut_is_an_early_end("JPEG", 0);
    let (_, message) = refused(&sample("JPEG")[..500]);
    assert_eq!(message, "bucket/photo.jpg: JPEG ends early; re-export or re-upload it");
}

#[test]
fn a_truncated_jpeg_with_corrupt_data_is_truncated() {
    let mut bytes = jpeg(&photo(400, 300));
    let length = bytes.len() / 2;
    bytes.truncate(length);
    // Corrupt data earlier on must not hide the early end.
    bytes[length - 400..length - 390].fill(0xFF);
    assert_eq!(refused(&bytes).0, ErrorCode::ImageTruncated);
}

#[test]
fn a_truncated_png_is_truncated_wherever_it_ends() {
    // The last chunk, IEND, carries no pixels.
    every_cut_is_an_early_end("PNG", 12);
}

#[test]
fn a_truncated_gif_is_truncated_wherever_it_ends() {
    // The last byte is the trailer. A cut between two frames leaves the first one whole.
    let whole = gif_frames(&[7]);
    for length in 1..whole.len() - 1 {
        let error = decode(&whole[..length], &worker()).expect_err("a truncated file");
        assert_eq!(error.code(), ErrorCode::ImageTruncated, "cut to {length} of {}: {error}", whole.len());
    }
}

#[test]
fn a_truncated_webp_is_truncated_wherever_it_ends() {
    every_cut_is_an_early_end("WebP", 0);
}

#[test]
fn a_truncated_bmp_is_truncated_wherever_it_ends() {
    every_cut_is_an_early_end("BMP", 0);
}

#[test]
fn a_truncated_tiff_is_truncated_wherever_it_ends() {
    every_cut_is_an_early_end("TIFF", 0);
}

#[test]
fn a_png_header_of_60000_by_60000_is_refused_before_any_allocation() {
    let header = png(60_000, 60_000, &[]);
    let (error, peak) = measured(|| decode(&header, &worker()).expect_err("too many pixels"));
    assert_eq!(error, ImageError::TooManyPixels { width: 60_000, height: 60_000, limit: 64_000_000 });
    assert!(peak < 1 << 20, "{peak} bytes");
    assert_eq!(refused(&header).0, ErrorCode::TooManyPixels);
    let (result, peak) = measured(|| decode(&header, &ImageSettings::local()));
    assert_eq!(result.map_err(|error| error.code()), Err(ErrorCode::TooManyPixels));
    assert!(peak < 1 << 20, "{peak} bytes");
}

#[test]
fn dimensions_in_any_header_are_checked_before_any_allocation() {
    let large = |format: &str, patch: &dyn Fn(&mut Vec<u8>)| {
        let mut bytes = sample(format);
        patch(&mut bytes);
        let (error, peak) = measured(|| decode(&bytes, &worker()).expect_err("too many pixels"));
        assert_eq!(error.code(), ErrorCode::TooManyPixels, "{format}: {error}");
        assert!(peak < 1 << 20, "{format}: {peak} bytes");
    };
    large("JPEG", &|bytes| {
        let frame = bytes.windows(2).position(|pair| pair == [0xFF, 0xC0]).expect("a frame header");
        bytes[frame + 5..frame + 9].fill(0xEE);
    });
    large("GIF", &|bytes| bytes[6..10].fill(0xEE));
    large("BMP", &|bytes| {
        bytes[18..22].copy_from_slice(&50_000_u32.to_le_bytes());
        bytes[22..26].copy_from_slice(&50_000_u32.to_le_bytes());
    });
    // Lossless WebP: 14 bits each of width and height less one, after the signature byte 0x2F.
    large("WebP", &|bytes| bytes[21..25].copy_from_slice(&[0xFE, 0xBF, 0xFF, 0x0F]));
}

#[test]
fn an_edge_beyond_the_limit_is_refused() {
    let (code, message) = refused(&png(70_000, 2, &[0; 100]));
    assert_eq!(code, ErrorCode::TooManyPixels);
    assert!(message.contains("max_edge"), "{message}");
}

#[test]
fn a_bomb_within_the_limit_of_pixels_stays_within_the_limit_of_memory() {
    const EDGE: u32 = 12_000;
    let bomb = encoded(image::GrayImage::new(EDGE, EDGE), ImageFormat::Png);
    assert!(bomb.len() < 1 << 20, "{} bytes", bomb.len());

    let tight = ImageSettings { max_pixels: 178_956_970, ..worker() };
    let (result, peak) = measured(|| decode(&bomb, &tight));
    let error = result.expect_err("432 MB under a limit of 256 MiB");
    assert!(matches!(error, ImageError::TooMuchMemory { needed: 432_000_000, .. }), "{error}");
    assert_eq!(error.code(), ErrorCode::TooManyPixels);
    assert!(peak < 4 << 20, "{peak} bytes");

    let (image, peak) =
        measured(|| decode(&bomb, &ImageSettings::local()).expect("an image within the limits"));
    assert_eq!((image.width(), image.height(), image.pixel(EDGE - 1, EDGE - 1)), (EDGE, EDGE, [0; 3]));
    assert!(peak < 440_000_000, "{peak} bytes");
}

#[test]
fn a_file_larger_than_the_limit_is_too_large() {
    let settings = ImageSettings { max_bytes: 100, ..worker() };
    let error = decode(&sample("PNG"), &settings).expect_err("more than 100 bytes");
    assert_eq!(error.code(), ErrorCode::TooLarge);
    assert!(error.to_string().contains("max_bytes"), "{error}");
}

#[test]
fn a_progressive_jpeg_stays_within_the_limit_of_memory() {
    let pixels = photo(2048, 2048);
    let mut compressor = turbojpeg::Compressor::new().expect("a compressor");
    compressor.set_progressive(true).expect("progressive");
    compressor.set_subsamp(turbojpeg::Subsamp::None).expect("4:4:4");
    let bytes = compressor.compress_to_vec(raw(&pixels)).expect("an encodable image");
    assert!(decode(&bytes, &worker()).is_ok());
    // The pixels take 12 MiB and the coefficients twice that.
    let settings = ImageSettings { max_alloc_bytes: 16 << 20, ..worker() };
    let error = decode(&bytes, &settings).expect_err("coefficients beyond the limit");
    assert_eq!(error.code(), ErrorCode::TooManyPixels, "{error}");
}

#[test]
fn a_cmyk_jpeg_is_decoded() {
    // Inks as Adobe writes them, inverted: 255 is none.
    let pixels: Vec<u8> = (0..32 * 32).flat_map(|_| [0_u8, 255, 255, 255]).collect();
    let image = turbojpeg::Image {
        pixels: pixels.as_slice(),
        width: 32,
        pitch: 32 * 4,
        height: 32,
        format: turbojpeg::PixelFormat::CMYK,
    };
    let bytes = turbojpeg::compress(image, 95, turbojpeg::Subsamp::None).expect("an encodable image");
    let decoded = decode(&bytes, &worker()).expect("a CMYK JPEG");
    let [red, green, blue] = decoded.pixel(16, 16);
    assert!(red < 8 && green > 247 && blue > 247, "full cyan, not {:?}", decoded.pixel(16, 16));
}

#[test]
fn sixteen_bit_images_are_decoded() {
    let gray = image::ImageBuffer::<image::Luma<u16>, _>::from_fn(4, 1, |x, _| {
        image::Luma([[7, 255, 256, 65535][x as usize]])
    });
    for format in [ImageFormat::Png, ImageFormat::Tiff] {
        let decoded = decode(&encoded(gray.clone(), format), &worker()).expect("a 16-bit grey image");
        assert_eq!(decoded.pixels(), [7, 7, 7, 255, 255, 255, 255, 255, 255, 255, 255, 255], "{format:?}");
    }
    let rgb = image::ImageBuffer::<Rgb<u16>, _>::from_pixel(1, 1, Rgb([0x01FF, 0x7F00, 0xFFFF]));
    let decoded = decode(&encoded(rgb, ImageFormat::Png), &worker()).expect("a 16-bit RGB image");
    assert_eq!(decoded.pixels(), [0x01, 0x7F, 0xFF]);
}

#[test]
fn an_animated_gif_gives_its_first_frame() {
    let animated = decode(&gif_frames(&[50, 60, 70]), &worker()).expect("an animation");
    let still = decode(&gif_frames(&[50]), &worker()).expect("a still image");
    assert_eq!(animated, still);
    assert_eq!(animated.pixel(0, 0), [50, 205, 25]);
}

#[test]
fn heic_and_avif_say_what_to_convert_to() {
    for (bytes, name) in [
        (&b"\0\0\0\x18ftypheic\0\0\0\0mif1heic\0\0\0\x08meta"[..], "HEIC"),
        (b"\0\0\0\x1cftypavif\0\0\0\0avifmif1miaf\0\0\0\x08meta", "AVIF"),
    ] {
        let (code, message) = refused(bytes);
        assert_eq!(code, ErrorCode::Unsupported);
        assert!(message.contains(name) && message.contains("convert it to JPEG or PNG"), "{message}");
    }
}

#[test]
fn other_formats_are_named() {
    for (bytes, name) in [
        (&b"\0\0\0\x0cjP  \r\n\x87\n"[..], "JPEG 2000"),
        (b"\0\0\0\x0cJXL \r\n\x87\n", "JPEG XL"),
        (b"\xFF\x0A\x00\x10", "JPEG XL"),
        (b"8BPS\0\x01", "Photoshop"),
        (b"<svg xmlns=\"http://www.w3.org/2000/svg\"/>", "SVG"),
        (b"<?xml version=\"1.0\"?><Error><Code>AccessDenied</Code></Error>", "XML"),
        (b"%PDF-1.7", "PDF"),
        (b"just a note", "text"),
        (&[7; 40], "signature"),
    ] {
        let (code, message) = refused(bytes);
        assert_eq!(code, ErrorCode::Unsupported);
        assert!(message.contains(name), "{message}");
    }
}

#[test]
fn a_tiled_planar_tiff_is_unsupported() {
    // Entries: tag, type (3 short, 4 long), count, value.
    let entries: [(u16, u16, u32, u32); 11] = [
        (256, 3, 1, 16),
        (257, 3, 1, 16),
        (258, 3, 1, 8),
        (259, 3, 1, 1),
        (262, 3, 1, 2),
        (277, 3, 1, 3),
        (284, 3, 1, 2),
        (322, 3, 1, 16),
        (323, 3, 1, 16),
        (324, 4, 3, 146),
        (325, 4, 3, 158),
    ];
    let mut bytes = b"II*\0\x08\0\0\0".to_vec();
    bytes.extend((entries.len() as u16).to_le_bytes());
    for (tag, kind, count, value) in entries {
        bytes.extend(tag.to_le_bytes());
        bytes.extend(kind.to_le_bytes());
        bytes.extend(count.to_le_bytes());
        bytes.extend(value.to_le_bytes());
    }
    bytes.extend([0; 4]);
    assert_eq!(bytes.len(), 146);
    for value in [170, 426, 682, 256, 256, 256_u32] {
        bytes.extend(value.to_le_bytes());
    }
    bytes.extend([0x55; 768]);
    let (code, message) = refused(&bytes);
    assert_eq!(code, ErrorCode::Unsupported);
    assert!(message.contains("tiles"), "{message}");
}

/// It has no header to believe: what stands in its place are no dimensions.
#[test]
fn noise_behind_a_png_signature_is_no_large_image() {
    let mut bytes = b"\x89PNG\r\n\x1a\n".to_vec();
    bytes.extend([0xFF; 64]);
    assert_eq!(refused(&bytes).0, ErrorCode::ImageTruncated);
}

/// A PNG of one bit a pixel whose data is `compressed`.
fn png(width: u32, height: u32, compressed: &[u8]) -> Vec<u8> {
    let mut header = [width.to_be_bytes(), height.to_be_bytes()].concat();
    header.extend([1, 0, 0, 0, 0]);
    let mut bytes = b"\x89PNG\r\n\x1a\n".to_vec();
    for (kind, data) in [(b"IHDR", header.as_slice()), (b"IDAT", compressed), (b"IEND", &[])] {
        bytes.extend((data.len() as u32).to_be_bytes());
        let start = bytes.len();
        bytes.extend(kind);
        bytes.extend(data);
        let crc = crc32(&bytes[start..]);
        bytes.extend(crc.to_be_bytes());
    }
    bytes
}

fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0, |crc: u32, &byte| {
        (0..8).fold(
            crc ^ u32::from(byte),
            |crc, _| if crc & 1 == 1 { (crc >> 1) ^ 0xEDB8_8320 } else { crc >> 1 },
        )
    })
}

/// Decodes without a panic and within memory: the pixels, twice that for the decoder, what the
/// file's own tables take when they are parsed, and some room.
fn survives(bytes: &[u8]) -> Result<RgbImage, ImageError> {
    let settings = ImageSettings { max_alloc_bytes: 4 << 20, max_pixels: 4_000_000, ..worker() };
    let (result, peak) = measured(|| decode(bytes, &settings));
    let most = 3 * (4 << 20) + 64 * bytes.len() + (1 << 20);
    assert!(peak <= most, "{peak} bytes for a file of {}", bytes.len());
    if let Ok(image) = &result {
        assert_eq!(image.pixels().len(), image.width() as usize * image.height() as usize * 3);
    }
    let _ = dimensions(bytes, &settings);
    let _ = thumbnail(bytes, &settings, 16);
    result
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1500))]

    #[test]
    fn damaged_files_neither_panic_nor_take_more_memory(
        format in 0_usize..6,
        flips in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..12),
        cut in proptest::option::of(any::<prop::sample::Index>()),
        near_start: bool,
    ) {
        let (_, mut bytes) = samples().swap_remove(format);
        if let Some(cut) = cut {
            bytes.truncate(cut.index(bytes.len()) + 1);
        }
        // Headers are where most damage is possible.
        let reach = if near_start { bytes.len().min(160) } else { bytes.len() };
        for (place, value) in flips {
            bytes[place.index(reach)] ^= value;
        }
        let _ = survives(&bytes);
    }

    #[test]
    fn random_bytes_neither_panic_nor_take_more_memory(
        format in 0_usize..6,
        kept in 4_usize..64,
        random in proptest::collection::vec(any::<u8>(), 0..600),
    ) {
        let (_, bytes) = samples().swap_remove(format);
        let _ = survives(&[&bytes[..kept.min(bytes.len())], &random].concat());
        let _ = survives(&random);
    }
}
