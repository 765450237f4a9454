//! TIFF: the first page, turned upright by its orientation tag as Pillow does.

use super::{
    colour::DeepGray, error::ImageError, library, orientation::Orientation, rgb::RgbImage,
    settings::ImageSettings, sniff::Format,
};
use ::image::{ImageDecoder, codecs::tiff::TiffDecoder};
use std::io::Cursor;

pub(super) fn open(bytes: &[u8]) -> Result<TiffDecoder<Cursor<&[u8]>>, ImageError> {
    TiffDecoder::new(Cursor::new(bytes)).map_err(|error| library::refusal(Format::Tiff, &error))
}

pub(super) fn decode(bytes: &[u8], settings: &ImageSettings) -> Result<RgbImage, ImageError> {
    let mut decoder = open(bytes)?;
    let (width, height) = decoder.dimensions();
    settings.admit_dimensions(width, height)?;
    refuse_tiled_planes(bytes)?;
    let orientation = decoder.orientation().map_err(|error| library::refusal(Format::Tiff, &error))?;
    let image = library::read(decoder, Format::Tiff, DeepGray::Clipped, settings)?;
    Ok(Orientation::from_exif(u32::from(orientation.to_exif())).apply(image))
}

/// The decoder asserts on tiles with one plane a channel, so they are told from the tags first.
fn refuse_tiled_planes(bytes: &[u8]) -> Result<(), ImageError> {
    const SEPARATE_PLANES: u32 = 2;
    // BigTIFF and odd tags end in an error here; the decoder then has the last word.
    let Ok((fields, _)) = exif::parse_exif(bytes) else { return Ok(()) };
    let first_page =
        |tag: exif::Tag| fields.iter().find(|field| field.tag == tag && field.ifd_num == exif::In::PRIMARY);
    let separate = first_page(exif::Tag::PlanarConfiguration).and_then(|field| field.value.get_uint(0));
    if separate == Some(SEPARATE_PLANES) && first_page(exif::Tag::TileOffsets).is_some() {
        return Err(ImageError::Unsupported {
            what: "a TIFF in tiles with separate colour planes is not decoded here".to_owned(),
            remedy: "re-export it with interleaved channels, or as PNG",
        });
    }
    Ok(())
}
