//! From a folder to a version: whole, once, and gone on with.

use super::{
    bucket::{BUCKET, Bucket, denied},
    checkpoints,
};
use roc4mllm::{
    dev::{Fault, S3Server, s3_client},
    model::checkpoint::Checkpoint,
    registry::{Manifest, Origin, Publication, RegistryError},
};
use serde_json::json;
use std::{
    fs,
    path::Path,
    process::{Command, Stdio},
    sync::atomic::{AtomicUsize, Ordering},
    time::{Duration, Instant},
};

#[tokio::test]
async fn a_version_is_named_by_its_files_and_its_manifest_comes_last() {
    let bucket = Bucket::start();
    let published = bucket.publish(&checkpoints::tiny()).await.unwrap();
    let digest = Checkpoint::open(&checkpoints::tiny()).unwrap().digest().unwrap();
    assert_eq!(published.manifest.digest, digest.version);
    assert_eq!(published.manifest.files, digest.files);
    assert_eq!(published.uploaded, digest.files.len());
    assert_eq!(
        published.address,
        bucket.address().folder(published.manifest.version.strip_prefix("sha256:").unwrap())
    );
    let puts: Vec<String> =
        bucket.requests().into_iter().filter(super::bucket::Request::is_put).map(|put| put.path).collect();
    assert_eq!(puts.len(), digest.files.len() + 1);
    assert!(puts[puts.len() - 1].contains("/manifest.json"), "{puts:?}");
    assert!(puts[puts.len() - 2].contains("/config.json"), "{puts:?}");

    let folder = bucket.server.root().join(BUCKET).join("roc4mllm").join(&digest.name()["sha256:".len()..]);
    let stored = fs::read(folder.join("manifest.json")).unwrap();
    assert_eq!(Manifest::decode(&stored).unwrap(), published.manifest);
    for file in &digest.files {
        assert_eq!(
            fs::read(folder.join(&file.name)).unwrap(),
            fs::read(checkpoints::tiny().join(&file.name)).unwrap(),
            "{}",
            file.name
        );
    }
}

#[tokio::test]
async fn published_again_it_sends_nothing_and_keeps_its_manifest() {
    let bucket = Bucket::start();
    let first = bucket.publish(&checkpoints::tiny()).await.unwrap();
    let copy = checkpoints::copy();
    fs::write(copy.path().join("README.md"), "notes of mine").unwrap();
    let metrics = json!({"srcc": 0.5}).as_object().cloned();
    let origin = Origin { metrics, ..Origin::default() };
    let publication = Publication { folder: copy.path().to_owned(), origin };
    bucket.spoil(|_| None);
    let nowhere = tempfile::tempdir().unwrap();
    let again = bucket.registry(nowhere.path(), 1).await.publish(&publication).await.unwrap();
    assert_eq!((again.uploaded, &again.manifest), (0, &first.manifest));
    assert_eq!(again.manifest_sha256, first.manifest_sha256);
    let puts = bucket.requests().into_iter().filter(super::bucket::Request::is_put).count();
    assert_eq!(puts, 1, "only the manifest, which must be new and is not");
    assert_eq!(bucket.keys().len(), first.manifest.files.len() + 1);
}

#[tokio::test]
async fn one_that_is_given_up_is_no_version_and_is_gone_on_with() {
    let bucket = Bucket::start();
    let cache = tempfile::tempdir().unwrap();
    let registry = bucket.registry(cache.path(), 1).await;
    let digest = Checkpoint::open(&checkpoints::tiny()).unwrap().digest().unwrap();
    let address = bucket.address().folder(&digest.name()["sha256:".len()..]);
    for (name, uploaded_then) in
        [("tokenizer.model", None), ("/config.json", None), ("manifest.json", Some(0))]
    {
        bucket.spoil(move |request| (request.is_put() && request.path.contains(name)).then(denied));
        let error = bucket.publish(&checkpoints::tiny()).await.unwrap_err();
        assert!(error.to_string().contains(name.trim_start_matches('/')), "{error}");
        assert_eq!(error.exit_code(), 69);
        bucket.spoil(|_| None);
        assert_eq!(registry.manifest_at(&address).await.unwrap(), None);
        if uploaded_then.is_none() {
            let error = registry.checkpoint_at(&address).await.unwrap_err();
            assert!(matches!(error, RegistryError::Incomplete { lacks: "config.json", .. }), "{error}");
            assert!(error.to_string().contains(&address.to_string()), "{error}");
        }
    }
    let published = bucket.publish(&checkpoints::tiny()).await.unwrap();
    assert_eq!(published.uploaded, 0, "all files were there");
    assert_eq!(registry.manifest_at(&address).await.unwrap(), Some(published.manifest));
}

