//! One worker of the walks: the real ledger, tracker and settlement, and a model of the rest.

mod commit;

use super::broker::{Broker, Name, Output};
use super::{Dice, Removed, Tally, Violation};
use crate::kafka::ledger::{Batch, Delivery, Ledger, StagedRecord};
use crate::kafka::offsets::PartitionTracker;
use crate::kafka::receipt::{Epoch, Receipt, TopicPartition};
use crate::kafka::settlement::{Found, Settlement};
use crate::record::WireRecord;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

pub struct Worker {
    pub ledger: Arc<Ledger>,
    settlement: Settlement,
    /// Its transactional id, and the epoch of its producer where it has one.
    id: u32,
    producer: Option<u32>,
    pub member: Option<u32>,
    generation: u32,
    partitions: BTreeMap<i32, Partition>,
    jobs: Vec<Job>,
    cycle: Cycle,
    revoking: Option<Revocation>,
    /// Epochs that a revocation left alive, where that rule is taken away.
    pub spared: Vec<Epoch>,
    /// As by SIGSTOP.
    pub stopped: bool,
}

/// A revocation in progress. The poll thread is in its callback, and does nothing else.
struct Revocation {
    partitions: Vec<i32>,
    epochs: Vec<Epoch>,
}

struct Partition {
    epoch: Epoch,
    stage: Opening,
}

enum Opening {
    Wanted,
    /// The committed offset has been read.
    Read(Found),
    /// Reading, at this position.
    Open(i64),
}

/// One item of one record on its way.
struct Job {
    receipt: Receipt,
    output: Output,
    stage: Stage,
}

#[derive(Clone, Copy)]
enum Stage {
    Fresh,
    /// Looked up, and not found.
    Absent,
    /// There is a row; whether it was there before.
    Durable {
        reused: bool,
    },
}

/// How far the committer is.
enum Cycle {
    Idle,
    Grouped((u32, u32)),
    Taken((u32, u32), Batch),
    Produced((u32, u32), Batch),
    Sent(Batch),
}

impl Worker {
    pub fn new(id: u32) -> Self {
        let ledger = Arc::new(Ledger::new(usize::MAX, || {}));
        Self {
            settlement: Settlement::new(Arc::clone(&ledger)),
            ledger,
            id,
            producer: None,
            member: None,
            generation: 0,
            partitions: BTreeMap::new(),
            jobs: Vec::new(),
            cycle: Cycle::Idle,
            revoking: None,
            spared: Vec::new(),
            stopped: false,
        }
    }

    pub fn id(&self) -> u32 {
        self.id
    }

    pub fn is_revoking(&self) -> bool {
        self.revoking.is_some()
    }

    /// Learns what the group has decided, joins it, or notices that it was expelled.
    pub fn sync(&mut self, broker: &mut Broker, removed: Removed, tally: &mut Tally) {
        let Some(member) = self.member else {
            self.member = Some(broker.join());
            return;
        };
        if !broker.members.contains(&member) {
            tally.lost += 1;
            self.kill(removed, self.partitions.values().map(|partition| partition.epoch).collect());
            self.partitions.clear();
            (self.member, self.revoking) = (None, None);
            return;
        }
        if self.is_revoking() || !broker.synced.insert(member) {
            return;
        }
        self.generation = broker.generation;
        let mut leaving = Vec::new();
        for (index, owner) in broker.owners.iter().enumerate().filter(|(_, owner)| **owner == Some(member)) {
            let partition = index as i32;
            match self.partitions.get(&partition) {
                None if broker.targets[index] == *owner => {
                    let epoch = self.ledger.assign(TopicPartition::new("in", partition));
                    self.partitions.insert(partition, Partition { epoch, stage: Opening::Wanted });
                }
                Some(_) if broker.targets[index] != *owner => leaving.push(partition),
                _ => {}
            }
        }
        if leaving.is_empty() {
            // What it was given and never took is free again.
            broker.hand_back(member);
        } else {
            let sources: Vec<_> =
                leaving.iter().map(|partition| TopicPartition::new("in", *partition)).collect();
            let epochs = self.ledger.epochs_of(&sources);
            self.ledger.begin_revoke(&epochs);
            self.revoking = Some(Revocation { partitions: leaving, epochs });
        }
    }

    /// Returns from the revocation's callback, whatever is unfinished or uncommitted.
    pub fn end_revocation(&mut self, broker: &mut Broker, removed: Removed, tally: &mut Tally) {
        let (Some(revocation), Some(member)) = (self.revoking.take(), self.member) else { return };
        let Revocation { partitions, epochs } = revocation;
        tally.revoked += 1;
        self.partitions.retain(|partition, _| !partitions.contains(partition));
        match removed {
            Removed::Revoke => self.spared.extend(epochs),
            _ => self.kill(removed, epochs),
        }
        broker.hand_back(member);
    }

