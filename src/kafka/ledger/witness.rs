//! Who is told what becomes of a record.

use super::Ledger;
use crate::kafka::receipt::Receipt;
use std::fmt;

/// Told how far a record is. Dropped without [`committed`](Self::committed), the record's assignment has
/// ended first, and its next owner has it all to do again.
///
/// Called by threads that must not wait, and under locks: it neither blocks nor asks the ledger.
pub trait Witness: fmt::Debug + Send {
    /// Every item has come to its end; outputs and offset wait for a commit.
    fn finished(&mut self);

    /// A commit with them certainly did not happen; they wait for the next.
    fn refused(&mut self);

    /// They are committed.
    fn committed(self: Box<Self>);
}

impl Ledger {
    /// Has `witness` told what becomes of a record: to be called before [`expect`](Ledger::expect). A
    /// record whose assignment is gone drops it.
    pub fn attend(&self, receipt: &Receipt, witness: Box<dyn Witness>) {
        let mut state = self.lock();
        let assignment = state.assignments.get_mut(&receipt.epoch);
        if let Some(work) = assignment.and_then(|assignment| assignment.work.get_mut(&receipt.offset)) {
            work.witness = Some(witness);
        }
    }
}
