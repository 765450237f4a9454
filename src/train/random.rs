//! Random numbers that a seed decides, on every machine and whatever else was drawn before.

use rand_chacha::{
    ChaCha8Rng,
    rand_core::{RngCore, SeedableRng},
};
use sha2::{Digest, Sha256};

/// A stream of random numbers of its own for each purpose.
///
/// The key of ChaCha8 is the SHA-256 of the seed and the purpose's name: nothing has to be saved to go
/// on after a restart, and drawing more for one purpose changes no other.
pub struct Random(ChaCha8Rng);

impl Random {
    /// The stream of `seed` for `purpose`, from its start.
    pub fn new(seed: u64, purpose: &str) -> Self {
        let key = Sha256::new_with_prefix(seed.to_le_bytes()).chain_update(purpose).finalize();
        Self(ChaCha8Rng::from_seed(key.into()))
    }

    /// Uniform over `0..bound`, with a bias below `bound / 2^64`; `bound` is not 0.
    pub fn below(&mut self, bound: usize) -> usize {
        ((u128::from(self.0.next_u64()) * bound as u128) >> 64) as usize
    }

    /// Uniform over `[-limit, limit)`, in steps of `limit / 2^23`.
    pub fn symmetric(&mut self, limit: f32) -> f32 {
        const STEPS: f32 = (1 << 23) as f32;
        limit * ((self.0.next_u32() >> 8) as f32 / STEPS - 1.0)
    }

    /// Fisher and Yates's shuffle, in Durstenfeld's form: every order is equally likely.
    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for last in (1..items.len()).rev() {
            items.swap(last, self.below(last + 1));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    #[test]
    fn seed_and_purpose_decide_the_stream() {
        let draw = |seed, purpose: &str| {
            let mut random = Random::new(seed, purpose);
            [random.below(1 << 40), random.below(1 << 40)]
        };
        assert_eq!(draw(1, "order"), draw(1, "order"));
        assert_ne!(draw(1, "order"), draw(2, "order"));
        assert_ne!(draw(1, "order"), draw(1, "weights"));
        // A run that was saved goes on with the same numbers in a later version.
        assert_eq!(draw(7, "stable"), [1_075_946_044_004, 867_585_333_499]);
    }

    #[test]
    fn orders_and_values_are_uniform() {
        let mut random = Random::new(3, "test");
        let mut orders = BTreeMap::new();
        for _ in 0..24_000 {
            let mut items = [0, 1, 2, 3];
            random.shuffle(&mut items);
            *orders.entry(items).or_insert(0) += 1;
        }
        // 1,000 of each are expected, with a standard deviation of 31.
        assert_eq!(orders.len(), 24);
        assert!(orders.values().all(|count| (850..1150).contains(count)), "{orders:?}");

        let values: Vec<f32> = (0..20_000).map(|_| random.symmetric(0.5)).collect();
        assert!(values.iter().all(|value| (-0.5..0.5).contains(value)));
        let mean = values.iter().map(|value| f64::from(*value)).sum::<f64>() / 20_000.0;
        let square = values.iter().map(|value| f64::from(*value).powi(2)).sum::<f64>() / 20_000.0;
        assert!(mean.abs() < 0.01 && (square - 1.0 / 12.0).abs() < 0.003, "{mean} {square}");
    }
}
