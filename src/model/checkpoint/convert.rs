//! Writing a checkpoint in another layout or type.

use super::{
    Checkpoint, Format, Role,
    error::CheckpointError,
    index::StoredDtype,
    inspect::is_finite,
    writer::{Planned, Unfinished, Written, copy_settings, split, torch_error, write_files},
};
use crate::model::device::Dtype;
use std::path::PathBuf;
use tch::{Kind, TchError, Tensor};

/// Which checkpoint to copy, and how the copy is to be written.
#[derive(Clone, Debug, clap::Args)]
pub struct ConvertArgs {
    /// Checkpoint folder to read
    pub from: PathBuf,
    /// New folder to write
    pub to: PathBuf,
    /// Format of the weight files
    #[arg(long, value_enum, default_value_t = Format::Safetensors)]
    pub format: Format,
    /// Type of the weights: auto (as each is stored), f32, bf16 or f16. Constants keep their own
    #[arg(long, default_value_t = Dtype::Auto)]
    pub dtype: Dtype,
    /// Begin another weight file where one would grow beyond this; without it there is one file
    #[arg(long, value_name = "BYTES")]
    pub max_file_bytes: Option<u64>,
}

/// Writes the checkpoint in `args.from` to a new folder `args.to`, in Hugging Face layout, one tensor at a time.
///
/// The folder appears whole or not at all. Settings and tokenizer files are copied; `config.json` gets
/// the new `torch_dtype`.
///
/// # Errors
/// [`CheckpointError`] when `from` is no sound checkpoint, `to` exists or can't be written, or a weight
/// is too large for the new type.
pub fn convert(args: &ConvertArgs) -> Result<Written, CheckpointError> {
    let (to, format) = (&args.to, args.format);
    let kind = match args.dtype {
        Dtype::Auto => None,
        Dtype::F32 => Some(Kind::Float),
        Dtype::Bf16 => Some(Kind::BFloat16),
        Dtype::F16 => Some(Kind::Half),
    };
    let checkpoint = Checkpoint::open(&args.from)?;
    if to.exists() {
        return Err(CheckpointError::layout(to, "exists already", "give a new folder to write to"));
    }
    let unfinished = Unfinished::create(to)?;
    let files = split(plan(&checkpoint, kind), args.max_file_bytes);
    let mut written =
        write_files(&unfinished.path, format, &files, &mut |planned| converted(&checkpoint, planned))?;
    copy_settings(&args.from, &unfinished.path, kind)?;
    unfinished.finish(to)?;
    for path in &mut written.weight_files {
        *path = to.join(path.file_name().unwrap_or_default());
    }
    Ok(written)
}

/// Every tensor of the checkpoint, in the type that it is to have.
fn plan(checkpoint: &Checkpoint, kind: Option<Kind>) -> Vec<Planned> {
    let mut plan = Vec::new();
    for (name, stored) in &checkpoint.index.tensors {
        let keeps = checkpoint.expected.get(name).is_none_or(|expected| expected.role == Role::Buffer);
        let dtype = match kind.filter(|_| !keeps).and_then(StoredDtype::of) {
            Some(dtype) => dtype,
            None => stored.dtype.clone(),
        };
        // An opened checkpoint holds no other types.
        let Some(kind) = dtype.kind() else { continue };
        plan.push(Planned { name: name.clone(), shape: stored.shape.clone(), dtype, kind });
    }
    plan
}

/// A stored tensor in its new type.
fn converted(checkpoint: &Checkpoint, planned: &Planned) -> Result<Tensor, CheckpointError> {
    let torch = torch_error(&checkpoint.folder, &planned.name);
    let stored = checkpoint.tensor(&planned.name, &planned.shape)?;
    let tensor = stored.f_to_kind(planned.kind).map_err(&torch)?;
    if tensor.kind() != stored.kind()
        && !is_finite(&tensor).map_err(&torch)?
        && is_finite(&stored).map_err(&torch)?
    {
        return Err(torch(TchError::Kind(format!("it holds numbers that {} can't", planned.dtype))));
    }
    Ok(tensor)
}
