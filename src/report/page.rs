//! The page itself.

use super::{
    Entry, EntryScore, ReportMeta, chart,
    statistics::{Histogram, Statistics},
};
use crate::fault::ItemError;
use base64::{Engine as _, engine::general_purpose::STANDARD};
use maud::{DOCTYPE, Markup, PreEscaped, Render, html};
use sha2::{Digest, Sha256};
use std::io::{self, Write};
use time::macros::format_description;

const STYLE: &str = include_str!("style.css");
const SCRIPT: &str = include_str!("script.js");

/// Writes the page for `entries` in their order.
pub fn write(out: &mut impl Write, meta: &ReportMeta, entries: &[Entry]) -> io::Result<()> {
    let scores: Vec<f64> = entries.iter().filter_map(Entry::score).collect();
    let rejected: Vec<_> =
        entries.iter().filter_map(|entry| entry.outcome.as_ref().err().map(|error| (entry, error))).collect();
    emit(out, DOCTYPE)?;
    out.write_all(b"<html lang=\"en\">")?;
    emit(out, head(meta))?;
    out.write_all(b"<body>")?;
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
        emit(out, rejections(&rejected))?;
    }
    out.write_all(b"</main>")?;
    emit(out, footer(meta))?;
    out.write_all(b"</body></html>\n")
}

fn emit(out: &mut impl Write, markup: impl Render) -> io::Result<()> {
    out.write_all(markup.render().0.as_bytes())
}

/// The source expression of a content security policy that allows just this inline text.
fn policy_hash(text: &str) -> String {
    format!("'sha256-{}'", STANDARD.encode(Sha256::digest(text)))
}

fn head(meta: &ReportMeta) -> Markup {
    let policy = format!(
        "default-src 'none'; img-src data:; style-src {}; script-src {}; base-uri 'none'; form-action 'none'",
        policy_hash(STYLE),
        policy_hash(SCRIPT)
    );
    html! {
        head {
            meta charset="utf-8";
            meta name="viewport" content="width=device-width, initial-scale=1";
            meta name="color-scheme" content="light dark";
            meta http-equiv="Content-Security-Policy" content=(policy);
            meta name="referrer" content="no-referrer";
            title { (meta.title) }
            style { (PreEscaped(STYLE)) }
        }
    }
}

fn introduction(meta: &ReportMeta, scores: &[f64], rejected: usize) -> Markup {
    let statistics = Statistics::of_descending(scores);
    html! {
        a.skip href="#main" { "Skip to the results" }
        header {
            h1 { (meta.title) }
            p.subtitle {
                (count(scores.len() + rejected, "image")) ", "
                (written_at(meta))
                @if let Some(elapsed) = meta.elapsed {
                    ", scored in " (duration(elapsed.as_secs_f64()))
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

fn tile(name: &str, value: &str, class: &str) -> Markup {
    html! { div class=(class) { dt { (name) } dd { (value) } } }
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

fn rejections(rejected: &[(&Entry, &ItemError)]) -> Markup {
    html! {
        section aria-labelledby="rejected-heading" {
            div.section-head { h2 id="rejected-heading" { "Rejected" } }
            ul.rejected {
                @for (entry, error) in rejected {
                    @let (reason, remedy) = reason_and_remedy(&entry.image, error);
                    li {
                        @if let Some(jpeg) = &entry.thumbnail {
                            img src=(data_address(jpeg)) alt="";
                        }
                        div {
                            p.name { (entry.image) }
                            p.reason { (reason) }
                            @if let Some(remedy) = remedy { p.remedy { (remedy) } }
                        }
                        code { (error.code) }
                    }
                }
            }
        }
    }
}

/// The message without the image's name, split where the remedy begins.
fn reason_and_remedy<'a>(image: &str, error: &'a ItemError) -> (&'a str, Option<&'a str>) {
    let message = error.message.strip_prefix(image).and_then(|rest| rest.strip_prefix(": "));
    let message = message.unwrap_or(&error.message);
    match message.rsplit_once("; ") {
        Some((reason, remedy)) => (reason, Some(remedy)),
        None => (message, None),
    }
}

fn footer(meta: &ReportMeta) -> Markup {
    html! {
        footer {
            details open {
                summary { "Model and settings" }
                dl.settings {
                    div { dt { "model" } dd { (meta.model.model) } }
                    div { dt { "version" } dd { (meta.model.version) } }
                    div { dt { "preprocessing revision" } dd { (meta.model.preprocess_revision) } }
                    div { dt { "score range" } dd { (meta.score_range.0) " to " (meta.score_range.1) } }
                    @for (name, value) in &meta.settings {
                        div { dt { (name) } dd { (value) } }
                    }
                }
            }
            p { "Written by roc4mllm " (env!("CARGO_PKG_VERSION")) ". A score is the mean of the distribution below its photo, ± its standard deviation." }
        }
        script { (PreEscaped(SCRIPT)) }
    }
}

fn data_address(jpeg: &[u8]) -> String {
    format!("data:image/jpeg;base64,{}", STANDARD.encode(jpeg))
}

fn count(number: usize, noun: &str) -> String {
    format!("{number} {noun}{}", if number == 1 { "" } else { "s" })
}

fn written_at(meta: &ReportMeta) -> String {
    let format = format_description!("[year]-[month]-[day] [hour]:[minute] UTC");
    // It fails for years that no clock shows, and the date is then left out.
    meta.written_at.to_offset(time::UtcOffset::UTC).format(&format).unwrap_or_default()
}

fn duration(seconds: f64) -> String {
    match seconds {
        ..60.0 => format!("{seconds:.1} s"),
        60.0..3600.0 => format!("{:.0} min {:02.0} s", (seconds / 60.0).floor(), seconds % 60.0),
        _ => format!("{:.0} h {:02.0} min", (seconds / 3600.0).floor(), (seconds % 3600.0) / 60.0),
    }
}
