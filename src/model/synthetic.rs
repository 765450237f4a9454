//! Small networks with made-up weights, for tests.

use super::{
    checkpoint::expected_tensors,
    config::{AbstractorConfig, LanguageConfig, ModelConfig, ScoreHeadConfig, SpecialTokens, VisionConfig},
    mplug_owl2::MplugOwl2,
    parameters::Parameters,
};
use tch::Tensor;

/// Two layers of each part, grouped-query attention, biases, 5 bins.
pub fn config() -> ModelConfig {
    ModelConfig {
        model_type: "mplug_owl2".into(),
        torch_dtype: None,
        image_aspect_ratio: None,
        language: LanguageConfig {
            vocab_size: 60,
            hidden_size: 32,
            intermediate_size: 48,
            num_hidden_layers: 2,
            num_attention_heads: 4,
            num_key_value_heads: 2,
            max_position_embeddings: 512,
            rms_norm_eps: 1e-5,
            rope_theta: 10_000.0,
            rope_scaling: None,
            attention_bias: true,
            tie_word_embeddings: false,
        },
        vision: VisionConfig {
            hidden_size: 16,
            intermediate_size: 24,
            num_hidden_layers: 2,
            num_attention_heads: 2,
            num_channels: 3,
            image_size: 12,
            patch_size: 4,
            layer_norm_eps: 1e-6,
        },
        abstractor: AbstractorConfig {
            hidden_size: 16,
            intermediate_size: 20,
            num_hidden_layers: 2,
            num_attention_heads: 2,
            num_learnable_queries: 4,
            grid_size: 3,
            layer_norm_eps: 1e-6,
        },
        score: Some(ScoreHeadConfig {
            score_id: 54,
            output_first_id: Some(55),
            output_last_id: Some(59),
            num_tokens: 5,
            min_score: 1.0,
            max_score: 5.0,
        }),
        special: SpecialTokens { bos: 1, eos: vec![2], pad: 0 },
    }
}

/// Made-up weights for `config`, the same at each call: norms near 1 and small biases, so that
/// answers depend on what went in.
pub fn parameters(config: &ModelConfig) -> Parameters {
    let tensors = expected_tensors(config).into_iter().filter(|(_, expected)| !expected.role.may_be_absent());
    let weights = tensors.enumerate().map(|(seed, (name, expected))| {
        let noise = noise(&expected.shape, seed as u32);
        let weight = match (&expected.shape[..], name.ends_with(".bias")) {
            ([_], false) => noise + 1.0,
            (_, true) => noise * 0.1,
            _ => noise,
        };
        (name, weight)
    });
    Parameters::new(weights.collect())
}

pub fn network(config: ModelConfig) -> MplugOwl2 {
    let parameters = parameters(&config);
    MplugOwl2::new(config, parameters).unwrap()
}

/// Values spread evenly over -0.5 to 0.5 in an order that `seed` decides.
pub fn noise(shape: &[i64], seed: u32) -> Tensor {
    let mut state = seed.wrapping_mul(0x9E37_79B9).wrapping_add(0x85EB_CA6B);
    let values: Vec<f32> = (0..shape.iter().product::<i64>())
        .map(|_| {
            // Numerical Recipes' linear congruential generator; its high bits are good enough here.
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as f32 / (1 << 24) as f32 - 0.5
        })
        .collect();
    Tensor::from_slice(&values).view(shape)
}

/// Largest absolute difference.
pub fn distance(one: &Tensor, other: &Tensor) -> f64 {
    assert_eq!(one.size(), other.size());
    (one - other).abs().max().double_value(&[])
}
