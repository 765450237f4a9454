//! Which samples each step works on.

use super::random::Random;
use std::{cmp::Reverse, ops::Range};

/// How the samples of a data set are put in order and cut into batches.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OrderSettings {
    /// Samples that go through the network together.
    pub batch_size: usize,
    /// Batches whose gradients make one step.
    pub accumulation: usize,
    /// A new order each epoch; otherwise that of the data.
    pub shuffle: bool,
    pub seed: u64,
}

/// The order of samples over a whole run. It follows from settings and step number alone, so a run
/// can go on from any step.
///
/// Every sample comes once an epoch: the last batch of an epoch, and the last step, may be smaller.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Order {
    settings: OrderSettings,
    samples: usize,
    /// Positions of each sample, where batches are to hold samples of like length.
    lengths: Option<Vec<usize>>,
}

/// The samples of one step, by their indices in the data, a batch each.
pub type StepBatches = Vec<Vec<usize>>;

impl Order {
    /// The order of `samples` samples; batch size and accumulation are at least 1.
    pub fn new(settings: OrderSettings, samples: usize) -> Self {
        Self { settings, samples, lengths: None }
    }

    /// As [`new`](Self::new) for one sample of each length, with samples of like length in one step,
    /// so that little is padded.
    ///
    /// In the manner of transformers' `LengthGroupedSampler`: the shuffled samples are cut into
    /// mega-batches of some steps, each is sorted by length, and the longest sample of all comes
    /// first, so that a step that doesn't fit in memory fails at the start. Unlike there, it comes
    /// with its whole step, and otherwise the steps of a mega-batch are shuffled, so that lengths
    /// don't fall and rise throughout the epoch.
    pub fn grouped_by_length(settings: OrderSettings, lengths: Vec<usize>) -> Self {
        Self { settings, samples: lengths.len(), lengths: Some(lengths) }
    }

    /// Steps in an epoch.
    pub fn steps_per_epoch(&self) -> u64 {
        self.samples.div_ceil(self.samples_per_step()) as u64
    }

    /// The steps from the one after `done` others on, without end; none if there are no samples.
    pub fn steps_after(&self, done: u64) -> impl Iterator<Item = StepBatches> {
        let per_epoch = self.steps_per_epoch();
        let (epoch, skipped) = match per_epoch {
            0 => (0, 0),
            _ => (done / per_epoch, usize::try_from(done % per_epoch).unwrap_or(usize::MAX)),
        };
        let epochs = if per_epoch == 0 { 0..0 } else { epoch..u64::MAX };
        epochs.flat_map(|epoch| self.epoch(epoch)).skip(skipped)
    }

    /// The steps of one epoch, counted from 0.
    pub fn epoch(&self, epoch: u64) -> Vec<StepBatches> {
        let mut samples: Vec<usize> = (0..self.samples).collect();
        let mut random = Random::new(self.settings.seed, &format!("order of epoch {epoch}"));
        if self.settings.shuffle {
            random.shuffle(&mut samples);
        }
        let step = self.samples_per_step();
        let mut ranges: Vec<Range<usize>> =
            (0..self.samples).step_by(step).map(|start| start..(start + step).min(self.samples)).collect();
        if let Some(lengths) = &self.lengths {
            self.group(&mut samples, &mut ranges, lengths, &mut random);
        }
        let batches = |range: Range<usize>| -> StepBatches {
            samples[range].chunks(self.settings.batch_size).map(<[usize]>::to_vec).collect()
        };
        ranges.into_iter().map(batches).collect()
    }

    /// Sorts the samples of each mega-batch by length and puts the steps in their order.
    fn group(
        &self,
        samples: &mut [usize],
        steps: &mut [Range<usize>],
        lengths: &[usize],
        random: &mut Random,
    ) {
        // Enough to find samples alike, few enough to mix: 50, or four mega-batches an epoch.
        let steps_together = (self.samples / (self.samples_per_step() * 4)).clamp(1, 50);
        for mega_batch in samples.chunks_mut(steps_together * self.samples_per_step()) {
            mega_batch.sort_by_key(|&sample| Reverse(lengths[sample]));
        }
        if self.settings.shuffle {
            steps.chunks_mut(steps_together).for_each(|steps| random.shuffle(steps));
        }
        let longest = |step: &Range<usize>| samples[step.clone()].iter().map(|&sample| lengths[sample]).max();
        // The first of equals: `max_by_key` alone would give the last.
        if let Some(first) = (0..steps.len()).rev().max_by_key(|&step| longest(&steps[step])) {
            steps[..=first].rotate_right(1);
        }
    }

