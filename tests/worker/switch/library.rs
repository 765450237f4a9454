//! Versions of the tiny model that tell apart what they score, published to the stack's S3 and registered.

use crate::support::stack::Stack;
use roc4mllm::{
    fetch::{Fetcher, S3Settings},
    registry::{Origin, Publication, Registry, RegistrySettings},
    retry::RetrySettings,
    secret::Secret,
    store::{PostgresSettings, Store, Terms},
};
use safetensors::SafeTensors;
use serde_json::Value;
use std::{
    collections::HashMap,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

/// A published version, and what it makes of the pictures.
pub struct Version {
    /// What the registry calls it.
    pub registered: String,
    /// What its scores carry.
    pub served: String,
    /// Every picture's score; `None` for one that is rejected.
    pub scores: HashMap<PathBuf, Option<f64>>,
    address: String,
}

/// Where the stack's workers get their models from.
pub struct Library<'a> {
    stack: &'a Stack,
    store: Store,
    registry: Registry,
    publish_to: String,
    /// Of the workers.
    cache: tempfile::TempDir,
    cache_path: String,
}

impl<'a> Library<'a> {
    pub async fn open(stack: &'a Stack) -> Self {
        let s3 = S3Settings {
            endpoint: Some(stack.s3().endpoint().into()),
            buckets: vec![stack.bucket().into()],
            access_key_id: Some(stack.s3().access_key().into()),
            secret_access_key: Some(Secret::from(stack.s3().secret_key())),
            ..S3Settings::default()
        };
        let publish_to = format!("s3://{}/models", stack.bucket());
        let settings = RegistrySettings {
            publish_to: Some(publish_to.parse().expect("an address")),
            ..RegistrySettings::default()
        };
        let fetcher = Fetcher::connect(&s3).await.expect("a client");
        let url = Secret::from(stack.database_url());
        let store = Store::connect(&PostgresSettings { url, ..PostgresSettings::default() }).await;
        let store = store.expect("a connection");
        store.migrate().await.expect("a schema");
        let registry = Registry::over(fetcher, &settings, &RetrySettings::default());
        let cache = tempfile::tempdir().expect("a folder");
        let cache_path = cache.path().display().to_string();
        Self { stack, store, registry, publish_to, cache, cache_path }
    }

    pub fn store(&self) -> &Store {
        &self.store
    }

    /// What has a worker follow the registry, and look often.
    pub fn settings(&self) -> Vec<(&str, &str)> {
        assert!(self.cache.path().is_dir());
        vec![
            ("model.checkpoint", "champion"),
            ("registry.publish_to", &self.publish_to),
            ("registry.cache_dir", &self.cache_path),
            ("registry.poll_interval_ms", "100"),
        ]
    }

    /// Publishes the tiny model with its score head sharpened or blunted by `factor`, and has `score`
    /// judge every picture with it.
    pub async fn publish(&self, factor: f32) -> Version {
        let folder = tempfile::tempdir().expect("a folder");
        perturb(&self.stack.checkpoint(), folder.path(), factor);
        let (served, scores) = judge(folder.path(), &self.stack.images());
        let publication = Publication { folder: folder.path().to_owned(), origin: Origin::default() };
        let published = self.registry.publish(&publication).await.expect("published");
        let row = self.store.register_version(&published.new_version()).await.expect("registered");
        assert!(served.starts_with(&row.version), "{served} {}", row.version);
        Version { registered: row.version, served, scores, address: published.address.to_string() }
    }

    pub async fn promote(&self, version: &Version) {
        self.store.promote_version(&version.registered, &Terms::default()).await.expect("promoted");
    }

    pub async fn roll_back(&self) {
        self.store.roll_back(None).await.expect("rolled back");
    }

    /// Changes one byte of the published weights.
    pub async fn damage(&self, version: &Version) {
        let prefix = version.address.strip_prefix(&format!("s3://{}/", self.stack.bucket())).expect("ours");
        let key = format!("{prefix}/model.safetensors");
        let request = self.stack.s3().client().get_object().bucket(self.stack.bucket()).key(&key);
        let body = request.send().await.expect("the weights").body.collect().await.expect("whole");
        let mut weights = body.to_vec();
        let middle = weights.len() / 2;
        weights[middle] ^= 1;
        self.stack.put(&key, weights).await;
    }
}

/// Copies a checkpoint, with the output rows of its score bins multiplied by `factor`.
fn perturb(from: &Path, to: &Path, factor: f32) {
    for entry in fs::read_dir(from).expect("a checkpoint") {
        let entry = entry.expect("a folder entry");
        fs::copy(entry.path(), to.join(entry.file_name())).expect("a copy");
    }
    let config: Value =
        serde_json::from_slice(&fs::read(from.join("config.json")).expect("config.json")).expect("JSON");
    let bins = config["num_tokens"].as_u64().expect("num_tokens") as usize;
    let path = to.join("model.safetensors");
    let mut file = fs::read(&path).expect("weights");
    let (start, end) = {
        let (header, metadata) = SafeTensors::read_metadata(&file).expect("safetensors");
        let head = metadata.info("lm_head.weight").expect("an output layer");
        assert_eq!(head.dtype, safetensors::Dtype::F32);
        // After the header's own length in 8 bytes.
        let end = 8 + header + head.data_offsets.1;
        (end - bins * head.shape[1] * size_of::<f32>(), end)
    };
    for value in file[start..end].as_chunks_mut::<4>().0 {
        *value = (f32::from_le_bytes(*value) * factor).to_le_bytes();
    }
    fs::write(&path, file).expect("written");
}

/// The version and the scores that `roc4mllm score` gives with a checkpoint.
fn judge(checkpoint: &Path, images: &[PathBuf]) -> (String, HashMap<PathBuf, Option<f64>>) {
    let output = Command::new(env!("CARGO_BIN_EXE_roc4mllm"))
        .args(["score", "--format", "jsonl", "--checkpoint"])
        .arg(checkpoint)
        .args(images)
        .output()
        .expect("the binary starts");
    let lines = String::from_utf8(output.stdout).expect("UTF-8");
    let lines: Vec<Value> =
        lines.lines().map(|line| serde_json::from_str(line).expect("a JSON object a line")).collect();
    assert_eq!(lines.len(), images.len(), "{}", String::from_utf8_lossy(&output.stderr));
    let version = lines.iter().find_map(|line| line["model_version"].as_str()).expect("a version").to_owned();
    let scores = images.iter().cloned().zip(lines.iter().map(|line| line["score"].as_f64())).collect();
    (version, scores)
}
