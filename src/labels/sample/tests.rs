use super::*;
use proptest::prelude::*;

const SCALE: Scale = Scale { min_score: 1.0, max_score: 10.0, num_tokens: 10 };

fn read(text: &str) -> Vec<Result<Sample, String>> {
    SampleReader::new("a.json", text.as_bytes())
        .checked(SCALE)
        .map(|sample| sample.map_err(|error| error.to_string()))
        .collect()
}

fn only_error(text: &str) -> String {
    match read(text).as_slice() {
        [Err(error)] => error.clone(),
        other => panic!("{text}: {other:?}"),
    }
}

fn turn(from: &str, value: &str) -> Turn {
    Turn { from: from.into(), value: value.into() }
}

fn sample(scores: &[f64]) -> Sample {
    let answer = scores.iter().map(|_| "Its rate is [SCORE].").collect::<String>();
    Sample {
        image: "a.jpg".into(),
        gt_scores: scores.to_vec(),
        conversations: vec![turn("human", "<|image|>Rate it."), turn("gpt", &answer)],
        ..Sample::default()
    }
}

fn json(sample: &Sample) -> Value {
    serde_json::to_value(sample).unwrap()
}

#[test]
fn the_references_own_samples_are_read_and_written_as_they_are() {
    let file = include_bytes!("../../../tests/fixtures/golden/train_data.json");
    let samples: Vec<Sample> = SampleReader::new("train_data.json", &file[..])
        .checked(SCALE)
        .map(|sample| sample.unwrap())
        .collect();
    assert_eq!(samples.iter().map(|sample| sample.line).collect::<Vec<_>>(), [2, 28, 54, 80]);
    assert_eq!(samples[0].gt_scores, [3.463414634146341]);
    assert_eq!(samples[3].conversations[1].from, "gpt");
    let mut writer = SampleWriter::new(Vec::new());
    samples.iter().for_each(|sample| writer.write(sample).unwrap());
    let written: Value = serde_json::from_slice(&writer.finish().unwrap()).unwrap();
    assert_eq!(written, serde_json::from_slice::<Value>(file).unwrap());
}

#[test]
fn what_is_wrong_is_named_with_its_line_and_its_neighbours_are_read() {
    let good = json(&sample(&[5.0]));
    let mut wrong = json(&sample(&[5.0]));
    wrong["gt_score"] = 11.0.into();
    let text = format!("[\n{good},\n\n{wrong},\n{{\"image\":\n\"a\" \"b\"}},\n{good}]");
    let results = read(&text);
    assert_eq!(results.len(), 4);
    assert_eq!(results[0].as_ref().unwrap().line, 2);
    let error = results[1].as_ref().unwrap_err();
    assert_eq!(
        error,
        "a.json, line 4: score 11 is outside 1 to 10; correct it, or the range that scores have"
    );
    assert!(results[2].as_ref().unwrap_err().starts_with("a.json, line 6: no valid JSON: "), "{results:?}");
    assert_eq!(results[3].as_ref().unwrap().line, 7);
}

#[test]
fn nonsense_is_refused_by_its_kind() {
    let even = vec![0.1; 10];
    let mut negative = even.clone();
    (negative[0], negative[1]) = (-0.1, 0.3);
    for (field, value, expected) in [
        ("gt_score", Value::from(0.5), "score 0.5 is outside 1 to 10"),
        ("gt_score", "5".into(), "gt_score: expected a number, found text"),
        ("gt_score", Value::Null, "0 in gt_score, but 1 [SCORE]"),
        ("gt_score", vec![5.0, 6.0].into(), "2 in gt_score, but 1 [SCORE]"),
        ("target", vec![0.2; 5].into(), "a distribution has 5 bins, but a score has 10"),
        ("target", vec![0.25; 10].into(), "sums to 2.5, not to 1 within 0.001"),
        ("target", negative.into(), "bin 0 of a distribution is -0.1"),
        ("target", vec![even.clone(), even].into(), "2 distributions in target, but 1 in gt_score"),
        ("target", 5.into(), "target: expected a list of numbers, found a number"),
        ("image", Value::Null, "image is missing"),
        ("image", vec![1].into(), "image: expected a path, found a list"),
        ("conversations", Value::Null, "conversations is missing"),
        ("conversations", vec![5].into(), "expected turns of the form"),
    ] {
        let mut wrong = json(&sample(&[5.0]));
        wrong[field] = value;
        let error = only_error(&format!("[{wrong}]"));
        assert!(error.contains(expected) && error.contains("; "), "{field}: {error}");
    }
    assert!(only_error("[{\"image\": NaN}]").contains("without NaN"));
    assert!(only_error("[5]").contains("no valid JSON"));
}

