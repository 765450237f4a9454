//! Weight files as tensors, without a copy.

use super::{
    error::CheckpointError,
    index::{StoredTensor, WeightFile},
};
use std::ops::Range;
use tch::{Device, Kind, TchError, Tensor};

/// A whole file, mapped into memory as one tensor of bytes.
///
/// The map is private and writable: a page is shared with every other process that maps the file
/// until someone writes to it, so a trainer can update weights in place and the file never changes.
/// torch owns the map; it lasts as long as any tensor that was cut from it. A file that is replaced by
/// renaming stays as it was mapped; one that is cut short in place kills whoever reads beyond its end,
/// so weight files are never rewritten in place.
pub(super) struct MappedFile {
    bytes: Tensor,
}

impl MappedFile {
    pub fn open(file: &WeightFile) -> Result<Self, CheckpointError> {
        let path = &file.path;
        let name = path.to_str().ok_or_else(|| {
            CheckpointError::layout(path, "has a name that is not UTF-8", "rename the folder")
        })?;
        let length = i64::try_from(file.bytes)
            .map_err(|_| CheckpointError::corrupt(path, "the file is larger than any checkpoint"))?;
        let bytes =
            Tensor::f_from_file(name, false, length, (Kind::Uint8, Device::Cpu)).map_err(|source| {
                CheckpointError::layout(
                    path,
                    format!("can't be mapped into memory ({})", first_line(&source)),
                    "check that the file is readable and that `ulimit -v` leaves room for it",
                )
            })?;
        Ok(Self { bytes })
    }

    /// The tensor at `stored`: memory of the map itself, or a copy where the file's layout forbids
    /// that (an offset that isn't a multiple of the element size, or strides that aren't contiguous).
    pub fn tensor(&self, stored: &StoredTensor, kind: Kind) -> Result<Tensor, TchError> {
        let offset = i64::try_from(stored.offset).map_err(|_| out_of_file())?;
        let element = kind.elt_size_in_bytes() as i64;
        let length = span(stored).and_then(|span| span.checked_mul(element)).ok_or_else(out_of_file)?;
        let bytes = self.bytes.f_narrow(0, offset, length)?;
        let source = if offset % element == 0 {
            bytes.f_view_dtype(kind)?
        } else {
            let mut copy = bytes.f_empty_like()?;
            copy.f_copy_(&bytes)?;
            copy.f_view_dtype(kind)?
        };
        // Set rather than viewed: autograd must see a tensor of its own, not one of many views of a map
        // that share one version counter. The offset counts from where the source starts.
        let mut tensor = Tensor::f_empty([0], (kind, Device::Cpu))?;
        let contiguous = contiguous_strides(&stored.shape);
        let strides = stored.strides.as_deref().unwrap_or(&contiguous);
        let tensor = tensor.f_set_source_tensor_storage_offset_(&source, 0, &stored.shape[..], strides)?;
        tensor.f_contiguous()
    }
}

/// Weight files in memory, to be given back piece by piece.
#[derive(Default)]
pub struct Mappings {
    files: Vec<Tensor>,
}

impl Mappings {
    pub(super) fn of<'a>(files: impl Iterator<Item = &'a MappedFile>) -> Self {
        Self { files: files.map(|file| file.bytes.shallow_clone()).collect() }
    }

    /// Gives the memory back that reading `tensor` took, where it lies in one of the files: whoever reads
    /// it again reads the file again. What was written to the tensor would be lost.
    pub fn give_back(&self, tensor: &Tensor) {
        let bytes = bytes_of(tensor);
        if !self.files.iter().map(bytes_of).any(|file| file.start <= bytes.start && bytes.end <= file.end) {
            return;
        }
        // SAFETY: asks for a number.
        let Ok(page) = usize::try_from(unsafe { libc::sysconf(libc::_SC_PAGESIZE) }) else { return };
        // Whole pages alone: what shares one with it stays.
        let start = bytes.start.next_multiple_of(page);
        let Some(length) = (bytes.end / page * page).checked_sub(start).filter(|&length| length > 0) else {
            return;
        };
        // SAFETY: these pages belong to a private mapping of a file that `self` holds, and show that file
        // again when they are next read. A system that refuses has only more memory in use.
        unsafe { libc::madvise(start as *mut libc::c_void, length, libc::MADV_DONTNEED) };
    }
}

