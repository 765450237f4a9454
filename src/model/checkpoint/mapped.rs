//! Weight files as tensors, without a copy.

use super::{
    error::CheckpointError,
    index::{StoredTensor, WeightFile},
};
use tch::{Device, Kind, TchError, Tensor};

/// A whole file, mapped into memory as one tensor of bytes.
///
/// The map is private and writable: a page is shared with every other process that maps the file
/// until someone writes to it, so a trainer can update weights in place and the file never changes.
/// torch owns the map; it lasts as long as any tensor that was cut from it.
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
