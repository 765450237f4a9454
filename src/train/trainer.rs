//! A training run from its beginning to the finished checkpoint folder.

use super::{
    dataset::{Dataset, Demands, Place},
    encode::Mismatch,
    error::TrainError,
    images::{ImageSource, PixelError, PixelLoader},
    lora::Lora,
    optimizer::AdamW,
    options::{TrainOptions, Trained},
    order::{Order, OrderSettings},
    output::OutputFolder,
    saving::{Changing, Saving},
    schedule::LearningRate,
    session::Session,
    step_metrics::{MetricsFile, StepMetrics},
    vocabulary::{Growth, grow_tensors},
};
use crate::{
    image::{Fit, ImageSettings, Preprocessor},
    labels::Sample,
    model::{
        ModelError,
        checkpoint::{
            Checkpoint, Role, Written, available_memory, copy_settings, expected_tensors, write_weights,
        },
        config::ModelConfig,
        device::use_threads,
        families::build_family,
        family::Family,
        parameters::Parameters,
        tokenizer::Tokenizer,
    },
};
use std::{
    collections::BTreeMap,
    path::Path,
    sync::{
        atomic::{AtomicBool, Ordering},
        mpsc::sync_channel,
    },
    thread,
};
use tch::{Kind, Tensor};

/// transformers begins another weight file where one would grow beyond this.
const MAX_FILE_BYTES: u64 = 10_000_000_000;

/// What to train on what, and where to put it.
pub struct TrainJob<'a> {
    /// Checkpoint folder that training starts from; left as it is.
    pub checkpoint: &'a Path,
    /// The score head that a plain checkpoint gets first.
    pub growth: Option<Growth>,
    pub samples: &'a [Sample],
    /// Where the samples' images are.
    pub images: &'a dyn ImageSource,
    pub image_settings: ImageSettings,
    /// Folder that the trained checkpoint appears in, whole; it must not exist.
    pub output: &'a Path,
    /// Whether to go on from the state that an unfinished run has saved for this output, if there is one.
    pub resume: bool,
    pub options: &'a TrainOptions,
}

/// What happens in a run, for whoever watches.
pub enum Event<'a> {
    /// Everything is loaded and checked; steps follow.
    Prepared {
        /// Samples that are trained on.
        samples: usize,
        /// Samples left out because questions and answers can't be told apart.
        masked: &'a [(Place, Mismatch)],
        /// Steps that were taken before the run was stopped.
        done: u64,
        /// Steps in all, these included.
        steps: u64,
        /// Images that the remaining steps see.
        images: u64,
        /// Numbers that are trained.
        trained: u64,
    },
    /// An image can't be read, and its sample is left out of the step.
    Skipped(&'a PixelError),
    /// A step is done.
    Step {
        metrics: &'a StepMetrics,
        /// The gradients' L2 norm before clipping.
        gradient_norm: f64,
        /// Images of the step, skipped ones included.
        images: u64,
    },
    /// What the run needs to go on from here is being saved.
    SavingState,
    /// The steps are done, and the checkpoint is being written.
    Saving,
}

/// How a finished run went.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TrainSummary {
    pub steps: u64,
    pub samples: usize,
    /// Samples left out because questions and answers can't be told apart.
    pub masked: usize,
    /// Times that a sample was left out because its image can't be read.
    pub skipped: u64,
    pub weight_bytes: u64,
}

