//! `roc4mllm train` with the golden hyperparameters: losses in `metrics.jsonl`, weights in its output.

use crate::{
    support,
    training::{
        DATA, RESULTS, TOLERANCE, assert_trained, batch, checkpoint, head, loss_settings, results, samples,
    },
};
use roc4mllm::{
    model::{checkpoint::Checkpoint, mplug_owl2::MplugOwl2, parameters::Parameters, passes::Passes},
    train::{forward::batch_losses, step_metrics::StepMetrics},
};
use std::process::Command;
use tch::{Device, Kind, Tensor};

#[test]
fn golden_train_command() {
    let results = results();
    let run = &results.adamw;
    let settings = loss_settings(&run.weights);
    let folder = tempfile::tempdir().unwrap();
    let output = folder.path().join("trained");
    let status = Command::new(env!("CARGO_BIN_EXE_roc4mllm"))
        .arg("train")
        .arg("--checkpoint")
        .arg(checkpoint())
        .arg("--data")
        .arg(support::path(DATA))
        .arg("--images")
        .arg(support::path("images"))
        .arg("--output")
        .arg(&output)
        .args(["--shuffle", "false", "--emd-reduction", "batch", "--lr-schedule", "constant"])
        .args(["--warmup-ratio", "0", "--optimizer", "adamw", "--train", "all", "--dtype", "f32"])
        .args(["--threads", "1"])
        .args(["--batch-size", &samples().len().to_string()])
        .args(["--max-steps", &run.steps().to_string()])
        .args(["--learning-rate", &run.lr.to_string()])
        .args(["--weight-decay", &run.weight_decay.to_string()])
        .args(["--max-grad-norm", &run.clip.unwrap_or(0.0).to_string()])
        .args(["--adam-beta1", &run.betas[0].to_string(), "--adam-beta2", &run.betas[1].to_string()])
        .args(["--adam-epsilon", &run.eps.to_string()])
        .args(["--l1-weight", &settings.l1_weight.to_string()])
        .args(["--ce-weight", &settings.ce_weight.to_string()])
        .args(["--emd-weight", &settings.emd_weight.to_string()])
        .output()
        .unwrap();
    assert!(status.status.success(), "{}", String::from_utf8_lossy(&status.stderr));

    let text = std::fs::read_to_string(output.join("metrics.jsonl")).unwrap();
    let lines: Vec<StepMetrics> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines.len(), run.steps(), "{RESULTS}: steps");
    for (step, line) in lines.iter().enumerate() {
        assert_eq!((line.step, line.learning_rate), (step as u64 + 1, run.lr));
        let loss = line.loss;
        run.assert_loss(step, loss);
        let terms = line.text
            + settings.l1_weight * line.l1.unwrap()
            + settings.ce_weight * line.ce.unwrap()
            + settings.emd_weight * line.emd.unwrap();
        assert!((terms - loss).abs() < 1e-5, "step {step}: {terms} in terms, {loss} in all");
    }
    // The first line's terms are those that the reference gives with one weight at a time.
    let alone = |weights: &str| {
        let name = format!("train/{weights}");
        results.losses.get(&name).copied().unwrap_or_else(|| panic!("{RESULTS}: losses: no {name}"))
    };
    let text_alone = alone("l1=0,ce=0,emd=0");
    for (name, found, golden) in [
        ("text", lines[0].text, text_alone),
        ("l1", lines[0].l1.unwrap(), alone("l1=1,ce=0,emd=0") - text_alone),
        ("emd", lines[0].emd.unwrap(), alone("l1=0,ce=0,emd=1") - text_alone),
    ] {
        assert!((found - golden).abs() <= TOLERANCE, "{RESULTS}: {name}: {found}, not {golden}");
    }

    let trained = Checkpoint::open(&output).unwrap();
    let (start, found) = (Checkpoint::open(&checkpoint()).unwrap(), trained.tensors().unwrap());
    assert_trained(&found, &start.tensors().unwrap(), &results);
    let _no_grad = tch::no_grad_guard();
    let parameters = Parameters::load(&trained, Kind::Float, Device::Cpu).unwrap();
    let network = MplugOwl2::new(trained.config().clone(), parameters).unwrap();
    let loss = batch_losses(&network, &batch(&samples()), &head(), &settings, &mut Passes::Kept);
    let loss = loss.unwrap().terms().unwrap().loss;
    run.assert_loss(run.steps(), loss);
    // The reference's loader asks for this entry.
    let bytes = std::fs::read(output.join("model.safetensors")).unwrap();
    let (_, metadata) = safetensors::SafeTensors::read_metadata(&bytes).unwrap();
    assert_eq!(metadata.metadata().as_ref().and_then(|entries| entries.get("format")).unwrap(), "pt");
    assert!(Tensor::read_safetensors(output.join("model.safetensors")).is_ok());
}
