//! What the vision model of the demo's network sees, before and after training: shares of blocks of 8 by 8 pixels
//! that are bright beyond each of some levels, and of those in which each of five bands of frequencies is strong
//! beyond each of some levels. A network this small does not find that out by itself from so few photographs, and
//! early steps take cosines apart, which have to leave out brightness: so it is laid down here, and only what
//! reads it is trained.

use super::untrained::INPUT_EDGE;
use crate::train::random::Random;
use std::collections::BTreeMap;

/// Values of a patch as it goes through the vision model.
pub const WIDTH: usize = 288;
/// Hidden values of its layers.
pub const HIDDEN: usize = 512;
/// Layers; in the first, strengths are measured, in the second they are told apart.
pub const LAYERS: usize = 2;
/// Pixels a side of a block: JPEG's.
const BLOCK: usize = 8;
/// Pixels a side of a patch, which holds two blocks along and two down.
pub const PATCH: usize = 2 * BLOCK;
const BLOCKS: usize = 4;
/// What red, green and blue count in brightness (ITU-R BT.601).
const BRIGHTNESS: [f32; 3] = [0.299, 0.587, 0.114];
/// Mean and standard deviation of pixel values of 0 to 1, as the preprocessor takes them off, for green.
const PIXELS: (f32, f32) = (0.4578, 0.27);
/// Frequencies down and across of the discrete cosine transform, from low to high.
const BANDS: [&[(usize, usize)]; 5] = [
    &[(0, 1), (1, 0)],
    &[(0, 2), (1, 1), (2, 0), (1, 2), (2, 1)],
    &[(0, 4), (4, 0), (2, 2), (1, 4), (4, 1), (3, 3), (2, 4), (4, 2), (0, 6), (6, 0)],
    &[(0, 7), (7, 0), (4, 4), (2, 6), (6, 2), (3, 5), (5, 3), (1, 7), (7, 1)],
    &[(7, 7), (5, 5), (6, 6), (4, 7), (7, 4), (3, 7), (7, 3), (5, 7), (7, 5), (6, 5)],
];
/// Levels of a block's mean brightness, of 255.
const LIGHT: [f32; 14] =
    [4.0, 10.0, 20.0, 30.0, 45.0, 60.0, 90.0, 120.0, 150.0, 180.0, 210.0, 230.0, 245.0, 252.0];
/// Levels of a band's mean magnitude, of 255.
const STRENGTH: [f32; 9] = [0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0];
/// Differences of red, green and blue that are colour.
const COLOURS: [[f32; 3]; 2] = [[1.0, -1.0, 0.0], [-0.5, -0.5, 1.0]];
/// Values at the end of a patch's that say where it is. They do not depend on what is in it, and are large: the
/// norms make all others comparable with them, and so leave bright and dark, flat and busy patches apart.
const PLACES: usize = 24;
const PLACE_SIZE: f32 = 4.0;
/// Values that take back what the others add up to, so that the norms, which take off the mean, leave weak
/// frequencies beside strong ones as they are.
const BALANCE: usize = 8;
/// The sum of the squares of an ordinary patch's filters.
const USUAL_SQUARES: f32 = 60.0;

/// A tensor's shape and values.
pub type Values = (Vec<usize>, Vec<f32>);

/// What a filter looks for, which it may share with others.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Sight {
    /// A band, in a block.
    Band(usize, usize),
    /// How bright a block is.
    Light,
    /// A step where two blocks meet.
    Edge,
    /// A step elsewhere, to hold that against.
    Within,
    Colour,
}

/// Where in a patch's values each thing lies.
struct Layout {
    filters: Vec<(Sight, Vec<f32>)>,
    balance: Vec<usize>,
    /// The mean magnitude of filters that look for one thing.
    strengths: BTreeMap<Sight, usize>,
    /// The share of blocks beyond each level.
    light: Vec<usize>,
    bands: Vec<Vec<usize>>,
}

