//! A training step of a language model with made-up weights, and the memory that it takes.

use roc4mllm::model::{
    checkpoint::{Role, expected_tensors},
    config::{AbstractorConfig, LanguageConfig, ModelConfig, SpecialTokens, VisionConfig},
    family::Sequences,
    mplug_owl2::LanguageModel,
    parameters::Parameters,
    passes::Passes,
};
use std::{fs, ops::Range};
use tch::{Device, Kind, Tensor};

/// Dimensions of a LLaMA without grouped queries, and with next to no vocabulary.
pub fn config(hidden_size: i64, intermediate_size: i64, heads: i64, layers: i64) -> LanguageConfig {
    LanguageConfig {
        vocab_size: 64,
        hidden_size,
        intermediate_size,
        num_hidden_layers: layers,
        num_attention_heads: heads,
        num_key_value_heads: heads,
        max_position_embeddings: 2048,
        rms_norm_eps: 1e-5,
        rope_theta: 10_000.0,
        rope_scaling: None,
        attention_bias: false,
        tie_word_embeddings: false,
    }
}

/// A language model all of whose weights are trained.
pub struct Trained {
    model: LanguageModel,
    parameters: Parameters,
    config: LanguageConfig,
}

impl Trained {
    pub fn new(config: LanguageConfig, kind: Kind) -> Self {
        tch::manual_seed(1);
        let weights = expected_tensors(&whole(&config)).into_iter().filter(|(name, expected)| {
            let elsewhere = ["model.vision_model.", "model.visual_abstractor."];
            expected.role == Role::Parameter && !elsewhere.iter().any(|part| name.starts_with(part))
        });
        let weights = weights.map(|(name, expected)| {
            let weight = Tensor::randn(&expected.shape, (Kind::Float, Device::Cpu)) * 0.02;
            let weight = if expected.shape.len() == 1 { weight + 1.0 } else { weight };
            (name, weight.to_kind(kind).set_requires_grad(true))
        });
        let parameters = Parameters::new(weights.collect());
        let model = LanguageModel::new(&parameters.root(), &config).expect("every weight is there");
        Self { model, parameters, config }
    }

    /// `rows` rows of random positions, those in `image` of the image.
    pub fn embeddings(&self, rows: i64, positions: i64) -> Tensor {
        let kind = self.model.cache_shape().kind;
        Tensor::randn([rows, positions, self.config.hidden_size], (kind, Device::Cpu))
    }

    /// Forward and backward pass; gives the loss.
    pub fn step(&self, embeddings: &Tensor, image: &Range<i64>, gradient_checkpointing: bool) -> f64 {
        let images = vec![image.clone(); embeddings.size()[0] as usize];
        let mut passes = Passes::new(gradient_checkpointing);
        let sequences = Sequences { embeddings, images: &images };
        let hidden = self.model.forward_sequences(&sequences, &mut passes).expect("a forward pass");
        let loss = hidden.square().mean(Kind::Float);
        passes.backward(&loss).expect("a backward pass");
        loss.double_value(&[])
    }

    /// The sum of all gradients' absolute values.
    pub fn gradients(&self) -> f64 {
        let gradients = self.parameters.iter().map(|(_, weight)| weight.grad());
        gradients
            .filter(Tensor::defined)
            .map(|gradient| gradient.abs().sum(Kind::Double).double_value(&[]))
            .sum()
    }
}

/// Bytes that `run` holds resident at its most, beyond what was resident before.
pub fn extra_memory(run: impl FnOnce()) -> u64 {
    // Lets the kernel's high-water mark start afresh.
    fs::write("/proc/self/clear_refs", "5").expect("the high-water mark can be reset");
    let before = resident("VmRSS:");
    run();
    resident("VmHWM:").saturating_sub(before)
}

fn resident(field: &str) -> u64 {
    let status = fs::read_to_string("/proc/self/status").expect("a status");
    let line = status.lines().find_map(|line| line.strip_prefix(field)).expect("the field");
    line.trim().trim_end_matches("kB").trim().parse::<u64>().expect("a number") * 1024
}

/// What else belongs to a network's configuration.
fn whole(language: &LanguageConfig) -> ModelConfig {
    ModelConfig {
        model_type: "mplug_owl2".into(),
        torch_dtype: None,
        image_aspect_ratio: None,
        language: language.clone(),
        vision: VisionConfig {
            hidden_size: 16,
            intermediate_size: 16,
            num_hidden_layers: 1,
            num_attention_heads: 1,
            num_channels: 3,
            image_size: 14,
            patch_size: 14,
            layer_norm_eps: 1e-6,
        },
        abstractor: AbstractorConfig {
            hidden_size: 16,
            intermediate_size: 16,
            num_hidden_layers: 1,
            num_attention_heads: 1,
            num_learnable_queries: 1,
            grid_size: 1,
            layer_norm_eps: 1e-6,
        },
        score: None,
        special: SpecialTokens { bos: 1, eos: vec![2], pad: 0 },
    }
}
