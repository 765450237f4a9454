//! Records that name other servers, and keys that look like paths.

use super::{WITHIN, support};
use serde_json::{Value, json};
use std::{
    io::ErrorKind,
    net::TcpListener,
    path::{Path, PathBuf},
    time::{SystemTime, UNIX_EPOCH},
};
use support::{envelopes::Record, stack::Stack};

/// An S3 notification, in `wrap`, that gives `elsewhere` wherever its format has an address or a host.
fn notification(bucket: &str, key: &str, elsewhere: &str) -> Value {
    let encoded: String = url::form_urlencoded::byte_serialize(key.as_bytes()).collect();
    json!({"Records": [{
        "eventVersion": "2.1", "eventSource": "aws:s3", "eventName": "ObjectCreated:Put",
        "awsRegion": elsewhere, "endpoint": elsewhere, "host": elsewhere,
        "requestParameters": {"sourceIPAddress": elsewhere, "endpoint": elsewhere},
        "responseElements": {"x-minio-origin-endpoint": elsewhere, "x-amz-id-2": elsewhere},
        "s3": {"s3SchemaVersion": "1.0", "endpoint": elsewhere,
            "bucket": {"name": bucket, "arn": format!("arn:aws:s3:{elsewhere}::{bucket}"), "endpoint": elsewhere},
            "object": {"key": encoded, "size": 5, "url": format!("{elsewhere}/{key}")}},
        "source": {"host": elsewhere, "port": "80"},
    }]})
}

#[tokio::test(flavor = "multi_thread")]
async fn records_lead_to_no_other_server_and_no_file() {
    if roc4mllm::dev::skip_without_kafka() {
        return;
    }
    let stack = Stack::start(1).await;
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    listener.set_nonblocking(true).expect("a listener that doesn't wait");
    let elsewhere = format!("http://{}", listener.local_addr().expect("an address"));
    let bucket = stack.bucket().to_owned();
    // A name that no other run has.
    let nanoseconds = SystemTime::now().duration_since(UNIX_EPOCH).expect("a clock").as_nanos();
    let name = format!("escape-{nanoseconds}.jpg");
    let absolute = std::env::temp_dir().join(&name);
    let keys = [
        format!("../{name}"),
        format!("../../../../../../..{}", absolute.display()),
        absolute.display().to_string(),
        format!("file://{}", absolute.display()),
        format!("{elsewhere}/{name}"),
    ];
    let mut sent = 0;
    let mut send = async |value: Value| {
        stack.produce(&Record::plain(value.to_string())).await;
        sent += 1;
    };
    for key in &keys {
        let inner = notification(&bucket, key, &elsewhere);
        send(inner.clone()).await;
        send(json!({"Type": "Notification", "Message": inner.to_string(), "TopicArn": elsewhere,
            "SubscribeURL": elsewhere, "SigningCertURL": elsewhere, "UnsubscribeURL": elsewhere}))
        .await;
        send(
            json!({"specversion": "1.0", "id": "c", "source": elsewhere, "type": "t", "dataschema": elsewhere,
            "data": {"bucket": &bucket, "key": key, "endpoint": elsewhere, "url": elsewhere}}),
        )
        .await;
    }
    for other in [
        format!("{bucket}.{elsewhere}"),
        format!("{bucket}/../others"),
        format!("{bucket}@{}", elsewhere.trim_start_matches("http://")),
        format!("arn:aws:s3:us-east-1:123456789012:accesspoint/{bucket}"),
        format!("{elsewhere}/{bucket}"),
        bucket.to_uppercase(),
    ] {
        send(json!({"bucket": other, "key": "a.jpg", "endpoint": elsewhere})).await;
    }
    let worker = stack.worker(&[("s3.missing_grace_ms", "100")]);
    stack.wait_for_outputs(sent, WITHIN).await;
    assert_eq!(worker.terminate(), Some(0));

    let outputs = stack.outputs().await;
    assert_eq!(outputs.len(), sent);
    let refused = |code: &str| outputs.iter().filter(|output| output["error"]["code"] == code).count();
    assert_eq!(refused("bucket_not_allowed"), 6, "{outputs:?}");
    assert!(outputs.iter().all(|output| output["status"] != "scored"), "{outputs:?}");
    let visitor = listener.accept().map(|(_, from)| from);
    assert_eq!(visitor.expect_err("nobody came").kind(), ErrorKind::WouldBlock);
    let here = std::env::current_dir().expect("a folder");
    let places: Vec<PathBuf> = vec![
        here.join(&name),
        here.parent().unwrap_or(Path::new("/")).join(&name),
        Path::new("/").join(&name),
        absolute,
    ];
    for place in places {
        assert!(!place.exists(), "{} was written", place.display());
    }
}
