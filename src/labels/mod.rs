//! What people said of photos: the formats that labels come in and go out as, and their checks. Pure.
//!
//! [`sample`] is the reference's JSON of training samples, [`scale`] what a score or a distribution must be
//! to train a score head, and [`refusal`] why one is refused.

mod elements;
pub mod refusal;
pub mod sample;
pub mod scale;

pub use refusal::{LabelFileError, Refusal};
pub use sample::{Sample, SampleReader, SampleWriter, Turn};
pub use scale::Scale;
