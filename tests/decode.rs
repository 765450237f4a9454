//! Verified decoding under a checkpoint whose answers differ from photo to photo.
//!
//! The checkpoint is trained here, for a minute at most, to speak of pictures of different colours in
//! different words, at different length, and with one to three scores.

use image::{Rgb, RgbImage};
use roc4mllm::{
    image::{Fit, ImageSettings, PREPROCESS_REVISION, Preprocessor},
    inference::{
        scorer::{ScoreBatch, Scorer},
        slot::SlotPool,
    },
    model::{
        ModelSettings, TorchScorer,
        decode::Drafts,
        settings::{DecodeMode, PromptChoice},
    },
    score::{Answer, DecodeKind},
};
use serde_json::{Value, json};
use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::Command,
    sync::LazyLock,
};
use tempfile::TempDir;

const QUESTION: &str = "Please rate the aesthetics of the image.";

/// What the checkpoint learns to say of pictures that are mostly of a colour, with scores of that many
/// places. The first two begin alike.
const ANSWERS: [([f64; 3], &str, usize); 4] = [
    ([210.0, 50.0, 40.0], "The aesthetic rate of the image is [SCORE]. ", 1),
    ([50.0, 190.0, 60.0], "The aesthetic rate of the color is [SCORE] and of the light [SCORE]. ", 2),
    ([50.0, 70.0, 220.0], "Rate: [SCORE]. ", 1),
    (
        [225.0, 220.0, 215.0],
        "It is a good image. The light is [SCORE], the color [SCORE], the image [SCORE]. ",
        3,
    ),
];

const LEARNT_FROM: usize = 96;
const PHOTOS: usize = 200;

/// A photo of one colour's stripes over another's, with noise. `share` of it is of colour `main`.
fn photo(seed: u64, main: usize, other: usize, share: f64) -> RgbImage {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut random = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 11) as f64 / (1_u64 << 53) as f64
    };
    let (width, height) = (40 + (seed % 5) as u32 * 7, 40 + (seed % 3) as u32 * 11);
    let light = 0.75 + 0.4 * random();
    RgbImage::from_fn(width, height, |_, y| {
        let colour = if f64::from(y) < share * f64::from(height) { main } else { other };
        Rgb(ANSWERS[colour].0.map(|value| (value * light + 40.0 * (random() - 0.5)).clamp(0.0, 255.0) as u8))
    })
}

/// The trained checkpoint and the photos that it has not seen.
struct Trained {
    _folder: TempDir,
    checkpoint: PathBuf,
    photos: PathBuf,
    names: Vec<PathBuf>,
}

static TRAINED: LazyLock<Trained> = LazyLock::new(|| {
    let folder = tempfile::tempdir().unwrap();
    let place = |name: &str| folder.path().join(name);
    for name in ["learnt", "photos"] {
        fs::create_dir(place(name)).unwrap();
    }
    let mut samples = Vec::new();
    for index in 0..LEARNT_FROM {
        let (_, answer, scores) = ANSWERS[index % ANSWERS.len()];
        let name = format!("{index:03}.png");
        let main = index % ANSWERS.len();
        let share = 0.7 + 0.3 * (index % 7) as f64 / 6.0;
        photo(index as u64 + 1, main, (main + 1 + index / 4 % 3) % 4, share)
            .save(place("learnt").join(&name))
            .unwrap();
        let score = 2.0 + 6.0 * (index % 11) as f64 / 10.0;
        samples.push(json!({
            "image": name,
            "gt_score": (0..scores).map(|of| score + of as f64 * 0.5).collect::<Vec<_>>(),
            "conversations": [
                {"from": "human", "value": format!("<|image|>\n{QUESTION}")},
                {"from": "gpt", "value": answer},
            ],
        }));
    }
    fs::write(place("data.json"), Value::from(samples).to_string()).unwrap();
    let options = [
        "--epochs 14 --batch-size 8 --learning-rate 4e-3 --warmup-ratio 0.05 --seed 3 --threads 1",
        "--l1-weight 0.05 --ce-weight 0 --emd-weight 0",
    ];
    let output = Command::new(env!("CARGO_BIN_EXE_roc4mllm"))
        .arg("train")
        .arg("--checkpoint")
        .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/golden/ckpt_safetensors"))
        .arg("--data")
        .arg(place("data.json"))
        .arg("--images")
        .arg(place("learnt"))
        .arg("--output")
        .arg(place("checkpoint"))
        .args(options.iter().flat_map(|line| line.split(' ')))
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));

    let photos = place("photos");
    for index in 0..PHOTOS {
        // Mixtures too, so that words change somewhere between.
        let (main, other) = (index * 7 % 4, (index * 7 + 1 + index % 3) % 4);
        let share = 0.45 + 0.55 * (index % 10) as f64 / 9.0;
        photo(1000 + index as u64, main, other, share).save(photos.join(format!("{index:03}.png"))).unwrap();
    }
    let names = (0..PHOTOS).map(|index| photos.join(format!("{index:03}.png"))).collect();
    Trained { checkpoint: place("checkpoint"), photos, names, _folder: folder }
});

