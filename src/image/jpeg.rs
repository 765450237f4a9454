//! JPEG through libjpeg-turbo, the decoder that Pillow uses, and as lenient as Pillow is.
//!
//! The safe wrapper turns each of the library's warnings into an error, where Pillow decodes on,
//! so this file talks to the TurboJPEG 3 interface itself.

use super::{
    colour, error::ImageError, library::one_line, rgb::RgbImage, settings::ImageSettings, sniff::Format,
};
use std::ffi::{CStr, c_int};
use turbojpeg_sys as ffi;

/// A progressive file may ask for any number of passes over the whole image; real ones take about
/// ten.
const MOST_SCANS: c_int = 100;

/// libjpeg's message when its own buffers would exceed their limit.
const OUT_OF_MEMORY: &str = "Memory limit exceeded";

/// Warnings after which the pixels are what any lenient decoder makes of them. An error that stops
/// the decoder half-way leaves another message in the same place.
const TOLERATED: [&str; 5] = [
    "Corrupt JPEG data",
    "Inconsistent progression sequence",
    "Invalid SOS parameters for sequential JPEG",
    "Unknown Adobe color transform code",
    "Warning: unknown JFIF revision number",
];

pub(super) fn dimensions(bytes: &[u8]) -> Result<(u32, u32), ImageError> {
    let header = Decompressor::new()?.header(bytes)?;
    Ok((header.width, header.height))
}

/// `reduction` gives, for the stored width and height, the divisor (1, 2, 4 or 8) of both edges.
pub(super) fn decode(
    buffer: Vec<u8>,
    bytes: &[u8],
    settings: &ImageSettings,
    reduction: impl FnOnce(u32, u32) -> u32,
) -> Result<RgbImage, ImageError> {
    let mut decompressor = Decompressor::new()?;
    let header = decompressor.header(bytes)?;
    settings.admit_dimensions(header.width, header.height)?;
    let divisor = reduction(header.width, header.height);
    let (width, height) = (header.width.div_ceil(divisor), header.height.div_ceil(divisor));
    let channels = if header.inks { 4 } else { 3 };
    let length = settings.admit_memory(width, height, u64::from(width) * u64::from(height) * channels)?;
    decompressor
        .set(ffi::TJPARAM_TJPARAM_MAXMEMORY, (settings.max_alloc_bytes >> 20).clamp(1, 1 << 30) as c_int)?;
    decompressor.set(ffi::TJPARAM_TJPARAM_SCANLIMIT, MOST_SCANS)?;
    decompressor.reduce(divisor)?;

    // libjpeg-turbo writes every row or fails, so that old contents never show.
    let mut pixels = buffer;
    pixels.resize(length, 0);
    let stride = width as usize * channels as usize;
    let pixel_format = if header.inks { ffi::TJPF_TJPF_CMYK } else { ffi::TJPF_TJPF_RGB };
    decompressor.pixels(bytes, &mut pixels, stride, pixel_format).map_err(|error| match error {
        ImageError::Damaged { reason, .. } if reason.starts_with(OUT_OF_MEMORY) => {
            ImageError::TooMuchMemory {
                width: header.width,
                height: header.height,
                // A progressive file keeps all its coefficients, of 16 bits.
                needed: u64::from(header.width) * u64::from(header.height) * channels * 2,
                limit: settings.max_alloc_bytes,
            }
        }
        other => other,
    })?;
    if header.inks {
        colour::cmyk_into_rgb(&mut pixels, width as usize * height as usize);
    }
    RgbImage::new(width, height, pixels).ok_or_else(|| damaged("no pixels"))
}

struct Header {
    width: u32,
    height: u32,
    /// Four channels: cyan, magenta, yellow and key.
    inks: bool,
}

/// One TurboJPEG instance.
struct Decompressor {
    handle: ffi::tjhandle,
}

impl Decompressor {
    fn new() -> Result<Self, ImageError> {
        // SAFETY: takes no pointer; a null result is handled below.
        let handle = unsafe { ffi::tj3Init(ffi::TJINIT_TJINIT_DECOMPRESS as c_int) };
        if handle.is_null() {
            return Err(damaged("libjpeg-turbo could not start"));
        }
        let mut decompressor = Self { handle };
        // Profiles are of no use here and may be megabytes.
        decompressor.set(ffi::TJPARAM_TJPARAM_SAVEMARKERS, 0)?;
        Ok(decompressor)
    }

    fn set(&mut self, parameter: ffi::TJPARAM, value: c_int) -> Result<(), ImageError> {
        // SAFETY: the handle is live until `drop`.
        match unsafe { ffi::tj3Set(self.handle, parameter as c_int, value) } {
            0 => Ok(()),
            _ => Err(damaged(&self.message())),
        }
    }

    fn get(&self, parameter: ffi::TJPARAM) -> c_int {
        // SAFETY: the handle is live until `drop`.
        unsafe { ffi::tj3Get(self.handle, parameter as c_int) }
    }

    fn reduce(&mut self, divisor: u32) -> Result<(), ImageError> {
        let factor = ffi::tjscalingfactor { num: 1, denom: divisor as c_int };
        // SAFETY: the handle is live until `drop`; the factor is passed by value.
        match unsafe { ffi::tj3SetScalingFactor(self.handle, factor) } {
            0 => Ok(()),
            _ => Err(damaged(&self.message())),
        }
    }

