//! The page itself.

use super::{
    Against, EvaluationReport, MOST_FAILURES, SetReport, WORST, chart,
    figures::{self, Line},
    scatter::scatter,
};
use crate::{
    evaluate::{Attribute, Comparison, Estimate, Evaluation, Metric, Outcome, Photo, Verdict},
    report::{
        axis::Axis,
        shell::{
            Rejected, Shell, count, data_address, date, duration, emit, grouped, rejections, setting, tile,
            written_by,
        },
    },
    score::ModelVersion,
};
use maud::{Markup, html};
use std::io::{self, Write};

const STYLE: &str = include_str!("evaluation.css");

/// Groups of photos in the chart of spreads.
const SPREAD_GROUPS: usize = 10;

pub fn write<W: Write>(out: &mut W, report: &EvaluationReport<'_>) -> io::Result<()> {
    let shell = Shell { title: &report.title, style: STYLE, script: None };
    shell.write(out, |out| {
        emit(out, introduction(report))?;
        out.write_all(b"<main id=\"main\">")?;
        for (index, set) in report.sets.iter().enumerate() {
            emit(out, section(index, set, report.sets.len() > 1))?;
        }
        out.write_all(b"</main>")?;
        emit(out, footer(report))
    })
}

fn introduction(report: &EvaluationReport<'_>) -> Markup {
    let photos = report.sets.iter().map(|set| set.evaluation.photos.len()).sum();
    html! {
        a.skip href="#main" { "Skip to the results" }
        header {
            h1 { (report.title) }
            p.subtitle {
                (count(photos, "labelled photo")) ", " (date(report.written_at))
                @if let Some(elapsed) = report.elapsed { ", scored in " (duration(elapsed)) }
            }
            @if let Some(note) = &report.note { p.note role="note" { (note) } }
            @if let Some(verdict) = report.verdict { (decision(verdict)) }
            @if report.sets.len() > 1 {
                nav.sets aria-label="Sets" {
                    @for (index, set) in report.sets.iter().enumerate() {
                        a href=(format!("#set-{index}")) { (set.name) }
                    }
                }
            }
        }
    }
}

fn decision(verdict: &Verdict) -> Markup {
    html! {
        @match verdict {
            Verdict::Accepted { difference } => {
                div.verdict.accepted role="status" {
                    p.outcome { "Accepted" }
                    p { "SRCC on the newest labels rises by " (signed(difference, 4)) }
                }
            }
            Verdict::Rejected { reasons } => {
                div.verdict.rejection role="status" {
                    p.outcome { "Rejected" }
                    ul { @for reason in reasons { li { (reason) } } }
                }
            }
        }
    }
}

fn section(index: usize, set: &SetReport<'_>, named: bool) -> Markup {
    let SetReport { evaluation, against, .. } = set;
    let failures = failures(set);
    html! {
        section.set id=(format!("set-{index}")) {
            @if named { h2.set-name { (set.name) } }
            (tiles(evaluation, against.as_ref()))
            @match against {
                Some(against) => (compared(evaluation, against.comparison)),
                None => (metrics(evaluation)),
            }
            (predictions(evaluation, against.as_ref()))
            div.plots {
                (residuals(evaluation, against.as_ref()))
                (calibration(evaluation))
            }
            @if evaluation.attributes.len() > 1 { (attributes(evaluation, against.as_ref())) }
            (worst(set))
            @if !failures.is_empty() { (rejections(&failures_heading(evaluation), &failures)) }
        }
    }
}

fn tiles(evaluation: &Evaluation, against: Option<&Against<'_>>) -> Markup {
    let first = evaluation.attributes.first().cloned().unwrap_or_default();
    let unreadable =
        evaluation.photos.iter().filter(|photo| matches!(photo.outcome, Outcome::Rejected { .. })).count();
    let shown = |metric: Metric| {
        first.metrics.get(&metric).map(|estimate| tile(metric.name(), &number(metric, estimate.value), ""))
    };
    html! {
        dl.tiles {
            (tile("Photos measured", &grouped(first.scored), ""))
            @for metric in [Metric::Srcc, Metric::Plcc, Metric::Mae] {
                @if let Some(tile) = shown(metric) { (tile) }
            }
            @if let Some(difference) = against.and_then(|against| against.comparison.difference(Metric::Srcc)) {
                (tile("SRCC against the champion", &format!("{:+.4}", difference.value), ""))
            }
            @let silent = first.photos - first.scored;
            (tile("Without a score", &grouped(silent), if silent > 0 { "warn" } else { "" }))
            @if unreadable > 0 { (tile("Unreadable", &grouped(unreadable), "warn")) }
        }
    }
}

