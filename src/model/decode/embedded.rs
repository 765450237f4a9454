//! The prompt as the language model reads it: the same for every image.

use crate::model::{
    family::{Block, Family},
    kv_cache::KvCache,
    transfer::upload,
};
use std::ops::Range;
use tch::{TchError, Tensor};

/// The prompt's embeddings around the image's place.
pub struct EmbeddedPrompt {
    /// `[1, positions, hidden]` each.
    before: Tensor,
    after: Tensor,
}

impl EmbeddedPrompt {
    /// Embeds the ids that stand before and after the image.
    pub fn new(family: &dyn Family, before: &[i64], after: &[i64]) -> Result<Self, TchError> {
        let embed = |ids: &[i64]| family.embed(&upload(ids, family.device())?.f_view([1, ids.len() as i64])?);
        Ok(Self { before: embed(before)?, after: embed(after)? })
    }

    /// Positions of the text, the image not counted.
    pub fn text_positions(&self) -> i64 {
        self.before.size()[1] + self.after.size()[1]
    }

    /// Puts each image, `[images, image_positions, hidden]`, in its place: the embeddings
    /// `[images, positions, hidden]` and the image's range in them.
    pub fn around(&self, images: &Tensor) -> Result<(Tensor, Range<i64>), TchError> {
        let (rows, count, _) = images.size3()?;
        let start = self.before.size()[1];
        let before = self.before.f_expand([rows, -1, -1], false)?;
        let after = self.after.f_expand([rows, -1, -1], false)?;
        Ok((Tensor::f_cat(&[&before, images, &after], 1)?, start..start + count))
    }

    /// What of it is left for each image once the text before the image is in the cache, with a
    /// draft, `[1, positions, hidden]`, behind it; the image comes first.
    pub fn from_image_on(&self, images: &Tensor, draft: Option<&Tensor>) -> Result<Tensor, TchError> {
        let rows = images.size()[0];
        let expand = |part: &Tensor| part.f_expand([rows, -1, -1], false);
        let mut parts = vec![images.shallow_clone(), expand(&self.after)?];
        if let Some(draft) = draft {
            parts.push(expand(draft)?);
        }
        Tensor::f_cat(&parts, 1)
    }

    /// Keys and values of the text before the image, in one row.
    pub fn prefix(&self, family: &dyn Family) -> Result<KvCache, TchError> {
        let count = self.before.size()[1];
        let mut cache = family.new_cache(1, count)?;
        if count > 0 {
            // Nobody reads on from these positions: the last layer's keys and values are all of it.
            let _ = family.forward(&Block::text(&self.before).reading(count - 1..count), &mut cache)?;
        }
        Ok(cache)
    }
}
