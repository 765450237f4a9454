//! Turning an image upright by its EXIF orientation (Exif 3.0, tag 0x0112).

use super::rgb::RgbImage;

/// How stored pixels are to be turned: first mirrored left to right, then rotated clockwise.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Orientation {
    mirrored: bool,
    quarter_turns: u8,
}

impl Orientation {
    /// Values other than 1 to 8 mean as stored.
    pub(super) fn from_exif(value: u32) -> Self {
        let (mirrored, quarter_turns) = match value {
            2 => (true, 0),
            3 => (false, 2),
            4 => (true, 2),
            5 => (true, 3),
            6 => (false, 1),
            7 => (true, 1),
            8 => (false, 3),
            _ => (false, 0),
        };
        Self { mirrored, quarter_turns }
    }

    /// The orientation a JPEG, PNG, WebP or TIFF file states; as stored if it states none.
    pub(super) fn of_file(bytes: &[u8]) -> Self {
        let stated = exif::Reader::new()
            .read_from_container(&mut std::io::Cursor::new(bytes))
            .ok()
            .and_then(|exif| exif.get_field(exif::Tag::Orientation, exif::In::PRIMARY)?.value.get_uint(0));
        Self::from_exif(stated.unwrap_or(1))
    }

    pub(super) fn apply(self, image: RgbImage) -> RgbImage {
        if self == Self::from_exif(1) {
            return image;
        }
        let (width, height) = (image.width() as usize, image.height() as usize);
        let sideways = self.quarter_turns % 2 == 1;
        let (turned_width, turned_height) = if sideways { (height, width) } else { (width, height) };
        let mut turned = Vec::with_capacity(image.pixels().len());
        for row in 0..turned_height {
            for column in 0..turned_width {
                let (x, y) = match self.quarter_turns {
                    0 => (column, row),
                    1 => (row, height - 1 - column),
                    2 => (width - 1 - column, height - 1 - row),
                    _ => (width - 1 - row, column),
                };
                let x = if self.mirrored { width - 1 - x } else { x };
                let start = (y * width + x) * 3;
                turned.extend_from_slice(&image.pixels()[start..start + 3]);
            }
        }
        RgbImage::new(turned_width as u32, turned_height as u32, turned).unwrap_or(image)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Red values of `0 1 2 / 3 4 5`, turned.
    fn turned(value: u32) -> (u32, Vec<u8>) {
        let pixels = (0..6).flat_map(|red| [red, 0, 0]).collect();
        let image = Orientation::from_exif(value).apply(RgbImage::new(3, 2, pixels).unwrap());
        (image.width(), image.pixels().iter().step_by(3).copied().collect())
    }

    #[test]
    fn all_eight_values_turn_as_the_standard_says() {
        assert_eq!(turned(1), (3, vec![0, 1, 2, 3, 4, 5]));
        assert_eq!(turned(2), (3, vec![2, 1, 0, 5, 4, 3]));
        assert_eq!(turned(3), (3, vec![5, 4, 3, 2, 1, 0]));
        assert_eq!(turned(4), (3, vec![3, 4, 5, 0, 1, 2]));
        assert_eq!(turned(5), (2, vec![0, 3, 1, 4, 2, 5]));
        assert_eq!(turned(6), (2, vec![3, 0, 4, 1, 5, 2]));
        assert_eq!(turned(7), (2, vec![5, 2, 4, 1, 3, 0]));
        assert_eq!(turned(8), (2, vec![2, 5, 1, 4, 0, 3]));
        assert_eq!(turned(9), turned(1));
    }
}
