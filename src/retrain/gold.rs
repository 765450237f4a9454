//! The gold set that a file of labels names.

use super::{
    dataset::{LabelledPhoto, Place},
    error::{RetrainError, blocking},
    fetching::{Fetched, PhotoSource},
    lease::Watch,
    sides::Sides,
};
use crate::{
    evaluate_command::labelled::{self, Labelled, LabelledPhotos},
    labels::{LabelledObject, Scale},
    object::ObjectRef,
    score_command::inputs::{Input, Source},
    split::{ContentHash, Fingerprint, Side},
};
use std::{collections::HashMap, path::Path};

/// Reads the labels; those that can't be used are told.
///
/// # Errors
/// When the file can't be read, or holds no label.
pub fn read(file: &Path, images: Option<&Path>, scale: &Scale) -> Result<Vec<Labelled>, RetrainError> {
    let LabelledPhotos { photos, refused } = labelled::read(file, images, scale)?;
    for label in &refused {
        tracing::warn!("{label}");
    }
    Ok(photos)
}

/// Brings the photos into the cache. One that is not there is left out, and told: the set is frozen, and
/// smaller then.
///
/// # Errors
/// When S3 can't be reached or refuses, or the cache can't be written.
pub async fn fetch(
    labels: Vec<Labelled>,
    source: &PhotoSource,
    watch: &Watch,
) -> Result<Vec<LabelledPhoto>, RetrainError> {
    let mut photos = Vec::with_capacity(labels.len());
    for Labelled { input: Input { name, source: place }, label } in labels {
        watch.advance();
        let (object, content) = match place {
            Source::File(path) => match tokio::fs::read(&path).await {
                Ok(bytes) => {
                    let cache = source.cache.clone();
                    (None, blocking(move || cache.keep(None, &bytes)).await?)
                }
                Err(error) => {
                    tracing::warn!("{name}: cannot be read ({error}); the gold set lacks it");
                    continue;
                }
            },
            Source::Object(ObjectRef { bucket, key, etag, .. }) => {
                let object = LabelledObject { bucket, key, etag: etag.unwrap_or_default() };
                match source.fetch(&object).await? {
                    Fetched::Here(content) => (Some(Place::from(&object)), content),
                    missing => {
                        tracing::warn!("{name}: {missing:?}; the gold set lacks it");
                        continue;
                    }
                }
            }
            Source::Unreadable(reason) => {
                tracing::warn!("{name}: {reason}; the gold set lacks it");
                continue;
            }
        };
        let (scores, distributions) = (label.scores, label.distributions);
        let group = content;
        let photo = LabelledPhoto {
            name,
            object,
            content,
            group,
            scores,
            distributions,
            raters: None,
            conversations: Vec::new(),
        };
        photos.push(photo);
    }
    Ok(photos)
}

/// A photo that is learned from, so that nothing can be judged by it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Spoilt;

/// Holds a photo out for ever; `None` for one that can't be decoded, [`Spoilt`] for one that a model may have
/// learned from already.
pub fn hold_out(
    photo: LabelledPhoto,
    sides: &mut Sides,
    looks: &HashMap<ContentHash, Fingerprint>,
) -> Option<Result<LabelledPhoto, Spoilt>> {
    let content = photo.content;
    let placed = match sides.known(&content) {
        Some(known) => known,
        None => sides.hold_for_gold(content, *looks.get(&content)?),
    };
    let assignment = placed.assignment;
    if assignment.side != Side::Holdout {
        tracing::warn!("{}: it or a copy of it was learned from; the gold set lacks it", photo.name);
        return Some(Err(Spoilt));
    }
    Some(Ok(LabelledPhoto { group: assignment.group, ..photo }))
}
