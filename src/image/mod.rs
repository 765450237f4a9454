//! From a file's bytes to the pixel values that the model reads.
//!
//! Decoding and resizing give the bits that Pillow gives, since the published weights were trained
//! on what Pillow makes of a photo: libjpeg-turbo decodes JPEG (orientation ignored, as
//! `Image.open(..).convert("RGB")` does), the `image` crate the other formats, and the resize is
//! integer arithmetic in Pillow's order. Nothing here knows a tensor, an object or a thread.

mod bmp;
mod colour;
mod decode;
mod error;
mod filter;
mod gif;
mod jpeg;
mod library;
mod orientation;
mod png;
mod preprocess;
mod processor_config;
mod resize;
mod rgb;
mod settings;
mod simd;
mod sniff;
mod thumbnail;
mod tiff;
mod webp;

pub use decode::{decode, dimensions};
pub use error::ImageError;
pub use preprocess::Preprocessor;
pub use processor_config::{Fit, PreprocessorError};
pub use rgb::RgbImage;
pub use settings::{ImageSettings, PreprocessMode};
pub use sniff::Format;
pub use thumbnail::{thumbnail, upright_square};

/// Grows whenever the pixel values computed for one file change; part of a score's identity. That of exact
/// preprocessing: [`PreprocessMode::revision`] has the others.
pub const PREPROCESS_REVISION: u32 = 1;
