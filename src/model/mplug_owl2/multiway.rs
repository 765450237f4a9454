//! Layers with one set of weights per modality (mPLUG-Owl2's modality-adaptive module).

use crate::model::{
    error::ModelError,
    layers::{Linear, rms_normalize},
    parameters::Scope,
};
use std::ops::Range;
use tch::{TchError, Tensor};

/// What a position stands for; the numbers are those in the checkpoint's names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Modality {
    Text = 0,
    Image = 1,
}

/// A block's positions by modality. The image is one contiguous range, so that each set of weights
/// applies to slices and nothing is gathered or scattered.
pub struct Segments {
    segments: Vec<(i64, i64, Modality)>,
}

impl Segments {
    /// The segments of `count` positions of which `image` come from the image.
    pub fn new(count: i64, image: &Range<i64>) -> Self {
        let segments = [
            (0, image.start, Modality::Text),
            (image.start, image.end, Modality::Image),
            (image.end, count, Modality::Text),
        ];
        if image.is_empty() {
            return Self { segments: vec![(0, count, Modality::Text)] };
        }
        Self { segments: segments.into_iter().filter(|(start, end, _)| start < end).collect() }
    }

    /// Applies `layer` to each segment of `[rows, count, ..]` and joins the results.
    fn apply(
        &self,
        input: &Tensor,
        layer: impl Fn(&Tensor, Modality) -> Result<Tensor, TchError>,
    ) -> Result<Tensor, TchError> {
        if let [(_, _, modality)] = self.segments[..] {
            return layer(input, modality);
        }
        let parts = self
            .segments
            .iter()
            .map(|&(start, end, modality)| layer(&input.f_narrow(1, start, end - start)?, modality))
            .collect::<Result<Vec<_>, _>>()?;
        Tensor::f_cat(&parts, 1)
    }
}

/// A linear map per modality.
pub struct MultiwayLinear {
    multiway: [Linear; 2],
}

impl MultiwayLinear {
    pub fn new(scope: &Scope<'_>, name: &str) -> Result<Self, ModelError> {
        let scope = scope.child(name).child("multiway");
        Ok(Self { multiway: [scope.linear("0")?, scope.linear("1")?] })
    }

    pub fn forward(&self, input: &Tensor, segments: &Segments) -> Result<Tensor, TchError> {
        segments.apply(input, |part, modality| self.multiway[modality as usize].forward(part))
    }
}

/// RMSNorm (Zhang and Sennrich 2019) with a weight per modality.
pub struct MultiwayRmsNorm {
    multiway: [Tensor; 2],
    eps: f64,
}

impl MultiwayRmsNorm {
    pub fn new(scope: &Scope<'_>, name: &str, eps: f64) -> Result<Self, ModelError> {
        let scope = scope.child(name).child("multiway");
        Ok(Self { multiway: [scope.tensor("0.weight")?, scope.tensor("1.weight")?], eps })
    }

    pub fn forward(&self, input: &Tensor, segments: &Segments) -> Result<Tensor, TchError> {
        let normalized = rms_normalize(input, self.eps)?;
        segments.apply(&normalized, |part, modality| part.f_mul(&self.multiway[modality as usize]))
    }
}
