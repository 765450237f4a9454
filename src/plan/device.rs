//! What a device can do, as its vendor's data sheet states it.

use clap::ValueEnum;
use serde::Serialize;
use std::fmt;

/// A device's memory and speed.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct DeviceFigures {
    pub name: String,
    /// Bytes.
    pub memory: u64,
    /// Bytes a second.
    pub bandwidth: f64,
    /// Floating-point operations a second of dense matrix multiplication in the type computed in.
    pub flops: f64,
}

/// GPUs whose figures are known. Each is the data sheet's memory, memory bandwidth and dense 16-bit
/// tensor-core rate with f32 sums; where a sheet states the rate with sparsity alone, it is half of that.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum KnownGpu {
    /// 16 GB, 300 GB/s, 65 TFLOP/s (f16 alone: it has no bf16)
    T4,
    /// 24 GB, 600 GB/s, 125 TFLOP/s
    A10,
    /// 24 GB, 300 GB/s, 121 TFLOP/s
    L4,
    /// 48 GB, 864 GB/s, 362 TFLOP/s
    L40s,
    /// 24 GB, 1008 GB/s, 165 TFLOP/s (GeForce RTX 4090)
    Rtx4090,
    /// 40 GB, 1555 GB/s, 312 TFLOP/s (SXM4)
    #[value(name = "a100-40gb")]
    A100Of40Gb,
    /// 80 GB, 2039 GB/s, 312 TFLOP/s (SXM4)
    #[value(name = "a100-80gb")]
    A100Of80Gb,
    /// 80 GB, 2000 GB/s, 756 TFLOP/s (PCIe)
    H100Pcie,
    /// 80 GB, 3350 GB/s, 989 TFLOP/s (SXM5)
    H100,
    /// 141 GB, 4800 GB/s, 989 TFLOP/s (SXM5)
    H200,
}

impl KnownGpu {
    pub fn figures(self) -> DeviceFigures {
        let (name, gigabytes, gigabytes_per_second, teraflops) = match self {
            Self::T4 => ("NVIDIA T4", 16, 300, 65),
            Self::A10 => ("NVIDIA A10", 24, 600, 125),
            Self::L4 => ("NVIDIA L4", 24, 300, 121),
            Self::L40s => ("NVIDIA L40S", 48, 864, 362),
            Self::Rtx4090 => ("NVIDIA GeForce RTX 4090", 24, 1008, 165),
            Self::A100Of40Gb => ("NVIDIA A100 40GB SXM4", 40, 1555, 312),
            Self::A100Of80Gb => ("NVIDIA A100 80GB SXM4", 80, 2039, 312),
            Self::H100Pcie => ("NVIDIA H100 PCIe", 80, 2000, 756),
            Self::H100 => ("NVIDIA H100 SXM5", 80, 3350, 989),
            Self::H200 => ("NVIDIA H200 SXM5", 141, 4800, 989),
        };
        DeviceFigures {
            name: name.to_owned(),
            memory: gigabytes * 1_000_000_000,
            bandwidth: f64::from(gigabytes_per_second) * 1e9,
            flops: f64::from(teraflops) * 1e12,
        }
    }
}

impl fmt::Display for DeviceFigures {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            formatter,
            "{}: {:.0} GB, {:.0} GB/s, {} TFLOP/s",
            self.name,
            self.memory as f64 / 1e9,
            self.bandwidth / 1e9,
            Significant(self.flops / 1e12)
        )
    }
}

/// A number with three significant digits.
pub(super) struct Significant(pub f64);

impl fmt::Display for Significant {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let digits = if self.0 > 0.0 { (2.0 - self.0.log10().floor()).clamp(0.0, 12.0) } else { 0.0 };
        write!(formatter, "{:.*}", digits as usize, self.0)
    }
}

/// Reads a quantity such as `80GB`, `79.2GiB`, `3.35TB/s`, `989TFLOP/s` or `1e12`: a number, a prefix
/// (decimal, or binary with `i`), and a unit, which must be one of `units` where it is given.
pub fn parse_quantity(text: &str, units: &[&str]) -> Result<f64, String> {
    let wrong = || format!("write it as a number and a unit, such as 80G{}", units.first().unwrap_or(&""));
    let text = text.trim();
    // The longest beginning that is a number: `e` belongs to it only before an exponent.
    let end = (1..=text.len())
        .rev()
        .find(|&end| text.is_char_boundary(end) && text[..end].parse::<f64>().is_ok())
        .ok_or_else(wrong)?;
    let number: f64 = text[..end].parse().map_err(|_| wrong())?;
    let rest = text[end..].trim_start();
    let is_unit = |text: &str| text.is_empty() || units.iter().any(|unit| unit.eq_ignore_ascii_case(text));
    let factor = if is_unit(rest) {
        1.0
    } else {
        let mut letters = rest.chars();
        let power = match letters.next().map(|letter| letter.to_ascii_uppercase()) {
            Some('K') => 1,
            Some('M') => 2,
            Some('G') => 3,
            Some('T') => 4,
            Some('P') => 5,
            _ => return Err(wrong()),
        };
        let unit = letters.as_str();
        match unit.strip_prefix('i') {
            Some(unit) if is_unit(unit) => 1024_f64.powi(power),
            None if is_unit(unit) => 1000_f64.powi(power),
            _ => return Err(wrong()),
        }
    };
    let value = number * factor;
    if value.is_finite() && value > 0.0 { Ok(value) } else { Err("must be above 0 and finite".to_owned()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities_have_decimal_and_binary_prefixes() {
        for (text, value) in [
            ("80GB", 80e9),
            ("80 GiB", 80.0 * 1_073_741_824.0),
            ("1.5T", 1.5e12),
            ("2e9", 2e9),
            ("512", 512.0),
            ("7kib", 7.0 * 1024.0),
        ] {
            assert_eq!(parse_quantity(text, &["B"]).unwrap(), value, "{text}");
        }
        assert_eq!(parse_quantity("3.35TB/s", &["B/s"]).unwrap(), 3.35e12);
        assert_eq!(parse_quantity("989 TFLOP/s", &["FLOP/s", "FLOPS"]).unwrap(), 989e12);
        assert_eq!(parse_quantity("989tflops", &["FLOP/s", "FLOPS"]).unwrap(), 989e12);
        for text in ["", "GB", "80GB/s", "80X", "-1GB", "0", "inf", "nan", "80Gö"] {
            assert!(parse_quantity(text, &["B"]).is_err(), "{text}");
        }
    }

    #[test]
    fn figures_are_shown_in_the_units_of_data_sheets() {
        assert_eq!(KnownGpu::L4.figures().to_string(), "NVIDIA L4: 24 GB, 300 GB/s, 121 TFLOP/s");
        assert_eq!(Significant(0.3661).to_string(), "0.366");
        assert_eq!(Significant(1234.5).to_string(), "1234");
        assert_eq!(Significant(0.0).to_string(), "0");
    }
}
