//! How well a model predicts people's scores, and whether one model does it better than another. Pure.
//!
//! An [`Evaluation`] is one model on one set of labelled photos, a [`Comparison`] two models on the same
//! set. Both measure with [`metrics`] (rank [`correlation`]s among them) and say by [`bootstrap`] how
//! far a number could be off. A [`Deviation`] is one model computed less exactly beside itself. The [`gate`] decides by three comparisons whether a challenger may follow
//! a champion.

pub mod bootstrap;
pub mod comparison;
pub mod correlation;
pub mod deviation;
pub mod evaluation;
pub mod gate;
pub mod metrics;

pub use bootstrap::{BootstrapSettings, Estimate};
pub use comparison::{Comparison, ComparisonError};
pub use deviation::Deviation;
pub use evaluation::{Attribute, Evaluation, Label, Outcome, Photo};
pub use gate::{Evidence, GateSettings, Reason, Verdict};
pub use metrics::{Metric, Values};
