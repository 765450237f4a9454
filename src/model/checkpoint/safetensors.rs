//! The table of a `.safetensors` file, read without its data.

use super::{
    error::CheckpointError,
    index::{StoredDtype, StoredTensor},
};
use safetensors::{Dtype, tensor::Metadata};
use std::{
    fs::File,
    io::{BufReader, Read},
    path::Path,
};

/// Bytes before the header: its length, little endian.
pub(super) const LENGTH_PREFIX: u64 = 8;
/// The longest header that the format allows.
const LONGEST_HEADER: u64 = 100_000_000;

/// Every tensor of the file, in the order of its data.
///
/// # Errors
/// [`CheckpointError::Corrupt`] unless header and data fill the file exactly.
pub(super) fn read_table(path: &Path) -> Result<Vec<(String, StoredTensor)>, CheckpointError> {
    let file = File::open(path).map_err(CheckpointError::io(path, "opening"))?;
    let length = file.metadata().map_err(CheckpointError::io(path, "reading the size"))?.len();
    if length < LENGTH_PREFIX {
        return Err(CheckpointError::corrupt(path, format!("{length} bytes are no safetensors file")));
    }
    let mut reader = BufReader::new(file);
    let mut prefix = [0_u8; LENGTH_PREFIX as usize];
    reader.read_exact(&mut prefix).map_err(CheckpointError::io(path, "reading"))?;
    let header_length = u64::from_le_bytes(prefix);
    if header_length > LONGEST_HEADER.min(length - LENGTH_PREFIX) {
        return Err(CheckpointError::corrupt(
            path,
            format!("its header claims {header_length} of the file's {length} bytes"),
        ));
    }
    let mut header = Vec::new();
    reader.take(header_length).read_to_end(&mut header).map_err(CheckpointError::io(path, "reading"))?;
    let metadata: Metadata = serde_json::from_slice(&header)
        .map_err(|source| CheckpointError::corrupt(path, format!("its header can't be read ({source})")))?;

    let data_start = LENGTH_PREFIX + header_length;
    let expected_length = data_start.checked_add(metadata.data_len() as u64);
    if expected_length != Some(length) {
        return Err(CheckpointError::corrupt(
            path,
            format!(
                "its tensors end at byte {}, but the file is {length} bytes long",
                expected_length.unwrap_or(u64::MAX)
            ),
        ));
    }
    let mut tensors = Vec::new();
    for name in metadata.offset_keys() {
        let Some(info) = metadata.info(&name) else { continue };
        let shape = info.shape.iter().map(|&size| i64::try_from(size)).collect::<Result<_, _>>();
        let shape =
            shape.map_err(|_| CheckpointError::corrupt(path, format!("tensor `{name}` is too large")))?;
        let dtype = match info.dtype {
            Dtype::F32 => StoredDtype::F32,
            Dtype::F16 => StoredDtype::F16,
            Dtype::BF16 => StoredDtype::BF16,
            other => StoredDtype::Other(format!("{other:?}")),
        };
        let offset = data_start + info.data_offsets.0 as u64;
        tensors.push((name, StoredTensor { file: 0, dtype, shape, strides: None, offset }));
    }
    Ok(tensors)
}
