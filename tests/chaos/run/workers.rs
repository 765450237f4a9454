//! The run's workers, and what their scorer does.

use super::{BUCKET, IMAGE_SIZE, ITEMS_LIMIT, Run};
use crate::row::Broker;
use crate::worker::{Worker, WorkerSetup};
use anyhow::Result;
use roc4mllm::dev::S3Server;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

impl Run {
    fn workers_bootstrap(&self) -> String {
        match self.row.broker {
            Broker::Proxy => self.site.proxy.address().to_string(),
            Broker::Apache => self.bootstrap(),
        }
    }

    /// A worker to be started. Workers of one name have one transactional id, so give the name of a
    /// dead one to its successor, as Kubernetes does when it restarts a container.
    pub fn worker(&self, name: &str) -> WorkerSetup {
        let settings: [(&str, toml::Value); 25] = [
            ("kafka.brokers", self.workers_bootstrap().into()),
            ("kafka.group", self.group.as_str().into()),
            ("kafka.input_topics", vec![self.topics.input.clone()].into()),
            ("kafka.output_topic", self.topics.output.as_str().into()),
            ("kafka.dead_letter_topic", self.topics.dead_letters.as_str().into()),
            ("kafka.transactional_id", format!("{}-{name}", self.group).into()),
            ("kafka.session_timeout_ms", 6_000.into()),
            ("kafka.heartbeat_interval_ms", 1_000.into()),
            ("kafka.transaction_timeout_ms", 10_000.into()),
            ("kafka.message_timeout_ms", 8_000.into()),
            ("kafka.socket_timeout_ms", 5_000.into()),
            ("kafka.commit_interval_ms", 100.into()),
            ("kafka.commit_outputs", 25.into()),
            ("kafka.lag_interval_ms", 1_000.into()),
            ("s3.endpoint", self.s3_endpoint.as_str().into()),
            ("s3.buckets", vec![BUCKET.to_owned()].into()),
            ("s3.region", S3Server::REGION.into()),
            ("s3.missing_grace_ms", 4_000.into()),
            ("postgres.url", self.postgres_url.as_str().into()),
            ("postgres.migrate_at_start", true.into()),
            ("model.checkpoint", checkpoint().display().to_string().into()),
            ("model.threads", 1.into()),
            ("inference.decode_threads", 1.into()),
            ("pipeline.max_items", (ITEMS_LIMIT as i64).into()),
            ("retry.max_ms", 3_000.into()),
        ];
        let variables = [
            ("AWS_ACCESS_KEY_ID", S3Server::ACCESS_KEY.to_owned()),
            ("AWS_SECRET_ACCESS_KEY", S3Server::SECRET_KEY.to_owned()),
            ("ROC4MLLM_STAND_IN", self.stand_in_file().display().to_string()),
        ];
        WorkerSetup {
            settings: settings.map(|(key, value)| (key.to_owned(), value)).into(),
            failpoints: self.rule.iter().map(|rule| format!("{}=return", rule.failpoint())).collect(),
            variables: variables.map(|(name, value)| (name.to_owned(), value)).into(),
        }
    }

    /// Starts a worker; the run kills it at its end at the latest.
    pub fn spawn(&mut self, setup: WorkerSetup) -> Result<Worker> {
        let worker = setup.spawn(&self.folder, self.workers.len() + 1)?;
        self.watch.add(worker.clone());
        self.workers.push(worker.clone());
        Ok(worker)
    }

    fn stand_in_file(&self) -> PathBuf {
        self.folder.join("stand-in.json")
    }

    /// A script for those workers alone that get the returned path as `ROC4MLLM_STAND_IN`.
    pub fn script(&self, name: &str, behaviour: Value) -> Result<String> {
        let file = self.folder.join(format!("stand-in-{name}.json"));
        write_script(&file, behaviour)?;
        Ok(file.display().to_string())
    }

    /// What the workers' scorer does from its next batch on: the keys of `ROC4MLLM_STAND_IN`'s file.
    pub fn stand_in(&self, behaviour: Value) -> Result<()> {
        write_script(&self.stand_in_file(), behaviour)
    }
}

fn write_script(file: &Path, behaviour: Value) -> Result<()> {
    let mut whole = json!({"image_size": IMAGE_SIZE});
    if let (Some(whole), Value::Object(behaviour)) = (whole.as_object_mut(), behaviour) {
        whole.extend(behaviour);
    }
    // In one step: workers read it at any time.
    let staged = file.with_extension("new");
    std::fs::write(&staged, whole.to_string())?;
    Ok(std::fs::rename(staged, file)?)
}

fn checkpoint() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/golden/ckpt_safetensors")
}
