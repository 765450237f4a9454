//! What a file is, by its first bytes: names and content types of uploads are not to be trusted.

use super::error::ImageError;
use std::fmt;

/// A format that is decoded here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Format {
    Jpeg,
    Png,
    WebP,
    Gif,
    Bmp,
    Tiff,
}

impl fmt::Display for Format {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Jpeg => "JPEG",
            Self::Png => "PNG",
            Self::WebP => "WebP",
            Self::Gif => "GIF",
            Self::Bmp => "BMP",
            Self::Tiff => "TIFF",
        })
    }
}

const CONVERT: &str = "convert it to JPEG or PNG";
const NOT_AN_IMAGE: &str = "upload the image itself, as JPEG, PNG, WebP, GIF, BMP or TIFF";

/// The format of `bytes`.
///
/// # Errors
/// [`ImageError::Empty`] without bytes; [`ImageError::Unsupported`], naming what it is as far as
/// the first bytes tell.
pub(super) fn sniff(bytes: &[u8]) -> Result<Format, ImageError> {
    match bytes {
        [] => Err(ImageError::Empty),
        [0xFF, 0xD8, 0xFF, ..] => Ok(Format::Jpeg),
        [0x89, b'P', b'N', b'G', b'\r', b'\n', 0x1A, b'\n', ..] => Ok(Format::Png),
        [b'G', b'I', b'F', b'8', b'7' | b'9', b'a', ..] => Ok(Format::Gif),
        [b'R', b'I', b'F', b'F', _, _, _, _, b'W', b'E', b'B', b'P', ..] => Ok(Format::WebP),
        [b'I', b'I', 42, 0, _, _, _, _, b'C', b'R', ..] => Err(foreign("a Canon raw photo")),
        [b'I', b'I', 42 | 43, 0, ..] | [b'M', b'M', 0, 42 | 43, ..] => Ok(Format::Tiff),
        // Two letters are little to go by, so the header's own length has to be a known one.
        [
            b'B',
            b'M',
            _,
            _,
            _,
            _,
            _,
            _,
            _,
            _,
            _,
            _,
            _,
            _,
            12 | 16 | 40 | 52 | 56 | 64 | 108 | 124,
            0,
            0,
            0,
            ..,
        ] => Ok(Format::Bmp),
        _ => Err(truncated_signature(bytes).unwrap_or_else(|| describe(bytes))),
    }
}

/// A file that stops inside a known signature is a cut-off upload, not an unknown format.
fn truncated_signature(bytes: &[u8]) -> Option<ImageError> {
    let starts: [(&[u8], Format); 5] = [
        (b"\xFF\xD8\xFF", Format::Jpeg),
        (b"\x89PNG\r\n\x1A\n", Format::Png),
        (b"GIF89a", Format::Gif),
        (b"GIF87a", Format::Gif),
        (b"RIFF", Format::WebP),
    ];
    if bytes.len() < 12 && bytes.starts_with(b"RIFF") {
        return Some(ImageError::Truncated(Format::WebP));
    }
    if bytes.len() < 18 && bytes.starts_with(b"BM") {
        return Some(ImageError::Truncated(Format::Bmp));
    }
    starts
        .into_iter()
        .find(|(signature, _)| signature.len() > bytes.len() && signature.starts_with(bytes))
        .map(|(_, format)| ImageError::Truncated(format))
}

fn foreign(what: &str) -> ImageError {
    ImageError::Unsupported { what: format!("this is {what}, which is not decoded here"), remedy: CONVERT }
}

fn no_image(what: &str) -> ImageError {
    ImageError::Unsupported { what: format!("this is {what}, not an image"), remedy: NOT_AN_IMAGE }
}

fn describe(bytes: &[u8]) -> ImageError {
    match bytes {
        [_, _, _, _, b'f', b't', b'y', b'p', rest @ ..] => describe_brands(rest),
        [0, 0, 0, 12, b'j', b'P', b' ', b' ', ..] | [0xFF, 0x4F, 0xFF, 0x51, ..] => {
            foreign("a JPEG 2000 image")
        }
        [0, 0, 0, 12, b'J', b'X', b'L', b' ', ..] | [0xFF, 0x0A, ..] => foreign("a JPEG XL image"),
        [b'8', b'B', b'P', b'S', ..] => foreign("a Photoshop document"),
        [0, 0, 1 | 2, 0, _, 0, ..] => foreign("an icon"),
        [b'P', b'1'..=b'7', b' ' | b'\n' | b'\r' | b'\t', ..] => foreign("a Netpbm image"),
        [b'R', b'I', b'F', b'F', ..] => no_image("an audio or video file"),
        [b'%', b'P', b'D', b'F', ..] => no_image("a PDF document"),
        [b'P', b'K', 3, 4, ..] => no_image("a ZIP archive"),
        [0x1F, 0x8B, ..] => no_image("gzip-compressed data"),
        [0x1A, 0x45, 0xDF, 0xA3, ..] => no_image("a video file"),
        _ => describe_text(bytes),
    }
}

