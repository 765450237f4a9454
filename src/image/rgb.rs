//! Eight-bit RGB pixels in memory.

/// Pixels in row-major order, three bytes each, no padding between rows.
#[derive(Clone, PartialEq, Eq)]
pub struct RgbImage {
    width: u32,
    height: u32,
    pixels: Vec<u8>,
}

impl RgbImage {
    /// `None` unless both edges are positive and `pixels` holds exactly `3 * width * height` bytes.
    pub fn new(width: u32, height: u32, pixels: Vec<u8>) -> Option<Self> {
        let length = u64::from(width) * u64::from(height) * 3;
        (length > 0 && pixels.len() as u64 == length).then_some(Self { width, height, pixels })
    }

    /// `paint(x, y)` in every pixel. An edge of 0 counts as 1.
    pub fn painted(width: u32, height: u32, paint: impl Fn(u32, u32) -> [u8; 3]) -> Self {
        let (width, height) = (width.max(1), height.max(1));
        let paint = &paint;
        let pixels = (0..height).flat_map(|y| (0..width).flat_map(move |x| paint(x, y))).collect();
        Self { width, height, pixels }
    }

    pub fn width(&self) -> u32 {
        self.width
    }

    pub fn height(&self) -> u32 {
        self.height
    }

    /// Row after row of `R, G, B`.
    pub fn pixels(&self) -> &[u8] {
        &self.pixels
    }

    /// The memory of the pixels, to be used again.
    pub(super) fn into_pixels(self) -> Vec<u8> {
        self.pixels
    }

    /// The pixel in column `x` of row `y`.
    ///
    /// # Panics
    /// Outside the image.
    pub fn pixel(&self, x: u32, y: u32) -> [u8; 3] {
        assert!(x < self.width && y < self.height, "({x}, {y}) lies outside {self:?}");
        let start = (y as usize * self.width as usize + x as usize) * 3;
        [self.pixels[start], self.pixels[start + 1], self.pixels[start + 2]]
    }

    pub(super) fn row(&self, y: usize) -> &[u8] {
        let stride = self.width as usize * 3;
        &self.pixels[y * stride..(y + 1) * stride]
    }
}

impl std::fmt::Debug for RgbImage {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "RgbImage({}x{})", self.width, self.height)
    }
}
