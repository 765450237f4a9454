use super::*;
use crate::model::{
    config::{ModelConfig, RopeScaling},
    family::Family,
    mplug_owl2::MplugOwl2,
    synthetic::{config, network, noise},
    transfer::read_backs,
};
use proptest::prelude::*;
use std::{collections::BTreeSet, sync::LazyLock};
use tch::Tensor;

fn options() -> GreedyOptions {
    GreedyOptions { end_tokens: Vec::new(), score_token: -1, bins: 5, max_new_tokens: 10 }
}

fn pixels(images: i64) -> Tensor {
    noise(&[images, 3, 12, 12], 77) * 4.0
}

/// A model, what it is asked, and what is looked for in its answers.
struct Case {
    model: MplugOwl2,
    prompt: EmbeddedPrompt,
    options: GreedyOptions,
}

impl Case {
    fn new(config: ModelConfig) -> Self {
        let model = network(config);
        let prompt = EmbeddedPrompt::new(&model, &[1, 5, 9, 3], &[8, 30]).unwrap();
        Self { model, prompt, options: options() }
    }

    /// One in which the rows of a batch end at different steps and choose score tokens.
    fn telling(config: ModelConfig, pixels: &Tensor) -> Self {
        let mut case = Self::new(config);
        case.options.max_new_tokens = 24;
        let free = case.generate(pixels);
        let ends = |token: i64| {
            let rows = free.iter().map(|answer| answer.tokens.iter().position(|&other| other == token));
            rows.collect::<BTreeSet<_>>().len()
        };
        let most_uneven =
            free.iter().flat_map(|answer| &answer.tokens[2..]).max_by_key(|&&token| ends(token));
        case.options.end_tokens = vec![*most_uneven.unwrap()];
        case.options.score_token = free[1].tokens[1];
        case
    }

    fn generate(&self, pixels: &Tensor) -> Vec<Generated> {
        let images = self.model.encode_images(pixels).unwrap();
        let (embeddings, image) = self.prompt.around(&images).unwrap();
        generate(&self.model, &embeddings, image, &self.options).unwrap()
    }

    fn verifier(&self) -> Verifier {
        Verifier::new(&self.model, &self.prompt).unwrap()
    }

    /// One that has seen `drafts` already, the first of them most often.
    fn verifier_after(&self, drafts: &[&[i64]]) -> Verifier {
        let mut verifier = self.verifier();
        for (index, draft) in drafts.iter().enumerate() {
            (index..drafts.len()).for_each(|_| verifier.learn(draft));
        }
        verifier
    }

    fn verify(&self, verifier: &mut Verifier, pixels: &Tensor) -> Vec<Generated> {
        let images = self.model.encode_images(pixels).unwrap();
        verifier.answer(&self.model, &self.prompt, &images, &self.options).unwrap()
    }

    /// Holds what `verifier` says of `pixels` against what generation says, and its passes against
    /// those that its drafts should take.
    fn compare(&self, verifier: &mut Verifier, pixels: &Tensor) -> Vec<Generated> {
        let drafts = verifier.drafts().clone();
        let verified = self.verify(verifier, pixels);
        for (row, (ours, oracle)) in verified.iter().zip(self.generate(pixels)).enumerate() {
            assert_eq!(ours.tokens, oracle.tokens, "row {row}");
            assert_eq!(ours.broken, oracle.broken, "row {row}");
            assert_near(&ours.score_logits, &oracle.score_logits);
            if !ours.broken {
                assert_eq!(ours.forwards, passes(&drafts, &ours.tokens), "row {row}: {:?}", ours.tokens);
                let drafted = drafts.after(&[]).is_some();
                assert_eq!(ours.verified, drafted && ours.forwards == 1, "row {row}");
            }
        }
        verified
    }
}

