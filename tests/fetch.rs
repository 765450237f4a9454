//! S3: a server over a folder in this process, or the one at `ROC4MLLM_TEST_S3_ENDPOINT`. Tests
//! that need a server to misbehave always start their own.

#[path = "fetch/untrusted.rs"]
mod untrusted;

use bytes::Bytes;
use futures_util::TryStreamExt;
use roc4mllm::dev::{Fault, S3Server, TestS3, s3_client, s3_put};
use roc4mllm::fault::{Disposition, ErrorCode};
use roc4mllm::fetch::{FetchError, Fetcher, S3Settings};
use roc4mllm::object::ObjectRef;
use roc4mllm::retry::RetrySettings;
use roc4mllm::secret::Secret;
use std::net::TcpListener;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tempfile::TempDir;

const LIMIT: u64 = 1 << 20;

fn settings(endpoint: &str, access_key: &str, secret_key: &str) -> S3Settings {
    S3Settings {
        endpoint: Some(endpoint.to_owned()),
        region: Some(S3Server::REGION.to_owned()),
        access_key_id: Some(access_key.to_owned()),
        secret_access_key: Some(Secret::from(secret_key)),
        ..S3Settings::default()
    }
}

/// Bytes of which no two neighbouring kilobytes are equal, so that a wrong offset shows.
fn content(length: usize) -> Bytes {
    (0..length).map(|index| (index / 3 % 251) as u8 ^ (index >> 10) as u8).collect()
}

async fn shared() -> (TestS3, Fetcher) {
    let s3 = TestS3::create().await.unwrap();
    let fetcher = Fetcher::connect(&settings(s3.endpoint(), s3.access_key(), s3.secret_key())).await.unwrap();
    (s3, fetcher)
}

/// A server whose faults this test scripts, with a bucket `photos`.
struct Scripted {
    server: S3Server,
    settings: S3Settings,
    fetcher: Fetcher,
    _folder: TempDir,
}

impl Scripted {
    async fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let server = S3Server::start(folder.path()).unwrap();
        server.create_bucket("photos").unwrap();
        let mut settings = settings(&server.endpoint(), S3Server::ACCESS_KEY, S3Server::SECRET_KEY);
        settings.stall_timeout_ms = 300;
        settings.attempt_timeout_ms = 2000;
        let fetcher = Fetcher::connect(&settings).await.unwrap();
        Self { server, settings, fetcher, _folder: folder }
    }

    /// Uploads an object and gives it as an event would.
    async fn put(&self, key: &str, content: &Bytes) -> ObjectRef {
        let client = s3_client(&self.server.endpoint(), S3Server::ACCESS_KEY, S3Server::SECRET_KEY);
        let etag = s3_put(&client, "photos", key, content.clone()).await.unwrap();
        ObjectRef { etag: Some(etag), size: Some(content.len() as u64), ..ObjectRef::new("photos", key) }
    }

    /// The first `times` reads suffer `fault`; the count of all reads is returned.
    fn fault_first(&self, times: u32, fault: Fault) -> Arc<AtomicU32> {
        let reads = Arc::new(AtomicU32::new(0));
        let counter = Arc::clone(&reads);
        self.server.set_faults(move |request| {
            if request.method != "GET" {
                return None;
            }
            (counter.fetch_add(1, Ordering::SeqCst) < times).then(|| fault.clone())
        });
        reads
    }
}

fn quick() -> RetrySettings {
    RetrySettings { initial_ms: 10, max_ms: 100, deadline_ms: 20_000 }
}

#[tokio::test]
async fn an_object_arrives_whole_with_its_identity() {
    let (s3, fetcher) = shared().await;
    let content = content(200_000);
    let etag = s3.put("a/b.jpg", content.clone()).await.unwrap();
    let mut object = ObjectRef::new(s3.bucket(), "a/b.jpg");
    for pinned in [false, true] {
        if pinned {
            object.etag = Some(etag.clone());
            object.size = Some(content.len() as u64);
        }
        let image = fetcher.fetch(&object, LIMIT).await.unwrap();
        assert_eq!(image.bytes, content);
        assert_eq!(image.etag.as_ref(), Some(&etag));
        assert_eq!((image.size, image.version_id), (200_000, None));
    }
}

