//! A checkpoint behind the [`Scorer`] trait.

use super::{
    checkpoint::{Checkpoint, short_name},
    config::ScoreHeadConfig,
    decode::{EmbeddedPrompt, Generated, GreedyOptions, Verifier, generate},
    device::{Quantize, has_bf16_instructions, has_byte_instructions, use_threads},
    error::{ModelError, first_line},
    families::build_family,
    family::Family,
    parameters::{Inference, Parameters},
    pixels::PixelBatches,
    prompt::PromptTokens,
    score_head::{SCORE_TOKEN, ScoreHead, fill_scores},
    settings::{DecodeMode, ModelSettings, PromptChoice},
    tokenizer::{Tokenizer, TokenizerError},
};
use crate::{
    fault::{ErrorCode, ItemError, Stage},
    inference::scorer::{ScoreBatch, Scorer, ScorerError},
    score::{Answer, DecodeKind, DraftCounts, ModelVersion},
};
use sha2::{Digest, Sha256};
use std::path::Path;
use tch::{Kind, TchError, Tensor};

/// The reference generates at most as many tokens.
const MAX_NEW_TOKENS: i64 = 512;

/// A loaded ROC4MLLM model: pixel values in, answers out.
pub struct TorchScorer {
    family: Box<dyn Family>,
    tokenizer: Tokenizer,
    prompt: EmbeddedPrompt,
    head: ScoreHead,
    options: GreedyOptions,
    /// Absent where every token is to be generated.
    verifier: Option<Verifier>,
    pixels: PixelBatches,
    precision: u8,
    version: ModelVersion,
}

impl TorchScorer {
    /// Loads the checkpoint folder that `settings` names.
    ///
    /// `preprocess_revision` is the revision of the preprocessing that fills the slots this scorer
    /// will be given; it becomes part of the version. Its name is a digest of the checkpoint's files,
    /// of the prompt and of the type computed in, since each of these changes scores.
    ///
    /// # Errors
    /// [`ModelError`] when the folder, its files, the device or the prompt can't be used.
    pub fn load(settings: &ModelSettings, preprocess_revision: u32) -> Result<Self, ModelError> {
        let _no_grad = tch::no_grad_guard();
        let device = settings.device.open()?;
        use_threads(settings.threads);
        let folder = Path::new(&settings.checkpoint);
        let named = || settings.checkpoint.clone();

        let checkpoint = Checkpoint::open(folder)?;
        let config = checkpoint.config();
        let score = config.score.clone().ok_or_else(|| ModelError::NoScoreTokens { checkpoint: named() })?;
        let kind = settings.dtype.resolve(checkpoint.stored_kind(), device);
        if kind == Kind::BFloat16 && device == tch::Device::Cpu && !has_bf16_instructions() {
            tracing::warn!(
                "this processor has no bf16 instructions and may be tens of times slower in bf16 than in f32; \
                 --dtype f32 (model.dtype) is the faster choice here, for twice the memory"
            );
        }
        if settings.quantize == Quantize::W8a8 && !has_byte_instructions() {
            tracing::warn!(
                "this processor has no instructions for products of bytes and gains nothing from w8a8; \
                 --quantize none (model.quantize) is exact"
            );
        }
        let tokenizer = Tokenizer::open(folder)?;
        check_score_tokens(&score, config.language.vocab_size, &tokenizer, folder)?;
        let prompt = PromptTokens::of_choice(&settings.prompt, &tokenizer)?;
        let positions = prompt.positions(config.image_positions().unsigned_abs() as usize) as u64;
        let activations = config.activation_bytes(1, positions, kind.elt_size_in_bytes() as u64);
        checkpoint.check_memory(kind, settings.quantize, device, activations)?;
        let end_tokens = config.special.eos.clone();
        let version = ModelVersion {
            model: config.model_type.clone(),
            version: version_name(&checkpoint.digest()?.version, &settings.prompt, kind, settings.quantize),
            preprocess_revision,
        };
        let quantize = settings.quantize;
        let pack = settings.pack.resolve(&checkpoint, kind, device, quantize, activations);
        let inference = Inference { kind, device, quantize, pack };
        let parameters = Parameters::load_for_inference(&checkpoint, inference)?;
        let family = build_family(checkpoint.config(), parameters, &settings.checkpoint)?;

        let embedded = EmbeddedPrompt::new(family.as_ref(), &prompt.before_image, &prompt.after_image)
            .map_err(|source| ModelError::Torch { doing: "embedding the prompt", source })?;
        let positions = embedded.text_positions() + family.image_positions();
        let room = family.max_positions() - positions;
        if room < 1 {
            let limit = family.max_positions();
            return Err(ModelError::PromptTooLong { checkpoint: named(), positions, limit });
        }
        let head = ScoreHead::new(score);
        let options = GreedyOptions {
            end_tokens,
            score_token: head.score_id(),
            bins: head.bins(),
            max_new_tokens: usize::try_from(room.min(MAX_NEW_TOKENS)).unwrap_or(1),
        };
        let verifier = match settings.decode {
            DecodeMode::Generate => None,
            DecodeMode::Verify => Some(
                Verifier::new(family.as_ref(), &embedded)
                    .map_err(|source| ModelError::Torch { doing: "reading the prompt", source })?,
            ),
        };
        Ok(Self {
            family,
            tokenizer,
            prompt: embedded,
            head,
            options,
            verifier,
            pixels: PixelBatches::default(),
            precision: settings.precision,
            version,
        })
    }

