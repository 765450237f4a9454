//! `images.json`: what each input file is and what it decodes to.

use crate::raw;
use roc4mllm::image::{ImageSettings, RgbImage, decode, dimensions};
use serde_json::Value;
use sha2::{Digest, Sha256};
use std::{collections::BTreeSet, fs};

const FILE: &str = "images.json";

/// One input file as `images.json` describes it.
pub struct Described {
    /// File name in `images/`.
    pub file: String,
    pub width: u32,
    pub height: u32,
    pub pil_mode: String,
    pub format: String,
    fields: Value,
}

impl Described {
    /// The name that other files use for the image: its file name without extension.
    pub fn stem(&self) -> &str {
        self.file.rsplit_once('.').map_or(&self.file, |(stem, _)| stem)
    }

    pub fn bytes(&self) -> Vec<u8> {
        raw::bytes(&format!("images/{}", self.file))
    }

    pub fn decoded(&self) -> RgbImage {
        decode(&self.bytes(), &ImageSettings::local())
            .unwrap_or_else(|error| panic!("images/{}: {error}", self.file))
    }
}

/// Every image that `images.json` lists.
pub fn described() -> Vec<Described> {
    let listed = raw::json(FILE);
    let listed = listed["images"].as_array().filter(|images| !images.is_empty());
    let listed = listed.unwrap_or_else(|| panic!("{FILE}: lists no image"));
    listed
        .iter()
        .map(|fields| {
            let text = |name: &str| {
                let value = fields[name].as_str().unwrap_or_else(|| panic!("{FILE}: {fields}: no {name}"));
                value.to_owned()
            };
            let number = |name: &str| {
                let value = fields[name].as_u64().and_then(|value| u32::try_from(value).ok());
                value.unwrap_or_else(|| panic!("{FILE}: {fields}: no {name}"))
            };
            Described {
                file: text("file"),
                width: number("width"),
                height: number("height"),
                pil_mode: text("pil_mode"),
                format: text("format"),
                fields: fields.clone(),
            }
        })
        .collect()
}

fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn golden_images_are_the_listed_files() {
    let folder = raw::folder().join("images");
    let entries = fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let found: BTreeSet<String> = entries
        .filter_map(Result::ok)
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect();
    let listed: BTreeSet<String> = described().into_iter().map(|image| image.file).collect();
    assert_eq!(listed, found, "{FILE}: the files in images/");
}

#[test]
fn golden_images_name_the_software_of_the_readme() {
    let listed = raw::json(FILE);
    let pillow = listed["pillow"].as_str().unwrap_or_else(|| panic!("{FILE}: no pillow version"));
    let readme = String::from_utf8_lossy(&raw::bytes("README.md")).into_owned();
    assert!(
        readme.contains(&format!("Pillow {pillow}")),
        "{FILE}: README.md names another Pillow than {pillow}"
    );
    let libjpeg = &listed["libjpeg_turbo"];
    assert!(
        libjpeg
            .as_str()
            .map_or(libjpeg.is_null(), |version| readme.contains(&format!("libjpeg-turbo {version}"))),
        "{FILE}: README.md names another libjpeg-turbo than {libjpeg}"
    );
}

#[test]
fn golden_images_have_the_stated_headers() {
    for image in described() {
        let file = &image.file;
        let bytes = image.bytes();
        assert_eq!(image.fields["bytes"], bytes.len(), "{FILE}: {file}: bytes");
        assert_eq!(image.fields["file_sha256"], sha256(&bytes), "{FILE}: {file}: file_sha256");
        assert_eq!(Some(image.format.as_str()), format_of(&bytes), "{FILE}: {file}: format");
        if let Some(mode) = pil_mode(&bytes) {
            assert_eq!(image.pil_mode, mode, "{FILE}: {file}: pil_mode");
        }
        let orientation = exif::Reader::new()
            .read_from_container(&mut std::io::Cursor::new(&bytes))
            .ok()
            .and_then(|exif| exif.get_field(exif::Tag::Orientation, exif::In::PRIMARY)?.value.get_uint(0));
        assert_eq!(
            image.fields["exif_orientation"],
            Value::from(orientation),
            "{FILE}: {file}: exif_orientation"
        );
        let size = dimensions(&bytes, &ImageSettings::local());
        assert_eq!(size, Ok((image.width, image.height)), "{FILE}: {file}: width and height");
    }
}

#[test]
fn golden_images_decode_to_the_stated_pixels() {
    for image in described() {
        let file = &image.file;
        let decoded = image.decoded();
        assert_eq!((decoded.width(), decoded.height()), (image.width, image.height), "{FILE}: {file}: size");
        assert_eq!(image.fields["rgb_sha256"], sha256(decoded.pixels()), "{FILE}: {file}: rgb_sha256");
        let last = decoded.pixel(decoded.width() - 1, decoded.height() - 1);
        assert_eq!(
            image.fields["rgb_first_pixel"],
            Value::from(decoded.pixel(0, 0).to_vec()),
            "{FILE}: {file}"
        );
        assert_eq!(image.fields["rgb_last_pixel"], Value::from(last.to_vec()), "{FILE}: {file}");
        for channel in 0..3 {
            let sum: u64 =
                decoded.pixels().iter().skip(channel).step_by(3).map(|&sample| u64::from(sample)).sum();
            let mean = sum as f64 / (decoded.pixels().len() / 3) as f64;
            let stated = image.fields["rgb_mean"][channel].as_f64().unwrap_or(f64::NAN);
            // Stated with six decimals.
            assert!(
                (mean - stated).abs() < 0.6e-6,
                "{FILE}: {file}: rgb_mean {stated} of channel {channel}, not {mean}"
            );
        }
    }
}

fn format_of(bytes: &[u8]) -> Option<&'static str> {
    Some(match bytes {
        [0xFF, 0xD8, ..] => "JPEG",
        [0x89, b'P', ..] => "PNG",
        [b'G', b'I', b'F', ..] => "GIF",
        [b'B', b'M', ..] => "BMP",
        [b'R', b'I', b'F', b'F', ..] => "WEBP",
        [b'I', b'I', ..] | [b'M', b'M', ..] => "TIFF",
        _ => return None,
    })
}

/// Pillow's mode of a PNG or JPEG file, by its header.
fn pil_mode(bytes: &[u8]) -> Option<&'static str> {
    match format_of(bytes)? {
        "PNG" => {
            const BIT_DEPTH: usize = 24;
            Some(match (bytes[BIT_DEPTH + 1], bytes[BIT_DEPTH]) {
                (0, 1) => "1",
                (0, 16) => "I;16",
                (0, _) => "L",
                (2, _) => "RGB",
                (3, _) => "P",
                (4, 16) | (6, _) => "RGBA",
                (4, _) => "LA",
                _ => return None,
            })
        }
        "JPEG" => {
            let mut rest = &bytes[2..];
            // Marker segments up to the frame header, whose tenth byte counts the components.
            while let [0xFF, code, high, low, ..] = rest {
                if matches!(code, 0xC0..=0xC3) {
                    return match rest.get(9)? {
                        1 => Some("L"),
                        3 => Some("RGB"),
                        4 => Some("CMYK"),
                        _ => None,
                    };
                }
                rest = rest.get(2 + usize::from(u16::from_be_bytes([*high, *low]))..)?;
            }
            None
        }
        _ => None,
    }
}
