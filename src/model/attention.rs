//! Causal attention of a block over a cache whose rows may have different lengths, and attention of all
//! positions to all.

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
            let is_told_apart = whole_heads_are_faster(kind, device);
            if *start == 0 && groups == 1 && count == placement.count() && !is_told_apart {
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
    let is_trained = [query, keys, values].iter().any(|tensor| tensor.requires_grad());
    let attended = if count > 1
        && !causal
        && !is_trained
        && whole_heads_are_faster(query.kind(), query.device())
    {
        attend_by_heads(&folded, keys, values, mask)?
    } else {
        Tensor::f_scaled_dot_product_attention(&folded, keys, values, mask, 0.0, causal, None::<f64>, false)?
    };
    attended.f_reshape([rows, heads, count, dim])?.f_transpose(1, 2)?.f_reshape([rows, count, heads * dim])
}

/// Scaled dot-product attention of every position to every one, `[images, heads, positions, dim]` each.
pub fn attend_to_all(query: &Tensor, keys: &Tensor, values: &Tensor) -> Result<Tensor, TchError> {
    let none = None::<&Tensor>;
    if !query.requires_grad() && whole_heads_are_faster(query.kind(), query.device()) {
        return attend_by_heads(query, keys, values, none);
    }
    Tensor::f_scaled_dot_product_attention(query, keys, values, none, 0.0, false, None::<f64>, false)
}

/// Bytes of the attention weights that [`attend_by_heads`] computes at once, so that they stay in a core's
/// cache between the two multiplications.
const WEIGHTS_AT_ONCE: i64 = 4 << 20;

/// Where [`attend_by_heads`] is the faster way.
///
/// On a CPU without matrix units libtorch's fused kernel reaches a third of bf16's speed, since it multiplies
/// many small tiles, and those with MKL; whole heads, a few at a time and with oneDNN, go nearly twice as fast.
fn whole_heads_are_faster(kind: Kind, device: Device) -> bool {
    device == Device::Cpu && kind == Kind::BFloat16
}

/// Scaled dot-product attention without gradients of `query`, `[rows, heads, positions, dim]`, over `keys` and
/// `values`, `[rows, heads, seen, dim]`, with `mask`, `[rows or 1, 1, positions, seen]`, added to their products.
///
/// The weights are rounded to the queries' type before and after the softmax, as the reference rounds them.
fn attend_by_heads(
    query: &Tensor,
    keys: &Tensor,
    values: &Tensor,
    mask: Option<&Tensor>,
) -> Result<Tensor, TchError> {
    let (rows, heads, positions, dim) = query.size4()?;
    let seen = keys.size()[2];
    let query = with_dense_heads(&query.f_mul_scalar(1.0 / (dim as f64).sqrt())?)?;
    let (keys, values) = (with_dense_heads(keys)?, with_dense_heads(values)?);
    let output = Tensor::f_empty([rows, heads, positions, dim], (query.kind(), query.device()))?;
    let at_once = (WEIGHTS_AT_ONCE / (positions * seen * 2).max(1)).clamp(1, heads);
    for row in 0..rows {
        let mask = mask.map(|mask| mask.f_select(0, row.min(mask.size()[0] - 1))).transpose()?;
        for start in (0..heads).step_by(at_once as usize) {
            let part =
                |tensor: &Tensor| tensor.f_select(0, row)?.f_narrow(0, start, at_once.min(heads - start));
            let mut weights = part(&query)?.f_bmm(&part(&keys)?.f_transpose(1, 2)?)?;
            if let Some(mask) = &mask {
                weights = weights.f_add_(mask)?;
            }
            let weights = weights.f_internal_softmax_out(&weights, -1, false)?;
            let _filled = weights.f_bmm_out(&part(&output)?, &part(&values)?)?;
        }
    }
    Ok(output)
}

/// `[rows, heads, positions, dim]` with a head's positions one behind the other. Those of a fused projection lie a
/// whole layer's width apart, and to multiply them there costs more than to copy them.
fn with_dense_heads(tensor: &Tensor) -> Result<Tensor, TchError> {
    let dim = tensor.size()[3];
    if tensor.stride().ends_with(&[dim, 1]) { Ok(tensor.shallow_clone()) } else { tensor.f_contiguous() }
}

/// Splits the last dimension of `[rows, count, heads * dim]` into heads: `[rows, heads, count, dim]`.
pub fn split_heads(input: &Tensor, heads: i64) -> Result<Tensor, TchError> {
    let (rows, count, width) = input.size3()?;
    input.f_view([rows, count, heads, width / heads])?.f_transpose(1, 2)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::synthetic::{distance, noise};

    #[test]
    fn whole_heads_attend_as_the_fused_kernel_does() {
        let _no_grad = tch::no_grad_guard();
        // 1025 positions are a head at a time, 33 all five.
        for positions in [33, 1025] {
            let part = |seed| (noise(&[2, 5, positions, 8], seed) * 4.0).to_kind(Kind::BFloat16);
            let (query, keys, values) = (part(1), part(2), part(3));
            let found = attend_to_all(&query, &keys, &values).unwrap();
            let wide = |tensor: &Tensor| tensor.to_kind(Kind::Float);
            let exact = attend_to_all(&wide(&query), &wide(&keys), &wide(&values)).unwrap();
            assert!(distance(&wide(&found), &exact) < 0.02, "{}", distance(&wide(&found), &exact));
        }
    }

    #[test]
    fn whole_heads_see_what_the_mask_shows_them() {
        let _no_grad = tch::no_grad_guard();
        for (rows, masks) in [(1, 1), (3, 1), (3, 3)] {
            let part =
                |count, heads, seed| (noise(&[rows, heads, count, 8], seed) * 4.0).to_kind(Kind::BFloat16);
            let (query, keys, values) = (part(5, 4, 1), part(7, 2, 2), part(7, 2, 3));
            let unseen = noise(&[masks, 1, 10, 7], 4)
                .gt(0.2)
                .logical_and(&Tensor::from_slice(&[false, true, true, true, true, true, true]));
            let mask = Tensor::zeros(unseen.size(), (Kind::BFloat16, Device::Cpu));
            let mask = CausalMask::Explicit(mask.masked_fill(&unseen, f64::NEG_INFINITY));
            let found = attend(&query, &keys, &values, &mask).unwrap();
            let CausalMask::Explicit(mask) = mask else { unreachable!() };
            let wide = |tensor: &Tensor| tensor.to_kind(Kind::Float);
            let exact = CausalMask::Explicit(wide(&mask));
            let exact = attend(&wide(&query), &wide(&keys), &wide(&values), &exact).unwrap();
            assert!(distance(&wide(&found), &exact) < 0.03, "{}", distance(&wide(&found), &exact));
        }
    }

    #[test]
    fn gradients_are_those_of_the_fused_kernel() {
        let query = noise(&[1, 2, 9, 8], 1).to_kind(Kind::BFloat16).set_requires_grad(true);
        let other = |seed| noise(&[1, 2, 9, 8], seed).to_kind(Kind::BFloat16);
        attend_to_all(&query, &other(2), &other(3)).unwrap().sum(Kind::Float).backward();
        assert!(query.grad().abs().max().double_value(&[]) > 0.0);
    }
}
