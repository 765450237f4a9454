//! The charts of an evaluation, as inline SVG that takes its colours from the page's style.

use super::figures::{Quantiles, SpreadGroup};
use crate::report::{
    axis::Axis,
    shell::{count, short},
};
use maud::{Markup, html};
use std::fmt::Write as _;

const WIDTH: f64 = 520.0;
const HEIGHT: f64 = 400.0;
const LEFT: f64 = 58.0;
const RIGHT: f64 = 14.0;
const TOP: f64 = 12.0;
const BOTTOM: f64 = 52.0;

/// Two axes and what lies between them.
#[derive(Clone, Copy, Debug)]
pub struct Plot {
    pub x: Axis,
    pub y: Axis,
}

impl Plot {
    pub const VIEW: &str = "0 0 520 400";

    pub fn x(&self, value: f64) -> f64 {
        LEFT + self.x.position(value) * (WIDTH - LEFT - RIGHT)
    }

    pub fn y(&self, value: f64) -> f64 {
        HEIGHT - BOTTOM - self.y.position(value) * (HEIGHT - TOP - BOTTOM)
    }

    /// Grid, ticks and the axes' names.
    pub fn frame(&self, x_name: &str, y_name: &str) -> Markup {
        let (bottom, right) = (HEIGHT - BOTTOM, WIDTH - RIGHT);
        html! {
            g.grid {
                @for (value, label) in self.y.ticks() {
                    @let y = self.y(value);
                    line x1=(LEFT) x2=(right) y1=(short(y)) y2=(short(y)) {}
                    text x=(LEFT - 8.0) y=(short(y)) dy="0.35em" text-anchor="end" { (label) }
                }
                @for (value, label) in self.x.ticks() {
                    @let x = self.x(value);
                    line x1=(short(x)) x2=(short(x)) y1=(TOP) y2=(bottom) {}
                    text x=(short(x)) y=(bottom + 20.0) text-anchor="middle" { (label) }
                }
                text.axis-name x=((LEFT + right) / 2.0) y=(HEIGHT - 6.0) text-anchor="middle" { (x_name) }
                text.axis-name x="14" y=((TOP + bottom) / 2.0) text-anchor="middle"
                    transform=(format!("rotate(-90 14 {})", (TOP + bottom) / 2.0)) { (y_name) }
            }
        }
    }
}

/// Residuals of one or two models by the label: a box from quartile to quartile with the median, whiskers from
/// the 5th to the 95th percentile. `models` are named, the challenger last.
pub fn residuals(models: &[(&str, Vec<Option<Quantiles>>)], x: Axis) -> Markup {
    let reach = models.iter().flat_map(|(_, bins)| bins.iter().flatten());
    let plot = Plot { x, y: Axis::around(reach.flat_map(|bin| bin.at).chain([0.0]), 6.0) };
    let bin_width = (plot.x(x.high) - plot.x(x.low)) * x.step / (x.high - x.low);
    let width = bin_width * 0.62 / models.len() as f64;
    let summary = "Prediction minus label by the label, from the 5th to the 95th percentile of each bin";
    html! {
        svg.plot viewBox=(Plot::VIEW) role="img" aria-label=(summary) {
            (plot.frame("label", "prediction − label"))
            line.diagonal x1=(LEFT) x2=(WIDTH - RIGHT) y1=(short(plot.y(0.0))) y2=(short(plot.y(0.0))) {}
            @for (index, (name, bins)) in models.iter().enumerate() {
                @let class = if index + 1 == models.len() { "one" } else { "other" };
                @for (bin, quantiles) in bins.iter().enumerate() {
                    @if let Some(Quantiles { count: photos, at }) = quantiles {
                        @let middle = plot.x(x.low + x.step * (bin as f64 + 0.5))
                            + (index as f64 - (models.len() as f64 - 1.0) / 2.0) * (width + 2.0);
                        @let [lowest, lower, median, upper, highest] = at.map(|value| plot.y(value));
                        g.box.(class) {
                            title {
                                (name) ": " (count(*photos, "photo"))
                                (format!(", median {:+.2}, half of them {:+.2} to {:+.2}", at[2], at[1], at[3]))
                            }
                            line x1=(short(middle)) x2=(short(middle)) y1=(short(highest)) y2=(short(lowest)) {}
                            rect x=(short(middle - width / 2.0)) y=(short(upper)) width=(short(width))
                                height=(short((lower - upper).max(1.0))) rx="2" {}
                            line.median x1=(short(middle - width / 2.0)) x2=(short(middle + width / 2.0))
                                y1=(short(median)) y2=(short(median)) {}
                        }
                    }
                }
            }
        }
    }
}

