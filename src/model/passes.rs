//! A network's forward pass in parts, and the way back through them for its gradients.
//!
//! Gradient checkpointing (Chen et al. 2016, "Training Deep Nets with Sublinear Memory Cost"): between
//! forward and backward pass only the borders between parts of the network are kept, and what a part
//! computes inside is computed again when its gradients are due.

use tch::{TchError, Tensor};

type Compute<'a> = Box<dyn Fn(&Tensor) -> Result<Tensor, TchError> + 'a>;

/// How the parts of a network are run, and what is kept of them for the gradients.
pub enum Passes<'a> {
    /// All activations stay in memory until the backward pass.
    Kept,
    /// One part's activations at a time.
    Recomputed(Vec<Part<'a>>),
}

/// A part of the network that has run once, and will again.
pub struct Part<'a> {
    input: Tensor,
    /// Cut off from what computed it; collects the gradient of whatever used it.
    output: Tensor,
    compute: Compute<'a>,
}

impl<'a> Passes<'a> {
    /// With gradient checkpointing or without.
    pub fn new(gradient_checkpointing: bool) -> Self {
        if gradient_checkpointing { Self::Recomputed(Vec::new()) } else { Self::Kept }
    }

    /// Runs one part of the network: what `compute` gives for `input`.
    ///
    /// With gradient checkpointing an input that is no other part's output must be this part's alone,
    /// since [`backward`](Self::backward) goes on from it to what computed it.
    pub fn run(
        &mut self,
        input: &Tensor,
        compute: impl Fn(&Tensor) -> Result<Tensor, TchError> + 'a,
    ) -> Result<Tensor, TchError> {
        let output = compute(input)?;
        let Self::Recomputed(parts) = self else {
            return Ok(output);
        };
        // Nothing in a frozen part, or before it, wants a gradient.
        if !output.requires_grad() {
            return Ok(output);
        }
        let output = output.f_detach()?.f_set_requires_grad(true)?;
        parts.push(Part {
            input: input.shallow_clone(),
            output: output.shallow_clone(),
            compute: Box::new(compute),
        });
        Ok(output)
    }

    /// Adds the gradients of `loss`, a single value, to those of every parameter it depends on.
    pub fn backward(self, loss: &Tensor) -> Result<(), TchError> {
        loss.f_backward()?;
        let Self::Recomputed(mut parts) = self else {
            return Ok(());
        };
        while let Some(Part { input, output, compute }) = parts.pop() {
            let gradient = output.f_grad()?;
            drop(output);
            // Nothing that the loss depends on used it.
            if !gradient.defined() {
                continue;
            }
            let again = compute(&input)?;
            // The gradient of this product is `gradient` itself, in every bit.
            again.f_mul(&gradient)?.f_sum(again.kind())?.f_backward()?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::synthetic::noise;
    use tch::Kind;

    const WIDTH: i64 = 8;

    fn weights(count: u32) -> Vec<Tensor> {
        (0..count).map(|seed| noise(&[WIDTH, WIDTH], seed).set_requires_grad(true)).collect()
    }

    /// Layers with a residual, as a transformer has.
    fn loss(passes: &mut Passes<'static>, weights: &[Tensor], input: &Tensor) -> Tensor {
        let mut hidden = input.shallow_clone();
        for weight in weights {
            let weight = weight.shallow_clone();
            let layer = move |input: &Tensor| input.f_matmul(&weight)?.f_silu()?.f_add(input);
            hidden = passes.run(&hidden, layer).unwrap();
        }
        hidden.square().mean(hidden.kind())
    }

    fn gradients(tensors: &[Tensor]) -> Vec<Tensor> {
        tensors.iter().map(Tensor::grad).collect()
    }

    fn run(gradient_checkpointing: bool, kind: Kind) -> (Tensor, Vec<Tensor>) {
        let embedding = noise(&[3, WIDTH], 40).set_requires_grad(true);
        let mut trained = weights(5);
        let casts: Vec<Tensor> = trained.iter().map(|weight| weight.to_kind(kind)).collect();
        // Before the parts, as embeddings and vision model are.
        let input = embedding.sin().to_kind(kind);
        let mut passes = Passes::new(gradient_checkpointing);
        let loss = loss(&mut passes, &casts, &input);
        passes.backward(&loss).unwrap();
        trained.push(embedding);
        (loss.detach(), gradients(&trained))
    }

    #[test]
    fn losses_and_gradients_are_equal_in_every_bit() {
        for kind in [Kind::Float, Kind::BFloat16] {
            let (kept_loss, kept) = run(false, kind);
            let (recomputed_loss, recomputed) = run(true, kind);
            assert!(kept_loss.equal(&recomputed_loss));
            assert!(kept.iter().all(|gradient| gradient.abs().max().double_value(&[]) > 0.0));
            for (kept, recomputed) in kept.iter().zip(&recomputed) {
                assert!(kept.equal(recomputed), "{kind:?}");
            }
        }
    }

    #[test]
    fn gradients_of_several_batches_add_up() {
        let (weights, inputs) = (weights(3), [noise(&[2, WIDTH], 50), noise(&[4, WIDTH], 51)]);
        let mut sums = Vec::new();
        for gradient_checkpointing in [false, true] {
            let mut weights: Vec<Tensor> =
                weights.iter().map(|weight| weight.detach().copy().set_requires_grad(true)).collect();
            for input in &inputs {
                let mut passes = Passes::new(gradient_checkpointing);
                let loss = loss(&mut passes, &weights, input);
                passes.backward(&loss).unwrap();
            }
            sums.push(gradients(&weights));
            weights.iter_mut().for_each(Tensor::zero_grad);
        }
        assert!(sums[0].iter().zip(&sums[1]).all(|(kept, recomputed)| kept.equal(recomputed)));
    }

    #[test]
    fn frozen_parts_are_not_run_again() {
        let (frozen, trained) =
            (noise(&[WIDTH, WIDTH], 1), noise(&[WIDTH, WIDTH], 2).set_requires_grad(true));
        let runs = std::cell::Cell::new([0, 0]);
        let count = |part: usize| {
            let mut counts = runs.get();
            counts[part] += 1;
            runs.set(counts);
        };
        let mut passes = Passes::new(true);
        let hidden = passes
            .run(&noise(&[2, WIDTH], 3), |input| {
                count(0);
                input.f_matmul(&frozen)
            })
            .unwrap();
        let output = passes
            .run(&hidden, |input| {
                count(1);
                input.f_matmul(&trained)
            })
            .unwrap();
        passes.backward(&output.sum(Kind::Float)).unwrap();
        assert_eq!(runs.get(), [1, 2]);
        assert!(trained.grad().defined());
    }

    #[test]
    fn what_the_loss_does_not_use_is_left_alone() {
        let weight = noise(&[WIDTH, WIDTH], 1).set_requires_grad(true);
        let mut passes = Passes::new(true);
        let used = passes.run(&noise(&[2, WIDTH], 3), |input| input.f_matmul(&weight)).unwrap();
        let _unused = passes.run(&used, |input| input.f_matmul(&weight)).unwrap();
        passes.backward(&used.sum(Kind::Float)).unwrap();
        assert!(weight.grad().defined());
    }
}
