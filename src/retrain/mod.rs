//! `roc4mllm retrain`: labels in, a proven better model out.
//!
//! A run goes its way in steps, each of which a killed run finds done: it is claimed by a lease in Postgres
//! that a heartbeat keeps ([`lease`]); labels that are new to the champion are selected, with older ones to be
//! replayed ([`select`], [`need`], [`replay`]); their photos are fetched into a cache ([`fetching`],
//! [`cache`]) and put on a side of the split for ever ([`sides`], [`gold`]); what is learned from and judged
//! by is written down ([`prepare`], [`assemble`], [`dataset`]); the challenger is trained from the champion
//! ([`training`]); both score the held-out photos, and the gate decides ([`judge`], [`report`]); and what
//! follows from that is done ([`publishing`]). `job` joins the steps, and `trial` those of them that judge
//! a checkpoint from elsewhere.

pub mod assemble;
pub mod cache;
mod conclusion;
pub mod dataset;
mod error;
pub mod fetching;
mod finish;
pub mod gold;
mod job;
pub mod judge;
pub mod lease;
pub mod need;
pub mod prepare;
pub mod publishing;
pub mod replay;
pub mod report;
pub mod select;
mod settings;
pub mod sides;
pub mod training;
mod trial;

pub use error::RetrainError;
pub use finish::Finish;
pub use job::run;
pub use settings::RetrainSettings;
pub use trial::{Tried, try_checkpoint};
