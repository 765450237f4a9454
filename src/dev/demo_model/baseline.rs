//! What the size of the files alone says about the labels: the least that a model has to beat.

use super::DemoModelError;
use crate::{evaluate::correlation::spearman, labels::SampleReader};
use clap::Args;
use std::{fs, path::PathBuf};

/// Rank correlation of the files' sizes with their labels
#[derive(Args, Clone, Debug)]
pub struct BaselineArgs {
    /// Samples whose photographs are looked at
    #[arg(long, value_name = "FILE.json")]
    pub labels: PathBuf,
    /// Folder of the photographs
    #[arg(long, value_name = "DIR")]
    pub images: PathBuf,
}

/// SRCC between file size and label; `None` where either is the same for all.
///
/// # Errors
/// [`DemoModelError::Labels`] for a file that can't be read, [`DemoModelError::Photograph`] for a photograph.
pub fn file_size_srcc(args: &BaselineArgs) -> Result<Option<f64>, DemoModelError> {
    let (mut sizes, mut labels) = (Vec::new(), Vec::new());
    for sample in SampleReader::open(&args.labels)? {
        let sample = sample?;
        let path = args.images.join(&sample.image);
        let metadata = fs::metadata(&path)
            .map_err(|error| DemoModelError::Photograph { path: path.clone(), reason: error.to_string() })?;
        if let Some(label) = sample.gt_scores.first() {
            sizes.push(metadata.len() as f64);
            labels.push(*label);
        }
    }
    Ok(spearman(&sizes, &labels))
}
