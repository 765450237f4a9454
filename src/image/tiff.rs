//! TIFF: the first page, turned upright by its orientation tag as Pillow does.

use super::{
    colour::DeepGray, error::ImageError, library, orientation::Orientation, rgb::RgbImage,
    settings::ImageSettings, sniff::Format,
};
use ::image::{ImageDecoder, codecs::tiff::TiffDecoder};
use std::io::Cursor;

pub(super) fn open(bytes: &[u8]) -> Result<TiffDecoder<Cursor<&[u8]>>, ImageError> {
    check_directory(bytes)?;
    TiffDecoder::new(Cursor::new(bytes)).map_err(|error| library::refusal(Format::Tiff, &error))
}

pub(super) fn decode(
    buffer: Vec<u8>,
    bytes: &[u8],
    settings: &ImageSettings,
) -> Result<RgbImage, ImageError> {
    let mut decoder = open(bytes)?;
    let (width, height) = decoder.dimensions();
    settings.admit_dimensions(width, height)?;
    let orientation = decoder.orientation().map_err(|error| library::refusal(Format::Tiff, &error))?;
    let image = library::read(buffer, decoder, Format::Tiff, DeepGray::Clipped, settings)?;
    Ok(Orientation::from_exif(u32::from(orientation.to_exif())).apply(image))
}

/// What the decoder takes on trust: that values lie within the file (it allocates for as many as an
/// entry claims), and that an image in tiles has its channels interleaved (it panics otherwise).
fn check_directory(bytes: &[u8]) -> Result<(), ImageError> {
    const PLANAR_CONFIGURATION: u16 = 284;
    const TILE_OFFSETS: u16 = 324;
    const SEPARATE_PLANES: u64 = 2;
    let directory = Directory::first(bytes).ok_or(ImageError::Truncated(Format::Tiff))?;
    let (mut separate, mut tiles) = (false, false);
    for index in 0..directory.entries {
        let entry = directory.entry(index).ok_or(ImageError::Truncated(Format::Tiff))?;
        tiles |= entry.tag == TILE_OFFSETS;
        separate |= entry.tag == PLANAR_CONFIGURATION && entry.first_short == SEPARATE_PLANES;
    }
    if tiles && separate {
        return Err(ImageError::Unsupported {
            what: "a TIFF in tiles with separate colour planes is not decoded here".to_owned(),
            remedy: "re-export it with interleaved channels, or as PNG",
        });
    }
    Ok(())
}

/// The first page's list of tags (TIFF 6.0, section 2; BigTIFF has wider numbers in the same
/// places).
struct Directory<'a> {
    bytes: &'a [u8],
    little_endian: bool,
    /// Bytes of an offset or a count: 4, or 8 in BigTIFF.
    word: usize,
    start: usize,
    entries: usize,
}

struct Entry {
    tag: u16,
    first_short: u64,
}

impl<'a> Directory<'a> {
    fn first(bytes: &'a [u8]) -> Option<Self> {
        const BIG: u64 = 43;
        let mut directory =
            Self { bytes, little_endian: bytes.first() == Some(&b'I'), word: 4, start: 0, entries: 0 };
        let (first_offset, count_width) = if directory.number(2, 2)? == BIG {
            directory.word = 8;
            (8, 8)
        } else {
            (4, 2)
        };
        let at = usize::try_from(directory.number(first_offset, directory.word)?).ok()?;
        directory.entries = usize::try_from(directory.number(at, count_width)?).ok()?;
        directory.start = at.checked_add(count_width)?;
        Some(directory)
    }

    /// `None` where the entry or its values lie outside the file.
    fn entry(&self, index: usize) -> Option<Entry> {
        let at = index.checked_mul(4 + 2 * self.word)?.checked_add(self.start)?;
        let tag = self.number(at, 2)? as u16;
        let width = match self.number(at + 2, 2)? {
            3 | 8 => 2,
            4 | 9 | 11 | 13 => 4,
            5 | 10 | 12 | 16 | 17 | 18 => 8,
            _ => 1,
        };
        let count = self.number(at + 4, self.word)?;
        let value = at + 4 + self.word;
        let length = count.checked_mul(width)?;
        if length > self.word as u64 {
            let end = self.number(value, self.word)?.checked_add(length)?;
            if end > self.bytes.len() as u64 {
                return None;
            }
        }
        self.bytes.get(value..value + self.word)?;
        Some(Entry { tag, first_short: self.number(value, 2)? })
    }

    fn number(&self, at: usize, width: usize) -> Option<u64> {
        let digits = self.bytes.get(at..at.checked_add(width)?)?;
        let add = |number: u64, &digit: &u8| (number << 8) | u64::from(digit);
        Some(if self.little_endian { digits.iter().rev().fold(0, add) } else { digits.iter().fold(0, add) })
    }
}
