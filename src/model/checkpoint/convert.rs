//! Writing a checkpoint in another layout or type.

use super::{
    Checkpoint, Format, Role,
    error::CheckpointError,
    index::StoredDtype,
    inspect::is_finite,
    mapped::{contiguous_strides, first_line},
    pickle_writer::{self, TensorToPickle},
    safetensors as safetensors_file,
};
use crate::model::fields::read_object;
use safetensors::{
    Dtype,
    tensor::{Metadata, TensorInfo},
};
use serde_json::{Value, json};
use std::{
    collections::{BTreeMap, HashMap},
    fs::{self, File},
    io::{self, BufWriter, Write},
    path::{Path, PathBuf},
};
use tch::{Kind, TchError, Tensor};
use zip::{CompressionMethod, ZipWriter, write::SimpleFileOptions};

/// How the copy is to be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConvertOptions {
    pub format: Format,
    /// The type of all weights ([`Kind::Float`], [`Kind::Half`] or [`Kind::BFloat16`]); `None` keeps
    /// each as it is. Buffers always stay as they are.
    pub kind: Option<Kind>,
    /// Where a weight file would grow beyond this, another is begun; `None` writes one file. A tensor
    /// is never split, so that a file can still be larger.
    pub max_file_bytes: Option<u64>,
}

/// What was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Converted {
    pub weight_files: Vec<PathBuf>,
    /// Of all weights, without headers.
    pub weight_bytes: u64,
}

/// Writes the checkpoint in `from` to a new folder `to`, in Hugging Face layout, one tensor at a time.
///
/// The folder appears whole or not at all. Settings and tokenizer files are copied; `config.json` gets
/// the new `torch_dtype`.
///
/// # Errors
/// [`CheckpointError`] when `from` is no sound checkpoint, `to` exists or can't be written, or a weight
/// is too large for the new type.
pub fn convert(from: &Path, to: &Path, options: ConvertOptions) -> Result<Converted, CheckpointError> {
    let checkpoint = Checkpoint::open(from)?;
    if to.exists() {
        return Err(CheckpointError::layout(to, "exists already", "give a new folder to write to"));
    }
    let unfinished = Unfinished::create(to)?;
    let files = plan(&checkpoint, options);
    let mut weight_map = BTreeMap::new();
    let mut weight_bytes = 0;
    let mut weight_files = Vec::new();
    for (number, tensors) in (1..).zip(&files) {
        let name = match files.len() {
            1 => options.format.single_name().to_owned(),
            count => options.format.shard_name(number, count),
        };
        let path = unfinished.path.join(&name);
        match options.format {
            Format::Safetensors => write_safetensors(&checkpoint, &path, tensors)?,
            Format::TorchZip => write_torch_zip(&checkpoint, &path, tensors)?,
        }
        for tensor in tensors {
            weight_map.insert(tensor.name.clone(), Value::from(name.clone()));
            weight_bytes += tensor.bytes();
        }
        weight_files.push(to.join(&name));
    }
    if files.len() > 1 {
        let index = json!({"metadata": {"total_size": weight_bytes}, "weight_map": weight_map});
        write_json(&unfinished.path.join(options.format.index_name()), &index)?;
    }
    copy_settings(from, &unfinished.path, options.kind)?;
    unfinished.finish(to)?;
    Ok(Converted { weight_files, weight_bytes })
}

/// One tensor to write.
struct Planned {
    name: String,
    shape: Vec<i64>,
    dtype: StoredDtype,
    kind: Kind,
}

impl Planned {
    fn bytes(&self) -> u64 {
        self.shape.iter().product::<i64>().unsigned_abs() * self.kind.elt_size_in_bytes() as u64
    }
}

