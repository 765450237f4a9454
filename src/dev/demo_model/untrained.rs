//! A small mPLUG-Owl2 that has learnt nothing yet, in the layout that `roc4mllm train` starts from.

use super::{
    DemoModelError,
    sight::{self, HIDDEN, LAYERS, PATCH, Values, WIDTH},
};
use crate::{
    model::{checkpoint::expected_tensors, config::ModelConfig},
    train::random::Random,
};
use clap::Args;
use safetensors::{Dtype, serialize_to_file, tensor::TensorView};
use serde_json::{Value, json};
use std::{
    collections::{BTreeMap, HashMap},
    fs,
    path::{Path, PathBuf},
};

/// Files of the checkpoint whose vocabulary is taken over.
const TOKENIZER: [&str; 3] = ["tokenizer.model", "special_tokens_map.json", "tokenizer_config.json"];

/// Pixels a side of the network's input. JPEG's blocks of 8 pixels fit into patches of 16.
pub const INPUT_EDGE: u32 = 128;
const PATCH_EDGE: u32 = PATCH as u32;

/// Write a small network with random weights, without score tokens
#[derive(Args, Clone, Debug)]
pub struct UntrainedArgs {
    /// Checkpoint folder whose tokenizer is used
    #[arg(long, value_name = "DIR")]
    pub tokenizer: PathBuf,
    /// Number of the tokenizer's pieces
    #[arg(long, value_name = "N")]
    pub vocabulary: i64,
    /// Where the checkpoint is written
    #[arg(long, value_name = "DIR")]
    pub output: PathBuf,
    /// Decides the weights
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
}

/// Writes the folder.
///
/// # Errors
/// [`DemoModelError`] where the tokenizer can't be read or the folder can't be written.
pub fn write(args: &UntrainedArgs) -> Result<(), DemoModelError> {
    let failed = |path: &Path| {
        let path = path.to_owned();
        move |source| DemoModelError::Write { path, source }
    };
    fs::create_dir_all(&args.output).map_err(failed(&args.output))?;
    for name in TOKENIZER {
        let path = args.tokenizer.join(name);
        let copied = fs::copy(&path, args.output.join(name));
        copied.map_err(|source| DemoModelError::Tokenizer { path, source })?;
    }
    for (name, value) in [("config.json", config(args.vocabulary)), ("preprocessor_config.json", processor())]
    {
        let path = args.output.join(name);
        fs::write(&path, format!("{value:#}\n")).map_err(failed(&path))?;
    }
    let config =
        ModelConfig::read(&args.output).map_err(|error| DemoModelError::Network(error.to_string()))?;
    let weights: Vec<(String, Vec<usize>, Vec<u8>)> = weights(&config, args.seed)
        .into_iter()
        .map(|(name, (shape, values))| (name, shape, values.into_iter().flat_map(f32::to_le_bytes).collect()))
        .collect();
    let views = weights.iter().map(|(name, shape, bytes)| {
        TensorView::new(Dtype::F32, shape.clone(), bytes).map(|view| (name.as_str(), view))
    });
    let views = views.collect::<Result<Vec<_>, _>>();
    let format = HashMap::from([("format".to_owned(), "pt".to_owned())]);
    views
        .and_then(|views| serialize_to_file(views, Some(format), &args.output.join("model.safetensors")))
        .map_err(|error| DemoModelError::Network(error.to_string()))
}

/// Two to three million parameters, most of them in the vision model: what there is to say is short, and a
/// vocabulary so small makes many tokens of a prompt. A picture makes 64 patches.
fn config(vocabulary: i64) -> Value {
    json!({
        "architectures": ["MPLUGOwl2LlamaForCausalLM"],
        "model_type": "mplug_owl2",
        "torch_dtype": "float32",
        "vocab_size": vocabulary,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
        "hidden_act": "silu",
        "hidden_size": 96,
        "intermediate_size": 192,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "max_position_embeddings": 512,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "image_aspect_ratio": "pad",
        "visual_config": {
            "visual_model": {
                "model_type": "mplug_owl_vision_model",
                "hidden_act": "quick_gelu",
                "hidden_size": WIDTH,
                "intermediate_size": HIDDEN,
                "num_hidden_layers": LAYERS,
                "num_attention_heads": 8,
                "num_channels": 3,
                "image_size": INPUT_EDGE,
                "patch_size": PATCH_EDGE,
                "layer_norm_eps": 1e-6,
            },
            "visual_abstractor": {
                "model_type": "mplug_owl_visual_abstract",
                "hidden_size": WIDTH,
                "intermediate_size": 256,
                "num_hidden_layers": 1,
                "num_attention_heads": 8,
                "num_learnable_queries": 16,
                "encoder_hidden_size": WIDTH,
                "grid_size": INPUT_EDGE / PATCH_EDGE,
                "layer_norm_eps": 1e-6,
            },
        },
    })
}

