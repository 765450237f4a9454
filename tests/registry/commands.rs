//! `roc4mllm models`, `score` and the resolution of `model.checkpoint`, from first to last.

use super::{
    bucket::{Bucket, quick},
    checkpoints,
    store::{Fixture, fixture},
};
use roc4mllm::{
    config::Config,
    dev::S3Server,
    model::checkpoint::Checkpoint,
    registry::{self, RegistryError},
    secret::Secret,
};
use serde_json::{Value, json};
use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
};
use tempfile::TempDir;

struct Setup {
    bucket: Bucket,
    database: Fixture,
    cache: TempDir,
}

impl Setup {
    async fn start() -> Self {
        Self { bucket: Bucket::start(), database: fixture().await, cache: tempfile::tempdir().unwrap() }
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_roc4mllm"));
        command.args(arguments);
        for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("AWS_")) {
            command.env_remove(name);
        }
        command.env("AWS_ACCESS_KEY_ID", S3Server::ACCESS_KEY);
        command.env("AWS_SECRET_ACCESS_KEY", S3Server::SECRET_KEY);
        command.env("AWS_ENDPOINT_URL", self.bucket.server.endpoint());
        command.env("XDG_CACHE_HOME", self.cache.path());
        command
    }

    /// A command with this configuration.
    async fn models(&self, arguments: &[&str]) -> Output {
        let mut command = self.command(&[&["models"][..], arguments].concat());
        for (key, value) in [
            ("s3.endpoint", self.bucket.server.endpoint()),
            ("postgres.url", self.database.database.url().to_owned()),
            ("registry.publish_to", self.bucket.address().to_string()),
        ] {
            command.arg("--set").arg(format!("{key}={value}"));
        }
        tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap()
    }

    async fn expect(&self, arguments: &[&str], code: i32) -> (String, String) {
        let output = self.models(arguments).await;
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
        let (shown, log) = (text(&output.stdout), text(&output.stderr));
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {shown}{log}");
        (shown, log)
    }

    async fn json(&self, arguments: &[&str]) -> Value {
        let (shown, _) = self.expect(&[arguments, &["--format", "json"]].concat(), 0).await;
        serde_json::from_str(&shown).unwrap()
    }

    /// Publishes and promotes; the version.
    async fn publish(&self, folder: &Path) -> String {
        let (shown, _) = self.expect(&["publish", folder.to_str().unwrap(), "--promote"], 0).await;
        shown.split(' ').next().unwrap().to_owned()
    }

    /// What `score` writes of two pictures, each generated: which of them a draft is learnt from is chance.
    async fn score(&self, checkpoint: &str) -> Vec<Value> {
        let mut command = self.command(&[
            "score",
            "--format",
            "jsonl",
            "--decode",
            "generate",
            "--batch-size",
            "1",
            "--checkpoint",
            checkpoint,
        ]);
        command.args(pictures());
        let output = tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let lines = String::from_utf8(output.stdout).unwrap();
        lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    fn config(&self, checkpoint: &str) -> Config {
        let mut config = Config { s3: self.bucket.s3(), retry: quick(), ..Config::default() };
        config.postgres.url = Secret::from(self.database.database.url());
        config.registry.cache_dir = Some(self.cache.path().to_owned());
        config.model.checkpoint = checkpoint.into();
        config
    }
}

