//! A plain multimodal checkpoint made one with a score head: `[SCORE]` and a token a bin.

use super::loss::LossSettings;
use crate::model::{
    checkpoint::{CheckpointError, expected_tensors, write_json},
    config::ModelConfig,
    fields::{ConfigError, read_object},
    score_head::SCORE_TOKEN,
    tokenizer::{Tokenizer, TokenizerError},
};
use serde_json::{Map, Value, json};
use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};
use tch::{Kind, TchError, Tensor};

/// The score head that a checkpoint gets.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Growth {
    /// Bins of the rating distribution: from `min_score` to `max_score` at equal distances.
    pub num_tokens: u32,
    pub min_score: f64,
    pub max_score: f64,
}

/// A checkpoint that can't get a score head.
#[derive(Debug, thiserror::Error)]
pub enum GrowthError {
    #[error("--num-tokens, --min-score and --max-score describe one score head; give all three")]
    Incomplete,
    #[error("a score head of {num_tokens} tokens from {min_score} to {max_score}: {problem}")]
    Impossible { num_tokens: u32, min_score: f64, max_score: f64, problem: &'static str },
    #[error("{}: the checkpoint has score tokens already; leave --num-tokens out", .0.display())]
    HasScoreTokens(PathBuf),
    #[error("{}: the tokenizer has `{token}` already; start from a plain mPLUG-Owl2 checkpoint", .folder.display())]
    TokenExists { folder: PathBuf, token: String },
    #[error(
        "{}: the tokenizer has {tokens} tokens and config.json a vocabulary of {vocabulary}; \
         both must be of the same checkpoint", .folder.display()
    )]
    Vocabulary { folder: PathBuf, tokens: usize, vocabulary: i64 },
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
}

impl Growth {
    /// From the three flags; nothing where none is given.
    ///
    /// # Errors
    /// [`GrowthError`] for some of them without the others, or a range that holds no bins.
    pub fn from_flags(
        num_tokens: Option<u32>,
        min_score: Option<f64>,
        max_score: Option<f64>,
    ) -> Result<Option<Self>, GrowthError> {
        let (num_tokens, min_score, max_score) = match (num_tokens, min_score, max_score) {
            (None, None, None) => return Ok(None),
            (Some(num_tokens), Some(min_score), Some(max_score)) => (num_tokens, min_score, max_score),
            _ => return Err(GrowthError::Incomplete),
        };
        let impossible = |problem| GrowthError::Impossible { num_tokens, min_score, max_score, problem };
        if !(2..=1 << 16).contains(&num_tokens) {
            return Err(impossible("a distribution has 2 to 65536 bins"));
        }
        if !(min_score.is_finite() && max_score.is_finite() && min_score < max_score) {
            return Err(impossible("the lowest score must be below the highest"));
        }
        Ok(Some(Self { num_tokens, min_score, max_score }))
    }

    /// Writes the settings of the plain checkpoint `from` to `to` as the reference's training changes
    /// them: the tokens go to `added_tokens.json`, the padding token to `special_tokens_map.json`, ids
    /// and range to the `config.json` that is there already.
    ///
    /// # Errors
    /// [`GrowthError`] when `from` is no plain checkpoint, or `to` can't be written.
    pub fn write_settings(&self, from: &Path, to: &Path, loss: &LossSettings) -> Result<(), GrowthError> {
        let plain = ModelConfig::read(from)?;
        if plain.score.is_some() {
            return Err(GrowthError::HasScoreTokens(from.to_owned()));
        }
        let tokenizer = Tokenizer::open(from)?;
        let vocabulary = plain.language.vocab_size;
        if tokenizer.len() as i64 != vocabulary {
            let tokens = tokenizer.len();
            return Err(GrowthError::Vocabulary { folder: from.to_owned(), tokens, vocabulary });
        }

        let bins = (0..self.num_tokens).map(|bin| format!("[IMG{bin}]"));
        let tokens: Vec<String> = std::iter::once(SCORE_TOKEN.to_owned()).chain(bins).collect();
        if let Some(token) = tokens.iter().find(|token| tokenizer.id(token).is_some()) {
            return Err(GrowthError::TokenExists { folder: from.to_owned(), token: token.clone() });
        }
        let mut added = optional_object(&from.join("added_tokens.json"))?;
        for (id, token) in (vocabulary..).zip(tokens) {
            added.insert(token, id.into());
        }
        write_sorted(&to.join("added_tokens.json"), added)?;

        let mut map = optional_object(&from.join("special_tokens_map.json"))?;
        map.insert("pad_token".into(), tokenizer.token(tokenizer.unknown()).into());
        write_sorted(&to.join("special_tokens_map.json"), map)?;

        let mut config = read_object(&to.join("config.json"))?;
        config.extend(self.fields(vocabulary, loss));
        write_sorted(&to.join("config.json"), config)
    }