    /// Started work is done and the committer has been through: the callback has no more to wait for.
    pub fn can_end_revocation(&self) -> bool {
        matches!(self.cycle, Cycle::Idle) && self.unfinished() == 0
    }

    /// What the callback says to the ledger before its commit.
    pub fn settle(&mut self) {
        let Some(revocation) = &self.revoking else { return };
        match self.unfinished() {
            0 => self.ledger.settle(Some(&revocation.epochs)),
            _ => self.ledger.hand_over(&revocation.epochs),
        }
    }

    fn unfinished(&self) -> usize {
        let epochs = self.revoking.as_ref().map(|revocation| &revocation.epochs[..]);
        self.ledger.wait_started(epochs.or(Some(&[])), Instant::now())
    }

    fn kill(&self, removed: Removed, epochs: Vec<Epoch>) {
        if removed != Removed::Epoch {
            self.ledger.kill(&epochs);
        }
    }

    /// One step of the poll thread on a partition: open it, or be given a record.
    pub fn poll(&mut self, partition: i32, broker: &Broker) -> Result<(), Violation> {
        let Some(held) = self.partitions.get_mut(&partition).filter(|_| self.revoking.is_none()) else {
            return Ok(());
        };
        if !self.ledger.is_live_epoch(held.epoch) {
            // A refused commit has ended it, and the partition is still assigned.
            let epoch = self.ledger.assign(TopicPartition::new("in", partition));
            *held = Partition { epoch, stage: Opening::Wanted };
        }
        match &mut held.stage {
            Opening::Wanted => {
                if let Some(found) = broker.stable_offset(partition) {
                    held.stage = Opening::Read(found);
                }
            }
            Opening::Read(found) => {
                let (begin, tracker) = match found {
                    Some((base, metadata)) => (*base, PartitionTracker::resumed(*base, metadata)),
                    None => (0, PartitionTracker::fresh(0)),
                };
                if self.ledger.open(held.epoch, tracker) {
                    held.stage = Opening::Open(begin);
                }
            }
            // Its records come once a commit counts the holding.
            Opening::Open(_) if !self.ledger.is_announced(held.epoch) => {}
            Opening::Open(position) => {
                let log = &broker.logs[partition as usize];
                let index = log.records.partition_point(|record| record.offset < *position);
                let Some(record) = log.records.get(index) else {
                    self.ledger.set_position(held.epoch, log.end);
                    self.ledger.reach_end(held.epoch);
                    return Ok(());
                };
                *position = record.offset + 1;
                match self.ledger.deliver(held.epoch, record.offset, None) {
                    Delivery::Process(receipt) => {
                        self.ledger.expect(&receipt, record.objects.len() as u32);
                        let jobs = (0..).zip(&record.objects).map(|(item, &object)| Job {
                            receipt: receipt.clone(),
                            output: Output { name: (partition, record.offset, item), object, score: 0 },
                            stage: Stage::Fresh,
                        });
                        self.jobs.extend(jobs);
                    }
                    Delivery::AlreadyDone => {}
                    other => return Err(Violation(format!("{partition}[{}] gave {other:?}", record.offset))),
                }
            }
        }
        Ok(())
    }

    /// One step of one item: begin and look up, score and store, or end.
    pub fn work(&mut self, broker: &mut Broker, removed: Removed, dice: &mut Dice, tally: &mut Tally) {
        if self.jobs.is_empty() {
            return;
        }
        let mut job = self.jobs.swap_remove(dice.roll(self.jobs.len()));
        match job.stage {
            Stage::Fresh => {
                if !self.ledger.start(&job.receipt) {
                    return;
                }
                job.stage = match broker.table.get(&job.output.object) {
                    Some(&score) => {
                        job.output.score = score;
                        tally.reused += 1;
                        Stage::Durable { reused: true }
                    }
                    None => Stage::Absent,
                };
            }
            Stage::Absent => {
                // The same photo scored twice need not give the same bits.
                let score = 1 + dice.roll(1000) as u32;
                let row = broker.table.entry(job.output.object).or_insert(score);
                if removed == Removed::FirstScore {
                    *row = score;
                }
                job.output.score = *row;
                // The answer can be lost, and then the statement is simply run again.
                if dice.roll(10) != 9 {
                    job.stage = Stage::Durable { reused: false };
                }
            }
            Stage::Durable { reused } => {
                let emitted = removed != Removed::Reemit || !reused;
                let outputs = if emitted { vec![staged(&job.output)] } else { Vec::new() };
                self.ledger.complete(&job.receipt, job.output.name.2, outputs);
                return;
            }
        }
        self.jobs.push(job);
    }
}

fn staged(output: &Output) -> StagedRecord {
    let (partition, offset, item): Name = output.name;
    let text = format!("{partition} {offset} {item} {} {}", output.object, output.score);
    let record = WireRecord { payload: Some(text.into_bytes()), ..WireRecord::default() };
    StagedRecord { topic: Arc::from("out"), record }
}
