//! One object's body, resumed where it breaks until it is complete.

use crate::fetch::error::FetchError;
use crate::fetch::{FetchedImage, Fetcher, S3Settings, unquoted};
use crate::object::{NULL_VERSION, ObjectRef};
use aws_sdk_s3::error::DisplayErrorContext;
use aws_sdk_s3::operation::get_object::GetObjectOutput;
use aws_sdk_s3::primitives::ByteStream;
use bytes::{Bytes, BytesMut};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::{Instant, timeout_at};

/// Memory is reserved ahead for this much at most: a length is only announced.
const RESERVED_AT_MOST: u64 = 1 << 20;

/// A download under way.
pub(super) struct Download<'a> {
    fetcher: &'a Fetcher,
    object: &'a ObjectRef,
    max_bytes: u64,
    received: BytesMut,
    /// From the first response: what the rest must belong to.
    start: Option<Start>,
}

/// What the first response says of the whole object.
#[derive(Clone, Debug)]
struct Start {
    etag: Option<String>,
    version_id: Option<String>,
    /// `None` if the server announces none.
    total: Option<u64>,
}

/// How one response's body ended.
enum Ending {
    /// With as many bytes as announced.
    Complete,
    /// Early; what was received is good.
    Early(String),
    /// The bytes cannot be trusted.
    Invalid(String),
}

/// How a body's bytes ceased to come.
pub(super) enum BodyEnd {
    /// By themselves; whether they are all is for the caller to count.
    Finished,
    /// Too slowly.
    Stalled(String),
    /// By an error.
    Broken(String),
}

/// Hands a body's bytes to `take` as they come, for as long as they come fast enough.
///
/// # Errors
/// Those of `take`, at once.
pub(super) async fn read_body(
    settings: &S3Settings,
    mut body: ByteStream,
    mut take: impl FnMut(Bytes) -> Result<(), FetchError>,
) -> Result<BodyEnd, FetchError> {
    let window = Duration::from_millis(settings.stall_timeout_ms.max(1));
    let floor = settings.stall_bytes_per_s.saturating_mul(settings.stall_timeout_ms) / 1000;
    let mut window_end = Instant::now() + window;
    let mut in_window = 0_u64;
    loop {
        let chunk: Option<Result<Bytes, _>> = match timeout_at(window_end, body.next()).await {
            Ok(chunk) => chunk,
            Err(_) if in_window < floor.max(1) => {
                return Ok(BodyEnd::Stalled(format!("{in_window} bytes came in {} ms", window.as_millis())));
            }
            Err(_) => {
                window_end = Instant::now() + window;
                in_window = 0;
                continue;
            }
        };
        match chunk {
            Some(Ok(chunk)) => {
                in_window += chunk.len() as u64;
                take(chunk)?;
            }
            Some(Err(error)) => return Ok(BodyEnd::Broken(DisplayErrorContext(&error).to_string())),
            None => return Ok(BodyEnd::Finished),
        }
    }
}

impl<'a> Download<'a> {
    pub(super) fn new(fetcher: &'a Fetcher, object: &'a ObjectRef, max_bytes: u64) -> Self {
        Self { fetcher, object, max_bytes, received: BytesMut::new(), start: None }
    }

    pub(super) async fn run(mut self) -> Result<FetchedImage, FetchError> {
        let mut last_reason = "no attempt was allowed".to_owned();
        for _ in 0..self.fetcher.settings.attempts.max(1) {
            match self.attempt().await? {
                Ending::Complete => return Ok(self.finish()),
                Ending::Early(reason) => last_reason = reason,
                Ending::Invalid(reason) => {
                    last_reason = reason;
                    self.restart();
                }
            }
        }
        Err(self.broken(last_reason))
    }

    /// One request: for the whole object at first, later for what is missing of it.
    async fn attempt(&mut self) -> Result<Ending, FetchError> {
        let Fetcher { client, server, .. } = self.fetcher;
        let object = self.object;
        let mut request = client.get_object().bucket(&object.bucket).key(&object.key);
        let started = self.start.as_ref();
        let version_id = object.version_id.as_ref().or(started.and_then(|start| start.version_id.as_ref()));
        let etag = started.and_then(|start| start.etag.as_ref()).or(object.etag.as_ref());
        match (version_id, etag) {
            (Some(version_id), _) => request = request.version_id(version_id),
            (None, Some(etag)) => request = request.if_match(format!("\"{etag}\"")),
            (None, None) => {}
        }
        let resuming = started.is_some() && !self.received.is_empty();
        if resuming {
            request = request.range(format!("bytes={}-", self.received.len()));
        }
        let response = match request.send().await {
            Ok(response) => response,
            Err(error) => return self.request_failed(FetchError::of_object(&error, server, object)),
        };
        if resuming {
            if let Err(reason) = self.check_resumed(&response) {
                return Ok(Ending::Invalid(reason));
            }
        } else {
            self.begin(&response)?;
        }
        self.read(response.body).await
    }

