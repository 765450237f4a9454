//! What the outside sees: logs on standard error, metrics in the Prometheus text format, and traces at an
//! OTLP collector. What each name means is in `docs/observability.md`.

pub mod drift;
pub mod logs;
pub mod metrics;
pub mod scores;
pub mod traces;

use serde::{Deserialize, Serialize};
use std::time::Duration;

/// The `telemetry` section.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TelemetrySettings {
    /// `auto` is `human` on a terminal and `json` elsewhere.
    pub log_format: logs::LogFormat,
    /// A `tracing` filter: a level, or `target=level` pairs separated by commas.
    pub log_level: String,
    /// Address of an OTLP collector that takes HTTP; without one, and without
    /// `OTEL_EXPORTER_OTLP_ENDPOINT`, no trace is recorded.
    pub otlp_endpoint: Option<String>,
    /// The share of traces, 0 to 1, that is recorded where no `traceparent` says whether to.
    pub trace_ratio: f64,
    /// How often Postgres is asked for what metrics say of it, in milliseconds.
    pub refresh_interval_ms: u64,
}

impl Default for TelemetrySettings {
    fn default() -> Self {
        Self {
            log_format: logs::LogFormat::Auto,
            log_level: "info".into(),
            otlp_endpoint: None,
            trace_ratio: 1.0,
            refresh_interval_ms: 60_000,
        }
    }
}

impl TelemetrySettings {
    pub fn refresh_interval(&self) -> Duration {
        Duration::from_millis(self.refresh_interval_ms)
    }

    /// What no type can say: the key that is wrong, and why.
    ///
    /// # Errors
    /// The key and the reason.
    pub fn check(&self) -> Result<(), (&'static str, String)> {
        let invalid = |key, reason: &dyn std::fmt::Display| Err((key, reason.to_string()));
        if let Err(error) = logs::parse_filter(&self.log_level) {
            return invalid("telemetry.log_level", &error);
        }
        if let Some(endpoint) = &self.otlp_endpoint
            && let Err(error) = traces::check_endpoint(endpoint)
        {
            return invalid("telemetry.otlp_endpoint", &error);
        }
        // Written so that what is no number is refused too.
        if !(0.0..=1.0).contains(&self.trace_ratio) {
            return invalid("telemetry.trace_ratio", &"is no share; give a number from 0 to 1");
        }
        if self.refresh_interval_ms == 0 {
            let reason = "is 0, which would never let Postgres rest; give milliseconds";
            return invalid("telemetry.refresh_interval_ms", &reason);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bad_setting_is_named() {
        let default = TelemetrySettings::default;
        assert_eq!(default().check(), Ok(()));
        let endpoint = Some("collector:4318".to_owned());
        for (settings, key) in [
            (TelemetrySettings { otlp_endpoint: endpoint, ..default() }, "telemetry.otlp_endpoint"),
            (TelemetrySettings { trace_ratio: f64::NAN, ..default() }, "telemetry.trace_ratio"),
            (TelemetrySettings { trace_ratio: 1.5, ..default() }, "telemetry.trace_ratio"),
            (TelemetrySettings { refresh_interval_ms: 0, ..default() }, "telemetry.refresh_interval_ms"),
            (TelemetrySettings { log_level: "=".into(), ..default() }, "telemetry.log_level"),
        ] {
            assert_eq!(settings.check().unwrap_err().0, key);
        }
    }
}
