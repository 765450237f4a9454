//! `roc4mllm train`: samples in a file, images in a folder, no service.

use super::{
    error::TrainError,
    images::ImageFolder,
    options::TrainOptions,
    output::is_finished,
    progress::Progress,
    trainer::{TrainJob, TrainSummary, train},
    vocabulary::Growth,
};
use crate::{
    image::ImageSettings,
    labels::{Sample, SampleReader, Scale},
    model::{ModelError, checkpoint::CheckpointError, config::ModelConfig},
};
use clap::Args;
use std::{
    path::{Path, PathBuf},
    sync::atomic::AtomicBool,
};

/// Train a checkpoint on labelled photos, without any service
///
/// Exit codes: 0 trained, 2 usage, or a checkpoint, sample or image that can't be used, 1 anything else.
#[derive(Args, Clone, Debug)]
pub struct TrainArgs {
    /// Checkpoint folder in Hugging Face layout to start from
    #[arg(long, value_name = "DIR")]
    pub checkpoint: PathBuf,

    /// Training samples: the reference's JSON
    #[arg(long, value_name = "FILE.json")]
    pub data: PathBuf,

    /// Folder that the samples' images are in
    #[arg(long, value_name = "DIR")]
    pub images: PathBuf,

    /// New folder for the trained checkpoint and metrics.jsonl
    #[arg(long, value_name = "DIR")]
    pub output: PathBuf,

    /// Go on from the last state that an unfinished run with the same --output has saved (--save-every); begin
    /// anew if there is none, and do nothing if it has finished
    #[arg(long)]
    pub resume: bool,

    /// Give a plain mPLUG-Owl2 checkpoint a score head with this many tokens
    #[arg(long, value_name = "N")]
    pub num_tokens: Option<u32>,

    /// Score that the first of them stands for
    #[arg(long, value_name = "SCORE", allow_negative_numbers = true)]
    pub min_score: Option<f64>,

    /// Score that the last of them stands for
    #[arg(long, value_name = "SCORE", allow_negative_numbers = true)]
    pub max_score: Option<f64>,

    #[command(flatten)]
    pub options: TrainOptions,
}

/// Trains as the arguments say; nothing if that has been done before, and they say to resume. Once
/// `cancelled` is set, ends before the next step.
///
/// # Errors
/// [`TrainError`]; the output folder then doesn't appear.
pub fn run(args: &TrainArgs, cancelled: &AtomicBool) -> Result<Option<TrainSummary>, TrainError> {
    args.options.check()?;
    if args.resume && is_finished(&args.output)? {
        tracing::info!("{}: the run has finished before; nothing is left to do", args.output.display());
        return Ok(None);
    }
    let growth = Growth::from_flags(args.num_tokens, args.min_score, args.max_score)?;
    let samples = read_samples(&args.data, scale(&args.checkpoint, growth)?)?;
    let job = TrainJob {
        checkpoint: &args.checkpoint,
        growth,
        samples: &samples,
        images: &ImageFolder { path: args.images.clone() },
        image_settings: ImageSettings::local(),
        output: &args.output,
        resume: args.resume,
        options: &args.options,
    };
    let mut progress = Progress::new();
    let summary = train(&job, &mut |event| progress.show(&event), cancelled)?;
    progress.finish(&summary, &args.output);
    Ok(Some(summary))
}

/// What scores and distributions must fit.
fn scale(checkpoint: &Path, growth: Option<Growth>) -> Result<Scale, TrainError> {
    if let Some(Growth { num_tokens, min_score, max_score }) = growth {
        return Ok(Scale { min_score, max_score, num_tokens: num_tokens as usize });
    }
    if !checkpoint.is_dir() {
        let problem = CheckpointError::Layout {
            path: checkpoint.to_owned(),
            problem: "is no folder".into(),
            remedy: "give --checkpoint a folder in Hugging Face layout",
        };
        return Err(problem.into());
    }
    let config = ModelConfig::read(checkpoint)?;
    let head = config
        .score
        .ok_or_else(|| ModelError::NoScoreTokens { checkpoint: checkpoint.display().to_string() })?;
    let num_tokens = usize::try_from(head.num_tokens).unwrap_or(0);
    Ok(Scale { min_score: head.min_score, max_score: head.max_score, num_tokens })
}

fn read_samples(file: &Path, scale: Scale) -> Result<Vec<Sample>, TrainError> {
    let samples = SampleReader::open(file)?.checked(scale).collect::<Result<Vec<_>, _>>()?;
    match samples.is_empty() {
        true => Err(TrainError::NoSamples(file.to_owned())),
        false => Ok(samples),
    }
}
