//! What handlers answer with: JSON, and problems as RFC 9457 has them.

use axum::{
    body::Body,
    http::{HeaderName, HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use serde::Serialize;
use std::time::Duration;

/// JSON that no cache keeps.
pub fn json(status: StatusCode, body: &impl Serialize) -> Response {
    with_type(status, "application/json", body)
}

fn with_type(status: StatusCode, content_type: &'static str, body: &impl Serialize) -> Response {
    match serde_json::to_vec(body) {
        Ok(bytes) => {
            let headers = [
                (header::CONTENT_TYPE, content_type),
                (header::CACHE_CONTROL, "no-store"),
                (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
            ];
            (status, headers, bytes).into_response()
        }
        Err(error) => {
            tracing::error!(%error, "an answer cannot be written as JSON");
            StatusCode::INTERNAL_SERVER_ERROR.into_response()
        }
    }
}

/// Why a request is not answered as asked, as `application/problem+json` (RFC 9457).
#[derive(Clone, Debug, Serialize)]
pub struct Problem {
    /// Always `about:blank`: the status says what kind of problem it is.
    r#type: &'static str,
    title: &'static str,
    status: u16,
    /// What happened and what to do, for people.
    detail: String,
    /// What happened, for programs.
    code: &'static str,
    #[serde(skip)]
    header: Option<Box<(HeaderName, HeaderValue)>>,
}

impl Problem {
    pub fn new(status: StatusCode, code: &'static str, detail: impl Into<String>) -> Self {
        Self {
            r#type: "about:blank",
            title: status.canonical_reason().unwrap_or_default(),
            status: status.as_u16(),
            detail: detail.into(),
            code,
            header: None,
        }
    }

    /// 401. What the token is called in the configuration goes into the text.
    pub fn unauthorized(key: &str) -> Self {
        let detail = format!("send the token ({key}) as `Authorization: Bearer TOKEN`");
        let mut problem = Self::new(StatusCode::UNAUTHORIZED, "unauthorized", detail);
        problem.header = Some(Box::new((header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"))));
        problem
    }

    /// The same, with a time after which trying again may help; whole seconds, at least one.
    pub fn retry_after(mut self, after: Duration) -> Self {
        let seconds = after.as_secs_f64().ceil().max(1.0) as u64;
        self.header = Some(Box::new((header::RETRY_AFTER, HeaderValue::from(seconds))));
        self
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response<Body> {
        let status = StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let mut response = with_type(status, "application/problem+json", &self);
        if let Some(header) = self.header {
            let (name, value) = *header;
            response.headers_mut().insert(name, value);
        }
        response
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_problem_says_when_to_come_back() {
        for (after, expected) in [(0, "1"), (999, "1"), (1_001, "2"), (60_000, "60")] {
            let problem = Problem::new(StatusCode::TOO_MANY_REQUESTS, "queue_full", "later");
            let response = problem.retry_after(Duration::from_millis(after)).into_response();
            assert_eq!(response.status(), StatusCode::TOO_MANY_REQUESTS);
            assert_eq!(response.headers()[header::RETRY_AFTER], expected, "{after} ms");
            assert_eq!(response.headers()[header::CONTENT_TYPE], "application/problem+json");
        }
    }

    #[test]
    fn an_unauthorized_caller_is_told_how() {
        let response = Problem::unauthorized("http.score.token").into_response();
        assert_eq!(response.headers()[header::WWW_AUTHENTICATE], "Bearer");
    }
}