/// The tensors of each weight file. Wider types come first within a file, so that all are aligned.
fn plan(checkpoint: &Checkpoint, options: ConvertOptions) -> Vec<Vec<Planned>> {
    let mut files: Vec<Vec<Planned>> = vec![Vec::new()];
    let mut size = 0;
    for (name, stored) in &checkpoint.index.tensors {
        let keeps = checkpoint.expected.get(name).is_none_or(|expected| expected.role == Role::Buffer);
        let dtype = match options.kind.filter(|_| !keeps) {
            Some(Kind::Half) => StoredDtype::F16,
            Some(Kind::BFloat16) => StoredDtype::BF16,
            Some(_) => StoredDtype::F32,
            None => stored.dtype.clone(),
        };
        // An opened checkpoint holds no other types.
        let Some(kind) = dtype.kind() else { continue };
        let tensor = Planned { name: name.clone(), shape: stored.shape.clone(), dtype, kind };
        let grown = size + tensor.bytes();
        if size > 0 && options.max_file_bytes.is_some_and(|most| grown > most) {
            files.push(Vec::new());
            size = 0;
        }
        size += tensor.bytes();
        if let Some(file) = files.last_mut() {
            file.push(tensor);
        }
    }
    for file in &mut files {
        file.sort_by_key(|tensor| std::cmp::Reverse(tensor.kind.elt_size_in_bytes()));
    }
    files
}

fn write_safetensors(
    checkpoint: &Checkpoint,
    path: &Path,
    tensors: &[Planned],
) -> Result<(), CheckpointError> {
    let failed = CheckpointError::io(path, "writing");
    let mut start = 0;
    let mut infos = Vec::new();
    for tensor in tensors {
        let end = start + tensor.bytes() as usize;
        let dtype = match tensor.dtype {
            StoredDtype::F16 => Dtype::F16,
            StoredDtype::BF16 => Dtype::BF16,
            _ => Dtype::F32,
        };
        let shape = tensor.shape.iter().map(|size| size.unsigned_abs() as usize).collect();
        infos.push((tensor.name.clone(), TensorInfo { dtype, shape, data_offsets: (start, end) }));
        start = end;
    }
    let format = HashMap::from([("format".to_owned(), "pt".to_owned())]);
    let header = Metadata::new(Some(format), infos)
        .map_err(io::Error::other)
        .and_then(|metadata| serde_json::to_vec(&metadata).map_err(io::Error::from));
    let mut header = match header {
        Ok(header) => header,
        Err(source) => return Err(failed(source)),
    };
    const ALIGNMENT: usize = 8;
    header.resize(header.len().next_multiple_of(ALIGNMENT), b' ');
    let mut prefix = [0_u8; safetensors_file::LENGTH_PREFIX as usize];
    prefix.copy_from_slice(&(header.len() as u64).to_le_bytes());

    let file = File::create(path).map_err(CheckpointError::io(path, "creating"))?;
    let mut writer = BufWriter::new(file);
    writer
        .write_all(&prefix)
        .and_then(|()| writer.write_all(&header))
        .map_err(CheckpointError::io(path, "writing"))?;
    for tensor in tensors {
        write_elements(checkpoint, path, tensor, &mut writer)?;
    }
    let file = writer.into_inner().map_err(|error| failed(error.into_error()))?;
    file.sync_all().map_err(CheckpointError::io(path, "writing"))
}

fn write_torch_zip(checkpoint: &Checkpoint, path: &Path, tensors: &[Planned]) -> Result<(), CheckpointError> {
    let archive = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    let strides: Vec<_> = tensors.iter().map(|tensor| contiguous_strides(&tensor.shape)).collect();
    let dictionary: Vec<_> = tensors
        .iter()
        .zip(&strides)
        .map(|(tensor, strides)| TensorToPickle {
            name: &tensor.name,
            dtype: &tensor.dtype,
            shape: &tensor.shape,
            strides,
        })
        .collect();
    let pickle = pickle_writer::write_tensors(&dictionary);
    let file = File::create(path).map_err(CheckpointError::io(path, "creating"))?;
    let mut zip = ZipWriter::new(BufWriter::new(file));
    // torch aligns records to 64 bytes, so that mapped elements are aligned.
    let options = |bytes: u64| {
        SimpleFileOptions::default()
            .compression_method(CompressionMethod::Stored)
            .with_alignment(64)
            .large_file(bytes >= u64::from(u32::MAX))
    };
    let failed = |source: zip::result::ZipError| CheckpointError::io(path, "writing")(source.into());
    let version = ("version", &b"3\n"[..]);
    for (name, content) in [("data.pkl", &pickle[..]), ("byteorder", b"little"), version] {
        zip.start_file(format!("{archive}/{name}"), options(content.len() as u64)).map_err(failed)?;
        zip.write_all(content).map_err(CheckpointError::io(path, "writing"))?;
    }
    for (key, tensor) in tensors.iter().enumerate() {
        zip.start_file(format!("{archive}/data/{key}"), options(tensor.bytes())).map_err(failed)?;
        write_elements(checkpoint, path, tensor, &mut zip)?;
    }
    let file = zip.finish().map_err(failed)?.into_inner();
    let file = file.map_err(|error| CheckpointError::io(path, "writing")(error.into_error()))?;
    file.sync_all().map_err(CheckpointError::io(path, "writing"))
}

