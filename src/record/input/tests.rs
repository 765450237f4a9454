use super::*;
use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use proptest::prelude::*;
use serde_json::json;

fn parsed(value: &Value) -> ParsedRecord {
    parse(Some(value.to_string().as_bytes()), &[], &[])
}

fn only(value: &Value) -> Result<Item, BadItem> {
    let mut record = parsed(value);
    assert_eq!(record.items.len(), 1, "{value}");
    record.items.remove(0).outcome
}

fn scored(value: &Value) -> ObjectRef {
    match only(value) {
        Ok(Item::Score(object)) => object,
        other => panic!("{value} gave {other:?}"),
    }
}

fn code(value: &Value) -> ErrorCode {
    only(value).expect_err("should be refused").error.code
}

/// What S3 and MinIO do to a key.
fn form_encode(key: &str) -> String {
    utf8_percent_encode(key, NON_ALPHANUMERIC).to_string().replace("%20", "+")
}

fn s3_record(event: &str, bucket: &str, encoded_key: &str) -> Value {
    json!({"eventVersion": "2.1", "eventSource": "aws:s3", "eventName": event, "s3": {
        "s3SchemaVersion": "1.0", "configurationId": "c",
        "bucket": {"name": bucket, "arn": "arn:aws:s3:::b"},
        "object": {"key": encoded_key, "size": 1024, "eTag": "\"d41d8\"", "versionId": "v1", "sequencer": "0055AE"}}})
}

fn s3_event(encoded_key: &str) -> Value {
    json!({"Records": [s3_record("ObjectCreated:Put", "b", encoded_key)]})
}

fn minio_event(bucket: &str, key: &str) -> Value {
    json!({"EventName": "s3:ObjectCreated:Put", "Key": format!("{bucket}/{key}"),
           "Records": [s3_record("s3:ObjectCreated:Put", bucket, &form_encode(key))]})
}

fn sns(message: &Value) -> Value {
    json!({"Type": "Notification", "MessageId": "m", "TopicArn": "arn:aws:sns:::t", "Message": message.to_string()})
}

fn event_bridge(kind: &str, key: &str) -> Value {
    json!({"version": "0", "detail-type": kind, "source": "aws.s3", "detail": {
        "version": "0", "bucket": {"name": "b"},
        "object": {"key": key, "size": 5, "etag": "b1946", "version-id": "IYV3", "sequencer": "00617F"}}})
}

fn cloud_event(data: &Value) -> Value {
    json!({"specversion": "1.0", "type": "com.example", "source": "s", "id": "1", "data": data})
}

#[test]
fn an_aws_notification_is_read_whole() {
    let object = scored(&s3_event("a%2Fb+c.jpg"));
    let expected = ObjectRef {
        bucket: "b".into(),
        key: "a/b c.jpg".into(),
        version_id: Some("v1".into()),
        etag: Some("d41d8".into()),
        size: Some(1024),
        sequencer: Some("0055AE".into()),
    };
    assert_eq!(object, expected);
}

#[test]
fn a_minio_notification_is_read_from_its_records_or_from_its_top_level() {
    assert_eq!(scored(&minio_event("b", "a+b/ü%.jpg")).key, "a+b/ü%.jpg");
    let summary = json!({"EventName": "s3:ObjectCreated:Put", "Key": "b/a+b%2F//c.jpg"});
    assert_eq!(scored(&summary), ObjectRef::new("b", "a+b%2F//c.jpg"));
    let removed = json!({"EventName": "s3:ObjectRemoved:Delete", "Key": "b/k"});
    assert_eq!(only(&removed), Ok(Item::Delete(ObjectRef::new("b", "k"))));
    assert_eq!(
        code(&json!({"EventName": "s3:ObjectCreated:Put", "Key": "no-slash"})),
        ErrorCode::MalformedEvent
    );
}

#[test]
fn sns_wraps_any_other_envelope() {
    assert_eq!(scored(&sns(&s3_event("k"))).key, "k");
    assert_eq!(scored(&sns(&json!({"bucket": "b", "key": "a+b"}))).key, "a+b");
    assert_eq!(code(&json!({"Type": "Notification", "Message": "not json"})), ErrorCode::MalformedEvent);
    assert_eq!(code(&json!({"Type": "Notification", "Message": 3})), ErrorCode::MalformedEvent);
}

