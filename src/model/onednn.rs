//! oneDNN's linear maps over packed and over quantised weights, which tch has no names for.
//!
//! They are libtorch's own operators, reached through its dispatcher (`onednn.cpp`). They run on CPUs and
//! have no gradients. A libtorch without oneDNN lacks them, and every call then says so.

use std::{
    ffi::{CStr, c_char},
    ptr,
};
use tch::{Kind, TchError, Tensor};
use torch_sys::C_tensor;

unsafe extern "C" {
    fn roc4mllm_free(error: *mut c_char);
    fn roc4mllm_pack(weight: *const C_tensor, rows: i64, error: *mut *mut c_char) -> *mut C_tensor;
    fn roc4mllm_linear(
        input: *const C_tensor,
        weight: *const C_tensor,
        bias: *const C_tensor,
        error: *mut *mut c_char,
    ) -> *mut C_tensor;
    fn roc4mllm_quantized_pack(weight: *const C_tensor, error: *mut *mut c_char) -> *mut C_tensor;
    fn roc4mllm_quantized_linear(
        input: *const C_tensor,
        scale: *const C_tensor,
        zero_point: *const C_tensor,
        weight: *const C_tensor,
        weight_scales: *const C_tensor,
        weight_zero_points: *const C_tensor,
        kind: i64,
        error: *mut *mut c_char,
    ) -> *mut C_tensor;
}

/// Takes what a call gave.
fn taken(call: impl FnOnce(*mut *mut c_char) -> *mut C_tensor) -> Result<Tensor, TchError> {
    let mut error = ptr::null_mut();
    let tensor = call(&mut error);
    if !tensor.is_null() {
        // SAFETY: the call made this tensor for its caller, who is the only one to know it.
        return Ok(unsafe { Tensor::from_ptr(tensor) });
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

/// Copies a weight `[outputs, inputs]` into the layout in which oneDNN multiplies `rows` rows by it; other
/// numbers of rows give the same results, perhaps slower. Only [`linear`] can read it.
///
/// # Errors
/// For types other than f32 and bf16, and where oneDNN or memory is missing.
pub fn pack(weight: &Tensor, rows: i64) -> Result<Tensor, TchError> {
    // SAFETY: the pointer is a tensor's, borrowed for longer than the call, which only reads it.
    taken(|error| unsafe { roc4mllm_pack(weight.as_ptr(), rows, error) })
}

/// `input W^T + bias`, `[.., inputs]` to `[.., outputs]`, in the input's type, with a weight of [`pack`].
///
/// # Errors
/// Whatever torch reports.
pub fn linear(input: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<Tensor, TchError> {
    let bias = bias.map_or(ptr::null(), Tensor::as_ptr);
    // SAFETY: the pointers are tensors' or null, which the call allows for a bias; all are borrowed for
    // longer than the call, which only reads them.
    taken(|error| unsafe { roc4mllm_linear(input.as_ptr(), weight.as_ptr(), bias, error) })
}

/// Copies an i8 weight `[outputs, inputs]` into the layout that [`quantized_linear`] reads.
///
/// # Errors
/// Where oneDNN or memory is missing.
pub fn quantized_pack(weight: &Tensor) -> Result<Tensor, TchError> {
    // SAFETY: as in `pack`.
    taken(|error| unsafe { roc4mllm_quantized_pack(weight.as_ptr(), error) })
}

/// An i8 weight and what its numbers are worth.
pub struct QuantizedWeight<'a> {
    /// Of [`quantized_pack`].
    pub packed: &'a Tensor,
    /// f32 `[outputs]`.
    pub scales: &'a Tensor,
    /// i32 `[outputs]`, zeros.
    pub zero_points: &'a Tensor,
}

/// `scale * (input - zero_point) W^T` of a u8 `input`, `[rows, inputs]`, as `[rows, outputs]` of `kind`, f32
/// or bf16; `scale` is f32 `[1]`, `zero_point` i32 `[1]`.
///
/// # Errors
/// Whatever torch reports.
pub fn quantized_linear(
    input: &Tensor,
    scale: &Tensor,
    zero_point: &Tensor,
    weight: &QuantizedWeight<'_>,
    kind: Kind,
) -> Result<Tensor, TchError> {
    // c10::ScalarType numbers them.
    let kind = match kind {
        Kind::Float => 6,
        Kind::BFloat16 => 15,
        other => return Err(TchError::Kind(format!("no quantised linear map gives {other:?}"))),
    };
    // SAFETY: as in `pack`.
    taken(|error| unsafe {
        roc4mllm_quantized_linear(
            input.as_ptr(),
            scale.as_ptr(),
            zero_point.as_ptr(),
            weight.packed.as_ptr(),
            weight.scales.as_ptr(),
            weight.zero_points.as_ptr(),
            kind,
            error,
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::synthetic::{distance, noise};

    #[test]
    fn a_packed_weight_gives_what_the_plain_one_gives() {
        let _no_grad = tch::no_grad_guard();
        for (kind, tolerance) in [(Kind::Float, 1e-5), (Kind::BFloat16, 2e-2)] {
            let weight = noise(&[24, 40], 1).to_kind(kind);
            let bias = noise(&[24], 2).to_kind(kind);
            let packed = pack(&weight, 7).unwrap();
            for rows in [1, 7, 30] {
                let input = noise(&[2, rows, 40], 3).to_kind(kind);
                for bias in [None, Some(&bias)] {
                    let found = linear(&input, &packed, bias).unwrap();
                    assert_eq!(found.kind(), kind);
                    assert!(distance(&found, &input.linear(&weight, bias)) < tolerance, "{kind:?} {rows}");
                }
            }
        }
    }

    #[test]
    fn quantised_products_are_exact() {
        let _no_grad = tch::no_grad_guard();
        let weight = (noise(&[24, 40], 1) * 200.0).round().to_kind(Kind::Int8);
        let input = (noise(&[5, 40], 2) * 200.0 + 128.0).round().to_kind(Kind::Uint8);
        let scales = noise(&[24], 3).abs();
        let found = quantized_linear(
            &input,
            &Tensor::from_slice(&[0.5_f32]),
            &Tensor::from_slice(&[128_i32]),
            &QuantizedWeight {
                packed: &quantized_pack(&weight).unwrap(),
                scales: &scales,
                zero_points: &Tensor::zeros([24], (Kind::Int, tch::Device::Cpu)),
            },
            Kind::Float,
        );
        let whole = (input.to_kind(Kind::Double) - 128.0).matmul(&weight.to_kind(Kind::Double).tr());
        let expected = whole * scales.to_kind(Kind::Double) * 0.5;
        assert!(distance(&found.unwrap().to_kind(Kind::Double), &expected) < 1e-2);
    }

    #[test]
    fn what_cannot_be_done_is_an_error_on_one_line() {
        let error = linear(&noise(&[2, 3], 1), &noise(&[4, 5], 2), None).unwrap_err().to_string();
        assert!(
            !error.lines().next().unwrap_or_default().is_empty() && !error.contains("frame #"),
            "{error}"
        );
        assert!(pack(&noise(&[2, 3], 1).to_kind(Kind::Int64), 1).is_err());
    }
}