    /// An error ends the fetch, unless it only says that an object which nobody pinned was
    /// overwritten while it was read: then the new content is as good.
    fn request_failed(&self, error: FetchError) -> Result<Ending, FetchError> {
        let pinned = self.object.version_id.is_some() || self.object.etag.is_some();
        match error {
            FetchError::Superseded { .. } if !pinned => {
                Ok(Ending::Invalid("the object was overwritten while it was read".to_owned()))
            }
            // Range not satisfiable: the object is shorter than it was.
            FetchError::Denied { status: 416, .. } if self.start.is_some() => {
                Ok(Ending::Invalid("the object became shorter while it was read".to_owned()))
            }
            FetchError::Broken { reason, .. } if self.start.is_some() => Ok(Ending::Early(reason)),
            other => Err(other),
        }
    }

    /// Takes the first response's word for size and identity, where they agree with the event.
    fn begin(&mut self, response: &GetObjectOutput) -> Result<(), FetchError> {
        let total = response.content_length().and_then(|length| u64::try_from(length).ok());
        let etag = response.e_tag().map(unquoted);
        let version_id = response.version_id().filter(|version| *version != NULL_VERSION).map(str::to_owned);
        // A server that ignores If-Match is found out here.
        if let (None, Some(expected), Some(etag)) = (&self.object.version_id, &self.object.etag, &etag)
            && expected != etag
        {
            return Err(FetchError::Superseded { object: self.object.to_string() });
        }
        if let Some(size) = total {
            self.check_limit(size)?;
        }
        let pinned = self.object.version_id.is_some() || self.object.etag.is_some();
        if let (true, Some(expected), Some(total)) = (pinned, self.object.size, total)
            && expected != total
        {
            return Err(self.broken(format!("{total} bytes are announced, the event says {expected}")));
        }
        self.received.clear();
        let reserved = total.unwrap_or_default().min(RESERVED_AT_MOST);
        self.received.reserve(usize::try_from(reserved).unwrap_or_default());
        self.start = Some(Start { etag, version_id, total });
        Ok(())
    }

    /// A resumed body must be the rest of the same object, from the byte asked for.
    fn check_resumed(&self, response: &GetObjectOutput) -> Result<(), String> {
        let Some(start) = &self.start else { return Err("nothing was begun".to_owned()) };
        let range = response.content_range().unwrap_or_default();
        let expected = match start.total {
            Some(total) => format!("bytes {}-{}/{total}", self.received.len(), total.saturating_sub(1)),
            None => range.to_owned(),
        };
        if range.is_empty() || range != expected {
            return Err(format!("asked for {expected:?}, the server sent {range:?}"));
        }
        let etag = response.e_tag().map(unquoted);
        if start.etag != etag {
            return Err("the object was overwritten while it was read".to_owned());
        }
        Ok(())
    }

    async fn read(&mut self, body: ByteStream) -> Result<Ending, FetchError> {
        let settings = Arc::clone(&self.fetcher.settings);
        let end = read_body(&settings, body, |chunk| {
            self.check_limit(self.received.len() as u64 + chunk.len() as u64)?;
            self.received.extend_from_slice(&chunk);
            Ok(())
        });
        let end = end.await?;
        let total = self.start.as_ref().and_then(|start| start.total);
        Ok(match end {
            BodyEnd::Finished => self.ended(),
            BodyEnd::Stalled(reason) => Ending::Early(reason),
            // After the last byte, only a checksum is left to be wrong.
            BodyEnd::Broken(reason) if total == Some(self.received.len() as u64) => Ending::Invalid(reason),
            BodyEnd::Broken(reason) => Ending::Early(reason),
        })
    }

    /// The end of a body without an error, which does not yet mean that all of it came.
    fn ended(&self) -> Ending {
        let received = self.received.len() as u64;
        let announced = self.start.as_ref().and_then(|start| start.total).or(self.object.size);
        match announced {
            Some(total) if received < total => Ending::Early(format!("{received} of {total} bytes came")),
            Some(total) if received > total => {
                Ending::Invalid(format!("{received} bytes came, {total} were announced"))
            }
            _ => Ending::Complete,
        }
    }

    fn restart(&mut self) {
        self.received.clear();
        self.start = None;
    }

    fn finish(self) -> FetchedImage {
        let start = self.start.unwrap_or(Start { etag: None, version_id: None, total: None });
        let bytes = self.received.freeze();
        let version_id = start.version_id.or_else(|| self.object.version_id.clone());
        FetchedImage { size: bytes.len() as u64, bytes, etag: start.etag, version_id }
    }

    fn check_limit(&self, size: u64) -> Result<(), FetchError> {
        if size > self.max_bytes {
            return Err(FetchError::TooLarge {
                object: self.object.to_string(),
                size,
                limit: self.max_bytes,
            });
        }
        Ok(())
    }

    fn broken(&self, reason: String) -> FetchError {
        FetchError::Broken { target: format!("s3://{} at {}", self.object, self.fetcher.server), reason }
    }
}
