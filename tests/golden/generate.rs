//! Whole answers against `generate_*.json`: ids, texts, scores, alone and in a batch, for every prompt.

use crate::{
    network::{Tolerance, embed, logits, network, pixels, step},
    prompts, support,
};
use roc4mllm::{
    fault::{ErrorCode, ItemError},
    inference::{
        scorer::{ScoreBatch, Scorer},
        slot::SlotPool,
    },
    model::{
        checkpoint::Checkpoint,
        config::ModelConfig,
        decode::Generated,
        device::Dtype,
        family::Family,
        mplug_owl2::MplugOwl2,
        score_head::{SCORE_TOKEN, ScoreHead, rounded},
        scorer::TorchScorer,
        settings::{ModelSettings, PromptChoice},
    },
    score::{Answer, DecodeKind},
};
use serde::{Deserialize, de::DeserializeOwned};
use std::{collections::BTreeMap, fs, path::Path};
use tch::{Kind, Tensor};

#[derive(Deserialize)]
struct Golden {
    dtype: String,
    precision: u8,
    threads: usize,
    #[serde(default)]
    precision_variants: BTreeMap<u8, Variant>,
    no_score_token: Option<NoScoreToken>,
    /// Under a prompt's name the answers to one picture a call, under `batch_` and that name those to
    /// all pictures in one call.
    #[serde(flatten)]
    answers: BTreeMap<String, serde_json::Value>,
}