/// Trains, and writes the checkpoint. Once `cancelled` is set, ends before the next step.
///
/// # Errors
/// [`TrainError`]; the output folder then doesn't appear.
pub fn train(
    job: &TrainJob<'_>,
    observe: &mut dyn FnMut(Event<'_>),
    cancelled: &AtomicBool,
) -> Result<TrainSummary, TrainError> {
    let options = job.options;
    options.check()?;
    let output = OutputFolder::create(job.output, job.resume)?;
    let mut run = Run::prepare(job, output.path())?;
    let changing = Changing { trained: &run.trained, optimizer: &mut run.session.optimizer };
    let mut saving = Saving::begin(job, output.path(), changing)?;
    let total = options.total_steps(run.order.steps_per_epoch());
    let done = saving.done.steps;
    let steps = (done + 1..=total).zip(run.order.steps_after(done));
    let images = steps.flat_map(|(_, batches)| batches).map(|batch| batch.len() as u64).sum();
    observe(Event::Prepared {
        samples: run.dataset.examples.len(),
        masked: &run.dataset.masked,
        done,
        steps: total,
        images,
        trained: run.session.optimizer.numbers(),
    });
    let mut metrics = MetricsFile::open(output.path(), done)?;
    run.take_steps(job, total, &mut metrics, &mut saving, observe, cancelled)?;

    observe(Event::Saving);
    let written = run.write(output.path())?;
    metrics.sync()?;
    output.finish()?;
    Ok(TrainSummary {
        steps: total,
        samples: run.dataset.examples.len(),
        masked: run.dataset.masked.len(),
        skipped: saving.done.skipped,
        weight_bytes: written.weight_bytes,
    })
}

/// Everything that a run needs, loaded and checked.
struct Run {
    session: Session,
    lora: Option<Lora>,
    /// What the optimizer changes, by name.
    trained: BTreeMap<String, Tensor>,
    dataset: Dataset,
    preprocessor: Preprocessor,
    order: Order,
    config: ModelConfig,
}

impl Run {
    /// Loads the checkpoint, whose settings go to `folder`, and checks samples against it.
    fn prepare(job: &TrainJob<'_>, folder: &Path) -> Result<Self, TrainError> {
        let options = job.options;
        let device = options.device.open()?;
        use_threads(options.threads);
        let checkpoint = Checkpoint::open(job.checkpoint)?;
        let kind = match options.dtype.resolve(checkpoint.stored_kind(), device) {
            // Gradients overflow f16.
            Kind::Half => Kind::BFloat16,
            kind => kind,
        };
        copy_settings(job.checkpoint, folder, Some(kind))?;
        let settings = match &job.growth {
            Some(growth) => {
                growth.write_settings(job.checkpoint, folder, &options.loss())?;
                folder
            }
            None => job.checkpoint,
        };
        let config = ModelConfig::read(settings)?;
        let named = || job.checkpoint.display().to_string();
        let head = config.score.clone().ok_or_else(|| ModelError::NoScoreTokens { checkpoint: named() })?;
        let tokenizer = Tokenizer::open(settings)?;
        let preprocessor = Preprocessor::open(settings)?.with_fit(Fit::Pad);
        let (model, made) = (config.vision.image_size, preprocessor.image_size());
        if usize::try_from(model) != Ok(made) {
            return Err(TrainError::InputSize { model, made });
        }
        let pad = i64::from(tokenizer.pad().unwrap_or(tokenizer.unknown()));
        let count = |positions: i64| usize::try_from(positions).unwrap_or(usize::MAX);
        let demands = Demands {
            head: head.clone(),
            pad,
            image_positions: count(config.image_positions()),
            max_positions: count(config.max_positions()),
            needs_targets: options.loss().needs_targets(),
        };
        let dataset = Dataset::new(job.samples, &tokenizer, &demands)?;

        let mut tensors = Parameters::load(&checkpoint, kind, device)?.into_tensors();
        grow_tensors(&config, &mut tensors).map_err(TrainError::torch(0, "growing the vocabulary"))?;
        let mut parameters = Parameters::new(tensors);
        let lora =
            options.lora().map(|settings| Lora::new(&settings, &parameters, options.seed)).transpose()?;
        if let Some(lora) = &lora {
            parameters = parameters.with_adapters(lora.tensors(), lora.scale());
        }
        let family = build_family(&config, parameters, &named())?;
        let trained = match &lora {
            Some(lora) => lora.tensors(),
            None => trained_parameters(family.as_ref(), &config, options.train),
        };
        check_memory(job.checkpoint, family.as_ref(), &trained)?;
        let handles = trained.iter().map(|(name, tensor)| (name.clone(), tensor.shallow_clone()));
        let optimizer =
            AdamW::new(handles, options.adamw()).map_err(TrainError::torch(0, "laying out the optimizer"))?;
        let settings = OrderSettings {
            batch_size: options.batch_size,
            accumulation: options.gradient_accumulation,
            shuffle: options.shuffle,
            seed: options.seed,
        };
        let order = match options.group_by_length {
            true => {
                let lengths = dataset.examples.iter().map(|example| example.ids.len());
                Order::grouped_by_length(settings, lengths.collect())
            }
            false => Order::new(settings, dataset.examples.len()),
        };
        let session = Session {
            family,
            optimizer,
            head,
            loss: options.loss(),
            pad,
            gradient_checkpointing: options.gradient_checkpointing,
        };
        Ok(Self { order, session, lora, trained, dataset, preprocessor, config })
    }

    /// Takes all steps that are left.
    fn take_steps(
        &mut self,
        job: &TrainJob<'_>,
        total: u64,
        metrics: &mut MetricsFile,
        saving: &mut Saving,
        observe: &mut dyn FnMut(Event<'_>),
        cancelled: &AtomicBool,
    ) -> Result<(), TrainError> {
        let Self { session, trained, dataset, preprocessor, order, .. } = self;
        let options = job.options;
        let examples = &dataset.examples[..];
        let loader = PixelLoader { source: job.images, preprocessor, settings: &job.image_settings };
        let rate = LearningRate::new(options.lr_schedule, options.learning_rate, total, options.warmup_ratio);
        let done = saving.done.steps;
        let steps = || (done + 1..=total).zip(order.steps_after(done));
        thread::scope(|scope| {
            // One step's pixels wait while another step is computed.
            let (sender, loaded) = sync_channel(1);
            let loading = steps();
            scope.spawn(move || {
                for (_, batches) in loading {
                    if sender.send(loader.load(examples, &batches)).is_err() {
                        break;
                    }
                }
            });
            for (step, batches) in steps() {
                if cancelled.load(Ordering::Relaxed) {
                    let saved =
                        saving.save(metrics, &Changing { trained, optimizer: &mut session.optimizer })?;
                    return Err(TrainError::Cancelled { step, saved });
                }
                let images = batches.iter().map(|batch| batch.len() as u64).sum();
                let (batches, unreadable) = loaded.recv().unwrap_or_default();
                for error in unreadable {
                    saving.done.skipped += 1;
                    match options.skip_unreadable && error.is_of_this_image_alone() {
                        true => observe(Event::Skipped(&error)),
                        false => return Err(TrainError::of_image(error)),
                    }
                }
                if batches.is_empty() {
                    return Err(TrainError::NoImages { step });
                }
                let learning_rate = rate.after(step - 1);
                let taken = session.step(step, &batches, learning_rate, options.max_grad_norm)?;
                let line = StepMetrics::new(step, learning_rate, &taken.terms);
                metrics.append(&line)?;
                observe(Event::Step { metrics: &line, gradient_norm: taken.gradient_norm, images });
                saving.done.steps = step;
                if saving.is_due(total) {
                    observe(Event::SavingState);
                    saving.save(metrics, &Changing { trained, optimizer: &mut session.optimizer })?;
                }
            }
            Ok(())
        })
    }

    /// Writes the weights, buffers included.
    fn write(&self, folder: &Path) -> Result<Written, TrainError> {
        let parameters = self.session.family.parameters();
        let root = parameters.root();
        let mut tensors = BTreeMap::new();
        for (name, expected) in expected_tensors(&self.config) {
            // A tied head is computed with as the embeddings, and they alone have been trained.
            let source = if expected.role == Role::Tied { "model.embed_tokens.weight" } else { &name };
            let Some(tensor) = root.find(source) else { continue };
            let tensor = match &self.lora {
                Some(lora) => lora.merged(&name, &tensor).map_err(TrainError::torch(0, "merging LoRA"))?,
                None => tensor.detach(),
            };
            tensors.insert(name, tensor);
        }
        Ok(write_weights(folder, &tensors, MAX_FILE_BYTES)?)
    }
}

/// The parameters that a run trains, by name: of the chosen parts, what is computed with.
fn trained_parameters(
    family: &dyn Family,
    config: &ModelConfig,
    trained: Trained,
) -> BTreeMap<String, Tensor> {
    let expected = expected_tensors(config);
    let is_weight = |name: &str| expected.get(name).is_some_and(|tensor| tensor.role == Role::Parameter);
    let parameters = family.parameters().iter();
    parameters
        .filter(|(name, _)| is_weight(name) && trained.includes(family.part(name)))
        .map(|(name, tensor)| (name.to_owned(), tensor.shallow_clone()))
        .collect()
}

/// Compares what weights, gradients and optimizer take with what the machine has; on a GPU, CUDA
/// itself reports when it is full.
fn check_memory(
    checkpoint: &Path,
    family: &dyn Family,
    trained: &BTreeMap<String, Tensor>,
) -> Result<(), TrainError> {
    let element = family.kind().elt_size_in_bytes() as u64;
    let numbers = |tensors: &mut dyn Iterator<Item = usize>| tensors.sum::<usize>() as u64;
    let weights = numbers(&mut family.parameters().iter().map(|(_, tensor)| tensor.numel())) * element;
    // A gradient, two moments in f32, and a master in f32 where weights are smaller.
    let each = element + 8 + if family.kind() == Kind::Float { 0 } else { 4 };
    let needed = weights + numbers(&mut trained.values().map(Tensor::numel)) * each;
    match available_memory() {
        Some(available) if needed > available && family.device() == tch::Device::Cpu => {
            let checkpoint = checkpoint.to_owned();
            Err(TrainError::Memory { checkpoint, needed: needed >> 20, available: available >> 20 })
        }
        _ => Ok(()),
    }
}