impl Trained {
    fn scorer(&self, decode: DecodeMode) -> TorchScorer {
        let settings = ModelSettings {
            checkpoint: self.checkpoint.to_str().unwrap().to_owned(),
            prompt: PromptChoice::Text(QUESTION.into()),
            decode,
            threads: 1,
            ..ModelSettings::default()
        };
        TorchScorer::load(&settings, PREPROCESS_REVISION).unwrap()
    }
}

/// Answers to photos in batches of the given sizes, over and over.
fn answers(scorer: &mut TorchScorer, photos: &[&PathBuf], sizes: &[usize]) -> Vec<Vec<Answer>> {
    let preprocessor = Preprocessor::open(&TRAINED.checkpoint).unwrap().with_fit(Fit::Pad);
    let pool = SlotPool::new(sizes.iter().copied().max().unwrap(), scorer.image_size());
    let mut rest = photos;
    let mut batches = Vec::new();
    for &size in sizes.iter().cycle() {
        let (batch, others) = rest.split_at(size.min(rest.len()));
        if batch.is_empty() {
            break;
        }
        let slots = batch.iter().map(|path| {
            let mut slot = pool.lease();
            preprocessor.read(&fs::read(path).unwrap(), &ImageSettings::local(), slot.values_mut()).unwrap();
            slot
        });
        let scored = scorer.score(&ScoreBatch { slots: slots.collect() }).unwrap();
        batches.push(scored.into_iter().map(|answer| answer.unwrap()).collect());
        rest = others;
    }
    batches
}

fn assert_scores_near(place: &str, one: &Answer, other: &Answer, tolerance: f64) {
    assert_eq!(one.scores.len(), other.scores.len(), "{place}");
    for (one, other) in one.scores.iter().zip(&other.scores) {
        assert!((one.score - other.score).abs() <= tolerance, "{place}: {} {}", one.score, other.score);
    }
}

/// Text with every number replaced by `#`: numbers are held to the scores' tolerance instead.
fn without_numbers(text: &str) -> String {
    let words = text.split(' ').map(|word| if word.parse::<f64>().is_ok() { "#" } else { word });
    words.collect::<Vec<_>>().join(" ")
}

/// Passes that an answer takes with these drafts, said without a model.
fn passes(drafts: &Drafts, answer: &[i64]) -> u32 {
    let (mut known, mut passes) = (0, 0);
    while known < answer.len() {
        let guess = drafts.after(&answer[..known]).unwrap_or(&[0]);
        let right = guess[..guess.len() - 1].iter().zip(&answer[known..]).take_while(|(a, b)| a == b).count();
        known += right + 1;
        passes += 1;
    }
    passes
}

fn ids(answer: &Answer) -> Vec<i64> {
    answer.tokens.iter().map(|&token| i64::from(token)).collect()
}

