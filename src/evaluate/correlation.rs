//! Rank and linear correlation of two columns, photos weighted by how often they are drawn.
//!
//! A [`Pairs`] ranks its columns once. Each coefficient then costs O(n), Kendall's O(n log n), for any
//! weights: that is what makes thousands of bootstrap resamples cheap, since a resample is a weight for
//! every pair and needs no sorting of its own.

/// Two columns of equal length, ranked.
#[derive(Clone, Debug, Default)]
pub struct Pairs {
    x: Column,
    y: Column,
    /// The pairs by x, equal x by y.
    order: Vec<u32>,
}

/// One number a pair, and where it stands among the distinct ones.
#[derive(Clone, Debug, Default)]
struct Column {
    values: Vec<f64>,
    /// From 0, equal numbers alike.
    classes: Vec<u32>,
    class_count: usize,
}

/// Memory that one thread uses again and again.
#[derive(Clone, Debug, Default)]
pub struct Scratch {
    x: Vec<f64>,
    y: Vec<f64>,
    tree: Vec<u64>,
}

impl Pairs {
    /// `None` where the columns differ in length or hold a number that is not finite.
    pub fn new(x: &[f64], y: &[f64]) -> Option<Self> {
        let finite = |column: &[f64]| column.iter().all(|value| value.is_finite());
        if x.len() != y.len() || u32::try_from(x.len()).is_err() || !finite(x) || !finite(y) {
            return None;
        }
        let (x, y) = (Column::new(x), Column::new(y));
        let mut order: Vec<u32> = (0..x.values.len() as u32).collect();
        order.sort_unstable_by_key(|&pair| (x.classes[pair as usize], y.classes[pair as usize]));
        Some(Self { x, y, order })
    }

    /// The number of pairs.
    pub fn len(&self) -> usize {
        self.order.len()
    }

    pub fn is_empty(&self) -> bool {
        self.order.is_empty()
    }

    /// Pearson's linear correlation (PLCC), a weight a pair.
    ///
    /// `None` where a column holds fewer than two distinct numbers of any weight.
    pub fn pearson(&self, weights: &[u32]) -> Option<f64> {
        if self.x.is_constant(weights) || self.y.is_constant(weights) {
            return None;
        }
        weighted_pearson(&self.x.values, &self.y.values, weights)
    }

    /// Spearman's rank correlation (SRCC): Pearson's of the ranks, where equal numbers share the mean of
    /// their ranks.
    ///
    /// `None` as for [`pearson`](Self::pearson).
    pub fn spearman(&self, weights: &[u32], scratch: &mut Scratch) -> Option<f64> {
        self.x.mean_ranks(weights, &mut scratch.x);
        self.y.mean_ranks(weights, &mut scratch.y);
        let total: f64 = weights.iter().map(|&weight| f64::from(weight)).sum();
        // Ranks are whole or half numbers around this mean, so that no rounding is in the sums.
        let mean = (total + 1.0) / 2.0;
        let (mut xx, mut yy, mut xy) = (0.0, 0.0, 0.0);
        for (pair, &weight) in weights.iter().enumerate().filter(|(_, weight)| **weight > 0) {
            let x = scratch.x[self.x.classes[pair] as usize] - mean;
            let y = scratch.y[self.y.classes[pair] as usize] - mean;
            let weight = f64::from(weight);
            xx += weight * x * x;
            yy += weight * y * y;
            xy += weight * x * y;
        }
        // Of equal sums the root of the product is exact, so that perfect agreement is exactly 1.
        (xx > 0.0 && yy > 0.0).then(|| (xy / (xx * yy).sqrt()).clamp(-1.0, 1.0))
    }

    /// Kendall's rank correlation (KRCC), tau-b: ties count in neither direction, and perfect agreement
    /// is 1 with them as without.
    ///
    /// Discordant pairs are counted with a Fenwick tree over y while going up x (Knight 1966 does so by
    /// merging). `None` as for [`pearson`](Self::pearson).
    pub fn kendall(&self, weights: &[u32], scratch: &mut Scratch) -> Option<f64> {
        let tree = &mut scratch.tree;
        tree.clear();
        tree.resize(self.y.class_count + 1, 0);
        let (mut discordant, mut seen, mut tied_x, mut tied_both) = (0_u64, 0_u64, 0_u64, 0_u64);
        for equal_x in self.order.chunk_by(|&one, &other| self.x.class(one) == self.x.class(other)) {
            let mut weight_of_x = 0;
            for &pair in equal_x {
                let weight = u64::from(weights[pair as usize]);
                if weight > 0 {
                    discordant += weight * (seen - sum_through(tree, self.y.class(pair)));
                    weight_of_x += weight;
                }
            }
            for equal_both in equal_x.chunk_by(|&one, &other| self.y.class(one) == self.y.class(other)) {
                let weight = equal_both.iter().map(|&pair| u64::from(weights[pair as usize])).sum();
                if weight > 0 {
                    add(tree, self.y.class(equal_both[0]), weight);
                    tied_both += couples(weight);
                }
            }
            tied_x += couples(weight_of_x);
            seen += weight_of_x;
        }
        let tied_y = self.y.tied(weights, &mut scratch.y);
        let total = couples(seen);
        // Each term is below 2^63 for any u32 number of pairs.
        let balance = total as i64 - tied_x as i64 - tied_y as i64 + tied_both as i64 - 2 * discordant as i64;
        let (by_x, by_y) = ((total - tied_x) as f64, (total - tied_y) as f64);
        (by_x > 0.0 && by_y > 0.0).then(|| (balance as f64 / by_x.sqrt() / by_y.sqrt()).clamp(-1.0, 1.0))
    }
}

