//! A model's weights by their checkpoint names, and the layers that are built from them.

use super::{
    error::ModelError,
    layers::{LayerNorm, Linear},
};
use std::{collections::BTreeMap, fmt::Display};
use tch::Tensor;

/// Every parameter of a model, named as in its checkpoint.
///
/// The layers hold handles to these very tensors and consume none of them, so that training can
/// later turn on gradients, step and save by name.
pub struct Parameters {
    tensors: BTreeMap<String, Tensor>,
}

impl Parameters {
    pub fn new(tensors: BTreeMap<String, Tensor>) -> Self {
        Self { tensors }
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

    /// `name.weight`, and `name.bias` where there is one.
    pub fn linear(&self, name: &str) -> Result<Linear, ModelError> {
        let scope = self.child(name);
        Ok(Linear { weight: scope.tensor("weight")?, bias: scope.find("bias") })
    }

    /// `name.weight` and `name.bias`.
    pub fn layer_norm(&self, name: &str, eps: f64) -> Result<LayerNorm, ModelError> {
        let scope = self.child(name);
        Ok(LayerNorm { weight: scope.tensor("weight")?, bias: scope.tensor("bias")?, eps })
    }
}
