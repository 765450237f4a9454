//! The table of a zip file written by `torch.save`, read without its data.
//!
//! torch stores every tensor's elements as an uncompressed record, so that they can be mapped in place.

use super::{
    error::CheckpointError,
    index::{StoredDtype, StoredTensor},
    mapped::{contiguous_strides, span},
    pickle::{self, PickleError, PickledTensor},
};
use std::{
    collections::HashMap,
    fs::File,
    io::{BufReader, Read, Seek},
    path::Path,
};
use zip::{CompressionMethod, ZipArchive};

/// No dictionary of tensors has a pickle this long.
const LONGEST_PICKLE: u64 = 256 << 20;

/// Every tensor of the file, in the order of its dictionary.
///
/// # Errors
/// [`CheckpointError::Corrupt`] for a damaged file; [`CheckpointError::Layout`] for one of torch's older
/// format, which can't be mapped, and for one that holds something other than a state dict.
pub(super) fn read_table(path: &Path) -> Result<Vec<(String, StoredTensor)>, CheckpointError> {
    let file = File::open(path).map_err(CheckpointError::io(path, "opening"))?;
    let length = file.metadata().map_err(CheckpointError::io(path, "reading the size"))?.len();
    let mut reader = BufReader::new(file);
    refuse_legacy_format(path, &mut reader)?;
    let corrupt = |problem: String| CheckpointError::corrupt(path, problem);
    let mut archive = ZipArchive::new(reader)
        .map_err(|source| corrupt(format!("it is no zip file as torch.save writes it ({source})")))?;

    let mut pickle_record = None;
    let mut records = HashMap::new();
    let mut little_endian = true;
    for position in 0..archive.len() {
        let mut record = archive
            .by_index(position)
            .map_err(|source| corrupt(format!("its record {position}: {source}")))?;
        let name = record.name().map_err(|source| corrupt(format!("its record {position}: {source}")))?;
        // Every name starts with the archive's own name and a slash.
        let Some((_, name)) = name.split_once('/') else { continue };
        let name = name.to_owned();
        if name == "byteorder" {
            let mut order = String::new();
            little_endian = record.by_ref().take(8).read_to_string(&mut order).is_ok() && order == "little";
        } else if name == "data.pkl" {
            pickle_record = Some(position);
        } else if let Some(key) = name.strip_prefix("data/") {
            let (Some(offset), size) = (record.data_start(), record.size()) else {
                return Err(corrupt(format!("its record {name} has no place")));
            };
            if record.compression() != CompressionMethod::Stored {
                return Err(corrupt(format!("its record {name} is compressed, which torch.save never does")));
            }
            if offset.checked_add(size).is_none_or(|end| end > length) {
                return Err(corrupt(format!("its record {name} ends beyond the file's {length} bytes")));
            }
            records.insert(key.to_owned(), (offset, size));
        }
    }
    if !little_endian {
        return Err(CheckpointError::layout(
            path,
            "was written on a big-endian machine",
            "load it with torch there and save it as safetensors",
        ));
    }
    let position = pickle_record.ok_or_else(|| corrupt("it has no record data.pkl".into()))?;
    let pickle = read_record(&mut archive, position).map_err(corrupt)?;
    let tensors = pickle::read_tensors(&pickle).map_err(|error| match error {
        PickleError::Damaged(problem) => corrupt(problem),
        PickleError::Foreign(problem) => CheckpointError::layout(
            path,
            problem,
            "save the model's state dict alone in Python: torch.save(model.state_dict(), path)",
        ),
    })?;
    tensors
        .into_iter()
        .map(|(name, tensor)| match place(&tensor, &records) {
            Ok(stored) => Ok((name.to_string(), stored)),
            Err(problem) => Err(corrupt(format!("tensor `{name}` {problem}"))),
        })
        .collect()
}

fn read_record(archive: &mut ZipArchive<impl Read + Seek>, position: usize) -> Result<Vec<u8>, String> {
    let record = archive.by_index(position).map_err(|source| format!("its record data.pkl: {source}"))?;
    if record.size() > LONGEST_PICKLE {
        return Err(format!("its record data.pkl claims {} bytes", record.size()));
    }
    let mut pickle = Vec::new();
    record
        .take(LONGEST_PICKLE)
        .read_to_end(&mut pickle)
        .map_err(|source| format!("its record data.pkl: {source}"))?;
    Ok(pickle)
}

