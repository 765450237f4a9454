//! Low-rank adaptation (Hu et al. 2021, LoRA): beside each targeted weight `W`, which stays as it is,
//! two small matrices are trained, and `W + alpha / rank * B A` is what is computed with.

use super::random::Random;
use crate::model::parameters::Parameters;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use tch::{Kind, TchError, Tensor};

/// The language model's attention and MLP projections; keys and values of both modalities.
pub const DEFAULT_TARGETS: [&str; 7] =
    ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"];

/// What is adapted, and how much it can change.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LoraSettings {
    /// The most dimensions in which a weight changes; at least 1.
    pub rank: i64,
    /// The change is scaled by `alpha / rank`, so that another rank needs no other learning rate.
    pub alpha: f64,
    /// Names of linear maps, as parts of tensor names: `q_proj` is all of that name in the network,
    /// `layers.3.mlp` everything in there.
    pub targets: Vec<String>,
}

/// Settings that don't fit the network.
#[derive(Debug, thiserror::Error)]
pub enum LoraError {
    #[error("the LoRA target `{given}` names no linear map of this network; use some of {known}")]
    UnknownTarget { given: String, known: String },
    #[error("LoRA needs at least one target; use some of {known}")]
    NoTarget { known: String },
    #[error(
        "LoRA of rank {rank} would change `{name}` in all of its {most} dimensions; choose a lower rank, \
         or train whole weights"
    )]
    Rank { rank: i64, name: String, most: i64 },
    #[error("LoRA needs a rank of 1 or more")]
    NoRank,
    #[error("torch failed to lay out the LoRA adapters ({0}); free memory, or choose a lower rank")]
    Torch(#[from] TchError),
}

/// The adapters of a network: what LoRA trains instead of weights.
pub struct Lora {
    scale: f64,
    /// By the whole name of the adapted map, without `.weight`.
    adapters: BTreeMap<String, Adapter>,
}

struct Adapter {
    /// `[rank, inputs]`, of its weight's type.
    a: Tensor,
    /// `[outputs, rank]`, likewise.
    b: Tensor,
}

impl Lora {
    /// Fresh adapters for the targeted maps of a network, of the type and on the device of its weights: `A` uniform
    /// over `±1 / sqrt(inputs)` (Kaiming's initialisation for a slope of `sqrt(5)`, the usual choice),
    /// and `B` zero, so that training begins with the network as it is.
    ///
    /// # Errors
    /// [`LoraError`] for a target that isn't there, or a rank that is no restriction.
    pub fn new(settings: &LoraSettings, parameters: &Parameters, seed: u64) -> Result<Self, LoraError> {
        let maps: BTreeMap<&str, &Tensor> = parameters
            .iter()
            .filter_map(|(name, weight)| Some((linear_map(name, weight)?, weight)))
            .collect();
        let known = || last_parts(maps.keys().copied());
        if settings.rank < 1 {
            return Err(LoraError::NoRank);
        }
        if settings.targets.is_empty() {
            return Err(LoraError::NoTarget { known: known() });
        }
        for target in &settings.targets {
            if !maps.keys().any(|name| is_part(target, name)) {
                return Err(LoraError::UnknownTarget { given: target.clone(), known: known() });
            }
        }
        let rank = settings.rank;
        let adapters = maps
            .into_iter()
            .filter(|(name, _)| settings.targets.iter().any(|target| is_part(target, name)))
            .map(|(name, weight)| {
                let (outputs, inputs) = weight.size2()?;
                let most = outputs.min(inputs);
                if rank >= most {
                    return Err(LoraError::Rank { rank, name: name.to_owned(), most });
                }
                let mut random = Random::new(seed, &format!("{name}.lora_A"));
                let limit = 1.0 / (inputs as f32).sqrt();
                let values: Vec<f32> = (0..rank * inputs).map(|_| random.symmetric(limit)).collect();
                let (kind, device) = (weight.kind(), weight.device());
                let a = Tensor::f_from_slice(&values)?.f_view([rank, inputs])?;
                let a = a.f_to_kind(kind)?.f_to_device(device)?;
                let b = Tensor::f_zeros([outputs, rank], (kind, device))?;
                Ok((name.to_owned(), Adapter { a, b }))
            })
            .collect::<Result<_, LoraError>>()?;
        Ok(Self { scale: settings.alpha / rank as f64, adapters })
    }

    /// `alpha / rank`.
    pub fn scale(&self) -> f64 {
        self.scale
    }

