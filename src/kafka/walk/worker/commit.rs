//! The committer of one worker, a request at a time, as the transactional engine has it.

use super::{Cycle, Worker};
use crate::kafka::decision::{Complaint, Meaning, Outcome, Refusal, Verdict};
use crate::kafka::ledger::{Batch, StagedRecord};
use crate::kafka::walk::broker::{Broker, Offset, Output, Refused};
use crate::kafka::walk::{Dice, Removed, Tally, Violation};
use std::collections::HashMap;

impl Worker {
    /// One step of the committer.
    pub fn commit(
        &mut self,
        broker: &mut Broker,
        removed: Removed,
        dice: &mut Dice,
        tally: &mut Tally,
    ) -> Result<(), Violation> {
        match std::mem::replace(&mut self.cycle, Cycle::Idle) {
            Cycle::Idle => self.prepare(broker, removed, dice, tally),
            Cycle::Grouped(group) => {
                if let Some(batch) = self.settlement.take() {
                    self.cycle = Cycle::Taken(group, batch);
                }
            }
            Cycle::Taken(group, batch) => return self.produce(group, batch, broker, removed, dice, tally),
            Cycle::Produced(group, batch) => return self.send(group, batch, broker, removed, dice, tally),
            Cycle::Sent(batch) => return self.end(batch, broker, removed, dice, tally),
        }
        Ok(())
    }

    /// A producer, the end of any doubt, and the group as it is before a batch is taken.
    fn prepare(&mut self, broker: &mut Broker, removed: Removed, dice: &mut Dice, tally: &mut Tally) {
        if self.producer.is_none() {
            self.producer = Some(broker.init(self.id));
            if dice.roll(10) == 9 {
                // The answer is lost, so the producer is none.
                self.producer = None;
                return;
            }
        }
        let sources = self.settlement.in_doubt();
        if !sources.is_empty() {
            let mut answers = HashMap::new();
            for source in sources {
                let Some(found) = broker.stable_offset(source.partition) else { return };
                answers.insert(source, found.filter(|_| removed != Removed::Compare));
            }
            let resolved = self.settlement.resolve(&answers);
            let counter = if resolved.happened > 0 { &mut tally.happened } else { &mut tally.not_happened };
            *counter += 1;
        }
        if let Some(member) = self.member {
            self.cycle = Cycle::Grouped((member, self.generation));
        }
    }

    fn produce(
        &mut self,
        group: (u32, u32),
        batch: Batch,
        broker: &mut Broker,
        removed: Removed,
        dice: &mut Dice,
        tally: &mut Tally,
    ) -> Result<(), Violation> {
        let epoch = self.epoch()?;
        let outputs = batch.outputs.iter().map(|record| parsed(record)).collect();
        match broker.produce(self.id, epoch, outputs) {
            // A delivery fails, and the transaction is aborted.
            Ok(()) if dice.roll(12) == 11 => return self.abort(batch, None, broker, removed, dice, tally),
            Ok(()) => self.cycle = Cycle::Produced(group, batch),
            Err(_) => self.finish(batch, None, false, removed, tally),
        }
        Ok(())
    }

    fn send(
        &mut self,
        group: (u32, u32),
        batch: Batch,
        broker: &mut Broker,
        removed: Removed,
        dice: &mut Dice,
        tally: &mut Tally,
    ) -> Result<(), Violation> {
        let epoch = self.epoch()?;
        let offsets = batch.parts.iter().map(|part| Offset {
            partition: part.source.partition,
            base: part.plan.base,
            metadata: part.plan.metadata.clone(),
        });
        match broker.send_offsets((self.id, epoch), group, offsets.collect()) {
            // The answer is lost.
            Ok(()) if dice.roll(12) == 11 => self.finish(batch, None, false, removed, tally),
            Ok(()) => self.cycle = Cycle::Sent(batch),
            Err(refused) => match complaint(refused).verdict() {
                Verdict::Abort => return self.abort(batch, Some(refused), broker, removed, dice, tally),
                Verdict::Retry | Verdict::Replace => self.finish(batch, None, false, removed, tally),
            },
        }
        Ok(())
    }

    fn end(
        &mut self,
        batch: Batch,
        broker: &mut Broker,
        removed: Removed,
        dice: &mut Dice,
        tally: &mut Tally,
    ) -> Result<(), Violation> {
        let epoch = self.epoch()?;
        let committed = Some(Outcome::Committed);
        match dice.roll(12) {
            // Carried out, and the answer is lost.
            5 | 6 => {
                let _ = broker.end(self.id, epoch, true)?;
                self.finish(batch, None, false, removed, tally);
            }
            // The request is lost.
            7 => self.finish(batch, None, false, removed, tally),
            // The request is held up.
            8 => {
                broker.hold_up(self.id, epoch, true);
                self.finish(batch, None, false, removed, tally);
            }
            chance => {
                let answer = broker.end(self.id, epoch, true)?;
                // A copy of the request is still under way, which a broken connection gives away.
                let suspect = chance >= 9;
                if suspect {
                    broker.hold_up(self.id, epoch, true);
                }
                self.finish(batch, committed.filter(|_| answer.is_ok()), suspect, removed, tally);
            }
        }
        Ok(())
    }

    fn abort(
        &mut self,
        batch: Batch,
        refused: Option<Refused>,
        broker: &mut Broker,
        removed: Removed,
        dice: &mut Dice,
        tally: &mut Tally,
    ) -> Result<(), Violation> {
        let epoch = self.epoch()?;
        let answered = broker.end(self.id, epoch, false)?.is_ok() && dice.roll(10) != 9;
        let code = match refused {
            Some(Refused::Group(code)) => Some(code),
            _ => None,
        };
        tally.refused += usize::from(code.is_some());
        let outcome = answered.then(|| Outcome::Aborted(Refusal { code, reason: "refused".into() }));
        self.finish(batch, outcome, false, removed, tally);
        Ok(())
    }

    fn epoch(&self) -> Result<u32, Violation> {
        self.producer.ok_or_else(|| Violation("a cycle without a producer".into()))
    }

    /// The end of a cycle, as the transactional engine has it. No outcome means doubt.
    fn finish(
        &mut self,
        batch: Batch,
        outcome: Option<Outcome>,
        suspect: bool,
        removed: Removed,
        tally: &mut Tally,
    ) {
        let outcome = outcome.unwrap_or_else(|| Outcome::Doubtful("no answer".into()));
        if outcome.replaces_producer(suspect && removed != Removed::Replace) {
            self.producer = None;
        }
        self.settlement.settle(batch, &outcome);
        match outcome {
            Outcome::Committed => tally.committed += 1,
            Outcome::Aborted(refusal) if refusal.meaning() == Meaning::Expelled => self.ledger.kill_all(),
            Outcome::Aborted(_) => {}
            Outcome::Doubtful(_) => tally.doubtful += 1,
        }
    }
}

/// As librdkafka flags them.
fn complaint(refused: Refused) -> Complaint {
    match refused {
        Refused::Fenced => Complaint { fatal: true, ..Complaint::default() },
        Refused::Group(_) => Complaint { requires_abort: true, ..Complaint::default() },
    }
}

fn parsed(staged: &StagedRecord) -> Output {
    let text = String::from_utf8(staged.record.payload.clone().unwrap()).unwrap();
    let numbers: Vec<i64> = text.split(' ').map(|number| number.parse().unwrap()).collect();
    let name = (numbers[0] as i32, numbers[1], numbers[2] as u32);
    Output { name, object: numbers[3] as u32, score: numbers[4] as u32 }
}
