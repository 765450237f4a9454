//! AdamW (Loshchilov and Hutter 2019) over named parameters.

use std::collections::BTreeMap;
use tch::{Kind, TchError, Tensor};

/// What AdamW does beside following the learning rate.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamWSettings {
    /// Decay of the gradients' mean.
    pub beta1: f64,
    /// Decay of the squared gradients' mean.
    pub beta2: f64,
    pub epsilon: f64,
    /// Share of a weight that is taken off it at a learning rate of 1. Vectors are spared: biases and
    /// the weights of norms, as in transformers' `Trainer`.
    pub weight_decay: f64,
}

/// The optimizer and all that it remembers, in f32 whatever the parameters are.
pub struct AdamW {
    settings: AdamWSettings,
    slots: BTreeMap<String, Slot>,
    steps: u64,
}

struct Slot {
    /// What the network computes with.
    parameter: Tensor,
    /// The value that steps add up in, where the parameter is too coarse for them.
    master: Option<Tensor>,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    /// Gradients of earlier batches of the step, where the parameter's own type is too coarse to add
    /// them up in.
    gradient: Option<Tensor>,
}

impl AdamW {
    /// For parameters by name, from which it asks gradients.
    pub fn new(
        parameters: impl IntoIterator<Item = (String, Tensor)>,
        settings: AdamWSettings,
    ) -> Result<Self, TchError> {
        let slot = |(name, parameter): (String, Tensor)| {
            let zeros = || Tensor::f_zeros(parameter.size(), (Kind::Float, parameter.device()));
            let master = match parameter.kind() {
                Kind::Float => None,
                _ => Some(parameter.f_detach()?.f_to_kind(Kind::Float)?),
            };
            let (exp_avg, exp_avg_sq) = (zeros()?, zeros()?);
            let parameter = parameter.f_set_requires_grad(true)?;
            Ok((name, Slot { parameter, master, exp_avg, exp_avg_sq, gradient: None }))
        };
        let slots = parameters.into_iter().map(slot).collect::<Result<_, TchError>>()?;
        Ok(Self { settings, slots, steps: 0 })
    }

    /// How many numbers it trains.
    pub fn numbers(&self) -> u64 {
        self.slots.values().map(|slot| slot.parameter.numel() as u64).sum()
    }

    /// Steps taken so far.
    pub fn steps(&self) -> u64 {
        self.steps
    }

    /// Handles to everything that has to be saved beside [`Self::steps`] to go on later: by
    /// `exp_avg.NAME`, `exp_avg_sq.NAME` and, for a parameter that isn't f32, `master.NAME`.
    pub fn state(&self) -> BTreeMap<String, Tensor> {
        let of_slot = |(name, slot): (&String, &Slot)| {
            let master = slot.master.iter().map(|master| (format!("master.{name}"), master));
            master
                .chain([
                    (format!("exp_avg.{name}"), &slot.exp_avg),
                    (format!("exp_avg_sq.{name}"), &slot.exp_avg_sq),
                ])
                .map(|(name, tensor)| (name, tensor.shallow_clone()))
                .collect::<Vec<_>>()
        };
        self.slots.iter().flat_map(of_slot).collect()
    }

    /// Goes on from what [`Self::state`] gave after `steps` steps. Parameters that have a master are
    /// set to it; the others are the caller's to restore.
    ///
    /// # Errors
    /// [`TchError`] for a tensor that is missing or of another shape.
    pub fn restore(&mut self, steps: u64, state: &BTreeMap<String, Tensor>) -> Result<(), TchError> {
        let _no_grad = tch::no_grad_guard();
        for (name, target) in &mut self.state() {
            let saved = state.get(name).filter(|saved| saved.size() == target.size());
            target
                .f_copy_(saved.ok_or_else(|| TchError::Shape(format!("`{name}` is not as it was saved")))?)?;
        }
        for slot in self.slots.values_mut() {
            if let Some(master) = &slot.master {
                slot.parameter.f_copy_(master)?;
            }
        }
        self.steps = steps;
        Ok(())
    }

    /// To be called after each backward pass of a step but the last: where the parameters' type is too
    /// coarse to add gradients up in, moves them to where it isn't.
    pub fn accumulate(&mut self) -> Result<(), TchError> {
        let _no_grad = tch::no_grad_guard();
        for slot in self.slots.values_mut() {
            let mut gradient = slot.parameter.f_grad()?;
            if !gradient.defined() || gradient.kind() == Kind::Float {
                continue;
            }
            let wide = gradient.f_to_kind(Kind::Float)?;
            slot.gradient = Some(match slot.gradient.take() {
                Some(mut sum) => sum.f_add_(&wide)?,
                None => wide,
            });
            let _ = gradient.f_zero_()?;
        }
        Ok(())
    }

