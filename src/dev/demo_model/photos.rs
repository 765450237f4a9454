//! A folder of degraded photographs with the samples that `roc4mllm train` and `evaluate` read.

use super::{
    DemoModelError,
    degrade::{self, Degradation, cut_out},
};
use crate::{
    image::{ImageSettings, RgbImage, decode},
    labels::sample::{IMAGE_TOKEN, SCORE_TOKEN, Sample, Turn},
    train::random::Random,
};
use clap::Args;
use sha2::{Digest, Sha256};
use std::{
    fmt, fs,
    path::{Path, PathBuf},
};

/// Bins of the simulated raters' votes, and the scores they stand for.
const SCORES: [f64; 10] = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0, 10.0];
/// How far raters disagree about one photograph, in score points.
const RATER_DEVIATION: f64 = 0.8;
/// The long edge of what is written, in pixels.
const EDGE: u32 = 224;
/// Every photograph is stored at this quality, however it was compressed before.
const QUALITY: i32 = 92;
/// One source photograph in so many is held out.
const HELD_OUT: u64 = 4;

/// Make photographs worse in known ways, and write the scores that follow from how
#[derive(Args, Clone, Debug)]
pub struct PhotosArgs {
    /// Source photographs; no photograph of a held-out source appears in training in any form
    #[arg(long, value_name = "DIR")]
    pub photos: PathBuf,
    /// Where `train/`, `held-out/`, `train.json` and `held-out.json` are written
    #[arg(long, value_name = "DIR")]
    pub output: PathBuf,
    /// Decides every cut and every degradation, but not which sources are held out
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// Photographs to train on
    #[arg(long, default_value_t = 6000, value_name = "N")]
    pub train: usize,
    /// Photographs held out
    #[arg(long, default_value_t = 800, value_name = "N")]
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
    let (held_out, train): (Vec<_>, Vec<_>) =
        sources(&args.photos)?.into_iter().partition(|source| source.held_out);
    let written = DegradedPhotos {
        train: write_set(args, "train", args.train, &train)?,
        train_sources: train.len(),
        held_out: write_set(args, "held-out", args.held_out, &held_out)?,
        held_out_sources: held_out.len(),
    };
    Ok(written)
}

struct Source {
    name: String,
    photo: RgbImage,
    held_out: bool,
}

fn sources(folder: &Path) -> Result<Vec<Source>, DemoModelError> {
    let absent = |_| DemoModelError::NoPhotographs(folder.to_owned());
    let mut paths: Vec<PathBuf> = fs::read_dir(folder)
        .map_err(absent)?
        .filter_map(|entry| entry.ok().map(|entry| entry.path()))
        .filter(|path| path.extension().is_some_and(|extension| extension == "jpg" || extension == "png"))
        .collect();
    paths.sort();
    let sources = paths.into_iter().map(|path| {
        let failed = |reason: String| DemoModelError::Photograph { path: path.clone(), reason };
        let bytes = fs::read(&path).map_err(|error| failed(error.to_string()))?;
        let photo = decode(&bytes, &ImageSettings::default()).map_err(|error| failed(error.to_string()))?;
        let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        // By content and not by place in the folder: another photograph moves none to the other side.
        let held_out = Sha256::digest(&bytes).last().is_some_and(|last| u64::from(*last) % HELD_OUT == 0);
        Ok(Source { name, photo, held_out })
    });
    let sources = sources.collect::<Result<Vec<_>, DemoModelError>>()?;
    if sources.is_empty() { Err(DemoModelError::NoPhotographs(folder.to_owned())) } else { Ok(sources) }
}

