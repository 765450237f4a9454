//! The page itself.

use super::{Entry, EntryScore, ReportMeta, chart};
use crate::report::{
    shell::{
        Rejected, Shell, count, data_address, date, duration, emit, rejections, setting, tile, written_by,
    },
    statistics::{Histogram, Statistics},
};
use maud::{Markup, PreEscaped, html};
use std::io::{self, Write};

const STYLE: &str = include_str!("gallery.css");
const SCRIPT: &str = include_str!("script.js");

/// Writes the page for `entries` in their order.
pub fn write<W: Write>(out: &mut W, meta: &ReportMeta, entries: &[Entry]) -> io::Result<()> {
    let shell = Shell { title: &meta.title, style: STYLE, script: Some(SCRIPT) };
    shell.write(out, |out| body(out, meta, entries))
}

fn body(out: &mut impl Write, meta: &ReportMeta, entries: &[Entry]) -> io::Result<()> {
    let scores: Vec<f64> = entries.iter().filter_map(Entry::score).collect();
    let rejected: Vec<_> = entries
        .iter()
        .filter_map(|Entry { image, thumbnail, outcome, .. }| {
            Some(Rejected { image, thumbnail: thumbnail.as_deref(), error: outcome.as_ref().err()? })
        })
        .collect();
    emit(out, introduction(meta, &scores, rejected.len()))?;
    out.write_all(b"<main id=\"main\">")?;
    if let (Some(statistics), Some(histogram)) =
        (Statistics::of_descending(&scores), Histogram::new(&scores, meta.score_range))
    {
        emit(out, overview(&histogram, &statistics))?;
        emit(out, gallery_head(scores.len()))?;
        out.write_all(b"<ol class=\"gallery\" id=\"gallery\">")?;
        let scored = entries.iter().filter_map(|entry| Some((entry, entry.outcome.as_ref().ok()?)));
        for (index, (entry, score)) in scored.enumerate() {
            emit(out, card(index + 1, entry, score, meta.score_range))?;
        }
        out.write_all(b"</ol></section>")?;
    }
    if !rejected.is_empty() {
        emit(out, rejections("Rejected", &rejected))?;
    }
    out.write_all(b"</main>")?;
    emit(out, footer(meta))
}

fn introduction(meta: &ReportMeta, scores: &[f64], rejected: usize) -> Markup {
    let statistics = Statistics::of_descending(scores);
    html! {
        a.skip href="#main" { "Skip to the results" }
        header {
            h1 { (meta.title) }
            p.subtitle {
                (count(scores.len() + rejected, "image")) ", "
                (date(meta.written_at))
                @if let Some(elapsed) = meta.elapsed {
                    ", scored in " (duration(elapsed))
                }
            }
            @if let Some(note) = &meta.note {
                p.note role="note" { (note) }
            }
            dl.tiles {
                (tile("Scored", &scores.len().to_string(), ""))
                (tile("Rejected", &rejected.to_string(), if rejected > 0 { "warn" } else { "" }))
                @if let Some(statistics) = statistics {
                    (tile("Mean", &format!("{:.2}", statistics.mean), ""))
                    (tile("Median", &format!("{:.2}", statistics.median), ""))
                    (tile("Lowest", &format!("{:.2}", statistics.lowest), ""))
                    (tile("Highest", &format!("{:.2}", statistics.highest), ""))
                }
            }
        }
    }
}

fn overview(histogram: &Histogram, statistics: &Statistics) -> Markup {
    html! {
        section aria-labelledby="distribution-heading" {
            div.section-head {
                h2 id="distribution-heading" { "Distribution" }
                p.legend { span.key {} "median " (format!("{:.2}", statistics.median)) }
            }
            div.panel { (chart::histogram(histogram, statistics)) }
        }
    }
}

/// Opens the gallery's section, with controls that the script shows: without it they would do nothing.
fn gallery_head(images: usize) -> Markup {
    html! {
        (PreEscaped("<section aria-labelledby=\"gallery-heading\">"))
        div.section-head {
            h2 id="gallery-heading" { "Gallery" }
            form.controls id="controls" hidden {
                label { "Sort "
                    select id="sort" {
                        option value="score" { "best first" }
                        option value="-score" { "worst first" }
                        option value="-std" { "most disputed first" }
                        option value="name" { "by name" }
                    }
                }
                label { "Find "
                    input id="find" type="search" placeholder="name or answer" autocomplete="off" spellcheck="false";
                }
                output id="shown" for="find" aria-live="polite" { (count(images, "image")) }
            }
        }
    }
}

fn card(rank: usize, entry: &Entry, score: &EntryScore, range: (f64, f64)) -> Markup {
    let first = score.scores.first();
    let std = first.map_or(0.0, |value| value.std);
    html! {
        li.card data-score=(entry.score().unwrap_or_default()) data-std=(std) {
            article {
                div.photo {
                    @match &entry.thumbnail {
                        Some(jpeg) => {
                            img src=(data_address(jpeg)) alt=(entry.image);
                        }
                        None => { p.no-photo { "no preview" } }
                    }
                    span.rank { span.sr { "Rank " } (rank) }
                }
                div.facts {
                    @for value in &score.scores {
                        p.score {
                            span.value title=(value.score) { (format!("{:.2}", value.score)) }
                            span.std { " ± " (format!("{:.2}", value.std)) }
                        }
                        (chart::distribution(value, range))
                        p.scale aria-hidden="true" { span { (range.0) } span { (range.1) } }
                    }
                    p.answer { (score.text.trim()) }
                    p.name {
                        (entry.image)
                        @if let Some((width, height)) = entry.size {
                            span.size { (width) "×" (height) }
                        }
                    }
                }
            }
        }
    }
}

fn footer(meta: &ReportMeta) -> Markup {
    html! {
        footer {
            details open {
                summary { "Model and settings" }
                dl.settings {
                    (setting("model", &meta.model.model))
                    (setting("version", &meta.model.version))
                    (setting("preprocessing revision", meta.model.preprocess_revision))
                    (setting("score range", format!("{} to {}", meta.score_range.0, meta.score_range.1)))
                    @for (name, value) in &meta.settings {
                        (setting(name, value))
                    }
                }
            }
            (written_by("A score is the mean of the distribution below its photo, ± its standard deviation."))
        }
    }
}
