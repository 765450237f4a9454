//! What a training run is told beside its data, on the command line and in configuration alike.

use super::{
    error::TrainError,
    lora::{DEFAULT_TARGETS, LoraSettings},
    loss::{EmdReduction, LossSettings},
    optimizer::AdamWSettings,
    schedule::LrSchedule,
};
use crate::model::{
    device::{Device, Dtype},
    family::Part,
};
use clap::{ArgAction, Args, ValueEnum};
use serde::{Deserialize, Serialize};

/// Hyperparameters. Defaults are those of the reference's training script where it has them.
#[derive(Args, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TrainOptions {
    /// Images that go through the network together
    #[arg(long, value_name = "N", default_value_t = TrainOptions::default().batch_size)]
    pub batch_size: usize,

    /// Batches whose gradients are averaged for one step
    #[arg(long, value_name = "N", default_value_t = TrainOptions::default().gradient_accumulation)]
    pub gradient_accumulation: usize,

    /// Times that every sample is seen
    #[arg(long, value_name = "N", default_value_t = TrainOptions::default().epochs)]
    pub epochs: u64,

    /// Steps in all, instead of --epochs
    #[arg(long, value_name = "N")]
    pub max_steps: Option<u64>,

    /// Whether each epoch has an order of its own, or that of the file
    #[arg(long, value_name = "true|false", action = ArgAction::Set, default_value_t = TrainOptions::default().shuffle)]
    pub shuffle: bool,

    /// What all chance follows from
    #[arg(long, value_name = "N", default_value_t = TrainOptions::default().seed)]
    pub seed: u64,

    /// How weights follow gradients
    #[arg(long, value_enum, default_value_t)]
    pub optimizer: Optimizer,

    /// The highest learning rate
    #[arg(long, value_name = "RATE", default_value_t = TrainOptions::default().learning_rate)]
    pub learning_rate: f64,

    /// What the learning rate does after its warm-up
    #[arg(long, value_enum, default_value_t)]
    pub lr_schedule: LrSchedule,

    /// Share of the steps in which the learning rate rises from 0
    #[arg(long, value_name = "SHARE", default_value_t = TrainOptions::default().warmup_ratio)]
    pub warmup_ratio: f64,

    /// Share of a weight that each step takes off it, times the learning rate; biases and norms are spared
    #[arg(long, value_name = "SHARE", default_value_t = TrainOptions::default().weight_decay)]
    pub weight_decay: f64,

    /// Gradients are shortened to this L2 norm; 0 leaves them
    #[arg(long, value_name = "NORM", default_value_t = TrainOptions::default().max_grad_norm)]
    pub max_grad_norm: f64,

    /// AdamW's decay of the mean gradient
    #[arg(long, value_name = "SHARE", default_value_t = TrainOptions::default().adam_beta1)]
    pub adam_beta1: f64,

    /// AdamW's decay of the mean squared gradient
    #[arg(long, value_name = "SHARE", default_value_t = TrainOptions::default().adam_beta2)]
    pub adam_beta2: f64,

    /// What AdamW adds to the root of the mean squared gradient
    #[arg(long, value_name = "NUMBER", default_value_t = TrainOptions::default().adam_epsilon)]
    pub adam_epsilon: f64,

    /// Weight of the smooth-L1 between predicted and given score
    #[arg(long, value_name = "WEIGHT", default_value_t = TrainOptions::default().l1_weight)]
    pub l1_weight: f64,

    /// Weight of the cross-entropy against the rating distribution
    #[arg(long, value_name = "WEIGHT", default_value_t = TrainOptions::default().ce_weight)]
    pub ce_weight: f64,

    /// Weight of the earth mover's distance from the rating distribution
    #[arg(long, value_name = "WEIGHT", default_value_t = TrainOptions::default().emd_weight)]
    pub emd_weight: f64,

    /// What the earth mover's distance is averaged over before its root
    #[arg(long, value_enum, default_value_t)]
    pub emd_reduction: EmdReduction,

    /// What is trained; the rest stays as it is
    #[arg(long, value_enum, default_value_t)]
    pub train: Trained,

    /// With --train lora, the most dimensions in which a weight changes [default: 16]
    #[arg(long, value_name = "N")]
    pub lora_rank: Option<i64>,

    /// With --train lora, what its changes are multiplied by, times its rank [default: 32]
    #[arg(long, value_name = "NUMBER")]
    pub lora_alpha: Option<f64>,

    /// With --train lora, which linear maps change, by parts of their names [default: the language model's
    /// projections: q_proj,k_proj,v_proj,o_proj,gate_proj,up_proj,down_proj]
    #[arg(long, value_name = "NAME,..", value_delimiter = ',')]
    pub lora_targets: Option<Vec<String>>,

    /// Put samples of like length into a step, so that little is padded
    #[arg(long)]
    pub group_by_length: bool,

    /// Compute activations again for the gradients instead of keeping them: less memory, a third more work
    #[arg(long)]
    pub gradient_checkpointing: bool,

    /// Steps after each of which the run's state is saved, for --resume to go on from; 0: never
    #[arg(long, value_name = "N", default_value_t = TrainOptions::default().save_every)]
    pub save_every: u64,

    /// Where to compute: `cpu`, `cuda` or `cuda:N`
    #[arg(long, default_value_t)]
    pub device: Device,

    /// Number type of weights and activations: `auto` (as stored, but bf16 for f16), `f32` or `bf16`; steps
    /// always add up in f32
    #[arg(long, default_value_t)]
    pub dtype: Dtype,

    /// CPU threads of one tensor operation; 0 takes every core
    #[arg(long, value_name = "N", default_value_t = TrainOptions::default().threads)]
    pub threads: usize,

    /// Leave out samples whose image can't be read, and count them, instead of ending
    #[arg(long)]
    pub skip_unreadable: bool,
}