    /// Answers to images `[images, 3, edge, edge]` as the settings say, before scores are read from
    /// them.
    ///
    /// # Errors
    /// Whatever torch reports.
    pub fn decode(&mut self, pixels: &Tensor) -> Result<Vec<Generated>, TchError> {
        let Self { family, prompt, options, verifier: Some(verifier), .. } = self else {
            return self.generate(pixels);
        };
        let _no_grad = tch::no_grad_guard();
        let images = family.encode_images(pixels)?;
        verifier.answer(family.as_ref(), prompt, &images, options)
    }

    /// As [`Self::decode`], a token a pass whatever the settings say.
    ///
    /// # Errors
    /// Whatever torch reports.
    pub fn generate(&self, pixels: &Tensor) -> Result<Vec<Generated>, TchError> {
        let _no_grad = tch::no_grad_guard();
        let images = self.family.encode_images(pixels)?;
        let (embeddings, image) = self.prompt.around(&images)?;
        generate(self.family.as_ref(), &embeddings, image, &self.options)
    }

    fn score_by(
        &mut self,
        batch: &ScoreBatch,
        decode: impl FnOnce(&mut Self, &Tensor) -> Result<Vec<Generated>, TchError>,
    ) -> Result<Vec<Result<Answer, ItemError>>, ScorerError> {
        // Gradients are off per thread, and this may not be the thread that loaded the model.
        let _no_grad = tch::no_grad_guard();
        if batch.is_empty() {
            return Ok(Vec::new());
        }
        let to = (self.family.kind(), self.family.device());
        let pixels = self.pixels.gather(&batch.slots, self.family.image_size(), to);
        let generated = pixels.and_then(|pixels| decode(self, &pixels));
        let generated = generated.map_err(|error| scorer_error(batch.len(), &error))?;
        Ok(generated.into_iter().map(|generated| self.answer(generated)).collect())
    }

    /// What the generated tokens say about the image.
    fn answer(&self, generated: Generated) -> Result<Answer, ItemError> {
        let broken = || {
            let message = "the model's numbers for this image are not finite; \
                           look at the image, or load the checkpoint as bf16 or f32 instead of f16";
            ItemError::new(ErrorCode::NonFiniteScore, Stage::Infer, message)
        };
        if generated.broken {
            return Err(broken());
        }
        let no_score = |what: String| {
            let message = format!("{what}; use a ROC4MLLM checkpoint and a prompt that asks for a rating");
            ItemError::new(ErrorCode::NoScoreToken, Stage::Infer, message)
        };
        let tokens: Vec<u32> =
            generated.tokens.iter().filter_map(|&token| u32::try_from(token).ok()).collect();
        let decode = |tokens: &[u32]| {
            let text = self.tokenizer.decode(tokens, true);
            text.map_err(|error| no_score(format!("the answer is no text ({error})")))
        };
        let Some(first) = tokens.iter().position(|&token| i64::from(token) == self.head.score_id()) else {
            return Err(no_score(format!("the answer holds no score: `{}`", decode(&tokens)?.trim())));
        };
        let scores = generated.score_logits.iter().map(|logits| self.head.value(logits));
        let scores = scores.collect::<Option<Vec<_>>>().ok_or_else(broken)?;
        // The reference joins what stands before the first score and what stands after it with
        // spaces, even where nothing stands before it.
        let (before, after) = (decode(&tokens[..first])?, decode(&tokens[first + 1..])?);
        let text = format!("{before} {SCORE_TOKEN} {after}");
        Ok(Answer {
            text: fill_scores(&text, &scores, self.precision),
            scores,
            tokens,
            decode: if generated.verified { DecodeKind::Verified } else { DecodeKind::Generated },
            forwards: generated.forwards,
        })
    }
}

