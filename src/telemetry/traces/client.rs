//! The HTTP client of the exporter.

use async_trait::async_trait;
use hyper_rustls::HttpsConnectorBuilder;
use opentelemetry_http::{Bytes, HttpClient, HttpError, Request, Response, hyper::HyperClient};
use std::{io, sync::Arc, time::Duration};
use tokio::runtime::Handle;

/// Sends requests on the worker's runtime: the exporter's own thread has none.
#[derive(Debug)]
pub(super) struct Client {
    client: Arc<dyn HttpClient>,
    runtime: Handle,
}

impl Client {
    /// A client that gives a request up after `timeout`. It trusts the system's authorities, or those of
    /// `SSL_CERT_FILE`.
    ///
    /// # Errors
    /// When the system's certificates cannot be read.
    pub fn new(runtime: Handle, timeout: Duration) -> io::Result<Self> {
        let provider = rustls::crypto::aws_lc_rs::default_provider();
        let connector = HttpsConnectorBuilder::new()
            .with_provider_and_native_roots(provider)?
            .https_or_http()
            .enable_http1()
            .build();
        Ok(Self { client: Arc::new(HyperClient::new(connector, timeout, None)), runtime })
    }
}

#[async_trait]
impl HttpClient for Client {
    async fn send_bytes(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        let client = Arc::clone(&self.client);
        self.runtime.spawn(async move { client.send_bytes(request).await }).await?
    }
}
