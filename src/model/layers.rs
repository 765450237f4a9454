//! The few layers that every network here is made of.

use super::{
    onednn,
    quantize::{Int8, W8a8},
};
use tch::{Device, Kind, TchError, Tensor};

/// `x W^T + b`.
pub struct Linear {
    /// `[outputs, inputs]`. Where `kernel` holds a copy, this one is as it was stored and is not computed with.
    pub weight: Tensor,
    /// `[outputs]`.
    pub bias: Option<Tensor>,
    /// What training adds to a weight that it leaves alone.
    pub adapter: Option<LowRank>,
    pub kernel: Kernel,
}

/// How a linear map multiplies.
pub enum Kernel {
    /// With the weight itself, as training must.
    Plain,
    /// With the weight itself, through oneDNN.
    OneDnn,
    /// With a copy of [`onednn::pack`].
    Packed(Tensor),
    W8a8(W8a8),
    Int8(Int8),
}

impl Linear {
    /// `[.., inputs]` to `[.., outputs]`.
    pub fn forward(&self, input: &Tensor) -> Result<Tensor, TchError> {
        let bias = self.bias.as_ref();
        let output = match &self.kernel {
            Kernel::Plain => multiply(input, &self.weight, bias)?,
            Kernel::OneDnn => onednn::linear(input, &self.weight, bias)?,
            Kernel::Packed(weight) => onednn::linear(input, weight, bias)?,
            Kernel::W8a8(weight) => weight.forward(input, bias)?,
            Kernel::Int8(weight) => weight.forward(input, bias)?,
        };
        match &self.adapter {
            None => Ok(output),
            Some(adapter) => output.f_add(&adapter.forward(input)?),
        }
    }
}

/// As `linear`, of all rows as one matrix.
///
/// Slices of rows, even of a single one, libtorch would multiply as a batch of matrices, and for that, in bf16 on
/// a CPU, transpose the whole weight in memory each time.
pub fn multiply(input: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<Tensor, TchError> {
    let (outputs, inputs) = weight.size2()?;
    let mut size = input.size();
    size.pop();
    size.push(outputs);
    input.f_reshape([-1, inputs])?.f_linear(weight, bias)?.f_view(size.as_slice())
}

/// `scale * x A^T B^T`: the change `scale * B A` of a weight, of low rank (Hu et al. 2021, LoRA).
pub struct LowRank {
    /// `[rank, inputs]`.
    pub a: Tensor,
    /// `[outputs, rank]`.
    pub b: Tensor,
    pub scale: f64,
}

impl LowRank {
    fn forward(&self, input: &Tensor) -> Result<Tensor, TchError> {
        let none = None::<&Tensor>;
        input.f_linear(&self.a, none)?.f_linear(&self.b, none)?.f_mul_scalar(self.scale)
    }
}

/// Layer normalisation over the last dimension.
pub struct LayerNorm {
    pub weight: Tensor,
    pub bias: Tensor,
    pub eps: f64,
}

impl LayerNorm {
    pub fn forward(&self, input: &Tensor) -> Result<Tensor, TchError> {
        input.f_layer_norm(self.weight.size(), Some(&self.weight), Some(&self.bias), self.eps, true)
    }
}

/// Divides by the root mean square over the last dimension: RMSNorm before its weight.
///
/// The mean is taken in f32 and the result rounded back to the input's type before any weight is
/// applied, as LLaMA does.
pub fn rms_normalize(input: &Tensor, eps: f64) -> Result<Tensor, TchError> {
    match input.device() {
        Device::Cpu => rms_normalize_in_steps(input, eps),
        _ => rms_normalize_at_once(input, eps),
    }
}

fn rms_normalize_in_steps(input: &Tensor, eps: f64) -> Result<Tensor, TchError> {
    let mut wide = input.f_to_kind(Kind::Float)?;
    if input.requires_grad() {
        let mean = wide.f_square()?.f_mean_dim([-1].as_slice(), true, None::<Kind>)?;
        return wide.f_mul(&mean.f_add_scalar(eps)?.f_rsqrt()?)?.f_to_kind(input.kind());
    }
    let width = input.size().last().copied().unwrap_or(1);
    // The squares are summed where they are read, rather than written down first.
    let norm = wide.f_norm_scalaropt_dim(2, [-1].as_slice(), true)?;
    let scale = norm.f_square()?.f_div_scalar(width)?.f_add_scalar(eps)?.f_rsqrt()?;
    if input.kind() == Kind::Float {
        return wide.f_mul(&scale);
    }
    // `wide` is a copy that nobody else has.
    wide.f_mul_(&scale)?.f_to_kind(input.kind())
}

/// As [`rms_normalize_in_steps`], in one kernel where the device has one for it: a GPU waits for each of the
/// steps to be asked for, and reads and writes all of them in f32.
fn rms_normalize_at_once(input: &Tensor, eps: f64) -> Result<Tensor, TchError> {
    let width = input.size().last().copied().unwrap_or(1);
    input.f_rms_norm([width], None::<&Tensor>, eps)
}

/// `x * sigmoid(1.702 x)`, CLIP's approximation of GELU.
pub fn quick_gelu(input: &Tensor) -> Result<Tensor, TchError> {
    let mut scaled = input.f_mul_scalar(1.702)?;
    if input.requires_grad() {
        return input.f_mul(&scaled.f_sigmoid()?);
    }
    // In one new tensor instead of three: the largest activations there are, which cost more to get from
    // the system than to compute.
    scaled.f_sigmoid_()?.f_mul_(input)
}

/// `silu(gate) * up` of two tensors of one shape, SwiGLU's way of gating (Shazeer 2020); takes `gate`, since it
/// is computed in its place where nothing is to be trained.
pub fn silu_mul(mut gate: Tensor, up: &Tensor) -> Result<Tensor, TchError> {
    if gate.requires_grad() || up.requires_grad() {
        return gate.f_silu()?.f_mul(up);
    }
    // As in quick_gelu: what is largest here costs more to get from the system than to compute.
    gate.f_silu_()?.f_mul_(up)
}

/// `input + change`, a residual connection; takes `change`, since it is computed in its place where nothing is to
/// be trained.
pub fn add_residual(input: &Tensor, mut change: Tensor) -> Result<Tensor, TchError> {
    if input.requires_grad() || change.requires_grad() {
        return input.f_add(&change);
    }
    change.f_add_(input)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::synthetic::{distance, noise};

    #[test]
    fn a_norm_at_once_is_the_norm_in_steps() {
        for (kind, tolerance) in [(Kind::Float, 1e-6), (Kind::BFloat16, 0.0)] {
            let input = (noise(&[2, 5, 48], 3) * 3.0).to_kind(kind);
            let [at_once, in_steps] = [rms_normalize_at_once, rms_normalize_in_steps]
                .map(|normalize| normalize(&input, 1e-5).unwrap());
            assert_eq!(at_once.kind(), kind);
            assert!(distance(&at_once, &in_steps) <= tolerance, "{kind:?}");
        }
    }
}
