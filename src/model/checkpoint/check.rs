//! What the files hold against what the network has.

use super::{
    error::{CheckpointError, TensorProblem},
    expected::ExpectedTensor,
    index::TensorIndex,
};
use std::{collections::BTreeMap, mem::discriminant, path::Path};

/// One tensor that is not as it should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    pub name: String,
    pub problem: TensorProblem,
}

/// Every problem: shapes and types first, since a wrong `config.json` shows there most plainly, then
/// what is missing, then what is too much.
pub(super) fn problems(index: &TensorIndex, expected: &BTreeMap<String, ExpectedTensor>) -> Vec<Problem> {
    let mut problems = Vec::new();
    let mut found = |name: &str, problem| problems.push(Problem { name: name.to_owned(), problem });
    for (name, stored) in &index.tensors {
        let Some(expected) = expected.get(name) else { continue };
        if expected.shape != stored.shape {
            let (expected, shape) = (expected.shape.clone(), stored.shape.clone());
            found(name, TensorProblem::Shape { expected, found: shape });
        } else if stored.dtype.kind().is_none() {
            found(name, TensorProblem::Dtype { found: stored.dtype.to_string() });
        }
    }
    for (name, expected) in expected {
        if !expected.role.may_be_absent() && !index.tensors.contains_key(name) {
            found(name, TensorProblem::Missing { expected: expected.shape.clone() });
        }
    }
    for (name, stored) in &index.tensors {
        if !expected.contains_key(name) {
            found(name, TensorProblem::Unexpected { found: stored.shape.clone() });
        }
    }
    problems
}

/// The first problem as an error that counts those like it.
pub(super) fn first_error(
    folder: &Path,
    index: &TensorIndex,
    problems: Vec<Problem>,
) -> Option<CheckpointError> {
    let mut problems = problems.into_iter();
    let first = problems.next()?;
    let others =
        problems.filter(|other| discriminant(&other.problem) == discriminant(&first.problem)).count();
    let path = match index.tensors.get(&first.name) {
        Some(stored) => index.files[stored.file].path.clone(),
        None => folder.to_owned(),
    };
    Some(CheckpointError::Tensor { path, name: first.name, problem: first.problem, others })
}
