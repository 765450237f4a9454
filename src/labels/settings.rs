//! The `[labels]` section of the configuration.

use super::{Scale, Turn};
use serde::{Deserialize, Serialize};

/// What labels are checked against, and how those that are exported ask.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LabelsSettings {
    /// The scale that people rate on. Left out, it is that of the checkpoint in `model.checkpoint`, or 1 to 10
    /// in ten bins where that is no folder.
    pub scale: Option<ScaleSettings>,
    /// What is asked of a photo whose label has no conversation of its own.
    pub question: String,
    /// And the answer.
    pub answer: String,
}

/// A scale in full.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ScaleSettings {
    pub min_score: f64,
    pub max_score: f64,
    pub num_tokens: usize,
}

impl Default for LabelsSettings {
    fn default() -> Self {
        Self {
            scale: None,
            question: "<|image|>Please rate the aesthetics of the image.".into(),
            answer: "The aesthetic rate of the image is [SCORE]. ".into(),
        }
    }
}

impl LabelsSettings {
    /// The usual conversation.
    pub fn conversation(&self) -> Vec<Turn> {
        let turn = |from: &str, value: &str| Turn { from: from.into(), value: value.into() };
        vec![turn("human", &self.question), turn("gpt", &self.answer)]
    }

    /// What is wrong with the section, and the key; the remedy with it.
    ///
    /// # Errors
    /// Key and reason.
    pub fn check(&self) -> Result<(), (&'static str, &'static str)> {
        if let Some(ScaleSettings { min_score, max_score, num_tokens }) = self.scale
            && Scale::new(min_score, max_score, num_tokens).is_none()
        {
            return Err((
                "labels.scale",
                "is no scale; give min_score below max_score, and 2 num_tokens or more",
            ));
        }
        if super::sample::check_turns(&self.conversation()).is_err() {
            return Err(("labels.question", "does not show the image; put <|image|> into it"));
        }
        if super::sample::score_tokens(&self.conversation()) != 1 {
            return Err(("labels.answer", "has not one [SCORE]; put it where the score belongs"));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_work_is_named() {
        assert_eq!(LabelsSettings::default().check(), Ok(()));
        let scale = Some(ScaleSettings { min_score: 5.0, max_score: 1.0, num_tokens: 10 });
        let wrong = [
            ("labels.scale", LabelsSettings { scale, ..LabelsSettings::default() }),
            ("labels.question", LabelsSettings { question: "Rate it.".into(), ..LabelsSettings::default() }),
            ("labels.answer", LabelsSettings { answer: "It is fine.".into(), ..LabelsSettings::default() }),
        ];
        for (key, settings) in wrong {
            assert_eq!(settings.check().unwrap_err().0, key);
        }
    }
}
