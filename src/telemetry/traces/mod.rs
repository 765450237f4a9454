//! One trace a record, sent to an OTLP collector.
//!
//! A trace continues the `traceparent` of the record's producer and ends with the commit of the record's
//! offset. Spans are made by hand rather than through `tracing`: their ids are those of the output's own
//! `traceparent`, they cross threads, and the filter of the log has no say in them.
//!
//! Nothing here waits: a span that ends goes into a bounded queue, or is dropped and counted where that is
//! full. The SDK's thread exports what is in it.

mod client;
mod exporter;
mod span;

pub use exporter::SpanCounts;
pub use span::{Span, SpanSeed};

use super::TelemetrySettings;
use crate::record::{Header, trace::TraceContext};
use opentelemetry::{InstrumentationScope, KeyValue, trace::SpanKind};
use opentelemetry_otlp::{WithExportConfig, WithHttpConfig};
use opentelemetry_sdk::{
    Resource,
    trace::{BatchConfigBuilder, BatchSpanProcessor, SpanProcessor},
};
use std::{sync::Arc, time::Duration};
use tokio::runtime::Handle;

/// Where the traces go below the collector's address, as the OTLP specification says.
const PATH: &str = "/v1/traces";
/// The environment variables that name a collector where the configuration names none.
const ENDPOINT_VARIABLES: [&str; 2] = ["OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT"];
/// Spans that may wait for the collector; 1 KiB each or less.
const QUEUE: usize = 8_192;
/// Spans in one request.
const BATCH: usize = 512;
/// How long a span waits for company.
const LINGER: Duration = Duration::from_secs(2);
/// How long the collector may take to answer.
const ANSWER: Duration = Duration::from_secs(5);

/// The collector cannot be written to.
#[derive(Debug, thiserror::Error)]
pub enum TracesError {
    #[error("telemetry.otlp_endpoint {0}")]
    Endpoint(String),
    #[error(
        "traces cannot be exported: {0}; correct telemetry.otlp_endpoint or the OTEL_EXPORTER_OTLP_* variables"
    )]
    Exporter(String),
}

/// Where spans go; off, they go nowhere. Cheap to clone.
#[derive(Clone, Default)]
pub struct Traces(Option<Arc<Recorder>>);

struct Recorder {
    processor: BatchSpanProcessor,
    scope: InstrumentationScope,
    ratio: f64,
    counts: Arc<SpanCounts>,
}

impl Traces {
    /// Spans are neither made nor sent.
    pub fn off() -> Self {
        Self::default()
    }

    /// Sends spans to the collector that the configuration or the environment names; off where neither
    /// does. Nothing is sent yet, so that a collector that is down holds up nobody.
    ///
    /// `runtime` sends the requests, and must last until [`stop`](Self::stop).
    ///
    /// # Errors
    /// [`TracesError`] when the address is none, or the system's certificates cannot be read.
    pub fn start(settings: &TelemetrySettings, runtime: Handle) -> Result<Self, TracesError> {
        let named = |variable: &str| std::env::var(variable).is_ok_and(|value| !value.trim().is_empty());
        let endpoint = match &settings.otlp_endpoint {
            Some(endpoint) => Some(traces_address(endpoint).map_err(TracesError::Endpoint)?),
            None if ENDPOINT_VARIABLES.iter().any(|variable| named(variable)) => None,
            None => return Ok(Self::off()),
        };
        let failed = |error: &dyn std::fmt::Display| TracesError::Exporter(error.to_string());
        let client = client::Client::new(runtime, ANSWER).map_err(|error| failed(&error))?;
        let mut builder = opentelemetry_otlp::SpanExporter::builder()
            .with_http()
            .with_http_client(client)
            .with_timeout(ANSWER);
        if let Some(endpoint) = endpoint {
            builder = builder.with_endpoint(endpoint);
        }
        let exporter = builder.build().map_err(|error| failed(&error))?;
        let counts = Arc::new(SpanCounts::default());
        let exporter = exporter::Counting::new(exporter, Arc::clone(&counts));
        let config = BatchConfigBuilder::default()
            .with_max_queue_size(QUEUE)
            .with_max_export_batch_size(BATCH)
            .with_scheduled_delay(LINGER)
            .build();
        let mut processor = BatchSpanProcessor::builder(exporter).with_batch_config(config).build();
        processor.set_resource(&resource());
        let scope = InstrumentationScope::builder("roc4mllm").with_version(env!("CARGO_PKG_VERSION")).build();
        Ok(Self(Some(Arc::new(Recorder { processor, scope, ratio: settings.trace_ratio, counts }))))
    }

