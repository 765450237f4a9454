//! What a real worker shows of itself: metrics, traces and logs are those of `docs/observability.md`.

use super::{
    WITHIN,
    support::{
        self,
        envelopes::{Envelope, Record},
        stack::Stack,
    },
};
use axum::{Router, body::Bytes, extract::State, http::StatusCode, routing::post};
use opentelemetry_proto::tonic::{
    collector::trace::v1::{ExportTraceServiceRequest, ExportTraceServiceResponse},
    common::v1::any_value::Value as AttributeValue,
    trace::v1::{Span, span::SpanKind},
};
use prost::Message;
use serde_json::Value;
use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    path::Path,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};
use tokio::net::TcpListener;

const TRACE_ID: &str = "0af7651916cd43dd8448eb211c80319c";
const PRODUCERS_SPAN: &str = "b7ad6b7169203331";

/// A collector that keeps what it gets.
#[derive(Clone, Default)]
struct Collector(Arc<Mutex<Vec<ExportTraceServiceRequest>>>);

impl Collector {
    /// Starts one; the address to configure.
    async fn start(&self) -> String {
        let router = Router::new().route("/v1/traces", post(take)).with_state(self.clone());
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("its address");
        tokio::spawn(async move { axum::serve(listener, router).await });
        format!("http://{address}")
    }

    fn requests(&self) -> Vec<ExportTraceServiceRequest> {
        self.0.lock().expect("requests").clone()
    }

    fn spans(&self) -> Vec<Span> {
        let requests = self.requests();
        let resources = requests.into_iter().flat_map(|request| request.resource_spans);
        let scopes = resources.flat_map(|resource| resource.scope_spans);
        scopes.flat_map(|scope| scope.spans).collect()
    }
}