    fn samples_per_step(&self) -> usize {
        self.settings.batch_size * self.settings.accumulation
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::{collection::vec, prelude::*};

    fn settings() -> impl Strategy<Value = OrderSettings> {
        (1_usize..6, 1_usize..4, any::<bool>(), any::<u64>()).prop_map(
            |(batch_size, accumulation, shuffle, seed)| OrderSettings {
                batch_size,
                accumulation,
                shuffle,
                seed,
            },
        )
    }

    fn orders() -> impl Strategy<Value = Order> {
        (settings(), vec(1_usize..50, 1..80), any::<bool>()).prop_map(|(settings, lengths, grouped)| {
            match grouped {
                true => Order::grouped_by_length(settings, lengths),
                false => Order::new(settings, lengths.len()),
            }
        })
    }

    fn flat(steps: &[StepBatches]) -> Vec<usize> {
        steps.iter().flatten().flatten().copied().collect()
    }

    proptest! {
        #[test]
        fn every_sample_comes_once_an_epoch(order in orders(), epoch in 0_u64..1000) {
            let steps = order.epoch(epoch);
            prop_assert_eq!(steps.len() as u64, order.steps_per_epoch());
            let mut samples = flat(&steps);
            samples.sort_unstable();
            prop_assert!(samples.into_iter().eq(0..order.samples));
        }

        #[test]
        fn batches_are_full_but_for_the_last_of_a_step(order in orders()) {
            let OrderSettings { batch_size, accumulation, .. } = order.settings;
            let steps = order.epoch(0);
            let full = |step: &StepBatches| step.len() == accumulation
                && step.iter().all(|batch| batch.len() == batch_size);
            prop_assert!(steps.iter().filter(|step| !full(step)).count() <= 1);
            for step in &steps {
                prop_assert!(step.iter().all(|batch| !batch.is_empty() && batch.len() <= batch_size));
                prop_assert!(step[..step.len() - 1].iter().all(|batch| batch.len() == batch_size));
            }
        }

        #[test]
        fn a_run_goes_on_from_any_step(order in orders(), done in 0_usize..200) {
            let whole: Vec<StepBatches> = order.steps_after(0).take(done + 30).collect();
            let rest: Vec<StepBatches> = order.steps_after(done as u64).take(30).collect();
            prop_assert_eq!(&whole[done..], &rest[..]);
        }

        #[test]
        fn the_longest_sample_is_in_the_first_step(settings in settings(), lengths in vec(1_usize..50, 1..80)) {
            let order = Order::grouped_by_length(settings, lengths.clone());
            let first = flat(&order.epoch(0)[..1]);
            prop_assert_eq!(first.into_iter().map(|sample| lengths[sample]).max(), lengths.iter().copied().max());
        }
    }

    #[test]
    fn without_shuffling_the_order_is_that_of_the_data() {
        let settings = OrderSettings { batch_size: 2, accumulation: 2, shuffle: false, seed: 1 };
        let order = Order::new(settings, 7);
        let expected = vec![vec![vec![0, 1], vec![2, 3]], vec![vec![4, 5], vec![6]]];
        assert_eq!(order.epoch(0), expected);
        assert_eq!(order.epoch(5), expected);
    }

    #[test]
    fn epochs_and_seeds_differ() {
        let order = |seed, epoch| {
            let settings = OrderSettings { batch_size: 8, accumulation: 1, shuffle: true, seed };
            flat(&Order::new(settings, 100).epoch(epoch))
        };
        assert_eq!(order(1, 0), order(1, 0));
        assert_ne!(order(1, 0), order(1, 1));
        assert_ne!(order(1, 0), order(2, 0));
    }

    #[test]
    fn grouping_leaves_little_to_pad() {
        let lengths: Vec<usize> = (0..400).map(|sample| 20 + (sample * 37) % 101).collect();
        let settings = OrderSettings { batch_size: 8, accumulation: 1, shuffle: true, seed: 5 };
        let padded = |order: &Order| -> usize {
            let batches = order.epoch(0).into_iter().flatten();
            let longest = |batch: &[usize]| batch.iter().map(|&sample| lengths[sample]).max().unwrap();
            batches
                .map(|batch| batch.len() * longest(&batch) - batch.iter().map(|&s| lengths[s]).sum::<usize>())
                .sum()
        };
        let (grouped, random) = (
            padded(&Order::grouped_by_length(settings.clone(), lengths.clone())),
            padded(&Order::new(settings, 400)),
        );
        assert!(grouped * 4 < random, "{grouped} of {random}");
    }

    #[test]
    fn no_samples_make_no_steps() {
        let settings = OrderSettings { batch_size: 2, accumulation: 1, shuffle: true, seed: 1 };
        let order = Order::new(settings, 0);
        assert_eq!((order.steps_per_epoch(), order.steps_after(3).count()), (0, 0));
    }
}
