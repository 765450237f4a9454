//! What a pickle of tensors is made of, and the few constructors that it may name.

use super::{PickleError, PickledTensor};
use std::rc::Rc;

/// The deepest nesting of tuples, lists and dictionaries; `torch.save` needs about five.
const DEEPEST: usize = 32;
/// The most dimensions of a tensor.
const MOST_DIMENSIONS: usize = 8;

#[derive(Clone, Debug)]
pub(super) enum Value {
    /// None, a float, or anything else that no tensor needs.
    Other,
    Bool,
    Integer(i64),
    Text(Rc<str>),
    Tuple(Rc<Nested<Vec<Value>>>),
    List(usize),
    Dict(Nested<Entries>),
    Constructor(Constructor),
    Storage(Rc<Storage>),
    Tensor(Rc<PickledTensor>),
}

pub(super) type Entries = Vec<(Value, Value)>;

/// A container and how deeply it is nested.
#[derive(Clone, Debug)]
pub(super) struct Nested<T> {
    pub depth: usize,
    pub list: T,
}

#[derive(Clone, Debug)]
pub(super) enum Constructor {
    OrderedDict,
    RebuildTensor,
    RebuildParameter,
    StorageClass(Rc<str>),
}

#[derive(Debug)]
pub(super) struct Storage {
    pub class: Rc<str>,
    pub key: Rc<str>,
    pub length: i64,
}

pub(super) fn empty_dict() -> Value {
    Value::Dict(Nested { depth: 1, list: Vec::new() })
}

pub(super) fn depth_around(items: &[Value]) -> Result<usize, String> {
    let inner = items.iter().map(|item| match item {
        Value::Tuple(tuple) => tuple.depth,
        Value::Dict(dict) => dict.depth,
        Value::List(depth) => *depth,
        _ => 0,
    });
    match inner.max().unwrap_or(0) + 1 {
        depth if depth <= DEEPEST => Ok(depth),
        _ => Err("its values are nested too deeply".into()),
    }
}

pub(super) fn constructor(module: &str, name: &str) -> Result<Value, PickleError> {
    Ok(Value::Constructor(match (module, name) {
        ("collections", "OrderedDict") => Constructor::OrderedDict,
        ("torch._utils", "_rebuild_tensor_v2") => Constructor::RebuildTensor,
        ("torch._utils", "_rebuild_parameter") => Constructor::RebuildParameter,
        ("torch", class) if class.ends_with("Storage") => Constructor::StorageClass(class.into()),
        _ => {
            let problem = format!("it holds a `{module}.{name}`, which is no plain tensor");
            return Err(PickleError::Foreign(problem));
        }
    }))
}

pub(super) fn storage(id: &Value) -> Result<Value, String> {
    if let Value::Tuple(parts) = id
        && let [
            Value::Text(kind),
            Value::Constructor(Constructor::StorageClass(class)),
            Value::Text(key),
            _,
            Value::Integer(length),
        ] = &parts.list[..]
        && &**kind == "storage"
        && *length >= 0
    {
        return Ok(Value::Storage(Rc::new(Storage {
            class: class.clone(),
            key: key.clone(),
            length: *length,
        })));
    }
    Err("it refers to something other than a storage".into())
}

pub(super) fn construct(constructor: &Value, arguments: &Value) -> Result<Value, String> {
    let (Value::Constructor(constructor), Value::Tuple(arguments)) = (constructor, arguments) else {
        return Err("it calls something other than a constructor".into());
    };
    match (constructor, &arguments.list[..]) {
        (Constructor::OrderedDict, []) => Ok(empty_dict()),
        (Constructor::RebuildParameter, [tensor @ Value::Tensor(_), ..]) => Ok(tensor.clone()),
        (
            Constructor::RebuildTensor,
            [Value::Storage(storage), Value::Integer(offset), Value::Tuple(shape), Value::Tuple(strides), ..],
        ) => {
            let (shape, strides) = (integers(shape)?, integers(strides)?);
            if *offset < 0 || shape.len() != strides.len() || shape.iter().chain(&strides).any(|&n| n < 0) {
                return Err("a tensor in it has an impossible shape".into());
            }
            Ok(Value::Tensor(Rc::new(PickledTensor {
                storage_class: storage.class.clone(),
                key: storage.key.clone(),
                storage_length: storage.length,
                offset: *offset,
                shape,
                strides,
            })))
        }
        _ => Err("it calls a constructor with the wrong arguments".into()),
    }
}

fn integers(tuple: &Nested<Vec<Value>>) -> Result<Vec<i64>, String> {
    if tuple.list.len() > MOST_DIMENSIONS {
        return Err(format!("a tensor in it has {} dimensions", tuple.list.len()));
    }
    let integer = |value: &Value| match value {
        Value::Integer(integer) => Ok(*integer),
        _ => Err("a shape in it is made of something other than integers".to_owned()),
    };
    tuple.list.iter().map(integer).collect()
}