fn write_elements(
    checkpoint: &Checkpoint,
    path: &Path,
    planned: &Planned,
    writer: &mut impl Write,
) -> Result<(), CheckpointError> {
    let torch = |source: TchError| CheckpointError::Torch {
        path: path.to_owned(),
        name: planned.name.clone(),
        doing: "converting it",
        reason: first_line(&source),
    };
    let stored = checkpoint.tensor(&planned.name, &planned.shape)?;
    let tensor = stored.f_to_kind(planned.kind).map_err(torch)?;
    if tensor.kind() != stored.kind()
        && !is_finite(&tensor).map_err(torch)?
        && is_finite(&stored).map_err(torch)?
    {
        return Err(torch(TchError::Kind(format!("it holds numbers that {} can't", planned.dtype))));
    }
    let bytes = tensor.f_view(-1).and_then(|flat| flat.f_view_dtype(Kind::Uint8)).map_err(torch)?;
    let mut buffer = vec![0_u8; 1 << 20];
    let length = bytes.numel();
    let mut start = 0;
    while start < length {
        let count = buffer.len().min(length - start);
        copy_bytes(&bytes, start, &mut buffer[..count]).map_err(torch)?;
        writer.write_all(&buffer[..count]).map_err(CheckpointError::io(path, "writing"))?;
        start += count;
    }
    Ok(())
}

fn copy_bytes(bytes: &Tensor, start: usize, buffer: &mut [u8]) -> Result<(), TchError> {
    let count = buffer.len();
    bytes.f_narrow(0, start as i64, count as i64)?.f_copy_data_u8(buffer, count)
}

/// Copies whatever lies beside the weights; `config.json` gets the new type.
fn copy_settings(from: &Path, to: &Path, kind: Option<Kind>) -> Result<(), CheckpointError> {
    for entry in fs::read_dir(from).map_err(CheckpointError::io(from, "reading the folder"))? {
        let source = entry.map_err(CheckpointError::io(from, "reading the folder"))?.path();
        let name = source.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let is_weights = [".safetensors", ".bin", ".index.json", ".pt", ".pth", ".msgpack", ".h5"]
            .iter()
            .any(|ending| name.ends_with(ending));
        if is_weights || !source.is_file() {
            continue;
        }
        let target = to.join(&name);
        match kind.filter(|_| name == "config.json") {
            None => {
                fs::copy(&source, &target).map_err(CheckpointError::io(&target, "writing"))?;
            }
            Some(kind) => {
                let mut config = read_object(&source)?;
                let dtype = match kind {
                    Kind::Half => "float16",
                    Kind::BFloat16 => "bfloat16",
                    _ => "float32",
                };
                config.insert("torch_dtype".into(), dtype.into());
                write_json(&target, &Value::Object(config))?;
            }
        }
    }
    Ok(())
}

fn write_json(path: &Path, value: &Value) -> Result<(), CheckpointError> {
    fs::write(path, format!("{value:#}\n")).map_err(CheckpointError::io(path, "writing"))
}

/// A folder that is removed again unless it is finished.
struct Unfinished {
    path: PathBuf,
}

impl Unfinished {
    fn create(to: &Path) -> Result<Self, CheckpointError> {
        let name = to.file_name().ok_or_else(|| {
            CheckpointError::layout(to, "is no name for a folder", "give a new folder to write to")
        })?;
        let name = format!(".{}.{}.partial", name.to_string_lossy(), std::process::id());
        let path = to.with_file_name(name);
        fs::create_dir(&path).map_err(CheckpointError::io(&path, "creating the folder"))?;
        Ok(Self { path })
    }

    fn finish(self, to: &Path) -> Result<(), CheckpointError> {
        fs::rename(&self.path, to).map_err(CheckpointError::io(to, "renaming the finished folder"))
    }
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        // After a rename there is nothing left to remove.
        let _ = fs::remove_dir_all(&self.path);
    }
}
