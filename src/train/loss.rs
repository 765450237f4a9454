//! The losses of score training (ROC4MLLM): cross-entropy of the text, and three of the distribution
//! that the score head reads wherever the answer has `[SCORE]`.

use super::encode::IGNORED;
use crate::model::config::ScoreHeadConfig;
use clap::ValueEnum;
use serde::{Deserialize, Serialize};
use tch::{Device, Kind, Reduction, TchError, Tensor};

/// What each term counts beside the text's cross-entropy, which counts 1.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LossSettings {
    /// Of the smooth-L1 between predicted and given score.
    pub l1_weight: f64,
    /// Of the cross-entropy against the rating distribution.
    pub ce_weight: f64,
    /// Of the earth mover's distance from it.
    pub emd_weight: f64,
    /// What the distance is the root of.
    pub emd_reduction: EmdReduction,
}

impl Default for LossSettings {
    fn default() -> Self {
        Self { l1_weight: 1.0, ce_weight: 1.0, emd_weight: 1.0, emd_reduction: EmdReduction::default() }
    }
}

impl LossSettings {
    /// Whether any term is computed with rating distributions.
    pub fn needs_targets(&self) -> bool {
        self.ce_weight != 0.0 || self.emd_weight != 0.0
    }
}

/// Over what the squared differences of cumulative distributions are averaged before the root.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EmdReduction {
    /// Over the bins of each score; the roots are averaged, so that a batch is worth the mean of its samples
    #[default]
    Sample,
    /// Over all bins of all scores in the batch, as in the reference
    Batch,
}

/// The terms of one batch, scalars in f32; those that there are no labels for are absent.
pub struct Losses {
    /// `text` and the weighted terms: what is minimised.
    pub total: Tensor,
    /// Mean cross-entropy of the answers' tokens.
    pub text: Tensor,
    pub l1: Option<Tensor>,
    pub ce: Option<Tensor>,
    pub emd: Option<Tensor>,
}

/// The terms as numbers, unweighted.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Terms {
    pub loss: f64,
    pub text: f64,
    pub l1: Option<f64>,
    pub ce: Option<f64>,
    pub emd: Option<f64>,
}

impl Losses {
    pub fn terms(&self) -> Result<Terms, TchError> {
        let number = |term: &Tensor| term.f_double_value(&[]);
        let optional = |term: &Option<Tensor>| term.as_ref().map(number).transpose();
        Ok(Terms {
            loss: number(&self.total)?,
            text: number(&self.text)?,
            l1: optional(&self.l1)?,
            ce: optional(&self.ce)?,
            emd: optional(&self.emd)?,
        })
    }
}

/// What a batch's logits are held against.
pub struct Labels<'a> {
    /// The token that each position of the logits precedes.
    pub tokens: &'a [i64],
    /// `[scores]`, f32: in the order of the `[SCORE]`s among `tokens`.
    pub gt_scores: &'a Tensor,
    /// `[scores, bins]`, f32.
    pub targets: Option<&'a Tensor>,
}

