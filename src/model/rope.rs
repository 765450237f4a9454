//! Rotary position embedding (Su et al., RoFormer), with LLaMA's linear and dynamic scaling.

use super::{config::RopeScaling, kv_cache::Placement};
use std::ops::Range;
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
        let positions = placement.positions(self.inverse_frequencies.device())?.f_unsqueeze(-1)?;
        let mut positions = positions.f_to_kind(Kind::Float)?;
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
    /// That of some of the block's positions.
    pub fn within(&self, positions: &Range<i64>) -> Result<Self, TchError> {
        let narrow = |table: &Tensor| table.f_narrow(2, positions.start, positions.end - positions.start);
        Ok(Self { cos: narrow(&self.cos)?, sin: narrow(&self.sin)? })
    }

    /// Turns queries or keys, `[rows, heads, count, dim]`: dimension `i` pairs with `i + dim / 2`.
    pub fn apply(&self, heads: &Tensor) -> Result<Tensor, TchError> {
        let turned = heads.f_mul(&self.cos)?;
        let across = heads.f_mul(&self.sin)?;
        let half = heads.size().last().copied().unwrap_or(0) / 2;
        let lower = |tensor: &Tensor| tensor.f_narrow(-1, 0, half);
        let upper = |tensor: &Tensor| tensor.f_narrow(-1, half, half);
        // Both halves of a head have the same sines, so what comes from the other half is added where it goes,
        // and no vector is laid out anew with its halves changed over.
        let _turned = lower(&turned)?.f_sub_(&upper(&across)?)?;
        let _turned = upper(&turned)?.f_add_(&lower(&across)?)?;
        Ok(turned)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{
        kv_cache::{CacheShape, KvCache},
        synthetic::{distance, noise},
    };

    const DIM: i64 = 8;

    fn rotary(scaling: Option<RopeScaling>) -> RotaryEmbedding {
        RotaryEmbedding::new(DIM, 10_000.0, scaling, 16, Device::Cpu).unwrap()
    }

    /// The placement of one more position in rows of the given lengths.
    fn at(lengths: &[i64]) -> Placement {
        let shape =
            CacheShape { layers: 0, kv_heads: 1, head_dim: DIM, kind: Kind::Float, device: Device::Cpu };
        let mut cache = KvCache::new(shape, lengths.len() as i64, 64).unwrap();
        let block = cache.place(64).unwrap();
        cache.advance(&block);
        for (row, &length) in lengths.iter().enumerate() {
            cache.truncate(row, length);
        }
        cache.place(1).unwrap()
    }

    fn turned(rotary: &RotaryEmbedding, vector: &Tensor, lengths: &[i64]) -> Tensor {
        rotary.rotation(&at(lengths), Kind::Float).unwrap().apply(vector).unwrap()
    }

    #[test]
    fn products_depend_on_the_distance_alone() {
        let (query, key) = (noise(&[1, 1, 1, DIM], 1), noise(&[1, 1, 1, DIM], 2));
        let rotary = rotary(None);
        let product =
            |one, other| (turned(&rotary, &query, &[one]) * turned(&rotary, &key, &[other])).sum(Kind::Float);
        assert!(distance(&product(3, 1), &product(40, 38)) < 1e-5);
        assert!(distance(&product(3, 1), &product(40, 37)) > 1e-3);
    }

    #[test]
    fn the_first_position_turns_nothing_and_pairs_are_half_a_head_apart() {
        let vector = noise(&[1, 1, 1, DIM], 3);
        assert!(distance(&turned(&rotary(None), &vector, &[0]), &vector) < 1e-7);
        let turned: Vec<f32> = Vec::try_from(turned(&rotary(None), &vector, &[5]).view([-1])).unwrap();
        let plain: Vec<f32> = Vec::try_from(vector.view([-1])).unwrap();
        for pair in 0..4 {
            let (sin, cos) = (5.0 / 10_000_f32.powf(pair as f32 / 4.0)).sin_cos();
            assert!((turned[pair] - (plain[pair] * cos - plain[pair + 4] * sin)).abs() < 1e-6);
            assert!((turned[pair + 4] - (plain[pair + 4] * cos + plain[pair] * sin)).abs() < 1e-6);
        }
    }

    #[test]
    fn linear_scaling_divides_positions() {
        let vector = noise(&[1, 1, 1, DIM], 4);
        let scaled = rotary(Some(RopeScaling::Linear(4.0)));
        assert!(distance(&turned(&scaled, &vector, &[20]), &turned(&rotary(None), &vector, &[5])) < 1e-6);
    }

    #[test]
    fn dynamic_scaling_depends_on_each_rows_own_length() {
        let vector = noise(&[2, 1, 1, DIM], 5);
        let (plain, dynamic) = (rotary(None), rotary(Some(RopeScaling::Dynamic(2.0))));
        assert!(distance(&turned(&dynamic, &vector, &[15, 7]), &turned(&plain, &vector, &[15, 7])) < 1e-7);

        let both = turned(&dynamic, &vector, &[31, 7]);
        // 32 positions of 16 at factor 2: the base grows by (2 * 32 / 16 - 1)^(8 / 6).
        let theta = 10_000.0 * 3_f64.powf(8.0 / 6.0);
        let long = RotaryEmbedding::new(DIM, theta, None, 16, Device::Cpu).unwrap();
        let row = |index| vector.narrow(0, index, 1);
        assert!(distance(&both.narrow(0, 0, 1), &turned(&long, &row(0), &[31])) < 1e-6);
        assert!(distance(&both.narrow(0, 1, 1), &turned(&plain, &row(1), &[7])) < 1e-7);
    }
}
