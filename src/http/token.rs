//! Bearer tokens (RFC 6750), compared in constant time.

use crate::secret::Secret;
use axum::http::{HeaderMap, header};

const SCHEME: &str = "bearer ";

/// Whether `headers` carry `token` as `Authorization: Bearer`.
///
/// An empty `token` is nobody's: nothing matches it.
pub fn carries(headers: &HeaderMap, token: &Secret) -> bool {
    let mut given = headers.get_all(header::AUTHORIZATION).iter();
    // A request with two of them is a mistake or worse.
    let (Some(given), None) = (given.next(), given.next()) else { return false };
    let Some((scheme, credentials)) = given.as_bytes().split_at_checked(SCHEME.len()) else { return false };
    if !scheme.eq_ignore_ascii_case(SCHEME.as_bytes()) {
        return false;
    }
    std::str::from_utf8(credentials).is_ok_and(|given| token.matches(given))
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::http::HeaderValue;

    fn headers(values: &[&str]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(header::AUTHORIZATION, HeaderValue::from_str(value).unwrap());
        }
        headers
    }

    #[test]
    fn only_the_whole_token_opens() {
        let token = Secret::from("s3cret-s3cret-s3cret");
        assert!(carries(&headers(&["Bearer s3cret-s3cret-s3cret"]), &token));
        assert!(carries(&headers(&["bearer s3cret-s3cret-s3cret"]), &token));
        for wrong in [
            "",
            "Bearer",
            "Bearer ",
            "Bearer s3cret-s3cret-s3cre",
            "Bearer s3cret-s3cret-s3cret ",
            "Bearer  s3cret-s3cret-s3cret",
            "Basic s3cret-s3cret-s3cret",
            "s3cret-s3cret-s3cret",
        ] {
            assert!(!carries(&headers(&[wrong]), &token), "{wrong:?}");
        }
        assert!(!carries(&HeaderMap::new(), &token));
        let twice = ["Bearer s3cret-s3cret-s3cret", "Bearer other"];
        assert!(!carries(&headers(&twice), &token));
    }

    #[test]
    fn without_a_token_nothing_opens() {
        for given in ["Bearer ", "Bearer x", "Bearer [redacted]"] {
            assert!(!carries(&headers(&[given]), &Secret::default()), "{given:?}");
        }
    }
}