/// The losses of logits `[positions, vocabulary]` in any type; everything from here on is f32.
///
/// # Errors
/// Whatever torch reports, of another number of `[SCORE]`s than of scores among other things.
pub fn losses(
    logits: &Tensor,
    labels: &Labels<'_>,
    head: &ScoreHeadConfig,
    settings: &LossSettings,
) -> Result<Losses, TchError> {
    let device = logits.device();
    let logits = logits.f_to_kind(Kind::Float)?;
    let tokens = Tensor::f_from_slice(labels.tokens)?.f_to_device(device)?;
    let text = logits.f_cross_entropy_loss(&tokens, None::<&Tensor>, Reduction::Mean, IGNORED, 0.0)?;
    let mut losses = Losses { total: text.shallow_clone(), text, l1: None, ce: None, emd: None };

    let scored: Vec<i64> = (0..)
        .zip(labels.tokens)
        .filter_map(|(index, &token)| (token == head.score_id).then_some(index))
        .collect();
    if labels.gt_scores.size() != [scored.len() as i64] {
        let given = labels.gt_scores.size();
        return Err(TchError::Shape(format!("{given:?} scores for {} score tokens", scored.len())));
    }
    if scored.is_empty() {
        return Ok(losses);
    }
    let bins = logits.f_index_select(0, &Tensor::f_from_slice(&scored)?.f_to_device(device)?)?.f_narrow(
        1,
        logits.size()[1] - head.num_tokens,
        head.num_tokens,
    )?;
    let log_distribution = bins.f_log_softmax(-1, Kind::Float)?;
    let distribution = log_distribution.f_exp()?;
    let mut add = |term: &Tensor, weight: f64| -> Result<(), TchError> {
        if weight != 0.0 {
            losses.total = losses.total.f_add(&term.f_mul_scalar(weight)?)?;
        }
        Ok(())
    };

    let scores = distribution.f_matmul(&bin_values(head, device)?)?;
    let l1 = scores.f_smooth_l1_loss(&labels.gt_scores.f_to_device(device)?, Reduction::Mean, 1.0)?;
    add(&l1, settings.l1_weight)?;
    let mut of_targets = None;
    if let Some(targets) = labels.targets {
        let targets = targets.f_to_device(device)?;
        let each =
            targets.f_mul(&log_distribution)?.f_sum_dim_intlist([-1].as_slice(), false, Kind::Float)?;
        let ce = each.f_mean(Kind::Float)?.f_neg()?;
        let emd = earth_movers_distance(&distribution, &targets, settings.emd_reduction)?;
        add(&ce, settings.ce_weight)?;
        add(&emd, settings.emd_weight)?;
        of_targets = Some((ce, emd));
    }
    losses.l1 = Some(l1);
    (losses.ce, losses.emd) = of_targets.unzip();
    Ok(losses)
}

/// What the bins are worth, `[bins]`, f32.
fn bin_values(head: &ScoreHeadConfig, device: Device) -> Result<Tensor, TchError> {
    Tensor::f_linspace(head.min_score, head.max_score, head.num_tokens, (Kind::Float, device))
}