fn processor() -> Value {
    json!({
        "image_processor_type": "CLIPImageProcessor",
        "feature_extractor_type": "CLIPFeatureExtractor",
        "do_resize": true, "size": {"shortest_edge": INPUT_EDGE}, "resample": 3,
        "do_center_crop": true, "crop_size": {"height": INPUT_EDGE, "width": INPUT_EDGE},
        "do_rescale": true, "rescale_factor": 1.0 / 255.0, "do_convert_rgb": true,
        "do_normalize": true,
        "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_std": [0.26862954, 0.26130258, 0.27577711],
    })
}

/// Norms at 1, biases at 0, the text's embeddings uniform with a standard deviation of 0.02, others of 1, and
/// matrices uniform within the square root of three over their inputs, times their [`gain`]: each keeps the size
/// of what goes through it. Then [`sight::lay_down`].
fn weights(config: &ModelConfig, seed: u64) -> BTreeMap<String, Values> {
    let tensors = expected_tensors(config).into_iter().filter(|(_, expected)| !expected.role.may_be_absent());
    let mut tensors = tensors
        .map(|(name, expected)| {
            let shape: Vec<usize> = expected.shape.iter().map(|edge| edge.unsigned_abs() as usize).collect();
            let count: usize = shape.iter().product();
            let mut random = Random::new(seed, &name);
            let mut values_of = |deviation: f32| -> Vec<f32> {
                (0..count).map(|_| random.symmetric(deviation * 3_f32.sqrt())).collect()
            };
            let is_embedding = ["embed", "vit_eos", "cls_token"].iter().any(|part| name.contains(part));
            let values = match shape.as_slice() {
                [_] if name.ends_with(".bias") => vec![0.0; count],
                [_] => vec![1.0; count],
                _ if name.contains("embed_tokens") => values_of(0.02),
                _ if is_embedding => values_of(1.0),
                [_, inputs @ ..] => {
                    let inputs = inputs.iter().product::<usize>().max(1);
                    values_of(gain(&name) * (1.0 / inputs as f32).sqrt())
                }
                [] => vec![0.0; count],
            };
            (name, (shape, values))
        })
        .collect();
    sight::lay_down(&mut tensors, &mut Random::new(seed, "sight"));
    tensors
}

/// What attention takes from a picture must not drown in what it takes from the prompt.
fn gain(name: &str) -> f32 {
    if name.contains("v_proj.multiway.1") { 4.0 } else { 1.0 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::checkpoint::Checkpoint;

    #[test]
    fn the_network_opens_as_a_checkpoint_of_a_few_million_parameters() {
        let output = tempfile::tempdir().unwrap();
        let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/golden/base_safetensors");
        let fixtures = if fixtures.exists() { fixtures } else { fixtures.with_file_name("ckpt_safetensors") };
        let vocabulary = 600;
        write(&UntrainedArgs { tokenizer: fixtures, vocabulary, output: output.path().into(), seed: 1 })
            .unwrap();
        let checkpoint = Checkpoint::open(output.path()).unwrap();
        let parameters: i64 = expected_tensors(checkpoint.config())
            .values()
            .filter(|expected| !expected.role.may_be_absent())
            .map(|expected| expected.shape.iter().product::<i64>())
            .sum();
        assert!((2_000_000..6_000_000).contains(&parameters), "{parameters}");
        assert!(
            checkpoint
                .tensors()
                .unwrap()
                .values()
                .all(|tensor| tensor.isfinite().all().int64_value(&[]) == 1)
        );
    }
}
