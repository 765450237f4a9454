//! The vision model: CLIP's ViT as mPLUG-Owl2 ships it.

use crate::model::{
    attention::{attend_to_all, split_heads},
    config::VisionConfig,
    error::ModelError,
    layers::{LayerNorm, Linear, add_residual, quick_gelu},
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
        let patches = match pixels.device() {
            Device::Cpu => self.convolve(pixels)?,
            _ => self.multiply(pixels)?,
        };
        let class = self.cls_token.f_expand([images, -1, -1], false)?;
        let embedded = Tensor::f_cat(&[class, patches], 1)?.f_add(&self.position_embedding)?;
        self.pre_layernorm.forward(&embedded)
    }
}

impl VisionModel {
    /// Pixel values `[images, 3, edge, edge]` to what each patch is worth by itself,
    /// `[images, patches, hidden]`: a convolution whose stride is its kernel.
    fn convolve(&self, pixels: &Tensor) -> Result<Tensor, TchError> {
        let stride = [self.patch_size, self.patch_size];
        pixels
            .f_conv2d(&self.patch_embed, None::<&Tensor>, stride, [0, 0], [1, 1], 1)?
            .f_flatten(2, -1)?
            .f_transpose(1, 2)
    }

    /// As [`Self::convolve`], as one matrix multiplication. On GPUs a convolution is cuDNN's, which
    /// computes f32 in TF32 unless it is told not to, and multiplications are as exact as f32 is.
    fn multiply(&self, pixels: &Tensor) -> Result<Tensor, TchError> {
        let (images, channels, height, width) = pixels.size4()?;
        let edge = self.patch_size;
        let (rows, columns) = (height / edge, width / edge);
        let weight = self.patch_embed.f_flatten(1, -1)?;
        // Whatever is left of a picture that is no whole number of patches is in none.
        pixels
            .f_narrow(2, 0, rows * edge)?
            .f_narrow(3, 0, columns * edge)?
            .f_reshape([images, channels, rows, edge, columns, edge])?
            .f_permute([0, 2, 4, 1, 3, 5])?
            .f_reshape([images, rows * columns, channels * edge * edge])?
            .f_linear(&weight, None::<&Tensor>)
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
        let hidden = add_residual(input, self.attend(&self.input_layernorm.forward(input)?)?)?;
        let wide = self.fc1.forward(&self.post_attention_layernorm.forward(&hidden)?)?;
        add_residual(&hidden, self.fc2.forward(&quick_gelu(&wide)?)?)
    }

    fn attend(&self, input: &Tensor) -> Result<Tensor, TchError> {
        // The fused projection is laid out [head, (query, key, value), dim].
        let heads = split_heads(&self.query_key_value.forward(input)?, self.heads)?.f_chunk(3, -1)?;
        let mixed = attend_to_all(&heads[0], &heads[1], &heads[2])?;
        self.dense.forward(&mixed.f_transpose(1, 2)?.f_reshape(input.size())?)
    }
}

#[cfg(test)]
mod tests {
    use crate::model::synthetic::{config, distance, network, noise};

    #[test]
    fn patches_are_multiplied_as_they_are_convolved() {
        let model = network(config());
        let vision = model.vision();
        for (height, width) in [(12, 12), (8, 16), (14, 13)] {
            let pixels = noise(&[2, 3, height, width], 7);
            let convolved = vision.convolve(&pixels).unwrap();
            assert_eq!(convolved.size(), [2, (height / 4) * (width / 4), 16]);
            assert!(distance(&vision.multiply(&pixels).unwrap(), &convolved) < 1e-5);
        }
    }
}