#[test]
fn turns_are_by_turns_and_the_image_is_shown() {
    let checked = |turns: &[(&str, &str)]| {
        let conversations = turns.iter().map(|(from, value)| turn(from, value)).collect();
        Sample { conversations, ..sample(&[5.0]) }.check(&SCALE)
    };
    let (question, answer) = (("human", "<|image|>Rate it."), ("gpt", "It is [SCORE]."));
    assert_eq!(checked(&[question, answer]), Ok(()));
    assert_eq!(checked(&[("gpt", "[SCORE] is not read here"), question, answer]), Ok(()));
    assert_eq!(checked(&[question, ("gpt", "Well."), ("human", "So?"), answer]), Ok(()));
    assert_eq!(checked(&[question]), Err(Refusal::NoAnswer));
    assert_eq!(checked(&[]), Err(Refusal::NoAnswer));
    assert_eq!(checked(&[("human", "Rate it."), answer]), Err(Refusal::NoImage));
    assert_eq!(checked(&[question, question]), Err(Refusal::Role { turn: 2, from: "human".into() }));
    assert_eq!(
        checked(&[("user", "<|image|>"), answer]),
        Err(Refusal::Role { turn: 1, from: "user".into() })
    );
}

#[test]
fn a_score_per_token_takes_a_distribution_per_token() {
    let mut two = sample(&[2.0, 9.5]);
    assert_eq!(two.check(&SCALE), Ok(()));
    two.targets = vec![vec![0.1; 10]];
    assert_eq!(two.check(&SCALE), Err(Refusal::TargetCount { targets: 1, scores: 2 }));
    two.targets.push(vec![0.1; 10]);
    assert_eq!(two.check(&SCALE), Ok(()));
}

#[test]
fn reading_holds_one_sample_at_a_time() {
    let one = json(&sample(&[5.0])).to_string();
    let repeated = RepeatedRead { text: format!("[{one},\n").into_bytes(), rest: one.into_bytes(), at: 0 };
    let reader = SampleReader::new("endless.json", BufReader::new(repeated)).checked(SCALE);
    let read = reader.take(20_000).map(|sample| sample.unwrap().line).last();
    assert_eq!(read, Some(20_000));
}

/// `text`, then `rest` with a comma and a line break after it for ever.
struct RepeatedRead {
    text: Vec<u8>,
    rest: Vec<u8>,
    at: usize,
}

impl io::Read for RepeatedRead {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.at == self.text.len() {
            self.text = [&self.rest[..], b",\n"].concat();
            self.at = 0;
        }
        let count = buffer.len().min(self.text.len() - self.at);
        buffer[..count].copy_from_slice(&self.text[self.at..self.at + count]);
        self.at += count;
        Ok(count)
    }
}

fn samples() -> impl Strategy<Value = Vec<Sample>> {
    let one = (
        "[a-z/\"\\\\é ]{1,12}",
        proptest::collection::vec((1.0_f64..=10.0, proptest::collection::vec(0.01_f64..1.0, 10)), 1..4),
        any::<bool>(),
        "[a-z\\[\\]{}\n\"]{0,20}",
    );
    let one = one.prop_map(|(image, scores, with_targets, remark)| {
        let target = |weights: &Vec<f64>| {
            let total: f64 = weights.iter().sum();
            weights.iter().map(|weight| weight / total).collect()
        };
        let mut made = sample(&scores.iter().map(|(score, _)| *score).collect::<Vec<_>>());
        made.image = image;
        made.conversations[0].value.push_str(&remark);
        made.extra.insert("id".into(), remark.into());
        if with_targets {
            made.targets = scores.iter().map(|(_, weights)| target(weights)).collect();
        }
        made
    });
    proptest::collection::vec(one, 0..6)
}

proptest! {
    #[test]
    fn what_is_written_is_what_is_read(samples in samples()) {
        let mut writer = SampleWriter::new(Vec::new());
        for sample in &samples {
            writer.write(sample).unwrap();
        }
        let text = writer.finish().unwrap();
        let read = SampleReader::new("a.json", &text[..]).checked(SCALE);
        let read: Vec<Sample> = read.map(|sample| sample.unwrap()).collect();
        prop_assert_eq!(read.iter().map(|sample| sample.line).collect::<Vec<_>>(), (2..2 + read.len()).collect::<Vec<_>>());
        let unnumbered: Vec<Sample> = read.into_iter().map(|sample| Sample { line: 0, ..sample }).collect();
        prop_assert_eq!(unnumbered, samples);
    }
}