    /// What `config.json` says of the score head, and of the training that made it.
    fn fields(&self, vocabulary: i64, loss: &LossSettings) -> Map<String, Value> {
        let num_tokens = i64::from(self.num_tokens);
        let fields = [
            ("vocab_size", json!(vocabulary + 1 + num_tokens)),
            ("score_id", json!(vocabulary)),
            ("output_first_id", json!(vocabulary + 1)),
            ("output_last_id", json!(vocabulary + num_tokens)),
            ("img_token_num", json!(num_tokens)),
            ("num_tokens", json!(num_tokens)),
            ("min_score", whole_or_not(self.min_score)),
            ("max_score", whole_or_not(self.max_score)),
            ("image_aspect_ratio", json!("pad")),
            ("image_grid_pinpoints", Value::Null),
            ("l1_weight", json!(loss.l1_weight)),
            ("ce_weight", json!(loss.ce_weight)),
            ("emd_weight", json!(loss.emd_weight)),
        ];
        fields.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
    }
}

/// The object in a settings file; an empty one where there is no file.
fn optional_object(file: &Path) -> Result<Map<String, Value>, GrowthError> {
    if file.exists() { Ok(read_object(file)?) } else { Ok(Map::new()) }
}

/// Writes an object with its keys in order, as transformers does.
fn write_sorted(file: &Path, mut object: Map<String, Value>) -> Result<(), GrowthError> {
    object.sort_keys();
    Ok(write_json(file, &Value::Object(object))?)
}

/// A number that has no fraction without one, as the reference writes what it was given.
fn whole_or_not(number: f64) -> Value {
    let whole = number as i64;
    if whole as f64 == number { json!(whole) } else { json!(number) }
}

/// Appends rows to each tensor that the grown `config` asks for with more of them: the mean of those
/// that are there.
///
/// # Errors
/// Whatever torch reports.
pub fn grow_tensors(config: &ModelConfig, tensors: &mut BTreeMap<String, Tensor>) -> Result<(), TchError> {
    let _no_grad = tch::no_grad_guard();
    for (name, expected) in expected_tensors(config) {
        let Some(tensor) = tensors.get_mut(&name) else { continue };
        let missing = expected.shape[0] - tensor.size()[0];
        if missing <= 0 || expected.shape[1..] != tensor.size()[1..] {
            continue;
        }
        let mean = tensor.f_to_kind(Kind::Float)?.f_mean_dim([0].as_slice(), true, Kind::Float)?;
        let mut rows = expected.shape.clone();
        rows[0] = missing;
        let new = mean.f_to_kind(tensor.kind())?.f_expand(&rows[..], false)?;
        *tensor = Tensor::f_cat(&[&*tensor, &new], 0)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_come_together_and_make_sense() {
        let message = |tokens, min, max| Growth::from_flags(tokens, min, max).unwrap_err().to_string();
        assert_eq!(Growth::from_flags(None, None, None).unwrap(), None);
        assert!(Growth::from_flags(Some(10), Some(1.0), Some(10.0)).unwrap().is_some());
        assert!(message(Some(10), None, Some(10.0)).contains("give all three"));
        assert!(message(Some(1), Some(1.0), Some(10.0)).contains("bins"));
        assert!(message(Some(10), Some(10.0), Some(1.0)).contains("below"));
        assert!(message(Some(10), Some(f64::NAN), Some(1.0)).contains("below"));
    }

    #[test]
    fn whole_numbers_have_no_fraction() {
        assert_eq!(whole_or_not(10.0).to_string(), "10");
        assert_eq!(whole_or_not(-0.5).to_string(), "-0.5");
    }
}
