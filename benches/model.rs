//! The network's speed as a fraction of the same machine's matrix multiplication, for layers of the
//! published model's dimensions with made-up weights.
//!
//! Two layers of each part stand for all of them: every layer does the same work, and what is left
//! out (the patch embedding counts, the vocabulary does not) is a few percent of the whole.

mod support {
    pub mod peak;
    pub mod results;
    pub mod timing;
}

use roc4mllm::model::{
    checkpoint::expected_tensors,
    config::{AbstractorConfig, LanguageConfig, ModelConfig, SpecialTokens, VisionConfig},
    family::{Block, Family},
    mplug_owl2::MplugOwl2,
    parameters::Parameters,
};
use support::peak::{Peak, language_work, volume};
use tch::{Device, Kind, Tensor};

const LAYERS: i64 = 2;
/// Positions of the prompt's text, about as many as the usual prompt has.
const TEXT: i64 = 64;

fn main() {
    let _no_grad = tch::no_grad_guard();
    for (kind, peak) in Peak::of_each_type() {
        let network = network(kind);
        for batch in [1, 4] {
            let run = || drop(network.vision().forward(&pixels(batch, kind)).expect("a forward pass"));
            let work = vision_work(&network.config().vision, batch);
            peak.compare(&name("vision", &peak, batch), "vision", batch, work, run);
            let positions = TEXT + network.image_positions();
            let width = network.config().language.hidden_size;
            let embeddings = Tensor::randn([batch, positions, width], (kind, Device::Cpu));
            let image = TEXT / 2..TEXT / 2 + network.image_positions();
            let run = || {
                let mut cache = network.new_cache(batch, positions).expect("a cache");
                let block = Block::new(&embeddings, image.clone());
                drop(network.forward(&block, &mut cache).expect("a forward pass"));
            };
            let work = language_work(&network.config().language, positions, batch);
            peak.compare(&name("language", &peak, batch), "language", batch, work, run);
        }
    }
}

/// The plain name is the largest batch in f32, the type that every processor multiplies at speed.
fn name(part: &str, peak: &Peak, batch: i64) -> String {
    match (peak.dtype, batch) {
        ("f32", 4) => format!("{part}_peak_fraction"),
        (dtype, batch) => format!("{part}_peak_fraction_{dtype}_b{batch}"),
    }
}

/// Floating-point operations of the vision model over `batch` images, counted as
/// [`language_work`] does.
fn vision_work(config: &VisionConfig, batch: i64) -> f64 {
    let VisionConfig { hidden_size: width, intermediate_size: wide, patch_size: patch, .. } = *config;
    let positions = config.positions();
    let embedding = volume(&[positions - 1, 3 * patch * patch, width]);
    let layer =
        volume(&[positions, width, 4 * width + 2 * wide]) + 2.0 * volume(&[positions, positions, width]);
    2.0 * batch as f64 * (embedding + LAYERS as f64 * layer)
}

fn pixels(images: i64, kind: Kind) -> Tensor {
    Tensor::randn([images, 3, 448, 448], (kind, Device::Cpu))
}

/// The published dimensions but for the number of layers and the vocabulary.
fn network(kind: Kind) -> MplugOwl2 {
    let config = ModelConfig {
        model_type: "mplug_owl2".into(),
        torch_dtype: None,
        image_aspect_ratio: None,
        language: LanguageConfig {
            vocab_size: 64,
            hidden_size: 4096,
            intermediate_size: 11008,
            num_hidden_layers: LAYERS,
            num_attention_heads: 32,
            num_key_value_heads: 32,
            max_position_embeddings: 2048,
            rms_norm_eps: 1e-5,
            rope_theta: 10_000.0,
            rope_scaling: None,
            attention_bias: false,
            tie_word_embeddings: false,
        },
        vision: VisionConfig {
            hidden_size: 1024,
            intermediate_size: 4096,
            num_hidden_layers: LAYERS,
            num_attention_heads: 16,
            num_channels: 3,
            image_size: 448,
            patch_size: 14,
            layer_norm_eps: 1e-6,
        },
        abstractor: AbstractorConfig {
            hidden_size: 1024,
            intermediate_size: 2816,
            num_hidden_layers: 1,
            num_attention_heads: 16,
            num_learnable_queries: 64,
            grid_size: 32,
            layer_norm_eps: 1e-6,
        },
        score: None,
        special: SpecialTokens { bos: 1, eos: vec![2], pad: 0 },
    };
    let weights =
        expected_tensors(&config).into_iter().filter(|(_, expected)| !expected.role.may_be_absent());
    let weights = weights.map(|(name, expected)| {
        let weight = (Tensor::randn(&expected.shape, (Kind::Float, Device::Cpu)) * 0.02).to_kind(kind);
        (name, weight)
    });
    MplugOwl2::new(config, Parameters::new(weights.collect())).expect("every weight is there")
}