    /// The L2 norm of all gradients together, in the order of the names.
    pub fn gradient_norm(&self) -> Result<f64, TchError> {
        let _no_grad = tch::no_grad_guard();
        let mut norms = Vec::new();
        for slot in self.slots.values() {
            norms.extend(slot.gradient()?.map(|gradient| gradient.f_norm()).transpose()?);
        }
        match norms.is_empty() {
            true => Ok(0.0),
            false => Tensor::f_stack(&norms, 0)?.f_norm()?.f_double_value(&[]),
        }
    }

    /// One step along the gradients, each multiplied by `scale`, and then forgets them.
    ///
    /// A parameter that the loss doesn't depend on has a gradient of 0: whether it had others before
    /// decides whether it moves, and not whether the run was stopped in between.
    pub fn step(&mut self, learning_rate: f64, scale: f64) -> Result<(), TchError> {
        let _no_grad = tch::no_grad_guard();
        self.steps += 1;
        let AdamWSettings { beta1, beta2, epsilon, weight_decay } = self.settings;
        let steps = self.steps as f64;
        let step_size = learning_rate / (1.0 - beta1.powf(steps));
        let root_correction = (1.0 - beta2.powf(steps)).sqrt();
        for slot in self.slots.values_mut() {
            let gradient = match slot.gradient()? {
                Some(gradient) => gradient.f_mul_scalar(scale)?,
                None => slot.exp_avg.f_zeros_like()?,
            };
            let decays = weight_decay != 0.0 && slot.parameter.dim() > 1;
            let value = slot.master.as_mut().unwrap_or(&mut slot.parameter);
            if decays {
                let _ = value.f_mul_scalar_(1.0 - learning_rate * weight_decay)?;
            }
            let mean = &mut slot.exp_avg;
            let _ = mean.f_mul_scalar_(beta1)?.f_add_(&gradient.f_mul_scalar(1.0 - beta1)?)?;
            let squares = &mut slot.exp_avg_sq;
            let square = gradient.f_square()?.f_mul_scalar_(1.0 - beta2)?;
            let _ = squares.f_mul_scalar_(beta2)?.f_add_(&square)?;
            let root = squares.f_sqrt()?.f_div_scalar_(root_correction)?.f_add_scalar_(epsilon)?;
            let _ = value.f_sub_(&mean.f_div(&root)?.f_mul_scalar_(step_size)?)?;
            if let Some(master) = &slot.master {
                slot.parameter.f_copy_(master)?;
            }
            slot.gradient = None;
            let mut gradient = slot.parameter.f_grad()?;
            if gradient.defined() {
                let _ = gradient.f_zero_()?;
            }
        }
        Ok(())
    }
}

impl Slot {
    /// All that the step's backward passes have left, in f32.
    fn gradient(&self) -> Result<Option<Tensor>, TchError> {
        let last = self.parameter.f_grad()?;
        let last = if last.defined() { Some(last.f_to_kind(Kind::Float)?) } else { None };
        match (&self.gradient, last) {
            (Some(earlier), Some(last)) => Ok(Some(earlier.f_add(&last)?)),
            (Some(earlier), None) => Ok(Some(earlier.shallow_clone())),
            (None, last) => Ok(last),
        }
    }
}

