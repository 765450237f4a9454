//! Layers with one set of weights per modality (mPLUG-Owl2's modality-adaptive module).

use crate::model::{
    error::ModelError,
    layers::{Linear, rms_normalize},
    parameters::Scope,
    transfer::upload,
};
use std::ops::Range;
use tch::{Device, TchError, Tensor};

/// What a position stands for; the numbers are those in the checkpoint's names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Modality {
    Text = 0,
    Image = 1,
}

/// Positions by modality.
pub enum Segments {
    /// The same in every row. The image is one contiguous range, so that each set of weights applies to
    /// slices and nothing is gathered or scattered.
    Slices(Vec<(i64, i64, Modality)>),
    /// Rows that differ, laid one after the other.
    Scattered {
        /// Indices of the text positions among those of all rows.
        text: Tensor,
        image: Tensor,
        /// Where each position of all rows lies in text and image positions joined.
        order: Tensor,
    },
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
            return Self::Slices(vec![(0, count, Modality::Text)]);
        }
        Self::Slices(segments.into_iter().filter(|(start, end, _)| start < end).collect())
    }

    /// The segments of rows of `count` positions, of which `images` come from each row's image.
    pub fn of_rows(count: i64, images: &[Range<i64>], device: Device) -> Result<Self, TchError> {
        let none = 0..0;
        let first = images.first().unwrap_or(&none);
        if images.iter().all(|image| image == first) {
            return Ok(Self::new(count, first));
        }
        let (mut text, mut image, mut place) = (Vec::new(), Vec::new(), Vec::new());
        for (row, range) in (0..).zip(images) {
            for position in 0..count {
                let of_modality = if range.contains(&position) { &mut image } else { &mut text };
                place.push((range.contains(&position), of_modality.len() as i64));
                of_modality.push(row * count + position);
            }
        }
        let behind_text = text.len() as i64;
        let order: Vec<i64> =
            place.into_iter().map(|(image, index)| if image { behind_text + index } else { index }).collect();
        let on_device = |indices: &[i64]| upload(indices, device);
        Ok(Self::Scattered { text: on_device(&text)?, image: on_device(&image)?, order: on_device(&order)? })
    }

    /// Applies `layer` to each segment of `[rows, count, width]` and joins the results.
    fn apply(
        &self,
        input: &Tensor,
        layer: impl Fn(&Tensor, Modality) -> Result<Tensor, TchError>,
    ) -> Result<Tensor, TchError> {
        match self {
            Self::Slices(segments) => {
                if let [(_, _, modality)] = segments[..] {
                    return layer(input, modality);
                }
                let parts = segments
                    .iter()
                    .map(|&(start, end, modality)| layer(&input.f_narrow(1, start, end - start)?, modality))
                    .collect::<Result<Vec<_>, _>>()?;
                Tensor::f_cat(&parts, 1)
            }
            Self::Scattered { text, image, order } => {
                let (rows, count, _) = input.size3()?;
                let positions = input.f_flatten(0, 1)?;
                let part = |indices, modality| layer(&positions.f_index_select(0, indices)?, modality);
                let parts = [part(text, Modality::Text)?, part(image, Modality::Image)?];
                Tensor::f_cat(&parts, 0)?.f_index_select(0, order)?.f_view([rows, count, -1])
            }
        }
    }

    /// As [`Self::apply`], the text on both sides of the image at once, for layers that cost more to read than
    /// a few positions to move.
    fn apply_once_each(
        &self,
        input: &Tensor,
        layer: impl Fn(&Tensor, Modality) -> Result<Tensor, TchError>,
    ) -> Result<Tensor, TchError> {
        let Self::Slices(segments) = self else { return self.apply(input, layer) };
        let [(_, before, Modality::Text), (start, end, Modality::Image), (after, count, Modality::Text)] =
            segments[..]
        else {
            return self.apply(input, layer);
        };
        let slice = |tensor: &Tensor, start, end| tensor.f_narrow(1, start, end - start);
        let text = Tensor::f_cat(&[slice(input, 0, before)?, slice(input, after, count)?], 1)?;
        let text = layer(&text, Modality::Text)?;
        let image = layer(&slice(input, start, end)?, Modality::Image)?;
        Tensor::f_cat(&[slice(&text, 0, before)?, image, slice(&text, before, before + count - after)?], 1)
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
        segments.apply_once_each(input, |part, modality| self.multiway[modality as usize].forward(part))
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
        let is_trained = normalized.requires_grad() || self.multiway.iter().any(Tensor::requires_grad);
        if let (false, Segments::Slices(segments)) = (is_trained, segments) {
            // Where they lie, rather than as parts that are then joined.
            for &(start, end, modality) in segments {
                let _scaled =
                    normalized.f_narrow(1, start, end - start)?.f_mul_(&self.multiway[modality as usize])?;
            }
            return Ok(normalized);
        }
        segments.apply(&normalized, |part, modality| part.f_mul(&self.multiway[modality as usize]))
    }
}
