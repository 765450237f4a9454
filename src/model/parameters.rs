//! A model's weights by their checkpoint names, and the layers that are built from them.

use super::{
    checkpoint::{Checkpoint, Role},
    device::Quantize,
    error::{ModelError, first_line},
    layers::{Kernel, LayerNorm, Linear, LowRank},
    onednn,
    quantize::{Int8, W8a8, is_quantized},
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
    inference: Option<Inference>,
}

/// What linear maps that are never trained compute with.
#[derive(Clone, Copy)]
struct Inference {
    quantize: Quantize,
    kind: Kind,
    device: Device,
}

impl Parameters {
    pub fn new(tensors: BTreeMap<String, Tensor>) -> Self {
        Self { tensors, adapter_scale: 1.0, inference: None }
    }

    /// Has linear maps hold copies of their weights that are laid out, or quantised, for speed. Changes of
    /// the parameters no longer reach those, so that nothing can be trained.
    pub fn for_inference(mut self, quantize: Quantize, kind: Kind, device: Device) -> Self {
        self.inference = Some(Inference { quantize, kind, device });
        self
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
        Self::load_but(checkpoint, kind, device, |_, _| false)
    }

    /// As [`Self::load`], and [`Self::for_inference`]. Weights that are quantised stay as they are stored
    /// until then, so that no copy of them in `kind` is ever in memory.
    ///
    /// # Errors
    /// As [`Self::load`], and [`ModelError::Quantize`] where the device has no such arithmetic.
    pub fn load_for_inference(
        checkpoint: &Checkpoint,
        kind: Kind,
        device: Device,
        quantize: Quantize,
    ) -> Result<Self, ModelError> {
        if quantize == Quantize::W8a8 && (device != Device::Cpu || kind == Kind::Half) {
            let reason = "runs on CPUs alone, in f32 or bf16; use `int8`, or the device `cpu`";
            return Err(ModelError::Quantize { quantize, reason });
        }
        let left =
            |name: &str, tensor: &Tensor| quantize != Quantize::None && is_quantized(name, &tensor.size());
        Ok(Self::load_but(checkpoint, kind, device, left)?.for_inference(quantize, kind, device))
    }

    /// Leaves what `left` says as it is stored.
    fn load_but(
        checkpoint: &Checkpoint,
        kind: Kind,
        device: Device,
        left: impl Fn(&str, &Tensor) -> bool,
    ) -> Result<Self, ModelError> {
        let mut tensors = checkpoint.tensors()?;
        for (name, tensor) in &mut tensors {
            if left(name, tensor) {
                continue;
            }
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
        Scope { parameters: self, prefix: String::new(), rows: None }
    }
}

/// The parameters whose names begin with one dotted prefix.
pub struct Scope<'a> {
    parameters: &'a Parameters,
    prefix: String,
    rows: Option<i64>,
}

impl Scope<'_> {
    /// The same scope, whose linear maps will mostly be given `rows` rows at once. For inference on a CPU it
    /// is worth a second copy of their weights to have them laid out for that.
    pub fn with_rows(&self, rows: i64) -> Self {
        Self { parameters: self.parameters, prefix: self.prefix.clone(), rows: Some(rows) }
    }

    /// Whether what is built here is never trained.
    pub fn is_for_inference(&self) -> bool {
        self.parameters.inference.is_some()
    }

    /// The scope `name` inside this one.
    pub fn child(&self, name: impl Display) -> Self {
        let prefix = format!("{}{name}.", self.prefix);
        Self { parameters: self.parameters, prefix, rows: self.rows }
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
        let weight = scope.tensor("weight")?;
        let kernel = scope.kernel(&weight)?;
        Ok(Linear { weight, bias: scope.find("bias"), adapter, kernel })
    }

    /// What the linear map of this scope computes with.
    fn kernel(&self, weight: &Tensor) -> Result<Kernel, ModelError> {
        let Some(Inference { quantize, kind, device }) = self.parameters.inference else {
            return Ok(Kernel::Plain);
        };
        let quantized = is_quantized(&format!("{}weight", self.prefix), &weight.size());
        let failed = |source| ModelError::Torch { doing: "quantizing the weights", source };
        match quantize {
            Quantize::W8a8 if quantized => W8a8::new(weight).map(Kernel::W8a8).map_err(failed),
            Quantize::Int8 if quantized => Int8::new(weight, kind, device).map(Kernel::Int8).map_err(failed),
            _ => Ok(self.exact(weight)),
        }
    }

    /// At full precision.
    fn exact(&self, weight: &Tensor) -> Kernel {
        if weight.device() != Device::Cpu || !tch::utils::has_mkldnn() {
            return Kernel::Plain;
        }
        let packed = match (weight.kind(), self.rows) {
            (Kind::Float | Kind::BFloat16, Some(rows)) => onednn::pack(weight, rows),
            // libtorch itself gives f32 to MKL, which on processors other than Intel's takes half as long
            // again for the few rows that a prompt is.
            (Kind::Float, None) => Ok(weight.shallow_clone()),
            _ => return Kernel::Plain,
        };
        match packed {
            Ok(packed) => Kernel::OneDnn(packed),
            // The weight itself will do, if not as fast.
            Err(error) => {
                tracing::debug!("{}: not laid out anew: {}", self.prefix, first_line(&error));
                Kernel::Plain
            }
        }
    }

    /// `name.weight` and `name.bias`.
    pub fn layer_norm(&self, name: &str, eps: f64) -> Result<LayerNorm, ModelError> {
        let scope = self.child(name);
        Ok(LayerNorm { weight: scope.tensor("weight")?, bias: scope.tensor("bias")?, eps })
    }
}
