//! From a version to a folder: verified, shared, gone on with, and bounded.

use super::{
    bucket::{BUCKET, Bucket, denied},
    checkpoints,
};
use roc4mllm::{
    model::checkpoint::Checkpoint,
    registry::{MANIFEST_NAME, RegistryError, ResolvedCheckpoint, S3Address},
};
use std::{
    fs,
    path::Path,
    sync::atomic::{AtomicUsize, Ordering},
};

fn digest(folder: &Path) -> String {
    Checkpoint::open(folder).unwrap().digest().unwrap().version
}

fn cached(folder: &Path) -> Vec<String> {
    let names = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let mut names: Vec<String> = names
        .filter(|path| path.is_dir())
        .map(|path| path.file_name().unwrap().to_str().unwrap().to_owned())
        .collect();
    names.sort();
    names
}

#[tokio::test]
async fn what_comes_is_what_was_published_and_comes_once() {
    let (bucket, cache) = (Bucket::start(), tempfile::tempdir().unwrap());
    let published = bucket.publish(&checkpoints::tiny()).await.unwrap();
    let registry = bucket.registry(cache.path(), 2).await;
    let first = registry.checkpoint_at(&published.address).await.unwrap();
    assert_eq!(digest(&first.folder), published.manifest.digest);
    assert_eq!(first.manifest.as_ref(), Some(&published.manifest));
    bucket.spoil(|_| None);
    let second = registry.checkpoint_at(&published.address).await.unwrap();
    assert_eq!(second.folder, first.folder);
    let requests = bucket.requests();
    assert!(requests.iter().all(|request| request.reads(MANIFEST_NAME)), "{requests:?}");
    assert_eq!(cached(cache.path()), [&published.manifest.version["sha256:".len()..]]);
}

#[tokio::test]
async fn an_object_that_is_not_what_was_published_is_refused_by_name() {
    let bucket = Bucket::start();
    let published = bucket.publish(&checkpoints::tiny()).await.unwrap();
    let object = |name: &str| published.address.object(name);
    let weights = fs::read(checkpoints::tiny().join("model.safetensors")).unwrap();
    let mut flipped = weights.clone();
    flipped[weights.len() / 2] ^= 1;
    for (damaged, problem) in [(flipped.as_slice(), "SHA-256"), (&weights[1..], "bytes")] {
        bucket.server.put(BUCKET, &object("model.safetensors").key, damaged).unwrap();
        let cache = tempfile::tempdir().unwrap();
        let registry = bucket.registry(cache.path(), 2).await;
        for _ in 0..2 {
            let error = registry.checkpoint_at(&published.address).await.unwrap_err();
            assert!(matches!(error, RegistryError::Damaged { .. }), "{error}");
            let message = error.to_string();
            assert!(message.contains(&format!("s3://{}", object("model.safetensors"))), "{message}");
            assert!(message.contains(problem), "{message}");
            assert_eq!(error.exit_code(), 2);
            assert!(
                cached(cache.path()).iter().all(|name| name.ends_with(".partial")),
                "nothing is handed out"
            );
        }
        bucket.server.put(BUCKET, &object("model.safetensors").key, &weights).unwrap();
        let mended = registry.checkpoint_at(&published.address).await.unwrap();
        assert_eq!(digest(&mended.folder), published.manifest.digest);
    }

    let path = bucket.server.root().join(BUCKET).join(object("tokenizer.model").key);
    fs::remove_file(path).unwrap();
    let cache = tempfile::tempdir().unwrap();
    let error = bucket.registry(cache.path(), 2).await.checkpoint_at(&published.address).await.unwrap_err();
    assert!(error.to_string().contains("tokenizer.model: it is not there"), "{error}");
}

