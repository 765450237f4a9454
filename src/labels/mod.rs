//! What people said of photos: the formats that labels come in and go out as, and their checks. Pure.
//!
//! A [`Vote`] is what one rater (or many, counted by bin) said of one object: on the labels topic
//! ([`vote`]), in CSV ([`csv`]) or in the reference's JSON of training samples ([`sample`]). All votes on an
//! object make its [`Label`]. [`Scale`] is what a score or a distribution must fit to train a score head,
//! [`Refusal`] why one is refused, and [`suggest`] which photos to label next.

pub mod csv;
mod elements;
mod fields;
pub mod label;
pub mod opinion;
pub mod refusal;
pub mod sample;
pub mod scale;
mod settings;
pub mod suggest;
pub mod vote;

pub use label::{Label, Origin};
pub use opinion::Opinion;
pub use refusal::{LabelFileError, Refusal};
pub use sample::{Sample, SampleReader, SampleWriter, Turn};
pub use scale::Scale;
pub use settings::{LabelsSettings, ScaleSettings};
pub use vote::{LabelledObject, Vote};
