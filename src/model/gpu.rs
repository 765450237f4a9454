//! What tch has no names for on GPUs (`gpu.cpp`).

use std::{
    ffi::{CStr, c_char, c_int},
    ptr,
};
use tch::{Device, TchError, Tensor};
use torch_sys::C_tensor;

unsafe extern "C" {
    fn roc4mllm_free(error: *mut c_char);
    fn roc4mllm_gpu_memory(index: i8, free: *mut u64, total: *mut u64, error: *mut *mut c_char) -> c_int;
    fn roc4mllm_gpu_peak(index: i8, peak: *mut u64, error: *mut *mut c_char) -> c_int;
    fn roc4mllm_gpu_forget_peak(index: i8, error: *mut *mut c_char) -> c_int;
    fn roc4mllm_gpu_pin(tensor: *const C_tensor, error: *mut *mut c_char) -> *mut C_tensor;
    safe fn roc4mllm_gpu_use_cudnn_attention(used: bool);
    #[cfg(test)]
    safe fn roc4mllm_gpu_uses_cudnn_attention() -> bool;
}

/// Bytes of a GPU's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GpuMemory {
    /// That this process can still take, what its allocator keeps for later tensors included.
    pub free: u64,
    pub total: u64,
}

/// The memory of a GPU; nothing for a CPU.
///
/// # Errors
/// Whatever torch or CUDA reports.
pub fn memory(device: Device) -> Result<Option<GpuMemory>, TchError> {
    let Some(index) = index(device) else { return Ok(None) };
    let (mut free, mut total) = (0, 0);
    // SAFETY: both places outlive the call, which writes to nothing else but the error's.
    checked(|error| unsafe { roc4mllm_gpu_memory(index, &mut free, &mut total, error) })?;
    Ok(Some(GpuMemory { free, total }))
}

/// The most bytes that this process's tensors took on a GPU at once since [`forget_peak`], or ever; nothing
/// for a CPU.
///
/// # Errors
/// Whatever torch reports; where no tensor was there yet among other things.
pub fn peak(device: Device) -> Result<Option<u64>, TchError> {
    let Some(index) = index(device) else { return Ok(None) };
    let mut peak = 0;
    // SAFETY: as in `memory`.
    checked(|error| unsafe { roc4mllm_gpu_peak(index, &mut peak, error) })?;
    Ok(Some(peak))
}

/// Begins [`peak`] anew.
///
/// # Errors
/// As there.
pub fn forget_peak(device: Device) -> Result<(), TchError> {
    let Some(index) = index(device) else { return Ok(()) };
    // SAFETY: the call writes to nothing but the error's place.
    checked(|error| unsafe { roc4mllm_gpu_forget_peak(index, error) })
}

/// A copy of a CPU's tensor in memory whose pages are locked, so that a GPU reads it without the host's help.
///
/// # Errors
/// Whatever torch or CUDA reports, most likely that there is no GPU, or no more memory to be locked.
pub fn pin(tensor: &Tensor) -> Result<Tensor, TchError> {
    let mut pinned = ptr::null_mut();
    checked(|error| {
        // SAFETY: the pointer is a tensor's, borrowed for longer than the call, which only reads it.
        pinned = unsafe { roc4mllm_gpu_pin(tensor.as_ptr(), error) };
        c_int::from(pinned.is_null())
    })?;
    // SAFETY: the call made this tensor for its caller, who is the only one to know it.
    Ok(unsafe { Tensor::from_ptr(pinned) })
}

/// Leaves attention to the kernels that serve every shape alike, for the whole process.
///
/// On Hopper and Blackwell libtorch would take cuDNN's first. cuDNN makes a plan for each combination of batch,
/// queries and keys when it first comes, which takes tens of milliseconds, and libtorch keeps all of them for
/// good. Where batches differ in size and every decoding step sees one key more, new shapes never end.
pub fn use_attention_without_plans() {
    roc4mllm_gpu_use_cudnn_attention(false);
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
        assert_eq!(memory(Device::Cpu).unwrap(), None);
        assert_eq!(peak(Device::Cpu).unwrap(), None);
        forget_peak(Device::Cpu).unwrap();
    }

    #[test]
    fn a_gpu_that_is_not_there_is_an_error_on_one_line() {
        let absent = Device::Cuda(100);
        for error in
            [memory(absent).unwrap_err(), peak(absent).unwrap_err(), forget_peak(absent).unwrap_err()]
        {
            let message = error.to_string();
            assert!(!message.is_empty() && !message.contains("frame #"), "{message}");
        }
    }

    #[test]
    fn memory_is_locked_or_the_reason_why_not_is_told() {
        let values = Tensor::from_slice(&[1.0_f32, 2.0]);
        match (pin(&values), tch::Cuda::is_available()) {
            (Ok(pinned), _) => assert!(pinned.equal(&values)),
            (Err(error), available) => {
                let message = error.to_string();
                assert!(!available && !message.is_empty() && !message.contains("frame #"), "{message}");
            }
        }
    }

    #[test]
    fn attention_makes_no_plans() {
        use_attention_without_plans();
        assert!(!roc4mllm_gpu_uses_cudnn_attention());
    }
}