fn assert_near(ours: &[Vec<f32>], oracle: &[Vec<f32>]) {
    assert_eq!(ours.len(), oracle.len());
    for (one, other) in ours.iter().flatten().zip(oracle.iter().flatten()) {
        assert!((one - other).abs() < 1e-5 * other.abs().max(1.0), "{one} {other}");
    }
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

#[test]
fn an_image_gets_the_same_answer_alone_and_anywhere_in_a_batch() {
    let pixels = pixels(4);
    let case = Case::telling(config(), &pixels);
    let together = case.generate(&pixels);
    let steps: Vec<usize> = together.iter().map(|answer| answer.tokens.len()).collect();
    assert!(steps.iter().any(|&count| count != steps[0]), "{steps:?}");
    assert!(together.iter().any(|answer| !answer.score_logits.is_empty()));

    let order = [2, 0, 3, 1];
    let mixed = pixels.index_select(0, &Tensor::from_slice(&order));
    let shuffled = case.generate(&mixed);
    let mut verifier = case.verifier_after(&[&together[1].tokens]);
    let verified = case.compare(&mut verifier, &mixed);
    assert!(verified.iter().any(|answer| answer.verified) && verified.iter().any(|answer| !answer.verified));
    for (position, &row) in order.iter().enumerate() {
        let alone = case.generate(&pixels.narrow(0, row, 1));
        for other in [&shuffled[position], &verified[position], &together[row as usize]] {
            assert_eq!(alone[0].tokens, other.tokens);
            assert_eq!(alone[0].forwards as usize, alone[0].tokens.len());
            for (one, other) in
                alone[0].score_logits.iter().flatten().zip(other.score_logits.iter().flatten())
            {
                assert!((one - other).abs() < 1e-4);
            }
            assert_eq!(alone[0].score_logits.len(), other.score_logits.len());
        }
    }
}

#[test]
fn a_row_without_an_end_stops_at_the_cap() {
    let mut case = Case::new(config());
    case.options.max_new_tokens = 40;
    let answers = case.generate(&pixels(2));
    assert!(answers.iter().all(|answer| answer.tokens.len() == 40 && answer.forwards == 40));
    let whole = answers[0].tokens.clone();
    // A draft that goes on beyond the cap ends there; what was cut off is not learnt.
    let mut verifier = case.verifier_after(&[&whole]);
    case.options.max_new_tokens = 25;
    let cut = case.verify(&mut verifier, &pixels(1));
    assert_eq!(cut[0].tokens, whole[..25]);
    let learnt = verifier.drafts().after(&[]).map(<[i64]>::len);
    assert_eq!(learnt, Some(40));

    case.options.max_new_tokens = 0;
    assert!(case.generate(&pixels(1))[0].tokens.is_empty());
    assert!(case.verify(&mut verifier, &pixels(1))[0].tokens.is_empty());
}

#[test]
fn a_broken_image_breaks_no_other() {
    let whole = pixels(3);
    let case = Case::telling(config(), &whole);
    let expected = case.generate(&whole);
    let broken = whole.copy();
    let _ = broken.get(1).fill_(f64::NAN);
    let mut drafted = case.verifier_after(&[&expected[0].tokens]);
    for answers in [
        case.generate(&broken),
        case.compare(&mut case.verifier(), &broken),
        case.compare(&mut drafted, &broken),
    ] {
        assert!(answers[1].broken && answers[1].tokens.is_empty() && !answers[1].verified);
        assert_eq!((&answers[0].tokens, &answers[2].tokens), (&expected[0].tokens, &expected[2].tokens));
        assert!(!answers[0].broken && !answers[2].broken);
    }
    // Nothing was learnt of the broken one, and it speaks neither for the draft nor against it.
    let counts = drafted.counts();
    assert_eq!(counts.accepted + counts.rejected, 2);
}

#[test]
fn scores_are_the_last_logits_where_the_score_token_was_chosen() {
    let pixels = pixels(2);
    let case = Case::telling(config(), &pixels);
    let answers = case.generate(&pixels);
    assert!(answers.iter().any(|answer| answer.tokens.contains(&case.options.score_token)));
    for answer in answers {
        let chosen = answer.tokens.iter().filter(|&&token| token == case.options.score_token).count();
        assert_eq!(answer.score_logits.len(), chosen);
        assert!(answer.score_logits.iter().all(|logits| logits.len() == 5));
    }
}

#[test]
fn drafts_are_learnt_from_answers_and_then_hold() {
    let pixels = pixels(3);
    let case = Case::telling(config(), &pixels);
    let mut verifier = case.verifier();
    // Nothing is known at first, and what is learnt from a batch helps the next.
    let first = case.compare(&mut verifier, &pixels);
    assert!(first.iter().all(|answer| !answer.verified));
    assert_eq!(verifier.counts(), Default::default());
    for _ in 0..3 {
        case.compare(&mut verifier, &pixels);
    }
    for row in 0..3 {
        let alone = pixels.narrow(0, row, 1);
        let complete = first[row as usize].is_complete(&case.options);
        let mut verifier = case.verifier();
        case.compare(&mut verifier, &alone);
        let again = case.compare(&mut verifier, &alone);
        assert_eq!(again[0].verified, complete);
        assert_eq!(verifier.counts().accepted, u64::from(complete));
    }
}

#[test]
fn the_rest_of_another_draft_takes_one_more_pass() {
    let pixels = pixels(4);
    let case = Case::telling(config(), &pixels);
    let answers = case.generate(&pixels);
    let (row, answer) =
        answers.iter().enumerate().max_by_key(|(_, answer)| answer.tokens.len()).expect("answers");
    assert!(answer.tokens.len() > 4, "{answer:?}");
    // The most frequent answer goes astray after two tokens, from where the rarer one is right.
    let mut astray = answer.tokens[..2].to_vec();
    astray.extend([answer.tokens[2] ^ 1, 3, answer.tokens[answer.tokens.len() - 1]]);
    let mut verifier = case.verifier_after(&[&astray, &answer.tokens]);
    let verified = case.compare(&mut verifier, &pixels);
    assert_eq!((verified[row].forwards, verified[row].verified), (2, false));
}

#[test]
fn a_batch_whose_draft_holds_is_read_back_once() {
    let pixels = pixels(1);
    let case = Case::telling(config(), &pixels.repeat([2, 1, 1, 1]));
    let answer = case.generate(&pixels).remove(0);
    assert!(answer.is_complete(&case.options) && !answer.score_logits.is_empty(), "{answer:?}");
    let mut verifier = case.verifier_after(&[&answer.tokens]);
    let images = case.model.encode_images(&pixels.repeat([5, 1, 1, 1])).unwrap();
    for _ in 0..2 {
        let before = read_backs();
        let answers = verifier.answer(&case.model, &case.prompt, &images, &case.options).unwrap();
        assert!(answers.iter().all(|answer| answer.verified && answer.forwards == 1));
        assert_eq!(read_backs() - before, 1);
    }
    // A token a pass, and each of them waited for.
    let before = read_backs();
    let _ = case.generate(&pixels);
    assert_eq!((read_backs() - before) as usize, answer.tokens.len());
}

#[test]
fn a_prompt_may_begin_with_the_image() {
    let pixels = pixels(3);
    let mut case = Case::telling(config(), &pixels);
    case.prompt = EmbeddedPrompt::new(&case.model, &[], &[1, 8, 30]).unwrap();
    let mut verifier = case.verifier();
    for _ in 0..2 {
        case.compare(&mut verifier, &pixels);
    }
}

#[test]
fn every_kind_of_positions_gives_what_generation_gives() {
    let linear = {
        let mut config = config();
        config.language.rope_scaling = Some(RopeScaling::Linear(3.0));
        config
    };
    let full_heads = {
        let mut config = config();
        config.language.num_key_value_heads = config.language.num_attention_heads;
        config
    };
    let pixels = pixels(4);
    for config in [linear, full_heads] {
        let case = Case::telling(config, &pixels);
        let mut verifier = case.verifier();
        for _ in 0..3 {
            case.compare(&mut verifier, &pixels);
        }
    }
}

/// Beyond the trained positions, the length of all that is there decides how far each is turned, and
/// a draft would be part of that length.
#[test]
fn nothing_is_guessed_where_guesses_would_turn_positions() {
    let pixels = pixels(4);
    // The prompt takes 11 positions: all of it beyond, its answer beyond, or a part of that.
    for trained in [6, 11, 12, 16, 20] {
        let mut config = config();
        config.language.max_position_embeddings = trained;
        config.language.rope_scaling = Some(RopeScaling::Dynamic(8.0));
        let case = Case::telling(config, &pixels);
        let mut verifier = case.verifier();
        for _ in 0..3 {
            let verified = case.verify(&mut verifier, &pixels);
            for (ours, oracle) in verified.iter().zip(case.generate(&pixels)) {
                assert_eq!(ours.tokens, oracle.tokens, "{trained} trained positions");
                assert_near(&ours.score_logits, &oracle.score_logits);
            }
        }
    }
}

static TELLING: LazyLock<std::sync::Mutex<(Case, Vec<Generated>)>> = LazyLock::new(|| {
    let pixels = pixels(6);
    let case = Case::telling(config(), &pixels);
    let answers = case.generate(&pixels);
    std::sync::Mutex::new((case, answers))
});

/// What was done to a right answer.
#[derive(Clone, Debug)]
enum Damage {
    Replace(i64),
    Insert(Vec<i64>),
    Shorten,
}

fn damaged(answer: &[i64], place: usize, damage: &Damage) -> Vec<i64> {
    let mut draft = answer.to_vec();
    match damage {
        Damage::Replace(token) => draft[place] = *token,
        Damage::Insert(tokens) => drop(draft.splice(place..place, tokens.iter().copied())),
        Damage::Shorten => draft.truncate(place + 1),
    }
    draft
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// The right answer, damaged in some way at every place in turn, changes neither tokens nor scores;
    /// passes are those that the right part saves.
    #[test]
    fn a_wrong_draft_changes_nothing_but_passes(
        row in 0_i64..6,
        others in proptest::collection::vec(0_i64..6, 0..3),
        damage in prop_oneof![
            (0_i64..60).prop_map(Damage::Replace),
            proptest::collection::vec(0_i64..60, 1..4).prop_map(Damage::Insert),
            Just(Damage::Shorten),
        ],
        also_known in proptest::option::of(0_usize..6),
    ) {
        let telling = TELLING.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let (case, answers) = &*telling;
        let rows: Vec<i64> = std::iter::once(row).chain(others).collect();
        let batch = pixels(6).index_select(0, &Tensor::from_slice(&rows));
        let answer = &answers[row as usize].tokens;
        for place in 0..answer.len() {
            let draft = damaged(answer, place, &damage);
            let known = also_known.map(|other| &answers[other].tokens[..]);
            let drafts: Vec<&[i64]> = std::iter::once(&draft[..]).chain(known).collect();
            case.compare(&mut case.verifier_after(&drafts), &batch);
        }
    }
}
