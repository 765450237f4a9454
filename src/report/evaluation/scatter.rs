//! Predictions beside labels, one dot a photo.

use super::{chart::Plot, figures::Line};
use crate::report::{axis::Axis, shell::short};
use maud::{Markup, html};
use std::fmt::Write as _;

/// More dots than this hide one another and make the page slow: evenly chosen ones stand for all.
const MOST_DOTS: usize = 6_000;

/// Scatter of (label, prediction) on equal axes, with the diagonal and the fit.
pub fn scatter(pairs: &[(f64, f64)], axis: Axis, model: &str) -> Markup {
    let plot = Plot { x: axis, y: axis };
    let fit = Line::fit(pairs);
    let every = pairs.len().div_ceil(MOST_DOTS).max(1);
    // Round ends of lines without length are dots, in a fraction of the bytes of circles.
    let mut dots = String::new();
    for (label, score) in pairs.iter().step_by(every) {
        // Writing to a String cannot fail.
        let _ = write!(dots, "M{} {}h0", short(plot.x(*label)), short(plot.y(*score)));
    }
    let radius = if pairs.len() > 400 { 3.0 } else { 5.0 };
    let summary = match fit {
        Some(Line { slope, .. }) => {
            format!(
                "{model}: {} predictions by their label; the fit rises by {slope:.2} a point",
                pairs.len()
            )
        }
        None => format!("{model}: {} predictions by their label", pairs.len()),
    };
    html! {
        svg.plot viewBox=(Plot::VIEW) role="img" aria-label=(summary) {
            (plot.frame("label", "prediction"))
            line.diagonal x1=(short(plot.x(axis.low))) y1=(short(plot.y(axis.low)))
                x2=(short(plot.x(axis.high))) y2=(short(plot.y(axis.high))) {}
            path.dots d=(dots) style=(format!("stroke-width:{radius}px")) {}
            @if let Some(line) = fit {
                @let (from, to) = inside(line, axis);
                line.fit x1=(short(plot.x(from))) y1=(short(plot.y(line.at(from))))
                    x2=(short(plot.x(to))) y2=(short(plot.y(line.at(to)))) {}
            }
        }
    }
}

/// Where a line enters and leaves the plot.
fn inside(line: Line, axis: Axis) -> (f64, f64) {
    let crossing = |y: f64| (y - line.intercept) / line.slope;
    let (mut one, mut other) = (crossing(axis.low), crossing(axis.high));
    if line.slope.abs() < 1e-9 {
        (one, other) = (axis.low, axis.high);
    }
    (one.min(other).clamp(axis.low, axis.high), one.max(other).clamp(axis.low, axis.high))
}