impl Default for TrainOptions {
    fn default() -> Self {
        Self {
            batch_size: 8,
            gradient_accumulation: 1,
            epochs: 1,
            max_steps: None,
            shuffle: true,
            seed: 42,
            optimizer: Optimizer::default(),
            learning_rate: 2e-5,
            lr_schedule: LrSchedule::default(),
            warmup_ratio: 0.03,
            weight_decay: 0.0,
            max_grad_norm: 1.0,
            adam_beta1: 0.9,
            adam_beta2: 0.999,
            adam_epsilon: 1e-8,
            l1_weight: 1.0,
            ce_weight: 1.0,
            emd_weight: 1.0,
            emd_reduction: EmdReduction::default(),
            train: Trained::default(),
            lora_rank: None,
            lora_alpha: None,
            lora_targets: None,
            group_by_length: false,
            gradient_checkpointing: false,
            save_every: 0,
            device: Device::default(),
            dtype: Dtype::default(),
            threads: 0,
            skip_unreadable: false,
        }
    }
}

/// How weights follow gradients.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Optimizer {
    /// Adam with decoupled weight decay
    #[default]
    Adamw,
}

/// What is trained.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
pub enum Trained {
    /// The whole network
    #[default]
    #[value(name = "all")]
    #[serde(rename = "all")]
    All,
    /// The visual abstractor and the language model; the vision model stays
    #[value(name = "abstractor+language")]
    #[serde(rename = "abstractor+language")]
    AbstractorLanguage,
    /// The language model alone
    #[value(name = "language")]
    #[serde(rename = "language")]
    Language,
    /// The visual abstractor alone
    #[value(name = "abstractor")]
    #[serde(rename = "abstractor")]
    Abstractor,
    /// Low-rank changes of the language model's projections, or of what --lora-targets names (LoRA); merged
    /// into the weights at the end
    #[value(name = "lora")]
    #[serde(rename = "lora")]
    Lora,
}

impl Trained {
    /// Whether this part's own parameters are trained.
    pub fn includes(self, part: Part) -> bool {
        match self {
            Self::All => true,
            Self::AbstractorLanguage => part != Part::Vision,
            Self::Language => part == Part::Language,
            Self::Abstractor => part == Part::Connector,
            Self::Lora => false,
        }
    }
}

impl TrainOptions {
    /// The part that concerns the losses.
    pub fn loss(&self) -> LossSettings {
        LossSettings {
            l1_weight: self.l1_weight,
            ce_weight: self.ce_weight,
            emd_weight: self.emd_weight,
            emd_reduction: self.emd_reduction,
        }
    }

    /// The part that concerns the optimizer.
    pub fn adamw(&self) -> AdamWSettings {
        AdamWSettings {
            beta1: self.adam_beta1,
            beta2: self.adam_beta2,
            epsilon: self.adam_epsilon,
            weight_decay: self.weight_decay,
        }
    }

    /// The part that concerns low-rank adapters, where they are what is trained.
    pub fn lora(&self) -> Option<LoraSettings> {
        let targets = || DEFAULT_TARGETS.map(String::from).to_vec();
        (self.train == Trained::Lora).then(|| LoraSettings {
            rank: self.lora_rank.unwrap_or(16),
            alpha: self.lora_alpha.unwrap_or(32.0),
            targets: self.lora_targets.clone().unwrap_or_else(targets),
        })
    }

    /// Steps in all, where an epoch has `steps_per_epoch`.
    pub fn total_steps(&self, steps_per_epoch: u64) -> u64 {
        self.max_steps.unwrap_or_else(|| steps_per_epoch.saturating_mul(self.epochs))
    }

