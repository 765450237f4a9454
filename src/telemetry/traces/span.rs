//! A span: begun when it is made, ended when it drops.

use super::Traces;
use crate::record::trace::{Parent, TraceContext};
use opentelemetry::{
    Key, KeyValue, SpanId, TraceFlags, TraceId, Value,
    trace::{SpanContext, SpanKind, Status, TraceState},
};
use opentelemetry_sdk::trace::{SpanData, SpanEvents, SpanLinks, SpanProcessor};
use std::{
    fmt,
    sync::{Mutex, MutexGuard, PoisonError, atomic::Ordering},
    time::{Instant, SystemTime},
};

/// Work on a record. Where the trace is not recorded it only carries the context.
pub struct Span {
    traces: Traces,
    context: TraceContext,
    name: &'static str,
    kind: SpanKind,
    begun: SystemTime,
    // The wall clock may be set back while the work goes on.
    clock: Instant,
    details: Mutex<Details>,
}

#[derive(Default)]
struct Details {
    attributes: Vec<KeyValue>,
    error: Option<String>,
}

/// What spans are made from that are part of another one. Cheap to clone where nothing is recorded.
#[derive(Clone)]
pub struct SpanSeed {
    traces: Traces,
    context: TraceContext,
}

impl SpanSeed {
    /// A span that begins now.
    pub fn child(&self, name: &'static str) -> Span {
        Span::new(self.traces.clone(), self.context.child(), name, SpanKind::Internal)
    }
}

impl fmt::Debug for SpanSeed {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_tuple("SpanSeed").field(&self.context).finish()
    }
}

impl Span {
    pub(super) fn new(traces: Traces, context: TraceContext, name: &'static str, kind: SpanKind) -> Self {
        // Nobody sees the end of one that is not recorded.
        let traces = if context.is_sampled() { traces } else { Traces::off() };
        Self {
            traces,
            context,
            name,
            kind,
            begun: SystemTime::now(),
            clock: Instant::now(),
            details: Mutex::default(),
        }
    }

    /// A span that is part of this one and begins now.
    pub fn child(&self, name: &'static str) -> Self {
        self.seed().child(name)
    }

    /// What parts of this span are made from where it cannot be borrowed.
    pub fn seed(&self) -> SpanSeed {
        SpanSeed { traces: self.traces.clone(), context: self.context.clone() }
    }

    /// Its place in the trace, which outputs continue.
    pub fn context(&self) -> &TraceContext {
        &self.context
    }

    /// Whether anybody will see it.
    pub fn is_recording(&self) -> bool {
        self.traces.is_on()
    }

    /// Says more of the work. Where nothing is recorded, `value` is not made.
    pub fn set<V: Into<Value>>(&self, key: impl Into<Key>, value: impl FnOnce() -> V) {
        if self.is_recording() {
            self.details().attributes.push(KeyValue::new(key, value()));
        }
    }

    /// The work failed for `reason`.
    pub fn fail(&self, reason: &dyn fmt::Display) {
        if self.is_recording() {
            self.details().error = Some(reason.to_string());
        }
    }

    fn details(&self) -> MutexGuard<'_, Details> {
        self.details.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Span {
    fn drop(&mut self) {
        let Some(recorder) = &self.traces.0 else { return };
        let Details { attributes, error } = std::mem::take(&mut *self.details());
        let context = &self.context;
        let state = context.state().and_then(|state| state.parse::<TraceState>().ok()).unwrap_or_default();
        let (parent, remote) = match context.parent() {
            Parent::None => (SpanId::INVALID, false),
            Parent::Local(parent) => (SpanId::from(parent), false),
            Parent::Remote(parent) => (SpanId::from(parent), true),
        };
        let data = SpanData {
            span_context: SpanContext::new(
                TraceId::from(context.trace_number()),
                SpanId::from(context.span_number()),
                TraceFlags::SAMPLED,
                false,
                state,
            ),
            parent_span_id: parent,
            parent_span_is_remote: remote,
            span_kind: self.kind.clone(),
            name: self.name.into(),
            start_time: self.begun,
            end_time: self.begun + self.clock.elapsed(),
            attributes,
            dropped_attributes_count: 0,
            events: SpanEvents::default(),
            links: SpanLinks::default(),
            status: error.map_or(Status::Unset, Status::error),
            instrumentation_scope: recorder.scope.clone(),
        };
        recorder.counts.ended.fetch_add(1, Ordering::Relaxed);
        recorder.processor.on_end(data);
    }
}

impl fmt::Debug for Span {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Span").field("name", &self.name).field("context", &self.context).finish()
    }
}
