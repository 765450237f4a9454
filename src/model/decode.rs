//! Greedy decoding of a batch, a token a pass.

use super::{
    family::{Block, Family},
    kv_cache::KvCache,
};
use std::ops::Range;
use tch::{Device, Kind, TchError, Tensor};

/// Room for an answer that a new cache has at once; longer answers make it grow.
const USUAL_ANSWER: i64 = 32;

/// The prompt's embeddings around the image's place: the same for every image.
pub struct EmbeddedPrompt {
    /// `[1, positions, hidden]` each.
    before: Tensor,
    after: Tensor,
}

impl EmbeddedPrompt {
    /// Embeds the ids that stand before and after the image.
    pub fn new(family: &dyn Family, before: &[i64], after: &[i64]) -> Result<Self, TchError> {
        let embed = |ids: &[i64]| {
            let ids = Tensor::f_from_slice(ids)?.f_to_device(family.device())?;
            family.embed(&ids.f_view([1, -1])?)
        };
        Ok(Self { before: embed(before)?, after: embed(after)? })
    }

    /// Positions of the text, the image not counted.
    pub fn text_positions(&self) -> i64 {
        self.before.size()[1] + self.after.size()[1]
    }

    /// Puts each image, `[images, image_positions, hidden]`, in its place: the embeddings
    /// `[images, positions, hidden]` and the image's range in them.
    pub fn around(&self, images: &Tensor) -> Result<(Tensor, Range<i64>), TchError> {
        let (rows, count, _) = images.size3()?;
        let start = self.before.size()[1];
        let before = self.before.f_expand([rows, -1, -1], false)?;
        let after = self.after.f_expand([rows, -1, -1], false)?;
        Ok((Tensor::f_cat(&[&before, images, &after], 1)?, start..start + count))
    }
}

/// What generation looks for in the tokens it chooses.
#[derive(Clone, Debug)]
pub struct GreedyOptions {
    /// Any of these ends a row.
    pub end_tokens: Vec<i64>,
    /// The token whose position is read by the score head.
    pub score_token: i64,
    /// How many of the last logits are read there.
    pub bins: i64,
    /// A row without an end token ends after as many.
    pub max_new_tokens: usize,
}

/// One row's answer.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Generated {
    /// Token ids, the end token included.
    pub tokens: Vec<i64>,
    /// The last `bins` logits of each position that predicted the score token.
    pub score_logits: Vec<Vec<f32>>,
    /// Passes of the language model that this row took part in.
    pub forwards: u32,
    /// The row was given up: its largest logit was not a finite number.
    pub broken: bool,
}

/// The likeliest next token of a row, with its logit.
struct Choice {
    token: i64,
    logit: f64,
}

/// Takes the likeliest token again and again, for every row of `prompts`, `[rows, count, hidden]`,
/// in which the positions `image` stand for the image.
///
/// A row leaves the batch with its end token, so that a slow row holds up no other and changes
/// nothing in them.
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
    let mut hidden = family.forward(&Block { embeddings: prompts, image }, &mut cache)?.f_narrow(1, count - 1, 1)?;
    loop {
        let logits = family.logits(&hidden)?.f_squeeze_dim(1)?;
        let choices = choose(&logits)?;
        note_scores(&logits, &choices, &active, options, &mut answers)?;
        let mut kept = Vec::with_capacity(active.len());
        for (row, choice) in choices.iter().enumerate() {
            let answer = &mut answers[active[row]];
            answer.forwards += 1;
            if !choice.logit.is_finite() {
                answer.broken = true;
                continue;
            }
            answer.tokens.push(choice.token);
            if !options.end_tokens.contains(&choice.token) && answer.tokens.len() < options.max_new_tokens {
                kept.push(row);
            }
        }
        if kept.is_empty() {
            return Ok(answers);
        }
        leave(&mut cache, &mut active, &kept)?;
        let next: Vec<i64> = kept.iter().map(|&row| choices[row].token).collect();
        let next = Tensor::f_from_slice(&next)?.f_to_device(family.device())?.f_view([-1, 1])?;
        hidden = family.forward(&Block::text(&family.embed(&next)?), &mut cache)?;
    }
}

/// The likeliest token of each row of logits, `[rows, vocabulary]`. The one place that waits for the
/// device: token and logit come over in one copy (an f64 holds every id exactly).
fn choose(logits: &Tensor) -> Result<Vec<Choice>, TchError> {
    let (logit, token) = logits.f_max_dim(-1, false)?;
    let pairs = Tensor::f_stack(&[token.f_to_kind(Kind::Double)?, logit.f_to_kind(Kind::Double)?], 1)?;
    let pairs: Vec<f64> = Vec::try_from(pairs.f_to_device(Device::Cpu)?.f_view([-1])?)?;
    Ok(pairs.chunks_exact(2).map(|pair| Choice { token: pair[0] as i64, logit: pair[1] }).collect())
}

