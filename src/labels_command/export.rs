//! Labels as the reference's training samples.

use super::{ExportArgs, LabelsCommandError, progress::Progress};
use crate::config::Config;
use crate::labels::{LabelledObject, SampleWriter, Vote};
use crate::recovery::Report;
use crate::store::{Store, StoredLabel};
use std::collections::{BTreeSet, HashMap};
use std::fs::File;
use std::io::{self, BufWriter};
use std::path::{Path, PathBuf};
use time::OffsetDateTime;

const PAGE: u32 = 1_000;

/// Writes labels to a file. An existing one is replaced only once everything is written.
///
/// # Errors
/// [`LabelsCommandError`].
pub async fn export(config: &Config, args: &ExportArgs) -> Result<Report, LabelsCommandError> {
    let failed = |source: io::Error| LabelsCommandError::Write { file: args.output.clone(), source };
    config.labels.check().map_err(|(key, reason)| crate::config::ConfigError::invalid(key, reason))?;
    let usual = config.labels.conversation();
    let since = args.since.map(|since| since.resolve(OffsetDateTime::now_utc()));
    let store = Store::connect(&config.postgres).await?;
    let total = store.count_labels(0, i64::MAX).await?.labels;
    let partial = beside(&args.output);
    let file = File::create(&partial).map_err(failed)?;
    let mut writer = SampleWriter::new(BufWriter::with_capacity(1 << 16, file));
    let mut report = Report::new("labels exported", false);
    let mut progress = Progress::new("exported", Some(total));
    let mut after = None;
    loop {
        let page = store.labels_by_key(after.as_ref(), PAGE).await?;
        let Some(last) = page.last() else { break };
        after = Some(last.key());
        progress.advance(page.len() as u64);
        let wanted = |stored: &&StoredLabel| since.is_none_or(|since| stored.label.labelled_at >= since);
        let labels: Vec<&StoredLabel> = page.iter().filter(wanted).collect();
        for _ in labels.len()..page.len() {
            report.left("rated before --since");
        }
        let mut votes = if args.anonymous { HashMap::new() } else { votes_of(&store, &labels).await? };
        for StoredLabel { label, .. } in labels {
            let own = votes.remove(&(label.object.clone(), label.opinion.scores.len()));
            let sample = label.to_sample(&usual, own.as_deref());
            writer.write(&sample).map_err(failed)?;
            report.did(match label.opinion.scores.len() {
                1 => "with one score",
                _ => "with several scores",
            });
        }
    }
    let file = writer.finish().map_err(failed)?.into_inner().map_err(|error| failed(error.into_error()))?;
    file.sync_all().map_err(failed)?;
    std::fs::rename(&partial, &args.output).map_err(failed)?;
    progress.finish();
    store.close().await;
    Ok(report)
}

/// The votes on the objects of a page, by object and number of scores.
async fn votes_of(
    store: &Store,
    labels: &[&StoredLabel],
) -> Result<HashMap<(LabelledObject, usize), Vec<Vote>>, LabelsCommandError> {
    let objects: BTreeSet<&LabelledObject> = labels.iter().map(|stored| &stored.label.object).collect();
    let objects: Vec<&LabelledObject> = objects.into_iter().collect();
    let mut votes: HashMap<_, Vec<Vote>> = HashMap::new();
    for stored in store.votes_on(&objects).await? {
        let group = (stored.vote.object.clone(), stored.vote.opinion.scores.len());
        votes.entry(group).or_default().push(stored.vote);
    }
    Ok(votes)
}

/// A file in the same folder, which can be renamed to `output`.
fn beside(output: &Path) -> PathBuf {
    let mut name = output.file_name().unwrap_or_default().to_owned();
    name.push(".partial");
    output.with_file_name(name)
}
