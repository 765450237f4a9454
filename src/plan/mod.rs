//! `roc4mllm plan`: what scoring an image costs and what a device makes of it, from the dimensions in a
//! checkpoint's `config.json` alone. No weight is read.
//!
//! [`work`] counts operations, [`estimate`](mod@estimate) holds them against a device ([`device`]),
//! [`output`] prints.

pub mod args;
pub mod device;
pub mod estimate;
pub mod output;
pub mod work;

pub use args::PlanArgs;
pub use output::Plan;

use crate::model::config::{ConfigError, ModelConfig};
use std::{io, path::Path};

/// Why there is no plan.
#[derive(Debug, thiserror::Error)]
pub enum PlanError {
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error(
        "the prompt and its answer take {positions} positions, but config.json's max_position_embeddings is \
         {limit}; give smaller --prefix, --suffix and --answer"
    )]
    TooLong { positions: u64, limit: i64 },
    #[error("the plan can't be written: {0}")]
    Output(#[source] io::Error),
}

impl PlanError {
    /// 2 for what the user can mend, 1 for the rest.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Config(_) | Self::TooLong { .. } => 2,
            Self::Output(_) => 1,
        }
    }
}

/// Plans for the checkpoint that `args` name, and writes the plan to `out`.
///
/// # Errors
/// [`PlanError`] when its `config.json` can't be used.
pub fn run(args: &PlanArgs, out: &mut dyn io::Write) -> Result<(), PlanError> {
    // The file itself will do as well as its folder.
    let folder = match args.checkpoint.file_name() {
        Some(name) if name == "config.json" => match args.checkpoint.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        },
        _ => &args.checkpoint,
    };
    let plan = Plan::new(&ModelConfig::read(folder)?, args)?;
    let written = match args.format {
        args::PlanFormat::Human => write!(out, "{plan}"),
        args::PlanFormat::Json => {
            serde_json::to_writer(&mut *out, &plan).map_err(io::Error::from).and_then(|()| writeln!(out))
        }
    };
    match written.and_then(|()| out.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(PlanError::Output(error)),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests;
