//! Random walks of the pure core: whatever happens in whatever order, nothing is lost and nothing is
//! committed twice.
//!
//! The real [`Ledger`](super::Ledger), tracker, decisions and settlement of three workers run against
//! a model of the broker and of the table, a step at a time: work ends in any order, partitions move,
//! processes die or fall asleep, requests and answers get lost or come late. The broker model judges
//! every commit. Each walk then heals and must come to its end. With any one rule taken away, the
//! same walks must find a violation.

mod broker;
mod worker;

use broker::{Broker, Log, Record};
use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};
use worker::Worker;

const WORKERS: usize = 3;
const PARTITIONS: usize = 3;
const RECORDS: usize = 12;
/// Rounds within which a healed world has to come to its end.
const PATIENCE: usize = 200;

/// A rule that is taken away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Removed {
    Nothing,
    /// Epochs end with their assignment.
    Epoch,
    /// A revocation returns only once its partitions can no longer be committed.
    Revoke,
    /// Committed offsets say what became of a transaction in doubt.
    Compare,
    /// A producer is replaced where a copy of a request may still be under way.
    Replace,
    /// An item whose row exists still gets its output.
    Reemit,
    /// The first score of an object stays.
    FirstScore,
}

/// What must never happen.
#[derive(Clone, Debug)]
struct Violation(String);

/// How often the walks came to what they are for.
#[derive(Clone, Copy, Debug, Default)]
struct Tally {
    committed: usize,
    refused: usize,
    doubtful: usize,
    happened: usize,
    not_happened: usize,
    reused: usize,
    revoked: usize,
    lost: usize,
    crashed: usize,
}

/// A walk's chances, drawn beforehand so that a failing walk can be shrunk. Once they are used up,
/// every roll is 0, which means no fault.
struct Dice(std::vec::IntoIter<u32>);

impl Dice {
    fn roll(&mut self, sides: usize) -> usize {
        self.0.next().unwrap_or(0) as usize % sides.max(1)
    }

    fn is_spent(&self) -> bool {
        self.0.len() == 0
    }
}

struct World {
    broker: Broker,
    workers: Vec<Worker>,
    ids: u32,
    removed: Removed,
    dice: Dice,
    tally: Tally,
}

/// Walks until the chances are used up, heals everything, and expects a clean end.
fn walk(chances: Vec<u32>, removed: Removed) -> Result<Tally, Violation> {
    let mut dice = Dice(chances.into_iter());
    let logs = (0..PARTITIONS).map(|_| log(&mut dice)).collect();
    let mut world = World {
        broker: Broker::new(logs),
        workers: (0..WORKERS as u32).map(Worker::new).collect(),
        ids: WORKERS as u32,
        removed,
        dice,
        tally: Tally::default(),
    };
    while !world.dice.is_spent() {
        world.step()?;
    }
    world.heal()
}

/// Records with up to two items, of objects of which some are named again.
fn log(dice: &mut Dice) -> Log {
    let mut end = 0;
    let records = (0..RECORDS).map(|_| {
        end += [0, 0, 0, 1, 5][dice.roll(5)];
        let items = [1, 1, 1, 2, 0][dice.roll(5)];
        let objects = (0..items).map(|_| dice.roll(60) as u32).collect();
        end += 1;
        Record { offset: end - 1, objects }
    });
    let records = records.collect();
    Log { records, end: end + 2 }
}

impl World {
    fn step(&mut self) -> Result<(), Violation> {
        let Self { broker, workers, dice, tally, removed, .. } = self;
        let removed = *removed;
        let chance = dice.roll(1000);
        let index = dice.roll(workers.len());
        let worker = &mut workers[index];
        match chance {
            995.. => {
                // A member is expelled, perhaps the one of a process that is gone.
                if let Some(&member) = broker.members.iter().nth(dice.roll(broker.members.len().max(3))) {
                    broker.expel(member);
                }
            }
            991..995 => {
                tally.crashed += 1;
                // The next process may go under the same name.
                self.ids += 1;
                let id = if dice.roll(2) == 0 { worker.id() } else { self.ids };
                *worker = Worker::new(id);
            }
            986..991 => worker.stopped = true,
            970..986 => worker.stopped = false,
            967..970 => {
                broker.expire();
            }
            935..967 => {
                broker.deliver_late(dice)?;
            }
            900..935 => self.rebalance(),
            _ if worker.stopped => {}
            760..900 => worker.sync(broker, removed, tally),
            700..760 => {
                if worker.can_end_revocation() || dice.roll(3) == 2 {
                    worker.settle();
                    worker.end_revocation(broker, removed, tally);
                }
                if dice.roll(4) == 3 {
                    let spared = std::mem::take(&mut worker.spared);
                    worker.ledger.kill(&spared);
                }
            }
            450..700 => worker.commit(broker, removed, dice, tally)?,
            200..450 => worker.work(broker, removed, dice, tally),
            _ => worker.poll(dice.roll(PARTITIONS) as i32, broker)?,
        }
        Ok(())
    }