#[tokio::test]
async fn an_empty_object_is_no_error_here() {
    let (s3, fetcher) = shared().await;
    s3.put("empty.jpg", Bytes::new()).await.unwrap();
    let image = fetcher.fetch(&ObjectRef::new(s3.bucket(), "empty.jpg"), LIMIT).await.unwrap();
    assert_eq!((image.bytes, image.size), (Bytes::new(), 0));
}

const ODD_KEYS: [&str; 12] = [
    "plain.jpg",
    "a//b.jpg",
    "a/b.jpg",
    "/leading.jpg",
    "//two.jpg",
    "plus+and space.jpg",
    "percent%2Fencoded%20.jpg",
    "ümläut/日本語/🦀.jpg",
    "a/./b/../c.jpg",
    "trailing/",
    "query?and#fragment&=.jpg",
    "~!*'();:@$,[]\\^`{|}<>\".jpg",
];

#[tokio::test]
async fn odd_keys_are_told_apart() {
    let (s3, fetcher) = shared().await;
    for (index, key) in ODD_KEYS.iter().enumerate() {
        s3.put(key, vec![index as u8; index + 1]).await.unwrap();
    }
    for (index, key) in ODD_KEYS.iter().enumerate() {
        let image = fetcher.fetch(&ObjectRef::new(s3.bucket(), *key), LIMIT).await.unwrap();
        assert_eq!(image.bytes, vec![index as u8; index + 1], "{key}");
    }
}

#[tokio::test]
async fn keys_are_on_the_wire_as_they_are() {
    let s3 = Scripted::start().await;
    let seen: Arc<Mutex<Vec<String>>> = Arc::default();
    let log = Arc::clone(&seen);
    s3.server.set_faults(move |request| {
        log.lock().unwrap().push(request.uri.path().to_owned());
        None
    });
    for key in ODD_KEYS {
        let error = s3.fetcher.fetch(&ObjectRef::new("photos", key), LIMIT).await.unwrap_err();
        assert!(matches!(error, FetchError::Missing { .. }), "{key}: {error}");
    }
    let seen = seen.lock().unwrap();
    assert_eq!(seen.len(), ODD_KEYS.len());
    for (key, path) in ODD_KEYS.iter().zip(&*seen) {
        let encoded = path.strip_prefix("/photos/").unwrap();
        let decoded = percent_encoding::percent_decode_str(encoded).decode_utf8().unwrap();
        assert_eq!(decoded, *key, "{path}");
        // Slashes stay slashes; everything that means something to HTTP is encoded.
        assert_eq!(encoded.matches('/').count(), key.matches('/').count(), "{path}");
        assert!(!encoded.contains(['+', ' ', '?', '#']), "{path}");
    }
    assert!(seen[1].ends_with("/photos/a//b.jpg") && seen[6].ends_with("percent%252Fencoded%2520.jpg"));
}

