//! Floating-point operations of one image, counted from the dimensions.
//!
//! Every matrix multiplication counts, attention's two included, two operations a multiplication and
//! addition. Norms, activations, rotary positions and softmax are left out: they are a few thousandths
//! of the whole.

use crate::model::config::{AbstractorConfig, LanguageConfig, ModelConfig, VisionConfig};
use serde::Serialize;

/// Which positions one pass of the language model computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct LanguagePass {
    /// Positions whose keys and values are there already.
    pub cached: u64,
    /// Positions that are new.
    pub new: u64,
    /// The last of the new positions, as many as are read: the last layer computes only keys and values
    /// for the others.
    pub read: u64,
    /// Positions that logits are computed for.
    pub logits: u64,
}

/// What one image's prompt and answer are long, in positions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct PromptLengths {
    /// Text before the image, the same for every image.
    pub prefix: u64,
    /// Positions of the image.
    pub image: u64,
    /// Text after the image.
    pub suffix: u64,
    /// Tokens of the answer, its end token included.
    pub answer: u64,
}

impl PromptLengths {
    /// Positions of the whole prompt.
    pub fn prompt(&self) -> u64 {
        self.prefix + self.image + self.suffix
    }

    /// The one pass of verified decoding: the prefix is in the cache, and of the drafted answer all but
    /// its end token is appended, since the position before each token is the one that predicts it.
    pub fn verified(&self) -> Vec<LanguagePass> {
        let drafted = self.answer.saturating_sub(1);
        vec![LanguagePass {
            cached: self.prefix,
            new: self.image + self.suffix + drafted,
            read: self.answer,
            logits: self.answer,
        }]
    }

    /// The passes of the reference: the whole prompt with logits at every position, then a token a pass.
    pub fn reference(&self) -> Vec<LanguagePass> {
        let prompt = self.prompt();
        let prefill = LanguagePass { cached: 0, new: prompt, read: prompt, logits: prompt };
        let steps = (0..self.answer.saturating_sub(1)).map(|step| LanguagePass {
            cached: prompt + step,
            new: 1,
            read: 1,
            logits: 1,
        });
        std::iter::once(prefill).chain(steps).collect()
    }
}

/// Floating-point operations of one image, by part of the network.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Work {
    pub vision: VisionWork,
    pub abstractor: f64,
    pub language: LanguageWork,
    pub total: f64,
}

/// Of the vision model.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct VisionWork {
    /// Patches to embeddings.
    pub patch_embedding: f64,
    /// Weights of all layers.
    pub linear: f64,
    pub attention: f64,
}

/// Of the language model.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct LanguageWork {
    /// Weights of all layers.
    pub linear: f64,
    pub attention: f64,
    /// Of the vocabulary.
    pub logits: f64,
}

impl VisionWork {
    pub fn total(&self) -> f64 {
        self.patch_embedding + self.linear + self.attention
    }

    /// The work of one image.
    pub fn of(config: &VisionConfig) -> Self {
        let (positions, width) = (config.positions(), config.hidden_size);
        let pixels = config.num_channels * config.patch_size * config.patch_size;
        let layers = config.num_hidden_layers;
        Self {
            patch_embedding: operations(&[positions - 1, pixels, width]),
            linear: operations(&[layers, positions, width, 4 * width + 2 * config.intermediate_size]),
            attention: operations(&[layers, 2, positions, positions, width]),
        }
    }
}

impl LanguageWork {
    pub fn total(&self) -> f64 {
        self.linear + self.attention + self.logits
    }

    /// The work of one row in all of its passes.
    pub fn of(config: &LanguageConfig, passes: &[LanguagePass]) -> Self {
        let (width, key_value) = (config.hidden_size, config.key_value_width());
        let inner = config.intermediate_size;
        let mut work = Self::default();
        for pass in passes {
            let [cached, new, read, logits] =
                [pass.cached, pass.new, pass.read.min(pass.new), pass.logits].map(signed);
            let keys_and_values = operations(&[2, width, key_value]);
            let others = operations(&[width, 2 * width + 3 * inner]);
            // A position sees those before it and itself: a sum from cached + 1 on.
            let seen = |queries: i64| {
                let last = cached + new;
                (queries * (2 * last - queries + 1)) as f64 / 2.0
            };
            for layer in 1..=config.num_hidden_layers {
                let queries = if layer == config.num_hidden_layers { read } else { new };
                work.linear += keys_and_values * new as f64 + others * queries as f64;
                work.attention += operations(&[2, width]) * seen(queries);
            }
            work.logits += operations(&[logits, width, config.vocab_size]);
        }
        work
    }
}

