//! The mPLUG-Owl2 family (Ye et al. 2023) with ROC4MLLM's vocabulary: vision model, visual
//! abstractor, and a LLaMA-2 whose keys, values and norms know text from image.

mod abstractor;
mod language;
mod multiway;
mod vision;

pub use self::{abstractor::VisualAbstractor, language::LanguageModel, vision::VisionModel};
use super::{
    config::{ModelConfig, RopeScaling},
    error::ModelError,
    family::{Block, Family, Part, Sequences},
    kv_cache::KvCache,
    parameters::Parameters,
    passes::Passes,
};
use tch::{Device, Kind, TchError, Tensor};

/// The whole network.
pub struct MplugOwl2 {
    config: ModelConfig,
    parameters: Parameters,
    vision: VisionModel,
    abstractor: VisualAbstractor,
    language: LanguageModel,
}

impl MplugOwl2 {
    /// Builds the network from parameters that already are where, and of the type, they are to be
    /// computed with.
    ///
    /// # Errors
    /// [`ModelError::MissingTensor`] when a parameter that `config` calls for isn't there.
    pub fn new(config: ModelConfig, parameters: Parameters) -> Result<Self, ModelError> {
        let root = parameters.root();
        let model = root.child("model");
        let vision = VisionModel::new(&model.child("vision_model"), &config.vision)?;
        let abstractor = VisualAbstractor::new(&model.child("visual_abstractor"), &config.abstractor)?;
        let language = LanguageModel::new(&root, &config.language)?;
        Ok(Self { config, parameters, vision, abstractor, language })
    }

    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    pub fn vision(&self) -> &VisionModel {
        &self.vision
    }

    pub fn abstractor(&self) -> &VisualAbstractor {
        &self.abstractor
    }

    pub fn language(&self) -> &LanguageModel {
        &self.language
    }
}

impl Family for MplugOwl2 {
    fn image_size(&self) -> i64 {
        self.config.vision.image_size
    }

    fn image_positions(&self) -> i64 {
        self.config.image_positions()
    }

    fn parameters(&self) -> &Parameters {
        &self.parameters
    }

    fn part(&self, parameter: &str) -> Part {
        if parameter.starts_with("model.vision_model.") {
            Part::Vision
        } else if parameter.starts_with("model.visual_abstractor.") {
            Part::Connector
        } else {
            Part::Language
        }
    }

    fn max_positions(&self) -> i64 {
        self.config.max_positions()
    }

    fn blockwise_positions(&self) -> i64 {
        match self.config.language.rope_scaling {
            // Beyond these the whole length decides how far each position is turned.
            Some(RopeScaling::Dynamic(_)) => self.config.language.max_position_embeddings,
            None | Some(RopeScaling::Linear(_)) => self.max_positions(),
        }
    }

    fn device(&self) -> Device {
        self.language.cache_shape().device
    }

    fn kind(&self) -> Kind {
        self.language.cache_shape().kind
    }

    fn encode_images(&self, pixels: &Tensor) -> Result<Tensor, TchError> {
        let patches = self.vision.forward(&pixels.f_to_kind(self.kind())?)?;
        self.abstractor.forward_in_use(&patches)
    }

    fn encode_images_in<'a>(&'a self, pixels: &Tensor, passes: &mut Passes<'a>) -> Result<Tensor, TchError> {
        let patches = self.vision.forward_in(&pixels.f_to_kind(self.kind())?, passes)?;
        passes.run(&patches, |patches| self.abstractor.forward(patches))
    }

    fn embed(&self, ids: &Tensor) -> Result<Tensor, TchError> {
        self.language.embed(ids)
    }

    fn new_cache(&self, rows: i64, capacity: i64) -> Result<KvCache, TchError> {
        KvCache::new(self.language.cache_shape(), rows, capacity)
    }

    fn forward(&self, block: &Block<'_>, cache: &mut KvCache) -> Result<Tensor, TchError> {
        self.language.forward(block, cache)
    }

    fn forward_sequences<'a>(
        &'a self,
        sequences: &Sequences<'_>,
        passes: &mut Passes<'a>,
    ) -> Result<Tensor, TchError> {
        self.language.forward_sequences(sequences, passes)
    }

    fn logits(&self, hidden: &Tensor) -> Result<Tensor, TchError> {
        self.language.logits(hidden)
    }
}

#[cfg(test)]
mod tests;
