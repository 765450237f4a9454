//! What `checkpoint inspect` prints.

use super::{
    Checkpoint, Digest, Format, Role,
    check::{self, Problem},
    error::CheckpointError,
    mapped::first_line,
};
use crate::model::{
    config::{ModelConfig, RopeScaling},
    tokenizer::Tokenizer,
};
use std::{
    collections::BTreeMap,
    fmt, fs,
    path::{Path, PathBuf},
};
use tch::{TchError, Tensor};

/// A checkpoint folder, looked at from every side.
#[derive(Clone, Debug)]
pub struct Inspection {
    pub folder: PathBuf,
    pub format: Format,
    /// Weight files by name and size in bytes.
    pub files: Vec<(String, u64)>,
    pub config: ModelConfig,
    /// Elements of all weights, buffers left out.
    pub parameters: u64,
    pub dtypes: BTreeMap<String, DtypeCount>,
    /// Tokens of the tokenizer, or why it can't be opened.
    pub tokenizer: Result<usize, String>,
    pub digest: Digest,
    /// Every tensor that is missing, too much, or of another shape or type.
    pub problems: Vec<Problem>,
    /// What loading took; `None` where there are problems.
    pub load: Option<LoadMemory>,
    /// Weights that hold a NaN or an infinity.
    pub non_finite: Vec<String>,
}

/// Tensors of one stored type.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DtypeCount {
    pub tensors: u64,
    pub elements: u64,
}

/// The most memory that this process held while it loaded every weight as it is stored and read each
/// once.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LoadMemory {
    /// `VmHWM`, in bytes: everything in the process, mapped pages included.
    pub peak_resident: u64,
    pub bytes_on_disk: u64,
}

impl LoadMemory {
    /// Peak over size on disk.
    pub fn ratio(&self) -> f64 {
        self.peak_resident as f64 / self.bytes_on_disk.max(1) as f64
    }
}

/// Reads all that can be known of a folder, and loads its weights once.
///
/// # Errors
/// [`CheckpointError`] where there is no checkpoint to speak of: no folder, no or damaged weight
/// files, a `config.json` that can't be used. Tensors that don't fit are reported in the value.
pub fn inspect(folder: &Path) -> Result<Inspection, CheckpointError> {
    let checkpoint = Checkpoint::open_unchecked(folder)?;
    let problems = check::problems(&checkpoint.index, &checkpoint.expected);
    let mut dtypes = BTreeMap::<String, DtypeCount>::new();
    let mut parameters = 0;
    for (name, stored) in &checkpoint.index.tensors {
        let elements = stored.shape.iter().product::<i64>().unsigned_abs();
        let count = dtypes.entry(stored.dtype.to_string()).or_default();
        count.tensors += 1;
        count.elements += elements;
        if checkpoint.expected.get(name).is_none_or(|tensor| tensor.role != Role::Buffer) {
            parameters += elements;
        }
    }
    let (load, non_finite) = if problems.is_empty() {
        let (load, non_finite) = load_and_measure(&checkpoint)?;
        (load, non_finite)
    } else {
        (None, Vec::new())
    };
    let files =
        checkpoint.index.files.iter().map(|file| {
            (file.path.file_name().unwrap_or_default().to_string_lossy().into_owned(), file.bytes)
        });
    Ok(Inspection {
        folder: folder.to_owned(),
        format: checkpoint.format(),
        files: files.collect(),
        parameters,
        dtypes,
        tokenizer: Tokenizer::open(folder).map(|t| t.len()).map_err(|error| error.to_string()),
        digest: checkpoint.digest()?,
        problems,
        load,
        non_finite,
        config: checkpoint.config,
    })
}

fn load_and_measure(checkpoint: &Checkpoint) -> Result<(Option<LoadMemory>, Vec<String>), CheckpointError> {
    // Lets the kernel's high-water mark start afresh; without it, the mark may be older and higher.
    let _ = fs::write("/proc/self/clear_refs", "5");
    let mut non_finite = Vec::new();
    let tensors = checkpoint.tensors()?;
    for (name, tensor) in &tensors {
        let finite = is_finite(tensor).map_err(|source| CheckpointError::Torch {
            path: checkpoint.folder.clone(),
            name: name.clone(),
            doing: "reading it",
            reason: first_line(&source),
        })?;
        if !finite {
            non_finite.push(name.clone());
        }
    }
    let bytes_on_disk = checkpoint.bytes_on_disk();
    let load = peak_resident().map(|peak_resident| LoadMemory { peak_resident, bytes_on_disk });
    Ok((load, non_finite))
}

