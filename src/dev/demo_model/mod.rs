//! What the demo's model is trained on, and what it starts from: photographs made worse in known ways,
//! and an untrained network of a few million parameters. `scripts/demo-model.sh` joins the two with
//! `roc4mllm train` and `roc4mllm evaluate`.

mod baseline;
mod degrade;
mod photos;
mod sight;
mod sources;
mod untrained;

pub use baseline::{BaselineArgs, file_size_srcc};
pub use degrade::{Degradation, cut_out, degrade, jpeg};
pub use photos::{DegradedPhotos, PhotosArgs, write as write_photos};
pub use sources::{DividedSources, Source, SourcesArgs, divide as divide_sources};
pub use untrained::{UntrainedArgs, write as write_untrained};

use std::path::PathBuf;

/// Why there is no such folder.
#[derive(Debug, thiserror::Error)]
pub enum DemoModelError {
    #[error("{0}: no folder with photographs; run `make setup`, or name another one")]
    NoPhotographs(PathBuf),
    #[error("{path}: {reason}; take the photograph out of the folder")]
    Photograph { path: PathBuf, reason: String },
    #[error("{path}: {source}; choose a place that can be written to")]
    Write { path: PathBuf, source: std::io::Error },
    #[error("{path}: {source}; give the folder of a checkpoint whose tokenizer is to be used")]
    Tokenizer { path: PathBuf, source: std::io::Error },
    #[error(transparent)]
    Labels(#[from] crate::labels::LabelFileError),
    #[error("the untrained network cannot be described: {0}")]
    Network(String),
}
