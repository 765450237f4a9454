//! The charts, as inline SVG that takes its colours from the page's style.

use crate::{
    report::{
        shell::short,
        statistics::{Histogram, Statistics},
    },
    score::ScoreValue,
};
use maud::{Markup, html};
use std::fmt::Write;

const WIDTH: f64 = 960.0;
const HEIGHT: f64 = 200.0;
/// Room above the tallest bar for its count.
const TOP: f64 = 32.0;
/// Room below the axis for its labels.
const BOTTOM: f64 = 30.0;

/// Histogram of all scores, with the median marked.
pub fn histogram(histogram: &Histogram, statistics: &Statistics) -> Markup {
    let bars = histogram.counts.len();
    let tallest = histogram.counts.iter().copied().max().unwrap_or(1).max(1) as f64;
    let slot = WIDTH / bars as f64;
    let gap = (slot * 0.12).min(6.0);
    let decimals = histogram.decimals();
    let x = |score: f64| (score - histogram.low) / (histogram.high() - histogram.low) * WIDTH;
    let counted = || histogram.counts.iter().copied().enumerate().filter(|(_, count)| *count > 0);
    let height = |count: usize| (count as f64 / tallest * HEIGHT).max(2.0);
    let every = bars.div_ceil(12);
    let summary = format!(
        "Histogram of {} scores from {:.2} to {:.2}; half of them lie above {:.2}",
        histogram.counts.iter().sum::<usize>(),
        statistics.lowest,
        statistics.highest,
        statistics.median,
    );
    html! {
        svg.histogram viewBox=(format!("0 0 {WIDTH} {}", TOP + HEIGHT + BOTTOM)) role="img" aria-label=(summary) {
            @for (index, count) in counted() {
                g {
                    title {
                        (format!("{:.decimals$} to {:.decimals$}: {count}", histogram.edge(index), histogram.edge(index + 1)))
                    }
                    rect.bar x=(short(slot * index as f64 + gap / 2.0)) y=(short(TOP + HEIGHT - height(count)))
                        width=(short(slot - gap)) height=(short(height(count))) rx=(short((slot - gap).min(6.0) / 2.0)) {}
                }
            }
            line.axis x1="0" x2=(WIDTH) y1=(TOP + HEIGHT) y2=(TOP + HEIGHT) {}
            line.median x1=(short(x(statistics.median))) x2=(short(x(statistics.median))) y1="6" y2=(TOP + HEIGHT) {}
            @for (index, count) in counted() {
                text.count x=(short(slot * (index as f64 + 0.5))) y=(short(TOP + HEIGHT - height(count) - 6.0)) { (count) }
            }
            @for index in (0..=bars).step_by(every) {
                @let anchor = match index { 0 => "start", _ if index == bars => "end", _ => "middle" };
                text.tick x=(short(slot * index as f64)) y=(TOP + HEIGHT + 22.0) text-anchor=(anchor) {
                    (format!("{:.decimals$}", histogram.edge(index)))
                }
            }
        }
    }
}

/// The rating distribution of one score: a bar a bin, and a line at the score.
pub fn distribution(value: &ScoreValue, (low, high): (f64, f64)) -> Markup {
    let bins = value.distribution.len().max(1);
    let tallest = value.distribution.iter().copied().fold(f32::MIN_POSITIVE, f32::max);
    // One path for all bars keeps a page of thousands of images small.
    let mut bars = String::new();
    for (index, probability) in value.distribution.iter().enumerate() {
        let height = f64::from(probability / tallest) * 40.0;
        if height >= 0.2 {
            let left = 200.0 * index as f64 / bins as f64;
            let width = 200.0 / bins as f64 * 0.84;
            let inset = 200.0 / bins as f64 * 0.08;
            // Writing to a String cannot fail.
            let _ = write!(
                bars,
                "M{} 44v-{}h{}v{}z",
                short(left + inset),
                short(height),
                short(width),
                short(height)
            );
        }
    }
    // Bin centres are what scores are averages of: the first stands at `low`, the last at `high`.
    let cell = 200.0 / bins as f64;
    let position = (value.score - low) / (high - low).max(f64::MIN_POSITIVE);
    let mean = (cell / 2.0 + position * (200.0 - cell)).clamp(0.0, 200.0);
    let summary = format!(
        "Rating distribution in {bins} bins from {low} to {high}: mean {:.2}, standard deviation {:.2}",
        value.score, value.std,
    );
    html! {
        svg.distribution viewBox="0 0 200 46" preserveAspectRatio="none" role="img" aria-label=(summary) {
            title { (summary) }
            path.bar d=(bars) {}
            line.axis x1="0" x2="200" y1="44.5" y2="44.5" {}
            line.mean x1=(short(mean)) x2=(short(mean)) y1="0" y2="44" {}
        }
    }
}
