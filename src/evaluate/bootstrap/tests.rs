use super::*;
use crate::evaluate::metrics::{Measured, Metric, Observation, Workspace};
use std::f64::consts::PI;

/// Standard normal numbers (Box and Muller 1958).
struct Normal(Xoshiro256PlusPlus);

impl Normal {
    fn next(&mut self) -> f64 {
        let (radius, angle): (f64, f64) = (self.0.random(), self.0.random());
        (-2.0 * (1.0 - radius).ln()).sqrt() * (2.0 * PI * angle).cos()
    }
}

fn separate(photos: usize) -> Groups {
    Groups { of_photos: (0..photos as u32).collect(), count: photos }
}

#[test]
fn percentiles_lie_between_neighbours() {
    let values: Vec<f64> = (0..=100).rev().map(f64::from).collect();
    assert_eq!(
        percentiles(values.clone(), 0.9).map(|(low, high)| (low.round(), high.round())),
        Some((5.0, 95.0))
    );
    assert_eq!(percentiles(values, 1.0), Some((0.0, 100.0)));
    assert_eq!(percentiles(vec![2.0], 0.95), Some((2.0, 2.0)));
    assert_eq!((percentiles(vec![], 0.95), percentiles(vec![1.0, f64::NAN], 0.95)), (None, None));
}

#[test]
fn a_seed_gives_the_same_draws_and_another_others() {
    let settings = BootstrapSettings { resamples: 37, ..BootstrapSettings::default() };
    let of = |settings: &BootstrapSettings| {
        resample(&separate(50), settings, |weights, (): &mut ()| {
            [weights.iter().zip(0..).map(|(&weight, photo)| f64::from(weight * photo)).sum()]
        })
    };
    assert_eq!(of(&settings), of(&settings));
    assert_ne!(of(&settings), of(&BootstrapSettings { seed: 1, ..settings }));
    let mut distinct = of(&settings);
    distinct.sort_by(|one, other| one[0].total_cmp(&other[0]));
    distinct.dedup();
    assert!(distinct.len() > 20, "draws differ from one another: {}", distinct.len());
}

#[test]
fn groups_are_drawn_whole() {
    let groups = Groups::by_name(["a", "b", "a", "c", "b", "a"].into_iter());
    assert_eq!(groups.count(), 3);
    let settings = BootstrapSettings { resamples: 100, ..BootstrapSettings::default() };
    resample(&groups, &settings, |weights, (): &mut ()| {
        assert_eq!((weights[0], weights[0], weights[1]), (weights[2], weights[5], weights[4]));
        assert_eq!(weights[0] + weights[1] + weights[3], 3);
        []
    });
}

/// What one simulated set of photos says: whether each interval holds the true value.
const SIMULATIONS: u64 = 400;
const PHOTOS: usize = 250;

/// Label and two predictions as a trivariate normal distribution: each prediction correlates with the
/// label, and the predictions' errors with each other as a fine-tuned model's do with its parent's.
const CORRELATIONS: [f64; 2] = [0.75, 0.7];
const SHARED: f64 = 0.8;

fn simulated(seed: u64) -> [Vec<Observation>; 2] {
    let mut normal = Normal(Xoshiro256PlusPlus::seed_from_u64(seed));
    let mut sets = [Vec::new(), Vec::new()];
    for _ in 0..PHOTOS {
        let (label, common, answered) = (normal.next(), normal.next(), normal.next() < 1.0);
        for (set, correlation) in sets.iter_mut().zip(CORRELATIONS) {
            let own = SHARED.sqrt() * common + (1.0 - SHARED).sqrt() * normal.next();
            let predicted = correlation * label + (1.0 - correlation * correlation).sqrt() * own;
            set.push(Observation {
                label,
                predicted: Some(predicted),
                // As if it were one: any number a photo.
                emd: Some((label - predicted).powi(2)),
                answered,
            });
        }
    }
    sets
}

/// The metrics of infinitely many such photos.
fn truth(correlation: f64) -> [f64; 8] {
    // Label and prediction both have variance 1.
    let deviation = (2.0 - 2.0 * correlation).sqrt();
    [
        6.0 / PI * (correlation / 2.0).asin(),
        correlation,
        2.0 / PI * correlation.asin(),
        deviation * (2.0 / PI).sqrt(),
        deviation,
        deviation * deviation,
        0.5 + correlation.asin() / PI,
        // The normal distribution function at 1.
        0.841_344_746,
    ]
}

#[test]
fn intervals_hold_the_true_value_as_often_as_they_say() {
    let settings = BootstrapSettings { resamples: 400, ..BootstrapSettings::default() };
    let (mut covered, mut covered_difference) = ([0; 8], [0; 8]);
    let (first, second) = (truth(CORRELATIONS[0]), truth(CORRELATIONS[1]));
    for seed in 0..SIMULATIONS {
        let sets = simulated(seed);
        let [one, other] = sets.each_ref().map(|set| Measured::new(set, (-1.0, 1.0)));
        let drawn = resample(
            &separate(PHOTOS),
            &BootstrapSettings { seed, ..settings },
            |weights, workspace: &mut Workspace| {
                let (one, other) = (one.weighted(weights, workspace), other.weighted(weights, workspace));
                let mut values = [0.0; 16];
                values[..8].copy_from_slice(&one);
                for metric in 0..8 {
                    values[8 + metric] = one[metric] - other[metric];
                }
                values
            },
        );
        let holds = |column: usize, value: f64| {
            let (low, high) = percentiles(drawn.iter().map(|values| values[column]).collect(), 0.95).unwrap();
            usize::from(low <= value && value <= high)
        };
        for metric in 0..8 {
            covered[metric] += holds(metric, first[metric]);
            covered_difference[metric] += holds(8 + metric, first[metric] - second[metric]);
        }
    }
    // Of 400 intervals 380 should hold it; a standard deviation is 4.4, and four of them are 17.
    let bounds = 363..=397;
    for metric in Metric::ALL {
        let alone = covered[metric.index()];
        assert!(bounds.contains(&alone), "{metric}: {alone} of {SIMULATIONS}");
        let difference = covered_difference[metric.index()];
        // Both models answer the same photos here, so that this difference is 0 in every draw.
        let bounds = if metric == Metric::ScoreRate {
            SIMULATIONS as usize..=SIMULATIONS as usize
        } else {
            bounds.clone()
        };
        assert!(bounds.contains(&difference), "difference in {metric}: {difference} of {SIMULATIONS}");
    }
}

#[test]
fn photos_of_one_group_are_no_further_evidence() {
    let alone = |index: usize| [simulated(3)[0][index % 100]];
    let width = |copies: usize| {
        let observations: Vec<Observation> = (0..100 * copies).flat_map(alone).collect();
        let names: Vec<String> = (0..100 * copies).map(|index| (index % 100).to_string()).collect();
        let groups = Groups::by_name(names.iter().map(String::as_str));
        let measured = Measured::new(&observations, (-1.0, 1.0));
        let drawn = resample(&groups, &BootstrapSettings::default(), |weights, workspace| {
            measured.weighted(weights, workspace)
        });
        let (low, high) = percentiles(drawn.iter().map(|values| values[0]).collect(), 0.95).unwrap();
        high - low
    };
    assert!((width(1) - width(5)).abs() < 1e-9);
}
