//! The commands themselves.

use super::{
    args::{Format, ModelsCommand, PublishArgs},
    error::ModelsError,
    output,
};
use crate::{
    config::Config,
    registry::{Origin, Publication, Registry, RegistryError},
    store::{Promotion, RegisteredVersion, Store, Terms},
};
use serde_json::{Map, Value};
use std::{io::Write, path::Path};

/// Does what `command` says and writes the outcome to `out`.
///
/// # Errors
/// [`ModelsError`], whose exit code says what failed.
pub async fn run(config: &Config, command: &ModelsCommand, out: &mut dyn Write) -> Result<(), ModelsError> {
    let store = Store::connect(&config.postgres).await?;
    match command {
        ModelsCommand::List(shown) => output::list(&store.versions().await?, shown.format, out)?,
        ModelsCommand::Show { named, shown } => show(config, &store, named, shown.format, out).await?,
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
    Ok(())
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
    let parent = match &args.parent {
        Some(parent) => Some(store.find_version(parent).await?.version),
        None => None,
    };
    let metrics = args.metrics.as_deref().map(read_metrics).transpose()?;
    let origin = Origin { parent, dataset: None, metrics };
    let published =
        registry(config).await?.publish(&Publication { folder: args.folder.clone(), origin }).await?;
    let version = store.register_version(&published.new_version()).await?;
    let RegisteredVersion { version, uri, status, .. } = version;
    writeln!(out, "{version} is published at {uri}, {} files sent; it is {status}", published.uploaded)?;
    if args.promote {
        announce(&store.promote_version(&version, &Terms::default()).await?, out)?;
    }
    Ok(())
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