/// What is known of one prompt.
struct Prompt {
    name: String,
    choice: PromptChoice,
    singles: BTreeMap<String, Single>,
    batch: Batch,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Single {
    text: String,
    score: f64,
    generated_ids: Vec<i64>,
    scores: Vec<GoldenScore>,
    min_top2_margin: f64,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Batch {
    images: Vec<String>,
    text: Vec<String>,
    score: Vec<f64>,
    steps: usize,
    pad_token_id_used: i64,
    rows: Vec<Row>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Row {
    generated_ids: Vec<i64>,
    scores: Vec<GoldenScore>,
    min_top2_margin: f64,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct GoldenScore {
    step: usize,
    score: f64,
    rounded: f64,
    img_logits: Vec<f64>,
    probs: Vec<f64>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Variant {
    text: String,
    score: f64,
    repr: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct NoScoreToken {
    note: String,
    score_id: i64,
    text: Vec<String>,
    score: Vec<f64>,
}

/// A file, and how closely it is matched.
struct Suite {
    file: &'static str,
    dtype: Dtype,
    kind: Kind,
    /// Of scores.
    score: f64,
    /// Of probabilities.
    probability: f64,
    logit: Tolerance,
    /// Relative error of the golden probabilities themselves, whose softmax ran in the model's type.
    own_softmax: f64,
    golden: Golden,
    prompts: Vec<Prompt>,
    config: ModelConfig,
    pictures: BTreeMap<String, Tensor>,
}

/// The answers by prompt; every field of the file must belong to one.
fn by_prompt(file: &str, golden: &mut Golden) -> Vec<Prompt> {
    fn take<T: DeserializeOwned>(file: &str, golden: &mut Golden, field: &str) -> T {
        let value = golden.answers.remove(field).unwrap_or_else(|| panic!("{file}: no {field}"));
        serde_json::from_value(value).unwrap_or_else(|error| panic!("{file}: {field}: {error}"))
    }
    let names = golden.answers.keys().filter_map(|field| field.strip_prefix("batch_"));
    let names: Vec<String> = names.map(str::to_owned).collect();
    assert!(names.iter().any(|name| name == "assess"), "{file}: no batch_assess");
    let prompts = names.into_iter().map(|name| {
        let singles: BTreeMap<_, _> = take(file, golden, &name);
        let batch: Batch = take(file, golden, &format!("batch_{name}"));
        assert!(!singles.is_empty() && !batch.rows.is_empty(), "{file}: {name}: no answers");
        Prompt { choice: prompts::choice(&name), name, singles, batch }
    });
    let prompts: Vec<_> = prompts.collect();
    let strangers: Vec<_> = golden.answers.keys().collect();
    assert!(strangers.is_empty(), "{file}: unknown fields {strangers:?}");
    prompts
}

impl Suite {
    fn new(
        file: &'static str,
        dtype: Dtype,
        kind: Kind,
        probability: f64,
        logit: Tolerance,
        own_softmax: f64,
    ) -> Self {
        let mut golden: Golden = support::json(file);
        let prompts = by_prompt(file, &mut golden);
        let name = file.trim_start_matches("generate_").trim_end_matches(".json");
        assert_eq!(golden.dtype, name, "{file}: dtype");
        let config = Checkpoint::open(&support::path("ckpt_safetensors")).unwrap().config().clone();
        let pictures = support::tensors("pixel_values.safetensors");
        // The tolerances are those of scores from 1 to 10; on a wider range, the same errors of the
        // probabilities count for more.
        let head = config.score.as_ref().expect("ckpt_safetensors/config.json: no score tokens");
        let score = probability * ((head.max_score - head.min_score) / 9.0).max(1.0);
        Self { file, dtype, kind, score, probability, logit, own_softmax, golden, prompts, config, pictures }
    }

    fn f32() -> Self {
        Self::new("generate_f32.json", Dtype::F32, Kind::Float, 1e-4, Tolerance::F32, 1e-5)
    }

    /// The score that the last logits of a position stand for.
    fn value(&self, logits: &[f32]) -> f64 {
        let head = ScoreHead::new(self.config.score.clone().unwrap());
        head.value(logits).expect("finite logits").score
    }

    /// What is known of the prompt that a checkpoint is scored with by default.
    fn assess(&self) -> &Prompt {
        self.prompts.iter().find(|prompt| prompt.name == "assess").unwrap()
    }

    fn scorer(&self, prompt: &Prompt, checkpoint: &Path, precision: u8) -> TorchScorer {
        let settings = ModelSettings {
            checkpoint: checkpoint.to_str().unwrap().to_owned(),
            dtype: self.dtype,
            prompt: prompt.choice.clone(),
            precision,
            threads: self.golden.threads,
            ..ModelSettings::default()
        };
        TorchScorer::load(&settings, 1).unwrap()
    }

    fn run(&self) {
        let _no_grad = tch::no_grad_guard();
        let model = network(self.kind);
        for prompt in &self.prompts {
            let name = &prompt.name;
            let mut scorer = self.scorer(prompt, &support::path("ckpt_safetensors"), self.golden.precision);
            for (stem, single) in &prompt.singles {
                let mut ours = self.score(&mut scorer, &[stem]);
                let place = format!("{}: {name}/{stem}", self.file);
                let (generated, answer) = ours.remove(0);
                assert_eq!(generated.tokens, single.generated_ids, "{place}: ids");
                self.compare_answer(&place, &generated, answer, &single.scores, &single.text, single.score);
                let (margin, allowed) = self.margin(&model, name, stem, &generated.tokens);
                self.assert_near(&format!("{place}: margin"), margin, single.min_top2_margin, allowed);
            }
            self.compare_batch(&model, &mut scorer, prompt);
        }
    }

    fn compare_batch(&self, model: &MplugOwl2, scorer: &mut TorchScorer, prompt: &Prompt) {
        let Prompt { name, batch, .. } = prompt;
        let place = format!("{}: batch_{name}", self.file);
        let stems: Vec<&String> = batch.images.iter().collect();
        let ours = self.score(scorer, &stems);
        assert_eq!(
            [batch.text.len(), batch.score.len(), batch.rows.len()],
            [stems.len(); 3],
            "{place}: rows"
        );
        let steps = ours.iter().map(|(generated, _)| generated.tokens.len()).max();
        assert_eq!(steps, Some(batch.steps), "{place}: steps");
        assert_eq!(self.config.special.pad, batch.pad_token_id_used, "{place}: pad_token_id_used");
        for (row, (generated, answer)) in ours.into_iter().enumerate() {
            let golden = &batch.rows[row];
            let place = format!("{place}/{}", batch.images[row]);
            let mut padded = generated.tokens.clone();
            padded.resize(batch.steps, batch.pad_token_id_used);
            assert_eq!(padded, golden.generated_ids, "{place}: ids");
            self.compare_answer(
                &place,
                &generated,
                answer,
                &golden.scores,
                &batch.text[row],
                batch.score[row],
            );
            let (margin, allowed) = self.margin(model, name, stems[row], &generated.tokens);
            // A row that ended early went on in the reference, over padding, and its smallest gap may
            // lie there.
            if generated.tokens.len() == batch.steps || golden.min_top2_margin > margin {
                self.assert_near(&format!("{place}: margin"), margin, golden.min_top2_margin, allowed);
            }
        }
    }

    /// Scores pictures in one batch: what was generated, and the answers made of it.
    fn score(
        &self,
        scorer: &mut TorchScorer,
        stems: &[&String],
    ) -> Vec<(Generated, Result<Answer, ItemError>)> {
        let rows: Vec<Tensor> = stems.iter().map(|stem| pixels(&self.pictures, stem)).collect();
        let pool = SlotPool::new(stems.len(), scorer.image_size());
        let slots = rows.iter().map(|row| {
            let mut slot = pool.lease();
            row.view([-1]).copy_data(slot.values_mut(), pool.values());
            slot
        });
        let batch = ScoreBatch { slots: slots.collect() };
        let answers = scorer.score(&batch).unwrap();
        // The answers come of drafts wherever one held, these never do.
        let generated = scorer.generate(&Tensor::cat(&rows, 0).to_kind(self.kind)).unwrap();
        assert_eq!(answers.len(), generated.len());
        generated.into_iter().zip(answers).collect()
    }

    fn compare_answer(
        &self,
        place: &str,
        generated: &Generated,
        answer: Result<Answer, ItemError>,
        golden: &[GoldenScore],
        text: &str,
        score: f64,
    ) {
        let Some(first) = golden.first() else {
            let error = answer.expect_err(place);
            assert_eq!((error.code, score), (ErrorCode::NoScoreToken, -1.0), "{place}");
            assert!(error.message.contains(text), "{place}: `{text}` is not in `{error}`");
            return;
        };
        let answer = answer.expect(place);
        assert_eq!(
            answer.tokens.iter().map(|&id| i64::from(id)).collect::<Vec<_>>(),
            generated.tokens,
            "{place}"
        );
        assert_eq!(generated.forwards as usize, generated.tokens.len(), "{place}: forwards");
        match answer.decode {
            DecodeKind::Verified => assert_eq!(answer.forwards, 1, "{place}: forwards"),
            DecodeKind::Generated => assert!(
                answer.forwards > 1 && answer.forwards <= generated.forwards,
                "{place}: {} forwards",
                answer.forwards
            ),
        }

        let score_id = self.config.score.as_ref().unwrap().score_id;
        let steps: Vec<usize> =
            (0..generated.tokens.len()).filter(|&step| generated.tokens[step] == score_id).collect();
        assert_eq!(steps, golden.iter().map(|score| score.step).collect::<Vec<_>>(), "{place}: score steps");
        assert_eq!([answer.scores.len(), generated.score_logits.len()], [golden.len(); 2], "{place}: scores");
        for (index, golden) in golden.iter().enumerate() {
            let place = format!("{place}: scores[{index}]");
            self.check_golden(&place, golden);
            self.assert_near(&format!("{place}.score"), answer.scores[index].score, golden.score, self.score);
            let ours: Vec<f64> =
                generated.score_logits[index].iter().map(|&logit| f64::from(logit)).collect();
            let largest = golden.img_logits.iter().fold(0.0, |largest: f64, logit| largest.max(logit.abs()));
            let allowed = self.logit.at(largest);
            self.assert_all_near(&format!("{place}.img_logits"), &ours, &golden.img_logits, allowed);
            let ours: Vec<f64> = answer.scores[index].distribution.iter().map(|&p| f64::from(p)).collect();
            self.assert_all_near(&format!("{place}.probs"), &ours, &golden.probs, self.probability);
        }
        assert_eq!(score, first.rounded, "{place}: score");
        let template = self.template(place, text, score);
        assert_eq!(answer_template(place, &answer, self.golden.precision), template, "{place}: text");
    }

    /// The golden numbers must agree with each other more closely than with ours, so that none of
    /// them can be off by itself.
    fn check_golden(&self, place: &str, golden: &GoldenScore) {
        let head = self.config.score.as_ref().unwrap();
        let largest = golden.img_logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let weights: Vec<f64> = golden.img_logits.iter().map(|logit| (logit - largest).exp()).collect();
        let total: f64 = weights.iter().sum();
        for (bin, (weight, &golden)) in weights.iter().zip(&golden.probs).enumerate() {
            let place = format!("{place}.probs[{bin}] beside img_logits");
            self.assert_near(&place, weight / total, golden, self.own_softmax * golden.abs() + 1e-7);
        }
        let width = (head.max_score - head.min_score) / (head.num_tokens - 1) as f64;
        let bins = golden.probs.iter().enumerate();
        let score: f64 =
            bins.map(|(bin, probability)| probability * (head.min_score + width * bin as f64)).sum();
        self.assert_near(&format!("{place}.score beside probs"), score, golden.score, 1e-5);
        let printed = rounded(golden.score, self.golden.precision);
        assert_eq!(printed.parse(), Ok(golden.rounded), "{place}.rounded");
    }

    /// The golden text with its one number, the first score, taken out.
    fn template(&self, place: &str, text: &str, score: f64) -> String {
        let printed = format!("{score:?}");
        assert!(text.contains(&printed), "{place}: text lacks {printed}");
        text.replacen(&printed, SCORE_TOKEN, 1)
    }

    /// The smallest gap between the best and the second-best logit over the steps of an answer, and how
    /// far it may be off; the best must be the answer's own tokens.
    fn margin(&self, model: &MplugOwl2, prompt: &str, stem: &str, tokens: &[i64]) -> (f64, f64) {
        let (embeddings, image) = embed(model, prompt, &pixels(&self.pictures, stem));
        let mut cache = model.new_cache(1, embeddings.size()[1] + tokens.len() as i64).unwrap();
        let prefill = logits(model, &embeddings, image, &mut cache);
        let mut rows = vec![prefill.narrow(0, prefill.size()[0] - 1, 1)];
        for token in tokens.iter().take(tokens.len() - 1) {
            rows.push(step(model, &[*token], &mut cache));
        }
        let rows = Tensor::cat(&rows, 0).to_kind(Kind::Double);
        let (best, ids) = rows.topk(2, -1, true, true);
        let chosen = Vec::<i64>::try_from(ids.select(1, 0)).unwrap();
        assert_eq!(chosen, tokens, "{}: {prompt}/{stem}: the best tokens", self.file);
        let margin = (best.select(1, 0) - best.select(1, 1)).min().double_value(&[]);
        (margin, 2.0 * self.logit.at(best.max().double_value(&[])))
    }

    fn assert_all_near(&self, place: &str, ours: &[f64], golden: &[f64], tolerance: f64) {
        assert_eq!(ours.len(), golden.len(), "{place}: length");
        for (index, (&ours, &golden)) in ours.iter().zip(golden).enumerate() {
            self.assert_near(&format!("{place}[{index}]"), ours, golden, tolerance);
        }
    }

    fn assert_near(&self, place: &str, ours: f64, golden: f64, tolerance: f64) {
        assert!(
            (ours - golden).abs() <= tolerance,
            "{place}: {ours}, golden {golden}, allowed {tolerance:e}"
        );
    }
}

/// Our text with every score taken out again.
fn answer_template(place: &str, answer: &Answer, precision: u8) -> String {
    let mut template = String::new();
    let mut rest = answer.text.as_str();
    for score in &answer.scores {
        let printed = rounded(score.score, precision);
        let (before, after) =
            rest.split_once(&printed).unwrap_or_else(|| panic!("{place}: {rest:?} lacks {printed}"));
        template += before;
        template += SCORE_TOKEN;
        rest = after;
    }
    template + rest
}

#[test]
fn golden_generate_f32() {
    Suite::f32().run();
}

#[test]
fn golden_generate_bf16() {
    Suite::new("generate_bf16.json", Dtype::Bf16, Kind::BFloat16, 0.02, Tolerance::BF16, 2_f64.powi(-7))
        .run();
}

#[test]
fn golden_generate_fp16() {
    Suite::new("generate_fp16.json", Dtype::F16, Kind::Half, 0.02, Tolerance::F16, 2_f64.powi(-10)).run();
}

#[test]
fn golden_precision_variants() {
    let suite = Suite::f32();
    let file = suite.file;
    assert!(!suite.golden.precision_variants.is_empty(), "{file}: no precision_variants");
    let assess = suite.assess();
    let stem = &assess.batch.images[0];
    let unrounded = assess.singles[stem].scores[0].score;
    for (&precision, golden) in &suite.golden.precision_variants {
        let place = format!("{file}: precision_variants/{precision}");
        assert_eq!(rounded(unrounded, precision), golden.repr, "{place}: repr");
        assert_eq!(golden.repr.parse(), Ok(golden.score), "{place}: score");
        let mut scorer = suite.scorer(assess, &support::path("ckpt_safetensors"), precision);
        let (_, answer) = suite.score(&mut scorer, &[stem]).remove(0);
        let answer = answer.expect(&place);
        suite.assert_near(&place, answer.score(), unrounded, suite.score);
        let template = suite.template(&place, &golden.text, golden.score);
        assert_eq!(answer_template(&place, &answer, precision), template, "{place}: text");
    }
}

/// Drafts change neither tokens nor scores: every answer alone and in batches of every kind, with whatever
/// the ones before have taught, against generation.
#[test]
fn golden_verify_gives_what_generate_gives() {
    let bf16 = Suite::new("generate_bf16.json", Dtype::Bf16, Kind::BFloat16, 0.02, Tolerance::BF16, 1.0);
    for (suite, share) in [(Suite::f32(), 0.1), (bf16, 1.0)] {
        let tolerance = share * suite.score;
        for prompt in &suite.prompts {
            let mut scorer = suite.scorer(prompt, &support::path("ckpt_safetensors"), suite.golden.precision);
            let stems: Vec<&String> = suite.pictures.keys().collect();
            // Once given, an answer is the draft of the next.
            let first = pixels(&suite.pictures, stems[0]).to_kind(suite.kind);
            let twice = [scorer.decode(&first).unwrap(), scorer.decode(&first).unwrap()];
            assert!(!twice[0][0].verified && twice[1][0].verified, "{}: {}", suite.file, prompt.name);
            for size in [1, 3, stems.len()] {
                for batch in stems.chunks(size) {
                    let place = format!("{}: {}: {batch:?}", suite.file, prompt.name);
                    let rows: Vec<Tensor> = batch.iter().map(|stem| pixels(&suite.pictures, stem)).collect();
                    let rows = Tensor::cat(&rows, 0).to_kind(suite.kind);
                    let (ours, oracle) = (scorer.decode(&rows).unwrap(), scorer.generate(&rows).unwrap());
                    for (ours, oracle) in ours.iter().zip(&oracle) {
                        assert_eq!(ours.tokens, oracle.tokens, "{place}: tokens");
                        assert_eq!(ours.score_logits.len(), oracle.score_logits.len(), "{place}: scores");
                        for (ours, oracle) in ours.score_logits.iter().zip(&oracle.score_logits) {
                            let (ours, oracle) = (suite.value(ours), suite.value(oracle));
                            assert!((ours - oracle).abs() <= tolerance, "{place}: {ours}, {oracle}");
                        }
                        assert_eq!(ours.verified, ours.forwards == 1, "{place}: {} forwards", ours.forwards);
                    }
                }
            }
        }
    }
}

/// With another id for `[SCORE]` the answer holds none: the reference's -1 is an error here.
#[test]
fn golden_no_score_token() {
    let suite = Suite::f32();
    let golden = suite.golden.no_score_token.as_ref().expect("generate_f32.json: no no_score_token");
    let place = format!("{}: no_score_token", suite.file);

    let folder = tempfile::tempdir().unwrap();
    for entry in fs::read_dir(support::path("ckpt_safetensors")).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), folder.path().join(entry.file_name())).unwrap();
    }
    let mut config: serde_json::Value = support::json("ckpt_safetensors/config.json");
    assert_ne!(config["score_id"], golden.score_id, "{place}: score_id");
    config["score_id"] = golden.score_id.into();
    // Replaced, not overwritten: the copy of a read-only file is read-only too.
    let file = folder.path().join("config.json");
    fs::remove_file(&file).unwrap();
    fs::write(file, config.to_string()).unwrap();

    // The note says which images: `images[0:2]`.
    let range =
        golden.note.split_once("images[").and_then(|(_, rest)| rest.split_once(']')?.0.split_once(':'));
    let range = range.and_then(|(start, end)| Some(start.parse().ok()?..end.parse::<usize>().ok()?));
    let range = range.unwrap_or_else(|| panic!("{place}: note names no images"));
    let assess = suite.assess();
    let stems: Vec<&String> = assess.batch.images[range].iter().collect();
    let mut scorer = suite.scorer(assess, folder.path(), suite.golden.precision);
    let answers = suite.score(&mut scorer, &stems);
    assert_eq!([golden.text.len(), golden.score.len()], [answers.len(); 2], "{place}: rows");
    for (row, (_, answer)) in answers.into_iter().enumerate() {
        let error = answer.expect_err(&place);
        assert_eq!((error.code, golden.score[row]), (ErrorCode::NoScoreToken, -1.0), "{place}");
        let text = &golden.text[row];
        assert!(error.message.contains(&format!("`{text}`")), "{place}: `{text}` is not in `{error}`");
    }
}
