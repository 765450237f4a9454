//! From encoded bytes to answers: decode threads fill leased slots, one model thread scores them.
//!
//! [`ScoringService`] is what callers hold. Inside it, the [`decode pool`](decode_pool) turns bytes
//! into pixel values in slots of a fixed slab, the [`queue`] gathers slots into batches by the rules
//! of the [`batcher`], and the [`engine`] has the [`runner`] score them on the thread that built the
//! model. A run that hangs is noticed by the [`watchdog`], a device that computes nonsense by the
//! [`golden`] image.
//! Compute never sees a request, and no model type crosses a thread.

pub mod batcher;
pub mod decode_pool;
pub mod engine;
pub mod failure;
pub mod golden;
pub mod metrics;
pub mod permits;
pub mod queue;
mod reading;
pub mod reply;
pub mod runner;
pub mod scorer;
#[cfg(test)]
mod scripted;
pub mod service;
pub mod settings;
pub mod slot;
#[cfg(feature = "dev")]
pub mod stand_in;
mod warm_up;
pub mod watchdog;

pub use engine::{Health, ModelInfo, StartError};
pub use failure::EngineFailure;
pub use reply::{Observer, ScoreFailure, Scored, Step};
pub use scorer::{ScoreBatch, Scorer, ScorerError};
pub use service::ScoringService;
pub use settings::InferenceSettings;