/// Every metric of one model.
fn metrics(evaluation: &Evaluation) -> Markup {
    let first = evaluation.attributes.first().cloned().unwrap_or_default();
    html! {
        div.panel.scrolls {
            table {
                caption.sr { "Metrics with their intervals" }
                thead { tr { th scope="col" { "Metric" } th.number scope="col" { "Value" } th.number scope="col" { (percent(evaluation.intervals.confidence)) " interval" } } }
                tbody {
                    @for (metric, estimate) in &first.metrics {
                        tr {
                            th scope="row" { (metric.name()) span.explained { (metric.explanation()) } }
                            td.number { strong { (number(*metric, estimate.value)) } }
                            td.number { (interval(*metric, estimate)) }
                        }
                    }
                }
            }
        }
    }
}

/// Every metric of champion and challenger on the photos that both scored.
fn compared(evaluation: &Evaluation, comparison: &Comparison) -> Markup {
    html! {
        div.panel.scrolls {
            table {
                caption {
                    (count(comparison.photos, "photo")) " that both scored"
                    @if comparison.groups < comparison.photos {
                        ", " (grouped(comparison.groups)) " of them independent"
                    }
                    @if comparison.identical { "; both gave the same scores" }
                }
                thead {
                    tr {
                        th scope="col" { "Metric" }
                        th.number scope="col" { "Champion" }
                        th.number scope="col" { "Challenger" }
                        th.number scope="col" { "Difference" }
                        th.wide scope="col" { span.sr { "Difference, drawn" } }
                    }
                }
                tbody {
                    @for (metric, compared) in &comparison.metrics {
                        tr {
                            th scope="row" { (metric.name()) span.explained { (metric.explanation()) } }
                            td.number { (number(*metric, compared.champion.value)) span.explained { (interval(*metric, &compared.champion)) } }
                            td.number { strong { (number(*metric, compared.challenger.value)) } span.explained { (interval(*metric, &compared.challenger)) } }
                            td.number {
                                (format!("{:+.*}", digits(*metric), compared.difference.value))
                                @if let Some((low, high)) = compared.difference.interval {
                                    span.explained { (format!("{low:+.0$} to {high:+.0$}", digits(*metric))) }
                                }
                            }
                            td.wide {
                                @if let Some(reach) = compared.difference.interval {
                                    (chart::difference(compared.difference.value, reach, metric.is_gain()))
                                }
                            }
                        }
                    }
                }
            }
        }
        @if comparison.photos < evaluation.attributes.first().map_or(0, |first| first.scored) {
            p.legend { "The champion has no score for some photos that the challenger scored." }
        }
    }
}

fn predictions(evaluation: &Evaluation, against: Option<&Against<'_>>) -> Markup {
    let own = figures::pairs(evaluation, 0);
    let champions = against.map(|against| figures::pairs(against.champion, 0));
    let both = own.iter().chain(champions.iter().flatten());
    let axis = Axis::around(both.flat_map(|&(label, score)| [label, score]), 8.0);
    let figure = |name: &str, pairs: &[(f64, f64)]| {
        html! {
            figure.panel {
                figcaption {
                    h3 { (name) }
                    p.legend {
                        span.key.dashed {} "equal "
                        @if let Some(Line { slope, intercept }) = Line::fit(pairs) {
                            span.key.solid {} "fit " (format!("{slope:.2} × label {intercept:+.2}"))
                        }
                    }
                }
                (scatter(pairs, axis, name))
            }
        }
    };
    html! {
        div.section-head { h2 { "Predictions by label" } }
        div.plots {
            @match &champions {
                Some(pairs) => { (figure("Champion", pairs)) (figure("Challenger", &own)) }
                None => (figure("Prediction and label", &own)),
            }
        }
    }
}