    /// Generations begin once every member that is still one has joined again.
    fn rebalance(&mut self) {
        let member_revokes = |worker: &Worker| {
            worker.is_revoking() && worker.member.is_some_and(|member| self.broker.members.contains(&member))
        };
        if !self.workers.iter().any(member_revokes) {
            self.broker.rebalance(&mut self.dice);
        }
    }

    /// No more faults: members that nobody answers for are expelled, and everyone else does its work.
    fn heal(&mut self) -> Result<Tally, Violation> {
        let (removed, patience) = (self.removed, PATIENCE);
        for round in 0..patience {
            let Self { broker, workers, dice, tally, .. } = self;
            let answered: Vec<_> = workers.iter().filter_map(|worker| worker.member).collect();
            let gone: Vec<_> =
                broker.members.iter().filter(|member| !answered.contains(member)).copied().collect();
            gone.into_iter().for_each(|member| broker.expel(member));
            while broker.deliver_late(dice)? {}
            for worker in workers {
                worker.stopped = false;
                worker.sync(broker, removed, tally);
                for partition in 0..PARTITIONS as i32 {
                    (0..RECORDS).try_for_each(|_| worker.poll(partition, broker))?;
                }
                (0..10 * RECORDS).for_each(|_| worker.work(broker, removed, dice, tally));
                (0..10).try_for_each(|_| worker.commit(broker, removed, dice, tally))?;
                worker.settle();
                worker.end_revocation(broker, removed, tally);
            }
            if broker.is_drained() {
                return self.verdict();
            }
            // What a dead process left open runs into its time limit.
            if round % 10 == 9 {
                broker.expire();
            }
            if round % 5 == 0 {
                self.rebalance();
            }
        }
        Err(Violation(format!("not at an end after {patience} rounds without a fault")))
    }

    /// Every item has its one output, and says what its row says.
    fn verdict(&self) -> Result<Tally, Violation> {
        let broker = &self.broker;
        let mut expected = 0;
        for (partition, log) in (0..).zip(&broker.logs) {
            for record in &log.records {
                for item in 0..record.objects.len() as u32 {
                    let name = (partition, record.offset, item);
                    let Some(output) = broker.outputs.get(&name) else {
                        return Err(Violation(format!("{name:?} is lost")));
                    };
                    if broker.table.get(&output.object) != Some(&output.score) {
                        return Err(Violation(format!("{output:?} is not what its row says")));
                    }
                    expected += 1;
                }
            }
        }
        match broker.outputs.len() == expected {
            true => Ok(self.tally),
            false => Err(Violation(format!("{} outputs for {expected} items", broker.outputs.len()))),
        }
    }
}

fn chances() -> impl Strategy<Value = Vec<u32>> {
    prop::collection::vec(any::<u32>(), 1500..6000)
}

proptest! {
    #![proptest_config(Config { cases: 1000, ..Config::default() })]

    #[test]
    fn nothing_is_lost_or_doubled_on_any_walk(chances in chances()) {
        walk(chances, Removed::Nothing).map_err(|violation| TestCaseError::fail(violation.0))?;
    }
}

/// The same walks each time.
fn walks(removed: Removed) -> impl Iterator<Item = Result<Tally, Violation>> {
    let rng = TestRng::deterministic_rng(RngAlgorithm::ChaCha);
    let mut runner = TestRunner::new_with_rng(Config::default(), rng);
    (0..1000).map(move |_| walk(chances().new_tree(&mut runner).unwrap().current(), removed))
}

impl Tally {
    fn plus(self, other: Self) -> Self {
        Self {
            committed: self.committed + other.committed,
            refused: self.refused + other.refused,
            doubtful: self.doubtful + other.doubtful,
            happened: self.happened + other.happened,
            not_happened: self.not_happened + other.not_happened,
            reused: self.reused + other.reused,
            revoked: self.revoked + other.revoked,
            lost: self.lost + other.lost,
            crashed: self.crashed + other.crashed,
        }
    }
}

#[test]
fn the_walks_come_to_everything_that_they_are_for() {
    let tally = walks(Removed::Nothing).fold(Tally::default(), |total, walked| total.plus(walked.unwrap()));
    let Tally { committed, refused, doubtful, happened, not_happened, reused, revoked, lost, crashed } =
        tally;
    for count in [committed, refused, doubtful, happened, not_happened, reused, revoked, lost, crashed] {
        assert!(count >= 100, "{tally:?}");
    }
}

#[test]
fn without_any_one_rule_the_walks_find_a_violation() {
    for removed in [
        Removed::Epoch,
        Removed::Revoke,
        Removed::Compare,
        Removed::Replace,
        Removed::Reemit,
        Removed::FirstScore,
    ] {
        let found = walks(removed).enumerate().find_map(|(walk, end)| Some((walk, end.err()?)));
        let (walk, violation) = found.unwrap_or_else(|| panic!("nothing goes wrong without {removed:?}"));
        println!("without {removed:?}, walk {walk} ends with: {}", violation.0);
    }
}