#[test]
fn photos_of_many_answers_are_answered_as_generation_answers_them() {
    let photos: Vec<&PathBuf> = TRAINED.names.iter().collect();
    let mut oracle = TRAINED.scorer(DecodeMode::Generate);
    let alone: Vec<Answer> = answers(&mut oracle, &photos, &[1]).into_iter().flatten().collect();
    assert!(alone.iter().all(|answer| answer.decode == DecodeKind::Generated));
    let distinct = |of: &dyn Fn(&Answer) -> String| alone.iter().map(of).collect::<BTreeSet<_>>();
    let words = distinct(&|answer| without_numbers(&answer.text));
    assert!(words.len() >= 4, "{words:?}");
    assert!(distinct(&|answer| answer.tokens.len().to_string()).len() >= 3, "{words:?}");
    assert!(distinct(&|answer| answer.scores.len().to_string()).len() >= 2, "{words:?}");

    let mut scorer = TRAINED.scorer(DecodeMode::Verify);
    let batches = answers(&mut scorer, &photos, &[5, 1, 8, 3, 2, 16]);
    // What the scorer has learnt before each batch is learnt along with it here.
    let mut drafts = Drafts::default();
    let mut rows = photos.iter().zip(&alone);
    let [mut accepted, mut rejected] = [0, 0];
    for batch in &batches {
        assert!(batch.len() <= 16);
        for (answer, (photo, oracle)) in batch.iter().zip(&mut rows) {
            let place = photo.display().to_string();
            assert_eq!(answer.tokens, oracle.tokens, "{place}");
            assert_eq!(without_numbers(&answer.text), without_numbers(&oracle.text), "{place}");
            assert_scores_near(&place, answer, oracle, 1e-5);
            assert_eq!(answer.forwards, passes(&drafts, &ids(oracle)), "{place}: {}", answer.text);
            let holds = answer.forwards == 1;
            assert_eq!(answer.decode == DecodeKind::Verified, holds, "{place}");
            if drafts.after(&[]).is_some() {
                *(if holds { &mut accepted } else { &mut rejected }) += 1;
            }
        }
        batch.iter().for_each(|answer| drafts.learn(&ids(answer)));
    }
    assert_eq!(batches.iter().map(Vec::len).sum::<usize>(), PHOTOS);
    assert!(accepted > PHOTOS / 8 && rejected > PHOTOS / 4, "{accepted} drafts held, {rejected} did not");
    assert_eq!((scorer.drafts().accepted, scorer.drafts().rejected), (accepted as u64, rejected as u64));
}

#[test]
fn a_photo_has_one_score_whatever_it_is_scored_beside() {
    let photos: Vec<&PathBuf> = TRAINED.names.iter().take(48).collect();
    let reversed: Vec<&PathBuf> = photos.iter().rev().copied().collect();
    let score = |photos: &[&PathBuf], sizes: &[usize]| -> Vec<Answer> {
        answers(&mut TRAINED.scorer(DecodeMode::Verify), photos, sizes).into_iter().flatten().collect()
    };
    let alone = score(&photos, &[1]);
    let together = score(&photos, &[16]);
    let backwards = score(&reversed, &[7, 4]);
    for (index, alone) in alone.iter().enumerate() {
        let place = photos[index].display().to_string();
        for other in [&together[index], &backwards[photos.len() - 1 - index]] {
            assert_eq!(alone.tokens, other.tokens, "{place}");
            assert_scores_near(&place, alone, other, 1e-4);
        }
    }
}

#[test]
fn json_lines_say_where_a_draft_held() {
    let run = |decode: &str| -> Vec<Value> {
        let output = Command::new(env!("CARGO_BIN_EXE_roc4mllm"))
            .args(["score", "--format", "jsonl", "--batch-size", "5", "--prompt", QUESTION])
            .args(["--decode", decode, "--checkpoint"])
            .args([&TRAINED.checkpoint, &TRAINED.photos])
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let lines = String::from_utf8(output.stdout).unwrap();
        lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    };
    let (verified, generated) = (run("verify"), run("generate"));
    assert_eq!((verified.len(), generated.len()), (PHOTOS, PHOTOS));
    let mut held = 0;
    for (ours, oracle) in verified.iter().zip(&generated) {
        let place = &ours["image"];
        for field in ["image", "status", "tokens", "model_version"] {
            assert_eq!(ours[field], oracle[field], "{place}: {field}");
        }
        let words = |line: &Value| without_numbers(line["text"].as_str().unwrap());
        assert_eq!(words(ours), words(oracle), "{place}");
        let scores = |line: &Value| -> Vec<f64> {
            line["scores"].as_array().unwrap().iter().map(|score| score.as_f64().unwrap()).collect()
        };
        for (ours, oracle) in scores(ours).iter().zip(scores(oracle)) {
            assert!((ours - oracle).abs() <= 1e-5, "{place}: {ours} {oracle}");
        }
        assert_eq!(oracle["decode"], "generated", "{place}");
        assert_eq!(oracle["forwards"], oracle["tokens"].as_array().unwrap().len(), "{place}");
        match ours["decode"].as_str() {
            Some("verified") => {
                held += 1;
                assert_eq!(ours["forwards"], 1, "{place}");
            }
            other => {
                assert_eq!(other, Some("generated"), "{place}");
                assert!(ours["forwards"].as_u64().unwrap() > 1, "{place}");
            }
        }
    }
    assert!(held > PHOTOS / 8 && held < PHOTOS, "{held} drafts held");
}
