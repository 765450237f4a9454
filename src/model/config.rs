//! What a checkpoint's JSON files say about its network: every dimension, and nothing fixed in code.

pub use super::fields::ConfigError;
use super::fields::{Fields, read_object};
use std::path::Path;

/// Bounds that no real network reaches; they keep products of two dimensions far from overflowing.
const LARGEST_WIDTH: i64 = 1 << 20;
const LARGEST_VOCABULARY: i64 = 1 << 24;
const LARGEST_CONTEXT: i64 = 1 << 24;
const MOST_LAYERS: i64 = 1 << 10;

/// A `config.json` of the mPLUG-Owl2 family, checked.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelConfig {
    /// `model_type`, the family's name.
    pub model_type: String,
    /// `torch_dtype`: the type that the weights are said to be stored in.
    pub torch_dtype: Option<String>,
    /// `image_aspect_ratio`: `pad` where training padded images to squares.
    pub image_aspect_ratio: Option<String>,
    pub language: LanguageConfig,
    pub vision: VisionConfig,
    pub abstractor: AbstractorConfig,
    /// Absent in a plain mPLUG-Owl2 checkpoint, whose vocabulary has not been grown yet.
    pub score: Option<ScoreHeadConfig>,
    pub special: SpecialTokens,
}

/// The LLaMA decoder.
#[derive(Clone, Debug, PartialEq)]
pub struct LanguageConfig {
    pub vocab_size: i64,
    pub hidden_size: i64,
    pub intermediate_size: i64,
    pub num_hidden_layers: i64,
    pub num_attention_heads: i64,
    /// Fewer than `num_attention_heads` with grouped-query attention.
    pub num_key_value_heads: i64,
    pub max_position_embeddings: i64,
    pub rms_norm_eps: f64,
    pub rope_theta: f64,
    pub rope_scaling: Option<RopeScaling>,
    /// Whether the four projections of attention have biases.
    pub attention_bias: bool,
    /// Whether `lm_head.weight` is `model.embed_tokens.weight`.
    pub tie_word_embeddings: bool,
}

/// How rotary positions stretch beyond `max_position_embeddings`, as transformers 4.31 defines it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum RopeScaling {
    /// Positions are divided by the factor.
    Linear(f64),
    /// The base grows with the length once it passes `max_position_embeddings`.
    Dynamic(f64),
}

/// The ViT that reads the pixels.
#[derive(Clone, Debug, PartialEq)]
pub struct VisionConfig {
    pub hidden_size: i64,
    pub intermediate_size: i64,
    pub num_hidden_layers: i64,
    pub num_attention_heads: i64,
    pub num_channels: i64,
    /// Edge of the square input in pixels.
    pub image_size: i64,
    pub patch_size: i64,
    pub layer_norm_eps: f64,
}

/// The cross-attention that turns vision positions into a few language positions.
#[derive(Clone, Debug, PartialEq)]
pub struct AbstractorConfig {
    pub hidden_size: i64,
    pub intermediate_size: i64,
    pub num_hidden_layers: i64,
    pub num_attention_heads: i64,
    pub num_learnable_queries: i64,
    /// Edge of the patch grid that the key positions are built for.
    pub grid_size: i64,
    /// Only `ffn_ln` uses it; the other norms have a fixed 1e-5 in the reference.
    pub layer_norm_eps: f64,
}

/// ROC4MLLM's score head: which logits are the bins, and what the bins are worth.
#[derive(Clone, Debug, PartialEq)]
pub struct ScoreHeadConfig {
    /// Id of `[SCORE]`.
    pub score_id: i64,
    /// Ids of the first and last bin token, where the file states them.
    pub output_first_id: Option<i64>,
    pub output_last_id: Option<i64>,
    /// Bins: as many of the last logits are read.
    pub num_tokens: i64,
    pub min_score: f64,
    pub max_score: f64,
}

/// Ids that steer generation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SpecialTokens {
    pub bos: i64,
    /// Any of these ends an answer.
    pub eos: Vec<i64>,
    /// Fills the rows of a batch that have ended; the end token where the files name none.
    pub pad: i64,
}

