//! An object named without an envelope.

use super::action::Action;
use super::fields::{optional_size, optional_text, required_text};
use super::{BadItem, Item};
use crate::object::ObjectRef;
use serde_json::{Map, Value};

/// `{"bucket","key","version_id"?,"etag"?,"size"?,"sequencer"?}`; the key is raw.
pub(super) fn parse(object: &Map<String, Value>) -> Result<Item, BadItem> {
    let within = "the value";
    let found = ObjectRef {
        bucket: required_text(object, "bucket", within)?.to_owned(),
        key: required_text(object, "key", within)?.to_owned(),
        version_id: optional_text(object, "version_id")?.map(str::to_owned),
        etag: optional_text(object, "etag")?.map(str::to_owned),
        size: optional_size(object)?,
        sequencer: optional_text(object, "sequencer")?.map(str::to_owned),
    };
    Action::Score.on(found)
}
