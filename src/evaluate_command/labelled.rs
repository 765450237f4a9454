//! From a file of labels to photos and what people said of them.

use super::error::EvaluateCommandError;
use crate::{
    evaluate::Label,
    labels::{
        LabelFileError, LabelledObject, Opinion, Sample, SampleReader, Scale,
        csv::{CsvLabel, CsvReader, Place},
    },
    object::ObjectRef,
    score_command::inputs::{Input, Source},
};
use std::{
    collections::HashMap,
    fs::File,
    io::{self, Read},
    path::{Path, PathBuf},
};

/// A photo to score, and its label.
#[derive(Clone, Debug, PartialEq)]
pub struct Labelled {
    pub input: Input,
    pub label: Label,
}

/// A file of labels as photos.
#[derive(Debug, Default)]
pub struct LabelledPhotos {
    /// In the order in which the file first names them.
    pub photos: Vec<Labelled>,
    /// Why labels can't be used, with file and line.
    pub refused: Vec<String>,
}

/// Reads CSV or the reference's JSON, told apart by how the file begins. Lines of CSV on one photo make one
/// label, in which of each rater's lines the last one counts; samples of JSON stand each for themselves.
///
/// `images` is where paths begin: by default the folder of the file.
///
/// # Errors
/// When the file can't be read as a whole, or no label of it can be used.
pub fn read(
    file: &Path,
    images: Option<&Path>,
    scale: &Scale,
) -> Result<LabelledPhotos, EvaluateCommandError> {
    if let Some(folder) = images.filter(|folder| !folder.is_dir()) {
        return Err(EvaluateCommandError::NoImages(folder.to_owned()));
    }
    let places = Places { beside: file.parent().unwrap_or(Path::new("")), images };
    let found = match is_json(file)? {
        true => samples(file, &places, scale)?,
        false => lines(file, &places, scale)?,
    };
    if found.photos.is_empty() {
        for refused in &found.refused {
            tracing::warn!("{refused}");
        }
        let remedy = match found.refused.is_empty() {
            true => "it is empty",
            false => "see the lines above for the reasons",
        };
        return Err(EvaluateCommandError::NoLabels { file: file.to_owned(), remedy });
    }
    Ok(found)
}

/// Whether the first byte that says something begins JSON.
fn is_json(file: &Path) -> Result<bool, LabelFileError> {
    let unreadable = |source: io::Error| LabelFileError::Read { file: file.display().to_string(), source };
    for byte in io::BufReader::new(File::open(file).map_err(unreadable)?).bytes() {
        match byte.map_err(unreadable)? {
            b' ' | b'\t' | b'\r' | b'\n' => {}
            first => return Ok(matches!(first, b'[' | b'{')),
        }
    }
    Ok(false)
}

fn samples(file: &Path, places: &Places<'_>, scale: &Scale) -> Result<LabelledPhotos, EvaluateCommandError> {
    let mut found = LabelledPhotos::default();
    for sample in SampleReader::open(file)?.checked(*scale) {
        match sample {
            Ok(Sample { image, gt_scores, targets, .. }) => found.photos.push(Labelled {
                input: places.image(&image),
                label: Label { scores: gt_scores, distributions: targets },
            }),
            Err(refused @ LabelFileError::Refused { .. }) => found.refused.push(refused.to_string()),
            Err(error) => return Err(error.into()),
        }
    }
    Ok(found)
}

fn lines(file: &Path, places: &Places<'_>, scale: &Scale) -> Result<LabelledPhotos, EvaluateCommandError> {
    let mut refused = Vec::new();
    let mut photos: Vec<(Place, Vec<CsvLabel>)> = Vec::new();
    let mut known: HashMap<Place, usize> = HashMap::new();
    for line in CsvReader::open(file, *scale)? {
        match line {
            Ok(label) => {
                let next = photos.len();
                let index = *known.entry(label.place.clone()).or_insert(next);
                if index == next {
                    photos.push((label.place.clone(), Vec::new()));
                }
                photos[index].1.push(label);
            }
            Err(error @ LabelFileError::Refused { .. }) => refused.push(error.to_string()),
            Err(error) => return Err(error.into()),
        }
    }
    let mut found = LabelledPhotos { photos: Vec::with_capacity(photos.len()), refused };
    for (place, labels) in photos {
        let (first, counted) = (labels[0].line, last_of_each_rater(labels));
        match Opinion::aggregate(counted.iter().map(|label| &label.opinion), scale) {
            Some(Opinion { scores, distributions, .. }) => found
                .photos
                .push(Labelled { input: places.place(&place), label: Label { scores, distributions } }),
            None => found.refused.push(format!(
                "{}, line {first}: {} has other numbers of scores on other lines; give one for each [SCORE]",
                file.display(),
                places.place(&place).name
            )),
        }
    }
    Ok(found)
}

/// A rater's earlier lines don't count; lines without a rater are as many raters.
fn last_of_each_rater(labels: Vec<CsvLabel>) -> Vec<CsvLabel> {
    let mut counted: Vec<CsvLabel> = Vec::with_capacity(labels.len());
    for label in labels {
        let earlier = counted.iter_mut().find(|known| known.rater.is_some() && known.rater == label.rater);
        match earlier {
            // Equal times, or none, leave the order of the file to decide.
            Some(known) if known.labelled_at > label.labelled_at => {}
            Some(known) => *known = label,
            None => counted.push(label),
        }
    }
    counted
}

