//! The visual abstractor: learned queries that condense the vision model's patches.

use crate::model::{
    attention::split_heads,
    config::AbstractorConfig,
    error::ModelError,
    layers::{LayerNorm, Linear},
    parameters::Scope,
};
use std::cell::OnceCell;
use tch::{Kind, TchError, Tensor};

/// The reference builds these norms without a configured epsilon.
const NORM_EPS: f64 = 1e-5;

/// Cross-attention from a few learned queries to all patches.
pub struct VisualAbstractor {
    query_embeds: Tensor,
    layers: Vec<Layer>,
    visual_fc: Linear,
    vit_eos: Tensor,
    learned: OnceCell<LearnedQueries>,
}

/// What the first layer makes of the learned queries before it sees a patch: the same for every image.
struct LearnedQueries {
    /// `[1, queries, hidden]` each.
    normed: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
}

struct Layer {
    norm1: LayerNorm,
    normk: LayerNorm,
    query: Linear,
    key: Linear,
    value: Linear,
    /// `[queries, hidden]`.
    query_positions: Tensor,
    /// `[queries + 1 + patches, hidden]`: those of the queries, then those of the patches.
    key_positions: Tensor,
    /// `[1 + patches, hidden]`: the rest of `key_positions`.
    patch_positions: Tensor,
    out_proj: Linear,
    norm2: LayerNorm,
    w1: Linear,
    w2: Linear,
    w3: Linear,
    ffn_ln: LayerNorm,
    heads: i64,
}

impl VisualAbstractor {
    pub fn new(scope: &Scope<'_>, config: &AbstractorConfig) -> Result<Self, ModelError> {
        let layers = scope.child("encoder.layers");
        Ok(Self {
            query_embeds: scope.tensor("query_embeds")?,
            layers: (0..config.num_hidden_layers)
                .map(|index| Layer::new(&layers.child(index).child("crossattention"), config))
                .collect::<Result<_, _>>()?,
            visual_fc: scope.linear("visual_fc")?,
            vit_eos: scope.tensor("vit_eos")?,
            learned: OnceCell::new(),
        })
    }

    /// Patch features `[images, 1 + patches, encoder_hidden]` to what the language model reads in
    /// the image's place, `[images, queries + 1, language_hidden]`: the projected queries, then
    /// `vit_eos`.
    pub fn forward(&self, patches: &Tensor) -> Result<Tensor, TchError> {
        let mut hidden = self.queries(patches)?;
        for layer in &self.layers {
            hidden = layer.forward(&hidden, patches)?;
        }
        self.project(&hidden)
    }

    /// As [`Self::forward`], for parameters that change no more: what does not depend on the image is
    /// computed once and kept.
    pub fn forward_in_use(&self, patches: &Tensor) -> Result<Tensor, TchError> {
        let Some((first, others)) = self.layers.split_first() else {
            return self.forward(patches);
        };
        let learned = match self.learned.get() {
            Some(learned) => learned,
            None => {
                let learned = tch::no_grad(|| first.learned_queries(&self.query_embeds))?;
                self.learned.get_or_init(|| learned)
            }
        };
        let mut hidden = first.forward_learned(learned, patches)?;
        for layer in others {
            hidden = layer.forward(&hidden, patches)?;
        }
        self.project(&hidden)
    }

    fn project(&self, hidden: &Tensor) -> Result<Tensor, TchError> {
        let end = self.vit_eos.f_expand([hidden.size()[0], -1, -1], false)?;
        Tensor::f_cat(&[self.visual_fc.forward(hidden)?, end], 1)
    }

    /// As [`Self::forward`], but what each layer gives, before the projection.
    pub fn activations(&self, patches: &Tensor) -> Result<Vec<Tensor>, TchError> {
        let mut hidden = self.queries(patches)?;
        let mut outputs = Vec::with_capacity(self.layers.len());
        for layer in &self.layers {
            hidden = layer.forward(&hidden, patches)?;
            outputs.push(hidden.shallow_clone());
        }
        Ok(outputs)
    }

    fn queries(&self, patches: &Tensor) -> Result<Tensor, TchError> {
        self.query_embeds.f_expand([patches.size()[0], -1, -1], false)
    }
}

impl Layer {
    fn new(scope: &Scope<'_>, config: &AbstractorConfig) -> Result<Self, ModelError> {
        let attention = scope.child("attention");
        let output = scope.child("output");
        let query = attention.linear("query")?;
        // Buffers, not parameters: some writers leave them out, and a bf16 model may store them in f32.
        let alike = |table: Tensor| table.f_to_device(query.weight.device())?.f_to_kind(query.weight.kind());
        let query_positions = match attention.find("q_pos_embed") {
            Some(stored) => alike(stored),
            None => sincos(config.hidden_size, &counting(config.num_learnable_queries)).and_then(alike),
        };
        let patch_positions = match attention.find("k_pos_embed") {
            Some(stored) => alike(stored),
            None => grid_sincos(config.hidden_size, config.grid_size).and_then(alike),
        };
        let positions = query_positions.and_then(|queries| {
            let keys = Tensor::f_cat(&[&queries, &patch_positions?], 0)?;
            let count = queries.size()[0];
            let patches = keys.f_narrow(0, count, keys.size()[0] - count)?;
            Ok((queries, keys, patches))
        });
        let (query_positions, key_positions, patch_positions) =
            positions.map_err(|source| ModelError::Torch { doing: "laying out position tables", source })?;
        Ok(Self {
            norm1: scope.layer_norm("norm1", NORM_EPS)?,
            normk: scope.layer_norm("normk", NORM_EPS)?,
            query,
            key: attention.linear("key")?,
            value: attention.linear("value")?,
            query_positions,
            key_positions,
            patch_positions,
            out_proj: output.linear("out_proj")?,
            norm2: output.layer_norm("norm2", NORM_EPS)?,
            w1: output.linear("mlp.w1")?,
            w2: output.linear("mlp.w2")?,
            w3: output.linear("mlp.w3")?,
            ffn_ln: output.layer_norm("mlp.ffn_ln", config.layer_norm_eps)?,
            heads: config.num_attention_heads,
        })
    }