#[test]
fn an_event_bridge_key_is_raw() {
    let object = scored(&event_bridge("Object Created", "a+b%2Fc"));
    assert_eq!(object.key, "a+b%2Fc");
    assert_eq!(object.version_id.as_deref(), Some("IYV3"));
    assert_eq!(object.etag.as_deref(), Some("b1946"));
    assert!(matches!(only(&event_bridge("Object Deleted", "k")), Ok(Item::Delete(_))));
    assert_eq!(only(&event_bridge("Object Tags Added", "k")), Ok(Item::Skip(SkipReason::OtherEvent)));
}

#[test]
fn cloud_events_are_read_in_both_modes() {
    let plain = json!({"bucket": "b", "key": "k"});
    assert_eq!(scored(&cloud_event(&plain)), ObjectRef::new("b", "k"));
    assert_eq!(scored(&cloud_event(&Value::String(plain.to_string()))), ObjectRef::new("b", "k"));
    let encoded = json!({"specversion": "1.0", "data_base64": BASE64.encode(s3_event("k").to_string())});
    assert_eq!(scored(&encoded).key, "k");
    assert_eq!(scored(&cloud_event(&s3_event("k"))).key, "k");
    let headers = [Header::new("ce_specversion", "1.0"), Header::new("ce_type", "t")];
    let record = parse(Some(plain.to_string().as_bytes()), &headers, &[]);
    assert_eq!(record.items[0].outcome, Ok(Item::Score(ObjectRef::new("b", "k"))));
    let record = parse(Some(b"<xml/>"), &headers, &[]);
    assert!(record.items[0].outcome.as_ref().unwrap_err().to_string().contains("CloudEvent"));
    assert_eq!(code(&json!({"specversion": "1.0"})), ErrorCode::MalformedEvent);
    assert_eq!(code(&json!({"specversion": "1.0", "data_base64": "?"})), ErrorCode::MalformedEvent);
}

#[test]
fn a_plain_object_is_raw_and_its_optional_fields_are_optional() {
    let object = scored(
        &json!({"bucket": "b", "key": "a+b%2F//ü", "version_id": "v", "etag": "e", "size": 3, "other": []}),
    );
    assert_eq!(object.key, "a+b%2F//ü");
    assert_eq!(
        (object.version_id.as_deref(), object.etag.as_deref(), object.size),
        (Some("v"), Some("e"), Some(3))
    );
    let bare = json!({"bucket": "b", "key": "k", "version_id": null, "etag": null, "size": null});
    assert_eq!(scored(&bare), ObjectRef::new("b", "k"));
}

#[test]
fn tombstones_test_events_and_other_events_are_skipped() {
    let reason = |record: ParsedRecord| record.skipped().next();
    assert_eq!(reason(parse(None, &[], &[])), Some(SkipReason::Tombstone));
    assert_eq!(
        reason(parse(None, &[Header::new("ce_specversion", "1.0")], &[])),
        Some(SkipReason::Tombstone)
    );
    let test_event = json!({"Service": "Amazon S3", "Event": "s3:TestEvent", "Bucket": "b"});
    assert_eq!(reason(parsed(&test_event)), Some(SkipReason::TestEvent));
    assert_eq!(reason(parsed(&sns(&test_event))), Some(SkipReason::TestEvent));
    let restored = json!({"Records": [s3_record("s3:ObjectRestore:Post", "b", "k")]});
    assert_eq!(reason(parsed(&restored)), Some(SkipReason::OtherEvent));
    assert_eq!(reason(parsed(&json!({"Records": []}))), Some(SkipReason::Empty));
    assert_eq!(parsed(&test_event).to_process().count(), 0);
}

