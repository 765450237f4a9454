//! The SDK's client, as the configuration wants it.

use crate::fetch::{FetchError, S3Settings};
use aws_config::BehaviorVersion;
use aws_config::retry::RetryConfig;
use aws_config::stalled_stream_protection::StalledStreamProtectionConfig;
use aws_config::timeout::TimeoutConfig;
use aws_sdk_s3::config::{Credentials, Region};
use aws_sdk_s3::{Client, Config};
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
    let config: Config = aws_sdk_s3::config::Builder::from(&shared).force_path_style(path_style).build();
    Ok((Client::from_conf(config), server))
}
