//! Row 22: files that are no photos, or only parts of one, or more than one bargained for.

use crate::envelopes::Envelope;
use crate::load::announced;
use crate::outcome::outcomes;
use crate::row::{Broker, Row};
use crate::run::{Run, START};
use anyhow::{Context, Result};
use image::{DynamicImage, ImageFormat};
use std::collections::BTreeMap;
use std::io::Cursor;
use std::path::Path;

const ITEMS: usize = 500;
const PER_SECOND: f64 = 120.0;
/// Each file under so many keys.
const COPIES: usize = 3;
const MIB: usize = 1 << 20;
/// Two decoded images of the largest size, a body of the largest size, and the process itself.
const RESIDENT_MIB: f64 = 800.0;

pub fn rows() -> Vec<Row> {
    vec![Row::new(22, "hostile images", Broker::Apache, hostile).short(&[1])]
}

/// A file's name and content, and the code it is rejected with: none if it has to be scored.
type Hostile = (&'static str, Vec<u8>, Option<&'static str>);

fn files() -> Result<Vec<Hostile>> {
    let jpeg = fixture("rgb_444.jpg")?;
    let png = encoded(DynamicImage::new_rgb8(60, 40), ImageFormat::Png)?;
    let cut = |bytes: &[u8], least: usize| bytes[..bytes.len() - least].to_vec();
    let mut large = jpeg.clone();
    large.resize(40 * MIB, 0);
    let mut noisy = b"\x89PNG\r\n\x1a\n".to_vec();
    noisy.extend((0..4_000_u32).map(|number| (number.wrapping_mul(2_654_435_761) >> 24) as u8));
    Ok(vec![
        ("header.png", png_header(100_000, 100_000), Some("too_many_pixels")),
        ("edge.png", png_header(70_000, 2), Some("too_many_pixels")),
        (
            "bomb.png",
            encoded(DynamicImage::new_luma8(12_000, 12_000), ImageFormat::Png)?,
            Some("too_many_pixels"),
        ),
        // As many pixels as are allowed, in a small file.
        ("wide.png", encoded(DynamicImage::new_luma8(8_000, 7_900), ImageFormat::Png)?, None),
        ("large.jpg", large, Some("too_large")),
        ("empty.jpg", Vec::new(), Some("image_truncated")),
        (
            "page.jpg",
            b"<!DOCTYPE html>\n<html><body>404 Not Found</body></html>".to_vec(),
            Some("unsupported"),
        ),
        ("cut.jpg", cut(&jpeg, jpeg.len() / 3), Some("image_truncated")),
        ("cut.png", cut(&png, 20), Some("image_truncated")),
        ("noise.png", noisy, Some("image_truncated")),
        ("cmyk.jpg", fixture("cmyk.jpg")?, None),
        ("rgba16.png", fixture("rgba16.png")?, None),
        ("gray16.png", fixture("gray16.png")?, None),
        ("animated.gif", fixture("animated.gif")?, None),
        ("animated.webp", fixture("animated.webp")?, None),
    ])
}

fn fixture(name: &str) -> Result<Vec<u8>> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/formats").join(name);
    std::fs::read(&path).with_context(|| path.display().to_string())
}

fn encoded(image: DynamicImage, format: ImageFormat) -> Result<Vec<u8>> {
    let mut bytes = Cursor::new(Vec::new());
    image.write_to(&mut bytes, format)?;
    Ok(bytes.into_inner())
}

/// A PNG of one bit a pixel whose header promises more than its data holds.
fn png_header(width: u32, height: u32) -> Vec<u8> {
    let mut header = [width.to_be_bytes(), height.to_be_bytes()].concat();
    header.extend([1, 0, 0, 0, 0]);
    let mut bytes = b"\x89PNG\r\n\x1a\n".to_vec();
    for (kind, data) in [(b"IHDR", header.as_slice()), (b"IDAT", &[0; 64]), (b"IEND", &[])] {
        bytes.extend((data.len() as u32).to_be_bytes());
        let start = bytes.len();
        bytes.extend(kind);
        bytes.extend(data);
        let checksum = crc32(&bytes[start..]);
        bytes.extend(checksum.to_be_bytes());
    }
    bytes
}

fn crc32(bytes: &[u8]) -> u32 {
    let byte = |crc: u32, &byte: &u8| {
        let bit = |crc: u32, _| if crc & 1 == 1 { (crc >> 1) ^ 0xEDB8_8320 } else { crc >> 1 };
        (0..8).fold(crc ^ u32::from(byte), bit)
    };
    !bytes.iter().fold(!0, byte)
}

fn hostile(run: &mut Run) -> Result<()> {
    let files = files()?;
    let setup = run.worker("a");
    let worker = run.spawn(setup)?;
    worker.wait_ready(START)?;
    let flow = run.loader.flow(ITEMS, run.seed, PER_SECOND);
    run.tail.wait_items(run.at_item, START)?;
    let envelopes = [Envelope::Aws, Envelope::Plain, Envelope::EventBridge];
    for copy in 0..COPIES {
        for (name, content, code) in &files {
            let upload = run.loader.put(&format!("hostile/{copy}/{name}"), content)?;
            let status = if code.is_some() { "rejected" } else { "scored" };
            let record = envelopes[(copy + name.len()) % envelopes.len()].record(&[&upload]);
            run.loader.send(&record, None, &[announced(&upload, status)])?;
            run.fired(1);
        }
    }
    flow.join()?;
    run.tail.wait_items(run.loader.items(), START)?;
    let alive = u8::from(worker.is_ready() && worker.is_alive());
    run.equal("the worker is ready and alive after them", alive, 1);
    run.heal();

    let evidence = run.settle()?;
    let mut codes: BTreeMap<String, usize> = BTreeMap::new();
    for end in outcomes(&evidence, "hostile/") {
        let name = end.key.as_deref().and_then(|key| key.rsplit('/').next()).unwrap_or_default();
        *codes.entry(format!("{name}: {} {}", end.status, end.code())).or_default() += 1;
    }
    let expected: BTreeMap<String, usize> = files
        .iter()
        .map(|(name, _, code)| match code {
            Some(code) => (format!("{name}: rejected {code}"), COPIES),
            None => (format!("{name}: scored "), COPIES),
        })
        .collect();
    run.equal("how each file ended", serde_json::to_value(codes)?, serde_json::to_value(expected)?);
    run.at_most("resident MiB with all of them", run.peaks().resident_mib as f64, RESIDENT_MIB);
    Ok(())
}
