//! The few layers that every network here is made of.

use tch::{Kind, TchError, Tensor};

/// `x W^T + b`.
pub struct Linear {
    /// `[outputs, inputs]`.
    pub weight: Tensor,
    /// `[outputs]`.
    pub bias: Option<Tensor>,
    /// What training adds to a weight that it leaves alone.
    pub adapter: Option<LowRank>,
}

impl Linear {
    /// `[.., inputs]` to `[.., outputs]`.
    pub fn forward(&self, input: &Tensor) -> Result<Tensor, TchError> {
        let output = input.f_linear(&self.weight, self.bias.as_ref())?;
        match &self.adapter {
            None => Ok(output),
            Some(adapter) => output.f_add(&adapter.forward(input)?),
        }
    }
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
    let wide = input.f_to_kind(Kind::Float)?;
    let mean = wide.f_square()?.f_mean_dim([-1].as_slice(), true, None::<Kind>)?;
    wide.f_mul(&mean.f_add_scalar(eps)?.f_rsqrt()?)?.f_to_kind(input.kind())
}

/// `x * sigmoid(1.702 x)`, CLIP's approximation of GELU.
pub fn quick_gelu(input: &Tensor) -> Result<Tensor, TchError> {
    input.f_mul(&input.f_mul_scalar(1.702)?.f_sigmoid()?)
}