fn residuals(evaluation: &Evaluation, against: Option<&Against<'_>>) -> Markup {
    let own = figures::pairs(evaluation, 0);
    let axis = Axis::around(own.iter().map(|pair| pair.0), 9.0);
    let edges: Vec<f64> = axis.ticks().into_iter().map(|(edge, _)| edge).collect();
    let mut models = Vec::new();
    if let Some(against) = against {
        models.push(("champion", figures::residuals(&figures::pairs(against.champion, 0), &edges)));
    }
    models.push((if against.is_some() { "challenger" } else { "model" }, figures::residuals(&own, &edges)));
    html! {
        figure.panel {
            figcaption {
                h3 { "Residual by label" }
                p.legend {
                    @if against.is_some() { span.key.other {} "champion " span.key.one {} "challenger " }
                    "box: half of the photos, whiskers: nine in ten"
                }
            }
            (chart::residuals(&models, axis))
        }
    }
}

fn calibration(evaluation: &Evaluation) -> Markup {
    let groups = figures::spreads(evaluation, SPREAD_GROUPS);
    let has_raters = groups.iter().any(|group| group.raters.is_some());
    html! {
        figure.panel {
            figcaption {
                h3 { "Calibration of the predicted spread" }
                p.legend {
                    @if has_raters { span.key.one {} "spread of the raters " }
                    span.key.other {} "error of the mean (RMS)"
                }
            }
            (chart::spreads(&groups))
            @if !has_raters {
                p.legend { "The labels have no rating distributions, so the raters' spread is not known." }
            }
        }
    }
}

/// Metrics of each attribute, for answers with several scores.
fn attributes(evaluation: &Evaluation, against: Option<&Against<'_>>) -> Markup {
    let champion = |index: usize| against.and_then(|against| against.champion.attributes.get(index));
    let shown =
        [Metric::Srcc, Metric::Plcc, Metric::Krcc, Metric::Mae, Metric::Rmse, Metric::Emd, Metric::Accuracy];
    let cell = |metric: Metric, attribute: &Attribute, champion: Option<&Attribute>| {
        let value = |attribute: &Attribute| {
            attribute.metrics.get(&metric).map_or_else(|| "–".to_owned(), |found| number(metric, found.value))
        };
        html! {
            td.number {
                (value(attribute))
                @if let Some(estimate) = attribute.metrics.get(&metric) {
                    span.explained { (interval(metric, estimate)) }
                }
                @if let Some(champion) = champion { span.explained { "champion " (value(champion)) } }
            }
        }
    };
    html! {
        div.section-head { h2 { "Scores of the answer" } }
        div.panel.scrolls {
            table {
                caption.sr { "Metrics of each score of the answer" }
                thead {
                    tr {
                        th scope="col" { "[SCORE]" }
                        th.number scope="col" { "Photos" }
                        @for metric in shown { th.number scope="col" { (metric.name()) } }
                    }
                }
                tbody {
                    @for (index, attribute) in evaluation.attributes.iter().enumerate() {
                        tr {
                            th scope="row" { (ordinal(index)) @if index == 0 { span.explained { "ranks the photo" } } }
                            td.number {
                                (grouped(attribute.scored))
                                @if attribute.scored < attribute.photos {
                                    span.explained { (grouped(attribute.photos - attribute.scored)) " without" }
                                }
                            }
                            @for metric in shown { (cell(metric, attribute, champion(index))) }
                        }
                    }
                }
            }
        }
    }
}

fn worst(set: &SetReport<'_>) -> Markup {
    let photos = set.evaluation.worst(WORST);
    // The champion's photos are in the same order, and a name may come twice.
    let place = |photo: &Photo| set.evaluation.photos.iter().position(|other| std::ptr::eq(other, photo));
    let champions = |photo: &Photo| {
        let champion = set.against.as_ref()?.champion;
        champion.photos.get(place(photo)?)?.value(0).map(|value| value.score)
    };
    html! {
        @if !photos.is_empty() {
            div.section-head {
                h2 { "Worst mistakes" }
                p.legend { "bars: predicted" span.key.outlined {} "raters" }
            }
            ol.gallery {
                @for photo in photos {
                    (mistake(photo, champions(photo), set.thumbnails.get(&photo.image), set.evaluation.range))
                }
            }
        }
    }
}