impl Column {
    fn new(values: &[f64]) -> Self {
        let mut order: Vec<u32> = (0..values.len() as u32).collect();
        let value = |index: u32| values[index as usize];
        // Total for finite numbers but for the two zeros, which are equal numbers.
        order.sort_unstable_by(|&one, &other| (value(one) + 0.0).total_cmp(&(value(other) + 0.0)));
        let mut classes = vec![0; values.len()];
        let mut class_count = 0;
        for equal in order.chunk_by(|&one, &other| value(one) == value(other)) {
            for &index in equal {
                classes[index as usize] = class_count;
            }
            class_count += 1;
        }
        Self { values: values.to_vec(), classes, class_count: class_count as usize }
    }

    fn class(&self, index: u32) -> u32 {
        self.classes[index as usize]
    }

    fn is_constant(&self, weights: &[u32]) -> bool {
        let mut drawn = self.classes.iter().zip(weights).filter(|(_, weight)| **weight > 0);
        drawn.next().is_none_or(|(first, _)| drawn.all(|(class, _)| class == first))
    }

    /// The weight of every class, into `sums`.
    fn weights_of_classes(&self, weights: &[u32], sums: &mut Vec<f64>) {
        sums.clear();
        sums.resize(self.class_count, 0.0);
        for (&class, &weight) in self.classes.iter().zip(weights) {
            sums[class as usize] += f64::from(weight);
        }
    }

    /// The mean rank of every class, from 1, into `ranks`.
    fn mean_ranks(&self, weights: &[u32], ranks: &mut Vec<f64>) {
        self.weights_of_classes(weights, ranks);
        let mut before = 0.0;
        for rank in ranks {
            let weight = *rank;
            *rank = before + (weight + 1.0) / 2.0;
            before += weight;
        }
    }

    /// How many couples of draws are equal in this column.
    fn tied(&self, weights: &[u32], sums: &mut Vec<f64>) -> u64 {
        self.weights_of_classes(weights, sums);
        sums.iter().map(|&weight| couples(weight as u64)).sum()
    }
}

/// Spearman's rank correlation of two columns; `None` where it has no value.
pub fn spearman(x: &[f64], y: &[f64]) -> Option<f64> {
    Pairs::new(x, y)?.spearman(&vec![1; x.len()], &mut Scratch::default())
}

/// Pearson's linear correlation of two columns; `None` where it has no value.
pub fn pearson(x: &[f64], y: &[f64]) -> Option<f64> {
    Pairs::new(x, y)?.pearson(&vec![1; x.len()])
}

/// Kendall's rank correlation, tau-b, of two columns; `None` where it has no value.
pub fn kendall(x: &[f64], y: &[f64]) -> Option<f64> {
    Pairs::new(x, y)?.kendall(&vec![1; x.len()], &mut Scratch::default())
}

fn weighted_pearson(x: &[f64], y: &[f64], weights: &[u32]) -> Option<f64> {
    let drawn = || weights.iter().map(|&weight| f64::from(weight)).zip(x.iter().zip(y));
    let (mut total, mut mean_x, mut mean_y) = (0.0, 0.0, 0.0);
    for (weight, (x, y)) in drawn() {
        total += weight;
        mean_x += weight * x;
        mean_y += weight * y;
    }
    (mean_x, mean_y) = (mean_x / total, mean_y / total);
    let (mut xx, mut yy, mut xy) = (0.0, 0.0, 0.0);
    for (weight, (x, y)) in drawn() {
        let (x, y) = (x - mean_x, y - mean_y);
        xx += weight * x * x;
        yy += weight * y * y;
        xy += weight * x * y;
    }
    // The product of the sums could overflow.
    (xx > 0.0 && yy > 0.0).then(|| (xy / xx.sqrt() / yy.sqrt()).clamp(-1.0, 1.0))
}

/// n over 2.
fn couples(count: u64) -> u64 {
    count * count.saturating_sub(1) / 2
}

/// Adds to one class of a Fenwick tree (Fenwick 1994).
fn add(tree: &mut [u64], class: u32, weight: u64) {
    let mut index = class as usize + 1;
    while index < tree.len() {
        tree[index] += weight;
        index += index & index.wrapping_neg();
    }
}