/// Keeps the score head's logits of the rows that chose the score token.
fn note_scores(
    logits: &Tensor,
    choices: &[Choice],
    active: &[usize],
    options: &GreedyOptions,
    answers: &mut [Generated],
) -> Result<(), TchError> {
    let scoring: Vec<usize> =
        (0..choices.len()).filter(|&row| choices[row].token == options.score_token).collect();
    if scoring.is_empty() {
        return Ok(());
    }
    let index: Vec<i64> = scoring.iter().map(|&row| row as i64).collect();
    let index = Tensor::f_from_slice(&index)?.f_to_device(logits.device())?;
    let vocabulary = logits.size()[1];
    let bins = logits
        .f_narrow(1, vocabulary - options.bins, options.bins)?
        .f_index_select(0, &index)?
        .f_to_kind(Kind::Float)?
        .f_to_device(Device::Cpu)?;
    let values: Vec<f32> = Vec::try_from(bins.f_contiguous()?.f_view([-1])?)?;
    let width = usize::try_from(options.bins).unwrap_or(1).max(1);
    for (row, values) in scoring.into_iter().zip(values.chunks_exact(width)) {
        answers[active[row]].score_logits.push(values.to_vec());
    }
    Ok(())
}

/// Takes the rows that have ended out of the batch.
fn leave(cache: &mut KvCache, active: &mut Vec<usize>, kept: &[usize]) -> Result<(), TchError> {
    if kept.len() < active.len() {
        let rows: Vec<i64> = kept.iter().map(|&row| row as i64).collect();
        cache.keep_rows(&rows)?;
        *active = kept.iter().map(|&row| active[row]).collect();
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{
        mplug_owl2::MplugOwl2,
        synthetic::{config, network, noise},
    };
    use std::collections::BTreeSet;

    fn options() -> GreedyOptions {
        GreedyOptions { end_tokens: Vec::new(), score_token: -1, bins: 5, max_new_tokens: 10 }
    }

    fn pixels(images: i64) -> Tensor {
        noise(&[images, 3, 12, 12], 77) * 4.0
    }

    fn run(model: &MplugOwl2, pixels: &Tensor, options: &GreedyOptions) -> Vec<Generated> {
        let prompt = EmbeddedPrompt::new(model, &[1, 5, 9, 3], &[8, 30]).unwrap();
        let (embeddings, image) = prompt.around(&model.encode_images(pixels).unwrap()).unwrap();
        generate(model, &embeddings, image, options).unwrap()
    }

    /// Options under which the rows of a batch end at different steps and choose score tokens.
    fn telling_options(model: &MplugOwl2, pixels: &Tensor) -> GreedyOptions {
        let free = run(model, pixels, &options());
        let ends = |token: i64| {
            let rows = free.iter().map(|answer| answer.tokens.iter().position(|&other| other == token));
            rows.collect::<BTreeSet<_>>().len()
        };
        let most_uneven = free.iter().flat_map(|answer| &answer.tokens[2..]).max_by_key(|&&token| ends(token));
        GreedyOptions { end_tokens: vec![*most_uneven.unwrap()], score_token: free[1].tokens[1], ..options() }
    }

    #[test]
    fn an_image_gets_the_same_answer_alone_and_anywhere_in_a_batch() {
        let model = network(config());
        let pixels = pixels(4);
        let options = telling_options(&model, &pixels);
        let together = run(&model, &pixels, &options);
        let steps: Vec<usize> = together.iter().map(|answer| answer.tokens.len()).collect();
        assert!(steps.iter().any(|&count| count != steps[0]), "{steps:?}");
        assert!(together.iter().any(|answer| !answer.score_logits.is_empty()));

        let order = [2, 0, 3, 1];
        let shuffled = run(&model, &pixels.index_select(0, &Tensor::from_slice(&order)), &options);
        for (position, &row) in order.iter().enumerate() {
            let alone = run(&model, &pixels.narrow(0, row, 1), &options);
            for other in [&shuffled[position], &together[row as usize]] {
                assert_eq!(alone[0].tokens, other.tokens);
                assert_eq!(alone[0].forwards as usize, alone[0].tokens.len());
                for (one, other) in alone[0].score_logits.iter().flatten().zip(other.score_logits.iter().flatten())
                {
                    assert!((one - other).abs() < 1e-4);
                }
                assert_eq!(alone[0].score_logits.len(), other.score_logits.len());
            }
        }
    }

    #[test]
    fn a_row_without_an_end_stops_at_the_cap() {
        let model = network(config());
        let answers = run(&model, &pixels(2), &GreedyOptions { max_new_tokens: 40, ..options() });
        assert!(answers.iter().all(|answer| answer.tokens.len() == 40 && answer.forwards == 40));
        assert!(run(&model, &pixels(1), &GreedyOptions { max_new_tokens: 0, ..options() })[0].tokens.is_empty());
    }

    #[test]
    fn a_broken_image_breaks_no_other() {
        let model = network(config());
        let whole = pixels(3);
        let expected = run(&model, &whole, &options());
        let broken = whole.copy();
        let _ = broken.get(1).fill_(f64::NAN);
        let answers = run(&model, &broken, &options());
        assert!(answers[1].broken && answers[1].tokens.is_empty());
        assert_eq!((&answers[0].tokens, &answers[2].tokens), (&expected[0].tokens, &expected[2].tokens));
        assert!(!answers[0].broken && !answers[2].broken);
    }

    #[test]
    fn scores_are_the_last_logits_where_the_score_token_was_chosen() {
        let model = network(config());
        let pixels = pixels(2);
        let options = telling_options(&model, &pixels);
        let answers = run(&model, &pixels, &options);
        assert!(answers.iter().any(|answer| answer.tokens.contains(&options.score_token)));
        for answer in answers {
            let chosen = answer.tokens.iter().filter(|&&token| token == options.score_token).count();
            assert_eq!(answer.score_logits.len(), chosen);
            assert!(answer.score_logits.iter().all(|logits| logits.len() == 5));
        }
    }
}