#[test]
fn a_removal_is_of_one_version_and_a_delete_marker_of_the_key() {
    let removed = |event: &Value| match only(event) {
        Ok(Item::Delete(object)) => (object.key, object.version_id),
        other => panic!("{event} gives {other:?}"),
    };
    let of_s3 = |name: &str| removed(&json!({"Records": [s3_record(name, "b", "k")]}));
    assert_eq!(of_s3("ObjectRemoved:Delete"), ("k".into(), Some("v1".into())));
    assert_eq!(of_s3("ObjectRemoved:DeleteMarkerCreated"), ("k".into(), None));
    assert_eq!(of_s3("s3:ObjectRemoved:DeleteMarkerCreated"), ("k".into(), None));
    assert_eq!(of_s3("s3:ObjectRemoved:DeleteAllVersions"), ("k".into(), None));
    assert_eq!(of_s3("s3:LifecycleExpiration:Delete"), ("k".into(), Some("v1".into())));
    assert_eq!(of_s3("s3:LifecycleExpiration:DeleteMarkerCreated"), ("k".into(), None));
    for (version, named) in [(json!(null), None), (json!(""), None), (json!("null"), Some("null".into()))] {
        let mut record = s3_record("s3:ObjectRemoved:Delete", "b", "k");
        record["s3"]["object"]["versionId"] = version;
        assert_eq!(removed(&json!({"Records": [record]})), ("k".into(), named));
    }
    let mut bridged = event_bridge("Object Deleted", "k");
    assert_eq!(removed(&bridged), ("k".into(), Some("IYV3".into())));
    bridged["detail"]["deletion-type"] = json!("Permanently Deleted");
    assert_eq!(removed(&bridged), ("k".into(), Some("IYV3".into())));
    bridged["detail"]["deletion-type"] = json!("Delete Marker Created");
    assert_eq!(removed(&bridged), ("k".into(), None));
}

#[test]
fn an_unversioned_object_has_no_version() {
    for version in [json!(null), json!(""), json!("null")] {
        assert_eq!(scored(&json!({"bucket": "b", "key": "k", "version_id": version})).version_id, None);
    }
    assert_eq!(scored(&json!({"bucket": "b", "key": "k", "etag": "\"\""})).etag, None);
}

#[test]
fn one_bad_record_leaves_its_neighbours_alone() {
    let record = parsed(&json!({"Records": [
        s3_record("ObjectCreated:Put", "b", "first.jpg"), {"eventName": "ObjectCreated:Put"}, 7,
        s3_record("ObjectCreated:Put", "b", "last.jpg")]}));
    assert_eq!(record.items.iter().map(|item| item.index).collect::<Vec<_>>(), [0, 1, 2, 3]);
    assert!(matches!(&record.items[0].outcome, Ok(Item::Score(object)) if object.key == "first.jpg"));
    assert_eq!(record.items[1].outcome.as_ref().unwrap_err().error.code, ErrorCode::MalformedEvent);
    assert!(record.items[1].outcome.as_ref().unwrap_err().to_string().contains("s3"));
    assert!(record.items[2].outcome.is_err());
    assert!(matches!(&record.items[3].outcome, Ok(Item::Score(object)) if object.key == "last.jpg"));
}

#[test]
fn a_record_put_back_gives_its_item_alone() {
    let event = json!({"Records": [s3_record("ObjectCreated:Put", "b", "0"), s3_record("ObjectCreated:Put", "b", "1")]});
    let bytes = event.to_string();
    let record = parse(Some(bytes.as_bytes()), &[Header::new(ITEM_HEADER, "1")], &[]);
    assert_eq!(record.items.len(), 1);
    assert_eq!(record.items[0].index, 1);
    for wanted in ["2", "-1", "one", ""] {
        let record = parse(Some(bytes.as_bytes()), &[Header::new(ITEM_HEADER, wanted)], &[]);
        assert_eq!(record.items[0].outcome.as_ref().unwrap_err().error.code, ErrorCode::MalformedEvent);
    }
}

#[test]
fn unknown_envelopes_are_malformed_and_say_what_was_expected() {
    for value in [
        json!({}),
        json!([]),
        json!(3),
        json!("text"),
        json!(null),
        json!({"bucket": "b"}),
        json!({"Records": {}}),
    ] {
        let error = only(&value).unwrap_err();
        assert_eq!(error.error.code, ErrorCode::MalformedEvent, "{value}");
        assert!(error.to_string().contains("expected"), "{error}");
        assert_eq!(error.object, None);
    }
    for bytes in [&b""[..], b"{", b"\xff\xfe", b"{\"bucket\":\"b\"", b"{} {}"] {
        let record = parse(Some(bytes), &[], &[]);
        assert_eq!(record.items[0].outcome.as_ref().unwrap_err().error.code, ErrorCode::MalformedEvent);
    }
}

