//! S3's errors, sorted by what the caller does next.

use crate::fault::{Disposition, ErrorCode, ItemError, Stage};
use crate::object::ObjectRef;
use crate::score::ItemStatus;
use aws_sdk_s3::error::{DisplayErrorContext, ProvideErrorMetadata, SdkError};
use aws_smithy_runtime_api::client::orchestrator::HttpResponse;
use std::error::Error;

pub(super) type Sdk<E> = SdkError<E, HttpResponse>;

/// What every operation's error type of the SDK is.
pub(super) trait ServiceFault: ProvideErrorMetadata + Error + Send + Sync + 'static {}

impl<E: ProvideErrorMetadata + Error + Send + Sync + 'static> ServiceFault for E {}

/// Why an object's bytes are not here. `object` is `bucket/key`; `target` is
/// an object or a bucket, and the server.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// The settings make no sense.
    #[error("s3: {reason}; check section [s3] of the configuration")]
    Configuration { reason: String },
    /// There is no such object or version.
    #[error("{object}: the object does not exist (any more); upload it again to have it scored")]
    Missing { object: String },
    /// The object was overwritten after the event; the newer upload has an event of its own.
    #[error("{object}: superseded, the object was overwritten after this event; nothing to do")]
    Superseded { object: String },
    /// The object is larger than the configured limit.
    #[error(
        "{object}: {size} bytes are more than the limit of {limit}; upload a smaller file or raise image.max_bytes"
    )]
    TooLarge { object: String, size: u64, limit: u64 },
    /// The server wants other rights, another bucket or another clock.
    #[error("{target}: refused with {code} (HTTP {status}): {message}; check credentials, policy and region")]
    Denied { target: String, status: u16, code: String, message: String },
    /// No server is found, or nothing signs the request.
    #[error("{target}: unreachable: {reason}; check s3.endpoint, DNS and credentials")]
    Unreachable { target: String, reason: String },
    /// The server's certificate is not signed by an authority that is trusted, or names another host.
    #[error(
        "{target}: no trusted connection: {reason}; give the server's authority in s3.tls_ca_file, and use a \
         host name that its certificate has in s3.endpoint"
    )]
    Untrusted { target: String, reason: String },
    /// The server is overloaded or ill.
    #[error("{target}: {code} (HTTP {status}): {message}; it passes when the server recovers")]
    Unavailable { target: String, status: u16, code: String, message: String },
    /// Nothing came in time.
    #[error("{target}: timed out: {reason}; the server or the network is slow")]
    TimedOut { target: String, reason: String },
    /// The connection or the body broke more often than `s3.attempts` allows.
    #[error("{target}: the transfer broke: {reason}; it passes when the network recovers")]
    Broken { target: String, reason: String },
}

impl FetchError {
    /// What the caller does next.
    pub fn disposition(&self) -> Disposition {
        match self {
            Self::Configuration { .. } => Disposition::Stop,
            Self::Missing { .. } | Self::Superseded { .. } | Self::TooLarge { .. } => Disposition::Reject,
            Self::Denied { .. } | Self::Unreachable { .. } | Self::Untrusted { .. } => Disposition::Hold,
            Self::Unavailable { .. } | Self::TimedOut { .. } | Self::Broken { .. } => Disposition::Retry,
        }
    }

    /// What a command does next: passing faults are waited out, broken surroundings end it.
    pub fn passing(&self) -> Disposition {
        match self.disposition() {
            Disposition::Hold => Disposition::Stop,
            other => other,
        }
    }

    /// How the item ends if this error is final.
    pub fn status(&self) -> ItemStatus {
        match self {
            Self::Missing { .. } | Self::Superseded { .. } => ItemStatus::Gone,
            Self::TooLarge { .. } => ItemStatus::Rejected,
            _ => ItemStatus::Dead,
        }
    }

    /// The error that row, output and dead letter carry if this one is final.
    pub fn item_error(&self) -> ItemError {
        let code = match self {
            Self::Missing { .. } => ErrorCode::ObjectMissing,
            Self::Superseded { .. } => ErrorCode::Superseded,
            Self::TooLarge { .. } => ErrorCode::TooLarge,
            _ => ErrorCode::RetryExhausted,
        };
        ItemError::new(code, Stage::Fetch, self.to_string())
    }

    /// Of an error that says nothing about one object.
    pub(super) fn from_sdk<E: ServiceFault>(error: &Sdk<E>, server: &str, resource: &str) -> Self {
        let target = format!("s3://{resource} at {server}");
        match error {
            SdkError::ServiceError(fault) => {
                let status = fault.raw().status().as_u16();
                let code = fault.err().code().unwrap_or(if status == 404 { "NotFound" } else { "no code" });
                let message = fault.err().message().unwrap_or("no message").to_owned();
                from_service(target, status, code.to_owned(), message)
            }
            SdkError::TimeoutError(_) => Self::TimedOut { target, reason: causes(error) },
            SdkError::DispatchFailure(failure) => {
                let reason = causes(error);
                // A reset connection is neither an I/O error nor a timeout to the SDK, so only
                // what is surely no matter of one connection is taken out.
                if failure.is_timeout() {
                    Self::TimedOut { target, reason }
                } else if reason.contains("certificate") {
                    Self::Untrusted { target, reason }
                } else if failure.is_user() || is_environmental(&reason) {
                    Self::Unreachable { target, reason }
                } else {
                    Self::Broken { target, reason }
                }
            }
            SdkError::ConstructionFailure(_) => Self::Unreachable { target, reason: causes(error) },
            _ => Self::Broken { target, reason: causes(error) },
        }
    }