/// Where photos are.
struct Places<'a> {
    beside: &'a Path,
    images: Option<&'a Path>,
}

impl Places<'_> {
    fn place(&self, place: &Place) -> Input {
        match place {
            Place::Image(image) => self.image(image),
            Place::Object(object) => self.object(object),
        }
    }

    /// A path or an address.
    fn image(&self, image: &str) -> Input {
        let object = image.strip_prefix("s3://").and_then(|address| address.split_once('/'));
        match object {
            Some((bucket, key)) => Input::object(ObjectRef::new(bucket, key)),
            None => self.file(image.to_owned(), Path::new(image)),
        }
    }

    /// An object, or its copy in a folder of buckets.
    fn object(&self, LabelledObject { bucket, key, etag }: &LabelledObject) -> Input {
        if self.images.is_some() {
            let name = format!("{bucket}/{key}");
            return self.file(name.clone(), &PathBuf::from(name));
        }
        let etag = Some(etag.clone()).filter(|etag| !etag.is_empty());
        Input::object(ObjectRef { etag, ..ObjectRef::new(bucket, key) })
    }

    fn file(&self, name: String, path: &Path) -> Input {
        Input { name, source: Source::File(self.images.unwrap_or(self.beside).join(path)) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    const SCALE: Scale = Scale { min_score: 1.0, max_score: 5.0, num_tokens: 5 };

    fn read_text(text: &str, images: Option<&Path>) -> Result<LabelledPhotos, EvaluateCommandError> {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("labels");
        fs::write(&file, text).unwrap();
        read(&file, images, &SCALE)
    }

    fn names(found: &LabelledPhotos) -> Vec<&str> {
        found.photos.iter().map(|photo| photo.input.name.as_str()).collect()
    }

    #[test]
    fn lines_on_one_photo_are_one_label_and_the_last_of_a_rater_counts() {
        let found = read_text(
            "image,rater,score\na.jpg,ann,1\nb.jpg,ann,2\na.jpg,bob,4\na.jpg,ann,5\nb.jpg,,3\nb.jpg,,4\n",
            None,
        )
        .unwrap();
        assert_eq!(names(&found), ["a.jpg", "b.jpg"]);
        let scores: Vec<f64> = found.photos.iter().map(|photo| photo.label.scores[0]).collect();
        assert_eq!(scores, [4.5, 3.0]);
        assert_eq!(found.photos[0].label.distributions, [[0.0, 0.0, 0.0, 0.5, 0.5]]);
    }

    #[test]
    fn the_latest_time_of_a_rater_counts_whatever_the_order() {
        let found = read_text(
            "image,rater,score,labelled_at\na,ann,1,2026-02-01T00:00:00Z\na,ann,5,2026-01-01T00:00:00Z\n",
            None,
        );
        assert_eq!(found.unwrap().photos[0].label.scores, [1.0]);
    }

    #[test]
    fn samples_are_read_with_their_distributions() {
        let sample = |target: &str| {
            format!(
                r#"{{"image": "x/a.jpg", "gt_score": 2.5, {target} "conversations": [{{"from": "human", "value": "<|image|>"}}, {{"from": "gpt", "value": "[SCORE]"}}]}}"#
            )
        };
        let text = format!(
            "\n [{},\n{},\n{}]",
            sample(r#""target": [0, 0.5, 0.5, 0, 0],"#),
            sample(""),
            sample(r#""target": [1],"#)
        );
        let found = read_text(&text, Some(Path::new("/"))).unwrap();
        assert_eq!(names(&found), ["x/a.jpg", "x/a.jpg"]);
        assert_eq!(found.photos[0].input.source, Source::File("/x/a.jpg".into()));
        assert_eq!(found.photos[0].label.distributions.len(), 1);
        assert!(found.photos[1].label.distributions.is_empty());
        assert!(matches!(&found.refused[..], [refused] if refused.contains("line 4")), "{:?}", found.refused);
    }

    #[test]
    fn objects_are_in_s3_or_in_a_folder_of_buckets() {
        let text = "bucket,key,etag,score\nphotos,a/b.jpg,e1,3\nphotos,c.jpg,,3\n";
        let remote = read_text(text, None).unwrap();
        assert_eq!(names(&remote), ["s3://photos/a/b.jpg", "s3://photos/c.jpg"]);
        let etags = remote.photos.iter().map(|photo| match &photo.input.source {
            Source::Object(object) => object.etag.as_deref(),
            other => panic!("{other:?}"),
        });
        assert_eq!(etags.collect::<Vec<_>>(), [Some("e1"), None]);
        let local = read_text(text, Some(Path::new("/"))).unwrap();
        assert_eq!(local.photos[0].input.source, Source::File("/photos/a/b.jpg".into()));
    }

    #[test]
    fn what_holds_no_label_is_said_so() {
        for (text, expected) in [
            ("image,score\n", "it is empty"),
            ("image,score\na.jpg,9\n", "see the lines above"),
            ("image,score\na.jpg,1\na.jpg,1 2\n", "see the lines above"),
        ] {
            let error = read_text(text, None).unwrap_err();
            assert!(error.to_string().contains(expected), "{error}");
            assert_eq!(error.exit_code(), 2);
        }
        assert_eq!(read(Path::new("/no/such"), None, &SCALE).unwrap_err().exit_code(), 2);
        assert!(read_text("", Some(Path::new("/no/such"))).unwrap_err().to_string().contains("--images"));
    }
}