#[test]
fn wrong_types_are_named() {
    for (value, name) in [
        (json!({"bucket": 1, "key": "k"}), "bucket"),
        (json!({"bucket": "b", "key": ["k"]}), "key"),
        (json!({"bucket": "b", "key": "k", "size": -1}), "size"),
        (json!({"bucket": "b", "key": "k", "size": 1.5}), "size"),
        (json!({"bucket": "b", "key": "k", "etag": 7}), "etag"),
        (json!({"detail-type": "Object Created", "detail": {"bucket": {"name": "b"}}}), "object"),
    ] {
        let error = only(&value).unwrap_err();
        assert_eq!(error.error.code, ErrorCode::MalformedEvent);
        assert!(error.to_string().contains(name), "{error}");
    }
}

#[test]
fn what_cannot_be_stored_is_refused() {
    assert_eq!(code(&json!({"bucket": "b", "key": "a\0b"})), ErrorCode::KeyNotStorable);
    assert_eq!(code(&s3_event("a%00b")), ErrorCode::KeyNotStorable);
    assert_eq!(code(&json!({"bucket": "b", "key": "k".repeat(1025)})), ErrorCode::KeyNotStorable);
    assert_eq!(scored(&json!({"bucket": "b", "key": "k".repeat(1024)})).key.len(), 1024);
    assert_eq!(code(&json!({"bucket": "b", "key": ""})), ErrorCode::MalformedEvent);
    assert_eq!(code(&json!({"bucket": "", "key": "k"})), ErrorCode::MalformedEvent);
    assert_eq!(code(&json!({"bucket": "b\0", "key": "k"})), ErrorCode::MalformedEvent);
    assert_eq!(code(&json!({"bucket": "b", "key": "k", "etag": "e\0"})), ErrorCode::MalformedEvent);
    assert_eq!(code(&s3_event("%FF%FE")), ErrorCode::MalformedEvent);
}

#[test]
fn what_no_request_could_ask_for_is_refused() {
    for etag in ["a\u{c}b", "\u{7f}", "tag\n", "ä"] {
        assert_eq!(code(&json!({"bucket": "b", "key": "k", "etag": etag})), ErrorCode::MalformedEvent);
    }
    assert_eq!(scored(&json!({"bucket": "b", "key": "k", "etag": "W/\"a b\""})).etag.unwrap(), "W/\"a b");
    for bucket in ["a b", "a/b", "a?b", "ä", "arn:aws:s3:eu-west-1:1:accesspoint/p", "b\u{1}"] {
        assert_eq!(code(&json!({"bucket": bucket, "key": "k"})), ErrorCode::MalformedEvent, "{bucket}");
    }
    assert_eq!(scored(&json!({"bucket": "Old_Bucket.name-1", "key": "k"})).bucket, "Old_Bucket.name-1");
}

#[test]
fn only_allowed_buckets_are_read_from() {
    let allowed = ["b".to_owned()];
    let of = |bucket: &str| {
        let bytes = json!({"bucket": bucket, "key": "k"}).to_string();
        parse(Some(bytes.as_bytes()), &[], &allowed).items.remove(0).outcome
    };
    assert!(of("b").is_ok());
    let refused = of("secret").unwrap_err();
    assert_eq!(refused.error.code, ErrorCode::BucketNotAllowed);
    assert_eq!(refused.object.as_deref(), Some(&ObjectRef::new("secret", "k")));
    assert!(refused.to_string().contains("s3.buckets"));
}

#[test]
fn endless_wrapping_ends() {
    let mut value = json!({"bucket": "b", "key": "k"});
    for _ in 0..3 {
        value = sns(&value);
    }
    assert_eq!(scored(&value).key, "k");
    assert_eq!(code(&sns(&value)), ErrorCode::MalformedEvent);
    let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
    assert!(parse(Some(deep.as_bytes()), &[], &[]).items[0].outcome.is_err());
    let deep_data =
        format!("{{\"specversion\":\"1.0\",\"data\":{}1{}}}", "{\"data\":".repeat(5000), "}".repeat(5000));
    assert!(parse(Some(deep_data.as_bytes()), &[], &[]).items[0].outcome.is_err());
}