#[tokio::test]
async fn what_is_not_there_is_gone_after_its_grace() {
    let (s3, fetcher) = shared().await;
    let error = fetcher.fetch(&ObjectRef::new(s3.bucket(), "nothing.jpg"), LIMIT).await.unwrap_err();
    assert!(matches!(error, FetchError::Missing { .. }), "{error}");
    assert_eq!(
        (error.disposition(), error.item_error().code),
        (Disposition::Reject, ErrorCode::ObjectMissing)
    );
    assert!(error.to_string().contains("nothing.jpg"), "{error}");

    let nameless = fetcher.fetch(&ObjectRef::new(s3.bucket(), ""), LIMIT).await.unwrap_err();
    assert!(matches!(nameless, FetchError::Missing { .. }), "{nameless}");
    let unsendable = ObjectRef { etag: Some("a\u{c}b".into()), ..ObjectRef::new(s3.bucket(), "nothing.jpg") };
    let unsendable = fetcher.fetch(&unsendable, LIMIT).await.unwrap_err();
    assert!(matches!(unsendable, FetchError::Missing { .. }), "{unsendable}");

    let grace = Duration::from_millis(400);
    let mut settings = settings(s3.endpoint(), s3.access_key(), s3.secret_key());
    settings.missing_grace_ms = 400;
    let fetcher = Fetcher::connect(&settings).await.unwrap();
    let started = Instant::now();
    let object = ObjectRef::new(s3.bucket(), "nothing.jpg");
    let gave_up = fetcher.fetch_with_retries(&object, LIMIT, &quick()).await.unwrap_err();
    assert!(started.elapsed() >= grace && gave_up.attempts > 1 && !gave_up.exhausted, "{gave_up:?}");
    assert!(matches!(gave_up.error, FetchError::Missing { .. }));
}

#[tokio::test]
async fn an_object_that_appears_after_its_event_is_fetched() {
    let (s3, fetcher) = shared().await;
    let object = ObjectRef::new(s3.bucket(), "late.jpg");
    let fetching = tokio::spawn(async move { fetcher.fetch_with_retries(&object, LIMIT, &quick()).await });
    tokio::time::sleep(Duration::from_millis(300)).await;
    s3.put("late.jpg", "here").await.unwrap();
    let image = fetching.await.unwrap();
    assert_eq!(image.unwrap().bytes, "here");
}

#[tokio::test]
async fn an_overwritten_object_is_superseded() {
    let (s3, fetcher) = shared().await;
    let etag = s3.put("a.jpg", "first").await.unwrap();
    s3.put("a.jpg", "second").await.unwrap();
    let object = ObjectRef { etag: Some(etag), size: Some(5), ..ObjectRef::new(s3.bucket(), "a.jpg") };
    let error = fetcher.fetch(&object, LIMIT).await.unwrap_err();
    assert!(matches!(error, FetchError::Superseded { .. }), "{error}");
    assert_eq!((error.disposition(), error.item_error().code), (Disposition::Reject, ErrorCode::Superseded));
}

#[tokio::test]
async fn a_missing_bucket_is_a_matter_of_configuration() {
    let (_s3, fetcher) = shared().await;
    let error = fetcher.fetch(&ObjectRef::new("no-such-bucket", "a.jpg"), LIMIT).await.unwrap_err();
    assert_eq!(error.disposition(), Disposition::Hold, "{error}");
    assert!(error.to_string().contains("NoSuchBucket"), "{error}");
}

#[tokio::test]
async fn a_403_holds_and_names_the_object() {
    let s3 = Scripted::start().await;
    let object = s3.put("secret/a.jpg", &content(10)).await;
    let open = s3.put("open/a.jpg", &content(10)).await;
    s3.server.set_faults(|request| {
        let forbidden = request.uri.path().starts_with("/photos/secret/");
        forbidden.then_some(Fault::Refuse { status: 403, code: "AccessDenied" })
    });
    let error = s3.fetcher.fetch(&object, LIMIT).await.unwrap_err();
    assert_eq!(error.disposition(), Disposition::Hold);
    assert!(
        error.to_string().contains("photos/secret/a.jpg") && error.to_string().contains("403"),
        "{error}"
    );
    s3.fetcher.fetch(&open, LIMIT).await.unwrap();
}

#[tokio::test]
async fn wrong_keys_hold() {
    let s3 = Scripted::start().await;
    let object = s3.put("a.jpg", &content(10)).await;
    let settings = S3Settings { secret_access_key: Some(Secret::from("wrong")), ..s3.settings.clone() };
    let fetcher = Fetcher::connect(&settings).await.unwrap();
    let error = fetcher.fetch(&object, LIMIT).await.unwrap_err();
    assert_eq!(error.disposition(), Disposition::Hold);
    assert!(error.to_string().contains("SignatureDoesNotMatch"), "{error}");
    assert!(fetcher.probe().await.is_err());
}