    /// Handles to all adapters, by the names under which [`Parameters::with_adapters`] takes them.
    pub fn tensors(&self) -> BTreeMap<String, Tensor> {
        let pair = |(name, adapter): (&String, &Adapter)| {
            [
                (format!("{name}.lora_A.weight"), adapter.a.shallow_clone()),
                (format!("{name}.lora_B.weight"), adapter.b.shallow_clone()),
            ]
        };
        self.adapters.iter().flat_map(pair).collect()
    }

    /// The weight to publish under `name`: with the change that was learnt for it, if any, added in
    /// f32 and then rounded to the weight's own type.
    pub fn merged(&self, name: &str, weight: &Tensor) -> Result<Tensor, TchError> {
        let Some(adapter) = name.strip_suffix(".weight").and_then(|map| self.adapters.get(map)) else {
            return Ok(weight.shallow_clone());
        };
        let _no_grad = tch::no_grad_guard();
        let wide = |tensor: &Tensor| tensor.f_to_kind(Kind::Float);
        let change = wide(&adapter.b)?.f_matmul(&wide(&adapter.a)?)?.f_mul_scalar(self.scale)?;
        wide(weight)?.f_add(&change)?.f_to_kind(weight.kind())
    }
}

/// The name of the linear map whose weight this is. Embeddings and the head are matrices too, but
/// theirs are looked up in, or grow with the vocabulary.
fn linear_map<'a>(name: &'a str, weight: &Tensor) -> Option<&'a str> {
    let map = name.strip_suffix(".weight")?;
    (weight.dim() == 2 && !["embed_tokens", "lm_head"].iter().any(|other| is_part(other, map))).then_some(map)
}

/// Whether the dotted parts of `part` follow one another in `name`.
fn is_part(part: &str, name: &str) -> bool {
    !part.is_empty() && format!(".{name}.").contains(&format!(".{part}."))
}

