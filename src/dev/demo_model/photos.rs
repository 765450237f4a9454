//! A folder of degraded photographs with the samples that `roc4mllm train` and `evaluate` read.

use super::{
    DemoModelError,
    degrade::{self, Degradation, cut_out},
    sources::{Side, Source, read_sources},
    untrained::INPUT_EDGE,
};
use crate::{
    labels::{LabelsSettings, Sample},
    train::random::Random,
};
use clap::Args;
use std::{
    fmt, fs,
    panic::resume_unwind,
    path::{Path, PathBuf},
    thread,
};

/// Bins of the simulated raters' votes, and the scores they stand for.
const SCORES: [f64; 10] = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0, 10.0];
/// How far raters disagree about one photograph, in score points.
const RATER_DEVIATION: f64 = 0.8;
/// The long edge of what is written, in pixels: that of the network's input, so that nothing blurs what
/// compression and noise leave behind.
const EDGE: u32 = INPUT_EDGE;
/// Every photograph is stored at this quality, however it was compressed before.
const QUALITY: i32 = 92;

/// Make photographs worse in known ways, and write the scores that follow from how
#[derive(Args, Clone, Debug)]
pub struct PhotosArgs {
    /// Folder that `demo-model sources` has written
    #[arg(long, value_name = "DIR")]
    pub sources: PathBuf,
    /// Where `train/`, `held-out/`, `train.json` and `held-out.json` are written
    #[arg(long, value_name = "DIR")]
    pub output: PathBuf,
    /// Decides every cut and every degradation, but not which sources are held out
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// Photographs to train on
    #[arg(long, default_value_t = 24_000, value_name = "N")]
    pub train: usize,
    /// Photographs held out
    #[arg(long, default_value_t = 1_000, value_name = "N")]
    pub held_out: usize,
}

/// What was written.
#[derive(Debug, PartialEq, Eq)]
pub struct DegradedPhotos {
    pub train: usize,
    pub train_sources: usize,
    pub held_out: usize,
    pub held_out_sources: usize,
}

impl fmt::Display for DegradedPhotos {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { train, train_sources, held_out, held_out_sources } = self;
        writeln!(formatter, "{train} photographs to train on, made of {train_sources}")?;
        writeln!(formatter, "{held_out} photographs held out, made of {held_out_sources} others")
    }
}

/// Writes both sets, one photograph after another from each source in turn.
///
/// # Errors
/// [`DemoModelError`] for a source that can't be decoded or a folder that can't be written.
pub fn write(args: &PhotosArgs) -> Result<DegradedPhotos, DemoModelError> {
    let write = |side: Side, count: usize| -> Result<(usize, usize), DemoModelError> {
        let sources = match count {
            0 => Vec::new(),
            _ => read_sources(&side.folder(&args.sources))?,
        };
        Ok((write_set(args, side, count, &sources)?, sources.len()))
    };
    let (train, train_sources) = write(Side::Train, args.train)?;
    let (held_out, held_out_sources) = write(Side::HeldOut, args.held_out)?;
    Ok(DegradedPhotos { train, train_sources, held_out, held_out_sources })
}

fn write_set(
    args: &PhotosArgs,
    side: Side,
    count: usize,
    sources: &[Source],
) -> Result<usize, DemoModelError> {
    let failed = |path: &Path| {
        let path = path.to_owned();
        move |source| DemoModelError::Write { path, source }
    };
    let folder = side.folder(&args.output);
    fs::create_dir_all(&folder).map_err(failed(&folder))?;
    let jobs: Vec<(usize, &Source)> = sources.iter().cycle().take(count).enumerate().collect();
    let threads = thread::available_parallelism().map_or(1, usize::from);
    let share = jobs.len().div_ceil(threads).max(1);
    // Each photograph has chance of its own, so that the number of threads changes none.
    let samples = thread::scope(|scope| {
        let made: Vec<_> = jobs
            .chunks(share)
            .map(|jobs| {
                let jobs = jobs.iter().map(|(number, source)| write_one(args, side, *number, source));
                scope.spawn(move || jobs.collect::<Result<Vec<_>, _>>())
            })
            .collect();
        made.into_iter()
            .map(|thread| thread.join().unwrap_or_else(|panic| resume_unwind(panic)))
            .collect::<Result<Vec<_>, _>>()
    })?
    .concat();
    let path = args.output.join(format!("{}.json", side.name()));
    let json = serde_json::to_vec_pretty(&samples).map_err(|error| failed(&path)(error.into()))?;
    fs::write(&path, json).map_err(failed(&path))?;
    Ok(samples.len())
}

