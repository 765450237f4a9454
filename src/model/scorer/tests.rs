use super::*;
use crate::{inference::slot::SlotPool, model::device::Dtype};
use serde_json::{Value, json};
use std::fs;
use tempfile::TempDir;

/// The small trained checkpoint, with fields of its config.json replaced.
fn checkpoint(changes: &[(&str, Value)]) -> TempDir {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/golden/ckpt_safetensors");
    let folder = tempfile::tempdir().unwrap();
    for entry in fs::read_dir(source).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), folder.path().join(entry.file_name())).unwrap();
    }
    let file = folder.path().join("config.json");
    let mut config: Value = serde_json::from_slice(&fs::read(&file).unwrap()).unwrap();
    for (field, value) in changes {
        config[*field] = value.clone();
    }
    fs::remove_file(&file).unwrap();
    fs::write(file, config.to_string()).unwrap();
    folder
}

fn settings(folder: &TempDir) -> ModelSettings {
    let checkpoint = folder.path().to_str().unwrap().to_owned();
    ModelSettings { checkpoint, threads: 1, ..ModelSettings::default() }
}

fn refusal(settings: &ModelSettings) -> String {
    let error = TorchScorer::load(settings, 1).err().expect("loads");
    assert_eq!(error.disposition(), crate::fault::Disposition::Stop);
    let message = error.to_string();
    assert!(!message.contains('\n'), "{message}");
    message
}

/// A batch of made-up pictures: one fill value each.
fn batch(scorer: &TorchScorer, fills: &[f32]) -> ScoreBatch {
    let pool = SlotPool::new(fills.len(), scorer.image_size());
    let slots = fills.iter().map(|&fill| {
        let mut slot = pool.lease();
        slot.values_mut().fill(fill);
        slot
    });
    ScoreBatch { slots: slots.collect() }
}

#[test]
fn a_checkpoint_that_cannot_score_is_refused_by_name() {
    let folder = checkpoint(&[("model_type", json!("llava"))]);
    let message = refusal(&settings(&folder));
    assert!(message.contains("`llava`") && message.contains("mplug_owl2"), "{message}");

    let folder = checkpoint(&[("score_id", Value::Null)]);
    let message = refusal(&settings(&folder));
    assert!(message.contains("score_id") && message.contains(folder.path().to_str().unwrap()), "{message}");

    let folder = checkpoint(&[("max_position_embeddings", json!(60))]);
    let message = refusal(&settings(&folder));
    assert!(message.contains("66 positions") && message.contains("is 60"), "{message}");

    let folder = checkpoint(&[]);
    fs::remove_file(folder.path().join("added_tokens.json")).unwrap();
    let message = refusal(&settings(&folder));
    assert!(message.contains("added_tokens.json: has no token of the id 600"), "{message}");

    let nowhere = ModelSettings { checkpoint: "/no/such/folder".into(), ..ModelSettings::default() };
    assert!(refusal(&nowhere).contains("/no/such/folder"));
}

#[test]
fn a_prompt_with_a_place_for_a_second_image_is_refused() {
    let folder = checkpoint(&[]);
    let prompt = PromptChoice::Text("Is <|image|> better?".into());
    let message = refusal(&ModelSettings { prompt, ..settings(&folder) });
    assert!(message.contains("one image"), "{message}");
}

#[test]
fn an_answer_ends_where_positions_do() {
    // 66 positions of prompt leave room for three tokens: too few to reach the score.
    let folder = checkpoint(&[("max_position_embeddings", json!(69))]);
    let mut scorer = TorchScorer::load(&settings(&folder), 1).unwrap();
    let error = scorer.score(&batch(&scorer, &[0.5])).unwrap().remove(0).unwrap_err();
    assert_eq!((error.code, error.stage), (ErrorCode::NoScoreToken, Stage::Infer));
    assert!(error.message.contains("`The aesthetic rate`"), "{}", error.message);
}

