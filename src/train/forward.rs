//! From a batch to its losses, whatever family the network is of.

use super::{
    batch::Batch,
    loss::{Labels, LossSettings, Losses, losses},
};
use crate::model::{
    config::ScoreHeadConfig,
    family::{Family, Sequences},
    passes::Passes,
};
use tch::{TchError, Tensor};

/// The losses of one batch, with gradients of every parameter that asks for them:
/// [`Passes::backward`] gives them.
pub fn batch_losses<'a>(
    family: &'a dyn Family,
    batch: &Batch,
    head: &ScoreHeadConfig,
    settings: &LossSettings,
    passes: &mut Passes<'a>,
) -> Result<Losses, TchError> {
    let expanded = batch.expand(family, passes)?;
    let reads = expanded.reads()?;
    let sequences = Sequences { embeddings: &expanded.embeddings, images: &expanded.images };
    let hidden = family.forward_sequences(&sequences, passes)?.f_flatten(0, 1)?;
    let positions = Tensor::f_from_slice(&reads.positions)?.f_to_device(hidden.device())?;
    let logits = family.logits(&hidden.f_index_select(0, &positions)?)?;
    let labels =
        Labels { tokens: &reads.labels, gt_scores: &batch.gt_scores, targets: batch.targets.as_ref() };
    losses(&logits, &labels, head, settings)
}