/// The earth mover's distance of order 2 (Hou et al. 2016; Talebi and Milanfar 2018, NIMA) between
/// distributions `[scores, bins]`, in the shares of one bin.
fn earth_movers_distance(
    predicted: &Tensor,
    given: &Tensor,
    reduction: EmdReduction,
) -> Result<Tensor, TchError> {
    let squares =
        predicted.f_cumsum(-1, Kind::Float)?.f_sub(&given.f_cumsum(-1, Kind::Float)?)?.f_square()?;
    // The root has no slope at 0.
    let root = |mean: Tensor| mean.f_clamp_min(1e-12)?.f_sqrt();
    match reduction {
        EmdReduction::Sample => {
            root(squares.f_mean_dim([-1].as_slice(), false, Kind::Float)?)?.f_mean(Kind::Float)
        }
        EmdReduction::Batch => root(squares.f_mean(Kind::Float)?),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head() -> ScoreHeadConfig {
        ScoreHeadConfig {
            score_id: 3,
            output_first_id: None,
            output_last_id: None,
            num_tokens: 4,
            min_score: 0.0,
            max_score: 3.0,
        }
    }

    /// Two tokens and two scores over a vocabulary of eight; the bins are the last four.
    fn logits() -> Tensor {
        Tensor::from_slice(&[
            0.5_f32, 0.0, 0.0, 2.0, 0.0, 1.0, 0.0, 0.0, //
            0.0, 3.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, //
            0.0, 0.0, 0.0, 1.0, -1.0, 0.0, 2.0, 0.0,
        ])
        .view([3, 8])
    }

    fn terms(settings: &LossSettings, scores: &[f32], targets: &[f32]) -> Terms {
        let gt_scores = Tensor::from_slice(scores);
        let targets = Tensor::from_slice(targets).view([-1, 4]);
        let labels = Labels { tokens: &[3, 1, 3], gt_scores: &gt_scores, targets: Some(&targets) };
        losses(&logits(), &labels, &head(), settings).unwrap().terms().unwrap()
    }

    fn softmax(logits: &[f64]) -> Vec<f64> {
        let total: f64 = logits.iter().map(|logit| logit.exp()).sum();
        logits.iter().map(|logit| logit.exp() / total).collect()
    }

    #[test]
    fn each_term_is_its_formula() {
        let targets = [0.1, 0.2, 0.3, 0.4, 0.7, 0.3, 0.0, 0.0_f32];
        let settings = LossSettings {
            l1_weight: 2.0,
            ce_weight: 3.0,
            emd_weight: 5.0,
            emd_reduction: EmdReduction::Sample,
        };
        let found = terms(&settings, &[0.5, 2.5], &targets);

        let rows: Vec<Vec<f64>> = (0..3)
            .map(|row| Vec::<f32>::try_from(logits().get(row)).unwrap().into_iter().map(f64::from).collect())
            .collect();
        let text: f64 =
            rows.iter().zip([3, 1, 3]).map(|(row, token)| -softmax(row)[token].ln()).sum::<f64>() / 3.0;
        let predicted = [softmax(&rows[0][4..]), softmax(&rows[2][4..])];
        let (mut l1, mut ce, mut emd) = (0.0, 0.0, 0.0);
        for ((bins, target), score) in predicted.iter().zip(targets.chunks(4)).zip([0.5, 2.5]) {
            let mean: f64 = bins.iter().enumerate().map(|(bin, share)| bin as f64 * share).sum();
            let distance = (mean - score).abs();
            l1 += if distance < 1.0 { distance * distance / 2.0 } else { distance - 0.5 } / 2.0;
            let (mut cumulative, mut squares) = (0.0, 0.0);
            for (share, &target) in bins.iter().zip(target) {
                ce -= f64::from(target) * share.ln() / 2.0;
                cumulative += share - f64::from(target);
                squares += cumulative * cumulative;
            }
            emd += (squares / 4.0).sqrt() / 2.0;
        }
        for (name, found, expected) in [
            ("text", Some(found.text), text),
            ("l1", found.l1, l1),
            ("ce", found.ce, ce),
            ("emd", found.emd, emd),
            ("loss", Some(found.loss), text + 2.0 * l1 + 3.0 * ce + 5.0 * emd),
        ] {
            assert!((found.unwrap() - expected).abs() < 1e-5, "{name}: {found:?}, not {expected}");
        }
    }

    #[test]
    fn one_root_for_all_is_more_than_the_mean_of_roots() {
        let targets = [0.1, 0.2, 0.3, 0.4, 1.0, 0.0, 0.0, 0.0_f32];
        let emd = |emd_reduction| {
            terms(&LossSettings { emd_reduction, ..LossSettings::default() }, &[1.0, 1.0], &targets)
                .emd
                .unwrap()
        };
        assert!(emd(EmdReduction::Batch) > emd(EmdReduction::Sample) + 1e-3);
    }

    #[test]
    fn a_distribution_that_is_met_has_a_gradient() {
        let bins = Tensor::zeros([1, 4], (Kind::Float, Device::Cpu)).set_requires_grad(true);
        let even = Tensor::full([1, 4], 0.25, (Kind::Float, Device::Cpu));
        let loss =
            earth_movers_distance(&bins.softmax(-1, Kind::Float), &even, EmdReduction::Sample).unwrap();
        loss.backward();
        assert!(bool::try_from(bins.grad().isfinite().all()).unwrap());
    }

    #[test]
    fn without_scores_only_the_text_counts() {
        let none = Tensor::from_slice::<f32>(&[]);
        let labels = Labels { tokens: &[1, 0, 2], gt_scores: &none, targets: None };
        let terms = losses(&logits(), &labels, &head(), &LossSettings::default()).unwrap().terms().unwrap();
        assert_eq!((terms.l1, terms.ce, terms.emd), (None, None, None));
        assert_eq!(terms.loss, terms.text);
    }

    #[test]
    fn another_number_of_scores_is_refused() {
        for scores in [&[1.0_f32, 2.0, 1.0][..], &[1.0], &[]] {
            let scores = Tensor::from_slice(scores);
            let labels = Labels { tokens: &[3, 0, 3], gt_scores: &scores, targets: None };
            assert!(losses(&logits(), &labels, &head(), &LossSettings::default()).is_err());
        }
    }
}
