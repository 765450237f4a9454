//! The commands themselves.

use super::{
    args::{Format, ModelsCommand, PublishArgs},
    error::ModelsError,
    output,
};
use crate::{
    config::Config,
    registry::{Origin, Publication, Registry, RegistryError},
    retrain::{Tried, try_checkpoint},
    store::{Promotion, RegisteredVersion, Store, Terms},
};
use futures_util::FutureExt;
use serde_json::{Map, Value};
use std::{io::Write, path::Path};

/// How a command ended that did not fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Done {
    AsAsked,
    /// The checkpoint is published, and the gate has rejected it.
    Rejected,
}

/// Does what `command` says and writes the outcome to `out`.
///
/// # Errors
/// [`ModelsError`], whose exit code says what failed.
pub async fn run(config: &Config, command: &ModelsCommand, out: &mut dyn Write) -> Result<Done, ModelsError> {
    let store = Store::connect(&config.postgres).await?;
    let mut done = Done::AsAsked;
    match command {
        ModelsCommand::List(shown) => output::list(&store.versions().await?, shown.format, out)?,
        ModelsCommand::Show { named, shown } => show(config, &store, named, shown.format, out).await?,
        ModelsCommand::Publish(args) if args.gate => done = try_out(config, &store, args, out).await?,
        ModelsCommand::Publish(args) => publish(config, &store, args, out).await?,
        ModelsCommand::Promote { named, force } => {
            let version = store.find_version(named).await?.version;
            let terms = Terms { over: None, even_rejected: *force };
            announce(&store.promote_version(&version, &terms).await?, out)?;
        }
        ModelsCommand::Rollback => announce(&store.roll_back(None).await?, out)?,
        ModelsCommand::Reject { named } => {
            let version = store.find_version(named).await?.version;
            let version = store.reject_version(&version).await?;
            writeln!(out, "{} is rejected", version.version)?;
        }
        ModelsCommand::Canary { named, share } => {
            let version = store.find_version(named).await?.version;
            let version = store.set_canary(&version, *share).await?;
            writeln!(out, "{} is canary for {} of the keys", version.version, version.canary_share)?;
        }
        ModelsCommand::Shadow { named, share } => {
            let version = store.find_version(named).await?.version;
            let version = store.set_shadow(&version, *share).await?;
            writeln!(out, "{} is shadow for {} of the items", version.version, version.shadow_share)?;
        }
    }
    store.close().await;
    Ok(done)
}

async fn show(
    config: &Config,
    store: &Store,
    named: &str,
    format: Format,
    out: &mut dyn Write,
) -> Result<(), ModelsError> {
    let version = store.find_version(named).await?;
    let mut reigns = store.champion_history().await?;
    reigns.retain(|reign| reign.version == version.version);
    let registry = registry(config).await?;
    let address = version.uri.parse().map_err(RegistryError::from)?;
    let manifest = registry.manifest_at(&address).await?;
    let shadowed = store.shadow_records(&version.version).await?;
    Ok(output::show(&version, manifest.as_ref(), &reigns, &shadowed, format, out)?)
}

async fn publish(
    config: &Config,
    store: &Store,
    args: &PublishArgs,
    out: &mut dyn Write,
) -> Result<(), ModelsError> {
    let origin = origin(store, args).await?;
    let watermark = store.label_watermark().await?;
    let published =
        registry(config).await?.publish(&Publication { folder: args.folder.clone(), origin }).await?;
    let version = store.register_version(&published.new_version()).await?;
    if args.trained_on_labels {
        store.set_label_watermark(&version.version, watermark).await?;
    }
    let RegisteredVersion { version, uri, status, .. } = version;
    writeln!(out, "{version} is published at {uri}, {} files sent; it is {status}", published.uploaded)?;
    if args.promote {
        announce(&store.promote_version(&version, &Terms::default()).await?, out)?;
    }
    Ok(())
}

/// Publishes what the gate has judged.
async fn try_out(
    config: &Config,
    store: &Store,
    args: &PublishArgs,
    out: &mut dyn Write,
) -> Result<Done, ModelsError> {
    let origin = origin(store, args).await?;
    let watermark = store.label_watermark().await?;
    let Tried { version, uri, uploaded, champion, verdict, report } =
        try_checkpoint(config, &args.folder, origin).boxed_local().await?;
    if args.trained_on_labels {
        store.set_label_watermark(&version, watermark).await?;
    }
    writeln!(out, "{version} is published at {uri}, {uploaded} files sent")?;
    writeln!(out, "against {champion} it is {verdict}")?;
    writeln!(out, "the report is {report}")?;
    if !verdict.is_accepted() {
        return Ok(Done::Rejected);
    }
    if args.promote {
        let terms = Terms { over: Some(Some(champion)), even_rejected: false };
        announce(&store.promote_version(&version, &terms).await?, out)?;
    }
    Ok(Done::AsAsked)
}

async fn origin(store: &Store, args: &PublishArgs) -> Result<Origin, ModelsError> {
    let parent = match &args.parent {
        Some(parent) => Some(store.find_version(parent).await?.version),
        None => None,
    };
    let metrics = args.metrics.as_deref().map(read_metrics).transpose()?;
    Ok(Origin { parent, dataset: None, metrics })
}

async fn registry(config: &Config) -> Result<Registry, ModelsError> {
    Ok(Registry::connect(&config.s3, &config.registry, &config.retry).await?)
}

fn announce(promotion: &Promotion, out: &mut dyn Write) -> Result<(), ModelsError> {
    let champion = &promotion.champion.version;
    match &promotion.retired {
        Some(retired) => writeln!(out, "{champion} is the champion; {retired} is retired")?,
        None => writeln!(out, "{champion} is the champion")?,
    }
    Ok(())
}

fn read_metrics(path: &Path) -> Result<Map<String, Value>, ModelsError> {
    let refused = |reason: String| ModelsError::Metrics { path: path.to_owned(), reason };
    let bytes = std::fs::read(path).map_err(|error| refused(error.to_string()))?;
    serde_json::from_slice(&bytes).map_err(|error| refused(error.to_string()))
}