    fn header(&mut self, bytes: &[u8]) -> Result<Header, ImageError> {
        // SAFETY: `bytes` outlives the call, and its length is passed with it.
        let status =
            unsafe { ffi::tj3DecompressHeader(self.handle, bytes.as_ptr(), bytes.len() as ffi::size_t) };
        self.judge(status, bytes)?;
        let edge = |parameter| u32::try_from(self.get(parameter)).ok().filter(|&edge| edge > 0);
        let (Some(width), Some(height)) =
            (edge(ffi::TJPARAM_TJPARAM_JPEGWIDTH), edge(ffi::TJPARAM_TJPARAM_JPEGHEIGHT))
        else {
            return Err(if ends_early(bytes) { truncated() } else { damaged("no image in it") });
        };
        let bits = self.get(ffi::TJPARAM_TJPARAM_PRECISION);
        if bits != 8 {
            return Err(ImageError::Unsupported {
                what: format!("a JPEG of {bits} bits a channel is not decoded here"),
                remedy: "re-export it with eight bits a channel",
            });
        }
        let colours = self.get(ffi::TJPARAM_TJPARAM_COLORSPACE);
        let inks = colours == ffi::TJCS_TJCS_CMYK as c_int || colours == ffi::TJCS_TJCS_YCCK as c_int;
        Ok(Header { width, height, inks })
    }

    /// Fills `pixels`, rows of `stride` bytes, with the image whose header has been read.
    fn pixels(
        &mut self,
        bytes: &[u8],
        pixels: &mut [u8],
        stride: usize,
        pixel_format: ffi::TJPF,
    ) -> Result<(), ImageError> {
        let Ok(pitch) = c_int::try_from(stride) else {
            return Err(damaged("rows too long for libjpeg-turbo"));
        };
        // SAFETY: `bytes` and `pixels` outlive the call. `pixels` holds `stride` bytes for each row
        // of the image at the scale that was set; the header is read again from the same bytes.
        let status = unsafe {
            ffi::tj3Decompress8(
                self.handle,
                bytes.as_ptr(),
                bytes.len() as ffi::size_t,
                pixels.as_mut_ptr(),
                pitch,
                pixel_format as c_int,
            )
        };
        self.judge(status, bytes)
    }

    /// Pillow's verdict on a call's outcome: corrupt data is decoded as well as it can be, data that
    /// ends early is an error.
    fn judge(&self, status: c_int, bytes: &[u8]) -> Result<(), ImageError> {
        if status == 0 {
            return Ok(());
        }
        let message = self.message();
        // Only the first warning is kept, so that one about corrupt data may hide the early end.
        if message.starts_with("Premature end of JPEG file") || ends_early(bytes) {
            return Err(truncated());
        }
        // SAFETY: the handle is live until `drop`.
        let code = unsafe { ffi::tj3GetErrorCode(self.handle) };
        let warning = code == ffi::TJERR_TJERR_WARNING as c_int;
        if warning && TOLERATED.iter().any(|prefix| message.starts_with(prefix)) {
            return Ok(());
        }
        Err(damaged(&message))
    }

    fn message(&self) -> String {
        // SAFETY: the library returns a NUL-terminated string that stays valid until its next call
        // on this thread; it is copied before that.
        let message = unsafe {
            let message = ffi::tj3GetErrorStr(self.handle);
            if message.is_null() {
                return "no reason given".to_owned();
            }
            CStr::from_ptr(message).to_string_lossy().into_owned()
        };
        one_line(&message)
    }
}

impl Drop for Decompressor {
    fn drop(&mut self) {
        // SAFETY: the handle came from `tj3Init` and is not used again.
        unsafe { ffi::tj3Destroy(self.handle) }
    }
}

fn truncated() -> ImageError {
    ImageError::Truncated(Format::Jpeg)
}

fn damaged(reason: &str) -> ImageError {
    ImageError::Damaged { format: Format::Jpeg, reason: reason.to_owned() }
}

/// Whether the data stops before an end-of-image marker. Marker segments ahead of the first scan
/// are stepped over, since a thumbnail in one has end markers of its own; from there on the two
/// bytes occur nowhere else, however corrupt the rest.
fn ends_early(bytes: &[u8]) -> bool {
    const START_OF_SCAN: u8 = 0xDA;
    const END_OF_IMAGE: [u8; 2] = [0xFF, 0xD9];
    let mut position = 0;
    loop {
        // Up to the next marker: 0xFF and a code that is neither stuffing nor fill.
        let Some(offset) = bytes.get(position..).and_then(|rest| rest.iter().position(|&byte| byte == 0xFF))
        else {
            return true;
        };
        position += offset + 1;
        let Some(&code) = bytes.get(position) else { return true };
        match code {
            // A fill byte: the code follows it.
            0xFF => {}
            START_OF_SCAN => return !bytes[position..].windows(2).any(|pair| pair == END_OF_IMAGE),
            0xD9 => return false,
            // Stuffing, restart and start markers, and TEM stand alone.
            0x00 | 0x01 | 0xD0..=0xD8 => position += 1,
            _ => {
                let Some(&length) = bytes.get(position + 1..).and_then(|rest| rest.first_chunk::<2>()) else {
                    return true;
                };
                position += 1 + usize::from(u16::from_be_bytes(length)).max(2);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_is_found_behind_a_thumbnail() {
        let with_thumbnail =
            b"\xFF\xD8\xFF\xE1\x00\x06\xFF\xD8\xFF\xD9\xFF\xDA\x00\x02\x01\xFF\x00\xFF\xD0\x02";
        assert!(ends_early(with_thumbnail));
        let whole = [&with_thumbnail[..], b"\xFF\xFF\xD9trailing"].concat();
        assert!(!ends_early(&whole));
    }

    #[test]
    fn every_prefix_ends_early() {
        let whole = b"\xFF\xD8\xFF\xE0\x00\x04ab\xFF\xDA\x00\x02\x01\x02\xFF\xD9";
        for end in 0..whole.len() {
            assert!(ends_early(&whole[..end]), "{end}");
        }
        assert!(!ends_early(whole));
    }
}
