//! `decoded_rgb.safetensors`: what Pillow decodes JPEG files to.

use crate::{images::described, raw};

const FILE: &str = "decoded_rgb.safetensors";

#[test]
fn golden_decoded_rgb_is_reproduced_bit_for_bit() {
    let images = described();
    for (name, (dtype, shape, bytes)) in raw::tensors(FILE) {
        let image = images.iter().find(|image| image.stem() == name);
        let image = image.unwrap_or_else(|| panic!("{FILE}: {name}: no such image"));
        assert_eq!(dtype, "U8", "{FILE}: {name}: data type");
        assert_eq!(shape, [image.height as usize, image.width as usize, 3], "{FILE}: {name}: shape");
        let decoded = image.decoded();
        let different = decoded.pixels().iter().zip(&bytes).filter(|(ours, theirs)| ours != theirs).count();
        assert_eq!(different, 0, "{FILE}: {name}: samples that differ");
    }
}