#[tokio::test]
async fn an_overloaded_server_is_asked_again() {
    let s3 = Scripted::start().await;
    let object = s3.put("a.jpg", &content(1000)).await;
    let reads = s3.fault_first(3, Fault::Refuse { status: 503, code: "SlowDown" });
    let error = s3.fetcher.fetch(&object, LIMIT).await.unwrap_err();
    assert_eq!(error.disposition(), Disposition::Retry, "{error}");
    assert_eq!(reads.load(Ordering::SeqCst), 1, "the SDK must not retry by itself");
    let image = s3.fetcher.fetch_with_retries(&object, LIMIT, &quick()).await.unwrap();
    assert_eq!(image.bytes, content(1000));
    assert_eq!(reads.load(Ordering::SeqCst), 4);
}

#[tokio::test]
async fn retries_end_at_their_deadline() {
    let s3 = Scripted::start().await;
    let object = s3.put("a.jpg", &content(10)).await;
    s3.server.set_faults(|_| Some(Fault::Refuse { status: 500, code: "InternalError" }));
    let retry = RetrySettings { deadline_ms: 300, ..quick() };
    let gave_up = s3.fetcher.fetch_with_retries(&object, LIMIT, &retry).await.unwrap_err();
    assert!(gave_up.exhausted && gave_up.attempts > 1, "{gave_up:?}");
    assert_eq!(gave_up.error.item_error().code, ErrorCode::RetryExhausted);
}

#[tokio::test]
async fn a_body_that_breaks_is_resumed_where_it_broke() {
    let s3 = Scripted::start().await;
    let content = content(300_000);
    let object = s3.put("a.jpg", &content).await;
    let unpinned = ObjectRef::new("photos", "a.jpg");
    for object in [&object, &unpinned] {
        for fault in [Fault::Cut { after: 100_000 }, Fault::Stall { after: 100_000 }, Fault::Cut { after: 0 }]
        {
            let resumed: Arc<Mutex<Vec<Option<String>>>> = Arc::default();
            let (log, scripted) = (Arc::clone(&resumed), fault.clone());
            s3.server.set_faults(move |request| {
                let range = request.headers.get("range").map(|range| range.to_str().unwrap().to_owned());
                let mut log = log.lock().unwrap();
                log.push(range);
                (log.len() <= 2).then(|| scripted.clone())
            });
            let image = s3.fetcher.fetch(object, LIMIT).await.unwrap();
            assert!(image.bytes == content, "{fault:?}");
            let log = resumed.lock().unwrap();
            let expected: [Option<&str>; 3] = match fault {
                Fault::Cut { after: 0 } => [None, None, None],
                _ => [None, Some("bytes=100000-"), Some("bytes=200000-")],
            };
            let ranges: Vec<Option<&str>> = log.iter().map(Option::as_deref).collect();
            assert_eq!(ranges, expected, "{fault:?}");
        }
    }
}

#[tokio::test]
async fn a_body_that_always_breaks_is_given_up() {
    let s3 = Scripted::start().await;
    let object = s3.put("a.jpg", &content(300_000)).await;
    let reads = s3.fault_first(u32::MAX, Fault::Cut { after: 10 });
    let error = s3.fetcher.fetch(&object, LIMIT).await.unwrap_err();
    assert!(matches!(error, FetchError::Broken { .. }), "{error}");
    assert_eq!(error.disposition(), Disposition::Retry);
    assert_eq!(reads.load(Ordering::SeqCst), s3.settings.attempts);
}

#[tokio::test]
async fn a_short_body_never_passes_for_a_whole_one() {
    let s3 = Scripted::start().await;
    let whole = content(5000);
    let object = s3.put("a.jpg", &whole).await;
    let reads = s3.fault_first(2, Fault::Shorten { to: 4000 });
    let error = s3.fetcher.fetch(&object, LIMIT).await.unwrap_err();
    assert!(matches!(&error, FetchError::Broken { reason, .. } if reason.contains("5000")), "{error}");
    let image = s3.fetcher.fetch_with_retries(&object, LIMIT, &quick()).await.unwrap();
    assert_eq!(image.bytes, whole);
    assert_eq!(reads.load(Ordering::SeqCst), 3);
}