impl ModelConfig {
    /// Reads and checks `config.json` (and `generation_config.json`, where it overrides it) in `folder`.
    ///
    /// # Errors
    /// [`ConfigError`] naming the file and the field.
    pub fn read(folder: &Path) -> Result<Self, ConfigError> {
        let file = folder.join("config.json");
        let object = read_object(&file)?;
        let top = Fields::new(&file, "", &object);
        let visual = top.object("visual_config")?;
        let visual = Fields::new(&file, "visual_config.", visual);

        let language = LanguageConfig::read(&top)?;
        let vision = VisionConfig::read(&Fields::new(
            &file,
            "visual_config.visual_model.",
            visual.object("visual_model")?,
        ))?;
        let abstractor = AbstractorConfig::read(
            &Fields::new(&file, "visual_config.visual_abstractor.", visual.object("visual_abstractor")?),
            &vision,
        )?;
        let special = SpecialTokens::read(&top, folder, language.vocab_size)?;
        let score = ScoreHeadConfig::read(&top, language.vocab_size)?;
        Ok(Self {
            model_type: top.required("model_type", top.optional_text("model_type")?)?.to_owned(),
            torch_dtype: top.optional_text("torch_dtype")?.map(str::to_owned),
            image_aspect_ratio: top.optional_text("image_aspect_ratio")?.map(str::to_owned),
            language,
            vision,
            abstractor,
            score,
            special,
        })
    }

    /// Language positions that one image takes: the queries and `vit_eos`.
    pub fn image_positions(&self) -> i64 {
        self.abstractor.num_learnable_queries + 1
    }

    /// The longest sequence that the language model may hold.
    pub fn max_positions(&self) -> i64 {
        match self.language.rope_scaling {
            None => self.language.max_position_embeddings,
            // Scaled rotary positions exist to go beyond what the network was trained with.
            Some(RopeScaling::Linear(factor) | RopeScaling::Dynamic(factor)) => {
                (self.language.max_position_embeddings as f64 * factor) as i64
            }
        }
    }

    /// Bytes that computing a batch takes beside the weights, at most: the key-value cache of
    /// `positions` (prompt, image and answer) a row, and the widest layer's intermediates with
    /// attention scores in f32. `element` is the size of one element in bytes.
    pub fn activation_bytes(&self, batch: u64, positions: u64, element: u64) -> u64 {
        let wide = |value: i64| value.unsigned_abs();
        let language = &self.language;
        let cache = wide(language.num_hidden_layers) * 2 * wide(language.key_value_width()) * element;
        let attention = wide(language.num_attention_heads) * positions * 4 * 2;
        let layer = (8 * wide(language.hidden_size) + 3 * wide(language.intermediate_size)) * element;
        let logits = wide(language.vocab_size) * 4;
        let text = positions * (cache + attention + layer) + logits;

        let patches = wide(self.vision.positions());
        let attention = wide(self.vision.num_attention_heads) * patches * 4 * 2;
        let layer = (8 * wide(self.vision.hidden_size) + 2 * wide(self.vision.intermediate_size)) * element;
        let image = patches * (attention + layer);
        batch * text.max(image)
    }
}

impl LanguageConfig {
    fn read(fields: &Fields<'_>) -> Result<Self, ConfigError> {
        let num_attention_heads = fields.count("num_attention_heads", LARGEST_WIDTH)?;
        let config = Self {
            vocab_size: fields.count("vocab_size", LARGEST_VOCABULARY)?,
            hidden_size: fields.count("hidden_size", LARGEST_WIDTH)?,
            intermediate_size: fields.count("intermediate_size", LARGEST_WIDTH)?,
            num_hidden_layers: fields.count("num_hidden_layers", MOST_LAYERS)?,
            num_attention_heads,
            num_key_value_heads: fields
                .optional_count("num_key_value_heads", LARGEST_WIDTH)?
                .unwrap_or(num_attention_heads),
            max_position_embeddings: fields
                .optional_count("max_position_embeddings", LARGEST_CONTEXT)?
                .unwrap_or(2048),
            rms_norm_eps: fields.positive("rms_norm_eps", 1e-6)?,
            rope_theta: fields.positive("rope_theta", 10_000.0)?,
            rope_scaling: RopeScaling::read(fields)?,
            attention_bias: fields.flag("attention_bias", false)?,
            tie_word_embeddings: fields.flag("tie_word_embeddings", false)?,
        };
        match fields.optional_text("hidden_act")? {
            None | Some("silu" | "swish") => {}
            Some(other) => {
                return Err(
                    fields.error("hidden_act", format!("is `{other}`, but only `silu` is computed here"))
                );
            }
        }
        if config.hidden_size % config.num_attention_heads != 0 || config.head_dim() % 2 != 0 {
            return Err(fields.error(
                "num_attention_heads",
                format!(
                    "is {}, which doesn't split the hidden_size {} into heads of an even width",
                    config.num_attention_heads, config.hidden_size
                ),
            ));
        }
        if config.num_attention_heads % config.num_key_value_heads != 0 {
            return Err(fields.error(
                "num_key_value_heads",
                format!(
                    "is {}, which doesn't divide the {} attention heads",
                    config.num_key_value_heads, config.num_attention_heads
                ),
            ));
        }
        Ok(config)
    }

