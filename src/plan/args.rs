//! The command line of `roc4mllm plan`.

use super::device::{DeviceFigures, KnownGpu, parse_quantity};
use clap::{Args, ValueEnum};
use std::path::PathBuf;

/// Say what scoring an image costs, and how many images a device scores at once and a second
///
/// Everything follows from config.json's dimensions; no weight is read and nothing is measured. Exit codes:
/// 0 planned, 2 usage or a configuration that can't be used, 1 anything else.
#[derive(Args, Clone, Debug)]
pub struct PlanArgs {
    /// Checkpoint folder in Hugging Face layout, or its config.json alone
    #[arg(long, value_name = "DIR|FILE")]
    pub checkpoint: PathBuf,

    /// A GPU by its name: memory, bandwidth and FLOP/s of its data sheet (dense, 16-bit)
    #[arg(long, value_enum, value_name = "NAME")]
    pub gpu: Option<KnownGpu>,

    /// Memory of the device, such as 80GB or 79.2GiB
    #[arg(long, value_name = "BYTES", value_parser = bytes, required_unless_present = "gpu")]
    pub device_memory: Option<f64>,

    /// Memory bandwidth of the device, such as 3.35TB/s
    #[arg(long, value_name = "BYTES/S", value_parser = bytes_per_second, required_unless_present = "gpu")]
    pub bandwidth: Option<f64>,

    /// Dense matrix multiplication of the device in the type computed in, such as 989TFLOP/s
    #[arg(long, value_name = "FLOP/S", value_parser = flops, required_unless_present = "gpu")]
    pub flops: Option<f64>,

    /// Share of that FLOP/s that is taken to be reached
    #[arg(long, value_name = "SHARE", default_value_t = 0.6, value_parser = share)]
    pub efficiency: f64,

    /// Memory of the device that is not for the model: the driver's, and what others use
    #[arg(long, value_name = "BYTES", default_value = "1GiB", value_parser = bytes)]
    pub reserve: f64,

    /// Type of weights and activations
    #[arg(long, value_enum, default_value_t)]
    pub weights: WeightType,

    /// Tokens of the prompt before the image, computed once for all images
    #[arg(long, value_name = "TOKENS", default_value_t = 35, value_parser = tokens())]
    pub prefix: u64,

    /// Tokens of the prompt after the image
    #[arg(long, value_name = "TOKENS", default_value_t = 18, value_parser = tokens())]
    pub suffix: u64,

    /// Tokens of the answer, its end token included
    #[arg(long, value_name = "TOKENS", default_value_t = 14, value_parser = clap::value_parser!(u64).range(1..=100_000))]
    pub answer: u64,

    /// How the plan is written to standard output
    #[arg(long, value_enum, default_value_t)]
    pub format: PlanFormat,
}

/// How weights are stored on the device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum WeightType {
    /// Four bytes a weight
    F32,
    /// Two bytes a weight: bf16 or f16
    #[default]
    Bf16,
    /// One byte a weight of the layers of vision and language model, the rest in 16 bits
    Int8,
}

/// How the plan is written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum PlanFormat {
    /// For people
    #[default]
    Human,
    /// One JSON object
    Json,
}

impl PlanArgs {
    /// The device that is meant: one by name, with whatever else is given in the place of its figures.
    pub fn device(&self) -> DeviceFigures {
        let known = self.gpu.map(KnownGpu::figures);
        let figure = |given: Option<f64>, known: Option<f64>| given.or(known).unwrap_or(0.0);
        let own = self.device_memory.is_some() || self.bandwidth.is_some() || self.flops.is_some();
        let name = match &known {
            Some(gpu) if own => format!("{}, changed", gpu.name),
            Some(gpu) => gpu.name.clone(),
            None => "device".to_owned(),
        };
        DeviceFigures {
            name,
            memory: figure(self.device_memory, known.as_ref().map(|gpu| gpu.memory as f64)) as u64,
            bandwidth: figure(self.bandwidth, known.as_ref().map(|gpu| gpu.bandwidth)),
            flops: figure(self.flops, known.as_ref().map(|gpu| gpu.flops)),
        }
    }
}

fn tokens() -> clap::builder::RangedU64ValueParser<u64> {
    clap::value_parser!(u64).range(0..=100_000)
}

fn bytes(text: &str) -> Result<f64, String> {
    parse_quantity(text, &["B"])
}

fn bytes_per_second(text: &str) -> Result<f64, String> {
    parse_quantity(text, &["B/s", "Bps"])
}

fn flops(text: &str) -> Result<f64, String> {
    parse_quantity(text, &["FLOP/s", "FLOPS"])
}

fn share(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(share) if share > 0.0 && share <= 1.0 => Ok(share),
        _ => Err("give a share above 0 and at most 1, such as 0.6".into()),
    }
}
