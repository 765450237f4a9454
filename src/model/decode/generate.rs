//! Greedy decoding of a batch, a token a pass.

use super::{Generated, GreedyOptions, choice::choose};
use crate::model::{
    family::{Block, Family},
    transfer::upload,
};
use std::ops::Range;
use tch::{TchError, Tensor};

/// Room for an answer that a new cache has at once; longer answers make it grow.
pub const USUAL_ANSWER: i64 = 32;

/// Takes the likeliest token again and again, for every row of `prompts`, `[rows, count, hidden]`,
/// in which the positions `image` stand for the image.
///
/// A row leaves the batch with its end token, so that a slow row holds up no other and changes
/// nothing in them. Nothing else is saved here: every pass computes all of the layers, and the whole
/// prompt goes in, so that what is saved elsewhere can be held against it.
pub fn generate(
    family: &dyn Family,
    prompts: &Tensor,
    image: Range<i64>,
    options: &GreedyOptions,
) -> Result<Vec<Generated>, TchError> {
    let (rows, count, _) = prompts.size3()?;
    let mut answers = vec![Generated::default(); usize::try_from(rows).unwrap_or(0)];
    let mut active: Vec<usize> = (0..answers.len()).collect();
    if active.is_empty() || options.max_new_tokens == 0 {
        return Ok(answers);
    }
    let mut cache = family.new_cache(rows, count + USUAL_ANSWER)?;
    let mut hidden = family.forward(&Block::new(prompts, image), &mut cache)?.f_narrow(1, count - 1, 1)?;
    loop {
        let choices = choose(family, &hidden, options)?;
        let mut kept = Vec::with_capacity(active.len());
        for (row, choices) in choices.iter().enumerate() {
            let answer = &mut answers[active[row]];
            answer.forwards += 1;
            if answer.take(&choices[0], options) {
                kept.push(row);
            }
        }
        if kept.is_empty() {
            return Ok(answers);
        }
        let next: Vec<i64> = kept.iter().map(|&row| choices[row][0].token).collect();
        cache.leave(&mut active, &kept)?;
        let next = upload(&next, family.device())?.f_view([-1, 1])?;
        hidden = family.forward(&Block::text(&family.embed(&next)?), &mut cache)?;
    }
}