fn any_json() -> impl Strategy<Value = Value> {
    let names = prop::sample::select(vec![
        "Records",
        "s3",
        "bucket",
        "object",
        "key",
        "name",
        "eventName",
        "Message",
        "Type",
        "Event",
        "detail",
        "detail-type",
        "specversion",
        "data",
        "data_base64",
        "EventName",
        "Key",
        "size",
        "eTag",
        "versionId",
    ]);
    let texts = prop::sample::select(vec![
        "ObjectCreated:Put",
        "Notification",
        "s3:TestEvent",
        "Object Created",
        "1.0",
        "b/k",
        "null",
        "",
        "%",
        "{}",
    ]);
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        texts.prop_map(Value::from),
        any::<String>().prop_map(Value::from),
    ];
    leaf.prop_recursive(5, 60, 8, move |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..5).prop_map(Value::from),
            prop::collection::vec((names.clone().prop_map(str::to_owned), inner), 0..8)
                .prop_map(|entries| Value::Object(entries.into_iter().collect())),
        ]
    })
}

/// Keys that S3 allows and that are storable.
fn any_key() -> impl Strategy<Value = String> {
    let pieces = prop_oneof![
        Just("+".to_owned()),
        Just("%2F".to_owned()),
        Just("//".to_owned()),
        Just(" ".to_owned()),
        Just("%".to_owned()),
        Just("\u{e9}\u{1f600}".to_owned()),
        "[^\\x00]{1,8}",
    ];
    prop::collection::vec(pieces, 1..12).prop_map(|pieces| pieces.concat())
}

/// Names that might pass for `photos` where names are compared carelessly.
fn almost_allowed() -> impl Strategy<Value = String> {
    let near =
        ["Photos", "photos ", " photos", "photos/", "photos/../others", "photos.others", "photos@others"];
    let further = ["photos?x", "photos#", "photos\\", "photos%00", "arn:aws:s3:::photos", "..", "", "photo"];
    prop_oneof![
        prop::sample::select([&near[..], &further].concat()).prop_map(str::to_owned),
        any::<String>(),
        "photos.{0,3}",
        ".{0,3}photos",
    ]
}

proptest! {
    /// Whatever a record says, what is read lies in a bucket that an operator has listed.
    #[test]
    fn no_record_reaches_beyond_the_allow_list(bucket in almost_allowed(), key in any_key()) {
        let allowed = ["photos".to_owned(), "more-photos".to_owned()];
        let plain = json!({"bucket": bucket, "key": key});
        let aws = json!({"Records": [s3_record("ObjectCreated:Put", &bucket, &form_encode(&key))]});
        let removal = json!({"Records": [s3_record("ObjectRemoved:Delete", &bucket, &form_encode(&key))]});
        for value in [&plain, &aws, &removal, &minio_event(&bucket, &key), &sns(&aws), &cloud_event(&plain)] {
            for item in parse(Some(value.to_string().as_bytes()), &[], &allowed).items {
                if let Ok(Item::Score(object) | Item::Delete(object)) = item.outcome {
                    prop_assert!(allowed.contains(&object.bucket), "{}", object);
                }
            }
        }
    }

    #[test]
    fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        prop_assert!(!parse(Some(&bytes), &[], &[]).items.is_empty());
    }

    #[test]
    fn no_json_panics(value in any_json(), item in prop::option::of(any::<String>())) {
        let headers: Vec<_> = item.into_iter().map(|item| Header::new(ITEM_HEADER, item)).collect();
        let record = parse(Some(value.to_string().as_bytes()), &headers, &["b".to_owned()]);
        prop_assert!(!record.items.is_empty());
    }

    #[test]
    fn every_envelope_gives_the_key_back(key in any_key()) {
        let plain = json!({"bucket": "b", "key": key});
        for value in [
            plain.clone(),
            s3_event(&form_encode(&key)),
            minio_event("b", &key),
            json!({"EventName": "s3:ObjectCreated:Put", "Key": format!("b/{key}")}),
            sns(&s3_event(&form_encode(&key))),
            event_bridge("Object Created", &key),
            cloud_event(&plain),
        ] {
            prop_assert_eq!(&scored(&value).key, &key, "{}", value);
        }
    }
}
