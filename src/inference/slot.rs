//! A fixed slab of input slots that preprocessing writes into and the model reads from.

use std::sync::{Arc, Condvar, Mutex};

/// Memory for `capacity` images, allocated once.
///
/// A decoded image is written straight into the slot it is scored from. Slots are leased one at a
/// time, so that a failed decode leaves no hole and a batch is closed as late as its model wants.
#[derive(Clone)]
pub struct SlotPool {
    inner: Arc<Inner>,
}

struct Inner {
    free: Mutex<Vec<Box<[f32]>>>,
    returned: Condvar,
    values: usize,
    capacity: usize,
}

impl SlotPool {
    /// `capacity` slots of `3 * image_size * image_size` values.
    pub fn new(capacity: usize, image_size: usize) -> Self {
        let values = 3 * image_size * image_size;
        let free = (0..capacity).map(|_| vec![0.0; values].into_boxed_slice()).collect();
        Self { inner: Arc::new(Inner { free: Mutex::new(free), returned: Condvar::new(), values, capacity }) }
    }

    /// Values in a slot.
    pub fn values(&self) -> usize {
        self.inner.values
    }

    pub fn capacity(&self) -> usize {
        self.inner.capacity
    }

    /// Blocks until a slot is free. Its contents are those of its last user.
    pub fn lease(&self) -> Slot {
        let mut free = self.inner.free.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        loop {
            if let Some(values) = free.pop() {
                return Slot { values, home: Arc::clone(&self.inner) };
            }
            free = self.inner.returned.wait(free).unwrap_or_else(|poisoned| poisoned.into_inner());
        }
    }
}

/// One leased slot; dropping it gives it back.
pub struct Slot {
    values: Box<[f32]>,
    home: Arc<Inner>,
}

impl Slot {
    /// Pixel values, channels first: `[3, image_size, image_size]`.
    pub fn values(&self) -> &[f32] {
        &self.values
    }

    pub fn values_mut(&mut self) -> &mut [f32] {
        &mut self.values
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let values = std::mem::take(&mut self.values);
        self.home.free.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).push(values);
        self.home.returned.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn a_dropped_slot_wakes_a_waiting_lease() {
        let pool = SlotPool::new(1, 2);
        let held = pool.lease();
        let waiting = {
            let pool = pool.clone();
            std::thread::spawn(move || pool.lease().values().len())
        };
        std::thread::sleep(Duration::from_millis(20));
        assert!(!waiting.is_finished());
        drop(held);
        assert_eq!(waiting.join().unwrap(), 12);
    }
}
