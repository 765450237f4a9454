//! Weights of one byte, for the linear maps that make up most of a model.
//!
//! Each row of a weight has one scale, so that its largest value is 127 (symmetric, per channel). What the
//! embeddings, the norms, the abstractor and the head compute stays in the model's own type.

use super::onednn::{self, QuantizedWeight};
use tch::{Device, Kind, TchError, Tensor};

/// The largest of the numbers that stand for weights and activations.
const LARGEST: f64 = 127.0;
/// Where zero is among the unsigned numbers of activations: oneDNN multiplies unsigned by signed bytes at
/// speed, and signed by signed ones in a plain loop.
const ZERO_POINT: i32 = 128;
/// Rows up to which reading a weight costs more than multiplying by it.
const FEW_ROWS: i64 = 8;

/// `weight`, `[outputs, inputs]`, as i8, and its scales `[outputs]` in `kind`, in which they are exact.
fn quantize(weight: &Tensor, kind: Kind) -> Result<(Tensor, Tensor), TchError> {
    let wide = weight.f_to_kind(Kind::Float)?;
    let largest = wide.f_abs()?.f_amax([1].as_slice(), false)?;
    // A row of zeros has any scale.
    let scales = largest.f_div_scalar(LARGEST)?.f_clamp_min(1e-30)?.f_to_kind(kind)?;
    let by_row = scales.f_to_kind(Kind::Float)?.f_unsqueeze(1)?;
    let bytes = wide.f_div(&by_row)?.f_round_()?.f_clamp_(-LARGEST, LARGEST)?.f_to_kind(Kind::Int8)?;
    Ok((bytes, scales))
}

/// Weights and activations in eight bits (W8A8). Activations have a scale a row, found as they come, so that
/// no image's answer depends on what else is in its batch. CPUs only.
pub struct W8a8 {
    packed: Tensor,
    scales: Tensor,
    zero_points: Tensor,
    one: Tensor,
    zero_point: Tensor,
    inputs: i64,
}

impl W8a8 {
    /// Quantises `weight`, `[outputs, inputs]`, of any type.
    ///
    /// # Errors
    /// Whatever torch reports, most likely for lack of memory or of oneDNN.
    pub fn new(weight: &Tensor) -> Result<Self, TchError> {
        let (outputs, inputs) = weight.size2()?;
        let (bytes, scales) = quantize(weight, Kind::Float)?;
        Ok(Self {
            packed: onednn::quantized_pack(&bytes)?,
            scales,
            zero_points: Tensor::f_zeros([outputs], (Kind::Int, Device::Cpu))?,
            one: Tensor::f_ones([1], (Kind::Float, Device::Cpu))?,
            zero_point: Tensor::f_from_slice(&[ZERO_POINT])?,
            inputs,
        })
    }

    /// `[.., inputs]` to `[.., outputs]`, in the input's type.
    pub fn forward(&self, input: &Tensor, bias: Option<&Tensor>) -> Result<Tensor, TchError> {
        let kind = input.kind();
        let rows = input.f_reshape([-1, self.inputs])?;
        // Two passes, which libtorch makes a vector at a time; `aminmax` makes one, a number at a time.
        let along_row = [1].as_slice();
        let (smallest, largest) = (rows.f_amin(along_row, true)?, rows.f_amax(along_row, true)?);
        // In the input's type, so that multiplying the product by it later converts nothing.
        let scale = largest.f_maximum(&smallest.f_neg()?)?.f_div_scalar(LARGEST)?.f_clamp_min(1e-30)?;
        let bytes = rows
            .f_to_dtype(Kind::Float, false, true)?
            .f_div_(&scale.f_to_kind(Kind::Float)?)?
            .f_round_()?
            .f_add_scalar_(f64::from(ZERO_POINT))?
            .f_to_kind(Kind::Uint8)?;
        let weight =
            QuantizedWeight { packed: &self.packed, scales: &self.scales, zero_points: &self.zero_points };
        let mut product = onednn::quantized_linear(&bytes, &self.one, &self.zero_point, &weight, kind)?;
        let output = match bias {
            Some(bias) => bias.f_addcmul(&product, &scale)?,
            None => product.f_mul_(&scale)?,
        };
        let mut size = input.size();
        size.pop();
        size.push(-1);
        output.f_view(size.as_slice())
    }
}

/// Weights alone in eight bits, for where memory is short: they are multiplied as if they were of the
/// model's own type, and scaled afterwards.
pub struct Int8 {
    bytes: Tensor,
    scales: Tensor,
}