impl Layout {
    fn new() -> Self {
        let filters = filters();
        let mut free = filters.len()..WIDTH - PLACES;
        let mut place = || free.next().unwrap_or_default();
        let balance = (0..BALANCE).map(|_| place()).collect();
        let of_bands =
            (0..BANDS.len()).flat_map(|band| (0..BLOCKS).map(move |block| Sight::Band(band, block)));
        let strengths = of_bands.chain([Sight::Edge, Sight::Within]).map(|sight| (sight, place())).collect();
        let light = LIGHT.map(|_| place()).into();
        let bands = BANDS.iter().map(|_| STRENGTH.map(|_| place()).into()).collect();
        Self { filters, balance, strengths, light, bands }
    }
}

/// Makes the vision model among `tensors` see. Nothing of it is left to chance but where patches are.
pub fn lay_down(tensors: &mut BTreeMap<String, Values>, random: &mut Random) {
    let layout = Layout::new();
    embed(tensors, &layout, random);
    for layer in 0..LAYERS {
        let name = format!("model.vision_model.encoder.layers.{layer}.self_attn.dense.weight");
        // What the abstractor attends to is each patch by itself.
        fill(tensors, &name, |_| 0.0);
    }
    // What the norms make of a filter's value, more or less.
    let scale = (WIDTH as f32 / (PLACES as f32 * PLACE_SIZE.powi(2) + USUAL_SQUARES)).sqrt();
    if let Some(mut layer) = Perceptron::of(tensors, 0, &layout.balance) {
        const STEEPNESS: f32 = 100.0;
        for (filter, (sight, _)) in layout.filters.iter().enumerate() {
            let Some(&strength) = layout.strengths.get(sight) else { continue };
            let alike = layout.filters.iter().filter(|(other, _)| other == sight).count() as f32;
            for side in [STEEPNESS, -STEEPNESS] {
                layer.unit(filter, side, 0.0, (strength, 1.0 / (STEEPNESS * alike)));
            }
        }
        for (level, share) in LIGHT.iter().zip(&layout.light) {
            let level = scale * (level / 255.0 - PIXELS.0) / PIXELS.1;
            let lights = layout.filters.iter().enumerate().filter(|(_, (sight, _))| *sight == Sight::Light);
            for (filter, _) in lights {
                layer.step(filter, level, scale / 16.0, *share);
            }
        }
    }
    if let Some(mut layer) = Perceptron::of(tensors, 1, &layout.balance) {
        for (band, shares) in layout.bands.iter().enumerate() {
            for (level, share) in STRENGTH.iter().zip(shares) {
                let level = scale * level / 255.0 / PIXELS.1;
                let blocks = (0..BLOCKS).filter_map(|block| layout.strengths.get(&Sight::Band(band, block)));
                for &strength in blocks {
                    layer.step(strength, level, level / 2.0, *share);
                }
            }
        }
    }
    let weight = |place: usize| match place {
        _ if layout.light.contains(&place) || layout.bands.iter().flatten().any(|share| *share == place) => {
            3.0
        }
        _ if layout.strengths.values().any(|strength| *strength == place) => 0.5,
        _ => 0.25,
    };
    fill(tensors, "model.vision_model.post_layernorm.weight", weight);
}

fn embed(tensors: &mut BTreeMap<String, Values>, layout: &Layout, random: &mut Random) {
    let size = 3 * PATCH * PATCH;
    let mut embedding = vec![0.0; WIDTH * size];
    for ((_, filter), row) in layout.filters.iter().zip(embedding.chunks_mut(size)) {
        row.copy_from_slice(filter);
    }
    for &balance in &layout.balance {
        for (place, value) in embedding[balance * size..(balance + 1) * size].iter_mut().enumerate() {
            let sum: f32 = layout.filters.iter().map(|(_, filter)| filter[place]).sum();
            *value = -sum / BALANCE as f32;
        }
    }
    fill(tensors, "model.vision_model.embeddings.patch_embed.weight", |index| embedding[index]);
    fill(tensors, "model.vision_model.embeddings.cls_token", |_| 0.0);
    let patches = (INPUT_EDGE as usize / PATCH).pow(2);
    let places: Vec<f32> = (0..=patches)
        .flat_map(|_| {
            let values: Vec<f32> = (0..PLACES).map(|_| random.symmetric(1.0)).collect();
            let mean = values.iter().sum::<f32>() / PLACES as f32;
            let square = values.iter().map(|value| (value - mean).powi(2)).sum::<f32>() / PLACES as f32;
            let size = PLACE_SIZE / square.sqrt().max(f32::MIN_POSITIVE);
            let values = values.into_iter().map(move |value| size * (value - mean));
            std::iter::repeat_n(0.0, WIDTH - PLACES).chain(values.collect::<Vec<_>>())
        })
        .collect();
    fill(tensors, "model.vision_model.embeddings.position_embedding", |index| places[index]);
}

