//! A model's weights by their checkpoint names, and the layers that are built from them.

use super::{
    checkpoint::{Checkpoint, Mappings, Role, is_layer_weight},
    device::Quantize,
    error::{ModelError, first_line},
    layers::{Kernel, LayerNorm, Linear, LowRank},
    onednn,
    quantize::{Int8, W8a8},
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
    mappings: Mappings,
}

/// What linear maps that are never trained compute with.
#[derive(Clone, Copy)]
pub struct Inference {
    /// The type of what goes in and comes out, and of weights that are not quantised.
    pub kind: Kind,
    /// Where the weights are, and where everything is computed.
    pub device: Device,
    pub quantize: Quantize,
    /// Whether the language model's weights are packed; on CPUs alone.
    pub pack: bool,
}

impl Parameters {
    pub fn new(tensors: BTreeMap<String, Tensor>) -> Self {
        Self { tensors, adapter_scale: 1.0, inference: None, mappings: Mappings::default() }
    }

    /// Has linear maps hold copies of their weights that are laid out, or quantised, for speed. Changes of
    /// the parameters no longer reach those, so that nothing can be trained.
    pub fn for_inference(mut self, inference: Inference) -> Self {
        self.inference = Some(inference);
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

    /// As [`Self::load`], and [`Self::for_inference`]. Weights that are quantised or packed stay as they are
    /// stored until then, so that they are never in memory twice.
    ///
    /// # Errors
    /// As [`Self::load`], and [`ModelError::Quantize`] where the device has no such arithmetic.
    pub fn load_for_inference(checkpoint: &Checkpoint, inference: Inference) -> Result<Self, ModelError> {
        let Inference { kind, device, quantize, pack } = inference;
        if quantize == Quantize::W8a8 && (device != Device::Cpu || kind == Kind::Half) {
            let reason = "runs on CPUs alone, in f32 or bf16; use `int8`, or the device `cpu`";
            return Err(ModelError::Quantize { quantize, reason });
        }
        let copied = quantize != Quantize::None || pack && device == Device::Cpu;
        let left = |name: &str, tensor: &Tensor| copied && is_layer_weight(name, &tensor.size());
        Ok(Self::load_but(checkpoint, kind, device, left)?.for_inference(inference))
    }

    /// Leaves what `left` says as it is stored.
    fn load_but(
        checkpoint: &Checkpoint,
        kind: Kind,
        device: Device,
        left: impl Fn(&str, &Tensor) -> bool,
    ) -> Result<Self, ModelError> {
        let mut tensors = checkpoint.tensors()?;
        let mappings = checkpoint.mappings();
        for (name, tensor) in &mut tensors {
            if left(name, tensor) {
                continue;
            }
            let buffer =
                checkpoint.expected().get(name).is_some_and(|expected| expected.role == Role::Buffer);
            let kind = if buffer { tensor.kind() } else { kind };
            let ready =
                |tensor: &Tensor| -> Result<Tensor, TchError> { tensor.f_to_device(device)?.f_to_kind(kind) };
            let placed =
                ready(tensor).map_err(|source| ModelError::Torch { doing: "placing the weights", source })?;
            if placed.data_ptr() != tensor.data_ptr() {
                mappings.give_back(tensor);
            }
            *tensor = placed;
        }
        checkpoint.finish()?;
        Ok(Self { mappings, ..Self::new(tensors) })
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

    /// Whether the language model's weights are to be packed.
    pub fn packs(&self) -> bool {
        self.parameters.inference.is_some_and(|inference| inference.pack)
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
        let (weight, kernel) = scope.kernel(scope.tensor("weight")?)?;
        Ok(Linear { weight, bias: scope.find("bias"), adapter, kernel })
    }

    /// What the linear map of this scope computes with, and its weight: as it is `stored` where the kernel
    /// has a copy of it.
    fn kernel(&self, stored: Tensor) -> Result<(Tensor, Kernel), ModelError> {
        let Some(Inference { kind, device, quantize, .. }) = self.parameters.inference else {
            return Ok((stored, Kernel::Plain));
        };
        let in_layer = is_layer_weight(&format!("{}weight", self.prefix), &stored.size());
        let failed = |doing| move |source| ModelError::Torch { doing, source };
        let quantizing = failed("quantizing the weights");
        let kernel = match quantize {
            Quantize::W8a8 if in_layer => Kernel::W8a8(W8a8::new(&stored).map_err(quantizing)?),
            Quantize::Int8 if in_layer => Kernel::Int8(Int8::new(&stored, kind, device).map_err(quantizing)?),
            _ => {
                let weight = stored.f_to_kind(kind).map_err(failed("placing the weights"))?;
                match self.exact(&weight) {
                    Kernel::Packed(packed) => Kernel::Packed(packed),
                    kernel => return Ok((weight, kernel)),
                }
            }
        };
        self.parameters.mappings.give_back(&stored);
        Ok((stored, kernel))
    }

    /// At full precision.
    fn exact(&self, weight: &Tensor) -> Kernel {
        if weight.device() != Device::Cpu || !tch::utils::has_mkldnn() {
            return Kernel::Plain;
        }
        match (weight.kind(), self.rows) {
            (Kind::Float | Kind::BFloat16, Some(rows)) => match onednn::pack(weight, rows) {
                Ok(packed) => Kernel::Packed(packed),
                // The weight itself will do, if not as fast.
                Err(error) => {
                    tracing::debug!("{}: not laid out anew: {}", self.prefix, first_line(&error));
                    Kernel::Plain
                }
            },
            // libtorch itself gives f32 to MKL, which on processors other than Intel's takes half as long
            // again for the few rows that a prompt is.
            (Kind::Float, None) => Kernel::OneDnn,
            _ => Kernel::Plain,
        }
    }

    /// `name.weight` and `name.bias`.
    pub fn layer_norm(&self, name: &str, eps: f64) -> Result<LayerNorm, ModelError> {
        let scope = self.child(name);
        Ok(LayerNorm { weight: scope.tensor("weight")?, bias: scope.tensor("bias")?, eps })
    }
}
