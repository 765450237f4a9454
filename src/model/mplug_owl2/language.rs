//! The language model: LLaMA-2 with keys, values and norms per modality.

use super::multiway::{MultiwayLinear, MultiwayRmsNorm, Segments};
use crate::model::{
    attention::{CausalMask, attend, split_heads},
    config::LanguageConfig,
    error::ModelError,
    family::{Block, Sequences},
    kv_cache::{CacheShape, KvCache, Placement},
    layers::{Linear, add_residual, multiply, rms_normalize, silu_mul},
    parameters::Scope,
    passes::Passes,
    rope::{RotaryEmbedding, Rotation},
};
use std::{ops::Range, rc::Rc};
use tch::{TchError, Tensor};

/// About what an image and its answer take behind the prompt's beginning.
const POSITIONS_AT_ONCE: i64 = 128;

/// A decoder-only transformer over embeddings that are text or image.
pub struct LanguageModel {
    embed_tokens: Tensor,
    layers: Vec<Layer>,
    norm: Tensor,
    lm_head: Tensor,
    rotary: RotaryEmbedding,
    rms_norm_eps: f64,
    /// Query heads that share one key head.
    groups: i64,
    cache_shape: CacheShape,
}

struct Layer {
    input_layernorm: MultiwayRmsNorm,
    q_proj: Linear,
    k_proj: MultiwayLinear,
    v_proj: MultiwayLinear,
    o_proj: Linear,
    post_attention_layernorm: MultiwayRmsNorm,
    gate_proj: Linear,
    up_proj: Linear,
    down_proj: Linear,
    heads: i64,
    kv_heads: i64,
}

/// What all layers share in one pass over some positions.
struct Pass {
    rotation: Rotation,
    mask: CausalMask,
    segments: Segments,
}

/// The positions of a pass that the last layer's output is wanted of, as a pass of their own.
struct Read {
    positions: Range<i64>,
    pass: Pass,
}

impl LanguageModel {
    /// `scope` is the whole checkpoint: the head lies beside the model in it.
    pub fn new(scope: &Scope<'_>, config: &LanguageConfig) -> Result<Self, ModelError> {
        let model = scope.child("model");
        let embed_tokens = model.tensor("embed_tokens.weight")?;
        let lm_head = if config.tie_word_embeddings {
            embed_tokens.shallow_clone()
        } else {
            scope.tensor("lm_head.weight")?
        };
        let layers = model.child("layers");
        let layers = if scope.packs() { layers.with_rows(POSITIONS_AT_ONCE) } else { layers };
        let layers = (0..config.num_hidden_layers)
            .map(|index| Layer::new(&layers.child(index), config))
            .collect::<Result<Vec<_>, _>>()?;
        let device = embed_tokens.device();
        let head_dim = config.head_dim();
        let rotary = RotaryEmbedding::new(
            head_dim,
            config.rope_theta,
            config.rope_scaling,
            config.max_position_embeddings,
            device,
        )
        .map_err(|source| ModelError::Torch { doing: "laying out rotary frequencies", source })?;
        let cache_shape = CacheShape {
            layers: layers.len(),
            kv_heads: config.num_key_value_heads,
            head_dim,
            kind: embed_tokens.kind(),
            device,
        };
        Ok(Self {
            norm: model.tensor("norm.weight")?,
            embed_tokens,
            layers,
            lm_head,
            rotary,
            rms_norm_eps: config.rms_norm_eps,
            groups: config.num_attention_heads / config.num_key_value_heads,
            cache_shape,
        })
    }

    /// Token ids of any shape to embeddings `[.., hidden]`.
    pub fn embed(&self, ids: &Tensor) -> Result<Tensor, TchError> {
        Tensor::f_embedding(&self.embed_tokens, ids, -1, false, false)
    }

    pub fn cache_shape(&self) -> CacheShape {
        self.cache_shape
    }

    /// Appends a block to every row of `cache`; gives the normalised hidden states of the positions
    /// that are read, `[rows, read, hidden]`.
    pub fn forward(&self, block: &Block<'_>, cache: &mut KvCache) -> Result<Tensor, TchError> {
        self.forward_observed(block, cache, |_| ())
    }

    /// As [`Self::forward`], showing what each layer gives to `observe`, then the final norm.
    pub fn forward_observed(
        &self,
        block: &Block<'_>,
        cache: &mut KvCache,
        mut observe: impl FnMut(&Tensor),
    ) -> Result<Tensor, TchError> {
        let count = block.embeddings.size()[1];
        let placement = cache.place(count)?;
        let pass = self.pass(&placement, Segments::new(count, &block.image))?;
        let read = self.read(block, &pass, &placement)?;
        let mut hidden = block.embeddings.shallow_clone();
        for (index, layer) in self.layers.iter().enumerate() {
            // Nothing but the output depends on the last layer's states.
            let read = read.as_ref().filter(|_| index + 1 == self.layers.len());
            let extend = |keys: Tensor, values: Tensor| cache.write(index, &keys, &values, &placement);
            hidden = layer.forward(&hidden, &pass, read, extend)?;
            observe(&hidden);
        }
        cache.advance(&placement);
        let hidden = self.normalize(&hidden)?;
        observe(&hidden);
        Ok(hidden)
    }

