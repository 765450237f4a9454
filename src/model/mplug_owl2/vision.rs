//! The vision model: CLIP's ViT as mPLUG-Owl2 ships it.

use crate::model::{
    attention::{attend_to_all, split_heads},
    config::VisionConfig,
    error::ModelError,
    layers::{LayerNorm, Linear, quick_gelu},
    parameters::Scope,
    passes::Passes,
};
use tch::{Device, TchError, Tensor};

/// Positions that are enough to keep every core of a CPU busy.
const POSITIONS_AT_ONCE: i64 = 1024;

/// A pre-norm transformer over image patches and one class token.
pub struct VisionModel {
    cls_token: Tensor,
    patch_embed: Tensor,
    position_embedding: Tensor,
    pre_layernorm: LayerNorm,
    layers: Vec<Layer>,
    post_layernorm: LayerNorm,
    patch_size: i64,
    /// Where no gradients are wanted: on a CPU, larger batches gain nothing, and their activations leave its
    /// caches and come as new pages from the system each time.
    images_at_once: Option<i64>,
}

struct Layer {
    input_layernorm: LayerNorm,
    query_key_value: Linear,
    dense: Linear,
    post_attention_layernorm: LayerNorm,
    fc1: Linear,
    fc2: Linear,
    heads: i64,
}

impl VisionModel {
    pub fn new(scope: &Scope<'_>, config: &VisionConfig) -> Result<Self, ModelError> {
        let images_at_once = (POSITIONS_AT_ONCE / config.positions()).max(1);
        let scope = &scope.with_rows(images_at_once * config.positions());
        let embeddings = scope.child("embeddings");
        let layers = scope.child("encoder.layers");
        let eps = config.layer_norm_eps;
        Ok(Self {
            cls_token: embeddings.tensor("cls_token")?,
            patch_embed: embeddings.tensor("patch_embed.weight")?,
            position_embedding: embeddings.tensor("position_embedding")?,
            pre_layernorm: embeddings.layer_norm("pre_layernorm", eps)?,
            layers: (0..config.num_hidden_layers)
                .map(|index| Layer::new(&layers.child(index), config))
                .collect::<Result<_, _>>()?,
            post_layernorm: scope.layer_norm("post_layernorm", eps)?,
            patch_size: config.patch_size,
            images_at_once: scope.is_for_inference().then_some(images_at_once),
        })
    }

    /// Pixel values `[images, 3, edge, edge]` to patch features `[images, 1 + patches, hidden]`,
    /// the class token first. The closing norm covers every position.
    pub fn forward(&self, pixels: &Tensor) -> Result<Tensor, TchError> {
        self.forward_in(pixels, &mut Passes::Kept)
    }

    /// As [`Self::forward`], each layer a part.
    pub fn forward_in<'a>(&'a self, pixels: &Tensor, passes: &mut Passes<'a>) -> Result<Tensor, TchError> {
        let images = pixels.size()[0];
        match self.images_at_once {
            Some(at_once) if at_once < images && pixels.device() == Device::Cpu => {
                let parts = pixels.f_split(at_once, 0)?;
                let parts = parts.iter().map(|pixels| self.forward_at_once(pixels, passes));
                Tensor::f_cat(&parts.collect::<Result<Vec<_>, _>>()?, 0)
            }
            _ => self.forward_at_once(pixels, passes),
        }
    }

    fn forward_at_once<'a>(&'a self, pixels: &Tensor, passes: &mut Passes<'a>) -> Result<Tensor, TchError> {
        let mut hidden = self.embed(pixels)?;
        for layer in &self.layers {
            hidden = passes.run(&hidden, |input| layer.forward(input))?;
        }
        self.post_layernorm.forward(&hidden)
    }

    /// As [`Self::forward`], but what the embeddings and each layer give, before the closing norm.
    pub fn activations(&self, pixels: &Tensor) -> Result<Vec<Tensor>, TchError> {
        let mut outputs = vec![self.embed(pixels)?];
        for layer in &self.layers {
            let hidden = layer.forward(&outputs[outputs.len() - 1])?;
            outputs.push(hidden);
        }
        Ok(outputs)
    }

    fn embed(&self, pixels: &Tensor) -> Result<Tensor, TchError> {
        let images = pixels.size()[0];
        let stride = [self.patch_size, self.patch_size];
        let patches = pixels
            .f_conv2d(&self.patch_embed, None::<&Tensor>, stride, [0, 0], [1, 1], 1)?
            .f_flatten(2, -1)?
            .f_transpose(1, 2)?;
        let class = self.cls_token.f_expand([images, -1, -1], false)?;
        let embedded = Tensor::f_cat(&[class, patches], 1)?.f_add(&self.position_embedding)?;
        self.pre_layernorm.forward(&embedded)
    }
}

impl Layer {
    fn new(scope: &Scope<'_>, config: &VisionConfig) -> Result<Self, ModelError> {
        let eps = config.layer_norm_eps;
        Ok(Self {
            input_layernorm: scope.layer_norm("input_layernorm", eps)?,
            query_key_value: scope.linear("self_attn.query_key_value")?,
            dense: scope.linear("self_attn.dense")?,
            post_attention_layernorm: scope.layer_norm("post_attention_layernorm", eps)?,
            fc1: scope.linear("mlp.fc1")?,
            fc2: scope.linear("mlp.fc2")?,
            heads: config.num_attention_heads,
        })
    }

    fn forward(&self, input: &Tensor) -> Result<Tensor, TchError> {
        let hidden = input.f_add(&self.attend(&self.input_layernorm.forward(input)?)?)?;
        let wide = self.fc1.forward(&self.post_attention_layernorm.forward(&hidden)?)?;
        hidden.f_add(&self.fc2.forward(&quick_gelu(&wide)?)?)
    }

    fn attend(&self, input: &Tensor) -> Result<Tensor, TchError> {
        // The fused projection is laid out [head, (query, key, value), dim].
        let heads = split_heads(&self.query_key_value.forward(input)?, self.heads)?.f_chunk(3, -1)?;
        let mixed = attend_to_all(&heads[0], &heads[1], &heads[2])?;
        self.dense.forward(&mixed.f_transpose(1, 2)?.f_reshape(input.size())?)
    }
}