#[tokio::test]
async fn an_object_overwritten_while_it_is_read_is_never_a_mixture() {
    let s3 = Scripted::start().await;
    let (old, new) = (content(200_000), Bytes::from(vec![7; 150_000]));
    let pinned = s3.put("a.jpg", &old).await;
    let unpinned = ObjectRef::new("photos", "a.jpg");
    let path = s3.server.root().join("photos/a.jpg");
    let overwrite = |content: &Bytes| {
        let (path, content) = (path.clone(), content.clone());
        let reads = AtomicU32::new(0);
        s3.server.set_faults(move |_| match reads.fetch_add(1, Ordering::SeqCst) {
            0 => Some(Fault::Cut { after: 50_000 }),
            1 => {
                std::fs::write(&path, &content).unwrap();
                None
            }
            _ => None,
        });
    };
    overwrite(&new);
    let error = s3.fetcher.fetch(&pinned, LIMIT).await.unwrap_err();
    assert!(matches!(error, FetchError::Superseded { .. }), "{error}");
    std::fs::write(&path, &old).unwrap();
    overwrite(&new);
    assert_eq!(s3.fetcher.fetch(&unpinned, LIMIT).await.unwrap().bytes, new);
}

#[tokio::test]
async fn an_object_over_the_limit_is_refused_early() {
    let s3 = Scripted::start().await;
    let object = s3.put("large.jpg", &content(5000)).await;
    let reads = s3.fault_first(0, Fault::Cut { after: 0 });
    let error = s3.fetcher.fetch(&object, 4999).await.unwrap_err();
    assert!(matches!(error, FetchError::TooLarge { size: 5000, limit: 4999, .. }), "{error}");
    assert_eq!(reads.load(Ordering::SeqCst), 0, "the event said so");
    let unpinned = ObjectRef::new("photos", "large.jpg");
    let error = s3.fetcher.fetch(&unpinned, 4999).await.unwrap_err();
    assert!(matches!(error, FetchError::TooLarge { size: 5000, .. }), "{error}");
    assert_eq!((error.disposition(), error.item_error().code), (Disposition::Reject, ErrorCode::TooLarge));
    assert_eq!(s3.fetcher.fetch(&object, 5000).await.unwrap().size, 5000);
}

#[tokio::test]
async fn a_server_that_says_nothing_times_out() {
    let s3 = Scripted::start().await;
    let object = s3.put("a.jpg", &content(10)).await;
    s3.server.set_faults(|_| Some(Fault::Delay(Duration::from_secs(60))));
    let settings = S3Settings { attempt_timeout_ms: 300, ..s3.settings.clone() };
    let fetcher = Fetcher::connect(&settings).await.unwrap();
    let started = Instant::now();
    let error = fetcher.fetch(&object, LIMIT).await.unwrap_err();
    assert!(matches!(error, FetchError::TimedOut { .. }), "{error}");
    assert_eq!(error.disposition(), Disposition::Retry);
    assert!(started.elapsed() < Duration::from_secs(10));
}

#[tokio::test]
async fn an_unreachable_server_is_named_within_the_deadline() {
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let silent_port = silent.local_addr().unwrap().port();
    let refusing_port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let endpoints = [
        format!("http://127.0.0.1:{refusing_port}"),
        format!("http://127.0.0.1:{silent_port}"),
        "http://no-such-host.invalid:9000".to_owned(),
    ];
    for endpoint in endpoints {
        let settings = S3Settings {
            buckets: vec!["photos".to_owned()],
            attempt_timeout_ms: 300,
            connect_timeout_ms: 300,
            ..settings(&endpoint, "id", "hunter2")
        };
        let started = Instant::now();
        let error = Fetcher::connect(&settings).await.unwrap().probe().await.unwrap_err();
        assert!(started.elapsed() < Duration::from_secs(10));
        assert!(error.to_string().contains(&endpoint) && error.to_string().contains("photos"), "{error}");
        assert!(!error.to_string().contains("hunter2"), "{error}");
        assert!(matches!(error.disposition(), Disposition::Retry | Disposition::Hold), "{error}");
    }
}