#[tokio::test]
async fn what_was_put_in_an_objects_place_is_replaced() {
    let bucket = Bucket::start();
    let published = bucket.publish(&checkpoints::tiny()).await.unwrap();
    let key = published.address.object("tokenizer.model").key;
    let length = fs::metadata(checkpoints::tiny().join("tokenizer.model")).unwrap().len();
    bucket.server.put(BUCKET, &key, &vec![0; usize::try_from(length).unwrap()]).unwrap();
    assert_eq!(bucket.publish(&checkpoints::tiny()).await.unwrap().uploaded, 1);
    assert_eq!(
        fs::read(bucket.server.root().join(BUCKET).join(key)).unwrap(),
        fs::read(checkpoints::tiny().join("tokenizer.model")).unwrap()
    );
}

#[tokio::test]
async fn only_what_loads_and_scores_is_published() {
    let bucket = Bucket::start();
    let refused = async |folder: &Path, reason: &str| {
        let error = bucket.publish(folder).await.unwrap_err();
        assert!(error.to_string().contains(reason), "{reason}: {error}");
        assert_eq!(error.exit_code(), 2, "{error}");
    };
    let folder = checkpoints::copy();
    let path = folder.path();
    refused(&path.join("nothing"), "is no folder").await;
    checkpoints::edit_config(path, |config| config["intermediate_size"] = json!(7));
    refused(path, path.to_str().unwrap()).await;

    let plain = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/golden/base_safetensors");
    refused(&plain, "score").await;

    for name in ["preprocessor_config.json", "tokenizer.model"] {
        let folder = checkpoints::copy();
        fs::remove_file(folder.path().join(name)).unwrap();
        refused(folder.path(), name).await;
    }

    let folder = checkpoints::copy();
    let weights = folder.path().join("model.safetensors");
    let mut bytes = fs::read(&weights).unwrap();
    let end = bytes.len();
    bytes[end - 4..].copy_from_slice(&f32::NAN.to_le_bytes());
    fs::write(&weights, bytes).unwrap();
    refused(folder.path(), "not finite").await;
    assert!(bucket.keys().is_empty(), "nothing was sent");
    assert!(bucket.requests().is_empty());
}

/// Of servers that know no conditional writes, and of one whose other writer comes first.
#[tokio::test]
async fn a_manifest_is_written_whatever_the_server_makes_of_conditions() {
    for (status, code, answers) in
        [(501, "NotImplemented", 2), (409, "ConditionalRequestConflict", 2), (503, "SlowDown", 2)]
    {
        let bucket = Bucket::start();
        let refusals = AtomicUsize::new(1);
        bucket.spoil(move |request| {
            let spoilt = request.is_put()
                && request.path.contains("manifest.json")
                && refusals
                    .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1))
                    .is_ok();
            spoilt.then_some(Fault::Refuse { status, code })
        });
        let published = bucket.publish(&checkpoints::tiny()).await.unwrap();
        let manifest = |request: &&super::bucket::Request| request.path.contains("manifest.json");
        let requests = bucket.requests();
        let puts = requests.iter().filter(manifest).filter(|request| request.is_put()).count();
        assert_eq!(puts, answers, "{code}");
        assert_eq!(published.uploaded, published.manifest.files.len());
    }
}

