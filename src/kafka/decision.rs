//! What the committer makes of an answer to a transactional call, or of none. Pure.

use rdkafka::error::RDKafkaErrorCode;

/// What the client library says of a call that failed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Complaint {
    /// The producer is of no use any more.
    pub fatal: bool,
    /// The transaction has to be aborted.
    pub requires_abort: bool,
    /// The same call may be made again.
    pub retriable: bool,
    /// No answer came in time.
    pub timed_out: bool,
}

/// What to do after a transactional call failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    Retry,
    Abort,
    /// Nothing is known for certain: the producer is replaced.
    Replace,
}

impl Complaint {
    /// The library goes on waiting when called again after a timeout. Here that is no reason to call
    /// again, since the request may have been carried out.
    pub fn verdict(self) -> Verdict {
        if self.fatal {
            Verdict::Replace
        } else if self.requires_abort {
            Verdict::Abort
        } else if self.retriable && !self.timed_out {
            Verdict::Retry
        } else {
            Verdict::Replace
        }
    }
}

/// How a transaction ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    Committed,
    /// Certainly not committed.
    Aborted(Refusal),
    /// Perhaps committed; and why that is all that is known.
    Doubtful(String),
}

impl Outcome {
    /// Whether the producer is replaced before the next transaction. `suspect` says that a copy of a
    /// request may still be under way, which could end the next transaction as well.
    pub fn replaces_producer(&self, suspect: bool) -> bool {
        suspect || matches!(self, Self::Doubtful(_))
    }
}

/// Why a commit did not happen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Refusal {
    pub code: Option<RDKafkaErrorCode>,
    pub reason: String,
}

/// What a refused commit means for this member.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Meaning {
    /// The group has expelled it, which the consumer may not know yet.
    Expelled,
    /// The group is rebalancing, which is part of normal life.
    Rebalancing,
    /// Something to be reported and tried again.
    Trouble,
}

impl Refusal {
    pub fn meaning(&self) -> Meaning {
        match self.code {
            Some(RDKafkaErrorCode::UnknownMemberId) => Meaning::Expelled,
            Some(RDKafkaErrorCode::IllegalGeneration | RDKafkaErrorCode::RebalanceInProgress) => {
                Meaning::Rebalancing
            }
            _ => Meaning::Trouble,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// What may have been carried out is never repeated, nor taken for undone.
        #[test]
        fn only_a_clear_answer_spares_the_producer(fatal: bool, requires_abort: bool, retriable: bool, timed_out: bool) {
            let complaint = Complaint { fatal, requires_abort, retriable, timed_out };
            let expected = match complaint {
                Complaint { fatal: true, .. } => Verdict::Replace,
                Complaint { requires_abort: true, .. } => Verdict::Abort,
                Complaint { retriable: true, timed_out: false, .. } => Verdict::Retry,
                _ => Verdict::Replace,
            };
            prop_assert_eq!(complaint.verdict(), expected);
        }
    }

    #[test]
    fn doubt_and_suspicion_replace_the_producer() {
        let aborted = Outcome::Aborted(Refusal { code: None, reason: String::new() });
        for (outcome, suspect, replaces) in [
            (&Outcome::Committed, false, false),
            (&aborted, false, false),
            (&Outcome::Doubtful("timed out".into()), false, true),
            (&Outcome::Committed, true, true),
            (&aborted, true, true),
        ] {
            assert_eq!(outcome.replaces_producer(suspect), replaces, "{outcome:?}, {suspect}");
        }
    }

    #[test]
    fn an_expelled_member_is_told_from_a_rebalancing_one() {
        let meaning = |code| Refusal { code, reason: String::new() }.meaning();
        assert_eq!(meaning(Some(RDKafkaErrorCode::UnknownMemberId)), Meaning::Expelled);
        assert_eq!(meaning(Some(RDKafkaErrorCode::IllegalGeneration)), Meaning::Rebalancing);
        assert_eq!(meaning(Some(RDKafkaErrorCode::RebalanceInProgress)), Meaning::Rebalancing);
        assert_eq!(meaning(Some(RDKafkaErrorCode::TopicAuthorizationFailed)), Meaning::Trouble);
        assert_eq!(meaning(None), Meaning::Trouble);
    }
}
