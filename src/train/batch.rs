//! Examples as tensors.

use super::{dataset::Example, encode::IGNORED};
use crate::model::{family::Family, passes::Passes, prompt::IMAGE_ID};
use std::ops::Range;
use tch::{Kind, TchError, Tensor};

/// Examples that go through the network together, padded at their ends to the longest.
pub struct Batch {
    /// `[rows, longest]`, i64, one [`IMAGE_ID`] in each row.
    pub ids: Tensor,
    /// `[rows, longest]`, i64; [`IGNORED`] where nothing is learnt, padding included.
    pub labels: Tensor,
    /// Positions of each row before its padding.
    pub lengths: Vec<i64>,
    /// Pixel values `[rows, 3, edge, edge]`, f32.
    pub pixels: Tensor,
    /// `[scores]`, f32: those of all rows, one after the other.
    pub gt_scores: Tensor,
    /// `[scores, bins]`, f32; nothing unless every row has its distributions.
    pub targets: Option<Tensor>,
    /// Where each row's image goes.
    image_places: Vec<i64>,
}

/// A batch with each image in its place.
pub struct Expanded {
    /// `[rows, count, hidden]`.
    pub embeddings: Tensor,
    /// `[rows, count]`, i64, on the CPU.
    pub labels: Tensor,
    /// The image's positions in each row.
    pub images: Vec<Range<i64>>,
}

/// The positions that something is learnt from, on the CPU.
pub struct Reads {
    /// Of each, its index among the positions of all rows, one row after the other.
    pub positions: Vec<i64>,
    /// The token that comes after each.
    pub labels: Vec<i64>,
}

impl Batch {
    /// Puts examples and their pixel values together. `pad` fills the ends of shorter rows.
    pub fn new(examples: &[&Example], pixels: Tensor, pad: i64) -> Result<Self, TchError> {
        let rows = examples.len() as i64;
        let longest = examples.iter().map(|example| example.ids.len()).max().unwrap_or(0);
        let padded = |values: &dyn Fn(&Example) -> Vec<i64>, fill: i64| -> Result<Tensor, TchError> {
            let mut padded = Vec::with_capacity(examples.len() * longest);
            for example in examples {
                let mut row = values(example);
                row.resize(longest, fill);
                padded.extend(row);
            }
            Tensor::f_from_slice(&padded)?.f_view([rows, longest as i64])
        };
        let gt_scores: Vec<f32> =
            examples.iter().flat_map(|example| example.gt_scores.iter().copied()).collect();
        let complete = examples.iter().all(|example| example.targets.len() == example.gt_scores.len());
        let targets: Vec<f32> =
            examples.iter().flat_map(|example| example.targets.iter().flatten().copied()).collect();
        let targets = match complete && !targets.is_empty() {
            true => Some(Tensor::f_from_slice(&targets)?.f_view([gt_scores.len() as i64, -1])?),
            false => None,
        };
        let place = |example: &&Example| {
            example.ids.iter().position(|&id| id == IMAGE_ID).map(|place| place as i64).ok_or_else(|| {
                TchError::Shape(format!(
                    "{} shows no image; write <|image|> in its question",
                    example.place()
                ))
            })
        };
        Ok(Self {
            ids: padded(&|example| example.ids.clone(), pad)?,
            labels: padded(&|example| example.labels.clone(), IGNORED)?,
            lengths: examples.iter().map(|example| example.ids.len() as i64).collect(),
            pixels,
            gt_scores: Tensor::f_from_slice(&gt_scores)?,
            targets,
            image_places: examples.iter().map(place).collect::<Result<_, _>>()?,
        })
    }

    /// Images in the batch, one a row.
    pub fn rows(&self) -> usize {
        self.lengths.len()
    }

    /// Embeds text and image, and puts each image in the place that its row names.
    pub fn expand<'a>(&self, family: &'a dyn Family, passes: &mut Passes<'a>) -> Result<Expanded, TchError> {
        let images = family.encode_images_in(&self.pixels.f_to_device(family.device())?, passes)?;
        let count = family.image_positions();
        // The image's own id has no embedding; what stands in for it is cut out again.
        let text = family.embed(&self.ids.f_clamp_min(0)?.f_to_device(family.device())?)?;
        let longest = self.ids.size()[1];
        let (mut embeddings, mut labels, mut ranges) = (Vec::new(), Vec::new(), Vec::new());
        let ignored = Tensor::f_full([count], IGNORED, (Kind::Int64, tch::Device::Cpu))?;
        for (row, &place) in (0..).zip(&self.image_places) {
            let around = |rows: &Tensor, image: &Tensor| -> Result<Tensor, TchError> {
                let row = rows.f_select(0, row)?;
                let before = row.f_narrow(0, 0, place)?;
                let after = row.f_narrow(0, place + 1, longest - place - 1)?;
                Tensor::f_cat(&[&before, image, &after], 0)
            };
            embeddings.push(around(&text, &images.f_select(0, row)?)?);
            labels.push(around(&self.labels, &ignored)?);
            ranges.push(place..place + count);
        }
        Ok(Expanded {
            embeddings: Tensor::f_stack(&embeddings, 0)?,
            labels: Tensor::f_stack(&labels, 0)?,
            images: ranges,
        })
    }
}

impl Expanded {
    /// The positions whose next token is learnt: only their logits are needed.
    pub fn reads(&self) -> Result<Reads, TchError> {
        let (rows, count) = self.labels.size2()?;
        let labels = Vec::<i64>::try_from(self.labels.f_reshape([rows * count])?)?;
        let mut reads = Reads { positions: Vec::new(), labels: Vec::new() };
        for (index, &label) in labels.iter().enumerate() {
            // A row's first token comes after none of its own.
            if label != IGNORED && index as i64 % count != 0 {
                reads.positions.push(index as i64 - 1);
                reads.labels.push(label);
            }
        }
        Ok(reads)
    }
}