impl Scorer for TorchScorer {
    fn image_size(&self) -> usize {
        usize::try_from(self.family.image_size()).unwrap_or(0)
    }

    fn version(&self) -> &ModelVersion {
        &self.version
    }

    fn score_range(&self) -> (f64, f64) {
        self.head.range()
    }

    fn score(&mut self, batch: &ScoreBatch) -> Result<Vec<Result<Answer, ItemError>>, ScorerError> {
        self.score_by(batch, Self::decode)
    }

    fn score_afresh(&mut self, batch: &ScoreBatch) -> Result<Vec<Result<Answer, ItemError>>, ScorerError> {
        self.score_by(batch, |scorer, pixels| scorer.generate(pixels))
    }

    fn computes_in_host_memory(&self) -> bool {
        self.family.device() == tch::Device::Cpu
    }

    fn drafts(&self) -> DraftCounts {
        self.verifier.as_ref().map(Verifier::counts).unwrap_or_default()
    }
}

/// The tokenizer must be able to write `[SCORE]` down, or no answer could be read.
fn check_score_tokens(
    score: &ScoreHeadConfig,
    vocab_size: i64,
    tokenizer: &Tokenizer,
    folder: &Path,
) -> Result<(), ModelError> {
    if let Some(last) = score.output_last_id.filter(|last| *last != vocab_size - 1) {
        tracing::warn!(
            "{}: `output_last_id` is {last}, but scores are read from the last {} of {vocab_size} logits, as the \
             reference reads them; take a checkpoint whose vocabulary ends with its score tokens",
            folder.join("config.json").display(),
            score.num_tokens
        );
    }
    if u32::try_from(score.score_id).ok().and_then(|id| tokenizer.token(id)).is_some() {
        return Ok(());
    }
    let path = folder.join("added_tokens.json");
    let problem = format!("has no token of the id {} that config.json states as `score_id`", score.score_id);
    Err(TokenizerError::Model { path, problem }.into())
}

/// The version that a worker with these settings writes into its rows. Reads the checkpoint's files once
/// and loads nothing.
///
/// # Errors
/// [`ModelError`] when the folder, its files or the device can't be used.
pub fn served_version(settings: &ModelSettings) -> Result<String, ModelError> {
    let device = settings.device.open()?;
    let checkpoint = Checkpoint::open(Path::new(&settings.checkpoint))?;
    let kind = settings.dtype.resolve(checkpoint.stored_kind(), device);
    Ok(version_name(&checkpoint.digest()?.version, &settings.prompt, kind, settings.quantize))
}

/// `sha256:` and twelve digits of the checkpoint's digest, the prompt, and the type computed in,
/// joined by `+`, and how weights are quantised, where they are; a prompt of one's own goes in as eight digits of its own digest.
fn version_name(checkpoint: &str, prompt: &PromptChoice, kind: Kind, quantize: Quantize) -> String {
    let digits = |digest: &str, count| digest.chars().take(count).collect::<String>();
    let checkpoint = short_name(checkpoint);
    let prompt = match prompt {
        PromptChoice::Assess | PromptChoice::Arch => prompt.to_string(),
        PromptChoice::Text(text) => {
            let digest = Sha256::digest(text).iter().map(|byte| format!("{byte:02x}")).collect::<String>();
            format!("text-{}", digits(&digest, 8))
        }
    };
    let kind = match kind {
        Kind::Float => "f32",
        Kind::BFloat16 => "bf16",
        Kind::Half => "f16",
        _ => "other",
    };
    match quantize {
        Quantize::None => format!("{checkpoint}+{prompt}+{kind}"),
        quantize => format!("{checkpoint}+{prompt}+{kind}+{quantize}"),
    }
}

/// What the inference engine does about a torch error: split the batch, restart, or bisect.
fn scorer_error(batch: usize, error: &TchError) -> ScorerError {
    let reason = first_line(error);
    let lower = reason.to_lowercase();
    // torch has no error codes here, only texts: CUDA's and those of its CPU allocator.
    if ["out of memory", "not enough memory", "can't allocate memory", "cannot allocate memory"]
        .iter()
        .any(|text| lower.contains(text))
    {
        ScorerError::OutOfMemory { batch, reason }
    } else if lower.contains("cuda error") || lower.contains("device-side assert") {
        // Such an error stays with the process's CUDA context: every later call fails too.
        ScorerError::Device(reason)
    } else {
        ScorerError::Batch { batch, reason }
    }
}

#[cfg(test)]
mod tests;
