//! What the model would say next, wherever it is asked.

use super::GreedyOptions;
use crate::model::{family::Family, transfer::read_back};
use tch::{Kind, TchError, Tensor};

/// The likeliest token behind one position.
pub struct Choice {
    pub token: i64,
    /// That token's logit.
    pub logit: f64,
    /// The last logits, which the score head reads where the score token is chosen.
    pub bins: Vec<f32>,
}

/// The choices behind every position of `hidden`, `[rows, count, hidden]`, a list a row.
///
/// The one place of a pass that waits for the device: everything comes over in one copy.
pub fn choose(
    family: &dyn Family,
    hidden: &Tensor,
    options: &GreedyOptions,
) -> Result<Vec<Vec<Choice>>, TchError> {
    let logits = family.logits(hidden)?;
    let (rows, count, vocabulary) = logits.size3()?;
    let (logit, token) = logits.f_max_dim(-1, true)?;
    let bins = logits.f_narrow(-1, vocabulary - options.bins, options.bins)?;
    let columns = [token, logit, bins].map(|column| column.f_to_kind(Kind::Double));
    let columns = columns.into_iter().collect::<Result<Vec<_>, _>>()?;
    let values = read_back(&Tensor::f_cat(&columns, -1)?)?;

    let length = |size: i64| usize::try_from(size).unwrap_or(0).max(1);
    let width = 2 + usize::try_from(options.bins).unwrap_or(0);
    let choices = |row: &[f64]| row.chunks_exact(width).map(choice).collect();
    debug_assert_eq!(values.len(), length(rows) * length(count) * width);
    Ok(values.chunks_exact(length(count) * width).map(choices).collect())
}

fn choice(values: &[f64]) -> Choice {
    let bins = values[2..].iter().map(|&logit| logit as f32).collect();
    Choice { token: values[0] as i64, logit: values[1], bins }
}