/// What gradients of norm `norm` are multiplied by so that it is `max_norm` at most, as torch's
/// `clip_grad_norm_` computes it; 1 where `max_norm` is 0, which turns clipping off.
pub fn clipping_scale(norm: f64, max_norm: f64) -> f64 {
    if max_norm == 0.0 { 1.0 } else { (max_norm / (norm + 1e-6)).min(1.0) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::synthetic::{distance, noise};

    const SETTINGS: AdamWSettings =
        AdamWSettings { beta1: 0.9, beta2: 0.999, epsilon: 1e-8, weight_decay: 0.1 };

    fn optimizer(parameters: &[(&str, &Tensor)], settings: AdamWSettings) -> AdamW {
        let parameters = parameters.iter().map(|(name, tensor)| ((*name).to_owned(), tensor.shallow_clone()));
        AdamW::new(parameters, settings).unwrap()
    }

    /// A backward pass that leaves `gradient`.
    fn backward(parameter: &Tensor, gradient: &Tensor) {
        (parameter * gradient.to_kind(parameter.kind())).sum(Kind::Float).backward();
    }

    #[test]
    fn steps_are_those_of_the_formula() {
        let (matrix, vector) =
            (Tensor::from_slice(&[0.5_f32, -1.0]).view([1, 2]), Tensor::from_slice(&[2.0_f32]));
        let mut adamw = optimizer(&[("matrix", &matrix), ("vector", &vector)], SETTINGS);
        let gradients = [[0.3_f64, -2.0, 0.1], [-0.7, 0.5, 1e-9]];
        let mut expected = [0.5_f64, -1.0, 2.0];
        let (mut mean, mut square) = ([0.0; 3], [0.0; 3]);
        for (step, gradients) in (1..).zip(gradients) {
            for index in 0..3 {
                let decay = if index < 2 { 1.0 - 0.01 * 0.1 } else { 1.0 };
                mean[index] = 0.9 * mean[index] + 0.1 * gradients[index];
                square[index] = 0.999 * square[index] + 0.001 * gradients[index].powi(2);
                let (mean, square) =
                    (mean[index] / (1.0 - 0.9_f64.powi(step)), square[index] / (1.0 - 0.999_f64.powi(step)));
                expected[index] = expected[index] * decay - 0.01 * mean / (square.sqrt() + 1e-8);
            }
            backward(&matrix, &Tensor::from_slice(&gradients[..2]).view([1, 2]));
            backward(&vector, &Tensor::from_slice(&gradients[2..]));
            adamw.step(0.01, 1.0).unwrap();
        }
        let found = Tensor::cat(&[matrix.view(-1), vector.view(-1)], 0).detach();
        assert!(distance(&found.to_kind(Kind::Double), &Tensor::from_slice(&expected)) < 1e-6);
        assert_eq!(adamw.steps(), 2);
    }

    #[test]
    fn coarse_parameters_follow_a_fine_master() {
        let start = noise(&[4, 5], 1);
        let (fine, coarse) =
            (start.to_kind(Kind::BFloat16).to_kind(Kind::Float), start.to_kind(Kind::BFloat16));
        let mut of_fine = optimizer(&[("weight", &fine)], SETTINGS);
        let mut of_coarse = optimizer(&[("weight", &coarse)], SETTINGS);
        for seed in 0..50 {
            let gradient = noise(&[4, 5], 10 + seed).to_kind(Kind::BFloat16).to_kind(Kind::Float);
            backward(&fine, &gradient);
            backward(&coarse, &gradient);
            // Most of these steps are smaller than a unit in the last place of bf16.
            of_fine.step(1e-4, 1.0).unwrap();
            of_coarse.step(1e-4, 1.0).unwrap();
        }
        let master = of_coarse.state()["master.weight"].shallow_clone();
        assert!(distance(&master, &fine) < 1e-6);
        assert!(coarse.equal(&master.to_kind(Kind::BFloat16)));
        assert!(!coarse.equal(&start.to_kind(Kind::BFloat16)));
    }

    #[test]
    fn gradients_of_several_batches_add_up_beyond_bf16() {
        let coarse = Tensor::zeros([1, 1], (Kind::BFloat16, tch::Device::Cpu));
        let mut adamw = optimizer(&[("weight", &coarse)], SETTINGS);
        // 256 + 1 has no bf16 of its own.
        for gradient in [256.0_f32, 1.0, 1.0] {
            backward(&coarse, &Tensor::from_slice(&[gradient]).view([1, 1]));
            adamw.accumulate().unwrap();
        }
        backward(&coarse, &Tensor::from_slice(&[1.0_f32]).view([1, 1]));
        assert_eq!(adamw.gradient_norm().unwrap(), 259.0);
        adamw.step(0.1, 1.0).unwrap();
        assert_eq!(adamw.gradient_norm().unwrap(), 0.0);
    }

    #[test]
    fn clipping_keeps_the_direction() {
        assert_eq!(clipping_scale(5.0, 0.0), 1.0);
        assert_eq!(clipping_scale(0.5, 1.0), 1.0);
        assert!((clipping_scale(5.0, 1.0) - 0.2).abs() < 1e-6);
    }

    #[test]
    fn a_restored_optimizer_goes_on_bit_for_bit() {
        let run = |restart: bool| {
            let parameter = noise(&[3, 3], 1).to_kind(Kind::BFloat16);
            let mut adamw = optimizer(&[("weight", &parameter)], SETTINGS);
            for seed in 0..6 {
                if restart && seed == 3 {
                    let saved =
                        adamw.state().iter().map(|(name, tensor)| (name.clone(), tensor.copy())).collect();
                    let steps = adamw.steps();
                    adamw = optimizer(&[("weight", &parameter.detach().zeros_like())], SETTINGS);
                    adamw.restore(steps, &saved).unwrap();
                }
                backward(&adamw.slots["weight"].parameter, &noise(&[3, 3], seed));
                adamw.step(0.01, 1.0).unwrap();
            }
            adamw.slots["weight"].parameter.detach()
        };
        assert!(run(true).equal(&run(false)));
    }

    #[test]
    fn another_state_is_refused() {
        let parameter = noise(&[3, 3], 1);
        let mut adamw = optimizer(&[("weight", &parameter)], SETTINGS);
        let message = adamw.restore(1, &BTreeMap::new()).unwrap_err().to_string();
        assert!(message.contains("exp_avg.weight"), "{message}");
    }
}
