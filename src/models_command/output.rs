//! Versions on standard output.

use super::args::Format;
use crate::{
    registry::Manifest,
    serving::Agreement,
    store::{RegisteredVersion, Reign, ShadowRecord},
};
use serde_json::{Value, json};
use std::io::{self, Write};
use time::{OffsetDateTime, macros::format_description};

/// What of a version's metrics has room in a line.
const SHORT_METRICS: usize = 48;

/// Every version, a line each.
pub(super) fn list(versions: &[RegisteredVersion], format: Format, out: &mut dyn Write) -> io::Result<()> {
    if format == Format::Json {
        return json_document(&json!(versions), out);
    }
    if versions.is_empty() {
        return writeln!(out, "no version is registered; `roc4mllm models publish DIR` registers one");
    }
    let header = ["VERSION", "STATUS", "SINCE", "PUBLISHED", "PARENT", "METRICS"].map(str::to_owned);
    let rows = versions.iter().map(|version| {
        [
            version.version.clone(),
            status(version),
            day(version.status_since),
            day(version.created_at),
            version.parent.clone().unwrap_or_else(|| "-".into()),
            version.metrics.as_ref().map_or_else(|| "-".into(), short_metrics),
        ]
    });
    let rows: Vec<_> = std::iter::once(header).chain(rows).collect();
    let widths: Vec<usize> =
        (0..6).map(|column| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0)).collect();
    for row in rows {
        let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}", width = *width));
        writeln!(out, "{}", cells.collect::<Vec<_>>().join("  ").trim_end())?;
    }
    Ok(())
}

/// One version, with its files where the manifest is there, when it was champion, and what came of scoring
/// beside others.
pub(super) fn show(
    version: &RegisteredVersion,
    manifest: Option<&Manifest>,
    reigns: &[Reign],
    shadowed: &[ShadowRecord],
    format: Format,
    out: &mut dyn Write,
) -> io::Result<()> {
    if format == Format::Json {
        let mut document = json!(version);
        document["files"] = manifest.map_or(Value::Null, |manifest| json!(manifest.files));
        document["champion_since"] = json!(reigns);
        document["shadowed"] = agreements(shadowed)
            .map(|(record, agreement)| {
                let mut entry = json!(agreement);
                entry["candidate"] = json!(record.candidate);
                entry["champion"] = json!(record.champion);
                entry
            })
            .collect();
        return json_document(&document, out);
    }
    let or_none = |text: &Option<String>| text.clone().unwrap_or_else(|| "none known".into());
    let mut line = |label: &str, value: String| writeln!(out, "{label:<11}{value}");
    line("version", version.version.clone())?;
    line("digest", version.digest.clone())?;
    line("status", format!("{} since {}", status(version), day(version.status_since)))?;
    line("address", version.uri.clone())?;
    line("published", format!("{} by roc4mllm {}", day(version.created_at), version.code_version))?;
    line("parent", or_none(&version.parent))?;
    line("data set", or_none(&version.dataset))?;
    for reign in reigns {
        line("champion", format!("from {} ({})", day(reign.since), reign.kind))?;
    }
    for (record, agreement) in agreements(shadowed) {
        let Agreement { images, mean_difference, mean_absolute_difference, pearson, spearman } = agreement;
        let or_none = |value: Option<f64>| value.map_or_else(|| "none".into(), |value| format!("{value:.4}"));
        let value = format!(
            "beside {} on {images} images: difference {mean_difference:.4}, MAE {mean_absolute_difference:.4}, \
             PLCC {}, SRCC {}",
            record.champion,
            or_none(pearson),
            or_none(spearman)
        );
        line("shadow", value)?;
    }
    match version.metrics.as_ref().and_then(Value::as_object) {
        None => line("metrics", "none known".into())?,
        Some(metrics) => {
            for (name, value) in metrics {
                line("metric", format!("{name} {value}"))?;
            }
        }
    }
    match manifest {
        None => line("files", "the manifest is not there; publish the version again".into())?,
        Some(manifest) => {
            for file in &manifest.files {
                line("file", format!("{}  {} bytes  {}", file.name, file.bytes, file.sha256))?;
            }
        }
    }
    Ok(())
}

fn agreements(shadowed: &[ShadowRecord]) -> impl Iterator<Item = (&ShadowRecord, Agreement)> {
    shadowed.iter().filter_map(|record| Some((record, Agreement::of(record)?)))
}

fn status(version: &RegisteredVersion) -> String {
    let percent = |share: f64| format!("{}%", (share * 10_000.0).round() / 100.0);
    let mut status = version.status.to_string();
    if version.canary_share > 0.0 {
        status.push_str(&format!(", canary of {}", percent(version.canary_share)));
    }
    if version.shadow_share > 0.0 {
        status.push_str(&format!(", shadow of {}", percent(version.shadow_share)));
    }
    status
}

/// Numbers by name, as many as there is room for.
fn short_metrics(metrics: &Value) -> String {
    let numbers = metrics.as_object().into_iter().flatten();
    let mut text = String::new();
    for (name, value) in numbers.filter_map(|(name, value)| Some((name, value.as_f64()?))) {
        let next = format!("{name} {}", (value * 1e4).round() / 1e4);
        if text.len() + next.len() + 2 > SHORT_METRICS && !text.is_empty() {
            text.push_str(", …");
            break;
        }
        if !text.is_empty() {
            text.push_str(", ");
        }
        text.push_str(&next);
    }
    if text.is_empty() { "see `models show`".into() } else { text }
}

