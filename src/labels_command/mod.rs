//! `roc4mllm labels`: votes from files into Postgres, labels out as training samples, and what to label next.

mod args;
mod error;
mod export;
mod import;
mod progress;
mod suggest;

pub use args::{ExportArgs, ImportArgs, LabelFormat, SuggestArgs, SuggestionFormat};
pub use error::LabelsCommandError;
pub use export::export;
pub use import::import;
pub use suggest::suggest;