    /// The normalised hidden states `[rows, count, hidden]` of whole rows, without a cache, each layer
    /// a part.
    pub fn forward_sequences<'a>(
        &'a self,
        sequences: &Sequences<'_>,
        passes: &mut Passes<'a>,
    ) -> Result<Tensor, TchError> {
        let count = sequences.embeddings.size()[1];
        let segments = Segments::of_rows(count, sequences.images, self.cache_shape.device)?;
        let pass = Rc::new(self.pass(&Placement::first(count), segments)?);
        let mut hidden = sequences.embeddings.shallow_clone();
        for layer in &self.layers {
            let pass = pass.clone();
            hidden = passes.run(&hidden, move |input| {
                layer.forward(input, &pass, None, |keys, values| Ok((keys, values)))
            })?;
        }
        self.normalize(&hidden)
    }

    fn pass(&self, placement: &Placement, segments: Segments) -> Result<Pass, TchError> {
        Ok(Pass {
            rotation: self.rotary.rotation(placement, self.cache_shape.kind)?,
            mask: self.mask(placement, &(0..placement.count()))?,
            segments,
        })
    }

    /// What is read of a block; nothing to say where that is all of it.
    fn read(&self, block: &Block<'_>, pass: &Pass, placement: &Placement) -> Result<Option<Read>, TchError> {
        let positions = block.read.clone();
        if positions == (0..placement.count()) {
            return Ok(None);
        }
        let within = |position: i64| position.clamp(positions.start, positions.end) - positions.start;
        let image = within(block.image.start)..within(block.image.end);
        let pass = Pass {
            rotation: pass.rotation.within(&positions)?,
            mask: self.mask(placement, &positions)?,
            segments: Segments::new(positions.end - positions.start, &image),
        };
        Ok(Some(Read { positions, pass }))
    }

    fn mask(&self, placement: &Placement, queries: &Range<i64>) -> Result<CausalMask, TchError> {
        let CacheShape { kind, device, .. } = self.cache_shape;
        CausalMask::new(placement, queries, self.groups, kind, device)
    }

    fn normalize(&self, hidden: &Tensor) -> Result<Tensor, TchError> {
        rms_normalize(hidden, self.rms_norm_eps)?.f_mul(&self.norm)
    }

    /// Normalised hidden states `[.., hidden]` to logits `[.., vocabulary]`, in the model's type.
    pub fn logits(&self, hidden: &Tensor) -> Result<Tensor, TchError> {
        multiply(hidden, &self.lm_head, None)
    }
}

impl Read {
    /// The read positions of `[rows, count, width]`.
    fn of(&self, states: &Tensor) -> Result<Tensor, TchError> {
        states.f_narrow(1, self.positions.start, self.positions.end - self.positions.start)
    }
}

impl Layer {
    fn new(scope: &Scope<'_>, config: &LanguageConfig) -> Result<Self, ModelError> {
        let attention = scope.child("self_attn");
        let mlp = scope.child("mlp");
        let eps = config.rms_norm_eps;
        Ok(Self {
            input_layernorm: MultiwayRmsNorm::new(scope, "input_layernorm", eps)?,
            q_proj: attention.linear("q_proj")?,
            k_proj: MultiwayLinear::new(&attention, "k_proj")?,
            v_proj: MultiwayLinear::new(&attention, "v_proj")?,
            o_proj: attention.linear("o_proj")?,
            post_attention_layernorm: MultiwayRmsNorm::new(scope, "post_attention_layernorm", eps)?,
            gate_proj: mlp.linear("gate_proj")?,
            up_proj: mlp.linear("up_proj")?,
            down_proj: mlp.linear("down_proj")?,
            heads: config.num_attention_heads,
            kv_heads: config.num_key_value_heads,
        })
    }

    /// `extend` takes the keys and values of the pass's positions, `[rows, kv_heads, count, head_dim]`,
    /// and gives all that its queries may see, `[rows, kv_heads, end, head_dim]`. With `read`, only what
    /// is read is computed beyond keys and values.
    ///
    /// Queries, keys and values are maps of their own rather than one: weights that are mapped from
    /// their file would have to be copied to lie one behind the other.
    fn forward(
        &self,
        input: &Tensor,
        pass: &Pass,
        read: Option<&Read>,
        extend: impl FnOnce(Tensor, Tensor) -> Result<(Tensor, Tensor), TchError>,
    ) -> Result<Tensor, TchError> {
        let normed = self.input_layernorm.forward(input, &pass.segments)?;
        let keys = split_heads(&self.k_proj.forward(&normed, &pass.segments)?, self.kv_heads)?;
        let values = split_heads(&self.v_proj.forward(&normed, &pass.segments)?, self.kv_heads)?;
        let (keys, values) = extend(pass.rotation.apply(&keys)?, values)?;
        let (input, normed, pass) = match read {
            None => (input.shallow_clone(), normed, pass),
            Some(read) => (read.of(input)?, read.of(&normed)?, &read.pass),
        };
        let query = split_heads(&self.q_proj.forward(&normed)?, self.heads)?;
        let attended = attend(&pass.rotation.apply(&query)?, &keys, &values, &pass.mask)?;
        let hidden = add_residual(&input, self.o_proj.forward(&attended)?)?;

        let normed = self.post_attention_layernorm.forward(&hidden, &pass.segments)?;
        let gated = silu_mul(self.gate_proj.forward(&normed)?, &self.up_proj.forward(&normed)?)?;
        add_residual(&hidden, self.down_proj.forward(&gated)?)
    }
}
