//! From selected labels to a data set: photos fetched, and each put on its side.

use super::{
    assemble::{Found, Terms, assemble},
    cache::PhotoCache,
    dataset::{Dataset, LabelledPhoto},
    error::{RetrainError, blocking},
    fetching::{Fetched, PhotoSource},
    gold,
    lease::Watch,
    select::Selection,
    settings::RetrainSettings,
    sides::Sides,
};
use crate::{
    image::ImageSettings,
    labels::{LabelledObject, Scale, Turn},
    split::{ContentHash, Fingerprint, SplitSettings},
    store::{RunLease, Store, StoredLabel},
};
use futures_util::{StreamExt, TryStreamExt, stream};
use std::{
    collections::{HashMap, HashSet},
    thread,
};

/// What a data set is made with.
#[derive(Clone)]
pub struct Preparation<'a> {
    pub store: &'a Store,
    pub lease: &'a RunLease,
    pub source: &'a PhotoSource,
    pub settings: &'a RetrainSettings,
    pub split: &'a SplitSettings,
    pub images: &'a ImageSettings,
    pub scale: Scale,
    /// Question and answer of a label that has none.
    pub usual: &'a [Turn],
}

impl Preparation<'_> {
    /// The data set of a selection for challengers of `champion`.
    ///
    /// # Errors
    /// [`RetrainError`]; the same call goes on with what was fetched and placed.
    pub async fn dataset(
        &self,
        champion: &str,
        selection: &Selection,
        watch: &Watch,
    ) -> Result<Dataset, RetrainError> {
        let objects = objects(selection);
        watch.begin("fetching photos", objects.len() as u64);
        let fetched = self.source.fetch_all(&objects, watch).await?;
        let gold_file = match &self.settings.gold_labels {
            Some(file) => {
                let photos = gold::read(file, self.settings.gold_images.as_deref(), &self.scale)?;
                watch.begin("fetching gold photos", photos.len() as u64);
                Some(gold::fetch(photos, self.source, watch).await?)
            }
            None => None,
        };

        let mut sides = Sides::load(self.store, self.split, self.settings.gold_share).await?;
        let here =
            fetched.iter().filter_map(content).chain(gold_file.iter().flatten().map(|gold| gold.content));
        let mut looked_at = HashSet::new();
        let unknown: Vec<ContentHash> =
            here.filter(|content| sides.known(content).is_none() && looked_at.insert(*content)).collect();
        watch.begin("comparing photos", unknown.len() as u64);
        let looks = fingerprints(&self.source.cache, self.images, &unknown, watch).await?;

        // Gold photos are held out before any copy of them finds its side.
        let mut spoilt = 0;
        let gold_file = gold_file.map(|photos| {
            let kept = photos.into_iter().filter_map(|photo| gold::hold_out(photo, &mut sides, &looks));
            let (kept, lost): (Vec<_>, Vec<_>) = kept.partition(Result::is_ok);
            spoilt = lost.len();
            kept.into_iter().flatten().collect::<Vec<LabelledPhoto>>()
        });
        let found: HashMap<LabelledObject, Found> = objects
            .iter()
            .zip(&fetched)
            .map(|(object, fetched)| (object.clone(), find(fetched, &mut sides, &looks)))
            .collect();
        let contents: Vec<(&LabelledObject, ContentHash)> = objects
            .iter()
            .filter_map(|object| match found.get(object) {
                Some(Found::Photo { content, .. }) => Some((object, *content)),
                _ => None,
            })
            .collect();
        sides.store(self.store, self.lease, &contents).await?;
        let gold_photos = self.settings.gold_photos as usize;
        let terms = Terms { scale: self.scale, usual: self.usual, gold_photos };
        let mut dataset = assemble(champion, selection, &found, gold_file, &terms);
        dataset.counts.spoilt_gold = spoilt;
        Ok(dataset)
    }
}

/// Every labelled object once: those that came first are compared first.
fn objects(selection: &Selection) -> Vec<LabelledObject> {
    let Selection { new, older, gold, .. } = selection;
    let mut seen = HashSet::new();
    let objects = gold.iter().chain(older).chain(new).map(|StoredLabel { label, .. }| &label.object);
    objects.filter(|object| seen.insert(*object)).cloned().collect()
}

fn content(fetched: &Fetched) -> Option<ContentHash> {
    match fetched {
        Fetched::Here(content) => Some(*content),
        _ => None,
    }
}

fn find(fetched: &Fetched, sides: &mut Sides, looks: &HashMap<ContentHash, Fingerprint>) -> Found {
    match fetched {
        Fetched::Here(content) => {
            let placed = sides.known(content).or_else(|| Some(sides.place(*content, *looks.get(content)?)));
            placed.map_or(Found::Unreadable, |placed| Found::Photo { content: *content, placed })
        }
        Fetched::Gone | Fetched::Denied(_) => Found::Gone,
        Fetched::TooLarge => Found::Unreadable,
        Fetched::OtherBucket => Found::OtherBucket,
    }
}

/// What each photo looks like; those that can't be decoded are left out.
async fn fingerprints(
    cache: &PhotoCache,
    images: &ImageSettings,
    contents: &[ContentHash],
    watch: &Watch,
) -> Result<HashMap<ContentHash, Fingerprint>, RetrainError> {
    let threads = thread::available_parallelism().map_or(1, usize::from);
    let looks: Vec<Option<(ContentHash, Fingerprint)>> = stream::iter(contents)
        .map(|&content| {
            let (cache, images) = (cache.clone(), images.clone());
            async move {
                let look = blocking(move || {
                    let path = cache.path(&content);
                    let bytes = cache.read(&content).map_err(RetrainError::io(&path, "reading"))?;
                    Ok(Fingerprint::of_file(&bytes, &images).ok())
                });
                let look = look.await?;
                watch.advance();
                Ok::<_, RetrainError>(look.map(|look| (content, look)))
            }
        })
        .buffer_unordered(threads)
        .try_collect()
        .await?;
    Ok(looks.into_iter().flatten().collect())
}
