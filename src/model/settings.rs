//! The `model` section of the configuration.

use super::{
    device::{Device, Dtype, Quantize},
    packing::Packing,
};
use clap::ValueEnum;
use serde::{Deserialize, Serialize};
use std::{convert::Infallible, fmt, str::FromStr};

/// Which model scores, on what, and what it is asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ModelSettings {
    /// A folder in Hugging Face layout, an `s3://` address, or `champion`. Loading takes a folder:
    /// the caller resolves the others to one first.
    pub checkpoint: String,
    /// `cpu`, `cuda` or `cuda:N`.
    pub device: Device,
    /// `auto`, `f32`, `bf16` or `f16`.
    pub dtype: Dtype,
    /// `none`, `w8a8` or `int8`.
    pub quantize: Quantize,
    /// `auto`, `always` or `never`: whether a CPU lays the language model's weights out for speed.
    pub pack: Packing,
    /// `assess`, `arch` or the question itself.
    pub prompt: PromptChoice,
    /// `verify` or `generate`: the same answers, at the cost of one pass or of one a token.
    pub decode: DecodeMode,
    /// Decimals that scores are rounded to inside the answer's text. Scores themselves stay unrounded.
    pub precision: u8,
    /// CPU threads of one tensor operation; 0 takes every core this process may use.
    pub threads: usize,
}

impl Default for ModelSettings {
    fn default() -> Self {
        Self {
            checkpoint: String::new(),
            device: Device::default(),
            dtype: Dtype::default(),
            quantize: Quantize::default(),
            pack: Packing::default(),
            prompt: PromptChoice::default(),
            decode: DecodeMode::default(),
            precision: 4,
            threads: 0,
        }
    }
}

/// How answers are decoded. Both ways give the same tokens.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum DecodeMode {
    /// Answers that were given before are checked in one pass, and corrected where they are wrong
    #[default]
    Verify,
    /// Greedily, a token a pass
    Generate,
}

impl fmt::Display for DecodeMode {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Verify => "verify",
            Self::Generate => "generate",
        })
    }
}

/// What the model is asked about an image. Written `assess`, `arch`, or as the question itself.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "String", into = "String")]
pub enum PromptChoice {
    /// The prompt of the reference's `Assessment`.
    #[default]
    Assess,
    /// The prompt of the reference's `ROC4MLLMArch`: the answer's beginning is given, so that
    /// `[SCORE]` is the first token to come.
    Arch,
    /// A question of one's own, put in the place of the usual one.
    Text(String),
}

impl fmt::Display for PromptChoice {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Assess => "assess",
            Self::Arch => "arch",
            Self::Text(text) => text,
        })
    }
}

impl FromStr for PromptChoice {
    type Err = Infallible;

    fn from_str(text: &str) -> Result<Self, Infallible> {
        Ok(text.to_owned().into())
    }
}

impl From<String> for PromptChoice {
    fn from(text: String) -> Self {
        match text.as_str() {
            "assess" => Self::Assess,
            "arch" => Self::Arch,
            _ => Self::Text(text),
        }
    }
}

impl From<PromptChoice> for String {
    fn from(choice: PromptChoice) -> Self {
        choice.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_survive_a_round_trip() {
        let settings = ModelSettings {
            device: Device::Cuda(2),
            dtype: Dtype::Bf16,
            prompt: PromptChoice::Text("How sharp is it?".into()),
            decode: DecodeMode::Generate,
            pack: Packing::Never,
            ..ModelSettings::default()
        };
        let text = serde_json::to_string(&settings).unwrap();
        assert!(text.contains(r#""device":"cuda:2""#), "{text}");
        assert!(text.contains(r#""decode":"generate""#), "{text}");
        assert!(text.contains(r#""pack":"never""#), "{text}");
        assert_eq!(serde_json::from_str::<ModelSettings>(&text).unwrap(), settings);
    }

    #[test]
    fn unknown_names_are_refused_with_the_known_ones() {
        let message = serde_json::from_str::<ModelSettings>(r#"{"dtype":"fp8"}"#).unwrap_err().to_string();
        assert!(message.contains("`fp8`") && message.contains("bf16"), "{message}");
        assert!(serde_json::from_str::<ModelSettings>(r#"{"batch":1}"#).is_err());
    }
}
