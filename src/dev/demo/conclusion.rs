//! What the demo found: the table, the gallery, and whether rows and outputs agree.

use super::{
    Demo, DemoError, DemoKafka, agreement, count,
    photos::Found,
    results::{self, Outcome},
    say,
    scoring::Scoring,
};
use crate::{
    image::PREPROCESS_REVISION,
    kafka::Delivery,
    report::{self, ReportMeta},
    score::{ItemStatus, ModelVersion},
    store::ScoreRow,
};
use std::{io::Write, time::Duration};
use time::OffsetDateTime;

/// What the scores of the demo's own checkpoint are.
const MEANING: &str = "The demo's model says how little a photograph is degraded (10: not at all), learnt from \
                       blur, noise, exposure, compression and tilt added to a few dozen photographs. It knows \
                       nothing of beauty: these are not the aesthetic scores of the published model.";

impl Demo<'_> {
    /// Prints and writes the results, and says whether they agree.
    pub(super) async fn conclude(
        &self,
        scoring: Scoring,
        rows: Vec<ScoreRow>,
        out: &mut dyn Write,
    ) -> Result<(), DemoError> {
        let Scoring { found: Found { photos, unreadable }, outputs, elapsed } = scoring;
        if photos.is_empty() {
            return Err(DemoError::NothingReadable(self.folder.to_owned()));
        }
        let agreement = agreement::compare(photos.iter(), &rows, &outputs, self.servers.delivery());
        let total = photos.len();
        let outcomes = Outcome::pair(photos, rows, &outputs);
        results::print(out, &outcomes).map_err(DemoError::Print)?;
        for (image, reason) in &unreadable {
            say(out, &format!("not uploaded: {image} ({reason})"))?;
        }
        let scored = outcomes.iter().filter(|outcome| outcome.row.status == ItemStatus::Scored).count();
        let seconds = elapsed.as_secs_f64();
        say(
            out,
            &format!(
                "\n{scored} of {} scored in {seconds:.1} s ({:.1} a second).",
                count(total, "image"),
                total as f64 / seconds.max(1e-9)
            ),
        )?;
        if let Some(path) = &self.args.rows {
            results::write_rows(path, &outcomes).map_err(|source| DemoError::Unwritable {
                option: "--rows",
                path: path.clone(),
                source,
            })?;
        }
        self.write_report(outcomes, elapsed, out).await?;
        agreement.check(out)?;
        let repeated = match (self.servers.delivery(), agreement.repeated) {
            (Delivery::Transactional, _) | (_, 0) => "each exactly once".to_owned(),
            (Delivery::AtLeastOnce, repeated) => {
                format!("{repeated} of them repeated, as at_least_once allows")
            }
        };
        say(
            out,
            &format!("All {total} rows of Postgres equal the outputs in the topic, id by id; {repeated}."),
        )?;
        self.explain(out)
    }

    async fn write_report(
        &self,
        outcomes: Vec<Outcome>,
        elapsed: Duration,
        out: &mut dyn Write,
    ) -> Result<(), DemoError> {
        let Some(first) = outcomes.first() else { return Ok(()) };
        let row = &first.row;
        let model = ModelVersion {
            model: row.model.clone(),
            version: row.model_version.clone(),
            preprocess_revision: PREPROCESS_REVISION,
        };
        let kafka = match self.args.kafka {
            DemoKafka::Embedded => "embedded mock, at_least_once",
            DemoKafka::Apache => "Apache Kafka, transactional",
        };
        let settings = [
            ("checkpoint", self.checkpoint.display().to_string()),
            ("device", self.args.device.to_string()),
            ("dtype", self.args.dtype.to_string()),
            ("photos", self.folder.display().to_string()),
            ("kafka", kafka.to_owned()),
        ];
        let meta = ReportMeta {
            title: "Aesthetic scores: the demo".into(),
            model,
            score_range: self.range,
            settings: settings.map(|(name, value)| (name.to_owned(), value)).into(),
            note: self.args.checkpoint.is_none().then(|| MEANING.into()),
            written_at: OffsetDateTime::now_utc(),
            elapsed: Some(elapsed),
        };
        let entries = results::entries(outcomes, self.range).await;
        let path = &self.args.report;
        report::write(path, &meta, entries).map_err(|source| DemoError::Unwritable {
            option: "--report",
            path: path.clone(),
            source,
        })?;
        let shown = std::path::absolute(path).unwrap_or_else(|_| path.clone());
        say(out, &format!("Gallery: {}", shown.display()))
    }

    fn explain(&self, out: &mut dyn Write) -> Result<(), DemoError> {
        if self.args.checkpoint.is_some() {
            return Ok(());
        }
        say(
            out,
            &format!(
                "\n{MEANING}\nFor those, download the published weights (README.md, \"The model and its \
                 weights\") and run: make demo ARGS=\"--checkpoint DIR\""
            ),
        )
    }
}