#[test]
fn one_broken_picture_is_its_own_error() {
    let folder = checkpoint(&[]);
    let mut scorer = TorchScorer::load(&settings(&folder), 3).unwrap();
    assert_eq!(scorer.version().preprocess_revision, 3);
    let results = scorer.score(&batch(&scorer, &[0.5, f32::NAN, 1.0])).unwrap();
    let alone = scorer.score(&batch(&scorer, &[1.0])).unwrap().remove(0).unwrap();
    assert_eq!(results[1].as_ref().unwrap_err().code, ErrorCode::NonFiniteScore);
    let (low, high) = scorer.score_range();
    assert!(results[0].as_ref().is_ok_and(|answer| (low..=high).contains(&answer.score())));
    let beside = results[2].as_ref().unwrap();
    assert!((beside.score() - alone.score()).abs() < 1e-4 && beside.text == alone.text);
}

#[test]
fn several_score_tokens_give_several_scores() {
    let folder = checkpoint(&[]);
    let scorer = TorchScorer::load(&settings(&folder), 1).unwrap();
    let tokens = scorer.tokenizer.encode("Composition is [SCORE] . Color is [SCORE] .").unwrap();
    let certain = |bin: usize| (0..10).map(|other| if other == bin { 90.0 } else { 0.0 }).collect();
    let generated = Generated {
        tokens: tokens[1..].iter().map(|&token| i64::from(token)).collect(),
        score_logits: vec![certain(2), certain(8)],
        forwards: 1,
        verified: true,
        broken: false,
    };
    let answer = scorer.answer(generated.clone()).unwrap();
    assert_eq!(answer.text, "Composition is 3.0 . Color is 9.0 .");
    assert_eq!(answer.scores.iter().map(|value| value.score).collect::<Vec<_>>(), [3.0, 9.0]);

    let one_broken = Generated { score_logits: vec![certain(2), vec![f32::NAN; 10]], ..generated };
    assert_eq!(scorer.answer(one_broken).unwrap_err().code, ErrorCode::NonFiniteScore);
}

#[test]
fn a_batch_may_be_empty_but_not_of_another_size() {
    let folder = checkpoint(&[]);
    let mut scorer = TorchScorer::load(&settings(&folder), 1).unwrap();
    assert!(scorer.score(&ScoreBatch { slots: Vec::new() }).unwrap().is_empty());
    let slots = vec![SlotPool::new(1, scorer.image_size() - 1).lease()];
    let error = scorer.score(&ScoreBatch { slots }).unwrap_err();
    assert!(matches!(error, ScorerError::Batch { batch: 1, .. }), "{error}");
}

#[test]
fn a_scorer_loaded_on_one_thread_scores_on_another() {
    let folder = checkpoint(&[]);
    let mut scorer = TorchScorer::load(&settings(&folder), 1).unwrap();
    let batch = batch(&scorer, &[0.5]);
    let here = scorer.score(&batch).unwrap().remove(0).unwrap();
    let there = std::thread::spawn(move || scorer.score(&batch).unwrap().remove(0).unwrap());
    assert!((here.score() - there.join().unwrap().score()).abs() < 1e-4);
}

#[test]
fn a_dtype_is_computed_in_when_asked_for() {
    let folder = checkpoint(&[]);
    let score = |dtype| {
        let mut scorer = TorchScorer::load(&ModelSettings { dtype, ..settings(&folder) }, 1).unwrap();
        let name = scorer.version().version.clone();
        (scorer.score(&batch(&scorer, &[0.5])).unwrap().remove(0).unwrap().score(), name)
    };
    let (stored, name) = score(Dtype::Auto);
    assert!(name.ends_with("+assess+f32"), "{name}");
    let (rounded, name) = score(Dtype::Bf16);
    assert!(name.ends_with("+assess+bf16"), "{name}");
    assert!(stored != rounded && (stored - rounded).abs() < 0.1, "{stored} {rounded}");
}

