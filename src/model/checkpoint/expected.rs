//! Which tensors a network of given dimensions has, by their checkpoint names.

use crate::model::config::{AbstractorConfig, LanguageConfig, ModelConfig, VisionConfig};
use std::{collections::BTreeMap, fmt::Display};

/// One tensor of the network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExpectedTensor {
    pub shape: Vec<i64>,
    pub role: Role,
}

/// What a tensor is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// A weight: must be there.
    Parameter,
    /// A constant that follows from the dimensions, or a parameter that nothing uses: may be absent,
    /// is never computed with, and keeps its stored type when a checkpoint is converted.
    Buffer,
    /// `lm_head.weight` where it is tied to the embeddings: may be absent.
    Tied,
}

impl Role {
    pub fn may_be_absent(self) -> bool {
        self != Self::Parameter
    }
}

/// The complete table, name to shape and role.
pub fn expected_tensors(config: &ModelConfig) -> BTreeMap<String, ExpectedTensor> {
    let mut table = Table::default();
    language(&mut table, &config.language);
    vision(&mut table, &config.vision);
    abstractor(&mut table, &config.abstractor, &config.vision, config.language.hidden_size);
    table.add("learned_weight", &[1], Role::Buffer);
    table.tensors
}

/// Whether `name` is the weight of a linear map in a layer of the vision or the language model: nearly all
/// there is of a model, and what is quantised or packed where anything is.
pub fn is_layer_weight(name: &str, shape: &[i64]) -> bool {
    shape.len() == 2 && name.contains(".layers.") && !name.contains("abstractor") && name.ends_with(".weight")
}

#[derive(Default)]
struct Table {
    tensors: BTreeMap<String, ExpectedTensor>,
}

impl Table {
    fn add(&mut self, name: impl Into<String>, shape: &[i64], role: Role) {
        self.tensors.insert(name.into(), ExpectedTensor { shape: shape.to_vec(), role });
    }

    fn parameter(&mut self, name: impl Display, shape: &[i64]) {
        self.add(name.to_string(), shape, Role::Parameter);
    }

    fn linear(&mut self, name: impl Display, outputs: i64, inputs: i64, bias: bool) {
        self.parameter(format_args!("{name}.weight"), &[outputs, inputs]);
        if bias {
            self.parameter(format_args!("{name}.bias"), &[outputs]);
        }
    }

    fn layer_norm(&mut self, name: impl Display, width: i64) {
        self.parameter(format_args!("{name}.weight"), &[width]);
        self.parameter(format_args!("{name}.bias"), &[width]);
    }
}

/// Text positions use set 0 of the weights that each modality has of its own, image positions set 1.
const MODALITIES: [usize; 2] = [0, 1];

fn language(table: &mut Table, config: &LanguageConfig) {
    let (hidden, key_value) = (config.hidden_size, config.key_value_width());
    table.parameter("model.embed_tokens.weight", &[config.vocab_size, hidden]);
    let head_role = if config.tie_word_embeddings { Role::Tied } else { Role::Parameter };
    table.add("lm_head.weight", &[config.vocab_size, hidden], head_role);
    table.parameter("model.norm.weight", &[hidden]);
    for layer in 0..config.num_hidden_layers {
        let layer = format!("model.layers.{layer}");
        let bias = config.attention_bias;
        table.linear(format_args!("{layer}.self_attn.q_proj"), hidden, hidden, bias);
        table.linear(format_args!("{layer}.self_attn.o_proj"), hidden, hidden, bias);
        for modality in MODALITIES {
            for projection in ["k_proj", "v_proj"] {
                let name = format!("{layer}.self_attn.{projection}.multiway.{modality}");
                table.linear(name, key_value, hidden, bias);
            }
            for norm in ["input_layernorm", "post_attention_layernorm"] {
                table.parameter(format_args!("{layer}.{norm}.multiway.{modality}.weight"), &[hidden]);
            }
        }
        table.linear(format_args!("{layer}.mlp.gate_proj"), config.intermediate_size, hidden, false);
        table.linear(format_args!("{layer}.mlp.up_proj"), config.intermediate_size, hidden, false);
        table.linear(format_args!("{layer}.mlp.down_proj"), hidden, config.intermediate_size, false);
        let frequencies = format!("{layer}.self_attn.rotary_emb.inv_freq");
        table.add(frequencies, &[config.head_dim() / 2], Role::Buffer);
    }
}

