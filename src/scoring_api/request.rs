//! What a caller asks to have scored.

use crate::{
    fault::ErrorCode,
    http::{Problem, body},
    object::ObjectRef,
    record::input::{self, BadItem, Item},
};
use axum::http::{HeaderMap, StatusCode};
use bytes::Bytes;
use serde::{Deserialize, Serialize};

/// Bucket, key and the rest are short; no honest request has a longer body.
const NAMED_LIMIT: u64 = 16 << 10;

/// How the body is to be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The bytes of an image; its format is told by the bytes themselves.
    Image,
    /// JSON that names an object.
    Named,
}

impl Kind {
    /// By the media type of the body.
    ///
    /// # Errors
    /// 415 for any other.
    pub fn of(headers: &HeaderMap) -> Result<Self, Problem> {
        let media_type = body::media_type(headers);
        if media_type == "application/json" {
            return Ok(Self::Named);
        }
        if media_type == "application/octet-stream" || media_type.starts_with("image/") {
            return Ok(Self::Image);
        }
        let detail = "send the bytes of an image as image/jpeg (or the like) or application/octet-stream, \
                      or bucket and key as application/json";
        Err(Problem::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "unsupported_media_type", detail))
    }

    /// The most bytes that the body may have, of an image `max_image_bytes`.
    pub fn limit(self, max_image_bytes: u64) -> u64 {
        match self {
            Self::Image => max_image_bytes,
            Self::Named => NAMED_LIMIT,
        }
    }
}

/// The one form of input record that the API takes.
#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct Named {
    bucket: String,
    key: String,
    version_id: Option<String>,
    etag: Option<String>,
}

/// Reads `{"bucket","key","version_id"?,"etag"?}`, as from the input topic: the key is raw, and `buckets` is
/// the allow-list.
///
/// # Errors
/// 400 for what is no such object, 403 for a bucket outside the allow-list.
pub fn named_object(body: &Bytes, buckets: &[String]) -> Result<ObjectRef, Problem> {
    let malformed = |reason: String| Problem::new(StatusCode::BAD_REQUEST, "malformed_request", reason);
    let named: Named = serde_json::from_slice(body).map_err(|error| {
        malformed(format!(
            "the body is not of the form {{\"bucket\",\"key\",\"version_id\"?,\"etag\"?}} ({error}); correct it"
        ))
    })?;
    // The records' own parser decides what may be named and how it is spelt.
    let record = serde_json::to_vec(&named).map_err(|error| malformed(error.to_string()))?;
    let item = input::parse(Some(&record), &[], buckets).items.into_iter().next();
    match item.map(|item| item.outcome) {
        Some(Ok(Item::Score(object))) => Ok(object),
        Some(Err(BadItem { error, .. })) if error.code == ErrorCode::BucketNotAllowed => {
            Err(Problem::new(StatusCode::FORBIDDEN, "bucket_not_allowed", error.message))
        }
        Some(Err(BadItem { error, .. })) => Err(malformed(error.message)),
        Some(Ok(_)) | None => Err(malformed("the body names no object to score".into())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::{http::header, response::IntoResponse};
    use proptest::prelude::*;

    fn refused(problem: Problem) -> (u16, String) {
        let text = format!("{problem:?}");
        (problem.into_response().status().as_u16(), text)
    }

    fn named(body: &str) -> Result<ObjectRef, (u16, String)> {
        named_object(&Bytes::from(body.to_owned()), &["photos".to_owned()]).map_err(refused)
    }

    #[test]
    fn an_object_is_named_as_in_a_record() {
        let object = named(r#"{"bucket":"photos","key":"a b%2Fc.jpg","etag":"\"e1\""}"#).unwrap();
        assert_eq!(object.key, "a b%2Fc.jpg");
        assert_eq!((object.etag.as_deref(), object.version_id), (Some("e1"), None));
    }

    #[test]
    fn what_names_no_object_is_refused() {
        for (body, status, word) in [
            (r#"{"bucket":"photos"}"#, 400, "missing field `key`"),
            (r#"{"bucket":"photos","key":""}"#, 400, "empty"),
            (r#"{"bucket":"photos","key":"a\u0000b"}"#, 400, "NUL"),
            (r#"{"bucket":"photos","key":"a","url":"http://x"}"#, 400, "unknown field `url`"),
            (r#"{"Records":[]}"#, 400, "unknown field"),
            ("{", 400, "EOF"),
            ("[]", 400, "malformed_request"),
            (r#"{"bucket":"elsewhere","key":"a.jpg"}"#, 403, "s3.buckets"),
            (r#"{"bucket":"../photos","key":"a.jpg"}"#, 403, "s3.buckets"),
        ] {
            let (found, text) = named(body).unwrap_err();
            assert_eq!(found, status, "{body}: {text}");
            assert!(text.contains(word), "{body}: {text}");
        }
    }

    #[test]
    fn the_media_type_says_what_the_body_is() {
        let kind = |value: Option<&str>| {
            let mut headers = HeaderMap::new();
            if let Some(value) = value {
                headers.insert(header::CONTENT_TYPE, value.parse().unwrap());
            }
            Kind::of(&headers).map_err(|problem| refused(problem).0)
        };
        assert_eq!(kind(Some("image/jpeg")), Ok(Kind::Image));
        assert_eq!(kind(Some("application/octet-stream")), Ok(Kind::Image));
        assert_eq!(kind(Some("application/json; charset=utf-8")), Ok(Kind::Named));
        for other in [None, Some("text/plain"), Some("multipart/form-data"), Some("imagejpeg")] {
            assert_eq!(kind(other), Err(415), "{other:?}");
        }
    }

    proptest! {
        #[test]
        fn no_body_names_another_bucket(body in ".{0,200}") {
            if let Ok(object) = named(&body) {
                prop_assert_eq!(object.bucket, "photos");
            }
        }

        #[test]
        fn any_key_that_s3_allows_can_be_named(key in "[^\0]{1,200}") {
            let body = serde_json::json!({"bucket": "photos", "key": key}).to_string();
            prop_assert_eq!(named(&body).unwrap().key, key);
        }
    }
}