fn mistake(photo: &Photo, champion: Option<f64>, thumbnail: Option<&Vec<u8>>, range: (f64, f64)) -> Markup {
    html! {
        li.card {
            article {
                div.photo {
                    @match thumbnail {
                        Some(jpeg) => { img src=(data_address(jpeg)) alt=(photo.image) loading="lazy"; }
                        None => { p.no-photo { "no preview" } }
                    }
                    @if let Some(residual) = photo.residual(0) {
                        span.rank { (format!("{residual:+.2}")) span.sr { " off" } }
                    }
                }
                div.facts {
                    @if let (Some(value), Some(label)) = (photo.value(0), photo.label_score(0)) {
                        p.score {
                            span.value { (format!("{:.2}", value.score)) }
                            span.std { " predicted, " (format!("{label:.2}")) " labelled" }
                        }
                        (chart::distributions(&value.distribution, photo.label.distributions.first().map(Vec::as_slice)))
                        p.scale aria-hidden="true" { span { (range.0) } span { (range.1) } }
                    }
                    @if let Some(score) = champion { p.answer { "The champion predicted " (format!("{score:.2}")) } }
                    p.name { (photo.image) }
                }
            }
        }
    }
}

fn failures<'a>(set: &'a SetReport<'_>) -> Vec<Rejected<'a>> {
    let failures = set.evaluation.failures().take(MOST_FAILURES);
    failures
        .map(|(photo, error)| Rejected {
            image: &photo.image,
            thumbnail: set.thumbnails.get(&photo.image).map(Vec::as_slice),
            error,
        })
        .collect()
}

fn failures_heading(evaluation: &Evaluation) -> String {
    match evaluation.failures().count() {
        all if all > MOST_FAILURES => format!("Without a score: {MOST_FAILURES} of {}", grouped(all)),
        _ => "Without a score".to_owned(),
    }
}

fn footer(report: &EvaluationReport<'_>) -> Markup {
    let first = report.sets.first();
    html! {
        footer {
            details open {
                summary { "Models and settings" }
                dl.settings {
                    @if let Some(SetReport { evaluation, against, .. }) = first {
                        @match against {
                            Some(against) => {
                                (model("challenger", &evaluation.model))
                                (model("champion", &against.champion.model))
                            }
                            None => (model("model", &evaluation.model)),
                        }
                        (setting("intervals", format!(
                            "{}, {} draws, seed {}",
                            percent(evaluation.intervals.confidence),
                            grouped(evaluation.intervals.resamples as usize),
                            evaluation.intervals.seed
                        )))
                        (setting("score range", format!("{} to {}", evaluation.range.0, evaluation.range.1)))
                    }
                    @for (name, value) in &report.settings { (setting(name, value)) }
                }
            }
            (written_by("Intervals are percentile bootstrap intervals over photos, those of differences paired."))
        }
    }
}

fn model(name: &str, version: &ModelVersion) -> Markup {
    setting(name, format!("{} {}", version.model, version.version))
}

/// How many decimals a metric is shown with.
fn digits(metric: Metric) -> usize {
    if matches!(metric, Metric::Mae | Metric::Rmse) { 3 } else { 4 }
}

fn number(metric: Metric, value: f64) -> String {
    format!("{value:.*}", digits(metric))
}

fn interval(metric: Metric, estimate: &Estimate) -> String {
    match estimate.interval {
        Some((low, high)) => format!("{} to {}", number(metric, low), number(metric, high)),
        None => "too few photos".to_owned(),
    }
}

fn percent(share: f64) -> String {
    format!("{}%", (share * 1e4).round() / 1e2)
}

fn signed(difference: &Estimate, digits: usize) -> String {
    match difference.interval {
        Some((low, high)) => format!("{:+.digits$} ({low:+.digits$} to {high:+.digits$})", difference.value),
        None => format!("{:+.digits$}", difference.value),
    }
}

fn ordinal(index: usize) -> String {
    match index {
        0 => "1st".to_owned(),
        1 => "2nd".to_owned(),
        2 => "3rd".to_owned(),
        _ => format!("{}th", index + 1),
    }
}