fn fill(tensors: &mut BTreeMap<String, Values>, name: &str, value: impl Fn(usize) -> f32) {
    if let Some((_, values)) = tensors.get_mut(name) {
        for (index, place) in values.iter_mut().enumerate() {
            *place = value(index);
        }
    }
}

/// Each filter `[3, patch, patch]` and what it looks for.
fn filters() -> Vec<(Sight, Vec<f32>)> {
    let mut filters = Vec::new();
    for block in 0..BLOCKS {
        let within = |y: usize, x: usize| (y / BLOCK, x / BLOCK) == (block / 2, block % 2);
        for (band, frequencies) in BANDS.iter().enumerate() {
            for &(down, across) in *frequencies {
                let value = |y: usize, x: usize| cosine(down, y % BLOCK) * cosine(across, x % BLOCK);
                let seen = filter(BRIGHTNESS, |y, x| if within(y, x) { value(y, x) } else { 0.0 });
                filters.push((Sight::Band(band, block), seen));
            }
        }
        let share = 1.0 / (BLOCK * BLOCK) as f32;
        filters.push((Sight::Light, filter(BRIGHTNESS, |y, x| if within(y, x) { share } else { 0.0 })));
    }
    for before in [BLOCK / 2 - 1, BLOCK - 1, BLOCK + BLOCK / 2 - 1] {
        let sight = if before == BLOCK - 1 { Sight::Edge } else { Sight::Within };
        let step = |along: usize, across: usize, half: usize| match across {
            _ if along / BLOCK != half => 0.0,
            _ if across == before => 1.0 / BLOCK as f32,
            _ if across == before + 1 => -1.0 / BLOCK as f32,
            _ => 0.0,
        };
        for half in 0..2 {
            filters.push((sight, filter(BRIGHTNESS, |y, x| step(y, x, half))));
            filters.push((sight, filter(BRIGHTNESS, |y, x| step(x, y, half))));
        }
    }
    let share = 1.0 / (PATCH * PATCH) as f32;
    filters.extend(COLOURS.map(|colour| (Sight::Colour, filter(colour, |_, _| share))));
    filters
}

fn filter(colour: [f32; 3], value: impl Fn(usize, usize) -> f32) -> Vec<f32> {
    let value = &value;
    let places = || (0..PATCH).flat_map(|y| (0..PATCH).map(move |x| (y, x)));
    colour.iter().flat_map(|share| places().map(move |(y, x)| share * value(y, x))).collect()
}

/// A basis function of the discrete cosine transform, of length 1.
fn cosine(frequency: usize, place: usize) -> f32 {
    let angle = std::f32::consts::PI * frequency as f32 * (place as f32 + 0.5) / BLOCK as f32;
    angle.cos() * (if frequency == 0 { 1.0 } else { 2.0 } / BLOCK as f32).sqrt()
}

/// The hidden values of a layer, taken one after another; those that are not count nothing.
struct Perceptron<'a> {
    /// `[HIDDEN, WIDTH]`, `[HIDDEN]` and `[WIDTH, HIDDEN]`.
    into: &'a mut [f32],
    bias: &'a mut [f32],
    out_of: &'a mut [f32],
    balance: &'a [usize],
    taken: usize,
}

