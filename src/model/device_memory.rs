//! The memory of GPUs, which tch does not tell about (`device_memory.cpp`).

use std::{
    ffi::{CStr, c_char, c_int},
    ptr,
};
use tch::{Device, TchError};

unsafe extern "C" {
    fn roc4mllm_free(error: *mut c_char);
    fn roc4mllm_device_memory(index: i8, free: *mut u64, total: *mut u64, error: *mut *mut c_char) -> c_int;
    fn roc4mllm_device_peak(index: i8, peak: *mut u64, error: *mut *mut c_char) -> c_int;
    fn roc4mllm_forget_device_peak(index: i8, error: *mut *mut c_char) -> c_int;
}

/// Bytes of a GPU's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceMemory {
    /// That this process can still take, what its allocator keeps for later tensors included.
    pub free: u64,
    pub total: u64,
}

/// The memory of a GPU; nothing for a CPU.
///
/// # Errors
/// Whatever torch or CUDA reports.
pub fn device_memory(device: Device) -> Result<Option<DeviceMemory>, TchError> {
    let Some(index) = index(device) else { return Ok(None) };
    let (mut free, mut total) = (0, 0);
    // SAFETY: both places outlive the call, which writes to nothing else.
    checked(|error| unsafe { roc4mllm_device_memory(index, &mut free, &mut total, error) })?;
    Ok(Some(DeviceMemory { free, total }))
}

/// The most bytes that this process's tensors took on a GPU at once since [`forget_device_peak`], or ever;
/// nothing for a CPU.
///
/// # Errors
/// Whatever torch reports; where no tensor was there yet among other things.
pub fn device_peak(device: Device) -> Result<Option<u64>, TchError> {
    let Some(index) = index(device) else { return Ok(None) };
    let mut peak = 0;
    // SAFETY: as in `device_memory`.
    checked(|error| unsafe { roc4mllm_device_peak(index, &mut peak, error) })?;
    Ok(Some(peak))
}

/// Begins [`device_peak`] anew.
///
/// # Errors
/// As there.
pub fn forget_device_peak(device: Device) -> Result<(), TchError> {
    // SAFETY: the call takes no memory of this side's but the error's place.
    index(device)
        .map_or(Ok(()), |index| checked(|error| unsafe { roc4mllm_forget_device_peak(index, error) }))
}

fn index(device: Device) -> Option<i8> {
    match device {
        Device::Cuda(index) => i8::try_from(index).ok(),
        _ => None,
    }
}

fn checked(call: impl FnOnce(*mut *mut c_char) -> c_int) -> Result<(), TchError> {
    let mut error = ptr::null_mut();
    if call(&mut error) == 0 {
        return Ok(());
    }
    if error.is_null() {
        return Err(TchError::Torch("not enough memory for an error's message".into()));
    }
    // SAFETY: the call made this text, which ends with a zero byte, for its caller to free.
    let message = unsafe {
        let message = CStr::from_ptr(error).to_string_lossy().into_owned();
        roc4mllm_free(error);
        message
    };
    Err(TchError::Torch(message))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cpu_has_no_memory_of_its_own() {
        assert_eq!(device_memory(Device::Cpu).unwrap(), None);
        assert_eq!(device_peak(Device::Cpu).unwrap(), None);
        forget_device_peak(Device::Cpu).unwrap();
    }

    #[test]
    fn a_gpu_that_is_not_there_is_an_error_on_one_line() {
        let absent = Device::Cuda(100);
        for error in [device_memory(absent).unwrap_err(), device_peak(absent).unwrap_err()] {
            let message = error.to_string();
            assert!(!message.is_empty() && !message.contains("frame #"), "{message}");
        }
    }
}
