//! W3C Trace Context (level 1): reads, continues or starts a trace.

use super::{Header, header_text};
use std::fmt;
use uuid::Uuid;

/// The longest `tracestate` that is carried on; the standard asks for at least 512 characters.
const TRACESTATE_LIMIT: usize = 512;
const SAMPLED: u8 = 1;

/// A position in a trace: what `traceparent` and `tracestate` say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TraceContext {
    trace_id: u128,
    span_id: u64,
    parent: Parent,
    flags: u8,
    state: Option<String>,
}

/// The span that a span is part of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Parent {
    /// The trace begins here.
    None,
    /// Another process's span.
    Remote(u64),
    /// A span of this process.
    Local(u64),
}

impl TraceContext {
    /// The context of the work on one item: a child of the record's own, or the root of a new
    /// trace where the record carries none or one that the standard calls invalid.
    pub fn continue_from(headers: &[Header]) -> Self {
        match header_text(headers, "traceparent").and_then(parse_parent) {
            Some((trace_id, parent, flags)) => Self {
                trace_id,
                span_id: random_span_id(),
                parent: Parent::Remote(parent),
                flags,
                state: joined_state(headers),
            },
            None => Self::root(),
        }
    }

    /// The root of a new, sampled trace.
    pub fn root() -> Self {
        Self {
            trace_id: random_trace_id(),
            span_id: random_span_id(),
            parent: Parent::None,
            flags: SAMPLED,
            state: None,
        }
    }

    /// A part of the work that this context is about.
    pub fn child(&self) -> Self {
        Self { span_id: random_span_id(), parent: Parent::Local(self.span_id), ..self.clone() }
    }

    /// The same, but for whether whoever continues the trace is to record it.
    pub fn sampled(self, sampled: bool) -> Self {
        Self { flags: if sampled { SAMPLED } else { 0 }, ..self }
    }

    /// Whether the trace is recorded.
    pub fn is_sampled(&self) -> bool {
        self.flags & SAMPLED != 0
    }

    /// Whether the trace is one of the share `ratio` (0 to 1) of all traces. Every process that asks for
    /// the same trace and ratio gets the same answer, by the last seven bytes, which W3C Trace Context
    /// level 2 wants to be random.
    pub fn is_within(&self, ratio: f64) -> bool {
        const RANDOM_BITS: u32 = 56;
        let random = self.trace_id as u64 & ((1 << RANDOM_BITS) - 1);
        (random as f64) < ratio * (1_u64 << RANDOM_BITS) as f64
    }

    /// 32 lower-case hexadecimal digits, for logs.
    pub fn trace_id(&self) -> String {
        format!("{:032x}", self.trace_id)
    }

    /// 16 lower-case hexadecimal digits, for logs.
    pub fn span_id(&self) -> String {
        format!("{:016x}", self.span_id)
    }

    /// The trace's id as a number.
    pub fn trace_number(&self) -> u128 {
        self.trace_id
    }

    /// The span's id as a number.
    pub fn span_number(&self) -> u64 {
        self.span_id
    }

    /// The span that this one is part of.
    pub fn parent(&self) -> Parent {
        self.parent
    }

    /// `tracestate`, if there is any.
    pub fn state(&self) -> Option<&str> {
        self.state.as_deref()
    }

    /// `traceparent`, and `tracestate` if there is any.
    pub fn headers(&self) -> Vec<Header> {
        let mut headers = vec![Header::new("traceparent", self.to_string())];
        if let Some(state) = &self.state {
            headers.push(Header::new("tracestate", state.as_str()));
        }
        headers
    }
}

impl fmt::Display for TraceContext {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "00-{:032x}-{:016x}-{:02x}", self.trace_id, self.span_id, self.flags)
    }
}

/// `version-traceid-parentid-flags`. A later version may have more after the flags, version 00 may
/// not; ff and all-zero ids are invalid, and so are upper-case digits.
fn parse_parent(text: &str) -> Option<(u128, u64, u8)> {
    let mut parts = text.splitn(5, '-');
    let version = hex(parts.next()?, 2)? as u8;
    let trace_id = hex(parts.next()?, 32)?;
    let span_id = hex(parts.next()?, 16)? as u64;
    let flags = hex(parts.next()?, 2)? as u8;
    let extended = parts.next().is_some();
    let valid = version != 0xff && trace_id != 0 && span_id != 0 && (version > 0 || !extended);
    valid.then_some((trace_id, span_id, flags & SAMPLED))
}

fn hex(text: &str, digits: usize) -> Option<u128> {
    let lower_hex = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
    (text.len() == digits && text.bytes().all(lower_hex)).then(|| u128::from_str_radix(text, 16).ok())?
}

