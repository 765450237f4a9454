//! What the model is asked: the conversation around the image, in text and in token ids.

use super::{
    settings::PromptChoice,
    tokenizer::{Tokenizer, TokenizerError},
};

/// What stands for the image in a prompt's text.
pub const IMAGE_PLACEHOLDER: &str = "<|image|>";

/// What stands for the image among token ids, as in the reference.
pub const IMAGE_ID: i64 = -200;

/// What every conversation begins with.
pub(crate) const SYSTEM: &str = "A chat between a curious user and an artificial intelligence assistant. \
                      The assistant gives helpful, detailed, and polite answers to the user's questions.";
const QUESTION: &str = "Please rate the aesthetics of the image.";
const ANSWER_START: &str = "The aesthetic rate of the image is";

/// A prompt's text that can't be used.
#[derive(Debug, thiserror::Error)]
pub enum PromptError {
    #[error("the prompt is empty; give a question, or `assess` or `arch`")]
    Empty,
    #[error(
        "the prompt has {count} places for an image ({IMAGE_PLACEHOLDER}), but one image is scored at a time; \
         give the question alone: the image is put before it"
    )]
    Placeholders { count: usize },
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
}

impl PromptError {
    /// A prompt doesn't change by asking again.
    pub fn disposition(&self) -> crate::fault::Disposition {
        crate::fault::Disposition::Stop
    }
}

/// The whole text of a prompt, with [`IMAGE_PLACEHOLDER`] where the image goes.
///
/// # Errors
/// [`PromptError`] for a question that is empty or holds a placeholder of its own.
pub fn prompt_text(choice: &PromptChoice) -> Result<String, PromptError> {
    let (question, answer_start) = match choice {
        PromptChoice::Assess => (QUESTION, ""),
        // The reference glues the answer to the colon, unlike the samples it was trained on.
        PromptChoice::Arch => (QUESTION, ANSWER_START),
        PromptChoice::Text(question) => (question.trim(), ""),
    };
    if question.is_empty() {
        return Err(PromptError::Empty);
    }
    match question.matches(IMAGE_PLACEHOLDER).count() {
        0 => Ok(format!("{SYSTEM} USER: {IMAGE_PLACEHOLDER}\n{question} ASSISTANT:{answer_start}")),
        own => Err(PromptError::Placeholders { count: own + 1 }),
    }
}

/// A prompt as token ids, split where the image goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PromptTokens {
    /// The same for every image, begin token first.
    pub before_image: Vec<i64>,
    pub after_image: Vec<i64>,
}

impl PromptTokens {
    /// The ids of a choice of prompt.
    ///
    /// # Errors
    /// As [`prompt_text`] and [`Self::new`].
    pub fn of_choice(choice: &PromptChoice, tokenizer: &Tokenizer) -> Result<Self, PromptError> {
        Self::new(&prompt_text(choice)?, tokenizer)
    }

    /// The ids of a prompt's whole text, which names the image's place once.
    ///
    /// # Errors
    /// [`PromptError::Placeholders`] for any other number of places.
    pub fn new(text: &str, tokenizer: &Tokenizer) -> Result<Self, PromptError> {
        let ids = encode_with_images(text, tokenizer)?;
        let mut parts = ids.split(|id| *id == IMAGE_ID);
        match (parts.next(), parts.next(), parts.count()) {
            (Some(before), Some(after), 0) => {
                Ok(Self { before_image: before.to_vec(), after_image: after.to_vec() })
            }
            _ => Err(PromptError::Placeholders { count: text.matches(IMAGE_PLACEHOLDER).count() }),
        }
    }

    /// All ids, with [`IMAGE_ID`] where the image goes.
    pub fn ids(&self) -> Vec<i64> {
        [&self.before_image[..], &[IMAGE_ID], &self.after_image[..]].concat()
    }

    /// Positions that the prompt takes in the language model once the image is put in.
    pub fn positions(&self, image_positions: usize) -> usize {
        self.before_image.len() + image_positions + self.after_image.len()
    }
}

/// Token ids of a text with any number of image places, as the reference's `tokenizer_image_token`
/// gives them: each stretch between places is tokenized on its own, and only one begin token stays,
/// before the first stretch. Where the text starts with an image, that token comes after it, and every
/// later stretch keeps its own.
///
/// # Errors
/// [`TokenizerError`] when a stretch can't be tokenized.
pub fn encode_with_images(text: &str, tokenizer: &Tokenizer) -> Result<Vec<i64>, TokenizerError> {
    let mut stretches = Vec::new();
    for stretch in text.split(IMAGE_PLACEHOLDER) {
        stretches.push(if stretch.is_empty() { Vec::new() } else { tokenizer.encode(stretch)? });
    }
    let begin = i64::from(tokenizer.bos());
    let leading = stretches.first().and_then(|ids| ids.first()).is_some_and(|&id| i64::from(id) == begin);
    let mut ids = Vec::from_iter(leading.then_some(begin));
    for (position, stretch) in stretches.iter().enumerate() {
        if position > 0 {
            ids.push(IMAGE_ID);
        }
        ids.extend(stretch.iter().skip(usize::from(leading)).map(|&id| i64::from(id)));
    }
    Ok(ids)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_question_of_ones_own_takes_the_place_of_the_usual_one() {
        let usual = prompt_text(&PromptChoice::Assess).unwrap();
        let own = prompt_text(&PromptChoice::Text(" How sharp is it? ".into())).unwrap();
        assert_eq!(own, usual.replace(QUESTION, "How sharp is it?"));
        assert_eq!(prompt_text(&PromptChoice::Text(QUESTION.into())).unwrap(), usual);
        let arch = prompt_text(&PromptChoice::Arch).unwrap();
        assert_eq!(arch, format!("{usual}{ANSWER_START}"));
    }

    #[test]
    fn a_question_with_an_image_place_is_refused() {
        let error = |text: &str| prompt_text(&PromptChoice::Text(text.into())).unwrap_err().to_string();
        assert!(error("<|image|> How sharp is it?").contains("2 places"));
        assert!(error("<|image|><|image|>").contains("3 places"));
        assert!(error(" \n").contains("empty"));
    }
}
