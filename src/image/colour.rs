//! Any decoder's pixels to eight-bit RGB, in the decoder's own buffer, by Pillow's conversions.

use super::{error::ImageError, rgb::RgbImage, sniff::Format};
use ::image::ColorType;

/// What becomes of a 16-bit grey sample.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum DeepGray {
    /// Pillow's `I;16` keeps the number and clips it at 255, so that most such images turn white.
    Clipped,
    /// Pillow reads 16-bit grey with alpha as eight bits.
    HighByte,
}

/// The image in the first bytes of `buffer`, which is long enough for its samples and for
/// `3 * width * height` bytes. Alpha is dropped, not blended; 16-bit samples are in native order.
pub(super) fn into_rgb(
    mut buffer: Vec<u8>,
    color: ColorType,
    deep_gray: DeepGray,
    (width, height): (u32, u32),
    format: Format,
) -> Result<RgbImage, ImageError> {
    let pixels = width as usize * height as usize;
    let gray = move |sample: [u8; 2]| match deep_gray {
        DeepGray::Clipped => [u16::from_ne_bytes(sample).min(255) as u8; 3],
        DeepGray::HighByte => [high(sample); 3],
    };
    match color {
        ColorType::Rgb8 => {}
        ColorType::L8 => repack(&mut buffer, pixels, |[l]| [l; 3]),
        ColorType::La8 => repack(&mut buffer, pixels, |[l, _]| [l; 3]),
        ColorType::Rgba8 => repack(&mut buffer, pixels, |[r, g, b, _]| [r, g, b]),
        ColorType::L16 => repack(&mut buffer, pixels, gray),
        ColorType::La16 => repack(&mut buffer, pixels, |[l0, l1, _, _]| gray([l0, l1])),
        ColorType::Rgb16 => repack(&mut buffer, pixels, |[r0, r1, g0, g1, b0, b1]| {
            [high([r0, r1]), high([g0, g1]), high([b0, b1])]
        }),
        ColorType::Rgba16 => repack(&mut buffer, pixels, |[r0, r1, g0, g1, b0, b1, _, _]| {
            [high([r0, r1]), high([g0, g1]), high([b0, b1])]
        }),
        other => {
            return Err(ImageError::Unsupported {
                what: format!("this {format} holds {other:?} samples, which are not decoded here"),
                remedy: "convert it to eight bits a channel",
            });
        }
    }
    buffer.truncate(pixels * 3);
    RgbImage::new(width, height, buffer).ok_or_else(|| ImageError::Damaged {
        format,
        reason: format!("{width}x{height} pixels without the data for them"),
    })
}

/// libjpeg's CMYK, with the inverted inks that Adobe writes, by Pillow's formula.
pub(super) fn cmyk_into_rgb(buffer: &mut Vec<u8>, pixels: usize) {
    repack(buffer, pixels, |[c, m, y, k]| {
        let ink = |inverted: u8| 255 - inverted;
        let white = 255 - u32::from(ink(k));
        [c, m, y].map(|inverted| {
            let scaled = u32::from(ink(inverted)) * white + 128;
            white.saturating_sub((scaled + (scaled >> 8)) >> 8) as u8
        })
    });
    buffer.truncate(pixels * 3);
}

fn high(sample: [u8; 2]) -> u8 {
    (u16::from_ne_bytes(sample) >> 8) as u8
}

/// Rewrites `pixels` groups of `N` bytes as groups of three, in place: forwards where they shrink
/// and backwards where they grow, so that no group is overwritten before it is read.
fn repack<const N: usize>(buffer: &mut [u8], pixels: usize, to_rgb: impl Fn([u8; N]) -> [u8; 3]) {
    let mut convert = |pixel: usize| {
        let mut samples = [0; N];
        samples.copy_from_slice(&buffer[pixel * N..(pixel + 1) * N]);
        buffer[pixel * 3..pixel * 3 + 3].copy_from_slice(&to_rgb(samples));
    };
    if N >= 3 {
        (0..pixels).for_each(&mut convert);
    } else {
        (0..pixels).rev().for_each(&mut convert);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn convert(color: ColorType, samples: &[u8], pixels: u32, deep_gray: DeepGray) -> Vec<u8> {
        let mut buffer = samples.to_vec();
        buffer.resize(samples.len().max(pixels as usize * 3), 0);
        into_rgb(buffer, color, deep_gray, (pixels, 1), Format::Png).unwrap().pixels().to_vec()
    }

    fn deep(values: &[u16]) -> Vec<u8> {
        values.iter().flat_map(|value| value.to_ne_bytes()).collect()
    }

    #[test]
    fn deep_gray_is_clipped_or_halved() {
        let samples = deep(&[7, 255, 256, 65535]);
        assert_eq!(
            convert(ColorType::L16, &samples, 4, DeepGray::Clipped),
            [7, 7, 7, 255, 255, 255, 255, 255, 255, 255, 255, 255]
        );
        assert_eq!(convert(ColorType::La16, &samples, 2, DeepGray::HighByte), [0, 0, 0, 1, 1, 1]);
    }

    #[test]
    fn sixteen_bits_keep_the_high_byte() {
        let samples = deep(&[0x01FF, 0x0200, 0xFFFF, 0xAAAA]);
        assert_eq!(convert(ColorType::Rgb16, &samples[..6], 1, DeepGray::Clipped), [1, 2, 255]);
        assert_eq!(convert(ColorType::Rgba16, &samples, 1, DeepGray::Clipped), [1, 2, 255]);
    }

    #[test]
    fn float_samples_are_refused() {
        let refused = into_rgb(vec![0; 12], ColorType::Rgb32F, DeepGray::Clipped, (1, 1), Format::Tiff);
        assert!(matches!(refused, Err(ImageError::Unsupported { .. })));
    }

    proptest! {
        #[test]
        fn packing_in_place_equals_packing_apart(samples in proptest::collection::vec(any::<u8>(), 4..200)) {
            let pixels = samples.len() / 4;
            let samples = &samples[..pixels * 4];
            let rgba: Vec<u8> = samples.chunks(4).flat_map(|p| [p[0], p[1], p[2]]).collect();
            prop_assert_eq!(convert(ColorType::Rgba8, samples, pixels as u32, DeepGray::Clipped), rgba);
            let gray: Vec<u8> = samples.iter().flat_map(|&l| [l; 3]).collect();
            prop_assert_eq!(convert(ColorType::L8, samples, samples.len() as u32, DeepGray::Clipped), gray);
            let gray_alpha: Vec<u8> = samples.chunks(2).flat_map(|p| [p[0]; 3]).collect();
            prop_assert_eq!(convert(ColorType::La8, samples, pixels as u32 * 2, DeepGray::Clipped), gray_alpha);
        }

        #[test]
        fn inverted_black_is_black_and_no_ink_keeps_the_key(c: u8, m: u8, y: u8, k: u8) {
            let mut black = vec![c, m, y, 0];
            cmyk_into_rgb(&mut black, 1);
            prop_assert_eq!(black, vec![0, 0, 0]);
            let mut gray = vec![255, 255, 255, k];
            cmyk_into_rgb(&mut gray, 1);
            prop_assert_eq!(gray, vec![k; 3]);
        }
    }
}