fn vision(table: &mut Table, config: &VisionConfig) {
    let hidden = config.hidden_size;
    let embeddings = "model.vision_model.embeddings";
    table.parameter(format_args!("{embeddings}.cls_token"), &[1, 1, hidden]);
    table.parameter(format_args!("{embeddings}.position_embedding"), &[1, config.positions(), hidden]);
    table.parameter(
        format_args!("{embeddings}.patch_embed.weight"),
        &[hidden, config.num_channels, config.patch_size, config.patch_size],
    );
    table.layer_norm(format_args!("{embeddings}.pre_layernorm"), hidden);
    for layer in 0..config.num_hidden_layers {
        let layer = format!("model.vision_model.encoder.layers.{layer}");
        table.linear(format_args!("{layer}.self_attn.query_key_value"), 3 * hidden, hidden, true);
        table.linear(format_args!("{layer}.self_attn.dense"), hidden, hidden, true);
        table.linear(format_args!("{layer}.mlp.fc1"), config.intermediate_size, hidden, true);
        table.linear(format_args!("{layer}.mlp.fc2"), hidden, config.intermediate_size, true);
        table.layer_norm(format_args!("{layer}.input_layernorm"), hidden);
        table.layer_norm(format_args!("{layer}.post_attention_layernorm"), hidden);
    }
    table.layer_norm("model.vision_model.post_layernorm", hidden);
}

fn abstractor(table: &mut Table, config: &AbstractorConfig, vision: &VisionConfig, language_width: i64) {
    let (hidden, intermediate) = (config.hidden_size, config.intermediate_size);
    let root = "model.visual_abstractor";
    table.parameter(format_args!("{root}.query_embeds"), &[1, config.num_learnable_queries, hidden]);
    table.parameter(format_args!("{root}.vit_eos"), &[1, 1, language_width]);
    table.linear(format_args!("{root}.visual_fc"), language_width, hidden, true);
    for layer in 0..config.num_hidden_layers {
        let layer = format!("{root}.encoder.layers.{layer}.crossattention");
        for projection in ["query", "key", "value"] {
            table.linear(format_args!("{layer}.attention.{projection}"), hidden, hidden, true);
        }
        table.layer_norm(format_args!("{layer}.norm1"), hidden);
        table.layer_norm(format_args!("{layer}.normk"), hidden);
        table.linear(format_args!("{layer}.output.out_proj"), hidden, hidden, true);
        table.layer_norm(format_args!("{layer}.output.norm2"), hidden);
        table.linear(format_args!("{layer}.output.mlp.w1"), intermediate, hidden, true);
        table.linear(format_args!("{layer}.output.mlp.w3"), intermediate, hidden, true);
        table.linear(format_args!("{layer}.output.mlp.w2"), hidden, intermediate, true);
        table.layer_norm(format_args!("{layer}.output.mlp.ffn_ln"), intermediate);
        let queries = format!("{layer}.attention.q_pos_embed");
        table.add(queries, &[config.num_learnable_queries, hidden], Role::Buffer);
        table.add(format!("{layer}.attention.k_pos_embed"), &[vision.positions(), hidden], Role::Buffer);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::synthetic;

    #[test]
    fn the_large_weights_of_the_layers_are_told_from_others() {
        let names: Vec<String> = expected_tensors(&synthetic::config())
            .into_iter()
            .filter(|(name, tensor)| is_layer_weight(name, &tensor.shape))
            .map(|(name, _)| name)
            .collect();
        // A layer: four of the vision model; q, o, gate, up, down and two each of k and v.
        assert_eq!(names.len(), 2 * 4 + 2 * 9, "{names:#?}");
        assert!(!names.iter().any(|name| name.contains("embed") || name.contains("lm_head")));
    }
}