/// ISO base media files say what they hold in their brands (ISO/IEC 14496-12, `ftyp`): the major
/// brand, a version, then compatible brands.
fn describe_brands(after_type: &[u8]) -> ImageError {
    let brands = after_type.chunks_exact(4).take(16).enumerate().filter(|(index, _)| *index != 1);
    for (_, brand) in brands {
        match brand {
            b"avif" | b"avis" => return foreign("an AVIF image"),
            b"heic" | b"heix" | b"hevc" | b"hevx" | b"heim" | b"heis" | b"mif1" | b"msf1" => {
                // `mif1` is shared by HEIC and AVIF; a more telling brand may follow.
                if matches!(brand, b"mif1" | b"msf1") && after_type.windows(4).take(64).any(|w| w == b"avif")
                {
                    return foreign("an AVIF image");
                }
                return foreign("a HEIC image");
            }
            b"jxl " => return foreign("a JPEG XL image"),
            b"crx " => return foreign("a Canon raw photo"),
            _ => {}
        }
    }
    no_image("a video or audio file")
}

fn describe_text(bytes: &[u8]) -> ImageError {
    let head = &bytes[..bytes.len().min(1024)];
    let head = head.strip_prefix(b"\xEF\xBB\xBF").unwrap_or(head).trim_ascii_start();
    let lower = head.to_ascii_lowercase();
    let holds = |needle: &[u8]| lower.windows(needle.len()).any(|window| window == needle);
    if [&b"<!doctype html"[..], b"<html", b"<head", b"<body", b"<script"]
        .iter()
        .any(|tag| lower.starts_with(tag))
    {
        return no_image("an HTML page");
    }
    if lower.starts_with(b"<svg") || (lower.starts_with(b"<") && holds(b"<svg")) {
        return foreign("an SVG drawing");
    }
    if lower.starts_with(b"<?xml") || lower.starts_with(b"<error>") {
        return no_image("an XML document");
    }
    let printable =
        head.iter().filter(|byte| matches!(byte, b'\t' | b'\n' | b'\r' | 0x20..=0x7E | 0x80..)).count();
    if !head.is_empty() && printable == head.len() && std::str::from_utf8(&head[..head.len().min(64)]).is_ok()
    {
        return no_image("text");
    }
    ImageError::Unsupported { what: "the file has no known image signature".to_owned(), remedy: NOT_AN_IMAGE }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(bytes: &[u8]) -> String {
        sniff(bytes).expect_err("an unsupported file").to_string()
    }

    #[test]
    fn brands_tell_heic_from_avif_and_video() {
        assert!(message(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic").contains("HEIC"));
        assert!(message(b"\0\0\0\x18ftypmif1\0\0\0\0mif1heic").contains("HEIC"));
        assert!(message(b"\0\0\0\x1Cftypavif\0\0\0\0avifmif1").contains("AVIF"));
        assert!(message(b"\0\0\0\x1Cftypmif1\0\0\0\0mif1avif").contains("AVIF"));
        assert!(message(b"\0\0\0\x18ftypisom\0\0\0\0isommp42").contains("video"));
    }

    #[test]
    fn text_is_named_for_what_it_is() {
        assert!(message(b"<!DOCTYPE html><html></html>").contains("HTML"));
        assert!(message(b"\xEF\xBB\xBF\n <html>").contains("HTML"));
        assert!(message(b"<?xml version=\"1.0\"?><Error><Code>AccessDenied</Code></Error>").contains("XML"));
        assert!(message(b"<?xml version=\"1.0\"?><svg xmlns=\"\"/>").contains("SVG"));
        assert!(message(b"hello, world").contains("text"));
        assert!(message(&[0, 1, 2, 3, 4, 5]).contains("no known image signature"));
    }

    #[test]
    fn a_cut_signature_is_a_truncated_file() {
        for (bytes, format) in [
            (&b"\xFF"[..], Format::Jpeg),
            (b"\xFF\xD8", Format::Jpeg),
            (b"\x89PNG", Format::Png),
            (b"GIF8", Format::Gif),
            (b"RIFF\x10\0", Format::WebP),
            (b"BM\x10", Format::Bmp),
        ] {
            assert_eq!(sniff(bytes), Err(ImageError::Truncated(format)));
        }
    }
}
