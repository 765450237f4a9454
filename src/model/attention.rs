//! Causal attention of a block over a cache whose rows may have different lengths.

use super::kv_cache::Placement;
use std::ops::Range;
use tch::{Device, Kind, TchError, Tensor};

/// Which cached positions each query of a block may see: all up to its own.
pub enum CausalMask {
    /// One query in every row, behind everything that its row holds.
    Unneeded,
    /// The block is all there is: the usual triangle.
    Triangle,
    /// `[rows or 1, 1, groups * queries, end]`: 0 where a key is seen, and minus infinity where not.
    /// Added to the products of queries and keys as it is; a truth value would be turned into this by
    /// each layer anew.
    Explicit(Tensor),
}

impl CausalMask {
    /// The mask for the positions `queries` of a block in which `groups` query heads share a key head,
    /// in the type `kind` of the queries.
    pub fn new(
        placement: &Placement,
        queries: &Range<i64>,
        groups: i64,
        kind: Kind,
        device: Device,
    ) -> Result<Self, TchError> {
        let count = queries.end - queries.start;
        if let [start] = placement.starts() {
            if count == 1 && queries.end == placement.count() {
                return Ok(Self::Unneeded);
            }
            if *start == 0 && groups == 1 && count == placement.count() {
                return Ok(Self::Triangle);
            }
        }
        let positions = placement.positions(device)?.f_narrow(1, queries.start, count)?;
        let positions = positions.f_unsqueeze(1)?.f_unsqueeze(-1)?;
        let keys = Tensor::f_arange(placement.end(), (Kind::Int64, device))?.f_view([1, 1, 1, -1])?;
        let unseen = keys.f_gt_tensor(&positions)?;
        let mask = Tensor::f_zeros(unseen.size(), (kind, device))?;
        let mask = mask.f_masked_fill(&unseen, f64::NEG_INFINITY)?;
        Ok(Self::Explicit(mask.f_repeat([1, 1, groups, 1])?))
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
        CausalMask::Explicit(mask) => (Some(mask), false),
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
