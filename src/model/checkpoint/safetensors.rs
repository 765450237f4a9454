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

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::{collection::vec, prelude::*};

    fn read(bytes: &[u8]) -> Result<Vec<(String, StoredTensor)>, CheckpointError> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), bytes).unwrap();
        read_table(file.path())
    }

    fn written(header: &str, data: &[u8]) -> Vec<u8> {
        [&(header.len() as u64).to_le_bytes(), header.as_bytes(), data].concat()
    }

    const HEADER: &str = r#"{"__metadata__":{"format":"pt"},
        "a":{"dtype":"BF16","shape":[3],"data_offsets":[0,6]},
        "b":{"dtype":"F32","shape":[2,1],"data_offsets":[6,14]}}"#;

    #[test]
    fn offsets_count_from_the_start_of_the_file() {
        let table = read(&written(HEADER, &[0; 14])).unwrap();
        let start = LENGTH_PREFIX + HEADER.len() as u64;
        assert_eq!(table[0].1.offset, start);
        assert_eq!((table[1].1.offset, &table[1].1.shape[..]), (start + 6, &[2, 1][..]));
    }

    #[test]
    fn damage_names_the_file() {
        for bytes in [
            &b"<html>"[..],
            &b"<!DOCTYPE html><html>"[..],
            &written(HEADER, &[0; 13]),
            &written(HEADER, &[0; 15]),
            &written(&HEADER.replace("[6,14]", "[7,15]"), &[0; 15]),
            &written(&HEADER.replace("\"shape\":[3]", "\"shape\":[18446744073709551615]"), &[0; 14]),
            &u64::MAX.to_le_bytes(),
        ] {
            let error = read(bytes).unwrap_err();
            assert!(matches!(error, CheckpointError::Corrupt { .. }), "{error}");
            assert!(error.to_string().contains("fetch it again"), "{error}");
        }
    }

    proptest! {
        #[test]
        fn random_and_damaged_files_never_panic(
            place in any::<prop::sample::Index>(),
            noise in vec(any::<u8>(), 0..40),
            cut in any::<prop::sample::Index>(),
        ) {
            let mut bytes = written(HEADER, &[0; 14]);
            let place = place.index(bytes.len());
            for (byte, noise) in bytes[place..].iter_mut().zip(noise) {
                *byte = noise;
            }
            bytes.truncate(cut.index(bytes.len() + 1));
            let _ = read(&bytes);
        }
    }
}
