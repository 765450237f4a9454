//! What is known of every item, in Postgres: the one place that decides which score counts.
//!
//! A row is written before its output is produced, and the first score of an id wins, so a replay
//! finds the score that the table already has and the output repeats it.

mod backfills;
mod candidates;
mod contents;
mod error;
mod labels;
mod look_ups;
mod migrate;
mod models;
mod overview;
mod pool;
mod promotions;
mod references;
mod row;
mod run_history;
mod runs;
mod scan;
mod scores;
mod shadow;
mod sides;
mod votes;
mod writer;

pub use backfills::{BackfillState, Cursor};
pub use candidates::CandidatePage;
pub use error::StoreError;
pub use labels::{LabelCounts, LabelKey, StoredLabel};
pub use look_ups::{LookUp, LookedUp, look_up_batches};
pub use models::{NewVersion, RegisteredVersion, Serving, UnknownVersionStatus, VersionError, VersionStatus};
pub use overview::{Order, ShownFailure, ShownScore, Tally, VersionTally};
pub use pool::{PostgresSettings, Store};
pub use promotions::{Promotion, Reign, Terms};
pub use row::{KnownAnswer, ScoreRow, SourcePosition, StoredScore};
pub use run_history::{RetrainRun, RetrainSummary};
pub use runs::{Claim, ClaimedRun, HeldRun, RunError, RunKind, RunLease, RunOutcome, RunPlan, RunVerdict};
pub use scan::ObjectPage;
pub use shadow::{PAIRS_KEPT, ShadowPair, ShadowRecord, ShadowSums};
pub use sides::{PhotoSide, Stratum};
pub use votes::{StoredVote, VoteOutcome};
pub use writer::{Answers, WriteRequest, write_batches};