#[tokio::test]
async fn a_name_that_does_not_resolve_holds() {
    let fetcher =
        Fetcher::connect(&settings("http://no-such-host.invalid:9000", "id", "secret")).await.unwrap();
    let error = fetcher.fetch(&ObjectRef::new("photos", "a.jpg"), LIMIT).await.unwrap_err();
    assert!(matches!(error, FetchError::Unreachable { .. }), "{error}");
    assert_eq!(error.disposition(), Disposition::Hold);
}

#[tokio::test]
async fn the_probe_accepts_what_a_worker_may_do() {
    let s3 = Scripted::start().await;
    let with = |buckets: &[&str]| S3Settings {
        buckets: buckets.iter().map(|&bucket| bucket.to_owned()).collect(),
        ..s3.settings.clone()
    };
    Fetcher::connect(&with(&[])).await.unwrap().probe().await.unwrap();
    Fetcher::connect(&with(&["photos"])).await.unwrap().probe().await.unwrap();
    let error = Fetcher::connect(&with(&["photos", "other"])).await.unwrap().probe().await.unwrap_err();
    assert!(error.to_string().contains("other"), "{error}");
    s3.server.set_faults(|_| Some(Fault::Refuse { status: 403, code: "AccessDenied" }));
    Fetcher::connect(&with(&["photos"])).await.unwrap().probe().await.unwrap();
    s3.server.set_faults(|_| Some(Fault::Refuse { status: 403, code: "InvalidAccessKeyId" }));
    Fetcher::connect(&with(&["photos"])).await.unwrap().probe().await.unwrap_err();
}

#[tokio::test]
async fn a_listing_has_every_object_below_the_prefix() {
    let (s3, fetcher) = shared().await;
    for index in 0..7 {
        s3.put(&format!("album/{index}//ü+%2F.jpg"), vec![0; index]).await.unwrap();
    }
    s3.put("other.jpg", "x").await.unwrap();
    s3.put("album/", Bytes::new()).await.unwrap();
    let objects: Vec<ObjectRef> = fetcher.list(s3.bucket(), "album/").try_collect().await.unwrap();
    let keys: Vec<String> = objects.iter().map(|object| object.key.clone()).collect();
    let expected: Vec<String> = (0..7).map(|index| format!("album/{index}//ü+%2F.jpg")).collect();
    assert_eq!(keys, expected);
    assert!(objects.iter().enumerate().all(|(index, object)| object.size == Some(index as u64)));
    let error = fetcher.list("no-such-bucket", "").try_collect::<Vec<_>>().await.unwrap_err();
    assert!(error.to_string().contains("no-such-bucket"), "{error}");
}

#[tokio::test]
async fn a_listing_goes_on_after_its_first_page() {
    let s3 = Scripted::start().await;
    let folder = s3.server.create_bucket("photos").unwrap();
    for index in 0..1203 {
        std::fs::write(folder.join(format!("{index:04}.jpg")), "x").unwrap();
    }
    let objects: Vec<ObjectRef> = s3.fetcher.list("photos", "").try_collect().await.unwrap();
    assert_eq!(objects.len(), 1203);
    assert_eq!(objects.last().unwrap().key, "1202.jpg");
}

#[tokio::test]
async fn half_a_pair_of_keys_is_an_error() {
    let settings = S3Settings { secret_access_key: None, ..settings("http://localhost:1", "id", "") };
    let error = Fetcher::connect(&settings).await.unwrap_err();
    assert!(error.to_string().contains("belong together"), "{error}");
    assert_eq!(error.disposition(), Disposition::Stop);
}