/// Before 1.6, torch wrote a bare pickle; that starts with the pickle of a magic number.
fn refuse_legacy_format(path: &Path, reader: &mut BufReader<File>) -> Result<(), CheckpointError> {
    let mut start = Vec::new();
    reader.by_ref().take(4).read_to_end(&mut start).map_err(CheckpointError::io(path, "reading"))?;
    reader.rewind().map_err(CheckpointError::io(path, "reading"))?;
    match &start[..] {
        [0x80, 2, 0x8a, ..] => Err(CheckpointError::layout(
            path,
            "is of torch's format before 1.6, which can't be mapped",
            "convert it in Python: torch.save(torch.load(path, weights_only=True), path)",
        )),
        _ => Ok(()),
    }
}

fn place(tensor: &PickledTensor, records: &HashMap<String, (u64, u64)>) -> Result<StoredTensor, String> {
    let (dtype, element) = match &*tensor.storage_class {
        "FloatStorage" => (StoredDtype::F32, 4),
        "HalfStorage" => (StoredDtype::F16, 2),
        "BFloat16Storage" => (StoredDtype::BF16, 2),
        "DoubleStorage" | "LongStorage" => (StoredDtype::Other(tensor.storage_class.to_string()), 8),
        "IntStorage" => (StoredDtype::Other(tensor.storage_class.to_string()), 4),
        other => (StoredDtype::Other(other.to_owned()), 1),
    };
    let &(record, size) =
        records.get(&*tensor.key).ok_or_else(|| format!("has no record data/{}", tensor.key))?;
    let too_large = || format!("reaches beyond its record data/{}", tensor.key);
    let strides = (tensor.strides != contiguous_strides(&tensor.shape)).then(|| tensor.strides.clone());
    let relative = tensor.offset.checked_mul(element).ok_or_else(too_large)?;
    let relative = u64::try_from(relative).map_err(|_| too_large())?;
    let stored = StoredTensor {
        file: 0,
        dtype,
        shape: tensor.shape.clone(),
        strides,
        offset: record.checked_add(relative).ok_or_else(too_large)?,
    };
    let length = span(&stored).and_then(|span| span.checked_mul(element)).ok_or_else(too_large)?;
    let end = u64::try_from(length).ok().and_then(|length| relative.checked_add(length));
    if end.is_none_or(|end| end > size) {
        return Err(too_large());
    }
    if tensor.storage_length.checked_mul(element).and_then(|bytes| u64::try_from(bytes).ok()) != Some(size) {
        return Err(format!(
            "says that data/{} holds {} elements, but it has {size} bytes",
            tensor.key, tensor.storage_length
        ));
    }
    Ok(stored)
}

#[cfg(test)]
mod tests {
    use super::{
        super::{
            index::WeightFile,
            mapped::MappedFile,
            pickle_writer::{TensorToPickle, write_tensors},
        },
        *,
    };
    use std::io::Write;
    use tch::{Kind, Tensor};
    use zip::{ZipWriter, write::SimpleFileOptions};

    /// A file with one tensor over the storage 0, 1, 2, 3, 4, 5.
    fn file(shape: &[i64], strides: &[i64], compression: CompressionMethod) -> tempfile::NamedTempFile {
        let tensor = TensorToPickle { name: "w", dtype: &StoredDtype::F32, shape, strides };
        let storage: Vec<u8> = (0..6_u8).flat_map(|value| f32::from(value).to_le_bytes()).collect();
        let file = tempfile::NamedTempFile::new().unwrap();
        let mut zip = ZipWriter::new(file.reopen().unwrap());
        let options = SimpleFileOptions::default().compression_method(compression);
        for (name, content) in [("a/data.pkl", write_tensors(&[tensor])), ("a/data/0", storage)] {
            zip.start_file(name, options).unwrap();
            zip.write_all(&content).unwrap();
        }
        zip.finish().unwrap();
        file
    }

