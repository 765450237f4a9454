//! What verified decoding saves: the language model's time for a photo, token by token and verified,
//! for layers of the published model's dimensions with made-up weights.
//!
//! A prompt of 118 positions, 65 of them the image's, and an answer of 14 tokens, as the usual prompt
//! and answer are. The weights are such that every image gets that answer: what the layers add to a
//! token's embedding is small, and the head finds in an embedding the token that comes next. That
//! changes none of the layers' work. Generation computes the whole prompt and every layer at all of
//! its positions, and then a token a pass over a key-value cache, as the reference does; it leaves out
//! only the reference's logits of positions that nobody reads.
//!
//! `cargo bench --bench decode -- --device cuda:0` measures all layers on a GPU.

mod support {
    pub mod device;
    pub mod results;
    pub mod timing;
}

use roc4mllm::model::{
    checkpoint::expected_tensors,
    config::{AbstractorConfig, LanguageConfig, ModelConfig, SpecialTokens, VisionConfig},
    decode::{EmbeddedPrompt, Generated, GreedyOptions, Verifier, generate},
    device::{Quantize, has_bf16_instructions},
    mplug_owl2::MplugOwl2,
    parameters::{Inference, Parameters},
};
use std::time::Instant;
use support::{
    device::{Place, names},
    results::{Entry, record},
    timing::interleaved,
};
use tch::{Kind, Tensor};

/// Where a CPU computes.
const LAYERS: i64 = 4;
const ALL_LAYERS: i64 = 32;
const HIDDEN: i64 = 4096;
const BINS: i64 = 10;
/// As after training: 32,000 pieces, `[SCORE]`, and the bins.
const VOCABULARY: i64 = 32_000 + 1 + BINS;
const SCORE: i64 = 32_000;
const END: i64 = 2;
/// Text before and after the image.
const PROMPT: [usize; 2] = [35, 18];
const IMAGE_POSITIONS: i64 = 65;
/// Ids of the answer: eleven in, the score; fourteen in, the end.
const ANSWER: [i64; 14] = [450, 263, 342, 386, 293, 6554, 310, 278, 1967, 338, SCORE, 869, 29871, END];

/// Unless others are named, 1 first: `cargo bench --bench decode -- 1 8`.
const BATCHES: [i64; 4] = [1, 4, 8, 16];
const GPU_BATCHES: [i64; 4] = [1, 8, 32, 64];
const RUNS: usize = 5;

fn main() {
    let _no_grad = tch::no_grad_guard();
    let place = Place::asked();
    let (kind, dtype) = match place.is_gpu() || has_bf16_instructions() {
        true => (Kind::BFloat16, "bf16"),
        false => (Kind::Float, "f32"),
    };
    let layers = if place.is_gpu() { ALL_LAYERS } else { LAYERS };
    tch::manual_seed(1);
    let [before, after] = prompt();
    let model = network(kind, layers, after[after.len() - 1], place);
    let prompt = EmbeddedPrompt::new(&model, &before, &after).expect("an embedded prompt");
    let options =
        GreedyOptions { end_tokens: vec![END], score_token: SCORE, bins: BINS, max_new_tokens: 512 };
    println!(
        "{layers} layers of {HIDDEN}, {dtype}, {}, {} prompt positions, {} answer tokens; milliseconds a photo (medians of {RUNS})",
        place.label(),
        prompt.text_positions() + IMAGE_POSITIONS,
        ANSWER.len()
    );
    let named: Vec<i64> = names().filter_map(|argument| argument.parse().ok()).collect();
    let usual = if place.is_gpu() { GPU_BATCHES } else { BATCHES };
    let batches = if named.is_empty() { usual.to_vec() } else { named };
    let (model, prompt, options) = (&model, &prompt, &options);
    let mut runs: Vec<Box<dyn FnMut() + '_>> = Vec::new();
    for &batch in &batches {
        let images = Tensor::randn([batch, IMAGE_POSITIONS, HIDDEN], (kind, place.device));
        let same = images.shallow_clone();
        runs.push(Box::new(move || {
            let (embeddings, image) = prompt.around(&images).expect("embeddings");
            check(&generate(model, &embeddings, image, options).expect("answers"), ANSWER.len());
        }));
        let mut verifier = Verifier::new(model, prompt).expect("a verifier");
        verifier.learn(&ANSWER);
        runs.push(Box::new(move || {
            check(&verifier.answer(model, prompt, &same, options).expect("answers"), 1);
        }));
    }
    // All batch sizes by turns, so that they too can be compared.
    let mut contenders: Vec<&mut dyn FnMut()> = runs.iter_mut().map(|run| &mut **run as _).collect();
    let start = Instant::now();
    let times = interleaved(|| start.elapsed(), RUNS, &mut contenders);

    println!("{:>5} {:>9} {:>9} {:>6} {:>6}", "batch", "generate", "verify", "ratio", "gain");
    let (what, suffix) = (format!("{layers} layers, {dtype}, {}", place.label()), place.suffix());
    let mut alone = None;
    for (batch, times) in batches.into_iter().zip(times.chunks_exact(2)) {
        let [generate, verify] = [0, 1].map(|index| times[index].as_secs_f64() * 1e3 / batch as f64);
        record(&[Entry {
            name: &format!("verify_speedup_b{batch}{suffix}"),
            value: verify,
            unit: "ms/photo",
            against: &format!("generate, batch {batch}, {what}"),
            against_value: generate,
            ratio: generate / verify,
            runs: RUNS,
        }]);
        let alone = *alone.get_or_insert(generate);
        println!(
            "{batch:>5} {generate:>9.2} {verify:>9.2} {:>6.2} {:>6.2}",
            generate / verify,
            alone / generate
        );
        if batch > 1 {
            record(&[Entry {
                name: &format!("batch_gain_b{batch}{suffix}"),
                value: generate,
                unit: "ms/photo",
                against: &format!("generate, batch 1, {what}"),
                against_value: alone,
                ratio: alone / generate,
                runs: RUNS,
            }]);
        }
    }
}

