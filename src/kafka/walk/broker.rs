//! A model of Kafka: input logs, the group, committed offsets and transactions.
//!
//! As strict as a broker and no stricter: a commit is checked for its generation, never for the
//! ownership of its partitions, and a request to end a transaction that arrives late ends whichever
//! one its producer has open.

use super::{Dice, Violation};
use crate::kafka::offsets::CommitMetadata;
use crate::kafka::settlement::Found;
use rdkafka::error::RDKafkaErrorCode;
use std::collections::{BTreeMap, BTreeSet};

/// A record of the input: its offset, and the object that each of its items names.
pub struct Record {
    pub offset: i64,
    pub objects: Vec<u32>,
}

/// One partition's input. Offsets have gaps, as compaction and transaction markers leave them.
pub struct Log {
    pub records: Vec<Record>,
    pub end: i64,
}

/// An output's identity: partition, offset and item.
pub type Name = (i32, i64, u32);

#[derive(Clone, Debug)]
pub struct Output {
    pub name: Name,
    pub object: u32,
    pub score: u32,
}

/// What one partition's part of a commit says.
#[derive(Clone, Debug)]
pub struct Offset {
    pub partition: i32,
    pub base: i64,
    pub metadata: String,
}

#[derive(Debug, Default)]
struct Transaction {
    outputs: Vec<Output>,
    offsets: Vec<Offset>,
}

#[derive(Debug, Default)]
struct Producer {
    epoch: u32,
    open: Option<Transaction>,
}

/// A request to end a transaction that is still under way.
struct Late {
    id: u32,
    epoch: u32,
    commit: bool,
}

pub struct Broker {
    pub logs: Vec<Log>,
    pub generation: u32,
    pub members: BTreeSet<u32>,
    /// Who holds each partition, as the group has it.
    pub owners: Vec<Option<u32>>,
    /// Who is to hold it.
    pub targets: Vec<Option<u32>>,
    pub synced: BTreeSet<u32>,
    next_member: u32,
    pub outputs: BTreeMap<Name, Output>,
    /// First score wins, unless that rule is taken away.
    pub table: BTreeMap<u32, u32>,
    committed: BTreeMap<i32, (i64, String)>,
    producers: BTreeMap<u32, Producer>,
    late: Vec<Late>,
}

/// How a request fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// The producer has been replaced, or its transaction timed out.
    Fenced,
    Group(RDKafkaErrorCode),
}

impl Broker {
    pub fn new(logs: Vec<Log>) -> Self {
        let partitions = logs.len();
        Self {
            logs,
            generation: 0,
            members: BTreeSet::new(),
            owners: vec![None; partitions],
            targets: vec![None; partitions],
            synced: BTreeSet::new(),
            next_member: 0,
            outputs: BTreeMap::new(),
            table: BTreeMap::new(),
            committed: BTreeMap::new(),
            producers: BTreeMap::new(),
            late: Vec::new(),
        }
    }

    pub fn join(&mut self) -> u32 {
        self.next_member += 1;
        self.members.insert(self.next_member);
        self.next_member
    }

    /// A member's heartbeats stay away for too long.
    pub fn expel(&mut self, member: u32) {
        self.members.remove(&member);
        self.release(member, |_| true);
    }

    /// A member hands back the partitions that are to be another's.
    pub fn hand_back(&mut self, member: u32) {
        let targets = self.targets.clone();
        self.release(member, |partition| targets[partition] != Some(member));
    }

    fn release(&mut self, member: u32, goes: impl Fn(usize) -> bool) {
        for (partition, owner) in self.owners.iter_mut().enumerate() {
            if *owner == Some(member) && goes(partition) {
                *owner = None;
            }
        }
    }

    /// The next generation. Partitions that nobody holds are given out; those that are to move are
    /// revoked from their owners first.
    pub fn rebalance(&mut self, dice: &mut Dice) {
        if self.members.is_empty() {
            return;
        }
        self.generation += 1;
        self.synced.clear();
        for partition in 0..self.logs.len() {
            let chosen = self.members.iter().nth(dice.roll(self.members.len()));
            self.targets[partition] = chosen.copied();
            if self.owners[partition].is_none() {
                self.owners[partition] = self.targets[partition];
            }
        }
    }

    /// The stable committed offset; the outer `None` means that an open transaction has to end first.
    pub fn stable_offset(&self, partition: i32) -> Option<Found> {
        let holds = |transaction: &Transaction| {
            transaction.offsets.iter().any(|offset| offset.partition == partition)
        };
        if self.producers.values().any(|producer| producer.open.as_ref().is_some_and(holds)) {
            return None;
        }
        let found = self.committed.get(&partition);
        Some(found.map(|(base, metadata)| (*base, metadata.clone().into_bytes())))
    }

    /// Ends what an earlier producer of this id left open, and fences it.
    pub fn init(&mut self, id: u32) -> u32 {
        let producer = self.producers.entry(id).or_default();
        producer.open = None;
        producer.epoch += 1;
        producer.epoch
    }