impl Int8 {
    /// Quantises `weight`, `[outputs, inputs]`, of any type, to compute with it in `kind` on `device`.
    ///
    /// # Errors
    /// Whatever torch reports, most likely for lack of memory.
    pub fn new(weight: &Tensor, kind: Kind, device: Device) -> Result<Self, TchError> {
        let (bytes, scales) = quantize(weight, kind)?;
        Ok(Self { bytes: bytes.f_to_device(device)?, scales: scales.f_to_device(device)? })
    }

    /// `[.., inputs]` to `[.., outputs]`, in the input's type.
    pub fn forward(&self, input: &Tensor, bias: Option<&Tensor>) -> Result<Tensor, TchError> {
        let kind = input.kind();
        let (outputs, inputs) = self.bytes.size2()?;
        let rows = input.f_reshape([-1, inputs])?;
        let mut size = input.size();
        size.pop();
        size.push(outputs);
        let few = rows.size()[0] <= FEW_ROWS && kind == Kind::BFloat16 && input.device() == Device::Cpu;
        if few {
            let scaled = rows.f_internal_weight_int8pack_mm(&self.bytes, &self.scales)?;
            let scaled = scaled.f_view(size.as_slice())?;
            return bias.map_or(Ok(scaled.shallow_clone()), |bias| scaled.f_add(bias));
        }
        // Every byte is exact in every type, so that only the product is rounded.
        let mut product = rows.f_linear(&self.bytes.f_to_kind(kind)?, None::<&Tensor>)?;
        let output = match bias {
            Some(bias) => bias.f_addcmul(&product, &self.scales)?,
            None => product.f_mul_(&self.scales)?,
        };
        output.f_view(size.as_slice())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::synthetic::{distance, noise};

    /// Norm of the difference over the norm of `expected`.
    fn error(found: &Tensor, expected: &Tensor) -> f64 {
        assert_eq!(found.size(), expected.size());
        let norm = |tensor: Tensor| tensor.to_kind(Kind::Double).square().sum(Kind::Double).sqrt();
        let expected = expected.to_kind(Kind::Double);
        (norm(found.to_kind(Kind::Double) - &expected) / norm(expected)).double_value(&[])
    }

    #[test]
    fn products_are_near_those_of_the_weights() {
        let _no_grad = tch::no_grad_guard();
        for kind in [Kind::Float, Kind::BFloat16] {
            let weight = noise(&[24, 96], 1);
            let bias = noise(&[24], 2).to_kind(kind);
            for (rows, bias) in [(1, None), (3, Some(&bias)), (40, None), (40, Some(&bias))] {
                let input = noise(&[2, rows, 96], 3).to_kind(kind);
                let plain = input.linear(&weight.to_kind(kind), bias);
                let w8a8 = W8a8::new(&weight).unwrap().forward(&input, bias).unwrap();
                let int8 = Int8::new(&weight, kind, Device::Cpu).unwrap().forward(&input, bias).unwrap();
                for (name, found) in [("w8a8", w8a8), ("int8", int8)] {
                    assert_eq!(found.kind(), kind, "{name}");
                    assert!(
                        error(&found, &plain) < 0.02,
                        "{name} {kind:?} {rows}: {}",
                        error(&found, &plain)
                    );
                }
            }
        }
    }

    #[test]
    fn a_row_s_product_depends_on_no_other_row() {
        let _no_grad = tch::no_grad_guard();
        let map = W8a8::new(&noise(&[24, 96], 1)).unwrap();
        let input = noise(&[5, 96], 3);
        let with_a_large_one = Tensor::cat(&[&input, &(noise(&[1, 96], 4) * 1e4)], 0);
        let alone = map.forward(&input, None).unwrap();
        let together = map.forward(&with_a_large_one, None).unwrap().narrow(0, 0, 5);
        assert_eq!(distance(&alone, &together), 0.0);
    }

    #[test]
    fn zeros_stay_zeros_and_what_is_not_finite_stays_so() {
        let _no_grad = tch::no_grad_guard();
        let weight = Tensor::cat(&[noise(&[3, 8], 1), Tensor::zeros([1, 8], (Kind::Float, Device::Cpu))], 0);
        let map = W8a8::new(&weight).unwrap();
        let rows = Tensor::from_slice(&[0.0_f32, 0.0, f32::NAN, f32::INFINITY]).view([2, 2]);
        let input = Tensor::cat(&[rows, Tensor::zeros([2, 6], (Kind::Float, Device::Cpu))], 1);
        let output = map.forward(&input, None).unwrap();
        assert_eq!(output.get(0).abs().max().double_value(&[]), 0.0);
        assert!(!output.get(1).get(0).double_value(&[]).is_finite());
    }
}