    /// Checks every number by itself.
    ///
    /// # Errors
    /// [`TrainError::Option`] naming the first that can't be.
    pub fn check(&self) -> Result<(), TrainError> {
        let refuse = |option, given: &dyn std::fmt::Display, expected| {
            Err(TrainError::Option { option, given: given.to_string(), expected })
        };
        for (option, count) in [
            ("batch-size", self.batch_size as u64),
            ("gradient-accumulation", self.gradient_accumulation as u64),
            ("epochs", self.epochs),
            ("max-steps", self.max_steps.unwrap_or(1)),
        ] {
            if count == 0 {
                return refuse(option, &count, "at least 1");
            }
        }
        if !(self.learning_rate.is_finite() && self.learning_rate > 0.0) {
            return refuse("learning-rate", &self.learning_rate, "a number above 0");
        }
        if !(self.adam_epsilon.is_finite() && self.adam_epsilon > 0.0) {
            return refuse("adam-epsilon", &self.adam_epsilon, "a number above 0");
        }
        for (option, beta) in [("adam-beta1", self.adam_beta1), ("adam-beta2", self.adam_beta2)] {
            if !(0.0..1.0).contains(&beta) {
                return refuse(option, &beta, "a number from 0 to below 1");
            }
        }
        if !(0.0..=1.0).contains(&self.warmup_ratio) {
            return refuse("warmup-ratio", &self.warmup_ratio, "a number from 0 to 1");
        }
        for (option, number) in [
            ("weight-decay", self.weight_decay),
            ("max-grad-norm", self.max_grad_norm),
            ("l1-weight", self.l1_weight),
            ("ce-weight", self.ce_weight),
            ("emd-weight", self.emd_weight),
        ] {
            if !(number.is_finite() && number >= 0.0) {
                return refuse(option, &number, "a number of 0 or more");
            }
        }
        let given = [
            ("lora-rank", self.lora_rank.map(|rank| rank.to_string())),
            ("lora-alpha", self.lora_alpha.map(|alpha| alpha.to_string())),
            ("lora-targets", self.lora_targets.as_ref().map(|targets| targets.join(","))),
        ];
        for (option, given) in given {
            if let Some(given) = given.filter(|_| self.train != Trained::Lora) {
                return refuse(option, &given, "it together with `--train lora`");
            }
        }
        if let Some(alpha) = self.lora_alpha
            && !(alpha.is_finite() && alpha > 0.0)
        {
            return refuse("lora-alpha", &alpha, "a number above 0");
        }
        match self.dtype {
            Dtype::F16 => refuse("dtype", &self.dtype, "`f32` or `bf16`: gradients overflow f16"),
            Dtype::Auto | Dtype::F32 | Dtype::Bf16 => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_are_sound_and_survive_a_round_trip() {
        let options = TrainOptions::default();
        options.check().unwrap();
        let text = serde_json::to_string(&options).unwrap();
        assert_eq!(serde_json::from_str::<TrainOptions>(&text).unwrap(), options);
        assert!(serde_json::from_str::<TrainOptions>(r#"{"batch":1}"#).is_err());
    }

    #[test]
    fn each_impossible_number_is_named() {
        for (option, json) in [
            ("batch-size", r#"{"batch_size":0}"#),
            ("gradient-accumulation", r#"{"gradient_accumulation":0}"#),
            ("epochs", r#"{"epochs":0}"#),
            ("max-steps", r#"{"max_steps":0}"#),
            ("learning-rate", r#"{"learning_rate":0.0}"#),
            ("learning-rate", r#"{"learning_rate":-1.0}"#),
            ("adam-beta1", r#"{"adam_beta1":1.0}"#),
            ("adam-beta2", r#"{"adam_beta2":-0.1}"#),
            ("adam-epsilon", r#"{"adam_epsilon":0.0}"#),
            ("warmup-ratio", r#"{"warmup_ratio":1.5}"#),
            ("weight-decay", r#"{"weight_decay":-0.1}"#),
            ("max-grad-norm", r#"{"max_grad_norm":-1.0}"#),
            ("emd-weight", r#"{"emd_weight":-1.0}"#),
            ("dtype", r#"{"dtype":"f16"}"#),
            ("lora-rank", r#"{"lora_rank":8}"#),
            ("lora-targets", r#"{"lora_targets":["q_proj","v_proj"]}"#),
            ("lora-alpha", r#"{"train":"lora","lora_alpha":0.0}"#),
        ] {
            let options: TrainOptions = serde_json::from_str(json).unwrap();
            let message = options.check().unwrap_err().to_string();
            assert!(message.contains(&format!("--{option} ")), "{message}");
        }
    }
}
