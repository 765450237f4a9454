//! Rotary position embedding (Su et al., RoFormer), with LLaMA's linear and dynamic scaling.

use super::{config::RopeScaling, kv_cache::Placement};
use tch::{Device, Kind, TchError, Tensor};

/// The rotation of queries and keys by their positions.
pub struct RotaryEmbedding {
    dim: i64,
    theta: f64,
    scaling: Option<RopeScaling>,
    trained_positions: i64,
    /// `[dim / 2]`, f32: from the formula, since a checkpoint may lack its `inv_freq` or hold it rounded.
    inverse_frequencies: Tensor,
}

/// Cosines and sines for one block, `[rows or 1, 1, count, dim]`.
pub struct Rotation {
    cos: Tensor,
    sin: Tensor,
}

impl RotaryEmbedding {
    /// For heads of `dim` values.
    pub fn new(
        dim: i64,
        theta: f64,
        scaling: Option<RopeScaling>,
        trained_positions: i64,
        device: Device,
    ) -> Result<Self, TchError> {
        let inverse_frequencies = inverse_frequencies(dim, theta, device)?;
        Ok(Self { dim, theta, scaling, trained_positions, inverse_frequencies })
    }

    /// The rotation of a block's positions: angles in f32, cosine and sine rounded to `kind`.
    pub fn rotation(&self, placement: &Placement, kind: Kind) -> Result<Rotation, TchError> {
        let device = self.inverse_frequencies.device();
        let starts = Tensor::f_from_slice(placement.starts())?.f_to_device(device)?.f_view([-1, 1, 1])?;
        let offsets = Tensor::f_arange(placement.count(), (Kind::Int64, device))?.f_view([1, -1, 1])?;
        let mut positions = starts.f_add(&offsets)?.f_to_kind(Kind::Float)?;
        if let Some(RopeScaling::Linear(factor)) = self.scaling {
            positions = positions.f_div_scalar(factor)?;
        }
        let half = positions.f_mul(&self.frequencies_of_rows(placement)?)?;
        let angles = Tensor::f_cat(&[&half, &half], -1)?.f_unsqueeze(1)?;
        Ok(Rotation { cos: angles.f_cos()?.f_to_kind(kind)?, sin: angles.f_sin()?.f_to_kind(kind)? })
    }

    /// `[dim / 2]`, or `[rows, 1, dim / 2]` where a row's length decides.
    fn frequencies_of_rows(&self, placement: &Placement) -> Result<Tensor, TchError> {
        let Some(RopeScaling::Dynamic(factor)) = self.scaling else {
            return Ok(self.inverse_frequencies.shallow_clone());
        };
        if placement.end() <= self.trained_positions {
            return Ok(self.inverse_frequencies.shallow_clone());
        }
        let rows = placement
            .starts()
            .iter()
            .map(|start| {
                let length = start + placement.count();
                if length <= self.trained_positions {
                    return Ok(self.inverse_frequencies.shallow_clone());
                }
                let stretch = factor * length as f64 / self.trained_positions as f64 - (factor - 1.0);
                let theta = self.theta * stretch.powf(self.dim as f64 / (self.dim - 2) as f64);
                inverse_frequencies(self.dim, theta, self.inverse_frequencies.device())
            })
            .collect::<Result<Vec<_>, TchError>>()?;
        Tensor::f_stack(&rows, 0)?.f_unsqueeze(1)
    }
}

fn inverse_frequencies(dim: i64, theta: f64, device: Device) -> Result<Tensor, TchError> {
    let exponents = Tensor::f_arange_start_step(0, dim, 2, (Kind::Float, device))?.f_div_scalar(dim)?;
    Tensor::f_pow_scalar(theta, &exponents)?.f_reciprocal()
}

impl Rotation {
    /// Turns queries or keys, `[rows, heads, count, dim]`: dimension `i` pairs with `i + dim / 2`.
    pub fn apply(&self, heads: &Tensor) -> Result<Tensor, TchError> {
        let halves = heads.f_chunk(2, -1)?;
        let turned = Tensor::f_cat(&[&halves[1].f_neg()?, &halves[0]], -1)?;
        heads.f_mul(&self.cos)?.f_add(&turned.f_mul(&self.sin)?)
    }
}