/// What targets are usually called: the last part of each name that isn't a number or `multiway`.
fn last_parts<'a>(names: impl Iterator<Item = &'a str>) -> String {
    let last = |name: &'a str| {
        name.rsplit('.').find(|part| *part != "multiway" && !part.bytes().all(|byte| byte.is_ascii_digit()))
    };
    let parts: BTreeSet<String> = names.filter_map(last).map(|part| format!("`{part}`")).collect();
    parts.into_iter().collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{
        family::{Block, Family},
        mplug_owl2::MplugOwl2,
        passes::Passes,
        synthetic::{config, distance, network, noise, parameters},
    };

    fn settings(rank: i64, targets: &[&str]) -> LoraSettings {
        let targets = targets.iter().map(|&target| target.to_owned()).collect();
        LoraSettings { rank, alpha: 6.0, targets }
    }

    /// An adapted network whose `B` are no longer zero.
    fn adapted(rank: i64, targets: &[&str]) -> (Lora, MplugOwl2) {
        let lora = Lora::new(&settings(rank, targets), &parameters(&config()), 5).unwrap();
        for (seed, adapter) in lora.adapters.values().enumerate() {
            adapter.b.shallow_clone().copy_(&noise(&adapter.b.size(), seed as u32));
        }
        let parameters = parameters(&config()).with_adapters(lora.tensors(), lora.scale());
        (lora, MplugOwl2::new(config(), parameters).unwrap())
    }

    fn answer(network: &MplugOwl2) -> Tensor {
        let image = network.encode_images_in(&noise(&[2, 3, 12, 12], 1), &mut Passes::Kept).unwrap();
        let text = noise(&[2, 4, 32], 2);
        let embeddings = Tensor::cat(&[&text, &image], 1);
        let block = Block::new(&embeddings, 4..4 + image.size()[1]);
        let mut cache = network.new_cache(2, 16).unwrap();
        network.logits(&network.forward(&block, &mut cache).unwrap()).unwrap()
    }

    #[test]
    fn fresh_adapters_change_nothing_and_follow_the_seed() {
        let lora = |seed| Lora::new(&settings(3, &DEFAULT_TARGETS), &parameters(&config()), seed).unwrap();
        let adapted = parameters(&config()).with_adapters(lora(5).tensors(), lora(5).scale());
        let adapted = MplugOwl2::new(config(), adapted).unwrap();
        assert!(distance(&answer(&adapted), &answer(&network(config()))) == 0.0);

        let (one, same, other) = (lora(5), lora(5), lora(6));
        for (name, adapter) in &one.adapters {
            assert!(adapter.a.equal(&same.adapters[name].a), "{name}");
            assert!(!adapter.a.equal(&other.adapters[name].a), "{name}");
            let limit = 1.0 / (adapter.a.size()[1] as f64).sqrt();
            let largest = adapter.a.abs().max().double_value(&[]);
            assert!(largest <= limit && largest > 0.9 * limit, "{name}: {largest} of {limit}");
        }
    }

    #[test]
    fn the_default_targets_are_the_language_models_projections() {
        let lora = Lora::new(&settings(3, &DEFAULT_TARGETS), &parameters(&config()), 5).unwrap();
        // Of two layers: q, o and three of the MLP once each, k and v once per modality.
        assert_eq!(lora.adapters.len(), 2 * (5 + 2 * 2));
        assert!(lora.adapters.keys().all(|name| name.starts_with("model.layers.")));
        assert!(lora.adapters.contains_key("model.layers.1.self_attn.v_proj.multiway.1"));
    }

    #[test]
    fn what_is_merged_computes_what_was_trained() {
        let (lora, network) = adapted(3, &["q_proj", "v_proj", "down_proj", "fc1", "key"]);
        let merged = parameters(&config())
            .iter()
            .map(|(name, weight)| (name.to_owned(), lora.merged(name, weight).unwrap()))
            .collect();
        let merged = MplugOwl2::new(config(), Parameters::new(merged)).unwrap();
        let moved = distance(&answer(&network), &answer(&crate::model::synthetic::network(config())));
        assert!(moved > 0.1, "{moved}");
        assert!(distance(&answer(&merged), &answer(&network)) < 1e-4 * moved);
    }

    #[test]
    fn targets_change_by_their_rank_at_most_and_nothing_else_does() {
        let (lora, _) = adapted(3, &DEFAULT_TARGETS);
        let mut changed = 0;
        for (name, weight) in parameters(&config()).iter() {
            let merged = lora.merged(name, weight).unwrap();
            if DEFAULT_TARGETS.iter().any(|target| is_part(target, name)) && name.ends_with(".weight") {
                let change = (merged - weight).to_kind(Kind::Double);
                let (_, singular, _) = change.svd(true, true);
                let singular = Vec::<f64>::try_from(singular).unwrap();
                // Beyond the rank only the rounding of f32 is left.
                assert!(singular[2] > 1e-3 && singular[3] < 1e-5 * singular[0], "{name}: {singular:?}");
                changed += 1;
            } else {
                assert!(merged.equal(weight), "{name}");
            }
        }
        assert_eq!(changed, lora.adapters.len());
    }

    #[test]
    fn only_adapters_get_gradients_and_every_linear_map_can_have_one() {
        let parts = [&DEFAULT_TARGETS[..], &["query_key_value", "dense", "fc1", "fc2", "visual_fc"]].concat();
        let parts = [&parts[..], &["query", "key", "value", "out_proj", "w1", "w2", "w3"]].concat();
        let (lora, network) = adapted(2, &parts);
        let maps = parameters(&config());
        let maps = maps.iter().filter(|(name, weight)| linear_map(name, weight).is_some()).count();
        assert_eq!(lora.adapters.len(), maps);
        for tensor in lora.tensors().values() {
            let _ = tensor.set_requires_grad(true);
        }
        answer(&network).square().sum(Kind::Float).backward();
        for (name, tensor) in network.parameters().iter() {
            assert_eq!(tensor.grad().defined(), name.contains(".lora_"), "{name}");
        }
    }

    #[test]
    fn what_does_not_fit_is_named() {
        let error = |rank, targets: &[&str]| {
            Lora::new(&settings(rank, targets), &parameters(&config()), 1).err().unwrap().to_string()
        };
        let message = error(2, &["q_proj", "q_porj"]);
        assert!(message.contains("`q_porj`") && message.contains("`k_proj`"), "{message}");
        assert!(!message.contains("lm_head") && !message.contains("multiway"), "{message}");
        for target in ["lm_head", "embed_tokens", "input_layernorm", "", "proj"] {
            assert!(error(2, &[target]).contains("names no linear map"));
        }
        assert!(error(2, &[]).contains("at least one target"));
        assert!(error(0, &["q_proj"]).contains("1 or more"));
        // Two key heads of 8 values: k_proj is 16 by 32.
        let message = error(16, &["k_proj"]);
        assert!(message.contains("rank 16") && message.contains("k_proj.multiway.0`"), "{message}");
    }
}
