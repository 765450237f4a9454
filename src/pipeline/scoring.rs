//! From an object to its score: fetched, then judged by the model.

use super::{
    admission::BytesPermit,
    hold::Pass,
    in_flight::{Claim, Lead},
    item::{Abandoned, Ended, ItemTask},
    outcome::{self, Facts},
    reuse::Judged,
};
use crate::{
    failpoint,
    fault::{ErrorCode, Stage},
    fetch::FetchedImage,
    inference::ScoreFailure,
    object::{ObjectRef, ScoreId},
    score::{ItemStatus, ModelVersion},
    serving::{Lost, Ticket},
    store::ScoreRow,
};
use bytes::Bytes;
use std::sync::Arc;

/// The sole right to score an object with one version of the model; the row was looked up in vain.
struct Turn {
    version: Arc<ModelVersion>,
    lead: Lead<ScoreId>,
}

/// A fetched file, with leave to hold it.
struct Held {
    image: FetchedImage,
    _permit: BytesPermit,
}

impl ItemTask {
    /// Scores an object, unless a row says its score already.
    ///
    /// A model, not a record, binds the version: when another model has come to serve the object since its
    /// id was derived and looked up, both are done again for that one.
    pub(super) async fn score(&self, mut object: ObjectRef) -> Result<Ended, Abandoned> {
        let mut facts = Facts { object: Some(object.clone()), ..Facts::default() };
        let mut turn: Option<Turn> = None;
        let mut pass: Option<Pass<'_>> = None;
        let mut held: Option<Held> = None;
        loop {
            let version = Arc::clone(self.model_for(Some(&object)).await?.version());
            if (object.is_pinned() || held.is_some())
                && turn.as_ref().is_none_or(|turn| turn.version != version)
            {
                // First of all, or two tasks that changed models the other way round wait for each other.
                turn = None;
                // Whoever leads may wait for the model, and would wait for this probe's end.
                pass = pass.filter(|pass| !pass.is_probe());
                let id = ScoreId::derive(&object, &version);
                match self.in_flight.claim(id) {
                    Claim::Lead(lead) => match self.lookup(id).await? {
                        Some(stored) => return Ok(Ended::stored(stored, object, version)),
                        None => turn = Some(Turn { version, lead }),
                    },
                    Claim::Follow(follow) => {
                        // And may need the room that these bytes take.
                        (pass, held) = (None, None);
                        follow.leader_done().await;
                        self.still_ours()?;
                    }
                }
                // Time has passed, and the model may be another once more.
                continue;
            }
            // Before the bytes, so that none are held while the model is.
            let Some(leave) = pass.take().filter(Pass::is_current) else {
                held = None;
                pass = Some(self.pass(&self.parts.hold.model).await?);
                continue;
            };
            let Some(Held { image, _permit }) = held.take() else {
                let (image, permit) = match self.fetch(&object, &mut facts).await? {
                    Ok(fetched) => fetched,
                    Err((status, error)) => {
                        let (error, lead) = (outcome::named(&object, error), turn.map(|turn| turn.lead));
                        return Ok(self.ended(facts, version, status, error, lead));
                    }
                };
                // What the event did not say, the object does; what it did say stays, since the id holds it.
                if !object.is_pinned() {
                    object.version_id = object.version_id.or_else(|| image.version_id.clone());
                    object.etag = object.etag.or_else(|| image.etag.clone());
                    object.size = object.size.or(Some(image.size));
                }
                failpoint::reach("fetched");
                facts.object = Some(object.clone());
                (held, pass) = (Some(Held { image, _permit: permit }), Some(leave));
                continue;
            };
            let model = self.model_for(Some(&object)).await?;
            if *model.version() != version {
                (held, pass) = (Some(Held { image, _permit }), Some(leave));
                continue;
            }
            let suspect = self.parts.ledger.is_suspect(&self.record.receipt);
            match self.judge(&model, &object, &image.bytes, suspect).await? {
                Ok(judged) => {
                    match judged.reused {
                        None => leave.worked(),
                        // The model was not asked, so this says nothing of it.
                        Some(_) => drop(leave),
                    }
                    failpoint::reach("scored");
                    // What may kill this process is not decoded in it.
                    let shadows = if suspect { Vec::new() } else { self.shadows(&object, &image.bytes) };
                    return Ok(self.scored(object, judged, facts, turn).shadowed(shadows));
                }
                Err(ScoreFailure::Rejected { error, version }) => {
                    if error.code == ErrorCode::NonFiniteScore {
                        leave.failed(self.asker(), &error);
                        // With so many of them, it is the model that is to blame and not the image.
                        if self.parts.hold.model.is_open() {
                            self.parts.metrics.retry(Stage::Infer);
                            continue;
                        }
                    }
                    let (error, lead) = (outcome::named(&object, error), turn.map(|turn| turn.lead));
                    return Ok(self.ended(facts, version, ItemStatus::Rejected, error, lead));
                }
                Err(ScoreFailure::Engine(failure)) => match self.parts.models.lost(&model, &failure) {
                    Lost::TryAgain => {
                        self.parts.metrics.retry(Stage::Infer);
                        (held, pass) = (Some(Held { image, _permit }), Some(leave));
                    }
                    Lost::Everything => return Err(Abandoned::Model(failure)),
                },
            }
        }
    }

    fn scored(&self, object: ObjectRef, judged: Judged, mut facts: Facts, turn: Option<Turn>) -> Ended {
        let Judged { answer, version, pixels, content, reused } = judged;
        let id = ScoreId::derive(&object, &version);
        (facts.pixels, facts.reused) = (pixels, reused);
        let answer = Arc::unwrap_or_clone(answer);
        let row = ScoreRow::known(id, object, &version, answer, content, Some(self.source()));
        Ended::row(row, facts, version, turn.map(|turn| turn.lead))
    }

    /// Places with the shadows that see this image too.
    fn shadows(&self, object: &ObjectRef, bytes: &Bytes) -> Vec<Ticket> {
        let lineup = self.parts.models.lineup();
        lineup.shadows.iter().filter_map(|shadow| shadow.ticket(object, bytes)).collect()
    }
}