/// Two publishers of the same files end with one manifest, and both with its digest.
#[tokio::test]
async fn two_at_once_publish_one_version() {
    let bucket = Bucket::start();
    let folder = checkpoints::large(40 << 20);
    let (one, other) = tokio::join!(bucket.publish(folder.path()), bucket.publish(folder.path()));
    let (one, other) = (one.unwrap(), other.unwrap());
    assert_eq!((one.manifest_sha256, one.manifest), (other.manifest_sha256, other.manifest));
    assert!(one.uploaded + other.uploaded >= 6);
}

/// Of the upload that is under way.
async fn parts_on_the_server(bucket: &Bucket) -> usize {
    let client = s3_client(&bucket.server.endpoint(), S3Server::ACCESS_KEY, S3Server::SECRET_KEY);
    let listed = client.list_multipart_uploads().bucket(BUCKET).send().await.unwrap();
    let Some(upload) = listed.uploads().first() else { return 0 };
    let parts = client.list_parts().bucket(BUCKET).key(upload.key().unwrap());
    parts.upload_id(upload.upload_id().unwrap()).send().await.unwrap().parts().len()
}

#[test]
fn killed_in_the_middle_of_a_file_it_sends_only_the_rest() {
    let bucket = Bucket::start();
    let folder = checkpoints::large(110 << 20);
    static PARTS: AtomicUsize = AtomicUsize::new(0);
    let is_part = |request: &super::bucket::Request| request.is_put() && request.path.contains("partNumber=");
    bucket.spoil(move |request| {
        // The first three are taken at once, and the others while the process is killed.
        let late = is_part(request) && PARTS.fetch_add(1, Ordering::SeqCst) >= 3;
        late.then_some(Fault::Delay(Duration::from_secs(600)))
    });
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let database = runtime.block_on(roc4mllm::dev::TestDatabase::create()).unwrap();
    let command = || {
        let mut command = Command::new(env!("CARGO_BIN_EXE_roc4mllm"));
        command.args(["models", "publish"]).arg(folder.path());
        for (key, value) in [
            ("s3.endpoint", bucket.server.endpoint()),
            ("postgres.url", database.url().to_owned()),
            ("registry.publish_to", bucket.address().to_string()),
        ] {
            command.arg("--set").arg(format!("{key}={value}"));
        }
        command.env("AWS_ACCESS_KEY_ID", S3Server::ACCESS_KEY);
        command.env("AWS_SECRET_ACCESS_KEY", S3Server::SECRET_KEY);
        command
    };
    let mut migrate = Command::new(env!("CARGO_BIN_EXE_roc4mllm"));
    let migrate = migrate.args(["migrate", "--set"]).arg(format!("postgres.url={}", database.url()));
    assert!(migrate.status().unwrap().success());

    let mut child = command().stderr(Stdio::null()).spawn().unwrap();
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        let there = runtime.block_on(parts_on_the_server(&bucket));
        if there == 3 {
            break;
        }
        assert!(Instant::now() < deadline, "{there} parts after a minute");
        assert!(child.try_wait().unwrap().is_none(), "it ended by itself");
        std::thread::sleep(Duration::from_millis(20));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(
        !bucket.keys().iter().any(|key| key.ends_with("config.json") || key.ends_with("model.safetensors"))
    );

    bucket.spoil(|_| None);
    let output = command().output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let sent = bucket.requests().iter().filter(|request| is_part(request)).count();
    let size = fs::metadata(folder.path().join("model.safetensors")).unwrap().len();
    assert_eq!(sent as u64, size.div_ceil(16 << 20) - 3, "three parts were there");
    let digest = Checkpoint::open(folder.path()).unwrap().digest().unwrap();
    let key = bucket.address().folder(&digest.name()["sha256:".len()..]).object("model.safetensors").key;
    let stored = fs::read(bucket.server.root().join(BUCKET).join(key)).unwrap();
    assert!(stored == fs::read(folder.path().join("model.safetensors")).unwrap(), "the parts fit together");
}