/// All `tracestate` headers in order, joined by commas as the standard says.
fn joined_state(headers: &[Header]) -> Option<String> {
    let values: Vec<&str> = headers
        .iter()
        .filter(|header| header.name == "tracestate")
        .filter_map(|header| std::str::from_utf8(header.value.as_deref()?).ok())
        .map(str::trim)
        .filter(|value| !value.is_empty())
        .collect();
    let state = values.join(",");
    let printable = state.bytes().all(|byte| matches!(byte, b' '..=b'~' | b'\t'));
    (!state.is_empty() && state.len() <= TRACESTATE_LIMIT && printable).then_some(state)
}

fn random_trace_id() -> u128 {
    Uuid::new_v4().as_u128()
}

/// Never zero: a version 4 UUID has bits that are always set.
fn random_span_id() -> u64 {
    Uuid::new_v4().as_u64_pair().1
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const PARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

    fn with_parent(parent: &str) -> Vec<Header> {
        vec![Header::new("traceparent", parent)]
    }

    #[test]
    fn a_valid_parent_is_continued_under_a_new_span() {
        let context = TraceContext::continue_from(&with_parent(PARENT));
        assert_eq!(context.trace_id(), "0af7651916cd43dd8448eb211c80319c");
        let text = context.to_string();
        assert!(text.starts_with("00-0af7651916cd43dd8448eb211c80319c-") && text.ends_with("-01"), "{text}");
        assert_ne!(text, PARENT);
    }

    #[test]
    fn an_unsampled_trace_stays_unsampled() {
        let context = TraceContext::continue_from(&with_parent(&PARENT.replace("-01", "-00")));
        assert!(context.to_string().ends_with("-00"));
    }

    #[test]
    fn a_child_is_part_of_the_same_trace() {
        let context = TraceContext::continue_from(&with_parent(PARENT));
        assert_eq!(context.parent(), Parent::Remote(0xb7ad_6b71_6920_3331));
        let child = context.child();
        assert_eq!(child.trace_id(), context.trace_id());
        assert_eq!(child.parent(), Parent::Local(context.span_number()));
        assert_ne!(child.span_id(), context.span_id());
        assert_eq!(TraceContext::root().parent(), Parent::None);
    }

    #[test]
    fn a_ratio_is_kept_by_ids_alone() {
        let roots: Vec<_> = (0..2_000).map(|_| TraceContext::root()).collect();
        let within = roots.iter().filter(|root| root.is_within(0.25)).count();
        // Ten standard deviations on either side.
        assert!((300..700).contains(&within), "{within}");
        assert!(roots.iter().all(|root| root.is_within(1.0) && !root.is_within(0.0)));
        assert!(roots.iter().filter(|root| root.is_within(0.25)).all(|root| root.is_within(0.5)));
        assert!(!TraceContext::root().sampled(false).is_sampled());
    }

    #[test]
    fn a_later_version_is_read_by_its_first_four_fields() {
        let later = PARENT.replacen("00", "01", 1) + "-what-comes-next";
        let context = TraceContext::continue_from(&with_parent(&later));
        assert_eq!(context.trace_id(), "0af7651916cd43dd8448eb211c80319c");
    }

    #[test]
    fn an_invalid_parent_starts_a_new_trace() {
        for bad in [
            "",
            "garbage",
            "00-00000000000000000000000000000000-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01",
            "ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            "00-0AF7651916CD43DD8448EB211C80319C-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-extra",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331",
        ] {
            let context = TraceContext::continue_from(&with_parent(bad));
            assert_ne!(context.trace_id(), "0af7651916cd43dd8448eb211c80319c", "{bad}");
            assert!(parse_parent(&context.to_string()).is_some(), "{bad}");
        }
    }

    #[test]
    fn tracestate_goes_on_with_a_valid_parent_only() {
        let mut headers = with_parent(PARENT);
        headers.push(Header::new("tracestate", "a=1"));
        headers.push(Header::new("tracestate", "b=2"));
        let carried = TraceContext::continue_from(&headers).headers();
        assert_eq!(header_text(&carried, "tracestate"), Some("a=1,b=2"));
        headers[0] = Header::new("traceparent", "bad");
        assert_eq!(header_text(&TraceContext::continue_from(&headers).headers(), "tracestate"), None);
    }

    proptest! {
        #[test]
        fn any_header_gives_a_valid_context(parent in proptest::collection::vec(any::<u8>(), 0..80), state in proptest::collection::vec(any::<u8>(), 0..600)) {
            let headers = vec![Header::new("traceparent", parent), Header::new("tracestate", state)];
            let context = TraceContext::continue_from(&headers);
            prop_assert!(parse_parent(&context.to_string()).is_some());
        }
    }
}
