//! A network in training: one step at a time.

use super::{
    batch::Batch,
    error::TrainError,
    forward::batch_losses,
    images::LoadedBatch,
    loss::{LossSettings, Terms},
    optimizer::{AdamW, clipping_scale},
};
use crate::model::{config::ScoreHeadConfig, family::Family, passes::Passes};
use tch::{TchError, Tensor};

/// A network and what trains it.
pub struct Session {
    pub family: Box<dyn Family>,
    pub optimizer: AdamW,
    pub head: ScoreHeadConfig,
    pub loss: LossSettings,
    /// Padding token of the tokenizer.
    pub pad: i64,
    /// Whether activations are computed again for the gradients instead of kept.
    pub gradient_checkpointing: bool,
}

/// What a step found before it changed the weights.
#[derive(Clone, Debug, PartialEq)]
pub struct Taken {
    /// Of each batch.
    pub terms: Vec<Terms>,
    /// The gradients' L2 norm before clipping.
    pub gradient_norm: f64,
}

impl Session {
    /// Step `step`, counted from 1: along the mean of the batches' gradients.
    ///
    /// # Errors
    /// [`TrainError::NotFinite`] for a loss or gradients that are no numbers, before any weight is
    /// changed; [`TrainError::Torch`].
    pub fn step(
        &mut self,
        step: u64,
        batches: &[LoadedBatch<'_>],
        learning_rate: f64,
        max_grad_norm: f64,
    ) -> Result<Taken, TrainError> {
        let not_finite = |what, value: f64| TrainError::NotFinite { step, what, value };
        let mut terms = Vec::with_capacity(batches.len());
        for (index, batch) in batches.iter().enumerate() {
            if index > 0 {
                self.optimizer.accumulate().map_err(TrainError::torch(step, "adding gradients up"))?;
            }
            let of_batch = self
                .backward(batch, 1.0 / batches.len() as f64)
                .map_err(TrainError::torch(step, "computing the losses"))?;
            if !of_batch.loss.is_finite() {
                return Err(not_finite("the loss", of_batch.loss));
            }
            terms.push(of_batch);
        }
        let gradient_norm =
            self.optimizer.gradient_norm().map_err(TrainError::torch(step, "measuring the gradients"))?;
        if !gradient_norm.is_finite() {
            return Err(not_finite("the gradients' norm", gradient_norm));
        }
        self.optimizer
            .step(learning_rate, clipping_scale(gradient_norm, max_grad_norm))
            .map_err(TrainError::torch(step, "changing the weights"))?;
        Ok(Taken { terms, gradient_norm })
    }

    /// Adds the gradients of `share` of a batch's loss to those that are there.
    fn backward(&self, batch: &LoadedBatch<'_>, share: f64) -> Result<Terms, TchError> {
        let edge = self.family.image_size();
        let pixels = Tensor::f_from_slice(&batch.pixels)?.f_view([-1, 3, edge, edge])?;
        let batch = Batch::new(&batch.examples, pixels, self.pad)?;
        let mut passes = Passes::new(self.gradient_checkpointing);
        let losses = batch_losses(self.family.as_ref(), &batch, &self.head, &self.loss, &mut passes)?;
        passes.backward(&losses.total.f_mul_scalar(share)?)?;
        losses.terms()
    }
}
