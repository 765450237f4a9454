//! Results on standard output: a table for people, or one JSON object.

use crate::evaluate::{Attribute, Comparison, Deviation, Estimate, Evaluation, Metric};
use serde::Serialize;
use std::io::{self, Write};

/// Everything that came out, as `--format json` writes it.
#[derive(Debug, Serialize)]
pub struct Results<'a> {
    /// The file.
    pub labels: String,
    /// Its labels that can't be used, with line and reason.
    pub refused: Vec<String>,
    pub evaluation: &'a Evaluation,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub champion: Option<&'a Evaluation>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub comparison: Option<&'a Comparison>,
    /// Of a quantised model.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub deviation: Option<&'a Deviation>,
}

/// Writes one JSON object.
///
/// # Errors
/// Those of `out`.
pub fn json(results: &Results<'_>, out: &mut dyn Write) -> io::Result<()> {
    serde_json::to_writer(&mut *out, results)?;
    out.write_all(b"\n")?;
    out.flush()
}

/// Writes aligned columns.
///
/// # Errors
/// Those of `out`.
pub fn table(results: &Results<'_>, out: &mut dyn Write) -> io::Result<()> {
    let Results { evaluation, comparison, refused, .. } = results;
    match comparison {
        Some(comparison) => compared(comparison, out)?,
        None => alone(evaluation.attributes.first(), evaluation, out)?,
    }
    // The first score is in the comparison; the others stand for themselves.
    for (index, attribute) in evaluation.attributes.iter().enumerate().skip(1) {
        writeln!(out, "\n[SCORE] {} of {}", index + 1, evaluation.attributes.len())?;
        alone(Some(attribute), evaluation, out)?;
    }
    if let Some(deviation) = results.deviation {
        deviated(deviation, out)?;
    }
    let unscored = evaluation.failures().count();
    if unscored > 0 {
        writeln!(out, "\n{unscored} of {} photos without a score:", evaluation.photos.len())?;
        for (_, error) in evaluation.failures().take(MOST_FAILURES) {
            writeln!(out, "  {}", crate::score_command::output::printable(&error.message))?;
        }
        if unscored > MOST_FAILURES {
            writeln!(out, "  and {} more; --format json lists them all", unscored - MOST_FAILURES)?;
        }
    }
    if !refused.is_empty() {
        writeln!(out, "\n{} labels of the file were refused", refused.len())?;
    }
    out.flush()
}

/// Photos without a score that the table names.
const MOST_FAILURES: usize = 20;

fn alone(attribute: Option<&Attribute>, evaluation: &Evaluation, out: &mut dyn Write) -> io::Result<()> {
    let Some(attribute) = attribute else { return Ok(()) };
    writeln!(out, "{:<13} {:>9}   {}", "METRIC", "VALUE", interval_heading(evaluation.intervals.confidence))?;
    for (metric, estimate) in &attribute.metrics {
        let line = format!("{metric:<13} {:>9.4}   {}", estimate.value, interval(estimate, false));
        writeln!(out, "{}", line.trim_end())?;
    }
    missing(attribute.metrics.keys().copied(), out)?;
    writeln!(out, "{} of {} photos scored", attribute.scored, attribute.photos)
}

fn compared(comparison: &Comparison, out: &mut dyn Write) -> io::Result<()> {
    let heading = interval_heading(comparison.intervals.confidence);
    writeln!(
        out,
        "{:<13} {:>9} {:>11} {:>11}   {heading}",
        "METRIC", "CHAMPION", "CHALLENGER", "DIFFERENCE"
    )?;
    for (metric, compared) in &comparison.metrics {
        let line = format!(
            "{metric:<13} {:>9.4} {:>11.4} {:>+11.4}   {}",
            compared.champion.value,
            compared.challenger.value,
            compared.difference.value,
            interval(&compared.difference, true)
        );
        writeln!(out, "{}", line.trim_end())?;
    }
    missing(comparison.metrics.keys().copied(), out)?;
    writeln!(out, "{} photos scored by both", comparison.photos)
}

fn deviated(deviation: &Deviation, out: &mut dyn Write) -> io::Result<()> {
    let Deviation { reference, photos, unlike, mean_error, largest_error, srcc, plcc } = deviation;
    writeln!(out, "\nAgainst {} on {photos} photos:", reference.version)?;
    writeln!(out, "score error: {mean_error:.4} in the mean, {largest_error:.4} at most")?;
    let correlation = |value: &Option<f64>| value.map_or("-".to_owned(), |value| format!("{value:.4}"));
    writeln!(out, "correlation of the scores: SRCC {}, PLCC {}", correlation(srcc), correlation(plcc))?;
    if *unlike > 0 {
        writeln!(out, "{unlike} photos have a score, or as many scores, of one of them alone")?;
    }
    Ok(())
}

