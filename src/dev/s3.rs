//! An S3 server over a folder, in this process.

use crate::dev::DevError;
use crate::dev::s3_objects::ObjectFolder;
use bytes::Bytes;
use futures_util::stream;
use hyper::body::Incoming;
use hyper::http::request::Parts;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response, header};
use hyper_util::rt::TokioIo;
use s3s::auth::SimpleAuth;
use s3s::dto::StreamingBlob;
use s3s::service::{S3Service, S3ServiceBuilder};
use s3s::{Body, HttpError};
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::runtime::{Builder, Runtime};

const PART: &str = "S3 server";

/// What the server does instead of, or beside, serving a request.
#[derive(Clone, Debug)]
pub enum Fault {
    /// Answer with this status and S3 error code.
    Refuse { status: u16, code: &'static str },
    /// Serve after this long.
    Delay(Duration),
    /// Announce the whole body, send this many bytes of it and close the connection.
    Cut { after: usize },
    /// Announce and send only this many bytes, as a faulty proxy does.
    Shorten { to: usize },
    /// Announce the whole body, send this many bytes and then nothing, with the connection open.
    Stall { after: usize },
}

/// Decides by request line and headers; the URI is the one on the wire.
type FaultRule = dyn Fn(&Parts) -> Option<Fault> + Send + Sync;

/// Serves every sub-folder of a folder as a bucket, path-style, on a loopback port. Requests must
/// be signed with the keys below. Reads honour `If-Match`, `If-None-Match` and `Range`; there are
/// no versions. Keys of uploads in parts have at most a hundred bytes. Stops when dropped.
pub struct S3Server {
    root: PathBuf,
    address: SocketAddr,
    rule: Arc<RwLock<Option<Box<FaultRule>>>>,
    // `None` only while it is being dropped.
    runtime: Option<Runtime>,
}

impl S3Server {
    /// The only access key that the server knows.
    pub const ACCESS_KEY: &str = "roc4mllm-dev";
    /// Its secret, which guards nothing of value.
    pub const SECRET_KEY: &str = "roc4mllm-dev-secret";
    /// The region that goes into signatures; the server accepts any.
    pub const REGION: &str = "us-east-1";

    /// Serves the sub-folders of `root`, on threads of its own.
    pub fn start(root: &Path) -> Result<Self, DevError> {
        let failed = |reason: String| DevError::Start { part: PART, reason };
        let root = root.canonicalize().map_err(|error| failed(format!("{}: {error}", root.display())))?;
        let objects =
            ObjectFolder::new(&root).map_err(|_| failed(format!("{} cannot be read", root.display())))?;
        let mut builder = S3ServiceBuilder::new(objects);
        builder.set_auth(SimpleAuth::from_single(Self::ACCESS_KEY, Self::SECRET_KEY));
        let service = builder.build();
        let runtime = Builder::new_multi_thread()
            .worker_threads(2)
            .thread_name("s3-server")
            .enable_all()
            .build()
            .map_err(|error| DevError::io(PART, error))?;
        let (listener, address) = listen(&runtime).map_err(|error| DevError::io(PART, error))?;
        let rule: Arc<RwLock<Option<Box<FaultRule>>>> = Arc::default();
        runtime.spawn(accept(listener, service, Arc::clone(&rule)));
        Ok(Self { root, address, rule, runtime: Some(runtime) })
    }

    /// `http://host:port`.
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    /// The folder whose sub-folders are the buckets.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Creates a bucket, which is a folder; one that exists is left as it is.
    pub fn create_bucket(&self, bucket: &str) -> Result<PathBuf, DevError> {
        let folder = self.root.join(bucket);
        std::fs::create_dir_all(&folder).map_err(|error| DevError::io(PART, error))?;
        Ok(folder)
    }

    /// Puts an object into a bucket's folder without a request, under any key; its ETag without
    /// quotes. An object that is there is replaced in one step.
    pub fn put(&self, bucket: &str, key: &str, content: &[u8]) -> Result<String, DevError> {
        ObjectFolder::place(&self.root, bucket, key, content).map_err(|error| DevError::io(PART, error))
    }

    /// From now on, `rule` sees every request first; it replaces the rule before it.
    pub fn set_faults(&self, rule: impl Fn(&Parts) -> Option<Fault> + Send + Sync + 'static) {
        *self.rule.write().unwrap_or_else(PoisonError::into_inner) = Some(Box::new(rule));
    }