    /// Width of one attention head.
    pub fn head_dim(&self) -> i64 {
        self.hidden_size / self.num_attention_heads
    }

    /// Width of all key heads together; that of the value heads is the same.
    pub fn key_value_width(&self) -> i64 {
        self.head_dim() * self.num_key_value_heads
    }
}

impl RopeScaling {
    fn read(fields: &Fields<'_>) -> Result<Option<Self>, ConfigError> {
        if fields.value("rope_scaling").is_none() {
            return Ok(None);
        }
        let object = fields.object("rope_scaling")?;
        let inner = |name: &str| object.get(name).filter(|value| !value.is_null());
        let factor = inner("factor")
            .and_then(serde_json::Value::as_f64)
            .filter(|factor| factor.is_finite() && *factor >= 1.0)
            .ok_or_else(|| fields.error("rope_scaling.factor", "must be a finite number of at least 1"))?;
        match inner("type").and_then(serde_json::Value::as_str) {
            Some("linear") => Ok(Some(Self::Linear(factor))),
            Some("dynamic") => Ok(Some(Self::Dynamic(factor))),
            _ => Err(fields.error("rope_scaling.type", "must be `linear` or `dynamic`")),
        }
    }
}

impl VisionConfig {
    fn read(fields: &Fields<'_>) -> Result<Self, ConfigError> {
        let config = Self {
            hidden_size: fields.count("hidden_size", LARGEST_WIDTH)?,
            intermediate_size: fields.count("intermediate_size", LARGEST_WIDTH)?,
            num_hidden_layers: fields.count("num_hidden_layers", MOST_LAYERS)?,
            num_attention_heads: fields.count("num_attention_heads", LARGEST_WIDTH)?,
            num_channels: fields.optional_count("num_channels", LARGEST_WIDTH)?.unwrap_or(3),
            image_size: fields.count("image_size", 1 << 14)?,
            patch_size: fields.count("patch_size", 1 << 14)?,
            layer_norm_eps: fields.positive("layer_norm_eps", 1e-6)?,
        };
        if config.hidden_size % config.num_attention_heads != 0 {
            return Err(fields.error("num_attention_heads", "must divide hidden_size"));
        }
        if config.num_channels != 3 {
            return Err(fields.error("num_channels", "must be 3: images are given to the model as RGB"));
        }
        if config.patch_size > config.image_size {
            return Err(fields.error("patch_size", "must not exceed image_size"));
        }
        match fields.optional_text("hidden_act")? {
            None | Some("quick_gelu") => Ok(config),
            Some(other) => {
                Err(fields
                    .error("hidden_act", format!("is `{other}`, but only `quick_gelu` is computed here")))
            }
        }
    }

    pub fn head_dim(&self) -> i64 {
        self.hidden_size / self.num_attention_heads
    }

    /// Patches along one edge.
    pub fn grid(&self) -> i64 {
        self.image_size / self.patch_size
    }

    /// Patches and the class token.
    pub fn positions(&self) -> i64 {
        self.grid() * self.grid() + 1
    }
}

