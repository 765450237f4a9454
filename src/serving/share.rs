//! Which objects belong to a share of all: the same ones in every process, and after every restart.

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::fmt;

/// A share of all keys, from none (0) to all (1).
#[derive(Clone, Copy, Debug, PartialEq, PartialOrd, Serialize, Deserialize)]
#[serde(try_from = "f64", into = "f64")]
pub struct Share(f64);

/// A number that is no share.
#[derive(Clone, Copy, Debug, PartialEq, thiserror::Error)]
#[error("{0} is no share; give a number from 0 to 1")]
pub struct NoShare(f64);

/// What a share is for. Two uses of one share take different keys, independently of each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    Canary,
    Shadow,
}

impl Share {
    /// # Errors
    /// [`NoShare`] for what is not between 0 and 1, both included.
    pub fn new(share: f64) -> Result<Self, NoShare> {
        if (0.0..=1.0).contains(&share) { Ok(Self(share)) } else { Err(NoShare(share)) }
    }

    pub fn get(self) -> f64 {
        self.0
    }

    /// Whether an object belongs to this share: its place lies below it.
    ///
    /// It depends on bucket and key alone, so every version of an object goes the same way, and an
    /// object that belongs to a share belongs to every larger one.
    pub fn holds(self, purpose: Purpose, bucket: &str, key: &str) -> bool {
        place(purpose, bucket, key) < self.0
    }
}

/// Where an object lies in `[0, 1)`: the first 53 bits of the SHA-256 over the purpose's name, bucket
/// and key, each after its length in bytes as 64 bits, big-endian, divided by 2^53.
fn place(purpose: Purpose, bucket: &str, key: &str) -> f64 {
    let purpose = match purpose {
        Purpose::Canary => "canary",
        Purpose::Shadow => "shadow",
    };
    let mut hasher = Sha256::new();
    for part in [purpose, bucket, key] {
        hasher.update((part.len() as u64).to_be_bytes());
        hasher.update(part);
    }
    let mut first = [0; 8];
    first.copy_from_slice(&hasher.finalize()[..8]);
    (u64::from_be_bytes(first) >> 11) as f64 / (1_u64 << 53) as f64
}

impl TryFrom<f64> for Share {
    type Error = NoShare;

    fn try_from(share: f64) -> Result<Self, NoShare> {
        Self::new(share)
    }
}

impl From<Share> for f64 {
    fn from(share: Share) -> Self {
        share.0
    }
}

impl fmt::Display for Share {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Rounded, since a hundred times a decimal fraction is seldom a short number.
        write!(formatter, "{}%", (self.0 * 1e6).round() / 1e4)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn held(share: f64, purpose: Purpose) -> Vec<usize> {
        let share = Share::new(share).unwrap();
        (0..10_000)
            .filter(|number| share.holds(purpose, "photos", &format!("2026/11/{number:05}.jpg")))
            .collect()
    }

    #[test]
    fn a_tenth_of_ten_thousand_keys_is_about_a_thousand() {
        let count = held(0.1, Purpose::Canary).len();
        assert!((900..=1_100).contains(&count), "{count}");
    }

    /// Known places, so that no later release of this code sends a key another way.
    #[test]
    fn a_key_never_changes_its_place() {
        let places = [("photos", "a.jpg"), ("photos", "Фото 1/b c.png"), ("", "")]
            .map(|(bucket, key)| format!("{:.12}", place(Purpose::Canary, bucket, key)));
        assert_eq!(places, ["0.679255984971", "0.331822826359", "0.413638346142"]);
    }

    #[test]
    fn two_purposes_take_their_keys_independently() {
        let (canary, shadow) = (held(0.5, Purpose::Canary), held(0.5, Purpose::Shadow));
        let both = canary.iter().filter(|number| shadow.binary_search(number).is_ok()).count();
        assert!((2_300..=2_700).contains(&both), "{both} of 10,000 in both halves");
    }

    #[test]
    fn only_a_number_from_0_to_1_is_a_share() {
        for wrong in [-0.1, 1.000_1, f64::NAN, f64::INFINITY] {
            assert!(Share::new(wrong).is_err(), "{wrong}");
        }
        assert!(serde_json::from_str::<Share>("10").is_err());
        assert_eq!(serde_json::from_str::<Share>("0.1").unwrap().to_string(), "10%");
    }

    proptest! {
        #[test]
        fn a_larger_share_holds_what_a_smaller_one_does(bucket: String, key: String, one in 0.0_f64..=1.0, other in 0.0_f64..=1.0) {
            let (small, large) = (Share::new(one.min(other)).unwrap(), Share::new(one.max(other)).unwrap());
            prop_assert!(!small.holds(Purpose::Canary, &bucket, &key) || large.holds(Purpose::Canary, &bucket, &key));
            prop_assert!(Share::new(1.0).unwrap().holds(Purpose::Canary, &bucket, &key));
            prop_assert!(!Share::new(0.0).unwrap().holds(Purpose::Canary, &bucket, &key));
        }
    }
}