#[test]
fn a_draft_changes_passes_and_nothing_else() {
    let folder = checkpoint(&[]);
    let mut scorer = TorchScorer::load(&settings(&folder), 1).unwrap();
    let generating = ModelSettings { decode: DecodeMode::Generate, ..settings(&folder) };
    let mut oracle = TorchScorer::load(&generating, 1).unwrap();
    let (batch, alone) = (batch(&scorer, &[0.5, -1.0, 1.0]), batch(&scorer, &[1.0]));
    let score = |scorer: &mut TorchScorer, batch: &ScoreBatch| -> Vec<Answer> {
        scorer.score(batch).unwrap().into_iter().map(Result::unwrap).collect()
    };
    let first = score(&mut scorer, &batch);
    assert!(first.iter().all(|answer| answer.decode == DecodeKind::Generated));
    assert_eq!(scorer.drafts(), DraftCounts::default());
    for _ in 0..2 {
        for (ours, oracle) in score(&mut scorer, &batch).iter().zip(score(&mut oracle, &batch)) {
            assert_eq!((ours.decode, ours.forwards), (DecodeKind::Verified, 1));
            assert_eq!(
                (oracle.decode, oracle.forwards as usize),
                (DecodeKind::Generated, oracle.tokens.len())
            );
            assert_eq!(ours.tokens, oracle.tokens);
            assert!((ours.score() - oracle.score()).abs() < 1e-5);
        }
    }
    assert_eq!(scorer.drafts(), DraftCounts { accepted: 6, rejected: 0 });
    assert_eq!(oracle.drafts(), DraftCounts::default());
    let (verified, first) = (score(&mut scorer, &alone), &first[2]);
    assert!((verified[0].score() - first.score()).abs() < 1e-4);
}

#[test]
fn what_is_scored_afresh_has_one_score_to_the_last_bit() {
    let folder = checkpoint(&[]);
    let rounding = ModelSettings { dtype: Dtype::Bf16, ..settings(&folder) };
    let mut scorer = TorchScorer::load(&rounding, 1).unwrap();
    let picture = batch(&scorer, &[0.7]);
    let mut afresh = || scorer.score_afresh(&picture).unwrap().remove(0).unwrap().score();
    let first = afresh();
    assert_eq!(afresh(), first);
    let _ = scorer.score(&picture).unwrap();
    assert_eq!(scorer.score_afresh(&picture).unwrap().remove(0).unwrap().score(), first);
    let other = batch(&scorer, &[-0.5, 1.5]);
    let _ = scorer.score(&other).unwrap();
    assert_eq!(scorer.score_afresh(&picture).unwrap().remove(0).unwrap().score(), first);
}

#[test]
fn too_little_memory_is_told_from_other_faults() {
    let too_much = Tensor::f_zeros([1 << 46], (Kind::Float, tch::Device::Cpu)).unwrap_err();
    assert!(matches!(scorer_error(3, &too_much), ScorerError::OutOfMemory { batch: 3, .. }), "{too_much}");
    let gpu = TchError::Torch("CUDA out of memory. Tried to allocate 2.00 GiB\nstack".into());
    assert!(matches!(scorer_error(1, &gpu), ScorerError::OutOfMemory { .. }));
    let lost = TchError::Torch("CUDA error: an illegal memory access was encountered".into());
    assert!(matches!(scorer_error(1, &lost), ScorerError::Device(_)));
    let shapes = Tensor::from_slice(&[1.0]).f_matmul(&Tensor::from_slice(&[1.0, 2.0])).unwrap_err();
    match scorer_error(2, &shapes) {
        ScorerError::Batch { batch: 2, reason } => assert!(!reason.contains('\n'), "{reason}"),
        other => panic!("{other}"),
    }
}

#[test]
fn what_changes_scores_changes_the_version() {
    let digest = format!("sha256:{}", "ab".repeat(32));
    let name = |prompt: PromptChoice, kind| version_name(&digest, &prompt, kind, Quantize::None);
    assert_eq!(name(PromptChoice::Assess, Kind::BFloat16), "sha256:abababababab+assess+bf16");
    assert_eq!(name(PromptChoice::Arch, Kind::Float), "sha256:abababababab+arch+f32");
    let one = name(PromptChoice::Text("How sharp?".into()), Kind::Float);
    assert!(one.starts_with("sha256:abababababab+text-") && !one.contains("sharp"));
    assert_ne!(one, name(PromptChoice::Text("How bright?".into()), Kind::Float));
    let quantized = version_name(&digest, &PromptChoice::Assess, Kind::BFloat16, Quantize::W8a8);
    assert_eq!(quantized, "sha256:abababababab+assess+bf16+w8a8");
}