fn pictures() -> [PathBuf; 2] {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/golden/images");
    ["01_square_rgb.png", "02_wide_rgb.jpg"].map(|name| folder.join(name))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_published_version_scores_as_its_folder_does() {
    let setup = Setup::start().await;
    let version = setup.publish(&checkpoints::tiny()).await;
    let local = setup.score(checkpoints::tiny().to_str().unwrap()).await;
    assert_eq!(local.len(), 2);
    let address = setup.bucket.address().folder(&version["sha256:".len()..]).to_string();
    let remote = setup.score(&address).await;
    assert_eq!(remote, local, "score for score, by the same version");
    assert_eq!(setup.score(&address).await, local, "and from the cache");
    for line in &local {
        assert!(line["model_version"].as_str().unwrap().starts_with(&format!("{version}+")), "{line}");
    }
    let champion = registry::resolve(&setup.config("champion")).await.unwrap();
    assert_eq!(champion.version.as_ref().unwrap().version, version);
    assert_eq!(setup.score(champion.folder.to_str().unwrap()).await, local);
}

#[tokio::test(flavor = "multi_thread")]
async fn publish_list_show_promote_and_roll_back() {
    let setup = Setup::start().await;
    assert_eq!(setup.json(&["list"]).await, json!([]));
    let (_, log) = setup.expect(&["rollback"], 2).await;
    assert!(log.contains("no earlier champion"), "{log}");
    let one = setup.publish(&checkpoints::tiny()).await;

    let folder = checkpoints::with_max_score(9.0);
    let metrics = folder.path().join("metrics.json");
    fs::write(&metrics, r#"{"srcc": 0.81, "photos": 3000}"#).unwrap();
    let publish = ["publish", folder.path().to_str().unwrap(), "--metrics", metrics.to_str().unwrap()];
    let (shown, _) = setup.expect(&[&publish[..], &["--parent", &one[7..15]]].concat(), 0).await;
    assert!(shown.contains("it is candidate"), "{shown}");
    let listed = setup.json(&["list"]).await;
    assert_eq!(
        (listed[0]["version"].as_str(), listed[0]["status"].as_str()),
        (Some(one.as_str()), Some("champion"))
    );
    assert_eq!(listed[1]["status"], "candidate");
    let two = listed[1]["version"].as_str().unwrap().to_owned();

    let shown = setup.json(&["show", &format!("{two}+assess+f32")]).await;
    assert_eq!(shown["parent"], json!(one));
    assert_eq!(shown["metrics"], json!({"srcc": 0.81, "photos": 3000}));
    let digest = Checkpoint::open(folder.path()).unwrap().digest().unwrap();
    assert_eq!(shown["digest"], json!(digest.version));
    assert_eq!(shown["files"], json!(digest.files));

    let (shown, _) = setup.expect(&["promote", &two[7..]], 0).await;
    assert!(shown.contains(&format!("{two} is the champion; {one} is retired")), "{shown}");
    assert_eq!(registry::resolve(&setup.config("champion")).await.unwrap().version.unwrap().version, two);
    let (table, _) = setup.expect(&["list"], 0).await;
    let lines: Vec<&str> = table.lines().collect();
    assert!(lines[1].starts_with(&format!("{two}  champion")), "{table}");
    assert!(lines[1].contains("srcc 0.81, photos 3000") && lines[1].contains(&one), "{table}");
    assert!(lines[2].starts_with(&format!("{one}  retired")), "{table}");

    let (shown, _) = setup.expect(&["rollback"], 0).await;
    assert!(shown.contains(&format!("{one} is the champion; {two} is retired")), "{shown}");
    assert_eq!(registry::resolve(&setup.config("champion")).await.unwrap().version.unwrap().version, one);
    setup.expect(&["reject", &two], 0).await;
    let (_, log) = setup.expect(&["promote", &two], 2).await;
    assert!(log.contains("--force"), "{log}");
    setup.expect(&["promote", &two, "--force"], 0).await;
    let (shown, _) = setup.expect(&["show", &two], 0).await;
    assert!(shown.contains("champion since") && shown.contains("model.safetensors"), "{shown}");
}

#[tokio::test(flavor = "multi_thread")]
async fn candidates_are_put_on_trial() {
    let setup = Setup::start().await;
    let champion = setup.publish(&checkpoints::tiny()).await;
    let folder = checkpoints::with_max_score(9.0);
    setup.expect(&["publish", folder.path().to_str().unwrap()], 0).await;
    let listed = setup.json(&["list"]).await;
    let candidate = listed[1]["version"].as_str().unwrap();
    setup.expect(&["canary", candidate, "0.1"], 0).await;
    setup.expect(&["shadow", candidate, "0.25"], 0).await;
    let (table, _) = setup.expect(&["list"], 0).await;
    assert!(table.contains("candidate, canary of 10%, shadow of 25%"), "{table}");
    let (_, log) = setup.expect(&["canary", &champion, "0.1"], 2).await;
    assert!(log.contains("only a candidate"), "{log}");
    let (_, log) = setup.expect(&["shadow", candidate, "2"], 2).await;
    assert!(log.contains("from 0 to 1"), "{log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_done_says_why() {
    let setup = Setup::start().await;
    let error = registry::resolve(&setup.config("champion")).await.unwrap_err();
    assert!(matches!(error, RegistryError::NoChampion), "{error}");
    assert!(registry::probe(&setup.config("champion")).await.is_err());
    let (_, log) = setup.expect(&["promote", "ffff"], 2).await;
    assert!(log.contains("ffff: no such version"), "{log}");
    let (_, log) = setup.expect(&["publish", "/no/such/folder"], 2).await;
    assert!(log.contains("/no/such/folder"), "{log}");
    let tiny = checkpoints::tiny();
    let (_, log) = setup.expect(&["publish", tiny.to_str().unwrap(), "--metrics", "/no/metrics"], 2).await;
    assert!(log.contains("/no/metrics"), "{log}");
    let address = ["--set", "registry.publish_to=models/here"];
    let publish = ["models", "publish", tiny.to_str().unwrap()];
    let refused = setup.command(&[&publish[..], &address].concat()).output().unwrap();
    assert_eq!(refused.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&refused.stderr).contains("s3://bucket/prefix"), "{refused:?}");

    setup.publish(&tiny).await;
    registry::probe(&setup.config("champion")).await.unwrap();
    // The row is bound to the manifest that it was registered with.
    let champion = setup.database.store.champion().await.unwrap().unwrap();
    let address: registry::S3Address = champion.uri.parse().unwrap();
    let key = address.object("manifest.json").key;
    let path = setup.bucket.server.root().join("models").join(&key);
    let later = fs::read_to_string(&path).unwrap().replace("\"parent\": null", "\"parent\": \"sha256:00\"");
    setup.bucket.server.put("models", &key, later.as_bytes()).unwrap();
    let error = registry::resolve(&setup.config("champion")).await.unwrap_err();
    assert!(matches!(error, RegistryError::OtherManifest { .. }), "{error}");
    // Publishing again enters the manifest that is there.
    setup.publish(&tiny).await;
    registry::resolve(&setup.config("champion")).await.unwrap();

    let score = setup.command(&["score", "--checkpoint", "champion"]).args(pictures()).output().unwrap();
    assert_eq!(score.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&score.stderr).contains("s3://"), "{score:?}");
}
