//! `prompts.json`: the ids that the model is given.

use crate::support::{checkpoint_folders, json};
use roc4mllm::model::{
    config::ModelConfig,
    prompt::{IMAGE_ID, PromptTokens},
    tokenizer::Tokenizer,
};
use serde::Deserialize;
use std::collections::BTreeMap;

const FILE: &str = "prompts.json";

#[derive(Deserialize)]
struct Golden {
    prompt: String,
    input_ids: Vec<i64>,
    /// `null` where the image is.
    tokens: Vec<Option<String>>,
    image_position: usize,
    n_ids: usize,
    n_expanded: usize,
}

#[test]
fn golden_prompts() {
    let prompts: BTreeMap<String, Golden> = json(FILE);
    assert!(!prompts.is_empty(), "{FILE}: no prompts");
    for folder in checkpoint_folders() {
        let tokenizer = Tokenizer::open(&folder).unwrap();
        let config = ModelConfig::read(&folder).unwrap();
        let image_positions = usize::try_from(config.image_positions()).unwrap();
        for (name, golden) in &prompts {
            let prompt = PromptTokens::new(&golden.prompt, &tokenizer).unwrap();
            assert_eq!(prompt.ids(), golden.input_ids, "{FILE}: {name}: input_ids");
            assert_eq!(prompt.before_image.len(), golden.image_position, "{FILE}: {name}: image_position");
            assert_eq!(prompt.ids().len(), golden.n_ids, "{FILE}: {name}: n_ids");
            assert_eq!(prompt.positions(image_positions), golden.n_expanded, "{FILE}: {name}: n_expanded");
            let tokens: Vec<_> = prompt
                .ids()
                .into_iter()
                .map(|id| if id == IMAGE_ID { None } else { tokenizer.token(u32::try_from(id).unwrap()) })
                .collect();
            let expected: Vec<_> = golden.tokens.iter().map(Option::as_deref).collect();
            assert_eq!(tokens, expected, "{FILE}: {name}: tokens");
        }
    }
}
