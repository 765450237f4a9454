//! A model's weights by their checkpoint names, and the layers that are built from them.

use super::{
    checkpoint::{Checkpoint, Role},
    error::ModelError,
    layers::{LayerNorm, Linear, LowRank},
};
use std::{collections::BTreeMap, fmt::Display};
use tch::{Device, Kind, TchError, Tensor};

/// Every parameter of a model, named as in its checkpoint.
///
/// The layers hold handles to these very tensors and consume none of them, so that training can
/// later turn on gradients, step and save by name.
pub struct Parameters {
    tensors: BTreeMap<String, Tensor>,
    adapter_scale: f64,
}

impl Parameters {
    pub fn new(tensors: BTreeMap<String, Tensor>) -> Self {
        Self { tensors, adapter_scale: 1.0 }
    }

    /// Adds adapters: `NAME.lora_A.weight`, `[rank, inputs]`, and `NAME.lora_B.weight`,
    /// `[outputs, rank]`, change the linear map `NAME` by `scale` times their product.
    pub fn with_adapters(mut self, adapters: BTreeMap<String, Tensor>, scale: f64) -> Self {
        self.tensors.extend(adapters);
        self.adapter_scale = scale;
        self
    }

    /// All tensors of `checkpoint`, ready to be computed with as `kind` on `device`.
    ///
    /// What is stored as `kind` stays a view of its mapped file on a CPU. Buffers keep their type:
    /// those who use them round them.
    ///
    /// # Errors
    /// [`ModelError::Checkpoint`] for a tensor that can't be read, [`ModelError::Torch`] for one that
    /// can't be converted or copied, most likely for lack of memory.
    pub fn load(checkpoint: &Checkpoint, kind: Kind, device: Device) -> Result<Self, ModelError> {
        let mut tensors = checkpoint.tensors()?;
        for (name, tensor) in &mut tensors {
            let buffer =
                checkpoint.expected().get(name).is_some_and(|expected| expected.role == Role::Buffer);
            let kind = if buffer { tensor.kind() } else { kind };
            let ready =
                |tensor: &Tensor| -> Result<Tensor, TchError> { tensor.f_to_device(device)?.f_to_kind(kind) };
            *tensor =
                ready(tensor).map_err(|source| ModelError::Torch { doing: "placing the weights", source })?;
        }
        checkpoint.finish()?;
        Ok(Self::new(tensors))
    }

    /// All tensors, by name.
    pub fn into_tensors(self) -> BTreeMap<String, Tensor> {
        self.tensors
    }

    /// Names and tensors, sorted by name.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Tensor)> {
        self.tensors.iter().map(|(name, tensor)| (name.as_str(), tensor))
    }

    /// The outermost scope: names in it are whole checkpoint names.
    pub fn root(&self) -> Scope<'_> {
        Scope { parameters: self, prefix: String::new() }
    }
}

/// The parameters whose names begin with one dotted prefix.
pub struct Scope<'a> {
    parameters: &'a Parameters,
    prefix: String,
}

impl Scope<'_> {
    /// The scope `name` inside this one.
    pub fn child(&self, name: impl Display) -> Self {
        Self { parameters: self.parameters, prefix: format!("{}{name}.", self.prefix) }
    }

    /// A handle to one parameter, sharing its storage.
    pub fn find(&self, name: &str) -> Option<Tensor> {
        self.parameters.tensors.get(&format!("{}{name}", self.prefix)).map(Tensor::shallow_clone)
    }

    /// As [`Self::find`].
    ///
    /// # Errors
    /// [`ModelError::MissingTensor`] with the whole name.
    pub fn tensor(&self, name: &str) -> Result<Tensor, ModelError> {
        self.find(name).ok_or_else(|| ModelError::MissingTensor(format!("{}{name}", self.prefix)))
    }

    /// `name.weight`, and `name.bias` and an adapter where there are such.
    pub fn linear(&self, name: &str) -> Result<Linear, ModelError> {
        let scope = self.child(name);
        let adapter = match (scope.find("lora_A.weight"), scope.find("lora_B.weight")) {
            (Some(a), Some(b)) => Some(LowRank { a, b, scale: self.parameters.adapter_scale }),
            _ => None,
        };
        Ok(Linear { weight: scope.tensor("weight")?, bias: scope.find("bias"), adapter })
    }

    /// `name.weight` and `name.bias`.
    pub fn layer_norm(&self, name: &str, eps: f64) -> Result<LayerNorm, ModelError> {
        let scope = self.child(name);
        Ok(LayerNorm { weight: scope.tensor("weight")?, bias: scope.tensor("bias")?, eps })
    }
}