/// The work of one image in the visual abstractor. Keys and values are those of the queries and of all
/// vision positions.
pub fn abstractor_work(config: &AbstractorConfig, vision: &VisionConfig, language_width: i64) -> f64 {
    let (queries, width) = (config.num_learnable_queries, config.hidden_size);
    let context = queries + vision.positions();
    let layer = operations(&[2, context, width, width])
        + operations(&[2, queries, width, width])
        + operations(&[2, queries, context, width])
        + operations(&[3, queries, width, config.intermediate_size]);
    config.num_hidden_layers as f64 * layer + operations(&[queries, width, language_width])
}

impl Work {
    /// The work of one image whose answer takes `passes` of the language model.
    pub fn of(config: &ModelConfig, passes: &[LanguagePass]) -> Self {
        let vision = VisionWork::of(&config.vision);
        let abstractor = abstractor_work(&config.abstractor, &config.vision, config.language.hidden_size);
        let language = LanguageWork::of(&config.language, passes);
        Self { vision, abstractor, language, total: vision.total() + abstractor + language.total() }
    }
}

/// Two for each multiplication and addition of a product of these sizes.
fn operations(sizes: &[i64]) -> f64 {
    2.0 * sizes.iter().map(|&size| size as f64).product::<f64>()
}

fn signed(count: u64) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::synthetic;
    use proptest::prelude::*;

    #[test]
    fn every_multiplication_of_a_small_network_is_counted() {
        let config = synthetic::config();
        // 10 positions (a 3x3 grid and the class token) of width 16, inner width 24, 2 layers.
        let vision = VisionWork::of(&config.vision);
        assert_eq!(vision.patch_embedding, 2.0 * 9.0 * 48.0 * 16.0);
        assert_eq!(vision.linear, 2.0 * 2.0 * 10.0 * (16.0 * 48.0 + 16.0 * 16.0 + 2.0 * 16.0 * 24.0));
        assert_eq!(vision.attention, 2.0 * 2.0 * (2.0 * 10.0 * 10.0 * 16.0));
        // Width 32, keys of width 16, inner width 48, 2 layers; 3 new positions behind 5, the last is read.
        let pass = LanguagePass { cached: 5, new: 3, read: 1, logits: 1 };
        let language = LanguageWork::of(&config.language, &[pass]);
        let key_value = 2.0 * 32.0 * 16.0;
        let others = 2.0 * 32.0 * 32.0 + 3.0 * 32.0 * 48.0;
        assert_eq!(language.linear, 2.0 * (2.0 * 3.0 * key_value + (3.0 + 1.0) * others));
        assert_eq!(language.attention, 2.0 * 2.0 * 32.0 * ((6.0 + 7.0 + 8.0) + 8.0));
        assert_eq!(language.logits, 2.0 * 32.0 * 60.0);
        // 4 queries of width 16, 14 keys, inner width 20, 2 layers.
        let layer = 2.0 * 14.0 * 256.0 + 2.0 * 4.0 * 256.0 + 2.0 * 4.0 * 14.0 * 16.0 + 3.0 * 4.0 * 320.0;
        let abstractor = abstractor_work(&config.abstractor, &config.vision, 32);
        assert_eq!(abstractor, 2.0 * (2.0 * layer + 4.0 * 16.0 * 32.0));
    }

    proptest! {
        /// A prompt in one pass or in two is the same work, as long as every position is computed whole.
        #[test]
        fn passes_add_up(first in 1_u64..200, second in 1_u64..200, logits in 0_u64..50) {
            let language = synthetic::config().language;
            let new = first + second;
            let whole = [LanguagePass { cached: 0, new, read: new, logits }];
            let parts = [
                LanguagePass { cached: 0, new: first, read: first, logits: 0 },
                LanguagePass { cached: first, new: second, read: second, logits },
            ];
            prop_assert_eq!(LanguageWork::of(&language, &whole), LanguageWork::of(&language, &parts));
        }

        #[test]
        fn verified_decoding_never_does_more_than_the_reference(
            prefix in 0_u64..100, image in 1_u64..100, suffix in 1_u64..100, answer in 1_u64..50
        ) {
            let config = synthetic::config();
            let lengths = PromptLengths { prefix, image, suffix, answer };
            let (verified, reference) = (lengths.verified(), lengths.reference());
            let new = |passes: &[LanguagePass]| passes.iter().map(|pass| pass.new).sum::<u64>();
            prop_assert_eq!(new(&verified) + prefix, new(&reference));
            prop_assert!(Work::of(&config, &verified).total <= Work::of(&config, &reference).total);
        }
    }
}
