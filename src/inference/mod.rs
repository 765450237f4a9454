//! From leased slots of pixel values to answers, with the model on its own thread.

pub mod scorer;
pub mod slot;
