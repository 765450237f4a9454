//! Writing weight files and what lies beside them, in a folder that appears whole or not at all.

use super::{
    Format,
    error::CheckpointError,
    index::StoredDtype,
    mapped::{contiguous_strides, first_line},
    pickle_writer::{self, TensorToPickle},
    safetensors as safetensors_file,
};
use crate::model::fields::read_object;
use safetensors::tensor::{Dtype as FileDtype, Metadata, TensorInfo};
use serde_json::{Value, json};
use std::{
    collections::{BTreeMap, HashMap},
    fs::{self, File},
    io::{self, BufWriter, Write},
    path::{Path, PathBuf},
};
use tch::{Device, Kind, TchError, Tensor};
use zip::{CompressionMethod, ZipWriter, write::SimpleFileOptions};

/// One tensor to write.
pub(super) struct Planned {
    pub name: String,
    pub shape: Vec<i64>,
    pub dtype: StoredDtype,
    pub kind: Kind,
}

impl Planned {
    pub fn bytes(&self) -> u64 {
        self.shape.iter().product::<i64>().unsigned_abs() * self.kind.elt_size_in_bytes() as u64
    }
}

/// What was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Written {
    pub weight_files: Vec<PathBuf>,
    /// Of all weights, without headers.
    pub weight_bytes: u64,
}

/// Gives a planned tensor in its planned type.
type Load<'a> = dyn FnMut(&Planned) -> Result<Tensor, CheckpointError> + 'a;

/// Writes tensors to `model.safetensors` in `folder`, under metadata that the reference's loader needs;
/// beyond `max_file_bytes` to several files and an index. One tensor at a time is copied.
///
/// # Errors
/// [`CheckpointError`] for a tensor of a type that no checkpoint has, or a file that can't be written.
pub fn write_weights(
    folder: &Path,
    tensors: &BTreeMap<String, Tensor>,
    max_file_bytes: u64,
) -> Result<Written, CheckpointError> {
    let plan = tensors.iter().map(|(name, tensor)| {
        let kind = tensor.kind();
        let dtype = StoredDtype::of(kind).ok_or_else(|| CheckpointError::Torch {
            path: folder.to_owned(),
            name: name.clone(),
            doing: "writing it",
            reason: format!("{kind:?} is no type that weights are stored in"),
        })?;
        Ok(Planned { name: name.clone(), shape: tensor.size(), dtype, kind })
    });
    let files = split(plan.collect::<Result<_, CheckpointError>>()?, Some(max_file_bytes));
    write_files(
        folder,
        Format::Safetensors,
        &files,
        &mut |planned| Ok(tensors[&planned.name].shallow_clone()),
    )
}

