//! A picture to work on, computed rather than shipped.

/// A JPEG (4:2:0) of a computed scene with about the detail of a photo: smooth shapes, texture in
/// several sizes, and sensor noise. About 2.7 bits a pixel.
pub fn photo(width: usize, height: usize) -> Vec<u8> {
    const OCTAVES: [(usize, f32); 5] = [(256, 50.0), (64, 28.0), (16, 16.0), (4, 12.0), (1, 17.0)];
    let mut pixels = Vec::with_capacity(width * height * 3);
    for y in 0..height {
        for x in 0..width {
            let texture: f32 =
                OCTAVES.iter().map(|&(size, strength)| strength * smooth_noise(x, y, size)).sum();
            let sky = 60.0 * (1.0 - y as f32 / height as f32);
            let hue = 40.0 * smooth_noise(x, y, 512);
            pixels.extend(
                [90.0 + texture + hue, 105.0 + texture, 95.0 + texture + sky - hue]
                    .map(|v| v.clamp(0.0, 255.0) as u8),
            );
        }
    }
    let image = turbojpeg::Image {
        pixels: pixels.as_slice(),
        width,
        pitch: width * 3,
        height,
        format: turbojpeg::PixelFormat::RGB,
    };
    turbojpeg::compress(image, 85, turbojpeg::Subsamp::Sub2x2).expect("an encodable photo").to_vec()
}

/// Value noise in -1..1: random numbers on a grid of `size` pixels, interpolated between.
fn smooth_noise(x: usize, y: usize, size: usize) -> f32 {
    let (column, row) = (x / size, y / size);
    if size == 1 {
        return lattice(column, row, size);
    }
    let ease = |offset: usize| {
        let t = offset as f32 / size as f32;
        t * t * (3.0 - 2.0 * t)
    };
    let (across, down) = (ease(x % size), ease(y % size));
    let mix = |a: f32, b: f32, t: f32| a + (b - a) * t;
    mix(
        mix(lattice(column, row, size), lattice(column + 1, row, size), across),
        mix(lattice(column, row + 1, size), lattice(column + 1, row + 1, size), across),
        down,
    )
}

fn lattice(column: usize, row: usize, size: usize) -> f32 {
    let mut hash =
        (column as u32).wrapping_mul(0x9E37_79B1) ^ (row as u32).wrapping_mul(0x85EB_CA77) ^ size as u32;
    hash = (hash ^ (hash >> 15)).wrapping_mul(0x2C1B_3C6D);
    hash = (hash ^ (hash >> 12)).wrapping_mul(0x297A_2D39);
    (hash >> 8) as f32 / (1 << 23) as f32 - 1.0
}