impl<'a> Perceptron<'a> {
    fn of(tensors: &'a mut BTreeMap<String, Values>, layer: usize, balance: &'a [usize]) -> Option<Self> {
        let prefix = format!("model.vision_model.encoder.layers.{layer}.mlp.");
        let (mut into, mut bias, mut out_of) = (None, None, None);
        for (name, (_, values)) in tensors.iter_mut() {
            match name.strip_prefix(&prefix) {
                Some("fc1.weight") => into = Some(values),
                Some("fc1.bias") => bias = Some(values),
                Some("fc2.weight") => out_of = Some(values),
                _ => {}
            }
        }
        let out_of = out_of?;
        out_of.fill(0.0);
        Some(Self { into: into?, bias: bias?, out_of, balance, taken: 0 })
    }

    /// Takes a hidden value: `steepness` times a value of the patch plus `bias`, bent at 0, counts `weight` in
    /// another.
    fn unit(&mut self, from: usize, steepness: f32, bias: f32, (to, weight): (usize, f32)) {
        let unit = self.taken;
        self.taken += 1;
        let row = &mut self.into[unit * WIDTH..(unit + 1) * WIDTH];
        row.fill(0.0);
        row[from] = steepness;
        self.bias[unit] = bias;
        self.out_of[to * HIDDEN + unit] = weight;
        for balance in self.balance {
            self.out_of[balance * HIDDEN + unit] = -weight / BALANCE as f32;
        }
    }

    /// Counts a block in `to` where a value of the patch is above `level`, and by parts within `width` about it.
    fn step(&mut self, from: usize, level: f32, width: f32, to: usize) {
        let share = 1.0 / BLOCKS as f32;
        for (side, weight) in [(0.5, share), (-0.5, -share)] {
            self.unit(from, 1.0 / width, side - level / width, (to, weight));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filters_of_bands_see_nothing_in_plain_patches_and_are_of_one_length() {
        for (sight, filter) in filters() {
            let total: f32 = filter.iter().sum();
            let expected = if sight == Sight::Light { 1.0 } else { 0.0 };
            assert!((total - expected).abs() < 1e-4, "{sight:?}: {total}");
            if let Sight::Band(..) = sight {
                let square: f32 = filter.iter().map(|value| value * value).sum();
                let expected: f32 = BRIGHTNESS.iter().map(|share| share * share).sum();
                assert!((square - expected).abs() < 1e-4, "{sight:?}: {square}");
            }
        }
    }

    #[test]
    fn everything_seen_has_a_place_of_its_own_and_sums_to_nothing() {
        let layout = Layout::new();
        let mut places: Vec<usize> = (0..layout.filters.len()).collect();
        places.extend(&layout.balance);
        places.extend(layout.strengths.values());
        places.extend(&layout.light);
        places.extend(layout.bands.iter().flatten());
        let count = places.len();
        places.sort_unstable();
        places.dedup();
        assert_eq!(places.len(), count);
        assert!(places.last().is_some_and(|last| *last < WIDTH - PLACES));

        let mut tensors: BTreeMap<String, Values> = BTreeMap::new();
        for layer in 0..LAYERS {
            let name = |tensor: &str| format!("model.vision_model.encoder.layers.{layer}.mlp.{tensor}");
            tensors.insert(name("fc1.weight"), (vec![HIDDEN, WIDTH], vec![0.5; HIDDEN * WIDTH]));
            tensors.insert(name("fc1.bias"), (vec![HIDDEN], vec![0.0; HIDDEN]));
            tensors.insert(name("fc2.weight"), (vec![WIDTH, HIDDEN], vec![0.5; HIDDEN * WIDTH]));
        }
        lay_down(&mut tensors, &mut Random::new(1, "test"));
        for layer in 0..LAYERS {
            let (_, out_of) = &tensors[&format!("model.vision_model.encoder.layers.{layer}.mlp.fc2.weight")];
            let written =
                |place: &usize| out_of[place * HIDDEN..(place + 1) * HIDDEN].iter().any(|v| *v != 0.0);
            let shares: Vec<usize> = match layer {
                0 => layout.strengths.values().chain(&layout.light).copied().collect(),
                _ => layout.bands.iter().flatten().copied().collect(),
            };
            assert!(shares.iter().all(written), "{layer}");
            for unit in 0..HIDDEN {
                let total: f32 = out_of.iter().skip(unit).step_by(HIDDEN).sum();
                assert!(total.abs() < 1e-6, "{layer}, {unit}: {total}");
            }
        }
    }
}
