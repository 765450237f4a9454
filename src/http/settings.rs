//! The `http` section.

use super::Listen;
use crate::secret::Secret;
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// A shorter token could be guessed.
const SHORTEST_TOKEN: usize = 16;

/// Where the worker is asked from outside, and what it answers.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct HttpSettings {
    /// Where everything below is served; `:8080` means every address.
    pub listen: Listen,
    pub score: ScoringApiSettings,
    pub page: PageSettings,
}

/// The subsection `http.score`: `POST /v1/score`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ScoringApiSettings {
    /// Whether it is served at all.
    pub enabled: bool,
    /// What a caller has to send as `Authorization: Bearer`; empty, everybody may call.
    pub token: Secret,
    /// Requests that are read, waited for or scored at once; one more is answered with 429.
    pub queue: usize,
    /// How long a request may take from its headers to its answer, in milliseconds.
    pub timeout_ms: u64,
}

/// The subsection `http.page`: the page at `/`, and its labelling view.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PageSettings {
    /// Whether it is served at all.
    pub enabled: bool,
    /// Whether it shows the photos. The worker reads them; a browser never sees an address of S3.
    pub thumbnails: bool,
    /// What a rater has to give to vote; empty, the labelling view takes no votes.
    pub label_token: Secret,
    /// How long an answer of Postgres is shown before it is asked again, in milliseconds; longer where
    /// asking takes long.
    pub refresh_ms: u64,
}

impl Default for HttpSettings {
    fn default() -> Self {
        Self {
            listen: Listen::any(8080),
            score: ScoringApiSettings::default(),
            page: PageSettings::default(),
        }
    }
}

impl Default for ScoringApiSettings {
    fn default() -> Self {
        Self { enabled: false, token: Secret::default(), queue: 16, timeout_ms: 60_000 }
    }
}

impl Default for PageSettings {
    fn default() -> Self {
        Self { enabled: true, thumbnails: true, label_token: Secret::default(), refresh_ms: 5_000 }
    }
}

impl HttpSettings {
    /// What is wrong with the section, and the key; the remedy with it.
    ///
    /// # Errors
    /// Key and reason.
    pub fn check(&self) -> Result<(), (&'static str, &'static str)> {
        if self.score.queue == 0 {
            return Err(("http.score.queue", "is 0, so no request could ever be taken; allow 1 or more"));
        }
        if self.score.timeout_ms == 0 {
            return Err(("http.score.timeout_ms", "is 0, which no request can keep; give milliseconds"));
        }
        for (key, token) in
            [("http.score.token", &self.score.token), ("http.page.label_token", &self.page.label_token)]
        {
            if token.is_empty() {
                continue;
            }
            if token.expose().len() < SHORTEST_TOKEN {
                return Err((
                    key,
                    "has fewer than 16 characters; make one that nobody guesses, as `openssl rand -hex 16` does",
                ));
            }
            if !token.expose().bytes().all(|byte| byte.is_ascii_graphic()) {
                return Err((
                    key,
                    "holds what no header can carry; use letters, digits and signs without spaces",
                ));
            }
        }
        Ok(())
    }
}

impl ScoringApiSettings {
    pub fn timeout(&self) -> Duration {
        Duration::from_millis(self.timeout_ms)
    }
}

impl PageSettings {
    pub fn refresh(&self) -> Duration {
        Duration::from_millis(self.refresh_ms)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_work_is_named() {
        assert_eq!(HttpSettings::default().check(), Ok(()));
        let mut settings = HttpSettings::default();
        settings.score.token = Secret::from("0123456789abcdef");
        settings.page.label_token = Secret::from("~!*+/0123456789=");
        assert_eq!(settings.check(), Ok(()));
        for (token, expected) in [("short", "fewer than 16"), ("with a space in it", "no header")] {
            settings.page.label_token = Secret::from(token);
            let (key, reason) = settings.check().unwrap_err();
            assert_eq!(key, "http.page.label_token");
            assert!(reason.contains(expected), "{reason}");
        }
        let mut settings = HttpSettings::default();
        settings.score.queue = 0;
        assert_eq!(settings.check().unwrap_err().0, "http.score.queue");
    }
}
