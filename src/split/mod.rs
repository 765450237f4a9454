//! Which photos a model learns from and which it is judged by, such that no photo is on both sides in
//! whatever form. Pure.
//!
//! [`fingerprint`] says what a photo looks like, [`near`] finds what looks alike among millions, and
//! [`assignment`] puts a photo on the side of what it is a copy of, or else on one that its content's
//! hash decides. Sides are for ever: labels that arrive later never move a photo that has one.

pub mod assignment;
pub mod fingerprint;
pub mod near;

pub use assignment::{Assignment, ContentHash, Member, Side, SplitSettings, Splitter};
pub use fingerprint::Fingerprint;
