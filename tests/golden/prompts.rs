//! `prompts.json`: the ids that the model is given.

use crate::support::{checkpoint_folders, json};
use roc4mllm::model::{
    config::ModelConfig,
    prompt::{IMAGE_PLACEHOLDER, PromptTokens, prompt_text},
    settings::PromptChoice,
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

fn golden() -> BTreeMap<String, Golden> {
    let prompts: BTreeMap<String, Golden> = json(FILE);
    assert!(!prompts.is_empty(), "{FILE}: no prompts");
    prompts
}

/// The setting that asks with one of the file's prompts: the built-in choice of that name where the
/// text is that one's, or else the question in it.
pub fn choice(name: &str) -> PromptChoice {
    let prompts = golden();
    let text = &prompts.get(name).unwrap_or_else(|| panic!("{FILE}: no prompt {name}")).prompt;
    let question = text.split_once(IMAGE_PLACEHOLDER).and_then(|(_, rest)| rest.rsplit_once(" ASSISTANT:"));
    let (question, _) = question.unwrap_or_else(|| panic!("{FILE}: {name}: no question in {text:?}"));
    let choices = [PromptChoice::from(name.to_owned()), PromptChoice::Text(question.to_owned())];
    let found = choices.into_iter().find(|choice| prompt_text(choice).is_ok_and(|ours| ours == *text));
    found.unwrap_or_else(|| panic!("{FILE}: {name}: no setting gives {text:?}"))
}

#[test]
fn golden_prompts() {
    let prompts = golden();
    for folder in checkpoint_folders() {
        let tokenizer = Tokenizer::open(&folder).unwrap();
        let config = ModelConfig::read(&folder).unwrap();
        let image_positions = usize::try_from(config.image_positions()).unwrap();
        for (name, golden) in &prompts {
            let prompt = PromptTokens::new(&golden.prompt, &tokenizer)
                .unwrap_or_else(|error| panic!("{FILE}: {name}: {error}"));
            assert_eq!(prompt.ids(), golden.input_ids, "{FILE}: {name}: input_ids");
            assert_eq!(prompt.before_image.len(), golden.image_position, "{FILE}: {name}: image_position");
            assert_eq!(prompt.ids().len(), golden.n_ids, "{FILE}: {name}: n_ids");
            assert_eq!(prompt.positions(image_positions), golden.n_expanded, "{FILE}: {name}: n_expanded");
            let tokens: Vec<_> = prompt
                .ids()
                .into_iter()
                .map(|id| u32::try_from(id).ok().and_then(|id| tokenizer.token(id)))
                .collect();
            let expected: Vec<_> = golden.tokens.iter().map(Option::as_deref).collect();
            assert_eq!(tokens, expected, "{FILE}: {name}: tokens");
        }
    }
}