/// The tensors of each weight file. Wider types come first within a file, so that all are aligned.
pub(super) fn split(tensors: Vec<Planned>, max_file_bytes: Option<u64>) -> Vec<Vec<Planned>> {
    let mut files: Vec<Vec<Planned>> = vec![Vec::new()];
    let mut size = 0;
    for tensor in tensors {
        let grown = size + tensor.bytes();
        if size > 0 && max_file_bytes.is_some_and(|most| grown > most) {
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

/// Writes weight files of one format and, where there are several, their index.
pub(super) fn write_files(
    folder: &Path,
    format: Format,
    files: &[Vec<Planned>],
    load: &mut Load<'_>,
) -> Result<Written, CheckpointError> {
    let mut weight_map = BTreeMap::new();
    let mut written = Written { weight_files: Vec::new(), weight_bytes: 0 };
    for (number, tensors) in (1..).zip(files) {
        let name = match files.len() {
            1 => format.single_name().to_owned(),
            count => format.shard_name(number, count),
        };
        let path = folder.join(&name);
        match format {
            Format::Safetensors => write_safetensors(&path, tensors, load)?,
            Format::TorchZip => write_torch_zip(&path, tensors, load)?,
        }
        for tensor in tensors {
            weight_map.insert(tensor.name.clone(), Value::from(name.clone()));
            written.weight_bytes += tensor.bytes();
        }
        written.weight_files.push(path);
    }
    if files.len() > 1 {
        let index = json!({"metadata": {"total_size": written.weight_bytes}, "weight_map": weight_map});
        write_json(&folder.join(format.index_name()), &index)?;
    }
    Ok(written)
}

fn write_safetensors(path: &Path, tensors: &[Planned], load: &mut Load<'_>) -> Result<(), CheckpointError> {
    let failed = CheckpointError::io(path, "writing");
    let mut start = 0;
    let mut infos = Vec::new();
    for tensor in tensors {
        let end = start + tensor.bytes() as usize;
        let dtype = match tensor.dtype {
            StoredDtype::F16 => FileDtype::F16,
            StoredDtype::BF16 => FileDtype::BF16,
            _ => FileDtype::F32,
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
        write_elements(path, tensor, &load(tensor)?, &mut writer)?;
    }
    let file = writer.into_inner().map_err(|error| failed(error.into_error()))?;
    file.sync_all().map_err(CheckpointError::io(path, "writing"))
}

fn write_torch_zip(path: &Path, tensors: &[Planned], load: &mut Load<'_>) -> Result<(), CheckpointError> {
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
        write_elements(path, tensor, &load(tensor)?, &mut zip)?;
    }
    let file = zip.finish().map_err(failed)?.into_inner();
    let file = file.map_err(|error| CheckpointError::io(path, "writing")(error.into_error()))?;
    file.sync_all().map_err(CheckpointError::io(path, "writing"))
}

fn write_elements(
    path: &Path,
    planned: &Planned,
    tensor: &Tensor,
    writer: &mut impl Write,
) -> Result<(), CheckpointError> {
    let torch = torch_error(path, &planned.name);
    let bytes = tensor
        .f_to_device(Device::Cpu)
        .and_then(|tensor| tensor.f_contiguous()?.f_view(-1)?.f_view_dtype(Kind::Uint8))
        .map_err(&torch)?;
    let mut buffer = vec![0_u8; 1 << 20];
    let length = bytes.numel();
    let mut start = 0;
    while start < length {
        let count = buffer.len().min(length - start);
        copy_bytes(&bytes, start, &mut buffer[..count]).map_err(&torch)?;
        writer.write_all(&buffer[..count]).map_err(CheckpointError::io(path, "writing"))?;
        start += count;
    }
    Ok(())
}

/// What torch says when it can't convert one tensor for one file.
pub(super) fn torch_error(path: &Path, name: &str) -> impl Fn(TchError) -> CheckpointError {
    move |source| CheckpointError::Torch {
        path: path.to_owned(),
        name: name.to_owned(),
        doing: "converting it",
        reason: first_line(&source),
    }
}

fn copy_bytes(bytes: &Tensor, start: usize, buffer: &mut [u8]) -> Result<(), TchError> {
    let count = buffer.len();
    bytes.f_narrow(0, start as i64, count as i64)?.f_copy_data_u8(buffer, count)
}

/// Copies whatever lies beside the weights; `config.json` gets the type `kind`, if one is given.
///
/// # Errors
/// [`CheckpointError`] naming the file that can't be copied.
pub fn copy_settings(from: &Path, to: &Path, kind: Option<Kind>) -> Result<(), CheckpointError> {
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
                config.insert("torch_dtype".into(), torch_dtype(kind).into());
                write_json(&target, &Value::Object(config))?;
            }
        }
    }
    Ok(())
}

/// A type as `config.json` names it.
fn torch_dtype(kind: Kind) -> &'static str {
    match kind {
        Kind::Half => "float16",
        Kind::BFloat16 => "bfloat16",
        _ => "float32",
    }
}

/// Writes a settings file, indented as the reference writes its own.
///
/// # Errors
/// [`CheckpointError::Io`].
pub fn write_json(path: &Path, value: &Value) -> Result<(), CheckpointError> {
    fs::write(path, format!("{value:#}\n")).map_err(CheckpointError::io(path, "writing"))
}

/// A folder that is removed again unless it is finished.
pub struct Unfinished {
    pub path: PathBuf,
}

impl Unfinished {
    pub fn create(to: &Path) -> Result<Self, CheckpointError> {
        let name = to.file_name().ok_or_else(|| {
            CheckpointError::layout(to, "is no name for a folder", "give a new folder to write to")
        })?;
        let name = format!(".{}.{}.partial", name.to_string_lossy(), std::process::id());
        let path = to.with_file_name(name);
        fs::create_dir(&path).map_err(CheckpointError::io(&path, "creating the folder"))?;
        Ok(Self { path })
    }

    pub fn finish(self, to: &Path) -> Result<(), CheckpointError> {
        fs::rename(&self.path, to).map_err(CheckpointError::io(to, "renaming the finished folder"))
    }
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        // After a rename there is nothing left to remove.
        let _ = fs::remove_dir_all(&self.path);
    }
}
