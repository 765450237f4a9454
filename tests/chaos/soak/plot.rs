//! Memory over time as a picture, with a tick for every fault.

use super::memory::Series;
use anyhow::Result;
use maud::html;
use std::path::Path;
use std::time::Duration;

const WIDTH: f64 = 960.0;
const HEIGHT: f64 = 320.0;
const LEFT: f64 = 56.0;
const TOP: f64 = 40.0;
const COLOURS: [&str; 6] = ["#1f6f8b", "#c8553d", "#588157", "#8e6c88", "#b08900", "#555555"];

/// Writes the picture of `series` with the faults `marks`: when, and what.
pub fn write(path: &Path, series: &[Series], marks: &[(Duration, String)]) -> Result<()> {
    let samples = || series.iter().flat_map(|series| &series.samples);
    let end = samples().map(|(at, _)| *at).fold(1.0, f64::max);
    let highest = samples().map(|(_, mib)| *mib).fold(1.0, f64::max);
    let step = [10.0, 20.0, 50.0, 100.0, 200.0, 500.0].into_iter().find(|step| highest / step <= 6.0);
    let step = step.unwrap_or(1000.0);
    let top = (highest / step).ceil() * step;
    let x = |at: f64| LEFT + at / end * (WIDTH - LEFT - 16.0);
    let y = |mib: f64| TOP + (1.0 - mib / top) * HEIGHT;
    let mut names: Vec<&str> = series.iter().map(|series| series.name.as_str()).collect();
    names.sort_unstable();
    names.dedup();
    let colour = |name: &str| {
        let place = names.iter().position(|known| *known == name).unwrap_or(0);
        COLOURS[place % COLOURS.len()]
    };
    let minutes = (end / 60.0).ceil() as usize;
    let every = minutes.div_ceil(12).max(1);
    let picture = html! {
        svg xmlns="http://www.w3.org/2000/svg" viewBox=(format!("0 0 {WIDTH} {}", TOP + HEIGHT + 48.0))
            font-family="sans-serif" font-size="12" {
            title { "Resident memory of the workers in MiB" }
            rect width="100%" height="100%" fill="#ffffff" {}
            @for line in 0..=(top / step) as usize {
                @let mib = line as f64 * step;
                line x1=(LEFT) x2=(WIDTH - 16.0) y1=(short(y(mib))) y2=(short(y(mib))) stroke="#dddddd" {}
                text x=(LEFT - 8.0) y=(short(y(mib) + 4.0)) text-anchor="end" fill="#555555" { (mib) " MiB" }
            }
            @for minute in (0..=minutes).step_by(every).filter(|minute| *minute as f64 * 60.0 <= end) {
                text x=(short(x(minute as f64 * 60.0))) y=(TOP + HEIGHT + 34.0) text-anchor="middle" fill="#555555" {
                    (minute) " min"
                }
            }
            @for (at, fault) in marks {
                @let at = short(x(at.as_secs_f64()));
                line x1=(at) x2=(at) y1=(TOP + HEIGHT) y2=(TOP + HEIGHT + 14.0) stroke="#b00020" stroke-width="2" {
                    title { (fault) }
                }
            }
            @for series in series {
                @let points = series.samples.iter().map(|(at, mib)| format!("{},{}", short(x(*at)), short(y(*mib))));
                polyline fill="none" stroke=(colour(&series.name)) stroke-width="1.5"
                    points=(points.collect::<Vec<_>>().join(" ")) {}
            }
            @for (index, name) in names.iter().enumerate() {
                text x=(LEFT + 120.0 * index as f64) y="24" fill=(colour(name)) { (name) }
            }
        }
    };
    std::fs::write(path, picture.into_string())?;
    Ok(())
}

fn short(value: f64) -> String {
    format!("{value:.1}")
}
