//! An S3 server whose requests a test sees and may spoil, with a registry over it.

use roc4mllm::{
    dev::{Fault, S3Server},
    fetch::S3Settings,
    registry::{Origin, Publication, Published, Registry, RegistryError, RegistrySettings, S3Address},
    retry::RetrySettings,
    secret::Secret,
};
use std::{
    path::Path,
    sync::{Arc, Mutex},
};
use tempfile::TempDir;

pub const BUCKET: &str = "models";

/// One request: its method, path with query, and range.
#[derive(Clone, Debug)]
pub struct Request {
    pub method: String,
    pub path: String,
    pub range: Option<String>,
}

impl Request {
    /// Whether it writes an object or a part of one.
    pub fn is_put(&self) -> bool {
        self.method == "PUT"
    }

    /// Whether it reads bytes of an object of this name.
    pub fn reads(&self, name: &str) -> bool {
        self.method == "GET" && self.path.split('?').next().is_some_and(|path| path.ends_with(name))
    }
}

/// The server, and what it was asked.
pub struct Bucket {
    pub server: S3Server,
    requests: Arc<Mutex<Vec<Request>>>,
    _folder: TempDir,
}

impl Bucket {
    pub fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let server = S3Server::start(folder.path()).unwrap();
        server.create_bucket(BUCKET).unwrap();
        let bucket = Self { server, requests: Arc::default(), _folder: folder };
        bucket.spoil(|_| None);
        bucket
    }

    /// From now on `rule` sees every request first, and the list of requests begins anew.
    pub fn spoil(&self, rule: impl Fn(&Request) -> Option<Fault> + Send + Sync + 'static) {
        let requests = Arc::clone(&self.requests);
        requests.lock().unwrap().clear();
        self.server.set_faults(move |parts| {
            let range = parts.headers.get("range").and_then(|range| range.to_str().ok()).map(str::to_owned);
            let path = parts.uri.path_and_query().map(ToString::to_string).unwrap_or_default();
            let request = Request { method: parts.method.to_string(), path, range };
            let fault = rule(&request);
            requests.lock().unwrap().push(request);
            fault
        });
    }

    /// What it was asked since the last rule.
    pub fn requests(&self) -> Vec<Request> {
        self.requests.lock().unwrap().clone()
    }

    pub fn s3(&self) -> S3Settings {
        S3Settings {
            endpoint: Some(self.server.endpoint()),
            region: Some(S3Server::REGION.into()),
            access_key_id: Some(S3Server::ACCESS_KEY.into()),
            secret_access_key: Some(Secret::from(S3Server::SECRET_KEY)),
            ..S3Settings::default()
        }
    }

    pub fn address(&self) -> S3Address {
        format!("s3://{BUCKET}/roc4mllm").parse().unwrap()
    }

    /// With a cache in `cache`.
    pub async fn registry(&self, cache: &Path, keep_versions: usize) -> Registry {
        let settings = RegistrySettings {
            publish_to: Some(self.address()),
            cache_dir: Some(cache.to_owned()),
            keep_versions,
            ..RegistrySettings::default()
        };
        Registry::connect(&self.s3(), &settings, &quick()).await.unwrap()
    }

    pub async fn publish(&self, folder: &Path) -> Result<Published, RegistryError> {
        let nowhere = tempfile::tempdir().unwrap();
        let publication = Publication { folder: folder.to_owned(), origin: Origin::default() };
        self.registry(nowhere.path(), 1).await.publish(&publication).await
    }

    /// The keys of the bucket, sorted.
    pub fn keys(&self) -> Vec<String> {
        let root = self.server.root().join(BUCKET);
        let mut keys: Vec<String> = walkdir::WalkDir::new(&root)
            .into_iter()
            .map(Result::unwrap)
            .filter(|entry| entry.file_type().is_file())
            .map(|entry| entry.path().strip_prefix(&root).unwrap().to_str().unwrap().to_owned())
            .collect();
        keys.sort();
        keys
    }
}

pub fn quick() -> RetrySettings {
    RetrySettings { initial_ms: 5, max_ms: 50, deadline_ms: 20_000 }
}

/// What a server answers that will not change its mind.
pub fn denied() -> Fault {
    Fault::Refuse { status: 403, code: "AccessDenied" }
}