async fn take(State(collector): State<Collector>, body: Bytes) -> (StatusCode, Vec<u8>) {
    match ExportTraceServiceRequest::decode(body) {
        Ok(request) => {
            collector.0.lock().expect("requests").push(request);
            (StatusCode::OK, ExportTraceServiceResponse::default().encode_to_vec())
        }
        Err(error) => (StatusCode::BAD_REQUEST, error.to_string().into_bytes()),
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn attributes(span: &Span) -> BTreeMap<String, String> {
    let text = |value: &Option<AttributeValue>| match value {
        Some(AttributeValue::StringValue(text)) => text.clone(),
        Some(AttributeValue::IntValue(number)) => number.to_string(),
        Some(AttributeValue::DoubleValue(number)) => number.to_string(),
        Some(AttributeValue::BoolValue(truth)) => truth.to_string(),
        other => format!("{other:?}"),
    };
    let pairs = span.attributes.iter();
    pairs
        .map(|pair| (pair.key.clone(), text(&pair.value.as_ref().and_then(|value| value.value.clone()))))
        .collect()
}

/// Names in the first column of the tables under a heading of the page, and the rest of each row.
fn documented(heading: &str) -> BTreeMap<String, String> {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/observability.md");
    let page = std::fs::read_to_string(page).expect("the page");
    let section = page.split("\n## ").find(|section| section.starts_with(heading)).expect(heading).to_owned();
    let rows = section.lines().filter_map(|line| line.strip_prefix("| `")?.split_once('`'));
    rows.map(|(name, rest)| (name.to_owned(), rest.to_owned())).collect()
}

/// One trace, from the producer's header to the commit: every stage a span, each part of the right one.
#[tokio::test(flavor = "multi_thread")]
async fn a_record_is_one_trace_from_its_producer_to_its_commit() {
    if roc4mllm::dev::skip_without_kafka() {
        return;
    }
    let stack = Stack::start(1).await;
    let collector = Collector::default();
    let endpoint = collector.start().await;
    let expected = support::score_images(&stack.checkpoint(), &stack.images());
    let scored: Vec<_> = expected.into_iter().filter(|expected| expected.score.is_some()).collect();
    let uploads = stack.upload(&scored, 2).await;
    let mut record = Envelope::Aws.record(&[&uploads[0].upload]);
    record.headers.push(("traceparent", format!("00-{TRACE_ID}-{PRODUCERS_SPAN}-01")));
    stack.produce(&record).await;
    let mut unsampled = Envelope::Aws.record(&[&uploads[1].upload]);
    unsampled.headers.push(("traceparent", format!("00-{TRACE_ID}-{PRODUCERS_SPAN}-00")));
    stack.produce(&unsampled).await;

    let worker = stack.worker(&[("telemetry.otlp_endpoint", &endpoint)]);
    stack.wait_for_outputs(2, WITHIN).await;
    assert_eq!(worker.terminate(), Some(0), "the drain sends what waits");

    let spans = collector.spans();
    // The earliest of each name: content that is new is looked up as well as the item.
    let mut ordered: Vec<&Span> = spans.iter().collect();
    ordered.sort_by_key(|span| std::cmp::Reverse(span.start_time_unix_nano));
    let by_name: HashMap<&str, &Span> = ordered.iter().map(|span| (span.name.as_str(), *span)).collect();
    let listed = || spans.iter().map(|span| span.name.as_str()).collect::<Vec<_>>();
    let names = ["record", "parse", "item", "lookup", "fetch", "decode", "batch", "infer", "pg", "produce"];
    let once = listed().into_iter().filter(|name| *name != "lookup").count();
    assert_eq!(once, names.len() - 1, "one of each, and none of the unsampled record: {:?}", listed());
    let id =
        |name: &str| hex(&by_name.get(name).unwrap_or_else(|| panic!("no {name}: {:?}", listed())).span_id);
    for (name, parent) in [("record", PRODUCERS_SPAN.to_owned())]
        .into_iter()
        .chain(["parse", "item", "produce"].map(|name| (name, id("record"))))
        .chain(["lookup", "fetch", "decode", "batch", "infer", "pg"].map(|name| (name, id("item"))))
    {
        let span = by_name[name];
        assert_eq!(hex(&span.trace_id), TRACE_ID, "{name}");
        assert_eq!(hex(&span.parent_span_id), parent, "the parent of {name}");
        assert!(span.start_time_unix_nano <= span.end_time_unix_nano, "{name}");
        let whole = by_name["record"];
        assert!(whole.start_time_unix_nano <= span.start_time_unix_nano, "{name} begins within the record");
        assert!(span.status.as_ref().is_none_or(|status| status.code != 2), "{name} failed");
    }
    let ids: BTreeSet<String> = spans.iter().map(|span| hex(&span.span_id)).collect();
    assert_eq!(ids.len(), spans.len(), "every span has an id of its own");
    // Each stage begins once the one before has ended.
    for pair in ["parse", "lookup", "fetch", "decode", "batch", "infer", "pg", "produce"].windows(2) {
        let (before, after) = (by_name[pair[0]], by_name[pair[1]]);
        // The wall clock is not the one that durations are measured by.
        let slack = Duration::from_millis(5).as_nanos() as u64;
        assert!(before.end_time_unix_nano <= after.start_time_unix_nano + slack, "{pair:?}");
    }
    let whole = by_name["record"];
    assert_eq!(whole.kind, SpanKind::Consumer as i32);
    let described = attributes(whole);
    assert_eq!(described["messaging.system"], "kafka");
    assert_eq!(described["messaging.kafka.offset"], "0");
    let item = attributes(by_name["item"]);
    assert_eq!(item["roc4mllm.status"], "scored");
    assert_eq!(item["roc4mllm.object"], format!("{}/{}", stack.bucket(), uploads[0].upload.key));
    assert_eq!(
        attributes(by_name["infer"])["roc4mllm.batch_size"].parse::<u32>().map(|size| size >= 1),
        Ok(true)
    );

    let outputs = stack.output_records().await;
    let traced: BTreeSet<&str> = outputs.iter().map(|output| output.header("traceparent")).collect();
    assert!(traced.contains(format!("00-{TRACE_ID}-{}-01", id("item")).as_str()), "{traced:?}");
    assert!(traced.iter().any(|parent| parent.ends_with("-00")), "unsampled stays so: {traced:?}");

    let documented = documented("Traces");
    assert_eq!(
        documented.keys().map(String::as_str).collect::<BTreeSet<_>>(),
        names.into_iter().chain(["vote"]).collect::<BTreeSet<_>>(),
        "the spans of docs/observability.md"
    );
    for span in &spans {
        for attribute in attributes(span).keys() {
            let row = &documented[&span.name];
            assert!(row.contains(&format!("`{attribute}`")), "{attribute} of {} is undocumented", span.name);
        }
    }
    let requests = collector.requests();
    let resource = requests[0].resource_spans[0].resource.as_ref().expect("a resource");
    let service = resource.attributes.iter().find(|pair| pair.key == "service.name").expect("a service");
    let service = service.value.as_ref().and_then(|value| value.value.clone());
    assert_eq!(service, Some(AttributeValue::StringValue("roc4mllm".into())));
}

/// A collector that takes connections and never answers costs spans, and neither a record nor the drain.
#[tokio::test(flavor = "multi_thread")]
async fn a_collector_that_hangs_holds_up_nothing() {
    if roc4mllm::dev::skip_without_kafka() {
        return;
    }
    let stack = Stack::start(1).await;
    let silent = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let endpoint = format!("http://{}", silent.local_addr().expect("its address"));
    let expected = support::score_images(&stack.checkpoint(), &stack.images());
    let uploads = stack.upload(&expected, 20).await;
    for uploaded in &uploads {
        stack.produce(&Envelope::Aws.record(&[&uploaded.upload])).await;
    }
    let worker = stack.worker(&[("telemetry.otlp_endpoint", &endpoint)]);
    stack.wait_for_outputs(uploads.len(), WITHIN).await;
    let ended = r#"roc4mllm_trace_spans_total{outcome="ended"}"#;
    let metrics = worker.get("/metrics").await;
    assert!(support::metric(&metrics, ended).is_some_and(|spans| spans > 0.0), "{metrics}");
    assert_eq!(worker.terminate(), Some(0));
}

/// `/metrics` and the page have the same metrics with the same types and labels, and no more series for more
/// objects.
#[tokio::test(flavor = "multi_thread")]
async fn every_metric_is_documented_and_bounded() {
    if roc4mllm::dev::skip_without_kafka() {
        return;
    }
    let stack = Stack::start(2).await;
    let expected = support::score_images(&stack.checkpoint(), &stack.images());
    let uploads = stack.upload(&expected, 3 * expected.len()).await;
    // Under its second name a picture has a score already.
    let (first, rest) = uploads.split_at(2 * expected.len());
    let worker = stack.worker(&[
        ("kafka.lag_interval_ms", "200"),
        ("telemetry.refresh_interval_ms", "200"),
        ("http.score.enabled", "true"),
        ("reuse.enabled", "true"),
    ]);
    for uploaded in first {
        stack.produce(&Envelope::Aws.record(&[&uploaded.upload])).await;
    }
    // Errors are counted by stage and code, and shown from the first one on.
    stack.put("page.jpg", b"<!doctype html>".to_vec()).await;
    let page = serde_json::json!({"bucket": stack.bucket(), "key": "page.jpg"}).to_string();
    stack.produce(&Record::plain(page)).await;
    stack.wait_for_outputs(first.len() + 1, WITHIN).await;
    let scrape = async || {
        let deadline = Instant::now() + WITHIN;
        loop {
            let metrics = worker.get("/metrics").await;
            let idle = "roc4mllm_uncommitted_records";
            if support::metric(&metrics, idle) == Some(0.0) && metrics.contains("roc4mllm_lag_records{") {
                return metrics;
            }
            assert!(Instant::now() < deadline, "{metrics}");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    let before = scrape().await;
    for uploaded in rest {
        stack.produce(&Envelope::Aws.record(&[&uploaded.upload])).await;
    }
    stack.wait_for_outputs(uploads.len() + 1, WITHIN).await;
    let after = scrape().await;
    assert_eq!(worker.terminate(), Some(0));

    let (shown, documented) = (types(&after), documented("Metrics"));
    let undocumented: Vec<_> = shown.keys().filter(|name| !documented.contains_key(*name)).collect();
    assert!(undocumented.is_empty(), "add to docs/observability.md: {undocumented:?}");
    let made_up: Vec<_> = documented.keys().filter(|name| !shown.contains_key(*name)).collect();
    assert!(made_up.is_empty(), "/metrics has none of these of docs/observability.md: {made_up:?}");
    for (name, kind) in &shown {
        let mut columns = documented[name].split('|').skip(1).map(str::trim);
        assert_eq!(columns.next(), Some(kind.as_str()), "the type of {name}");
        let labels: BTreeSet<String> = columns
            .next()
            .expect("labels")
            .split(", ")
            .map(|label| label.trim_matches('`').to_owned())
            .collect();
        for label in labels_of(&after, name).iter().filter(|label| *label != "le") {
            assert!(labels.contains(label), "{name} has a label {label} that docs/observability.md has not");
        }
    }
    assert_eq!(series(&before), series(&after), "the same pictures under other keys make no new series");
    assert!(series(&after).len() < 1_000, "{} series", series(&after).len());
}

/// Metrics by the name that queries use, with their types.
fn types(metrics: &str) -> BTreeMap<String, String> {
    let declared = metrics.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split_once(' '));
    let named = declared.map(|(name, kind)| {
        let suffix = match kind {
            "counter" => "_total",
            "info" => "_info",
            _ => "",
        };
        (format!("{name}{suffix}"), kind.to_owned())
    });
    named.collect()
}

/// Names and labels of all samples, without their values.
fn series(metrics: &str) -> BTreeSet<String> {
    let body = metrics.split("\r\n\r\n").nth(1).expect("a body");
    let samples = body.lines().filter(|line| !line.starts_with('#') && !line.is_empty());
    samples.filter_map(|line| Some(line.rsplit_once(' ')?.0.to_owned())).collect()
}

fn labels_of(metrics: &str, name: &str) -> BTreeSet<String> {
    let suffixes = ["", "_bucket", "_sum", "_count"];
    let of_metric = series(metrics).into_iter().filter_map(|series| {
        let (sample, labels) = series.split_once('{')?;
        suffixes.iter().any(|suffix| sample == format!("{name}{suffix}")).then(|| labels.to_owned())
    });
    // No value of ours holds a comma and a quotation mark side by side.
    of_metric
        .flat_map(|labels| {
            let pairs = labels.trim_end_matches('}').split("\",").map(str::to_owned).collect::<Vec<_>>();
            pairs.into_iter().filter_map(|pair| Some(pair.split_once('=')?.0.to_owned()))
        })
        .collect()
}

/// Every line of a worker's whole life is JSON with the fields that the page lists.
#[tokio::test(flavor = "multi_thread")]
async fn every_log_line_has_documented_fields() {
    if roc4mllm::dev::skip_without_kafka() {
        return;
    }
    let stack = Stack::start(1).await;
    let expected = support::score_images(&stack.checkpoint(), &stack.images());
    let uploads = stack.upload(&expected, expected.len()).await;
    for uploaded in &uploads {
        stack.produce(&Envelope::Aws.record(&[&uploaded.upload])).await;
    }
    let worker = stack.worker(&[("telemetry.log_level", "roc4mllm=debug")]);
    stack.wait_for_outputs(uploads.len(), WITHIN).await;
    let log = worker.terminate_with_log(0);
    let documented: BTreeSet<String> = documented("Logs").into_keys().collect();
    let always = ["timestamp", "level", "target"];
    let (mut lines, mut in_items) = (0, 0);
    for line in log.lines() {
        let line: Value = serde_json::from_str(line).unwrap_or_else(|error| panic!("{error} in {line}"));
        let fields = line.as_object().expect("an object");
        assert!(always.iter().all(|name| fields.contains_key(*name)), "{line}");
        lines += 1;
        for (name, value) in fields {
            match name.as_str() {
                "timestamp" | "level" | "target" | "message" => {}
                "span" => {
                    let span = value.as_object().expect("a span");
                    let known = |name: &String| name == "name" || documented.contains(name);
                    assert!(span.keys().all(known), "{line}");
                    if span["name"] == "item" {
                        in_items += 1;
                        assert_eq!(span["trace_id"].as_str().map(str::len), Some(32), "{line}");
                        assert_eq!(span["span_id"].as_str().map(str::len), Some(16), "{line}");
                    }
                }
                name => assert!(documented.contains(name), "{name} is not in docs/observability.md: {line}"),
            }
        }
    }
    assert!(lines >= 10 && in_items >= uploads.len(), "{lines} lines, {in_items} of items");
    let refused = log.lines().filter(|line| line.contains("\"no score\"")).count();
    let unscored = uploads.iter().filter(|uploaded| uploaded.expected.score.is_none()).count();
    assert_eq!(refused, unscored, "an item without a score says why");
}
