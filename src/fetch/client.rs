//! The SDK's client, as the configuration wants it.

use crate::fetch::{FetchError, S3Settings};
use aws_config::BehaviorVersion;
use aws_config::retry::RetryConfig;
use aws_config::stalled_stream_protection::StalledStreamProtectionConfig;
use aws_config::timeout::TimeoutConfig;
use aws_sdk_s3::Client;
use aws_sdk_s3::config::{Credentials, Region};
use aws_smithy_http_client::Builder as HttpClientBuilder;
use aws_smithy_http_client::tls::rustls_provider::CryptoMode;
use aws_smithy_http_client::tls::{Provider, TlsContext, TrustStore};
use aws_smithy_runtime_api::client::http::SharedHttpClient;
use rustls::RootCertStore;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use std::path::Path;
use std::time::Duration;

/// A client, and the server's name for messages: the endpoint, or AWS's in the region.
pub(super) async fn connect(settings: &S3Settings) -> Result<(Client, String), FetchError> {
    let mut loader = aws_config::defaults(BehaviorVersion::latest())
        .retry_config(RetryConfig::disabled())
        .stalled_stream_protection(StalledStreamProtectionConfig::disabled())
        .timeout_config(
            TimeoutConfig::builder()
                .connect_timeout(Duration::from_millis(settings.connect_timeout_ms))
                .operation_attempt_timeout(Duration::from_millis(settings.attempt_timeout_ms))
                .build(),
        );
    // Servers other than AWS seldom care about the region, but signatures have one; and the
    // default chain would ask an instance's metadata service for it.
    let fallback = settings.endpoint.as_ref().map(|_| "us-east-1".to_owned());
    let from_environment =
        || std::env::var("AWS_REGION").or_else(|_| std::env::var("AWS_DEFAULT_REGION")).ok();
    if let Some(region) = settings.region.clone().or_else(from_environment).or(fallback) {
        loader = loader.region(Region::new(region));
    }
    match (&settings.access_key_id, &settings.secret_access_key) {
        (None, None) => {}
        (Some(id), Some(secret)) => {
            loader = loader.credentials_provider(Credentials::new(
                id,
                secret.expose(),
                None,
                None,
                "configuration",
            ));
        }
        _ => {
            return Err(FetchError::Configuration {
                reason: "s3.access_key_id and s3.secret_access_key belong together".to_owned(),
            });
        }
    }
    if let Some(endpoint) = &settings.endpoint {
        loader = loader.endpoint_url(endpoint);
    }
    let shared = loader.load().await;
    let region = shared.region().map(ToString::to_string);
    let server = match (&settings.endpoint, region) {
        (Some(endpoint), _) => endpoint.clone(),
        (None, Some(region)) => format!("AWS in {region}"),
        (None, None) => {
            return Err(FetchError::Configuration {
                reason: "neither s3.region nor AWS_REGION is set".to_owned(),
            });
        }
    };
    let path_style = settings.path_style.unwrap_or(settings.endpoint.is_some());
    let mut config = aws_sdk_s3::config::Builder::from(&shared).force_path_style(path_style);
    if let Some(file) = &settings.tls_ca_file {
        config.set_http_client(Some(trusting(file)?));
    }
    Ok((Client::from_conf(config.build()), server))
}

/// An HTTP client that trusts the authorities in `file` and no others.
fn trusting(file: &Path) -> Result<SharedHttpClient, FetchError> {
    let unusable = |reason: String| FetchError::Configuration {
        reason: format!("s3.tls_ca_file {}: {reason}; give a PEM file of certificates", file.display()),
    };
    let pem = std::fs::read(file).map_err(|error| unusable(error.to_string()))?;
    // The SDK would panic over a certificate that it cannot read.
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(&pem) {
        let certificate = certificate.map_err(|error| unusable(error.to_string()))?;
        roots.add(certificate).map_err(|error| unusable(error.to_string()))?;
    }
    if roots.is_empty() {
        return Err(unusable("holds no certificate".to_owned()));
    }
    let trust = TlsContext::builder().with_trust_store(TrustStore::empty().with_pem_certificate(pem));
    let trust = trust.build().map_err(|error| unusable(error.to_string()))?;
    let provider = Provider::rustls(CryptoMode::AwsLc);
    Ok(HttpClientBuilder::new().tls_provider(provider).tls_context(trust).build_https())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_without_certificates_is_refused_by_name() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let garbage = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
        for content in ["", "no PEM", garbage, "-----BEGIN CERTIFICATE-----\n*"] {
            std::fs::write(file.path(), content).unwrap();
            let error = trusting(file.path()).unwrap_err().to_string();
            assert!(error.contains("s3.tls_ca_file") && error.contains("PEM file"), "{error}");
        }
        let error = trusting(Path::new("/nowhere.pem")).unwrap_err().to_string();
        assert!(error.contains("/nowhere.pem"), "{error}");
    }
}