#[tokio::test]
async fn a_manifest_that_lies_is_refused() {
    let (bucket, cache) = (Bucket::start(), tempfile::tempdir().unwrap());
    let published = bucket.publish(&checkpoints::tiny()).await.unwrap();
    let registry = bucket.registry(cache.path(), 2).await;
    let text = String::from_utf8(published.manifest.encode().unwrap()).unwrap();
    for (from, to) in
        [("\"model.safetensors\"", "\"../model.safetensors\""), ("\"format\": 1", "\"format\": 7")]
    {
        assert!(text.contains(from));
        bucket
            .server
            .put(BUCKET, &published.address.object(MANIFEST_NAME).key, text.replace(from, to).as_bytes())
            .unwrap();
        let error = registry.checkpoint_at(&published.address).await.unwrap_err();
        assert!(matches!(error, RegistryError::Manifest { .. }), "{error}");
        assert!(error.to_string().contains(&format!("{}/manifest.json", published.address)), "{error}");
    }
    assert!(cached(cache.path()).is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn two_at_once_bring_it_once() {
    let (bucket, cache) = (Bucket::start(), tempfile::tempdir().unwrap());
    let folder = checkpoints::large(40 << 20);
    let published = bucket.publish(folder.path()).await.unwrap();
    bucket.spoil(|_| None);
    // Locks belong to open files, so two in one process are as two processes are.
    let (one, other) = (bucket.registry(cache.path(), 2).await, bucket.registry(cache.path(), 2).await);
    let (one, other) =
        tokio::join!(one.checkpoint_at(&published.address), other.checkpoint_at(&published.address));
    let (one, other) = (one.unwrap(), other.unwrap());
    assert_eq!(one.folder, other.folder);
    assert_eq!(digest(&one.folder), published.manifest.digest);
    let size = fs::metadata(one.folder.join("model.safetensors")).unwrap().len();
    let reads = bucket.requests().iter().filter(|request| request.reads("model.safetensors")).count();
    assert_eq!(reads as u64, size.div_ceil(8 << 20));
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_broke_off_goes_on_where_it_was() {
    let (bucket, cache) = (Bucket::start(), tempfile::tempdir().unwrap());
    let folder = checkpoints::large(60 << 20);
    let published = bucket.publish(folder.path()).await.unwrap();
    static READS: AtomicUsize = AtomicUsize::new(0);
    bucket.spoil(|request| {
        (request.reads("model.safetensors") && READS.fetch_add(1, Ordering::SeqCst) >= 5).then(denied)
    });
    let registry = bucket.registry(cache.path(), 2).await;
    let error = registry.checkpoint_at(&published.address).await.unwrap_err();
    assert_eq!(error.exit_code(), 69, "{error}");
    let there = fs::read_dir(cache.path())
        .unwrap()
        .map(|entry| entry.unwrap().path().join("model.safetensors"))
        .find_map(|path| fs::metadata(path).ok())
        .unwrap()
        .len();
    assert!(there > 0);

    bucket.spoil(|_| None);
    let resolved = bucket.registry(cache.path(), 2).await.checkpoint_at(&published.address).await.unwrap();
    assert_eq!(digest(&resolved.folder), published.manifest.digest);
    let requests = bucket.requests();
    let reads: Vec<_> = requests.iter().filter(|request| request.reads("model.safetensors")).collect();
    let first = reads
        .iter()
        .filter_map(|request| request.range.clone())
        .min_by_key(|range| range["bytes=".len()..].split('-').next().unwrap().parse::<u64>().unwrap());
    assert!(first.unwrap().starts_with(&format!("bytes={there}-")), "{reads:?}, {there} were there");
    assert!(cached(cache.path()).iter().all(|name| !name.contains('.')), "the partial one is whole now");
}

#[tokio::test]
async fn what_an_earlier_download_left_is_not_trusted() {
    let (bucket, cache) = (Bucket::start(), tempfile::tempdir().unwrap());
    let published = bucket.publish(&checkpoints::tiny()).await.unwrap();
    let name = &published.manifest.version["sha256:".len()..];
    let partial = cache.path().join(format!("{name}.partial"));
    fs::create_dir(&partial).unwrap();
    fs::write(partial.join("model.safetensors"), "something else").unwrap();
    fs::write(partial.join("config.json"), vec![b' '; 1 << 20]).unwrap();
    let resolved = bucket.registry(cache.path(), 2).await.checkpoint_at(&published.address).await.unwrap();
    assert_eq!(digest(&resolved.folder), published.manifest.digest);
}

#[tokio::test]
async fn a_damaged_file_in_the_cache_is_noticed_and_brought_again() {
    let (bucket, cache) = (Bucket::start(), tempfile::tempdir().unwrap());
    let published = bucket.publish(&checkpoints::tiny()).await.unwrap();
    let registry = bucket.registry(cache.path(), 2).await;
    let in_use = registry.checkpoint_at(&published.address).await.unwrap();
    let weights = in_use.folder.join("model.safetensors");
    let damage = || {
        let mut bytes = fs::read(&weights).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        fs::write(&weights, bytes).unwrap();
    };
    damage();
    let error = registry.checkpoint_at(&published.address).await.unwrap_err();
    assert!(matches!(error, RegistryError::CacheInUse { .. }), "{error}");
    assert!(error.to_string().contains(weights.to_str().unwrap()), "{error}");
    drop(in_use);
    let again = registry.checkpoint_at(&published.address).await.unwrap();
    assert_eq!(digest(&again.folder), published.manifest.digest);
    drop(again);
    fs::remove_file(&weights).unwrap();
    let again = registry.checkpoint_at(&published.address).await.unwrap();
    assert_eq!(digest(&again.folder), published.manifest.digest);
}

#[tokio::test]
async fn the_cache_keeps_as_many_as_it_is_told_and_those_in_use() {
    let (bucket, cache) = (Bucket::start(), tempfile::tempdir().unwrap());
    let registry = bucket.registry(cache.path(), 2).await;
    let mut names = Vec::new();
    let mut resolve = async |max_score: f64| -> ResolvedCheckpoint {
        let folder = checkpoints::with_max_score(max_score);
        let published = bucket.publish(folder.path()).await.unwrap();
        names.push(published.manifest.version["sha256:".len()..].to_owned());
        registry.checkpoint_at(&published.address).await.unwrap()
    };
    let in_use = resolve(6.0).await;
    drop(resolve(7.0).await);
    drop(resolve(8.0).await);
    drop(resolve(9.0).await);
    let mut expected = vec![names[0].clone(), names[3].clone()];
    expected.sort();
    assert_eq!(cached(cache.path()), expected);
    assert!(Checkpoint::open(&in_use.folder).is_ok());
}

#[tokio::test]
async fn a_checkpoint_that_was_copied_into_a_bucket_loads_too() {
    let (bucket, cache) = (Bucket::start(), tempfile::tempdir().unwrap());
    for entry in fs::read_dir(checkpoints::tiny()).unwrap() {
        let entry = entry.unwrap();
        let key = format!("elsewhere/model one/{}", entry.file_name().to_str().unwrap());
        bucket.server.put(BUCKET, &key, &fs::read(entry.path()).unwrap()).unwrap();
    }
    bucket.server.put(BUCKET, "elsewhere/model one/optimizer.pt", b"x").unwrap();
    let address: S3Address = format!("s3://{BUCKET}/elsewhere/model one/").parse().unwrap();
    let registry = bucket.registry(cache.path(), 2).await;
    let resolved = registry.checkpoint_at(&address).await.unwrap();
    assert_eq!(digest(&resolved.folder), digest(&checkpoints::tiny()));
    assert_eq!(resolved.manifest, None);
    assert!(!resolved.folder.join("optimizer.pt").exists());
    bucket.spoil(|_| None);
    drop(registry.checkpoint_at(&address).await.unwrap());
    assert!(!bucket.requests().iter().any(|request| request.reads(".safetensors")), "it was here");

    // Replaced by another, it is another.
    let other = checkpoints::with_max_score(7.0);
    let config = fs::read(other.path().join("config.json")).unwrap();
    bucket.server.put(BUCKET, "elsewhere/model one/config.json", &config).unwrap();
    let resolved = registry.checkpoint_at(&address).await.unwrap();
    assert_eq!(digest(&resolved.folder), digest(other.path()));

    let nothing: S3Address = format!("s3://{BUCKET}/nowhere").parse().unwrap();
    let error = registry.checkpoint_at(&nothing).await.unwrap_err();
    assert!(matches!(error, RegistryError::Incomplete { .. }), "{error}");
}
