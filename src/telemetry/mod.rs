//! What the outside sees: logs on standard error and metrics in the Prometheus text format.

pub mod logs;
pub mod metrics;

use serde::{Deserialize, Serialize};

/// The `telemetry` section.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TelemetrySettings {
    /// `auto` is `human` on a terminal and `json` elsewhere.
    pub log_format: logs::LogFormat,
    /// A `tracing` filter: a level, or `target=level` pairs separated by commas.
    pub log_level: String,
}

impl Default for TelemetrySettings {
    fn default() -> Self {
        Self { log_format: logs::LogFormat::Auto, log_level: "info".into() }
    }
}
