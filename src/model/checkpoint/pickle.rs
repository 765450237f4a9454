//! The part of Python's pickle format that `torch.save` uses for a dictionary of tensors.
//!
//! Nothing is ever executed: a pickle may only name the few constructors below, and everything else
//! is an error. Values share their parts, so that no input can take more than a small multiple of its
//! own size, and nesting is bounded, so that none can exhaust the stack.

mod machine;
mod value;

use machine::Machine;
use std::{
    collections::{BTreeMap, btree_map::Entry},
    rc::Rc,
};
use value::Value;

/// One entry of the pickled dictionary.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct PickledTensor {
    /// `FloatStorage` and the like: the element type.
    pub storage_class: Rc<str>,
    /// The name of the archive's record that holds the elements.
    pub key: Rc<str>,
    /// Elements in the storage.
    pub storage_length: i64,
    /// Of the first element, in elements.
    pub offset: i64,
    pub shape: Vec<i64>,
    pub strides: Vec<i64>,
}

/// A pickle that gives no tensors: what is wrong with it, for a message that names the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum PickleError {
    /// It is no pickle that Python could have written whole.
    Damaged(String),
    /// It holds something other than a dictionary of tensors.
    Foreign(String),
}

impl From<String> for PickleError {
    fn from(problem: String) -> Self {
        Self::Damaged(problem)
    }
}

impl From<&str> for PickleError {
    fn from(problem: &str) -> Self {
        Self::Damaged(problem.into())
    }
}

/// Reads a pickled dictionary from names to tensors; other values in it are left out.
///
/// # Errors
/// [`PickleError`] for anything else.
pub(super) fn read_tensors(pickle: &[u8]) -> Result<BTreeMap<Rc<str>, PickledTensor>, PickleError> {
    let Value::Dict(entries) = Machine::new(pickle).run()? else {
        return Err(PickleError::Foreign("it holds no dictionary of tensors".into()));
    };
    let mut tensors = BTreeMap::new();
    for (name, value) in entries.list {
        match (name, value) {
            (Value::Text(name), Value::Tensor(tensor)) => match tensors.entry(name) {
                Entry::Vacant(place) => drop(place.insert(Rc::unwrap_or_clone(tensor))),
                Entry::Occupied(place) => return Err(format!("it holds `{}` twice", place.key()).into()),
            },
            (Value::Text(name), Value::Dict(_)) => {
                let problem = format!("`{name}` in it is a dictionary of its own (a training checkpoint?)");
                return Err(PickleError::Foreign(problem));
            }
            _ => {}
        }
    }
    Ok(tensors)
}

#[cfg(test)]
mod tests;
