//! Slots of pixel values as one tensor on the model's device.

use super::gpu;
use crate::inference::slot::Slot;
use tch::{Device, Kind, TchError, Tensor};

/// Makes batches of slots, and keeps what can be used again between them.
///
/// What differs by device: a CPU reads each slot where it lies, one copy that converts as it goes. A GPU
/// reads host memory without waiting for the host only where its pages are locked, and locking costs more
/// than copying, so that one locked buffer serves all batches: slots are copied into it, it goes over in one
/// transfer that the host doesn't wait for, and the GPU converts. Its kernels queue up behind the transfer;
/// reading the answers back, at the end of the batch, is what waits, so that the buffer is free again by
/// then. Decoding and preprocessing of the next batches go on meanwhile on their own threads. Overlapping
/// the transfer itself with the last batch's kernels would need a second stream, which tch does not have;
/// it is 2.4 MB an image at 448 px, a tenth of a millisecond over PCIe 4.
#[derive(Default)]
pub struct PixelBatches {
    /// f32 `[capacity, 3, edge, edge]`, page-locked; on GPUs alone.
    locked: Option<Tensor>,
}

impl PixelBatches {
    /// The slots as `[slots, 3, edge, edge]` of `kind` on `device`.
    ///
    /// # Errors
    /// [`TchError::Shape`] for a slot of another size, else whatever torch reports.
    pub fn gather(
        &mut self,
        slots: &[Slot],
        edge: i64,
        (kind, device): (Kind, Device),
    ) -> Result<Tensor, TchError> {
        if device == Device::Cpu {
            let pixels = Tensor::f_empty([slots.len() as i64, 3, edge, edge], (kind, device))?;
            fill(&pixels, slots, edge)?;
            return Ok(pixels);
        }
        let lock = |buffer: Tensor| gpu::pin(&buffer);
        self.stage(slots, edge, lock)?.f_to_device_(device, Kind::Float, true, false)?.f_to_kind(kind)
    }

    /// The slots in the buffer, which grows where it is too small; `lock` makes its pages fit for transfers.
    fn stage(
        &mut self,
        slots: &[Slot],
        edge: i64,
        lock: impl FnOnce(Tensor) -> Result<Tensor, TchError>,
    ) -> Result<Tensor, TchError> {
        let (count, rest) = (slots.len() as i64, [3, edge, edge]);
        let locked = self.locked.take();
        let fits = |buffer: &Tensor| buffer.size()[0] >= count && buffer.size()[1..] == rest;
        let buffer = match locked.filter(fits) {
            Some(buffer) => buffer,
            None => lock(Tensor::f_empty([count, 3, edge, edge], (Kind::Float, Device::Cpu))?)?,
        };
        let batch = buffer.f_narrow(0, 0, count)?;
        self.locked = Some(buffer);
        fill(&batch, slots, edge)?;
        Ok(batch)
    }
}

/// Copies each slot into its row of `pixels`.
fn fill(pixels: &Tensor, slots: &[Slot], edge: i64) -> Result<(), TchError> {
    let size = [3, edge, edge];
    for (row, slot) in (0..).zip(slots) {
        let values = slot.values();
        if values.len() as i64 != size.iter().product::<i64>() {
            let problem = format!("a slot holds {} values, not 3 * {edge} * {edge}", values.len());
            return Err(TchError::Shape(problem));
        }
        let data = values.as_ptr().cast();
        // SAFETY: the slot is borrowed for longer than this view of it lives, holds as many f32 values as
        // `size` calls for, and is only read.
        let view = unsafe { Tensor::f_from_blob(data, &size, &[], Kind::Float, Device::Cpu) }?;
        pixels.f_select(0, row)?.f_copy_(&view)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::inference::slot::SlotPool;

    fn slots(pool: &SlotPool, first: usize, count: usize) -> Vec<Slot> {
        let filled = |index: usize| {
            let mut slot = pool.lease();
            for (place, value) in slot.values_mut().iter_mut().enumerate() {
                *value = (index * 1000 + place) as f32;
            }
            slot
        };
        (first..first + count).map(filled).collect()
    }

    #[test]
    fn staged_batches_are_those_gathered_directly_and_share_one_buffer() {
        let pool = SlotPool::new(3, 4);
        let mut batches = PixelBatches::default();
        let mut locked = 0;
        for (first, count) in [(0, 2), (5, 1), (7, 3), (1, 2)] {
            let slots = slots(&pool, first, count);
            let direct = batches.gather(&slots, 4, (Kind::Float, Device::Cpu)).unwrap();
            let staged = batches.stage(&slots, 4, |buffer| {
                locked += 1;
                Ok(buffer)
            });
            assert!(direct.equal(&staged.unwrap()));
            assert_eq!(direct.double_value(&[0, 0, 0, 1]), (first * 1000 + 1) as f64);
        }
        assert_eq!(locked, 2, "once, and again for a larger batch");
    }

    #[test]
    fn a_slot_of_another_size_is_an_error() {
        let pool = SlotPool::new(1, 4);
        let error = PixelBatches::default().gather(&slots(&pool, 0, 1), 5, (Kind::Float, Device::Cpu));
        assert!(matches!(error, Err(TchError::Shape(problem)) if problem.contains("48 values")));
    }
}