/// A part of `source`, made worse, in a file; its sample.
fn write_one(
    args: &PhotosArgs,
    side: Side,
    number: usize,
    source: &Source,
) -> Result<Sample, DemoModelError> {
    let unmade = |reason: String| DemoModelError::Photograph { path: source.name.clone().into(), reason };
    let mut random = Random::new(args.seed, &format!("{}/{number}", side.name()));
    let part = cut_out(&source.photo, EDGE, &mut random);
    let degradations = Degradation::draw(&mut random);
    let photo = degrade::degrade(part, &degradations, &mut random);
    let bytes = degrade::jpeg(&photo, QUALITY).map_err(|error| unmade(error.to_string()))?;
    let image = format!("{}/{number:05}-{}.jpg", side.name(), source.name);
    let path = args.output.join(&image);
    fs::write(&path, bytes).map_err(|source| DemoModelError::Write { path, source })?;
    Ok(sample(image, &degradations))
}

fn sample(image: String, degradations: &[Degradation]) -> Sample {
    let quality = 1.0 + 9.0 * Degradation::quality(degradations);
    let target = votes(quality);
    let mean = target.iter().zip(SCORES).map(|(share, score)| share * score).sum();
    Sample {
        image,
        gt_scores: vec![mean],
        targets: vec![target],
        // As labels without a conversation have it, and as scoring asks.
        conversations: LabelsSettings::default().conversation(),
        ..Sample::default()
    }
}

/// What many raters who disagree about `quality` would vote: a normal distribution over the bins.
fn votes(quality: f64) -> Vec<f64> {
    let density = |score: f64| (-0.5 * ((score - quality) / RATER_DEVIATION).powi(2)).exp();
    let total: f64 = SCORES.iter().map(|score| density(*score)).sum();
    SCORES.iter().map(|score| density(*score) / total).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        dev::demo_model::sources::{DividedSources, SourcesArgs, divide},
        labels::Scale,
    };
    use std::collections::HashSet;

    /// Sources on both sides.
    fn sources(photos: usize) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for index in 0..photos {
            let photo = image::RgbImage::from_fn(80, 60, |x, y| {
                image::Rgb([(x * 3) as u8, (y * 4) as u8, index as u8])
            });
            photo.save(folder.path().join(format!("{index}.png"))).unwrap();
        }
        let divided = tempfile::tempdir().unwrap();
        let args = SourcesArgs { photos: folder.path().into(), output: divided.path().into() };
        let DividedSources { train, held_out } = divide(&args).unwrap();
        assert_eq!(train + held_out, photos);
        divided
    }

    fn args(sources: &Path, output: &Path, seed: u64) -> PhotosArgs {
        PhotosArgs { sources: sources.into(), output: output.into(), seed, train: 40, held_out: 20 }
    }

    fn images(output: &Path, set: &str) -> Vec<(String, Vec<u8>)> {
        let json: Vec<serde_json::Value> =
            serde_json::from_slice(&fs::read(output.join(format!("{set}.json"))).unwrap()).unwrap();
        let names = json.iter().map(|sample| sample["image"].as_str().unwrap().to_owned());
        names.map(|name| (name.clone(), fs::read(output.join(name)).unwrap())).collect()
    }

    #[test]
    fn no_source_is_on_both_sides_whatever_the_seed() {
        let sources = sources(30);
        let names = |output: &Path, set: &str| -> HashSet<String> {
            let name = |(name, _): (String, _)| name.split('-').next_back().unwrap().to_owned();
            images(output, set).into_iter().map(name).collect()
        };
        let mut sides = Vec::new();
        for seed in [1, 2] {
            let output = tempfile::tempdir().unwrap();
            let written = write(&args(sources.path(), output.path(), seed)).unwrap();
            assert_eq!((written.train, written.held_out), (40, 20));
            assert_eq!(written.train_sources + written.held_out_sources, 30);
            let train = names(output.path(), "train");
            let held_out = names(output.path(), "held-out");
            assert!(train.is_disjoint(&held_out), "{train:?} {held_out:?}");
            sides.push((train, held_out, images(output.path(), "train")));
        }
        assert_eq!((&sides[0].0, &sides[0].1), (&sides[1].0, &sides[1].1));
        assert_ne!(sides[0].2, sides[1].2);
    }

    #[test]
    fn one_seed_gives_the_same_bytes_and_samples_that_can_be_trained_on() {
        let sources = sources(12);
        let written: Vec<_> = (0..2)
            .map(|_| {
                let output = tempfile::tempdir().unwrap();
                write(&args(sources.path(), output.path(), 9)).unwrap();
                images(output.path(), "train")
            })
            .collect();
        assert_eq!(written[0], written[1]);
        let scale = Scale { min_score: 1.0, max_score: 10.0, num_tokens: 10 };
        for degradations in [vec![], vec![Degradation::Blur(1.0), Degradation::Noise(1.0)]] {
            sample("a.jpg".into(), &degradations).check(&scale).unwrap();
        }
    }

    #[test]
    fn an_empty_folder_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let error = write(&args(folder.path(), folder.path(), 1)).unwrap_err();
        assert!(error.to_string().starts_with(&folder.path().display().to_string()), "{error}");
    }
}
