//! What the pipeline may hold at once, taken before work starts and given back at its end.

use super::PipelineSettings;
use std::sync::Arc;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Bytes are counted in blocks of this size, so that any budget fits a semaphore.
const BLOCK: u64 = 4096;

/// Permits by count and by encoded bytes.
pub struct Admission {
    items: Arc<Semaphore>,
    max_items: usize,
    bytes: Arc<Semaphore>,
    byte_blocks: u32,
}

/// Leave to hold encoded bytes; shrinks once the true size is known.
pub struct BytesPermit {
    permit: OwnedSemaphorePermit,
}

impl BytesPermit {
    /// Gives back what `bytes` does not need.
    pub fn shrink_to(&mut self, bytes: u64) {
        let needed = blocks(bytes, u32::MAX) as usize;
        let spare = self.permit.num_permits().saturating_sub(needed);
        drop(self.permit.split(spare));
    }
}

fn blocks(bytes: u64, most: u32) -> u32 {
    u32::try_from(bytes.div_ceil(BLOCK).max(1)).unwrap_or(u32::MAX).min(most)
}

impl Admission {
    pub fn new(settings: &PipelineSettings) -> Self {
        let byte_blocks = blocks(settings.max_bytes, u32::MAX >> 3);
        let max_items = settings.max_items.max(1);
        Self {
            items: Arc::new(Semaphore::new(max_items)),
            max_items,
            bytes: Arc::new(Semaphore::new(byte_blocks as usize)),
            byte_blocks,
        }
    }

    /// A place for one item; waits while the pipeline is full. `None` once it is closed.
    pub async fn item(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.items).acquire_owned().await.ok()
    }

    /// Room for `bytes`; more than the whole budget counts as the whole budget.
    pub async fn bytes(&self, bytes: u64) -> Option<BytesPermit> {
        let blocks = blocks(bytes, self.byte_blocks);
        let permit = Arc::clone(&self.bytes).acquire_many_owned(blocks).await.ok()?;
        Some(BytesPermit { permit })
    }

    /// Room for `bytes`, if there is some that nobody waits for.
    pub fn spare_bytes(&self, bytes: u64) -> Option<BytesPermit> {
        let blocks = blocks(bytes, self.byte_blocks);
        let permit = Arc::clone(&self.bytes).try_acquire_many_owned(blocks).ok()?;
        Some(BytesPermit { permit })
    }

    /// Encoded bytes held or promised now.
    pub fn bytes_held(&self) -> u64 {
        (self.byte_blocks as usize - self.bytes.available_permits()) as u64 * BLOCK
    }

    /// Items held now.
    pub fn items_held(&self) -> usize {
        self.max_items - self.items.available_permits()
    }

    /// Every waiting and later request gets `None`.
    pub fn close(&self) {
        self.items.close();
        self.bytes.close();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn admission(max_bytes: u64) -> Admission {
        Admission::new(&PipelineSettings { max_bytes, ..PipelineSettings::default() })
    }

    #[tokio::test]
    async fn an_object_larger_than_the_budget_still_enters_alone() {
        let admission = admission(10 * BLOCK);
        let whole = admission.bytes(1 << 40).await.unwrap();
        assert_eq!(admission.bytes_held(), 10 * BLOCK);
        drop(whole);
        assert_eq!(admission.bytes_held(), 0);
    }

    #[tokio::test]
    async fn spare_bytes_never_exceed_the_budget_and_are_given_back() {
        let admission = admission(10 * BLOCK);
        let mut first = admission.bytes(6 * BLOCK).await.unwrap();
        assert!(admission.spare_bytes(6 * BLOCK).is_none());
        assert!(admission.spare_bytes(1 << 40).is_none());
        first.shrink_to(4 * BLOCK);
        let second = admission.spare_bytes(6 * BLOCK).unwrap();
        assert_eq!(admission.bytes_held(), 10 * BLOCK);
        drop((first, second));
        assert_eq!(admission.bytes_held(), 0);
    }

    proptest! {
        #[test]
        fn bytes_return_to_full(sizes in proptest::collection::vec((0_u64..100_000, 0_u64..100_000), 1..20)) {
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            runtime.block_on(async {
                let admission = admission(4_000_000);
                let mut held = Vec::new();
                for (stated, actual) in sizes {
                    let mut permit = admission.bytes(stated).await.unwrap();
                    let before = admission.bytes_held();
                    permit.shrink_to(actual);
                    assert!(admission.bytes_held() <= before);
                    held.push(permit);
                }
                drop(held);
                assert_eq!(admission.bytes_held(), 0);
            });
        }
    }
}
