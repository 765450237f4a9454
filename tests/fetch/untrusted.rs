//! Keys and answers that try to lead elsewhere.

use super::*;
use std::io::{Read, Write};
use std::net::SocketAddr;

/// Keys that mean something to a shell, a path, a URL or a proxy, and nothing to S3.
const KEYS: [&str; 14] = [
    "../private/secret.jpg",
    "a/../../private/secret.jpg",
    "./../private/secret.jpg",
    "..\\private\\secret.jpg",
    "%2e%2e/private/secret.jpg",
    "..%2fprivate%2fsecret.jpg",
    "/private/secret.jpg",
    "//private/secret.jpg",
    "/etc/passwd",
    "file:///etc/passwd",
    "http://169.254.169.254/latest/meta-data/iam/security-credentials/",
    "?versionId=1&X-Amz-Security-Token=t",
    "#/private/secret.jpg",
    "a\r\nHost: private\r\n\r\n",
];

#[tokio::test]
async fn a_key_never_leaves_its_bucket() {
    let s3 = Scripted::start().await;
    s3.server.create_bucket("private").unwrap();
    s3.server.put("private", "secret.jpg", b"secret").unwrap();
    let seen = Arc::new(Mutex::new(Vec::<(String, Option<String>)>::new()));
    let asked = Arc::clone(&seen);
    s3.server.set_faults(move |request| {
        let host = request.headers.get("host").and_then(|host| host.to_str().ok()).map(str::to_owned);
        asked.lock().unwrap().push((request.uri.path().to_owned(), host));
        None
    });
    let host = s3.server.endpoint().replace("http://", "");
    for key in KEYS {
        let outcome = s3.fetcher.fetch(&ObjectRef::new("photos", key), LIMIT).await;
        let requests = std::mem::take(&mut *seen.lock().unwrap());
        // Some keys are refused without a request, or by the server's parser; none gives another's bytes.
        assert!(outcome.is_err(), "{key:?} gave {:?}", outcome.map(|image| image.bytes));
        for (path, asked) in requests {
            assert!(path.starts_with("/photos/"), "{key:?} asked for {path}");
            assert_eq!(asked.as_deref(), Some(host.as_str()), "{key:?}");
            let rest = path.strip_prefix("/photos/").unwrap();
            let decoded = percent_encoding::percent_decode_str(rest).decode_utf8_lossy();
            assert_eq!(decoded, key, "the key is data, on the wire too");
        }
    }
    // The same keys name objects of the bucket where there are such.
    s3.server.put("photos", "a/..%2fb?c#d", b"own").unwrap();
    let own = s3.fetcher.fetch(&ObjectRef::new("photos", "a/..%2fb?c#d"), LIMIT).await.unwrap();
    assert_eq!(&own.bytes[..], b"own");
}

/// A server's answer chooses no other server.
#[tokio::test]
async fn a_redirect_is_not_followed() {
    let elsewhere = TcpListener::bind("127.0.0.1:0").unwrap();
    elsewhere.set_nonblocking(true).unwrap();
    for status in ["301 Moved Permanently", "302 Found", "307 Temporary Redirect", "308 Permanent Redirect"] {
        let server = redirecting(status, elsewhere.local_addr().unwrap());
        let mut settings = settings(&format!("http://{server}"), "key", "secret");
        settings.attempts = 2;
        let fetcher = Fetcher::connect(&settings).await.unwrap();
        let error = fetcher.fetch(&ObjectRef::new("photos", "a.jpg"), LIMIT).await.unwrap_err();
        assert!(error.to_string().contains("photos/a.jpg"), "{error}");
        let visitor = elsewhere.accept().map(|(_, from)| from);
        assert_eq!(visitor.unwrap_err().kind(), std::io::ErrorKind::WouldBlock, "{status} was followed");
    }
}

/// Answers every request with `status` and a way to `elsewhere`.
fn redirecting(status: &'static str, elsewhere: SocketAddr) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { return };
            let _ = stream.read(&mut [0; 8192]);
            let answer = format!(
                "HTTP/1.1 {status}\r\nLocation: http://{elsewhere}/photos/a.jpg\r\n\
                 x-amz-bucket-region: eu-west-9\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
            );
            let _ = stream.write_all(answer.as_bytes());
        }
    });
    address
}