/// Addresses of a contiguous CPU tensor's elements.
fn bytes_of(tensor: &Tensor) -> Range<usize> {
    let start = tensor.data_ptr() as usize;
    start..start + tensor.numel() * tensor.kind().elt_size_in_bytes()
}

/// Row-major strides in elements.
pub(super) fn contiguous_strides(shape: &[i64]) -> Vec<i64> {
    let mut strides = vec![1_i64; shape.len()];
    for axis in (1..shape.len()).rev() {
        strides[axis - 1] = strides[axis].saturating_mul(shape[axis].max(1));
    }
    strides
}

/// Elements from the first to the last that the tensor touches, both included.
pub(super) fn span(stored: &StoredTensor) -> Option<i64> {
    if stored.shape.contains(&0) {
        return Some(0);
    }
    match &stored.strides {
        None => stored.shape.iter().try_fold(1_i64, |product, &size| product.checked_mul(size)),
        Some(strides) => {
            let mut last = 0_i64;
            for (&size, &stride) in stored.shape.iter().zip(strides) {
                last = last.checked_add((size - 1).checked_mul(stride)?)?;
            }
            last.checked_add(1)
        }
    }
}

fn out_of_file() -> TchError {
    TchError::Kind("the tensor reaches beyond its file".into())
}

/// The first line of a torch error: what follows it is a C++ stack trace.
pub(super) fn first_line(error: &TchError) -> String {
    error.to_string().lines().next().unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use super::{super::index::StoredDtype, *};

    #[test]
    fn unaligned_elements_are_read_and_aligned_ones_are_not_copied() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let mut bytes = vec![0_u8, 0];
        bytes.extend([1.5_f32, -2.0, 3.25, 4.0].iter().flat_map(|value| value.to_le_bytes()));
        bytes.extend([0, 0]);
        bytes.extend(7.5_f32.to_le_bytes());
        std::fs::write(file.path(), &bytes).unwrap();
        let map = MappedFile::open(&WeightFile { path: file.path().to_owned(), bytes: bytes.len() as u64 })
            .unwrap();
        let stored = |shape: &[i64], offset| StoredTensor {
            file: 0,
            dtype: StoredDtype::F32,
            shape: shape.to_vec(),
            strides: None,
            offset,
        };
        let unaligned = map.tensor(&stored(&[2, 2], 2), Kind::Float).unwrap();
        assert!(unaligned.equal(&Tensor::from_slice(&[1.5_f32, -2.0, 3.25, 4.0]).view([2, 2])));
        let aligned = map.tensor(&stored(&[], 20), Kind::Float).unwrap();
        assert_eq!((aligned.double_value(&[]), aligned.dim()), (7.5, 0));
        let place = |tensor: &Tensor| tensor.data_ptr() as usize;
        assert_eq!(place(&aligned), place(&map.bytes) + 20);
        assert!(map.tensor(&stored(&[2], 20), Kind::Float).is_err());
    }

    #[test]
    fn what_is_given_back_is_read_again_and_other_memory_is_left_alone() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let values: Vec<f32> = (0..60_000_u16).map(f32::from).collect();
        std::fs::write(file.path(), values.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<_>>())
            .unwrap();
        let bytes = 4 * values.len() as u64;
        let map = MappedFile::open(&WeightFile { path: file.path().to_owned(), bytes }).unwrap();
        let mappings = Mappings::of(std::iter::once(&map));
        let stored = StoredTensor {
            file: 0,
            dtype: StoredDtype::F32,
            shape: vec![50_000],
            strides: None,
            offset: 4 * 1_234,
        };
        let mapped = map.tensor(&stored, Kind::Float).unwrap();
        let mut own = Tensor::empty([50_000], (Kind::Float, Device::Cpu));
        own.copy_(&mapped);
        for tensor in [&mapped, &own] {
            mappings.give_back(tensor);
            assert!(tensor.equal(&Tensor::from_slice(&values[1_234..51_234])));
        }
        // Given back, or its memory would still hold what was written to it.
        let _ = mapped.shallow_clone().fill_(7.0);
        mappings.give_back(&mapped);
        let again = mapped.narrow(0, 2_000, 40_000);
        assert!(again.equal(&Tensor::from_slice(&values[3_234..43_234])));
    }
}
