//! Training: the reference's `train.py`, with its losses and its files.
//!
//! [`trainer`] runs the whole: samples are encoded and checked ([`encode`], [`dataset`]), put in
//! batches ([`order`], [`images`], [`batch`]), and each step ([`session`]) takes the losses
//! ([`forward`], [`loss`]) of its batches, follows their gradients ([`optimizer`], [`schedule`]) and
//! writes a line ([`step_metrics`]); at the end a checkpoint folder appears (`output`). A run that is stopped goes on from
//! what it has saved ([`state`]). A plain checkpoint
//! gets its score tokens first ([`vocabulary`]). Nothing here knows which network it trains, nor
//! where samples and images come from.

pub mod args;
pub mod batch;
pub mod dataset;
pub mod encode;
pub mod error;
pub mod forward;
pub mod images;
pub mod lora;
pub mod loss;
pub mod optimizer;
pub mod options;
pub mod order;
mod output;
pub mod progress;
pub mod random;
mod saving;
pub mod schedule;
pub mod session;
pub mod state;
pub mod step_metrics;
pub mod trainer;
pub mod vocabulary;

pub use args::{TrainArgs, run};
pub use error::TrainError;
pub use options::TrainOptions;
pub use output::is_finished;
pub use trainer::{Event, TrainJob, TrainSummary, train};