fn day(time: OffsetDateTime) -> String {
    let format = format_description!("[year]-[month]-[day] [hour]:[minute]");
    // Only a year beyond 9999 cannot be written like this.
    time.to_offset(time::UtcOffset::UTC).format(&format).unwrap_or_else(|_| time.to_string())
}

fn json_document(document: &Value, out: &mut dyn Write) -> io::Result<()> {
    serde_json::to_writer_pretty(&mut *out, document)?;
    writeln!(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        object::ScoreId,
        store::{ShadowPair, ShadowSums, VersionStatus},
    };

    fn version(status: VersionStatus) -> RegisteredVersion {
        RegisteredVersion {
            version: "sha256:0123456789ab".into(),
            digest: format!("sha256:{}", "0123456789ab".repeat(6)),
            status,
            parent: None,
            uri: "s3://models/roc4mllm/0123456789ab".into(),
            manifest_sha256: "0".repeat(64),
            dataset: None,
            metrics: Some(json!({"srcc": 0.812345, "by_bin": [1], "photos": 30})),
            code_version: "0.1.0".into(),
            canary_share: 0.0,
            shadow_share: 0.0,
            created_at: OffsetDateTime::UNIX_EPOCH,
            registered_at: OffsetDateTime::UNIX_EPOCH,
            status_since: OffsetDateTime::UNIX_EPOCH,
        }
    }

    fn written(write: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> String {
        let mut out = Vec::new();
        write(&mut out).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn the_table_is_aligned_and_says_what_is_on_trial() {
        let mut canary = version(VersionStatus::Candidate);
        canary.canary_share = 0.1;
        canary.shadow_share = 0.005;
        canary.parent = Some("sha256:ba9876543210".into());
        canary.metrics = None;
        let champion = version(VersionStatus::Champion);
        let text = written(|out| list(&[champion, canary], Format::Table, out));
        let expected = "\
VERSION              STATUS                                  SINCE             PUBLISHED         PARENT               METRICS
sha256:0123456789ab  champion                                1970-01-01 00:00  1970-01-01 00:00  -                    srcc 0.8123, photos 30
sha256:0123456789ab  candidate, canary of 10%, shadow of 0.5%  1970-01-01 00:00  1970-01-01 00:00  sha256:ba9876543210  -
";
        let lines = |text: &str| {
            text.lines()
                .map(|line| {
                    line.split("  ")
                        .filter(|cell| !cell.is_empty())
                        .map(|cell| cell.trim().to_owned())
                        .collect::<Vec<_>>()
                })
                .collect::<Vec<_>>()
        };
        assert_eq!(lines(&text), lines(expected));
        let columns: Vec<_> = text.lines().map(|line| line.find("1970").or(line.find("SINCE"))).collect();
        assert!(columns.windows(2).all(|pair| pair[0] == pair[1]), "{text}");
    }

    #[test]
    fn json_has_every_field_and_the_files() {
        let text = written(|out| show(&version(VersionStatus::Retired), None, &[], &[], Format::Json, out));
        let document: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(document["status"], "retired");
        assert_eq!(document["metrics"]["photos"], 30);
        assert_eq!(document["created_at"], "1970-01-01T00:00:00Z");
        assert!(document["files"].is_null() && document["champion_since"].as_array().unwrap().is_empty());
        assert_eq!(written(|out| list(&[], Format::Json, out)), "[]\n");
        assert!(written(|out| list(&[], Format::Table, out)).contains("models publish"));
    }

    #[test]
    fn a_shadow_is_shown_beside_each_champion() {
        let pairs = [(5.0, 5.25), (6.0, 6.0), (7.0, 7.5)].map(|(champion, candidate)| ShadowPair {
            id: ScoreId::of_position("t", 0, champion as i64, 0),
            champion,
            candidate,
        });
        let record = ShadowRecord {
            candidate: "sha256:0123456789ab+assess+f32".into(),
            champion: "sha256:ba9876543210+assess+f32".into(),
            sums: pairs.iter().collect(),
            sample: pairs.into(),
        };
        let unseen = ShadowRecord { sums: ShadowSums::default(), sample: Vec::new(), ..record.clone() };
        let shadowed = [record, unseen];
        let version = version(VersionStatus::Candidate);
        let text = written(|out| show(&version, None, &[], &shadowed, Format::Table, out));
        let lines: Vec<&str> = text.lines().filter(|line| line.starts_with("shadow")).collect();
        assert_eq!(
            lines,
            [
                "shadow     beside sha256:ba9876543210+assess+f32 on 3 images: difference 0.2500, MAE 0.2500, PLCC 0.9820, SRCC 1.0000"
            ]
        );
        let text = written(|out| show(&version, None, &[], &shadowed, Format::Json, out));
        let document: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(document["shadowed"].as_array().map(Vec::len), Some(1));
        assert_eq!(document["shadowed"][0]["mean_difference"], 0.25);
    }

    #[test]
    fn long_metrics_are_cut_between_two() {
        let metrics: serde_json::Map<String, Value> =
            (0..20).map(|number| (format!("metric_{number}"), json!(f64::from(number)))).collect();
        let text = short_metrics(&metrics.into());
        assert!(text.ends_with(", …") && text.chars().count() <= SHORT_METRICS + 3, "{text}");
        assert_eq!(short_metrics(&json!({"only": "words"})), "see `models show`");
    }
}
