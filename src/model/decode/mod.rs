//! From images in the language model to the answers' tokens, for any family.
//!
//! [`generate()`] takes the likeliest token again and again. [`Verifier`] gives the same answers: it
//! puts a whole answer that was given before behind the prompt, and sees in one pass whether the
//! model would have given it again. What goes back into the model is always a token's id: the number
//! that stands in the text for `[SCORE]` is written after decoding, and never read.

mod choice;
mod drafts;
mod embedded;
mod generate;
mod verify;

pub use self::{drafts::Drafts, embedded::EmbeddedPrompt, generate::generate, verify::Verifier};
use choice::Choice;

/// What decoding looks for in the tokens that are chosen.
#[derive(Clone, Debug)]
pub struct GreedyOptions {
    /// Any of these ends a row.
    pub end_tokens: Vec<i64>,
    /// The token whose position is read by the score head.
    pub score_token: i64,
    /// How many of the last logits are read there.
    pub bins: i64,
    /// A row without an end token ends after as many.
    pub max_new_tokens: usize,
}

/// One row's answer.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Generated {
    /// Token ids, the end token included.
    pub tokens: Vec<i64>,
    /// The last `bins` logits of each position that predicted the score token.
    pub score_logits: Vec<Vec<f32>>,
    /// Passes of the language model that this row took part in.
    pub forwards: u32,
    /// The first pass gave all of it, since it followed a draft to its end.
    pub verified: bool,
    /// The row was given up: its largest logit was not a finite number.
    pub broken: bool,
}

impl Generated {
    /// Adds the next token, or gives the row up. Says whether more are to come.
    fn take(&mut self, choice: &Choice, options: &GreedyOptions) -> bool {
        if !choice.logit.is_finite() {
            self.broken = true;
            return false;
        }
        self.tokens.push(choice.token);
        if choice.token == options.score_token {
            self.score_logits.push(choice.bins.clone());
        }
        !options.end_tokens.contains(&choice.token) && self.tokens.len() < options.max_new_tokens
    }

    /// Whether the answer was given to its end, and not cut off.
    fn is_complete(&self, options: &GreedyOptions) -> bool {
        !self.broken && self.tokens.last().is_some_and(|token| options.end_tokens.contains(token))
    }
}

#[cfg(test)]
mod tests;
