//! Causal attention of a block over a cache whose rows may have different lengths.

use super::kv_cache::Placement;
use tch::{Device, Kind, TchError, Tensor};

/// Which cached positions each query of a block may see: all up to its own.
pub enum CausalMask {
    /// One query in every row, behind everything that its row holds.
    Unneeded,
    /// The block is all there is: the usual triangle.
    Triangle,
    /// `[rows or 1, 1, groups * count, end]`, true where a key is seen.
    Explicit(Tensor),
}

impl CausalMask {
    /// The mask for a block of queries in which `groups` query heads share a key head.
    pub fn new(placement: &Placement, groups: i64, device: Device) -> Result<Self, TchError> {
        if let [start] = placement.starts() {
            if placement.count() == 1 {
                return Ok(Self::Unneeded);
            }
            if *start == 0 && groups == 1 {
                return Ok(Self::Triangle);
            }
        }
        let starts = Tensor::f_from_slice(placement.starts())?.f_to_device(device)?.f_view([-1, 1, 1, 1])?;
        let offsets = Tensor::f_arange(placement.count(), (Kind::Int64, device))?.f_view([1, 1, -1, 1])?;
        let keys = Tensor::f_arange(placement.end(), (Kind::Int64, device))?.f_view([1, 1, 1, -1])?;
        let seen = keys.f_le_tensor(&starts.f_add(&offsets)?)?;
        Ok(Self::Explicit(seen.f_repeat([1, 1, groups, 1])?))
    }
}

/// Scaled dot-product attention of `query`, `[rows, heads, count, dim]`, over `keys` and `values`,
/// `[rows, kv_heads, end, dim]`; gives `[rows, count, heads * dim]`.
///
/// With fewer key heads than query heads (grouped-query attention, Ainslie et al. 2023), the queries
/// that share a key head are laid one after the other as if they were more positions, so that keys
/// and values are read where they lie and never repeated.
pub fn attend(query: &Tensor, keys: &Tensor, values: &Tensor, mask: &CausalMask) -> Result<Tensor, TchError> {
    let (rows, heads, count, dim) = query.size4()?;
    let kv_heads = keys.size()[1];
    let folded = query.f_reshape([rows, kv_heads, heads / kv_heads * count, dim])?;
    let (mask, causal) = match mask {
        CausalMask::Unneeded => (None, false),
        CausalMask::Triangle => (None, true),
        CausalMask::Explicit(seen) => (Some(seen), false),
    };
    Tensor::f_scaled_dot_product_attention(&folded, keys, values, mask, 0.0, causal, None::<f64>, false)?
        .f_reshape([rows, heads, count, dim])?
        .f_transpose(1, 2)?
        .f_reshape([rows, count, heads * dim])
}

/// Splits the last dimension of `[rows, count, heads * dim]` into heads: `[rows, heads, count, dim]`.
pub fn split_heads(input: &Tensor, heads: i64) -> Result<Tensor, TchError> {
    let (rows, count, width) = input.size3()?;
    input.f_view([rows, count, heads, width / heads])?.f_transpose(1, 2)
}
