//! The side of each photo, one after another in the order in which their labels came.

use super::{fingerprint::Fingerprint, near::NearIndex};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::{collections::HashMap, fmt, str::FromStr};

/// SHA-256 of a photo's file.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ContentHash(pub [u8; 32]);

/// How photos are divided (configuration section `split`).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SplitSettings {
    /// The share of photos that are held out, from 0 to 1. Photos that have a side keep it when this
    /// changes.
    pub holdout: f64,
    /// Another text gives other holdouts.
    pub salt: String,
}

impl Default for SplitSettings {
    fn default() -> Self {
        Self { holdout: 0.1, salt: String::new() }
    }
}

/// What a photo is used for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Side {
    /// Learned from.
    Training,
    /// Judged by.
    Holdout,
    /// Neither: it is near to photos of both sides, and would carry one over to the other.
    LeftOut,
}

/// Where a photo belongs; to be stored with its label.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Assignment {
    /// The earliest photo that this one is, over any number of near-copies, a copy of.
    pub group: ContentHash,
    pub side: Side,
}

/// A photo that has been assigned.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Member {
    pub content: ContentHash,
    /// `None` for a file that can't be decoded.
    pub fingerprint: Option<Fingerprint>,
    pub assignment: Assignment,
}

/// Assigns photos, knowing all that were assigned before.
///
/// A photo near to an earlier one takes its group and side; one that is near to nothing founds a group,
/// whose side its content's hash decides. A photo is compared with all earlier ones, not with the
/// groups' founders alone, and no assignment is ever changed: so that of two near photos never one is
/// learned from and the other judged by, whatever comes in whichever order, and a stored side stays true.
#[derive(Default)]
pub struct Splitter {
    settings: SplitSettings,
    by_content: HashMap<ContentHash, Assignment>,
    /// Groups in the order in which they were founded.
    groups: Vec<ContentHash>,
    numbers: HashMap<ContentHash, u32>,
    wholes: NearIndex<Place>,
    trimmed: NearIndex<Place>,
}

/// A group by its number, and the side.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Place {
    group: u32,
    side: Side,
}

impl Splitter {
    pub fn new(settings: SplitSettings) -> Self {
        Self { settings, ..Self::default() }
    }

    /// Takes in a photo that was assigned before; those that came first are to be restored first.
    pub fn restore(&mut self, member: &Member) {
        self.by_content.insert(member.content, member.assignment);
        let group = self.number(member.assignment.group);
        if let Some(fingerprint) = &member.fingerprint {
            self.index(fingerprint, Place { group, side: member.assignment.side });
        }
    }

    /// The place of a photo, for ever. `fingerprint` is `None` for a file that can't be decoded: then
    /// only the very same file is a copy.
    pub fn assign(&mut self, content: ContentHash, fingerprint: Option<&Fingerprint>) -> Assignment {
        if let Some(known) = self.by_content.get(&content) {
            return *known;
        }
        let assignment = match fingerprint.and_then(|fingerprint| self.nearest(fingerprint)) {
            Some(place) => Assignment { group: self.groups[place.group as usize], side: place.side },
            None => Assignment { group: content, side: self.side_of(&content) },
        };
        self.restore(&Member { content, fingerprint: fingerprint.copied(), assignment });
        assignment
    }

    /// Whether a photo is a copy or near-copy of an earlier one.
    pub fn knows(&self, content: &ContentHash, fingerprint: Option<&Fingerprint>) -> bool {
        self.by_content.contains_key(content)
            || fingerprint.is_some_and(|fingerprint| self.nearest(fingerprint).is_some())
    }

    /// The earliest group among near photos, and the side that all of them have.
    fn nearest(&self, fingerprint: &Fingerprint) -> Option<Place> {
        let mut nearest: Option<Place> = None;
        let mut meet = |place: Place| {
            let known = nearest.get_or_insert(place);
            known.group = known.group.min(place.group);
            if known.side != place.side {
                known.side = Side::LeftOut;
            }
        };
        self.wholes.near(fingerprint.whole(), &mut meet);
        self.trimmed.near(fingerprint.whole(), &mut meet);
        for hash in fingerprint.trimmed() {
            self.wholes.near(*hash, &mut meet);
        }
        nearest
    }

    fn index(&mut self, fingerprint: &Fingerprint, place: Place) {
        // Nothing is used on no side, and so nothing has to keep away from it.
        if place.side == Side::LeftOut {
            return;
        }
        self.wholes.insert(fingerprint.whole(), place);
        for hash in fingerprint.trimmed() {
            self.trimmed.insert(*hash, place);
        }
    }

    fn number(&mut self, group: ContentHash) -> u32 {
        let next = self.groups.len() as u32;
        let number = *self.numbers.entry(group).or_insert(next);
        if number == next {
            self.groups.push(group);
        }
        number
    }

    /// The side of a group's founder.
    fn side_of(&self, content: &ContentHash) -> Side {
        let digest =
            Sha256::new().chain_update(self.settings.salt.as_bytes()).chain_update(content.0).finalize();
        let number = digest.iter().take(8).fold(0, |number, &byte| number << 8 | u64::from(byte));
        // Of 2^53 places, since that many an f64 tells apart.
        let place = (number >> 11) as f64 / (1_u64 << 53) as f64;
        if place < self.settings.holdout { Side::Holdout } else { Side::Training }
    }
}

impl ContentHash {
    /// Of a file's bytes.
    pub fn of(bytes: &[u8]) -> Self {
        Self(Sha256::digest(bytes).into())
    }
}

/// A text that is no [`ContentHash`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no SHA-256; expected 64 hexadecimal digits")]
pub struct NotAContentHash(String);

impl FromStr for ContentHash {
    type Err = NotAContentHash;

    fn from_str(text: &str) -> Result<Self, NotAContentHash> {
        let invalid = || NotAContentHash(text.to_owned());
        if text.len() != 64 || !text.bytes().all(|digit| digit.is_ascii_hexdigit()) {
            return Err(invalid());
        }
        let mut bytes = [0; 32];
        for (byte, digits) in bytes.iter_mut().zip(text.as_bytes().as_chunks::<2>().0) {
            let digits = std::str::from_utf8(digits).map_err(|_| invalid())?;
            *byte = u8::from_str_radix(digits, 16).map_err(|_| invalid())?;
        }
        Ok(Self(bytes))
    }
}

impl fmt::Display for ContentHash {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(formatter, "{byte:02x}"))
    }
}

impl fmt::Debug for ContentHash {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, formatter)
    }
}

#[cfg(test)]
mod tests;
