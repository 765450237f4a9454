//! `train_weights_after_3_steps.safetensors`: AdamW on one batch.

use crate::training::{assert_trained, batch, head, loss_settings, results, samples, trainable};
use roc4mllm::{
    model::{family::Family, passes::Passes},
    train::{forward::batch_losses, optimizer::clipping_scale},
};
use std::collections::BTreeMap;
use tch::Tensor;

#[test]
fn golden_train_steps() {
    let results = results();
    let run = &results.adamw;
    let (network, mut optimizer) = trainable(run);
    let weights = |network: &dyn Family| -> BTreeMap<String, Tensor> {
        let parameters = network.parameters().iter();
        parameters.map(|(name, tensor)| (name.to_owned(), tensor.detach().copy())).collect()
    };
    let start = weights(&network);
    let (batch, head, settings) = (batch(&samples()), head(), loss_settings(&run.weights));
    let losses = || batch_losses(&network, &batch, &head, &settings, &mut Passes::Kept).unwrap();
    for step in 0..run.steps() {
        let losses = losses();
        run.assert_loss(step, losses.terms().unwrap().loss);
        losses.total.backward();
        let scale = clipping_scale(optimizer.gradient_norm().unwrap(), run.clip.unwrap_or(0.0));
        optimizer.step(run.lr, scale).unwrap();
    }
    run.assert_loss(run.steps(), losses().terms().unwrap().loss);
    assert_trained(&weights(&network), &start, &results);
}