    /// The broker gives up on open transactions. Returns whether there were any.
    pub fn expire(&mut self) -> bool {
        let open = self.producers.values_mut().filter(|producer| producer.open.is_some());
        open.map(|producer| (producer.open, producer.epoch) = (None, producer.epoch + 1)).count() > 0
    }

    pub fn produce(&mut self, id: u32, epoch: u32, outputs: Vec<Output>) -> Result<(), Refused> {
        self.transaction(id, epoch)?.outputs.extend(outputs);
        Ok(())
    }

    pub fn send_offsets(
        &mut self,
        (id, epoch): (u32, u32),
        (member, generation): (u32, u32),
        offsets: Vec<Offset>,
    ) -> Result<(), Refused> {
        self.transaction(id, epoch)?;
        if !self.members.contains(&member) {
            return Err(Refused::Group(RDKafkaErrorCode::UnknownMemberId));
        }
        if generation != self.generation {
            return Err(Refused::Group(RDKafkaErrorCode::IllegalGeneration));
        }
        self.transaction(id, epoch)?.offsets.extend(offsets);
        Ok(())
    }

    fn transaction(&mut self, id: u32, epoch: u32) -> Result<&mut Transaction, Refused> {
        match self.producers.get_mut(&id).filter(|producer| producer.epoch == epoch) {
            Some(producer) => Ok(producer.open.get_or_insert_default()),
            None => Err(Refused::Fenced),
        }
    }

    /// Ends a transaction. Ending none, as a repeated request does, is fine.
    pub fn end(&mut self, id: u32, epoch: u32, commit: bool) -> Result<Result<(), Refused>, Violation> {
        let Some(producer) = self.producers.get_mut(&id).filter(|producer| producer.epoch == epoch) else {
            return Ok(Err(Refused::Fenced));
        };
        if let Some(transaction) = producer.open.take().filter(|_| commit) {
            self.apply(transaction)?;
        }
        Ok(Ok(()))
    }

    /// A request to end a transaction is held up on its way.
    pub fn hold_up(&mut self, id: u32, epoch: u32, commit: bool) {
        self.late.push(Late { id, epoch, commit });
    }

    /// A request that was held up arrives. Returns whether there was one.
    pub fn deliver_late(&mut self, dice: &mut Dice) -> Result<bool, Violation> {
        if self.late.is_empty() {
            return Ok(false);
        }
        let Late { id, epoch, commit } = self.late.swap_remove(dice.roll(self.late.len()));
        // A refusal goes to a producer that has given up on it.
        let _ = self.end(id, epoch, commit)?;
        Ok(true)
    }

    fn apply(&mut self, transaction: Transaction) -> Result<(), Violation> {
        for output in transaction.outputs {
            match self.table.get(&output.object) {
                Some(score) if *score == output.score => {}
                row => return Err(Violation(format!("{output:?} is committed, and its row is {row:?}"))),
            }
            if let Some(earlier) = self.outputs.insert(output.name, output) {
                return Err(Violation(format!("{earlier:?} is committed twice")));
            }
        }
        for offset in transaction.offsets {
            let before = self.uncovered(offset.partition);
            self.committed.insert(offset.partition, (offset.base, offset.metadata));
            let after = self.uncovered(offset.partition);
            if let Some(lost) = after.difference(&before).next() {
                return Err(Violation(format!("{}[{lost}] was covered and no longer is", offset.partition)));
            }
        }
        for partition in 0..self.logs.len() as i32 {
            self.check_cover(partition)?;
        }
        Ok(())
    }

    /// Offsets that the committed ones do not cover.
    pub fn uncovered(&self, partition: i32) -> BTreeSet<i64> {
        let offsets = self.logs[partition as usize].records.iter().map(|record| record.offset);
        let Some((base, metadata)) = self.committed.get(&partition) else { return offsets.collect() };
        let done = CommitMetadata::decode(metadata.as_bytes(), *base).done;
        offsets.filter(|offset| offset >= base && !done.contains(offset)).collect()
    }

    /// Covered is what has all its outputs, and nothing else.
    fn check_cover(&self, partition: i32) -> Result<(), Violation> {
        let uncovered = self.uncovered(partition);
        for record in &self.logs[partition as usize].records {
            let items = 0..record.objects.len() as u32;
            let has = |item: u32| self.outputs.contains_key(&(partition, record.offset, item));
            let covered = !uncovered.contains(&record.offset);
            if let Some(item) = items.into_iter().find(|item| has(*item) != covered) {
                let place = format!("item {item} of {partition}[{}]", record.offset);
                return Err(Violation(match covered {
                    true => format!("{place} is covered without an output"),
                    false => format!("{place} has an output and is not covered"),
                }));
            }
        }
        Ok(())
    }

    /// Everything has come to its end.
    pub fn is_drained(&self) -> bool {
        let open = self.producers.values().any(|producer| producer.open.is_some());
        !open && (0..self.logs.len()).all(|partition| self.uncovered(partition as i32).is_empty())
    }
}
