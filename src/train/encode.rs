//! A conversation as token ids, and which of them are learnt: what the reference's
//! `preprocess_multimodal` and `preprocess_v1` make of it.

use crate::{
    labels::Turn,
    model::{
        prompt::{IMAGE_PLACEHOLDER, SYSTEM, encode_with_images},
        tokenizer::{Tokenizer, TokenizerError, is_python_space},
    },
};

/// The label of a position that nothing is learnt from.
pub const IGNORED: i64 = -100;

const HUMAN: Role = Role { from: "human", name: "USER", end: " " };
const MODEL: Role = Role { from: "gpt", name: "ASSISTANT", end: "</s>" };

/// Stands between a question and its answer.
const ANSWER_MARK: &str = " ASSISTANT: ";

/// Tokens of a text that ends with [`ANSWER_MARK`] that are not part of the question: the begin
/// token, and the space that belongs to the answer once there is one.
const NOT_IN_QUESTION: usize = 2;

/// One side of a conversation.
struct Role {
    /// What samples call it.
    from: &'static str,
    /// What the prompt calls it.
    name: &'static str,
    /// Follows each of its messages.
    end: &'static str,
}

/// A conversation that can't be encoded.
#[derive(Debug, thiserror::Error)]
pub enum EncodeError {
    #[error("turn {turn} of conversations is from `{from}`; turns are from human and gpt, by turns")]
    Role { turn: usize, from: String },
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
}

/// A conversation, ready to be learnt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Encoded {
    /// Token ids, with [`IMAGE_ID`](crate::model::prompt::IMAGE_ID) where an image goes.
    pub ids: Vec<i64>,
    /// The ids again, [`IGNORED`] wherever they are not part of an answer.
    pub labels: Vec<i64>,
    /// Set where the ids of the rounds don't add up to those of the whole; every label is then
    /// [`IGNORED`], since it isn't known which ids are the answers.
    pub mismatch: Option<Mismatch>,
}

/// How many ids the rounds of a conversation have by themselves, and how many it has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mismatch {
    pub counted: usize,
    pub total: usize,
}

/// The ids and labels of a conversation. `has_image` says whether [`IMAGE_PLACEHOLDER`] stands for an
/// image; otherwise it is text. `pad` is the padding token of the tokenizer.
///
/// As in the reference, an image comes first in its message whatever the sample says, once, and a
/// conversation begins with `human`: an earlier turn is no part of it.
///
/// # Errors
/// [`EncodeError`] for turns in another order, or text that has no tokens.
pub fn encode(
    turns: &[Turn],
    has_image: bool,
    tokenizer: &Tokenizer,
    pad: i64,
) -> Result<Encoded, EncodeError> {
    let text = conversation_text(turns, has_image)?;
    let tokenize = |text: &str| -> Result<Vec<i64>, TokenizerError> {
        match has_image {
            true => encode_with_images(text, tokenizer),
            false => Ok(tokenizer.encode(text)?.into_iter().map(i64::from).collect()),
        }
    };
    let ids = tokenize(&text)?;
    let mut labels = ids.clone();
    let mut ignore = |from: usize, to: usize| {
        let end = labels.len();
        labels[from.min(end)..to.min(end)].fill(IGNORED);
    };
    // The begin token of the first round; each round's own stands for the end token of the one before.
    let mut counted = 1;
    ignore(0, counted);
    for round in text.split(MODEL.end) {
        let mut parts = round.split(ANSWER_MARK);
        let (Some(question), Some(_), None) = (parts.next(), parts.next(), parts.next()) else {
            break;
        };
        let question = tokenize(&format!("{question}{ANSWER_MARK}"))?;
        ignore(counted, counted + question.len().saturating_sub(NOT_IN_QUESTION));
        counted += tokenize(round)?.len();
    }
    ignore(counted, usize::MAX);
    let total = ids.iter().filter(|&&id| id != pad).count();
    let mismatch = (counted != total).then_some(Mismatch { counted, total });
    if mismatch.is_some() {
        ignore(0, usize::MAX);
    }
    Ok(Encoded { ids, labels, mismatch })
}

/// The whole text of a conversation, as the reference's template `v1` writes it.
fn conversation_text(turns: &[Turn], has_image: bool) -> Result<String, EncodeError> {
    let skipped = usize::from(turns.first().is_some_and(|turn| turn.from == MODEL.from));
    let mut text = format!("{SYSTEM} ");
    for ((number, turn), role) in (1..).zip(turns).skip(skipped).zip([HUMAN, MODEL].iter().cycle()) {
        if turn.from != role.from {
            return Err(EncodeError::Role { turn: number, from: turn.from.clone() });
        }
        let message = if has_image { image_first(&turn.value) } else { turn.value.clone() };
        text.push_str(role.name);
        text.push(':');
        if !message.is_empty() {
            text.push(' ');
            text.push_str(&message);
            text.push_str(role.end);
        }
    }
    Ok(text)
}

/// A message with its image, if it has any, before its text.
fn image_first(message: &str) -> String {
    if !message.contains(IMAGE_PLACEHOLDER) {
        return message.to_owned();
    }
    let text = message.replace(IMAGE_PLACEHOLDER, "");
    let whole = format!("{IMAGE_PLACEHOLDER}\n{}", text.trim_matches(is_python_space));
    whole.trim_matches(is_python_space).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn turn(from: &str, value: &str) -> Turn {
        Turn { from: from.into(), value: value.into() }
    }

    #[test]
    fn an_image_comes_first_and_once() {
        assert_eq!(image_first(" Rate.\n<|image|>"), "<|image|>\nRate.");
        assert_eq!(image_first("<|image|>Compare<|image|>"), "<|image|>\nCompare");
        assert_eq!(image_first("<|image|>"), "<|image|>");
        assert_eq!(image_first(" Rate. "), " Rate. ");
    }

    #[test]
    fn turns_alternate_from_the_first_question() {
        let text = |turns: &[Turn]| conversation_text(turns, false);
        let rounds = [turn("human", "a"), turn("gpt", "b"), turn("human", "c"), turn("gpt", "")];
        let expected = format!("{SYSTEM} USER: a ASSISTANT: b</s>USER: c ASSISTANT:");
        assert_eq!(text(&rounds).unwrap(), expected);
        let late = [&[turn("gpt", "x")][..], &rounds].concat();
        assert_eq!(text(&late).unwrap(), expected);
        let message = text(&[turn("human", "a"), turn("human", "b")]).unwrap_err().to_string();
        assert!(message.contains("turn 2") && message.contains("`human`"), "{message}");
        let message = text(&[turn("user", "a")]).unwrap_err().to_string();
        assert!(message.contains("turn 1") && message.contains("`user`"), "{message}");
    }
}
