//! What a run saves of itself, and when.

use super::{
    error::TrainError,
    optimizer::AdamW,
    options::TrainOptions,
    state::{Done, RunIdentity, StateError, States},
    step_metrics::MetricsFile,
    trainer::TrainJob,
};
use crate::model::checkpoint::{Checkpoint, hexadecimal};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::{collections::BTreeMap, io, path::Path};
use tch::{Kind, Tensor};

/// Options that leave the result as it is, but for rounding: a run may go on with others.
const IMMATERIAL: [&str; 4] = ["device", "gradient_checkpointing", "save_every", "threads"];

/// Saves a run's state every so many steps, and remembers how far the run is.
pub struct Saving {
    pub done: Done,
    /// Steps from one state to the next; 0 for none at all.
    every: u64,
    /// Steps that were done when the last state was saved.
    saved: u64,
    /// Nothing for a run that neither saves nor goes on.
    states: Option<(States, RunIdentity)>,
}

/// What a run changes: everything that its state consists of.
pub struct Changing<'a> {
    /// Trained parameters by name; the optimizer changes these very tensors.
    pub trained: &'a BTreeMap<String, Tensor>,
    pub optimizer: &'a mut AdamW,
}

impl Saving {
    /// For a run that writes to `folder`. Where the job says to resume, `changing` becomes what it was
    /// when the last state was saved.
    ///
    /// # Errors
    /// [`TrainError::State`] for a state of another run, or a folder that can't be used.
    pub fn begin(job: &TrainJob<'_>, folder: &Path, changing: Changing<'_>) -> Result<Self, TrainError> {
        let every = job.options.save_every;
        let mut saving = Self { done: Done::default(), every, saved: 0, states: None };
        if every == 0 && !job.resume {
            return Ok(saving);
        }
        let (states, run) = (States::open(folder)?, identity(job)?);
        // The output folder holds none that nobody asked to go on from.
        if let Some(state) = states.newest()? {
            state.check(&run)?;
            let tensors = changing.tensors();
            state.restore(&tensors)?;
            saving.done = state.done();
            saving.saved = saving.done.steps;
            let doing = "restoring the optimizer";
            changing
                .optimizer
                .restore(saving.done.steps, &tensors)
                .map_err(TrainError::torch(saving.done.steps, doing))?;
        }
        saving.states = Some((states, run));
        Ok(saving)
    }

    /// Whether a state is to be saved now, in a run of `total` steps. After the last it would be in vain.
    pub fn is_due(&self, total: u64) -> bool {
        let steps = self.done.steps;
        self.every > 0 && steps.is_multiple_of(self.every) && steps < total
    }

    /// Saves the state, metrics first: lines of its steps are never missing. Says whether there is one
    /// now to go on from.
    ///
    /// # Errors
    /// [`TrainError`], most likely for lack of space.
    pub fn save(&mut self, metrics: &MetricsFile, changing: &Changing<'_>) -> Result<bool, TrainError> {
        if self.every == 0 || self.done.steps == 0 {
            return Ok(false);
        }
        if let Some((states, run)) = self.states.as_ref().filter(|_| self.saved != self.done.steps) {
            metrics.sync()?;
            states.save(self.done, run, &changing.tensors())?;
            self.saved = self.done.steps;
        }
        Ok(true)
    }
}

impl Changing<'_> {
    /// Handles to all of it by names of their own. A parameter that has a master is left out, since it
    /// follows from that.
    fn tensors(&self) -> BTreeMap<String, Tensor> {
        let mut tensors = self.optimizer.state();
        let weights = self.trained.iter().filter(|(_, parameter)| parameter.kind() == Kind::Float);
        tensors.extend(weights.map(|(name, weight)| (format!("weights.{name}"), weight.detach())));
        tensors
    }
}

/// Everything that the result of a job depends on, but the images' content.
fn identity(job: &TrainJob<'_>) -> Result<RunIdentity, TrainError> {
    let mut run = options(job.options)?;
    run.insert("checkpoint".into(), Checkpoint::open(job.checkpoint)?.digest()?.version.into());
    let mut digest = Sha256::new();
    for sample in job.samples {
        digest.update(serde_json::to_vec(sample).map_err(unwritable)?);
        digest.update("\n");
    }
    run.insert("data".into(), format!("sha256:{}", hexadecimal(&digest.finalize())).into());
    if let Some(growth) = &job.growth {
        run.insert("num_tokens".into(), json!(growth.num_tokens));
        run.insert("min_score".into(), json!(growth.min_score));
        run.insert("max_score".into(), json!(growth.max_score));
    }
    Ok(run)
}

fn options(options: &TrainOptions) -> Result<RunIdentity, TrainError> {
    let Value::Object(mut named) = serde_json::to_value(options).map_err(unwritable)? else {
        return Ok(RunIdentity::new());
    };
    named.retain(|name, _| !IMMATERIAL.contains(&name.as_str()));
    Ok(named)
}

fn unwritable(error: serde_json::Error) -> TrainError {
    StateError::Io { path: "state.json".into(), doing: "writing", source: io::Error::from(error) }.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_that_change_nothing_are_no_part_of_a_run() {
        let known = options(&TrainOptions::default()).unwrap();
        assert_eq!(known["learning_rate"], json!(2e-5));
        let other = TrainOptions {
            device: "cuda:1".parse().unwrap(),
            gradient_checkpointing: true,
            save_every: 7,
            threads: 3,
            ..TrainOptions::default()
        };
        assert_eq!(options(&other).unwrap(), known);
        let other = TrainOptions { seed: 1, ..TrainOptions::default() };
        assert_ne!(options(&other).unwrap(), known);
        // Each of them is an option: none has been renamed.
        let all = serde_json::to_value(TrainOptions::default()).unwrap();
        assert!(IMMATERIAL.iter().all(|name| all.get(name).is_some()));
    }
}
