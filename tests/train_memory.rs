//! What gradient checkpointing is for: memory.

mod support {
    pub mod training_step;
}

use std::{env, process::Command};
use support::training_step::{Trained, config, extra_memory};
use tch::Kind;

/// Set for the child process of the test: whether it checkpoints.
const CHILD: &str = "ROC4MLLM_TRAIN_MEMORY_CHILD";
const NAME: &str = "gradient_checkpointing_takes_less_memory_for_the_same_losses_and_gradients";
const MARK: &str = "measured: ";

#[test]
fn gradient_checkpointing_takes_less_memory_for_the_same_losses_and_gradients() {
    if let Ok(gradient_checkpointing) = env::var(CHILD) {
        return measure(gradient_checkpointing == "true");
    }
    // Each in a process of its own, where nothing else allocates.
    let run = |gradient_checkpointing: bool| {
        let output = Command::new(env::current_exe().unwrap())
            .args([NAME, "--exact", "--nocapture"])
            .env(CHILD, gradient_checkpointing.to_string())
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
        let (_, numbers) = text.split_once(MARK).unwrap_or_else(|| panic!("no figures in: {text}"));
        let numbers: Vec<f64> =
            numbers.lines().next().unwrap().split(' ').map(|number| number.parse().unwrap()).collect();
        <[f64; 3]>::try_from(numbers).unwrap()
    };
    let ([kept, loss, gradients], [recomputed, same_loss, same_gradients]) = (run(false), run(true));
    assert_eq!((loss, gradients), (same_loss, same_gradients));
    assert!(loss > 0.0 && gradients > 0.0);
    // Small enough to see, large enough that torch's own buffers don't count.
    assert!(kept > 100e6, "{kept} bytes of activations");
    assert!(recomputed <= 0.6 * kept, "{recomputed} of {kept} bytes");
}

/// A step of eight small layers.
fn measure(gradient_checkpointing: bool) {
    tch::set_num_threads(1);
    let trained = Trained::new(config(192, 512, 6, 8), Kind::Float);
    // Gradients are there before and after; only activations are measured.
    trained.step(&trained.embeddings(1, 8), &(2..6), gradient_checkpointing);
    let embeddings = trained.embeddings(4, 256);
    let mut loss = 0.0;
    let bytes = extra_memory(|| loss = trained.step(&embeddings, &(20..84), gradient_checkpointing));
    println!("\n{MARK}{bytes} {loss} {}", trained.gradients());
}