    /// Of a request for `object`.
    pub(super) fn of_object<E: ServiceFault>(error: &Sdk<E>, server: &str, object: &ObjectRef) -> Self {
        if let SdkError::ServiceError(fault) = error {
            let status = fault.raw().status().as_u16();
            match (status, fault.err().code()) {
                (404, Some("NoSuchBucket")) => {}
                // 405 is what a version id gives that names a delete marker; a version id of a
                // form that the server never issues, or a key too long for it, cannot exist.
                (404 | 405, _) | (400, Some("InvalidArgument" | "NoSuchVersion" | "KeyTooLongError")) => {
                    return Self::Missing { object: object.to_string() };
                }
                (412, _) => return Self::Superseded { object: object.to_string() },
                _ => {}
            }
        }
        // The SDK refuses to ask for an object without a name, or by an etag that no header can carry.
        if object.key.is_empty() || !object.etag_can_be_sent() {
            return Self::Missing { object: object.to_string() };
        }
        Self::from_sdk(error, server, &object.to_string())
    }
}

fn from_service(target: String, status: u16, code: String, message: String) -> FetchError {
    let passing =
        matches!(code.as_str(), "SlowDown" | "RequestTimeout" | "InternalError" | "ServiceUnavailable");
    if passing || status >= 500 || status == 429 {
        FetchError::Unavailable { target, status, code, message }
    } else {
        FetchError::Denied { target, status, code, message }
    }
}

/// A refusal that only means that the caller may not list: keys and signature were accepted.
pub(super) fn is_missing_permission<E: ServiceFault>(error: &Sdk<E>) -> bool {
    matches!(error, SdkError::ServiceError(fault) if fault.err().code() == Some("AccessDenied"))
}

fn is_environmental(reason: &str) -> bool {
    ["dns error", "failed to lookup", "credentials", "identity", "Connection refused"]
        .iter()
        .any(|sign| reason.contains(sign))
}

/// The chain of causes on one line; the SDK's own `Display` stops at "dispatch failure".
fn causes<E: ServiceFault>(error: &Sdk<E>) -> String {
    let mut parts = vec![error.to_string()];
    let mut source = error.source();
    while let Some(cause) = source {
        let text = cause.to_string();
        if parts.last().is_none_or(|last| !last.contains(&text)) {
            parts.push(text);
        }
        source = cause.source();
    }
    let chain = if parts.len() == 1 { DisplayErrorContext(error).to_string() } else { parts.join(": ") };
    // The credential chain lists its attempts on lines of their own.
    chain.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(status: u16, code: &str) -> Disposition {
        from_service("s3://b at x".into(), status, code.into(), String::new()).disposition()
    }

    #[test]
    fn service_errors_have_their_dispositions() {
        assert_eq!(of(503, "SlowDown"), Disposition::Retry);
        assert_eq!(of(500, "InternalError"), Disposition::Retry);
        assert_eq!(of(429, "TooManyRequests"), Disposition::Retry);
        assert_eq!(of(400, "RequestTimeout"), Disposition::Retry);
        assert_eq!(of(403, "AccessDenied"), Disposition::Hold);
        assert_eq!(of(400, "ExpiredToken"), Disposition::Hold);
        assert_eq!(of(404, "NoSuchBucket"), Disposition::Hold);
        assert_eq!(of(301, "PermanentRedirect"), Disposition::Hold);
    }

    #[test]
    fn an_end_without_a_score_says_which() {
        let object = "b/k".to_owned();
        let missing = FetchError::Missing { object: object.clone() };
        assert_eq!(
            (missing.status(), missing.item_error().code),
            (ItemStatus::Gone, ErrorCode::ObjectMissing)
        );
        let superseded = FetchError::Superseded { object: object.clone() };
        assert_eq!(
            (superseded.status(), superseded.item_error().code),
            (ItemStatus::Gone, ErrorCode::Superseded)
        );
        let large = FetchError::TooLarge { object, size: 2, limit: 1 };
        assert_eq!((large.status(), large.item_error().code), (ItemStatus::Rejected, ErrorCode::TooLarge));
        let broken = FetchError::Broken { target: "b/k".into(), reason: "reset".into() };
        assert_eq!(
            (broken.status(), broken.item_error().code),
            (ItemStatus::Dead, ErrorCode::RetryExhausted)
        );
    }
}