    #[test]
    fn a_transposed_tensor_is_read_in_its_own_order() {
        let file = file(&[3, 2], &[1, 3], CompressionMethod::Stored);
        let table = read_table(file.path()).unwrap();
        let bytes = file.as_file().metadata().unwrap().len();
        let map = MappedFile::open(&WeightFile { path: file.path().to_owned(), bytes }).unwrap();
        let tensor = map.tensor(&table[0].1, Kind::Float).unwrap();
        let expected = Tensor::from_slice(&[0_f32, 3., 1., 4., 2., 5.]).view([3, 2]);
        assert!(tensor.is_contiguous() && tensor.equal(&expected), "{tensor:?}");
    }

    #[test]
    fn strides_that_leave_the_storage_are_refused() {
        let message = |shape: &[i64], strides: &[i64]| {
            read_table(file(shape, strides, CompressionMethod::Stored).path()).unwrap_err().to_string()
        };
        assert!(message(&[3, 2], &[2, 3]).contains("`w` reaches beyond its record"));
        assert!(message(&[2, 3], &[i64::MAX, 1]).contains("`w` reaches beyond its record"));
        assert!(message(&[4, 2], &[2, 1]).contains("beyond"));
    }

    #[test]
    fn a_compressed_record_is_refused_unread() {
        // A deflated record is written by hand: the library is built without any compression. Both places
        // that name the method are changed, and what it unpacks to is claimed to be huge.
        let mut bytes = std::fs::read(file(&[3, 2], &[2, 1], CompressionMethod::Stored).path()).unwrap();
        let starts = |signature: &[u8]| -> Vec<usize> {
            (0..bytes.len() - 4).filter(|&at| bytes[at..].starts_with(signature)).collect()
        };
        let (local, central) = (starts(b"PK\x03\x04"), starts(b"PK\x01\x02"));
        assert_eq!((local.len(), central.len()), (2, 2));
        for (at, method, size) in
            local.into_iter().map(|at| (at, 8, 22)).chain(central.into_iter().map(|at| (at, 10, 24)))
        {
            bytes[at + method] = 8;
            bytes[at + size..at + size + 4].copy_from_slice(&0xF000_0000_u32.to_le_bytes());
        }
        let bomb = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(bomb.path(), &bytes).unwrap();
        let error = read_table(bomb.path()).unwrap_err().to_string();
        assert!(error.contains("data.pkl") || error.contains("compressed"), "{error}");
    }

    #[test]
    fn a_pickle_that_claims_to_be_huge_is_refused_unread() {
        let mut bytes = std::fs::read(file(&[3, 2], &[2, 1], CompressionMethod::Stored).path()).unwrap();
        for at in 0..bytes.len() - 4 {
            let sizes = match &bytes[at..at + 4] {
                b"PK\x03\x04" => 18,
                b"PK\x01\x02" => 20,
                _ => continue,
            };
            bytes[at + sizes..at + sizes + 8].copy_from_slice(&[0, 0, 0, 0xF0].repeat(2));
        }
        let bomb = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(bomb.path(), &bytes).unwrap();
        assert!(read_table(bomb.path()).is_err());
    }

    #[test]
    fn every_truncation_is_an_error() {
        let whole = std::fs::read(file(&[3, 2], &[2, 1], CompressionMethod::Stored).path()).unwrap();
        let cut = tempfile::NamedTempFile::new().unwrap();
        for length in 0..whole.len() {
            std::fs::write(cut.path(), &whole[..length]).unwrap();
            assert!(read_table(cut.path()).is_err(), "{length} of {} bytes", whole.len());
        }
    }

    #[test]
    fn every_damaged_byte_is_an_error_or_harmless() {
        let whole = std::fs::read(file(&[3, 2], &[2, 1], CompressionMethod::Stored).path()).unwrap();
        let damaged = tempfile::NamedTempFile::new().unwrap();
        for position in 0..whole.len() {
            for value in [0, 0xff, whole[position] ^ 0x10] {
                let mut bytes = whole.clone();
                bytes[position] = value;
                std::fs::write(damaged.path(), &bytes).unwrap();
                if let Ok(table) = read_table(damaged.path()) {
                    for (_, stored) in table {
                        let end = span(&stored).and_then(|span| u64::try_from(span).ok()).unwrap();
                        assert!(stored.offset + end <= whole.len() as u64, "byte {position} = {value}");
                    }
                }
            }
        }
    }
}
