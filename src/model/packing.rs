//! Whether a CPU computes with packed copies of the language model's weights.

use super::{
    checkpoint::{Checkpoint, available_memory},
    device::{Quantize, has_bf16_instructions},
};
use clap::ValueEnum;
use serde::{Deserialize, Serialize};
use tch::{Device, Kind};

/// When the language model's weights are laid out anew, as a CPU multiplies by them fastest.
///
/// oneDNN otherwise lays a weight out at every product, which costs as much as some fifteen rows more. A
/// packed weight is memory of this process's own instead of a mapped file, which processes share and the
/// system can take back, and packing takes seconds of loading. The vision model's weights, a few percent of
/// all, are packed in any case, and quantised ones in their own way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum Packing {
    /// In bf16, where weights are converted anyway or there is memory for the model twice
    #[default]
    Auto,
    /// On every CPU, whatever the number type
    Always,
    /// Weights are used from their file where their type allows it
    Never,
}

/// Images from which on the speed of packed weights makes up for packing them.
const WORTHWHILE: usize = 16;

impl Packing {
    /// The choice for `images` images in all.
    pub fn for_images(self, images: usize) -> Self {
        match self {
            Self::Auto if images < WORTHWHILE => Self::Never,
            packing => packing,
        }
    }

    /// Whether weights are packed that are computed with as `kind` on `device`, with `activations` bytes
    /// beside them.
    pub fn resolve(
        self,
        checkpoint: &Checkpoint,
        kind: Kind,
        device: Device,
        quantize: Quantize,
        activations: u64,
    ) -> bool {
        if device != Device::Cpu || quantize != Quantize::None {
            return false;
        }
        match self {
            Self::Always => true,
            Self::Never => false,
            // f32 gains a twentieth from it, and loses a fifth where a token is generated at a time.
            Self::Auto if kind != Kind::BFloat16 || !has_bf16_instructions() => false,
            Self::Auto if checkpoint.stored_kind() != kind => true,
            Self::Auto => {
                let weights = checkpoint.weight_bytes(kind, quantize);
                available_memory().is_some_and(|available| has_room(available, weights, activations))
            }
        }
    }
}

/// Whether the next version, or another process, can still be loaded beside this one.
fn has_room(available: u64, weights: u64, activations: u64) -> bool {
    available >= weights.saturating_mul(2).saturating_add(activations)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_is_room_for_the_next_version() {
        for (available, fits) in [(27, true), (26, false), (0, false)] {
            assert_eq!(has_room(available, 13, 1), fits, "{available}");
        }
        assert!(!has_room(u64::MAX - 1, u64::MAX, 1));
    }

    #[test]
    fn a_few_images_are_not_worth_packing_unless_it_is_asked_for() {
        for (packing, few, many) in [
            (Packing::Auto, Packing::Never, Packing::Auto),
            (Packing::Always, Packing::Always, Packing::Always),
            (Packing::Never, Packing::Never, Packing::Never),
        ] {
            assert_eq!((packing.for_images(1), packing.for_images(1_000)), (few, many));
        }
    }
}
