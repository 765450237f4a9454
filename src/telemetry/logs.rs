//! Logs: a message for people, fields for queries, one format for all of the process.

use super::TelemetrySettings;
use serde::{Deserialize, Serialize};
use std::io::IsTerminal;
use tracing_subscriber::{EnvFilter, fmt::format::FmtSpan, layer::SubscriberExt, util::SubscriberInitExt};

/// How a log line looks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum LogFormat {
    #[default]
    Auto,
    Human,
    Json,
}

/// The log filter in the configuration cannot be read.
#[derive(Debug, thiserror::Error)]
#[error(
    "telemetry.log_level `{filter}` is no log filter: {reason}; use a level such as `info`, or `target=level` pairs"
)]
pub struct LogFilterError {
    filter: String,
    reason: String,
}

/// Checks a log filter without installing anything.
pub fn parse_filter(filter: &str) -> Result<EnvFilter, LogFilterError> {
    EnvFilter::try_new(filter)
        .map_err(|error| LogFilterError { filter: filter.into(), reason: error.to_string() })
}

/// Installs the process-wide subscriber, writing to standard error. A second call changes nothing.
pub fn install(settings: &TelemetrySettings) -> Result<(), LogFilterError> {
    let filter = parse_filter(&settings.log_level)?;
    let terminal = std::io::stderr().is_terminal();
    let json = match settings.log_format {
        LogFormat::Json => true,
        LogFormat::Human => false,
        LogFormat::Auto => !terminal,
    };
    let registry = tracing_subscriber::registry().with(filter);
    let layer = tracing_subscriber::fmt::layer()
        .with_writer(std::io::stderr)
        .with_span_events(FmtSpan::NONE)
        .with_target(true);
    let installed = if json {
        registry
            .with(layer.json().flatten_event(true).with_current_span(true).with_span_list(false))
            .try_init()
    } else {
        registry.with(layer.compact().with_ansi(terminal)).try_init()
    };
    if installed.is_err() {
        tracing::debug!("logging was set up before; its format stays");
    }
    Ok(())
}
