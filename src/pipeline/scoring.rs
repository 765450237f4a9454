//! From an object to its score: fetched, then judged by the model.

use super::{
    hold::Pass,
    in_flight::Lead,
    item::{Abandoned, Claimed, Ended, ItemTask},
    outcome::{self, Facts},
};
use crate::{
    failpoint,
    fault::{ErrorCode, Stage},
    inference::{ScoreFailure, Scored},
    object::{ObjectRef, ScoreId},
    score::{ItemStatus, ModelVersion},
    store::ScoreRow,
};
use std::sync::Arc;

impl ItemTask {
    /// Scores an object, unless a row says its score already.
    pub(super) async fn score(
        &self,
        mut object: ObjectRef,
        model: &Arc<ModelVersion>,
    ) -> Result<Ended, Abandoned> {
        let mut lead = None;
        if object.is_pinned() {
            match self.claim(ScoreId::derive(&object, model)).await? {
                Claimed::Lead(claimed) => lead = Some(claimed),
                Claimed::Stored(stored) => return Ok(Ended::stored(stored, object)),
            }
        }
        let mut facts = Facts { object: Some(object.clone()), ..Facts::default() };
        loop {
            // Before the bytes, so that none are held while the model is.
            let mut pass = Some(self.pass(&self.parts.hold.model).await?);
            let (image, bytes) = match self.fetch(&object, &mut facts).await? {
                Ok(fetched) => fetched,
                Err((status, error)) => {
                    return Ok(self.ended(facts, model, status, outcome::named(&object, error), lead));
                }
            };
            // What the event did not say, the object does; what it did say stays, since the id holds it.
            if !object.is_pinned() {
                object.version_id = object.version_id.or(image.version_id);
                object.etag = object.etag.or(image.etag);
                object.size = object.size.or(Some(image.size));
            }
            failpoint::reach("fetched");
            facts.object = Some(object.clone());
            if lead.is_none() {
                // The leader may itself wait for the model, and would wait for this probe's end.
                pass = pass.filter(|pass| !pass.is_probe());
                match self.claim(ScoreId::derive(&object, model)).await? {
                    Claimed::Lead(claimed) => lead = Some(claimed),
                    Claimed::Stored(stored) => return Ok(Ended::stored(stored, object)),
                }
            }
            let Some(pass) = pass.filter(Pass::is_current) else { continue };
            let scored = {
                let _stage = self.parts.metrics.enter(Stage::Infer);
                let name = object.to_string();
                match self.parts.ledger.is_suspect(&self.record.receipt) {
                    true => self.parts.quarantine.score(&name, image.bytes).await,
                    false => self.parts.service.score(&name, image.bytes).await,
                }
            };
            drop(bytes);
            match scored {
                Ok(scored) => {
                    pass.worked();
                    failpoint::reach("scored");
                    return Ok(self.scored(object, scored, facts, lead));
                }
                Err(ScoreFailure::Rejected { error, version }) => {
                    if error.code == ErrorCode::NonFiniteScore {
                        pass.failed(self.asker(), &error);
                        // With so many of them, it is the model that is to blame and not the image.
                        if self.parts.hold.model.is_open() {
                            self.parts.metrics.retry(Stage::Infer);
                            continue;
                        }
                    }
                    let error = outcome::named(&object, error);
                    return Ok(self.ended(facts, &version, ItemStatus::Rejected, error, lead));
                }
                Err(ScoreFailure::Engine(failure)) => return Err(Abandoned::Model(failure)),
            }
        }
    }

    /// The id is the batch's own model version's, whichever was serving when the item came in.
    fn scored(&self, object: ObjectRef, scored: Scored, mut facts: Facts, lead: Option<Lead>) -> Ended {
        let id = ScoreId::derive(&object, &scored.version);
        facts.pixels = Some((scored.width, scored.height));
        let row = ScoreRow::scored(id, object, &scored.version, &scored.answer, Some(self.source()));
        Ended::row(row, facts, lead)
    }
}