    /// Whether spans go anywhere.
    pub fn is_on(&self) -> bool {
        self.0.is_some()
    }

    /// The span of a record's whole way: part of the trace that its headers name, which says whether it
    /// is recorded; else the root of a new one, of which `telemetry.trace_ratio` are recorded.
    pub fn record(&self, headers: &[Header]) -> Span {
        let context = TraceContext::continue_from(headers);
        let context = match (&self.0, context.parent()) {
            (Some(recorder), crate::record::trace::Parent::None) => {
                let sampled = context.is_within(recorder.ratio);
                context.sampled(sampled)
            }
            _ => context,
        };
        Span::new(self.clone(), context, "record", SpanKind::Consumer)
    }

    /// What became of the spans so far.
    pub fn counts(&self) -> Option<&SpanCounts> {
        self.0.as_deref().map(|recorder| &*recorder.counts)
    }

    /// Exports what waits, for at most `patience`; spans that end later are dropped. Blocks.
    pub fn stop(&self, patience: Duration) {
        let Some(recorder) = &self.0 else { return };
        if let Err(error) = recorder.processor.shutdown_with_timeout(patience) {
            tracing::warn!(%error, "the last spans may not have reached the collector");
        }
    }
}

/// Checks `telemetry.otlp_endpoint`.
///
/// # Errors
/// What is wrong with it, and the remedy.
pub fn check_endpoint(endpoint: &str) -> Result<(), String> {
    traces_address(endpoint).map(drop)
}

/// The address that traces are posted to, or why there is none.
fn traces_address(endpoint: &str) -> Result<String, String> {
    let refused = |reason: &str| {
        Err(format!("{reason}; give the address of an OTLP collector, such as http://collector:4318"))
    };
    // The parser's own message might quote a password.
    let Ok(url) = url::Url::parse(endpoint) else { return refused("is no address") };
    if !matches!(url.scheme(), "http" | "https") {
        return refused("is neither http nor https");
    }
    if !url.username().is_empty() || url.password().is_some() {
        return refused("holds a user or a password, which belong into OTEL_EXPORTER_OTLP_HEADERS");
    }
    Ok(format!("{}{PATH}", endpoint.trim_end_matches('/')))
}

/// Who sends the spans: `OTEL_SERVICE_NAME` and `OTEL_RESOURCE_ATTRIBUTES` go before what is said here.
fn resource() -> Resource {
    let own = [KeyValue::new("service.version", env!("CARGO_PKG_VERSION"))];
    let named = std::env::var("OTEL_SERVICE_NAME").is_ok_and(|name| !name.is_empty())
        || std::env::var("OTEL_RESOURCE_ATTRIBUTES").is_ok_and(|text| text.contains("service.name"));
    let builder = Resource::builder().with_attributes(own);
    if named { builder.build() } else { builder.with_service_name("roc4mllm").build() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_path_is_appended_as_the_specification_says() {
        assert_eq!(traces_address("http://collector:4318").unwrap(), "http://collector:4318/v1/traces");
        assert_eq!(traces_address("https://c.example/otlp/").unwrap(), "https://c.example/otlp/v1/traces");
    }

    #[test]
    fn a_bad_address_is_refused_without_its_password() {
        for bad in ["collector:4318", "", "ftp://collector", "http://me:hunter2@collector:4318"] {
            let refused = check_endpoint(bad).unwrap_err();
            assert!(refused.contains("http://collector:4318") && !refused.contains("hunter2"), "{refused}");
        }
    }

    #[test]
    fn without_a_collector_a_trace_is_continued_and_nothing_is_recorded() {
        let span = Traces::off().record(&[]);
        assert!(!span.is_recording());
        assert!(span.context().is_sampled(), "whoever comes later may record it");
        assert!(!span.child("parse").is_recording());
    }
}
