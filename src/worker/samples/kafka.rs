//! What the Kafka side counts, and how far behind it is.

use super::{level, total};
use crate::{
    kafka::{Backlog, KafkaStats, Ledger, Progress, TopicPartition},
    telemetry::metrics::{Sample, Sampled},
};
use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Instant,
};

pub(super) fn kafka(stats: &Arc<KafkaStats>, ledger: &Arc<Ledger>) -> Vec<Sampled> {
    let counted = |name, help, counter: fn(&KafkaStats) -> &AtomicU64| {
        let stats = Arc::clone(stats);
        total(name, help, move || counter(&stats).load(Ordering::Relaxed) as f64)
    };
    let (paused, committed, uncommitted) = (Arc::clone(stats), Arc::clone(stats), Arc::clone(ledger));
    let (backfill, untouched, oldest) = (Arc::clone(stats), Arc::clone(stats), Arc::clone(ledger));
    vec![
        counted("commits", "Kafka commits that succeeded", |stats| &stats.commits),
        counted("commit_aborts", "Transactions aborted and plain commits that failed", |stats| &stats.aborts),
        counted("producer_replacements", "Producers replaced because an outcome was in doubt", |stats| {
            &stats.producer_replacements
        }),
        counted("outputs_committed", "Outputs and dead letters committed", |stats| &stats.outputs),
        counted(
            "records_already_done",
            "Records passed over because an earlier owner finished them",
            |stats| &stats.already_done,
        ),
        counted("partitions_assigned", "Partitions that rebalances gave", |stats| &stats.assigned),
        counted("partitions_revoked", "Partitions that rebalances took", |stats| &stats.revoked),
        counted("partitions_lost", "Partitions lost without notice", |stats| &stats.lost),
        level("paused", "1 while back-pressure pauses the input", move || {
            f64::from(u8::from(paused.paused.load(Ordering::Relaxed)))
        }),
        level("backfill_paused", "1 while the backfill topic waits for uploads", move || {
            f64::from(u8::from(backfill.backfill_paused.load(Ordering::Relaxed)))
        }),
        level("uncommitted_records", "Finished records that wait for a commit", move || {
            uncommitted.uncommitted() as f64
        }),
        level(
            "last_commit_seconds",
            "Since a commit, or the finding that there is none to make",
            move || committed.since_commit().as_secs_f64(),
        ),
        by_partition("lag_records", "Records behind the end of the partition, less those already done", {
            let stats = Arc::clone(stats);
            move || stats.backlog().into_iter().map(|(source, backlog)| (source, backlog.records)).collect()
        }),
        by_partition("records_done_ahead", "Records done beyond the first that is not", {
            let stats = Arc::clone(stats);
            move || {
                stats.backlog().into_iter().map(|(source, backlog)| (source, backlog.done_ahead)).collect()
            }
        }),
        Sampled {
            name: "oldest_unscored_seconds",
            help: "Age of the oldest record that is not finished",
            read: Box::new(move || {
                let ages = oldest_ages(&oldest.progress(), &untouched.backlog(), now_ms(), Instant::now());
                let labelled = ages.into_iter().map(|(topic, age)| (vec![("topic", topic)], age));
                Sample::Levels(labelled.collect())
            }),
        },
    ]
}

fn by_partition(
    name: &'static str,
    help: &'static str,
    read: impl Fn() -> BTreeMap<TopicPartition, u64> + Send + Sync + 'static,
) -> Sampled {
    let levels = move || {
        let labels = |source: &TopicPartition| {
            vec![("topic", source.topic.to_string()), ("partition", source.partition.to_string())]
        };
        read().iter().map(|(source, value)| (labels(source), *value as f64)).collect()
    };
    Sampled { name, help, read: Box::new(move || Sample::Levels(levels())) }
}

/// Seconds by topic: of the oldest record that is read and unfinished, by its stamp; or, where there are
/// records and none is read, since that was first seen.
fn oldest_ages(
    progress: &[Progress],
    backlog: &BTreeMap<TopicPartition, Backlog>,
    now_ms: i64,
    now: Instant,
) -> BTreeMap<String, f64> {
    let mut ages = BTreeMap::new();
    for progress in progress {
        let read = progress.oldest_ms.map(|stamped| now_ms.saturating_sub(stamped).max(0) as f64 / 1000.0);
        let since = backlog.get(&progress.source).and_then(|backlog| backlog.untouched_since);
        let untouched = since.filter(|_| progress.unfinished == 0);
        let untouched = untouched.map(|since| now.saturating_duration_since(since).as_secs_f64());
        let age = read.or(untouched).unwrap_or_default();
        let oldest: &mut f64 = ages.entry(progress.source.topic.to_string()).or_default();
        *oldest = oldest.max(age);
    }
    ages
}

fn now_ms() -> i64 {
    let now = time::OffsetDateTime::now_utc();
    now.unix_timestamp() * 1000 + i64::from(now.millisecond())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn progress(partition: i32, oldest_ms: Option<i64>) -> Progress {
        Progress {
            source: TopicPartition::new("t", partition),
            base: 0,
            done_ahead: 0,
            unfinished: usize::from(oldest_ms.is_some()),
            oldest_ms,
            position: 0,
            full: false,
            starts: 0,
            suspicious: false,
        }
    }

    #[test]
    fn a_topic_is_as_old_as_its_oldest_partition() {
        let none = BTreeMap::new();
        let now = Instant::now();
        let age = |progress: &[Progress], backlog| oldest_ages(progress, backlog, 10_000, now)["t"];
        assert_eq!(age(&[progress(0, None)], &none), 0.0);
        assert_eq!(age(&[progress(0, Some(7_000)), progress(1, Some(9_000))], &none), 3.0);
        assert_eq!(age(&[progress(0, Some(12_000))], &none), 0.0, "the producer's clock is ahead");
    }

    #[test]
    fn what_was_never_read_ages_too() {
        let now = Instant::now() + Duration::from_secs(30);
        let since = now - Duration::from_secs(20);
        let backlog = Backlog { records: 5, done_ahead: 0, untouched_since: Some(since) };
        let backlog = BTreeMap::from([(TopicPartition::new("t", 0), backlog)]);
        assert_eq!(oldest_ages(&[progress(0, None)], &backlog, 0, now)["t"], 20.0);
        let read = oldest_ages(&[progress(0, Some(0))], &backlog, 1_000, now);
        assert_eq!(read["t"], 1.0, "the measurement is older than the reading");
    }
}
