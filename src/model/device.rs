//! Where tensors live and in which type they are computed with.

use super::{error::ModelError, gpu};
use serde::{Deserialize, Serialize};
use std::{fmt, str::FromStr};

/// The machine part that computes. Written `cpu`, `cuda` (the first GPU) or `cuda:N`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Device {
    #[default]
    Cpu,
    Cuda(usize),
}

impl Device {
    /// The torch device, once it is known to be usable.
    ///
    /// # Errors
    /// [`ModelError::Device`] when CUDA is asked for and missing: there is no silent fallback,
    /// since a worker that quietly runs on its CPU is a worse fault than one that doesn't start.
    pub fn open(self) -> Result<tch::Device, ModelError> {
        let Self::Cuda(index) = self else {
            return Ok(tch::Device::Cpu);
        };
        let unusable =
            |reason: String| ModelError::Device { device: self, reason, remedy: "or use the device `cpu`" };
        // A build without CUDA has no part that could look for a GPU.
        if !tch::utils::has_cudart() {
            return Err(unusable(
                "this program is built against a libtorch for CPUs alone; lay out the CUDA one with \
                 `make libtorch CUDA=1` and build again,"
                    .into(),
            ));
        }
        let count = usize::try_from(tch::Cuda::device_count()).unwrap_or(0);
        if index >= count {
            let seen = match count {
                0 => "this program is built for CUDA, but no GPU is visible, or its NVIDIA driver is missing"
                    .to_owned(),
                1 => "only cuda:0 is visible".to_owned(),
                count => format!("only cuda:0 to cuda:{} are visible", count - 1),
            };
            return Err(unusable(format!("{seen}; check `nvidia-smi` and CUDA_VISIBLE_DEVICES,")));
        }
        gpu::use_attention_without_plans();
        Ok(tch::Device::Cuda(index))
    }
}

impl fmt::Display for Device {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cpu => formatter.write_str("cpu"),
            Self::Cuda(index) => write!(formatter, "cuda:{index}"),
        }
    }
}

/// A setting of the `model` section that names nothing known.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{what} `{given}` is unknown; use {expected}")]
pub struct UnknownChoice {
    what: &'static str,
    given: String,
    expected: &'static str,
}

impl FromStr for Device {
    type Err = UnknownChoice;

    fn from_str(text: &str) -> Result<Self, UnknownChoice> {
        let unknown =
            || UnknownChoice { what: "device", given: text.into(), expected: "`cpu`, `cuda` or `cuda:N`" };
        match text {
            "cpu" => Ok(Self::Cpu),
            "cuda" => Ok(Self::Cuda(0)),
            _ => {
                let index = text.strip_prefix("cuda:").ok_or_else(unknown)?;
                // `parse` alone would also take `+1`.
                if !index.bytes().all(|byte| byte.is_ascii_digit()) {
                    return Err(unknown());
                }
                index.parse().map(Self::Cuda).map_err(|_| unknown())
            }
        }
    }
}

/// Whether this processor multiplies bfloat16 itself; else libtorch converts every operand.
pub fn has_bf16_instructions() -> bool {
    #[cfg(target_arch = "x86_64")]
    return std::arch::is_x86_feature_detected!("avx512bf16");
    #[cfg(not(target_arch = "x86_64"))]
    true
}

/// Whether this processor multiplies bytes itself; else eight bits are no faster than more of them.
pub fn has_byte_instructions() -> bool {
    #[cfg(target_arch = "x86_64")]
    return std::arch::is_x86_feature_detected!("avx512vnni")
        || std::arch::is_x86_feature_detected!("avxvnni");
    #[cfg(not(target_arch = "x86_64"))]
    true
}

/// Sets the CPU threads of one tensor operation, for the whole process; 0 takes every core that it
/// may use.
pub fn use_threads(threads: usize) {
    let threads = match threads {
        0 => std::thread::available_parallelism().map_or(1, usize::from),
        threads => threads,
    };
    tch::set_num_threads(i32::try_from(threads).unwrap_or(i32::MAX));
}

/// The element type that the model computes in. Written `auto`, `f32`, `bf16` or `f16`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Dtype {
    /// The stored type, but bf16 for f16 on a CPU, which has no fast f16 arithmetic.
    #[default]
    Auto,
    F32,
    Bf16,
    F16,
}