    /// Serves everything as it is again.
    pub fn clear_faults(&self) {
        *self.rule.write().unwrap_or_else(PoisonError::into_inner) = None;
    }
}

impl Drop for S3Server {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            // Unlike a plain drop, this may happen inside another runtime.
            runtime.shutdown_background();
        }
    }
}

/// Without `block_on`, which must not be called inside another runtime.
fn listen(runtime: &Runtime) -> io::Result<(TcpListener, SocketAddr)> {
    let listener = std::net::TcpListener::bind(("127.0.0.1", 0))?;
    listener.set_nonblocking(true)?;
    let address = listener.local_addr()?;
    let _context = runtime.enter();
    Ok((TcpListener::from_std(listener)?, address))
}

async fn accept(listener: TcpListener, service: S3Service, rule: Arc<RwLock<Option<Box<FaultRule>>>>) {
    loop {
        let Ok((socket, _)) = listener.accept().await else {
            // Out of file descriptors: let connections end.
            tokio::time::sleep(Duration::from_millis(50)).await;
            continue;
        };
        let service = service.clone();
        let rule = Arc::clone(&rule);
        let answer = service_fn(move |request: Request<Incoming>| {
            let service = service.clone();
            let rule = Arc::clone(&rule);
            async move { serve(request, service, &rule).await }
        });
        tokio::spawn(async move {
            if let Err(error) = http1::Builder::new().serve_connection(TokioIo::new(socket), answer).await {
                tracing::trace!(%error, "an S3 connection broke");
            }
        });
    }
}

async fn serve(
    request: Request<Incoming>,
    service: S3Service,
    rule: &RwLock<Option<Box<FaultRule>>>,
) -> Result<Response<Body>, HttpError> {
    let (parts, body) = request.into_parts();
    let fault = rule.read().unwrap_or_else(PoisonError::into_inner).as_ref().and_then(|rule| rule(&parts));
    let request = Request::from_parts(parts, Body::from(body));
    match fault {
        None => service.call(request).await,
        Some(Fault::Refuse { status, code }) => refusal(status, code),
        Some(Fault::Delay(delay)) => {
            tokio::time::sleep(delay).await;
            service.call(request).await
        }
        Some(Fault::Cut { after }) => {
            damage(service.call(request).await?, |content| broken(content.slice(..after.min(content.len()))))
                .await
        }
        Some(Fault::Stall { after }) => {
            damage(service.call(request).await?, |content| stalled(content.slice(..after.min(content.len()))))
                .await
        }
        Some(Fault::Shorten { to }) => {
            let mut response = service.call(request).await?;
            response.headers_mut().remove(header::CONTENT_LENGTH);
            damage(response, |content| Body::from(content.slice(..to.min(content.len())))).await
        }
    }
}

fn refusal(status: u16, code: &str) -> Result<Response<Body>, HttpError> {
    let body =
        format!("<?xml version=\"1.0\"?><Error><Code>{code}</Code><Message>scripted</Message></Error>");
    Response::builder()
        .status(status)
        .header(header::CONTENT_TYPE, "application/xml")
        .body(Body::from(body))
        .map_err(|error| HttpError::new(Box::new(error)))
}

/// Replaces the body and leaves the headers, and with them the announced length, as they are.
async fn damage(
    mut response: Response<Body>,
    replace: impl FnOnce(Bytes) -> Body,
) -> Result<Response<Body>, HttpError> {
    let content = response.body_mut().store_all_limited(usize::MAX).await.map_err(HttpError::new)?;
    *response.body_mut() = replace(content);
    Ok(response)
}

/// The bytes, then an error, upon which hyper closes the connection. The pause lets it flush.
fn broken(content: Bytes) -> Body {
    let stream = stream::unfold(Some(content), |content| async move {
        match content {
            Some(content) => Some((Ok(content), None)),
            None => {
                tokio::time::sleep(Duration::from_millis(30)).await;
                Some((Err(io::Error::from(io::ErrorKind::ConnectionReset)), None))
            }
        }
    });
    Body::from(StreamingBlob::wrap(stream))
}

fn stalled(content: Bytes) -> Body {
    let stream = stream::unfold(Some(content), |content| async move {
        match content {
            Some(content) => Some((Ok::<_, io::Error>(content), None)),
            None => std::future::pending().await,
        }
    });
    Body::from(StreamingBlob::wrap(stream))
}