#[tokio::test]
async fn a_slow_object_is_asked_for_twice_and_the_faster_answer_counts() {
    let s3 = Scripted::start().await;
    let object = s3.put("a.jpg", &content(5000)).await;
    for (percent, hedged) in [(100, 1), (0, 0)] {
        let settings = S3Settings {
            hedge_after_ms: 50,
            hedge_percent: percent,
            attempt_timeout_ms: 5_000,
            ..s3.settings.clone()
        };
        let fetcher = Fetcher::connect(&settings).await.unwrap();
        let reads = s3.fault_first(1, Fault::Delay(Duration::from_secs(2)));
        let started = Instant::now();
        let image = fetcher.fetch(&object, LIMIT).await.unwrap();
        assert_eq!(image.bytes, content(5000));
        assert_eq!((fetcher.hedged(), u64::from(reads.load(Ordering::SeqCst))), (hedged, 1 + hedged));
        assert_eq!(started.elapsed() < Duration::from_secs(2), hedged == 1);
    }
}

#[tokio::test]
async fn a_second_request_is_sent_only_where_there_is_room_for_a_second_copy() {
    /// Says when it is given back.
    struct Room(Arc<AtomicU32>);
    impl Drop for Room {
        fn drop(&mut self) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }
    let s3 = Scripted::start().await;
    let object = s3.put("a.jpg", &content(5000)).await;
    let settings = S3Settings { hedge_after_ms: 50, hedge_percent: 100, ..s3.settings.clone() };
    let fetcher = Fetcher::connect(&settings).await.unwrap();
    for (has_room, requests) in [(false, 1), (true, 2)] {
        let reads = s3.fault_first(1, Fault::Delay(Duration::from_millis(800)));
        let returned = Arc::new(AtomicU32::new(0));
        let room = || has_room.then(|| Room(Arc::clone(&returned)));
        let image = fetcher.fetch_in(fetcher.slot().await, &object, LIMIT, room).await.unwrap();
        assert_eq!(image.bytes, content(5000));
        assert_eq!(reads.load(Ordering::SeqCst), requests);
        assert_eq!(returned.load(Ordering::SeqCst), u32::from(has_room));
    }
}

#[tokio::test]
async fn a_body_that_stops_coming_is_hedged_too() {
    let s3 = Scripted::start().await;
    let object = s3.put("a.jpg", &content(300_000)).await;
    let settings = S3Settings {
        hedge_after_ms: 50,
        hedge_percent: 100,
        stall_timeout_ms: 20_000,
        ..s3.settings.clone()
    };
    let fetcher = Fetcher::connect(&settings).await.unwrap();
    s3.fault_first(1, Fault::Stall { after: 1000 });
    let started = Instant::now();
    assert_eq!(fetcher.fetch(&object, LIMIT).await.unwrap().bytes, content(300_000));
    assert!(started.elapsed() < Duration::from_secs(15) && fetcher.hedged() == 1);
}

#[tokio::test]
async fn fewer_objects_are_fetched_at_once_while_the_server_asks_to_slow_down() {
    let s3 = Scripted::start().await;
    let object = s3.put("a.jpg", &content(1000)).await;
    let settings = S3Settings { parallelism: 8, ..s3.settings.clone() };
    let fetcher = Fetcher::connect(&settings).await.unwrap();
    s3.fault_first(2, Fault::Refuse { status: 503, code: "SlowDown" });
    for expected in [4, 2] {
        fetcher.fetch(&object, LIMIT).await.unwrap_err();
        assert_eq!(fetcher.concurrency_limit(), expected);
    }
    let held = [fetcher.slot().await, fetcher.slot().await];
    let waiting = tokio::time::timeout(Duration::from_millis(200), fetcher.slot()).await;
    assert!(waiting.is_err(), "two at once are the limit");
    drop(held);
    for _ in 0..100 {
        fetcher.fetch(&object, LIMIT).await.unwrap();
    }
    assert_eq!(fetcher.concurrency_limit(), 8);
}
