//! What the score head, the decoder and the scorer ask of a multimodal language model.

use super::{kv_cache::KvCache, parameters::Parameters, passes::Passes};
use std::ops::Range;
use tch::{Device, Kind, TchError, Tensor};

/// Positions to append to every row of a cache.
pub struct Block<'a> {
    /// `[rows, count, hidden]`.
    pub embeddings: &'a Tensor,
    /// Which of the block's positions stand for the image; empty for text alone.
    pub image: Range<i64>,
    /// Which of the block's positions hidden states are wanted of; of the others only what later
    /// positions see is computed.
    pub read: Range<i64>,
}

impl<'a> Block<'a> {
    /// A block whose positions are all read.
    pub fn new(embeddings: &'a Tensor, image: Range<i64>) -> Self {
        let count = embeddings.size().get(1).copied().unwrap_or(0);
        Self { embeddings, image, read: 0..count }
    }

    /// One without image positions.
    pub fn text(embeddings: &'a Tensor) -> Self {
        Self::new(embeddings, 0..0)
    }

    /// The same, with only some positions read; never none.
    pub fn reading(self, read: Range<i64>) -> Self {
        Self { read, ..self }
    }
}

/// Whole rows at once, with nothing before them and nothing kept for later: what training computes.
pub struct Sequences<'a> {
    /// `[rows, count, hidden]`. What follows a shorter row's end is filled with anything finite: no
    /// position sees one after it.
    pub embeddings: &'a Tensor,
    /// Which positions of each row stand for its image; empty for text alone.
    pub images: &'a [Range<i64>],
}

/// What a parameter belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// Reads the pixels.
    Vision,
    /// Makes language positions of what the vision model gives.
    Connector,
    /// Reads and writes text; the head is part of it.
    Language,
}

/// A multimodal language model that carries ROC4MLLM's score head. A family is one folder beside
/// this file and one implementation of this trait; nothing outside the folder knows its insides.
pub trait Family: Send {
    /// Edge of the square input, in pixels.
    fn image_size(&self) -> i64;

    /// Positions that one image takes in the language model.
    fn image_positions(&self) -> i64;

    /// Every parameter by its checkpoint name; the network computes with these very tensors.
    fn parameters(&self) -> &Parameters;

    /// What a parameter of this name belongs to.
    fn part(&self, parameter: &str) -> Part;

    /// The longest sequence that the language model may hold.
    fn max_positions(&self) -> i64;

    /// Up to how many positions it makes no difference whether they are appended together or one by
    /// one.
    fn blockwise_positions(&self) -> i64 {
        self.max_positions()
    }

    fn device(&self) -> Device;

    /// The type that the model computes in.
    fn kind(&self) -> Kind;

    /// Pixel values `[images, 3, edge, edge]`, on the model's device, to embeddings
    /// `[images, image_positions, hidden]`. For a model in use: what depends on its parameters alone
    /// may be computed at the first call and kept.
    fn encode_images(&self, pixels: &Tensor) -> Result<Tensor, TchError> {
        self.encode_images_in(pixels, &mut Passes::Kept)
    }

    /// As [`Self::encode_images`], part by part, for parameters that change.
    fn encode_images_in<'a>(&'a self, pixels: &Tensor, passes: &mut Passes<'a>) -> Result<Tensor, TchError>;

    /// Token ids of any shape, i64, to embeddings `[.., hidden]`.
    fn embed(&self, ids: &Tensor) -> Result<Tensor, TchError>;

    /// An empty cache with room for `capacity` positions in each of `rows` rows.
    fn new_cache(&self, rows: i64, capacity: i64) -> Result<KvCache, TchError>;

    /// Appends a block at each row's own position; gives the last hidden states of the positions that
    /// are read, `[rows, read, hidden]`, ready for [`Self::logits`].
    fn forward(&self, block: &Block<'_>, cache: &mut KvCache) -> Result<Tensor, TchError>;

    /// The last hidden states `[rows, count, hidden]` of whole rows, ready for [`Self::logits`]: those
    /// that [`Self::forward`] gives, through the same layers, but with gradients of everything.
    fn forward_sequences<'a>(
        &'a self,
        sequences: &Sequences<'_>,
        passes: &mut Passes<'a>,
    ) -> Result<Tensor, TchError>;

    /// Hidden states `[.., hidden]` to logits `[.., vocabulary]`: asked only for positions that are read.
    fn logits(&self, hidden: &Tensor) -> Result<Tensor, TchError>;
}
