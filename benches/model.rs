//! The network's speed as a fraction of the same machine's matrix multiplication, for layers of the
//! published model's dimensions with made-up weights.
//!
//! Two layers of each part stand for all of them: every layer does the same work, and what is left
//! out (the patch embedding counts, the vocabulary does not) is a few percent of the whole.
//!
//! `cargo bench --bench model -- peak` and `-- w8a8` measure a part alone; `-- --device cuda:0` measures all
//! layers on a GPU.

mod support {
    pub mod device;
    pub mod peak;
    pub mod results;
    pub mod timing;
}

use roc4mllm::{
    model::{
        checkpoint::expected_tensors,
        config::{AbstractorConfig, LanguageConfig, ModelConfig, SpecialTokens, VisionConfig},
        device::{Quantize, has_bf16_instructions},
        family::{Block, Family},
        mplug_owl2::MplugOwl2,
        parameters::{Inference, Parameters},
    },
    plan::work::VisionWork,
};
use support::{
    device::{Place, names},
    peak::{Peak, RUNS, clock, language_work},
    results::{Entry, record},
    timing::interleaved,
};
use tch::{Kind, Tensor};

/// Of vision and language model, where a CPU computes.
const LAYERS: i64 = 2;
/// All of them: of the vision model and of the language model.
const ALL_LAYERS: [i64; 2] = [24, 32];
/// Positions of the prompt's text, about as many as the usual prompt has.
const TEXT: i64 = 64;

fn main() {
    let _no_grad = tch::no_grad_guard();
    let place = Place::asked();
    if wanted("w8a8") && !place.is_gpu() {
        compare_quantized(place);
    }
    if !wanted("peak") {
        return;
    }
    let batches: &[i64] = if place.is_gpu() { &[1, 8, 32, 64] } else { &[1, 4] };
    for (kind, peak) in Peak::of_each_type(place) {
        // Bf16 weights are packed by default where there is memory enough; where there is not, they are used
        // as they are mapped.
        let packs = kind == Kind::BFloat16 && !place.is_gpu();
        let inference = Inference { kind, device: place.device, quantize: Quantize::None, pack: packs };
        let network = network(inference);
        let mapped = packs.then(|| self::network(Inference { pack: false, ..inference }));
        for &batch in batches {
            let pixels = pixels(batch, kind, place);
            let run = || drop(network.vision().forward(&pixels).expect("a forward pass"));
            let work = batch as f64 * VisionWork::of(&network.config().vision).total();
            peak.compare(&name("vision", &peak, batch), "vision", batch, work, run);
            let embeddings = embeddings(&network, batch, kind);
            let positions = embeddings.size()[1];
            let run = || read(&network, &embeddings);
            let work = language_work(&network.config().language, positions, batch);
            peak.compare(&name("language", &peak, batch), "language", batch, work, run);
            if let Some(mapped) = &mapped {
                let run = || read(mapped, &embeddings);
                peak.compare(&name("language_mapped", &peak, batch), "mapped", batch, work, run);
            }
        }
    }
}

/// Whether a part was asked for by its name on the command line, or none was.
fn wanted(part: &str) -> bool {
    let mut names = names().peekable();
    names.peek().is_none() || names.any(|name| name == part)
}

/// Both parts with weights and activations in bytes, beside bf16: the same images, the same prompt.
fn compare_quantized(place: Place) {
    if !has_bf16_instructions() {
        println!("w8a8: not measured, since this processor has no bf16 instructions to compare with");
        return;
    }
    let networks = [Quantize::None, Quantize::W8a8].map(|quantize| {
        let pack = quantize == Quantize::None;
        network(Inference { kind: Kind::BFloat16, device: place.device, quantize, pack })
    });
    for batch in [1, 4] {
        let pixels = pixels(batch, Kind::BFloat16, place);
        let embeddings = embeddings(&networks[0], batch, Kind::BFloat16);
        let [bf16, w8a8] = &networks;
        let see = |network: &MplugOwl2| drop(network.vision().forward(&pixels).expect("a forward pass"));
        let times = interleaved(
            clock(place),
            RUNS,
            &mut [&mut || see(bf16), &mut || see(w8a8), &mut || read(bf16, &embeddings), &mut || {
                read(w8a8, &embeddings)
            }],
        );
        let ms = |index: usize| times[index].as_secs_f64() * 1e3;
        for (part, bf16, w8a8) in
            [("", ms(0) + ms(2), ms(1) + ms(3)), ("_vision", ms(0), ms(1)), ("_language", ms(2), ms(3))]
        {
            let name = match batch {
                1 => format!("w8a8_speedup{part}"),
                batch => format!("w8a8_speedup{part}_b{batch}"),
            };
            println!("{name}: {w8a8:.1} ms, bf16 {bf16:.1} ms, {:.2} times as fast", bf16 / w8a8);
            record(&[Entry {
                name: &name,
                value: w8a8,
                unit: "ms",
                against: &format!("the same layers in bf16, {}", place.label()),
                against_value: bf16,
                ratio: bf16 / w8a8,
                runs: RUNS,
            }]);
        }
    }
}

/// What stands for a prompt with its image in the middle.
fn embeddings(network: &MplugOwl2, batch: i64, kind: Kind) -> Tensor {
    let positions = TEXT + network.image_positions();
    Tensor::randn([batch, positions, network.config().language.hidden_size], (kind, network.device()))
}

/// One pass of the language model over whole rows.
fn read(network: &MplugOwl2, embeddings: &Tensor) {
    let (rows, positions, _) = embeddings.size3().expect("three dimensions");
    let mut cache = network.new_cache(rows, positions).expect("a cache");
    let block = Block::new(embeddings, TEXT / 2..TEXT / 2 + network.image_positions());
    drop(network.forward(&block, &mut cache).expect("a forward pass"));
}

/// The plain name is the largest batch in f32, the type that every processor multiplies at speed.
fn name(part: &str, peak: &Peak, batch: i64) -> String {
    match (peak.dtype, batch) {
        ("f32", 4) => format!("{part}_peak_fraction"),
        (dtype, batch) => format!("{part}_peak_fraction_{dtype}_b{batch}"),
    }
}

fn pixels(images: i64, kind: Kind, place: Place) -> Tensor {
    Tensor::randn([images, 3, 448, 448], (kind, place.device))
}

/// The published dimensions but for the vocabulary, and on a CPU the number of layers.
fn network(inference: Inference) -> MplugOwl2 {
    let Inference { kind, device, .. } = inference;
    let [vision_layers, language_layers] = if device.is_cuda() { ALL_LAYERS } else { [LAYERS; 2] };
    let config = ModelConfig {
        model_type: "mplug_owl2".into(),
        torch_dtype: None,
        image_aspect_ratio: None,
        language: LanguageConfig {
            vocab_size: 64,
            hidden_size: 4096,
            intermediate_size: 11008,
            num_hidden_layers: language_layers,
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
            num_hidden_layers: vision_layers,
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
        let weight = (Tensor::randn(&expected.shape, (Kind::Float, device)) * 0.02).to_kind(kind);
        (name, weight)
    });
    let parameters = Parameters::new(weights.collect()).for_inference(inference);
    MplugOwl2::new(config, parameters).expect("every weight is there")
}