/// Whether every element is a finite number, found in small pieces so that it takes no memory to speak of.
pub(super) fn is_finite(tensor: &Tensor) -> Result<bool, TchError> {
    const PIECE: i64 = 1 << 20;
    let flat = tensor.f_view(-1)?;
    let length = flat.numel() as i64;
    let mut start = 0;
    while start < length {
        let piece = flat.f_narrow(0, start, PIECE.min(length - start))?;
        if piece.f_isfinite()?.f_all()?.f_int64_value(&[])? == 0 {
            return Ok(false);
        }
        start += PIECE;
    }
    Ok(true)
}

/// The most memory this process has ever held resident, in bytes.
fn peak_resident() -> Option<u64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

impl fmt::Display for Inspection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (language, vision, abstractor) =
            (&self.config.language, &self.config.vision, &self.config.abstractor);
        let mut line = |label: &str, value: String| writeln!(f, "{label:<14}{value}");
        line("folder", self.folder.display().to_string())?;
        line("model", self.config.model_type.clone())?;
        line("version", self.digest.version.clone())?;
        let total: u64 = self.files.iter().map(|(_, bytes)| bytes).sum();
        line("weights", format!("{}, {} files, {}", self.format, self.files.len(), bytes(total)))?;
        for (name, size) in &self.files {
            line("", format!("{name}  {}", bytes(*size)))?;
        }
        for (dtype, count) in &self.dtypes {
            line("stored as", format!("{dtype}: {} tensors, {} elements", count.tensors, count.elements))?;
        }
        line("parameters", self.parameters.to_string())?;
        line(
            "language",
            format!(
                "{} layers, hidden {}, MLP {}, {} heads ({} for keys and values), {} positions, RoPE {}{}",
                language.num_hidden_layers,
                language.hidden_size,
                language.intermediate_size,
                language.num_attention_heads,
                language.num_key_value_heads,
                language.max_position_embeddings,
                language.rope_theta,
                match language.rope_scaling {
                    None => String::new(),
                    Some(RopeScaling::Linear(factor)) => format!(" scaled linearly by {factor}"),
                    Some(RopeScaling::Dynamic(factor)) => format!(" scaled dynamically by {factor}"),
                },
            ),
        )?;
        line(
            "vision",
            format!(
                "{} layers, hidden {}, MLP {}, {} heads, {} px in patches of {}",
                vision.num_hidden_layers,
                vision.hidden_size,
                vision.intermediate_size,
                vision.num_attention_heads,
                vision.image_size,
                vision.patch_size,
            ),
        )?;
        line(
            "abstractor",
            format!(
                "{} layers, hidden {}, MLP {}, {} heads, {} queries",
                abstractor.num_hidden_layers,
                abstractor.hidden_size,
                abstractor.intermediate_size,
                abstractor.num_attention_heads,
                abstractor.num_learnable_queries,
            ),
        )?;
        let tokens = match &self.tokenizer {
            Ok(tokens) => format!("{tokens} tokens in the tokenizer"),
            Err(problem) => problem.clone(),
        };
        line("vocabulary", format!("{} rows, {tokens}", language.vocab_size))?;
        line(
            "score",
            match &self.config.score {
                None => "no score tokens: a plain mPLUG-Owl2 checkpoint".into(),
                Some(score) => format!(
                    "token {}, {} bins from {} to {}",
                    score.score_id, score.num_tokens, score.min_score, score.max_score
                ),
            },
        )?;
        for Problem { name, problem } in &self.problems {
            line("problem", format!("{name} {problem}"))?;
        }
        for name in &self.non_finite {
            line("problem", format!("{name} holds numbers that are not finite"))?;
        }
        match &self.load {
            None => line("loading", "not tried".into()),
            Some(load) => line(
                "loading",
                format!(
                    "peak {} resident, {:.3} of the size on disk",
                    bytes(load.peak_resident),
                    load.ratio()
                ),
            ),
        }
    }
}

fn bytes(bytes: u64) -> String {
    format!("{bytes} bytes ({:.1} MiB)", bytes as f64 / f64::from(1 << 20))
}
