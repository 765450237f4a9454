//! The page that people look at.

use super::{cache::PhotoCache, dataset::Dataset, error::RetrainError, judge::Judgement};
use crate::{
    image::{self, ImageSettings},
    report::{
        THUMBNAIL_EDGE,
        evaluation::{Against, EvaluationReport, MOST_FAILURES, SetReport, Thumbnails, WORST, write},
    },
    split::ContentHash,
};
use std::{collections::HashMap, path::Path};
use time::OffsetDateTime;

/// Writes the page of a judgement to `path`. May take seconds: it decodes the photos that it shows.
///
/// # Errors
/// [`RetrainError::Io`].
pub fn write_report(
    path: &Path,
    title: String,
    judgement: &Judgement,
    dataset: &Dataset,
    settings: Vec<(String, String)>,
    cache: &PhotoCache,
    images: &ImageSettings,
) -> Result<(), RetrainError> {
    let contents: HashMap<&str, ContentHash> =
        dataset.photos().map(|photo| (photo.name.as_str(), photo.content)).collect();
    let thumbnails: Vec<Thumbnails> = judgement
        .sets
        .iter()
        .map(|judged| {
            let failures = judged.challenger.failures().take(MOST_FAILURES).map(|(photo, _)| photo);
            let shown = judged.challenger.worst(WORST).into_iter().chain(failures);
            shown
                .filter_map(|photo| {
                    Some((
                        photo.image.clone(),
                        thumbnail(contents.get(photo.image.as_str())?, cache, images)?,
                    ))
                })
                .collect()
        })
        .collect();
    let sets = judgement.sets.iter().zip(&thumbnails).map(|(judged, thumbnails)| SetReport {
        name: judged.set.name().to_owned(),
        evaluation: &judged.challenger,
        against: Some(Against { champion: &judged.champion, comparison: &judged.comparison }),
        thumbnails,
    });
    let report = EvaluationReport {
        title,
        note: None,
        verdict: Some(&judgement.verdict),
        sets: sets.collect(),
        settings,
        written_at: OffsetDateTime::now_utc(),
        elapsed: Some(judgement.elapsed),
    };
    write(path, &report).map_err(RetrainError::io(path, "writing the report"))
}

fn thumbnail(content: &ContentHash, cache: &PhotoCache, images: &ImageSettings) -> Option<Vec<u8>> {
    let bytes = cache.read(content).ok()?;
    image::thumbnail(&bytes, images, THUMBNAIL_EDGE).ok()
}