/// Every image must get the answer, in so many passes.
fn check(answers: &[Generated], passes: usize) {
    for answer in answers {
        assert_eq!(answer.tokens, ANSWER);
        assert_eq!(answer.forwards as usize, passes);
    }
}

/// Ids that stand before and after the image: none of the answer's.
fn prompt() -> [Vec<i64>; 2] {
    let ids = |from: i64, count: usize| (from..).take(count).collect();
    [ids(1000, PROMPT[0]), ids(2000, PROMPT[1])]
}

/// The published dimensions of the language model but for the number of layers; next to nothing of the
/// rest. `last` is the prompt's last id.
fn network(kind: Kind, layers: i64, last: i64, place: Place) -> MplugOwl2 {
    let config = ModelConfig {
        model_type: "mplug_owl2".into(),
        torch_dtype: None,
        image_aspect_ratio: None,
        language: LanguageConfig {
            vocab_size: VOCABULARY,
            hidden_size: HIDDEN,
            intermediate_size: 11008,
            num_hidden_layers: layers,
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
            hidden_size: 16,
            intermediate_size: 16,
            num_hidden_layers: 1,
            num_attention_heads: 2,
            num_channels: 3,
            image_size: 448,
            patch_size: 14,
            layer_norm_eps: 1e-6,
        },
        abstractor: AbstractorConfig {
            hidden_size: 16,
            intermediate_size: 16,
            num_hidden_layers: 1,
            num_attention_heads: 2,
            num_learnable_queries: IMAGE_POSITIONS - 1,
            grid_size: 32,
            layer_norm_eps: 1e-6,
        },
        score: None,
        special: SpecialTokens { bos: 1, eos: vec![END], pad: 0 },
    };
    let expected =
        expected_tensors(&config).into_iter().filter(|(_, expected)| !expected.role.may_be_absent());
    let weights = expected.map(|(name, expected)| {
        let size = match name.as_str() {
            "model.embed_tokens.weight" => 1.0,
            // What a layer adds to its input.
            name if name.ends_with("o_proj.weight") || name.ends_with("down_proj.weight") => 1e-4,
            _ => 0.02,
        };
        let weight = Tensor::empty(&expected.shape, (Kind::Float, place.device)).uniform_(-size, size);
        let weight = if expected.shape.len() == 1 { weight + 1.0 } else { weight };
        (name, weight.to_kind(kind))
    });
    // As they are by default where there is memory enough.
    let pack = kind == Kind::BFloat16 && !place.is_gpu();
    let inference = Inference { kind, device: place.device, quantize: Quantize::None, pack };
    let parameters = Parameters::new(weights.collect()).for_inference(inference);
    let find = |name: &str| parameters.root().tensor(name).expect("a weight of that name");
    let (embeddings, head) = (find("model.embed_tokens.weight"), find("lm_head.weight"));
    for (token, next) in std::iter::once(&last).chain(&ANSWER).zip(ANSWER) {
        head.get(next).copy_(&(embeddings.get(*token) * 0.1));
    }
    MplugOwl2::new(config, parameters).expect("every weight is there")
}