impl AbstractorConfig {
    fn read(fields: &Fields<'_>, vision: &VisionConfig) -> Result<Self, ConfigError> {
        let config = Self {
            hidden_size: fields.count("hidden_size", LARGEST_WIDTH)?,
            intermediate_size: fields.count("intermediate_size", LARGEST_WIDTH)?,
            num_hidden_layers: fields.count("num_hidden_layers", MOST_LAYERS)?,
            num_attention_heads: fields.count("num_attention_heads", LARGEST_WIDTH)?,
            num_learnable_queries: fields.count("num_learnable_queries", LARGEST_WIDTH)?,
            grid_size: fields.count("grid_size", 1 << 14)?,
            layer_norm_eps: fields.positive("layer_norm_eps", 1e-6)?,
        };
        let encoder_hidden_size = fields.count("encoder_hidden_size", LARGEST_WIDTH)?;
        if encoder_hidden_size != vision.hidden_size || config.hidden_size != vision.hidden_size {
            return Err(fields.error(
                "encoder_hidden_size",
                format!(
                    "is {encoder_hidden_size} and hidden_size {}, but both must be the vision model's {}: \
                     keys are made from queries and vision positions together",
                    config.hidden_size, vision.hidden_size
                ),
            ));
        }
        if config.hidden_size % config.num_attention_heads != 0 || config.hidden_size % 4 != 0 {
            return Err(fields.error(
                "hidden_size",
                "must be a multiple of num_attention_heads and of 4 (two axes of sines and cosines)",
            ));
        }
        if config.grid_size != vision.grid() {
            return Err(fields.error(
                "grid_size",
                format!(
                    "is {}, but the vision model has {} patches an edge",
                    config.grid_size,
                    vision.grid()
                ),
            ));
        }
        Ok(config)
    }

    pub fn head_dim(&self) -> i64 {
        self.hidden_size / self.num_attention_heads
    }
}

impl ScoreHeadConfig {
    fn read(fields: &Fields<'_>, vocab_size: i64) -> Result<Option<Self>, ConfigError> {
        let Some(score_id) = fields.optional_id("score_id")? else {
            return Ok(None);
        };
        let img_token_num = fields.count("img_token_num", vocab_size)?;
        let num_tokens = fields.optional_count("num_tokens", vocab_size)?.unwrap_or(img_token_num);
        let number = |name| fields.required(name, fields.optional_number(name)?);
        let config = Self {
            score_id,
            output_first_id: fields.optional_id("output_first_id")?,
            output_last_id: fields.optional_id("output_last_id")?,
            num_tokens,
            min_score: number("min_score")?,
            max_score: number("max_score")?,
        };
        if num_tokens != img_token_num || num_tokens < 2 {
            return Err(fields.error(
                "num_tokens",
                format!("is {num_tokens} and `img_token_num` {img_token_num}, but both must be the same number above 1"),
            ));
        }
        for (name, id) in [
            ("score_id", Some(config.score_id)),
            ("output_first_id", config.output_first_id),
            ("output_last_id", config.output_last_id),
        ] {
            if let Some(id) = id.filter(|id| *id >= vocab_size) {
                return Err(fields.error(name, format!("is {id}, outside the vocabulary of {vocab_size}")));
            }
        }
        if config.min_score >= config.max_score {
            return Err(fields.error(
                "min_score",
                format!("is {}, not below `max_score` {}", config.min_score, config.max_score),
            ));
        }
        Ok(Some(config))
    }
}

impl SpecialTokens {
    /// The ids that `config.json` states, or those of `generation_config.json` where that file was
    /// written by hand rather than derived (`_from_model_config`): the reference's generation
    /// prefers it in that case.
    fn read(top: &Fields<'_>, folder: &Path, vocab_size: i64) -> Result<Self, ConfigError> {
        let file = folder.join("generation_config.json");
        let object = if file.exists() { Some(read_object(&file)?) } else { None };
        let generation = match &object {
            Some(object) => Some(Fields::new(&file, "", object))
                .filter(|fields| fields.value("_from_model_config") != Some(&serde_json::Value::Bool(true))),
            None => None,
        };
        let source = generation.as_ref().unwrap_or(top);
        let bos = top.optional_id("bos_token_id")?.unwrap_or(1);
        let eos = match source.ids("eos_token_id")? {
            Some(ids) => ids,
            None => top.ids("eos_token_id")?.unwrap_or_else(|| vec![2]),
        };
        let Some(&first_eos) = eos.first() else {
            return Err(source.error("eos_token_id", "must name at least one token"));
        };
        let pad = source.optional_id("pad_token_id")?.unwrap_or(first_eos);
        for (name, id) in
            eos.iter().map(|id| ("eos_token_id", *id)).chain([("bos_token_id", bos), ("pad_token_id", pad)])
        {
            if id >= vocab_size {
                return Err(source.error(name, format!("is {id}, outside the vocabulary of {vocab_size}")));
            }
        }
        Ok(Self { bos, eos, pad })
    }
}

#[cfg(test)]
mod tests;