/// What the classes up to this one, itself included, hold together.
fn sum_through(tree: &[u64], class: u32) -> u64 {
    let mut index = class as usize + 1;
    let mut sum = 0;
    while index > 0 {
        sum += tree[index];
        index &= index - 1;
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde::Deserialize;
    use std::{fs, path::Path};

    #[derive(Deserialize)]
    struct Case {
        name: String,
        x: Vec<f64>,
        y: Vec<f64>,
        spearman: Option<f64>,
        pearson: Option<f64>,
        kendall: Option<f64>,
    }

    /// What scipy says, made by `tests/fixtures/evaluate/correlations.py`.
    fn cases() -> Vec<Case> {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/evaluate/correlations.json");
        serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
    }

    #[track_caller]
    fn assert_same(name: &str, found: Option<f64>, expected: Option<f64>) {
        match (found, expected) {
            (Some(found), Some(expected)) => {
                assert!((found - expected).abs() <= 1e-12, "{name}: {found}, scipy {expected}");
            }
            _ => assert_eq!(found, expected, "{name}"),
        }
    }

    #[test]
    fn coefficients_are_scipys_with_and_without_ties() {
        let cases = cases();
        assert!(cases.len() >= 20);
        for Case { name, x, y, spearman: rank, pearson: linear, kendall: tau } in cases {
            assert_same(&name, spearman(&x, &y), rank);
            assert_same(&name, pearson(&x, &y), linear);
            assert_same(&name, kendall(&x, &y), tau);
        }
    }

    #[test]
    fn what_has_no_correlation_is_none() {
        for (x, y) in [
            (vec![], vec![]),
            (vec![1.0], vec![2.0]),
            (vec![1.0, 1.0, 1.0], vec![1.0, 2.0, 3.0]),
            (vec![1.0, 2.0], vec![1.0]),
            (vec![1.0, f64::NAN], vec![1.0, 2.0]),
            (vec![0.0, -0.0], vec![1.0, 2.0]),
        ] {
            assert_eq!((spearman(&x, &y), pearson(&x, &y), kendall(&x, &y)), (None, None, None), "{x:?}");
        }
        // 0.1 three times has a mean beside 0.1, and so a variance of its own.
        let constant = Pairs::new(&[0.1, 0.1, 0.1, 0.7], &[1.0, 2.0, 3.0, 4.0]).unwrap();
        assert_eq!(constant.pearson(&[1, 1, 1, 0]), None);
    }

    /// By its definition, couple by couple.
    fn plain_kendall(x: &[f64], y: &[f64]) -> Option<f64> {
        let (mut balance, mut by_x, mut by_y) = (0.0, 0.0_f64, 0.0_f64);
        let sign = |one: f64, other: f64| if one == other { 0.0 } else { (one - other).signum() };
        for i in 0..x.len() {
            for j in 0..i {
                let (dx, dy) = (sign(x[i], x[j]), sign(y[i], y[j]));
                balance += dx * dy;
                by_x += dx.abs();
                by_y += dy.abs();
            }
        }
        (by_x > 0.0 && by_y > 0.0).then(|| balance / by_x.sqrt() / by_y.sqrt())
    }

    fn near(one: Option<f64>, other: Option<f64>) -> bool {
        match (one, other) {
            (Some(one), Some(other)) => (one - other).abs() < 1e-12,
            (one, other) => one == other,
        }
    }

    proptest! {
        #[test]
        fn a_weight_is_as_good_as_that_many_copies(
            drawn in proptest::collection::vec((0_i8..6, 0_i8..6, 0_u32..4), 0..40),
        ) {
            let column = |number: fn(&(i8, i8, u32)) -> i8| -> Vec<f64> {
                drawn.iter().map(|pair| f64::from(number(pair)) * 0.1).collect()
            };
            let (x, y) = (column(|pair| pair.0), column(|pair| pair.1));
            let weights: Vec<u32> = drawn.iter().map(|pair| pair.2).collect();
            let copied = |column: &[f64]| -> Vec<f64> {
                let copies = column.iter().zip(&weights);
                copies.flat_map(|(&value, &weight)| std::iter::repeat_n(value, weight as usize)).collect()
            };
            let (all_x, all_y) = (copied(&x), copied(&y));
            let pairs = Pairs::new(&x, &y).unwrap();
            let mut scratch = Scratch::default();
            prop_assert!(near(pairs.spearman(&weights, &mut scratch), spearman(&all_x, &all_y)));
            prop_assert!(near(pairs.pearson(&weights), pearson(&all_x, &all_y)));
            prop_assert!(near(pairs.kendall(&weights, &mut scratch), kendall(&all_x, &all_y)));
            prop_assert!(near(kendall(&all_x, &all_y), plain_kendall(&all_x, &all_y)));
        }

        #[test]
        fn ranks_ignore_any_rising_function(
            x in proptest::collection::vec(-50.0_f64..50.0, 3..60),
            seed in any::<u64>(),
        ) {
            let y: Vec<f64> = x.iter().enumerate().map(|(i, x)| x + (seed.rotate_left(i as u32) % 97) as f64).collect();
            let bent: Vec<f64> = x.iter().map(|x| x.exp()).collect();
            prop_assert!(near(spearman(&bent, &y), spearman(&x, &y)));
            prop_assert!(near(kendall(&bent, &y), kendall(&x, &y)));
        }
    }
}
