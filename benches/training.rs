//! A training step as a fraction of the same machine's matrix multiplication, for one language layer of
//! the published model's dimensions with made-up weights; and what gradient checkpointing saves.

mod support {
    pub mod device;
    pub mod peak;
    pub mod results;
    pub mod timing;
    #[path = "../../tests/support/training_step.rs"]
    pub mod training_step;
}

use std::{env, process::Command};
use support::{
    device::Place,
    peak::{Peak, language_work},
    results::{Entry, record},
    training_step::{Trained, config, extra_memory},
};
use tch::Kind;

/// Rows of a step, and positions of text and image in each: those of the usual prompt and answer.
const BATCH: i64 = 8;
const TEXT: i64 = 64;
const IMAGE: i64 = 65;
/// Argument of the process that measures memory.
const MEASURE: &str = "--measure-memory=";

fn main() {
    let measured = env::args().find_map(|argument| argument.strip_prefix(MEASURE).map(str::to_owned));
    match measured {
        Some(gradient_checkpointing) => println!("{}", memory(gradient_checkpointing == "true")),
        None => {
            throughput();
            compare_memory();
        }
    }
}

/// Forward and backward pass of one layer.
fn throughput() {
    // `training_step` computes on the CPU alone.
    for (kind, peak) in Peak::of_each_type(Place::cpu()) {
        let config = config(4096, 11008, 32, 1);
        // The backward pass multiplies twice for each multiplication of the forward pass.
        let work = 3.0 * language_work(&config, TEXT + IMAGE, BATCH);
        let trained = Trained::new(config, kind);
        let embeddings = trained.embeddings(BATCH, TEXT + IMAGE).set_requires_grad(true);
        let image = TEXT / 2..TEXT / 2 + IMAGE;
        let name = match peak.dtype {
            "f32" => "training_peak_fraction".to_owned(),
            dtype => format!("training_peak_fraction_{dtype}"),
        };
        peak.compare(&name, "training", BATCH, work, || {
            trained.step(&embeddings, &image, false);
        });
    }
}

/// Eight layers, each a quarter as wide as the published model's.
fn compare_memory() {
    let [kept, recomputed] = [false, true].map(|gradient_checkpointing| {
        let output = Command::new(env::current_exe().expect("this program"))
            .arg(format!("{MEASURE}{gradient_checkpointing}"))
            .output()
            .expect("the program starts again");
        let text = String::from_utf8_lossy(&output.stdout);
        text.trim().parse::<f64>().unwrap_or_else(|_| panic!("no number of bytes: {text}")) / 1e6
    });
    println!(
        "activations of 8 layers, {BATCH} rows: {kept:.0} MB, {recomputed:.0} MB with gradient checkpointing: {:.2} of it",
        recomputed / kept
    );
    record(&[Entry {
        name: "gradient_checkpointing_memory",
        value: recomputed,
        unit: "MB",
        against: "activations kept: 8 language layers 1024 wide, 8 rows of 129 positions, f32",
        against_value: kept,
        ratio: recomputed / kept,
        runs: 1,
    }]);
}

/// Bytes of one step's activations at their most, in a process that does nothing else.
fn memory(gradient_checkpointing: bool) -> u64 {
    let trained = Trained::new(config(1024, 2752, 16, 8), Kind::Float);
    // Gradients are there before and after; only activations are measured.
    trained.step(&trained.embeddings(1, 8), &(2..6), gradient_checkpointing);
    assert!(trained.gradients() > 0.0, "nothing was trained");
    let embeddings = trained.embeddings(BATCH, TEXT + IMAGE);
    extra_memory(|| {
        trained.step(&embeddings, &(TEXT / 2..TEXT / 2 + IMAGE), gradient_checkpointing);
    })
}
