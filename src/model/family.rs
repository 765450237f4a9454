//! What the score head, the decoder and the scorer ask of a multimodal language model.

use super::kv_cache::KvCache;
use std::ops::Range;
use tch::{Device, Kind, TchError, Tensor};

/// Positions to append to every row of a cache.
pub struct Block<'a> {
    /// `[rows, count, hidden]`.
    pub embeddings: &'a Tensor,
    /// Which of the block's positions stand for the image; empty for text alone.
    pub image: Range<i64>,
}

impl<'a> Block<'a> {
    /// A block without image positions.
    pub fn text(embeddings: &'a Tensor) -> Self {
        Self { embeddings, image: 0..0 }
    }
}

/// A multimodal language model that carries ROC4MLLM's score head. A family is one folder beside
/// this file and one implementation of this trait; nothing outside the folder knows its insides.
pub trait Family: Send {
    /// Edge of the square input, in pixels.
    fn image_size(&self) -> i64;

    /// Positions that one image takes in the language model.
    fn image_positions(&self) -> i64;

    /// The longest sequence that the language model may hold.
    fn max_positions(&self) -> i64;

    fn device(&self) -> Device;

    /// The type that the model computes in.
    fn kind(&self) -> Kind;

    /// Pixel values `[images, 3, edge, edge]`, on the model's device, to embeddings
    /// `[images, image_positions, hidden]`.
    fn encode_images(&self, pixels: &Tensor) -> Result<Tensor, TchError>;

    /// Token ids of any shape, i64, to embeddings `[.., hidden]`.
    fn embed(&self, ids: &Tensor) -> Result<Tensor, TchError>;

    /// An empty cache with room for `capacity` positions in each of `rows` rows.
    fn new_cache(&self, rows: i64, capacity: i64) -> Result<KvCache, TchError>;

    /// Appends a block at each row's own position; gives the last hidden states
    /// `[rows, count, hidden]`, ready for [`Self::logits`].
    fn forward(&self, block: &Block<'_>, cache: &mut KvCache) -> Result<Tensor, TchError>;

    /// Hidden states `[.., hidden]` to logits `[.., vocabulary]`: asked only for positions that are read.
    fn logits(&self, hidden: &Tensor) -> Result<Tensor, TchError>;
}