impl Dtype {
    /// The type to compute in, given the type that the checkpoint's weights have.
    pub fn resolve(self, stored: tch::Kind, device: tch::Device) -> tch::Kind {
        match self {
            Self::Auto if stored == tch::Kind::Half && device == tch::Device::Cpu => tch::Kind::BFloat16,
            Self::Auto => stored,
            Self::F32 => tch::Kind::Float,
            Self::Bf16 => tch::Kind::BFloat16,
            Self::F16 => tch::Kind::Half,
        }
    }
}

/// In how many bits the largest weights are held and computed with. Written `none`, `w8a8` or `int8`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Quantize {
    /// In those of the type computed in.
    #[default]
    None,
    /// Weights and activations in eight bits: faster than bf16 on CPUs that multiply bytes, and less exact.
    W8a8,
    /// Weights alone in eight bits: half of bf16's memory, and slower.
    Int8,
}

impl fmt::Display for Quantize {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::None => "none",
            Self::W8a8 => "w8a8",
            Self::Int8 => "int8",
        })
    }
}

impl FromStr for Quantize {
    type Err = UnknownChoice;

    fn from_str(text: &str) -> Result<Self, UnknownChoice> {
        match text {
            "none" => Ok(Self::None),
            "w8a8" => Ok(Self::W8a8),
            "int8" => Ok(Self::Int8),
            _ => Err(UnknownChoice {
                what: "quantization",
                given: text.into(),
                expected: "`none`, `w8a8` or `int8`",
            }),
        }
    }
}

impl fmt::Display for Dtype {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Auto => "auto",
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
            Self::F16 => "f16",
        })
    }
}

impl FromStr for Dtype {
    type Err = UnknownChoice;

    fn from_str(text: &str) -> Result<Self, UnknownChoice> {
        match text {
            "auto" => Ok(Self::Auto),
            "f32" => Ok(Self::F32),
            "bf16" => Ok(Self::Bf16),
            "f16" => Ok(Self::F16),
            _ => Err(UnknownChoice {
                what: "dtype",
                given: text.into(),
                expected: "`auto`, `f32`, `bf16` or `f16`",
            }),
        }
    }
}

macro_rules! written_as_text {
    ($type:ty) => {
        impl TryFrom<String> for $type {
            type Error = UnknownChoice;

            fn try_from(text: String) -> Result<Self, UnknownChoice> {
                text.parse()
            }
        }

        impl From<$type> for String {
            fn from(value: $type) -> Self {
                value.to_string()
            }
        }
    };
}
written_as_text!(Device);
written_as_text!(Dtype);
written_as_text!(Quantize);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_read_as_they_are_written() {
        for (text, device) in
            [("cpu", Device::Cpu), ("cuda:0", Device::Cuda(0)), ("cuda:13", Device::Cuda(13))]
        {
            assert_eq!(text.parse::<Device>().unwrap(), device);
            assert_eq!(device.to_string(), text);
        }
        assert_eq!("cuda".parse::<Device>().unwrap(), Device::Cuda(0));
        for text in ["", "gpu", "cuda:", "cuda:-1", "cuda:+1", "cuda:x", "CPU"] {
            let message = text.parse::<Device>().unwrap_err().to_string();
            assert!(message.contains(&format!("`{text}`")) && message.contains("cuda:N"), "{message}");
        }
    }

    #[test]
    fn auto_keeps_the_stored_type_but_for_f16_on_a_cpu() {
        use tch::Kind;
        let (cpu, gpu) = (tch::Device::Cpu, tch::Device::Cuda(0));
        assert_eq!(Dtype::Auto.resolve(Kind::Float, cpu), Kind::Float);
        assert_eq!(Dtype::Auto.resolve(Kind::BFloat16, cpu), Kind::BFloat16);
        assert_eq!(Dtype::Auto.resolve(Kind::Half, cpu), Kind::BFloat16);
        assert_eq!(Dtype::Auto.resolve(Kind::Half, gpu), Kind::Half);
        assert_eq!(Dtype::F16.resolve(Kind::Float, cpu), Kind::Half);
    }

    #[test]
    fn a_missing_gpu_is_an_error_that_says_why() {
        let message = Device::Cuda(4096).open().unwrap_err().to_string();
        let reason = match tch::utils::has_cudart() {
            true => "nvidia-smi",
            false => "make libtorch CUDA=1",
        };
        assert!(message.contains("cuda:4096") && message.contains(reason), "{message}");
        assert!(message.contains("`cpu`"), "{message}");
    }
}