/// The raters' spread and the error by the predicted spread; on the diagonal they are equal.
pub fn spreads(groups: &[SpreadGroup]) -> Markup {
    let values = groups.iter().flat_map(|group| [Some(group.predicted), group.raters, Some(group.error)]);
    let axis = Axis::around(values.flatten().chain([0.0]), 5.0);
    let plot = Plot { x: axis, y: axis };
    let series = |value: fn(&SpreadGroup) -> Option<f64>| -> Vec<(f64, f64, usize)> {
        groups.iter().filter_map(|group| Some((group.predicted, value(group)?, group.photos))).collect()
    };
    let raters = series(|group| group.raters);
    let error = series(|group| Some(group.error));
    let line = |points: &[(f64, f64, usize)]| {
        points.iter().fold(String::new(), |mut path, (x, y, _)| {
            let command = if path.is_empty() { 'M' } else { 'L' };
            // Writing to a String cannot fail.
            let _ = write!(path, "{command}{} {}", short(plot.x(*x)), short(plot.y(*y)));
            path
        })
    };
    let summary = "Spread of the raters and size of the error by the predicted spread, in groups of equally many photos";
    html! {
        svg.plot viewBox=(Plot::VIEW) role="img" aria-label=(summary) {
            (plot.frame("predicted spread", "found in the labels"))
            line.diagonal x1=(short(plot.x(axis.low))) y1=(short(plot.y(axis.low)))
                x2=(short(plot.x(axis.high))) y2=(short(plot.y(axis.high))) {}
            @for (class, name, points) in [("other", "error", &error), ("one", "spread of the raters", &raters)] {
                g.series.(class) {
                    path d=(line(points)) {}
                    @for (x, y, photos) in points {
                        circle cx=(short(plot.x(*x))) cy=(short(plot.y(*y))) r="4.5" {
                            title { (format!("predicted {x:.2}, {name} {y:.2}, {photos} photos")) }
                        }
                    }
                }
            }
        }
    }
}

/// An interval around a difference, on a line of its own scale with 0 in the middle. `favour` says to which
/// side it is better.
pub fn difference(value: f64, (low, high): (f64, f64), gain: bool) -> Markup {
    let reach = low.abs().max(high.abs()).max(f64::MIN_POSITIVE) * 1.15;
    let x = |value: f64| 60.0 + value / reach * 56.0;
    let class = match (low > 0.0, high < 0.0) {
        (true, _) => {
            if gain {
                "good"
            } else {
                "bad"
            }
        }
        (_, true) => {
            if gain {
                "bad"
            } else {
                "good"
            }
        }
        _ => "",
    };
    html! {
        svg.interval.(class) viewBox="0 0 120 20" aria-hidden="true" {
            line.zero x1="60" x2="60" y1="1" y2="19" {}
            line.reach x1=(short(x(low))) x2=(short(x(high))) y1="10" y2="10" {}
            circle cx=(short(x(value))) cy="10" r="4" {}
        }
    }
}

/// The predicted rating distribution as bars and the raters' as an outline, where there is one.
pub fn distributions(predicted: &[f32], raters: Option<&[f64]>) -> Markup {
    let bins = predicted.len().max(1);
    let total = raters.map_or(1.0, |raters| raters.iter().sum::<f64>().max(f64::MIN_POSITIVE));
    let raters: Vec<f64> = raters
        .filter(|raters| raters.len() == predicted.len())
        .unwrap_or_default()
        .iter()
        .map(|share| share / total)
        .collect();
    let tallest =
        predicted.iter().map(|&share| f64::from(share)).chain(raters.iter().copied()).fold(1e-6, f64::max);
    let cell = 200.0 / bins as f64;
    let top = |share: f64| 44.0 - share / tallest * 40.0;
    let (mut bars, mut outline) = (String::new(), String::new());
    for (index, &share) in predicted.iter().enumerate() {
        let (left, width) = (cell * (index as f64 + 0.08), cell * 0.84);
        let height = 44.0 - top(f64::from(share));
        if height >= 0.2 {
            // Writing to a String cannot fail.
            let _ =
                write!(bars, "M{} 44v-{}h{}v{}z", short(left), short(height), short(width), short(height));
        }
    }
    for (index, &share) in raters.iter().enumerate() {
        let command = if index == 0 { 'M' } else { 'L' };
        let _ = write!(
            outline,
            "{command}{} {}H{}",
            short(cell * index as f64),
            short(top(share)),
            short(cell * (index + 1) as f64)
        );
    }
    html! {
        svg.distribution viewBox="0 0 200 46" preserveAspectRatio="none" aria-hidden="true" {
            path.bar d=(bars) {}
            line.axis x1="0" x2="200" y1="44.5" y2="44.5" {}
            @if !outline.is_empty() { path.outline d=(outline) {} }
        }
    }
}
