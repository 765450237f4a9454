//! Reading a request's body, within limits.

use super::Problem;
use axum::{
    body::{self, Body},
    http::{HeaderMap, StatusCode, header},
};
use bytes::Bytes;

/// The whole body, unless it is, or says that it is, of more than `limit` bytes.
///
/// # Errors
/// 413 for too many bytes, 400 for a body that breaks off.
pub async fn read(headers: &HeaderMap, body: Body, limit: u64) -> Result<Bytes, Problem> {
    let too_large = || {
        let detail = format!("the body has more than {limit} bytes; send less");
        Problem::new(StatusCode::PAYLOAD_TOO_LARGE, "too_large", detail)
    };
    let stated = headers.get(header::CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse().ok());
    if stated.is_some_and(|length: u64| length > limit) {
        return Err(too_large());
    }
    body::to_bytes(body, usize::try_from(limit).unwrap_or(usize::MAX)).await.map_err(|error| {
        // The only source of an error that is not the connection's is the limit.
        if std::error::Error::source(&error).is_some_and(|source| source.to_string().contains("length limit"))
        {
            return too_large();
        }
        let detail = format!("the body broke off: {error}; send it again");
        Problem::new(StatusCode::BAD_REQUEST, "broken_body", detail)
    })
}

/// The media type of the body in lower case, without parameters; empty where there is none.
pub fn media_type(headers: &HeaderMap) -> String {
    let value = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    value.split(';').next().unwrap_or_default().trim().to_ascii_lowercase()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn no_more_than_the_limit_is_read() {
        let whole = read(&HeaderMap::new(), Body::from("12345"), 5).await.unwrap();
        assert_eq!(&whole[..], b"12345");
        let larger = read(&HeaderMap::new(), Body::from("123456"), 5).await.unwrap_err();
        assert!(format!("{larger:?}").contains("413"), "{larger:?}");
        let mut headers = HeaderMap::new();
        headers.insert(header::CONTENT_LENGTH, "6".parse().unwrap());
        assert!(read(&headers, Body::empty(), 5).await.is_err());
    }

    #[test]
    fn a_media_type_has_no_parameters() {
        let mut headers = HeaderMap::new();
        assert_eq!(media_type(&headers), "");
        headers.insert(header::CONTENT_TYPE, "Application/JSON ; charset=utf-8".parse().unwrap());
        assert_eq!(media_type(&headers), "application/json");
    }
}