    fn forward(&self, queries: &Tensor, patches: &Tensor) -> Result<Tensor, TchError> {
        let queries = self.norm1.forward(queries)?;
        let attended = self.attend(&queries, &self.normk.forward(patches)?)?;
        self.finish(&queries, &attended)
    }

    fn learned_queries(&self, queries: &Tensor) -> Result<LearnedQueries, TchError> {
        let normed = self.norm1.forward(queries)?;
        let placed = normed.f_add(&self.query_positions)?;
        Ok(LearnedQueries {
            query: self.query.forward(&placed)?,
            key: self.key.forward(&placed)?,
            value: self.value.forward(&normed)?,
            normed,
        })
    }

    /// As [`Self::forward`] for the learned queries.
    fn forward_learned(&self, learned: &LearnedQueries, patches: &Tensor) -> Result<Tensor, TchError> {
        let images = patches.size()[0];
        let each = |tensor: &Tensor| tensor.f_expand([images, -1, -1], false);
        let patches = self.normk.forward(patches)?;
        let key = self.key.forward(&patches.f_add(&self.patch_positions)?)?;
        let key = Tensor::f_cat(&[each(&learned.key)?, key], 1)?;
        let value = Tensor::f_cat(&[each(&learned.value)?, self.value.forward(&patches)?], 1)?;
        let attended = self.mix(&each(&learned.query)?, &key, &value)?;
        self.finish(&each(&learned.normed)?, &attended)
    }

    fn finish(&self, queries: &Tensor, attended: &Tensor) -> Result<Tensor, TchError> {
        // The residual is the normalised queries: the reference adds to what its first norm gave.
        let hidden = queries.f_add(&self.out_proj.forward(attended)?)?;
        let input = self.norm2.forward(&hidden)?;
        let gated = self.w1.forward(&input)?.f_silu()?.f_mul(&self.w3.forward(&input)?)?;
        hidden.f_add(&self.w2.forward(&self.ffn_ln.forward(&gated)?)?)
    }

    fn attend(&self, queries: &Tensor, patches: &Tensor) -> Result<Tensor, TchError> {
        let context = Tensor::f_cat(&[queries, patches], 1)?;
        let query = self.query.forward(&queries.f_add(&self.query_positions)?)?;
        let key = self.key.forward(&context.f_add(&self.key_positions)?)?;
        let value = self.value.forward(&context)?;
        self.mix(&query, &key, &value)
    }

    fn mix(&self, query: &Tensor, key: &Tensor, value: &Tensor) -> Result<Tensor, TchError> {
        let mixed = Tensor::f_scaled_dot_product_attention(
            &split_heads(query, self.heads)?,
            &split_heads(key, self.heads)?,
            &split_heads(value, self.heads)?,
            None::<&Tensor>,
            0.0,
            false,
            None::<f64>,
            false,
        )?;
        mixed.f_transpose(1, 2)?.f_reshape(query.size())
    }
}

fn counting(count: i64) -> Vec<f64> {
    (0..count).map(|position| position as f64).collect()
}

/// `[positions, width]`: sines, then cosines, of each position at `width / 2` frequencies from 1
/// down to 1/10000 (Vaswani et al. 2017, halves instead of interleaved).
fn sincos(width: i64, positions: &[f64]) -> Result<Tensor, TchError> {
    let half = width / 2;
    let values: Vec<f32> = positions
        .iter()
        .flat_map(|position| {
            let angle = move |index: i64| position / 10000_f64.powf(index as f64 / half as f64);
            (0..half)
                .map(move |index| angle(index).sin())
                .chain((0..half).map(move |index| angle(index).cos()))
        })
        .map(|value| value as f32)
        .collect();
    Tensor::f_from_slice(&values)?.f_view([-1, 2 * half])
}

/// `[1 + edge * edge, width]`: zeros for the class token, then the column's and the row's sines and
/// cosines of each grid cell, row by row (He et al., MAE).
fn grid_sincos(width: i64, edge: i64) -> Result<Tensor, TchError> {
    let along = counting(edge);
    let columns: Vec<f64> = (0..edge).flat_map(|_| along.iter().copied()).collect();
    let rows: Vec<f64> = along.iter().flat_map(|&row| (0..edge).map(move |_| row)).collect();
    let cells = Tensor::f_cat(&[sincos(width / 2, &columns)?, sincos(width / 2, &rows)?], 1)?;
    let class = Tensor::f_zeros([1, cells.size()[1]], (Kind::Float, cells.device()))?;
    Tensor::f_cat(&[class, cells], 0)
}