/// Metrics without a value, and why.
fn missing(found: impl Iterator<Item = Metric>, out: &mut dyn Write) -> io::Result<()> {
    let found: Vec<Metric> = found.collect();
    for metric in Metric::ALL.into_iter().filter(|metric| !found.contains(metric)) {
        let reason = match metric {
            Metric::Emd => "no label has a rating distribution",
            Metric::Srcc | Metric::Plcc | Metric::Krcc => "labels or predictions are all equal",
            _ => "no photo was scored",
        };
        writeln!(out, "{metric:<13} {:>9}   {reason}", "-")?;
    }
    Ok(())
}

fn interval_heading(confidence: f64) -> String {
    format!("{}% INTERVAL", (confidence * 1e4).round() / 1e2)
}

fn interval(estimate: &Estimate, signed: bool) -> String {
    match estimate.interval {
        Some((low, high)) if signed => format!("{low:+.4} to {high:+.4}"),
        Some((low, high)) => format!("{low:.4} to {high:.4}"),
        None => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        evaluate::{BootstrapSettings, Label, Outcome, Photo},
        fault::{ErrorCode, ItemError, Stage},
        score::{ModelVersion, ScoreValue},
    };

    fn evaluation(version: &str, scores: &[Option<[f64; 2]>]) -> Evaluation {
        let photos = scores.iter().enumerate().map(|(index, scores)| Photo {
            image: format!("{index}.jpg"),
            group: None,
            label: Label { scores: vec![1.0 + index as f64 % 9.0; 2], distributions: Vec::new() },
            outcome: match scores {
                Some(scores) => Outcome::Scored {
                    scores: scores
                        .map(|score| ScoreValue { score, distribution: vec![1.0], std: 0.0 })
                        .into(),
                },
                None => Outcome::Rejected {
                    error: ItemError::new(
                        ErrorCode::ImageTruncated,
                        Stage::Decode,
                        format!("{index}.jpg: JPEG ends early; re-export or re-upload it"),
                    ),
                },
            },
        });
        let model = ModelVersion { model: "m".into(), version: version.into(), preprocess_revision: 1 };
        let settings = BootstrapSettings { resamples: 100, ..Default::default() };
        Evaluation::measure(model, (1.0, 10.0), photos.collect(), &settings)
    }

    fn text(results: &Results<'_>) -> String {
        let mut out = Vec::new();
        table(results, &mut out).unwrap();
        String::from_utf8(out).unwrap()
    }

    fn scores(offset: f64) -> Vec<Option<[f64; 2]>> {
        (0..30).map(|index| Some([1.0 + f64::from(index) % 9.0 + offset, 2.0])).collect()
    }

    #[test]
    fn one_model_has_a_line_a_metric_and_a_block_a_score() {
        let mut answers = scores(0.5);
        answers[3] = None;
        let evaluation = evaluation("v", &answers);
        let results = Results {
            labels: "l.csv".into(),
            refused: vec!["l.csv, line 3: no".into()],
            evaluation: &evaluation,
            champion: None,
            comparison: None,
            deviation: None,
        };
        let text = text(&results);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[0], "METRIC            VALUE   95% INTERVAL");
        assert_eq!(lines[1], "SRCC             1.0000   1.0000 to 1.0000");
        assert_eq!(lines[4], "MAE              0.5000   0.5000 to 0.5000");
        assert!(lines.contains(&"EMD                   -   no label has a rating distribution"), "{text}");
        assert!(text.contains("29 of 29 photos scored"), "{text}");
        assert!(
            text.contains("[SCORE] 2 of 2") && text.contains("labels or predictions are all equal"),
            "{text}"
        );
        assert!(text.contains("1 of 30 photos without a score:\n  3.jpg: JPEG ends early"), "{text}");
        assert!(text.ends_with("1 labels of the file were refused\n"), "{text}");
    }

    #[test]
    fn two_models_stand_side_by_side_with_the_difference() {
        let (champion, challenger) = (evaluation("1", &scores(1.0)), evaluation("2", &scores(0.25)));
        let comparison = Comparison::of(&champion, &challenger, &BootstrapSettings::default()).unwrap();
        let results = Results {
            labels: "l.csv".into(),
            refused: Vec::new(),
            evaluation: &challenger,
            champion: Some(&champion),
            comparison: Some(&comparison),
            deviation: None,
        };
        let text = text(&results);
        assert!(
            text.contains("MAE              1.0000      0.2500     -0.7500   -0.7500 to -0.7500\n"),
            "{text}"
        );
        assert!(text.contains("30 photos scored by both\n"), "{text}");
        let mut out = Vec::new();
        json(&results, &mut out).unwrap();
        let value: serde_json::Value = serde_json::from_slice(&out).unwrap();
        assert_eq!(value["comparison"]["metrics"]["mae"]["difference"]["value"], -0.75);
        assert_eq!(value["evaluation"]["photos"].as_array().unwrap().len(), 30);
        assert_eq!(value["champion"]["model"]["version"], "1");
    }
}