fn write_set(
    args: &PhotosArgs,
    set: &str,
    count: usize,
    sources: &[Source],
) -> Result<usize, DemoModelError> {
    let failed = |path: &Path| {
        let path = path.to_owned();
        move |source| DemoModelError::Write { path, source }
    };
    let folder = args.output.join(set);
    fs::create_dir_all(&folder).map_err(failed(&folder))?;
    let count = if sources.is_empty() { 0 } else { count };
    let mut random = Random::new(args.seed, set);
    let mut samples = Vec::with_capacity(count);
    for (number, source) in sources.iter().cycle().take(count).enumerate() {
        let unmade = |reason: &str| DemoModelError::Photograph {
            path: source.name.clone().into(),
            reason: reason.into(),
        };
        let part = cut_out(&source.photo, EDGE, &mut random).ok_or_else(|| unmade("it has no pixels"))?;
        let degradations = Degradation::draw(&mut random);
        let photo = degrade::degrade(part, &degradations, &mut random);
        let bytes = degrade::jpeg(&photo, QUALITY).map_err(|error| unmade(&error.to_string()))?;
        let image = format!("{number:05}-{}.jpg", source.name);
        let path = folder.join(&image);
        fs::write(&path, bytes).map_err(failed(&path))?;
        samples.push(sample(format!("{set}/{image}"), &degradations));
    }
    let path = args.output.join(format!("{set}.json"));
    let json = serde_json::to_vec_pretty(&samples).map_err(|error| failed(&path)(error.into()))?;
    fs::write(&path, json).map_err(failed(&path))?;
    Ok(count)
}

fn sample(image: String, degradations: &[Degradation]) -> Sample {
    let quality = 1.0 + 9.0 * Degradation::quality(degradations);
    let target = votes(quality);
    let mean = target.iter().zip(SCORES).map(|(share, score)| share * score).sum();
    let turn = |from: &str, value: String| Turn { from: from.into(), value };
    Sample {
        image,
        gt_scores: vec![mean],
        targets: vec![target],
        conversations: vec![
            turn("human", format!("{IMAGE_TOKEN}Could you evaluate the aesthetics of this image?")),
            turn("gpt", format!("The aesthetic rate of the image is {SCORE_TOKEN}.")),
        ],
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
    use crate::labels::Scale;
    use std::collections::HashSet;

    fn folder(photos: usize) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for index in 0..photos {
            let photo = image::RgbImage::from_fn(80, 60, |x, y| {
                image::Rgb([(x * 3) as u8, (y * 4) as u8, index as u8])
            });
            photo.save(folder.path().join(format!("{index}.png"))).unwrap();
        }
        folder
    }

    fn args(photos: &Path, output: &Path, seed: u64) -> PhotosArgs {
        PhotosArgs { photos: photos.into(), output: output.into(), seed, train: 40, held_out: 20 }
    }

    fn images(output: &Path, set: &str) -> Vec<(String, Vec<u8>)> {
        let json: Vec<serde_json::Value> =
            serde_json::from_slice(&fs::read(output.join(format!("{set}.json"))).unwrap()).unwrap();
        let names = json.iter().map(|sample| sample["image"].as_str().unwrap().to_owned());
        names.map(|name| (name.clone(), fs::read(output.join(name)).unwrap())).collect()
    }

    #[test]
    fn no_source_is_on_both_sides_whatever_the_seed() {
        let photos = folder(30);
        let sources = |output: &Path, set: &str| -> HashSet<String> {
            let source = |(name, _): (String, _)| name.split('-').next_back().unwrap().to_owned();
            images(output, set).into_iter().map(source).collect()
        };
        let mut sides = Vec::new();
        for seed in [1, 2] {
            let output = tempfile::tempdir().unwrap();
            let written = write(&args(photos.path(), output.path(), seed)).unwrap();
            assert_eq!((written.train, written.held_out), (40, 20));
            assert_eq!(written.train_sources + written.held_out_sources, 30);
            let train = sources(output.path(), "train");
            let held_out = sources(output.path(), "held-out");
            assert!(train.is_disjoint(&held_out), "{train:?} {held_out:?}");
            sides.push((train, held_out, images(output.path(), "train")));
        }
        assert_eq!((&sides[0].0, &sides[0].1), (&sides[1].0, &sides[1].1));
        assert_ne!(sides[0].2, sides[1].2);
    }

    #[test]
    fn one_seed_gives_the_same_bytes_and_samples_that_can_be_trained_on() {
        let photos = folder(6);
        let written: Vec<_> = (0..2)
            .map(|_| {
                let output = tempfile::tempdir().unwrap();
                write(&args(photos.path(), output.path(), 9)).unwrap();
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
        let photos = folder(0);
        let error = write(&args(photos.path(), photos.path(), 1)).unwrap_err();
        assert!(error.to_string().starts_with(&photos.path().display().to_string()), "{error}");
    }
}
