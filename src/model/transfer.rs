//! Numbers on their way between the processor and the model's device.
//!
//! A device works through its queue while the processor prepares what follows, until someone asks
//! for a result. So what decoding asks for goes through one function, which counts.

use std::cell::Cell;
use tch::{Device, Kind, TchError, Tensor};

thread_local! {
    static READ_BACKS: Cell<u64> = const { Cell::new(0) };
}

/// Waits for the device and brings a tensor's numbers over, row by row. Every token id, and every
/// number of a type that models compute in, is exact in f64.
pub fn read_back(tensor: &Tensor) -> Result<Vec<f64>, TchError> {
    READ_BACKS.with(|count| count.set(count.get() + 1));
    let here = tensor.f_to_kind(Kind::Double)?.f_to_device(Device::Cpu)?;
    Vec::try_from(here.f_contiguous()?.f_view([-1])?)
}

/// How often this thread has waited in [`read_back`].
pub fn read_backs() -> u64 {
    READ_BACKS.with(Cell::get)
}

/// Sends numbers to the device without waiting for what it has yet to do.
pub fn upload(values: &[i64], device: Device) -> Result<Tensor, TchError> {
    let here = Tensor::f_from_slice(values)?;
    match device {
        Device::Cpu => Ok(here),
        device => here.f_to_device_(device, Kind::Int64, true, false),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{
        ffi::OsStr,
        fs,
        path::{Path, PathBuf},
    };

    #[test]
    fn numbers_come_back_as_they_are_and_are_counted() {
        let before = read_backs();
        let ids = upload(&[0, -200, 32_010, (1 << 53) - 1], Device::Cpu).unwrap();
        assert_eq!(read_back(&ids).unwrap(), [0.0, -200.0, 32_010.0, 9_007_199_254_740_991.0]);
        let turned = Tensor::from_slice(&[1.5_f32, -0.25, 3.0, 4.0]).view([2, 2]).tr();
        assert_eq!(read_back(&turned.to_kind(Kind::BFloat16)).unwrap(), [1.5, 3.0, -0.25, 4.0]);
        assert_eq!(read_backs() - before, 2);
    }

    /// Whatever a pass goes through waits for the device in [`read_back`] or not at all.
    #[test]
    fn nothing_else_in_a_pass_waits_for_the_device() {
        let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/model");
        let mut files: Vec<PathBuf> = ["attention.rs", "kv_cache.rs", "layers.rs", "rope.rs", "scorer.rs"]
            .map(|name| model.join(name))
            .into();
        for folder in ["decode", "mplug_owl2"] {
            files.extend(fs::read_dir(model.join(folder)).unwrap().map(|entry| entry.unwrap().path()));
        }
        let tests: &OsStr = "tests.rs".as_ref();
        files.retain(|path| path.file_name() != Some(tests));
        assert!(files.len() > 12, "{files:?}");
        for path in files {
            let text = fs::read_to_string(&path).unwrap();
            let code = text.split("#[cfg(test)]").next().unwrap_or_default();
            // Each of these turns a tensor into numbers of the processor's.
            for waiting in [
                "_value(",
                "copy_data",
                "Vec::try_from",
                "Vec::<",
                "f64::try_from",
                "to_device(Device::Cpu",
                "to_device(tch::Device::Cpu",
                "is_nonzero",
            ] {
                assert!(!code.contains(waiting), "{}: `{waiting}` in a pass", path.display());
            }
        }
    }
}
