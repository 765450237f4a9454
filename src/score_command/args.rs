//! The command line of `roc4mllm score`.

use crate::{
    image::PreprocessMode,
    model::{
        device::{Device, Dtype, Quantize},
        packing::Packing,
        settings::{DecodeMode, ModelSettings, PromptChoice},
    },
    registry::CheckpointSource,
};
use clap::{Args, ValueEnum};
use std::path::{Path, PathBuf};

/// Score photos, folders of photos and S3 prefixes, without any service
///
/// Exit codes: 0 all scored, 3 some inputs rejected, 2 usage, configuration or no image found,
/// 1 anything else.
#[derive(Args, Clone, Debug)]
pub struct ScoreArgs {
    /// Photos, folders (walked recursively) and `s3://bucket/prefix`
    #[arg(value_name = "PHOTO|DIR|S3", required = true)]
    pub inputs: Vec<String>,

    /// Checkpoint in Hugging Face layout: a folder, or s3://bucket/prefix
    #[arg(long, value_name = "DIR|S3")]
    pub checkpoint: CheckpointSource,

    #[command(flatten)]
    pub scoring: ScoringArgs,

    /// Decimals of the scores inside an answer's text
    #[arg(long, value_name = "DECIMALS", default_value_t = 4, value_parser = clap::value_parser!(u8).range(0..=17))]
    pub precision: u8,

    /// How results are written to standard output
    #[arg(long, value_enum, default_value_t)]
    pub format: OutputFormat,

    /// Also write a self-contained HTML page with thumbnails and rating distributions
    #[arg(long, value_name = "FILE.html")]
    pub report: Option<PathBuf>,
}

/// How images are scored, by any command that does.
#[derive(Args, Clone, Debug)]
pub struct ScoringArgs {
    /// Where to compute: `cpu`, `cuda` or `cuda:N`
    #[arg(long, default_value_t)]
    pub device: Device,

    /// Number type to compute in: `auto` (as stored, but bf16 for f16 on a CPU), `f32`, `bf16` or `f16`
    #[arg(long, default_value_t)]
    pub dtype: Dtype,

    /// Bits of the largest weights: `none` (as computed in), `w8a8` (CPUs only: faster, less exact) or
    /// `int8` (half the memory of bf16, slower)
    #[arg(long, value_name = "none|w8a8|int8", default_value_t)]
    pub quantize: Quantize,

    /// Whether a CPU computes with copies of the weights that are laid out for speed; `auto`: from 16 photos on
    #[arg(long, value_enum, default_value_t)]
    pub pack: Packing,

    /// What the model is asked: `assess`, `arch` or a question of your own
    #[arg(long, value_name = "assess|arch|TEXT", default_value = "assess")]
    pub prompt: PromptChoice,

    /// How answers are decoded
    #[arg(long, value_enum, default_value_t)]
    pub decode: DecodeMode,

    /// How pixels are preprocessed
    #[arg(long, value_enum, default_value_t)]
    pub preprocess: Preprocess,

    /// The most images in one run of the model
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub batch_size: u16,
}

/// How pixels are preprocessed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Preprocess {
    /// Bit-equal to the reference
    #[default]
    Exact,
    /// Large JPEGs at half size: about half the time, and slightly other scores, under another version
    Fast,
}

impl From<Preprocess> for PreprocessMode {
    fn from(preprocess: Preprocess) -> Self {
        match preprocess {
            Preprocess::Exact => Self::Exact,
            Preprocess::Fast => Self::Fast,
        }
    }
}

/// How results are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum OutputFormat {
    /// Aligned columns for people
    #[default]
    Table,
    /// One JSON object a line
    Jsonl,
    /// Comma-separated values with a header
    Csv,
}

impl ScoringArgs {
    /// What the model in the folder `checkpoint` is loaded with.
    pub fn model_settings(&self, checkpoint: &Path) -> ModelSettings {
        ModelSettings {
            checkpoint: checkpoint.to_string_lossy().into_owned(),
            device: self.device,
            dtype: self.dtype,
            quantize: self.quantize,
            pack: self.pack,
            prompt: self.prompt.clone(),
            decode: self.decode,
            ..ModelSettings::default()
        }
    }

    /// Names and values, for people.
    pub fn shown(&self) -> [(String, String); 7] {
        [
            ("device", self.device.to_string()),
            ("dtype", self.dtype.to_string()),
            ("quantize", self.quantize.to_string()),
            ("prompt", self.prompt.to_string()),
            ("decode", self.decode.to_string()),
            ("preprocessing", PreprocessMode::from(self.preprocess).to_string()),
            ("batch size", self.batch_size.to_string()),
        ]
        .map(|(name, value)| (name.to_owned(), value))
    }
}
