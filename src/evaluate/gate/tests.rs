use super::*;
use crate::{
    evaluate::{Evaluation, Label, Outcome, Photo},
    fault::{ErrorCode, ItemError, Stage},
    score::{ModelVersion, ScoreValue},
};
use rand::{RngExt as _, SeedableRng as _, rngs::Xoshiro256PlusPlus};
use std::f64::consts::PI;

const RANGE: (f64, f64) = (1.0, 10.0);

/// Photos with a true quality, labelled by a few raters, and models that see part of it.
struct World {
    random: Xoshiro256PlusPlus,
}

/// A model's answers: how much of the quality it sees, and how much of what it gets wrong it shares with
/// its parent.
#[derive(Clone, Copy)]
struct Skill {
    correlation: f64,
    inherited: f64,
}

const CHAMPION: Skill = Skill { correlation: 0.78, inherited: 1.0 };

/// As far from the champion as leaves the interval of the difference at AVA's width, and neither better
/// nor worse.
const NO_BETTER: Skill = Skill { inherited: 0.98, ..CHAMPION };

impl World {
    fn new(seed: u64) -> Self {
        Self { random: Xoshiro256PlusPlus::seed_from_u64(seed) }
    }

    fn normal(&mut self) -> f64 {
        let (radius, angle): (f64, f64) = (self.random.random(), self.random.random());
        (-2.0 * (1.0 - radius).ln()).sqrt() * (2.0 * PI * angle).cos()
    }

    /// The champion's and the challenger's answers to the same new photos, each labelled by ten votes.
    fn photos(&mut self, count: usize, challenger: Skill) -> [Vec<Photo>; 2] {
        let mut sides = [Vec::new(), Vec::new()];
        for index in 0..count {
            let (quality, inherited) = (self.normal(), self.normal());
            // Raters' votes scatter so that ten of them correlate with quality as on AVA.
            let reliability = index_of_reliability(10.0);
            let noise = (1.0 / (reliability * reliability) - 1.0).sqrt() * self.normal();
            let label = ((5.4 + 0.75 * (quality + noise)) * 10.0).round() / 10.0;
            for (side, skill) in sides.iter_mut().zip([CHAMPION, challenger]) {
                let error = skill.inherited * inherited
                    + (1.0 - skill.inherited * skill.inherited).sqrt() * self.normal();
                let seen = skill.correlation * quality
                    + (1.0 - skill.correlation * skill.correlation).sqrt() * error;
                side.push(photo(index, label, Some(5.4 + 0.6 * seen)));
            }
        }
        sides
    }
}

fn photo(index: usize, label: f64, score: Option<f64>) -> Photo {
    let outcome = match score {
        Some(score) => {
            Outcome::Scored { scores: vec![ScoreValue { score, distribution: vec![1.0], std: 0.0 }] }
        }
        None => Outcome::NoScore { error: ItemError::new(ErrorCode::NoScoreToken, Stage::Infer, "none") },
    };
    let label = Label { scores: vec![label.clamp(RANGE.0, RANGE.1)], distributions: Vec::new() };
    Photo { image: format!("{index}.jpg"), group: None, label, outcome }
}

fn compare([champion, challenger]: [Vec<Photo>; 2], settings: &GateSettings) -> Comparison {
    let evaluation = |version: &str, photos| {
        let model = ModelVersion { model: "m".into(), version: version.into(), preprocess_revision: 1 };
        // Nobody looks at their own intervals here.
        Evaluation::measure(model, RANGE, photos, &BootstrapSettings { resamples: 1, ..Default::default() })
    };
    Comparison::of(
        &evaluation("champion", champion),
        &evaluation("challenger", challenger),
        &settings.bootstrap(),
    )
    .unwrap()
}

/// As the default, for sets that a test can draw hundreds of.
fn settings(photos: usize) -> GateSettings {
    GateSettings { min_photos: photos, resamples: 300, ..GateSettings::default() }
}

/// The verdict on a challenger of these skills on newest labels, gold set and old domain.
fn verdict(seed: u64, photos: usize, skills: [Skill; 3], settings: &GateSettings) -> Verdict {
    let mut world = World::new(seed);
    let comparisons = skills.map(|skill| compare(world.photos(photos, skill), settings));
    judge(&evidence(&comparisons), settings)
}

fn evidence(comparisons: &[Comparison; 3]) -> Vec<Evidence<'_>> {
    let pieces = EvaluationSet::ALL.into_iter().zip(comparisons);
    pieces.map(|(set, comparison)| Evidence { set, comparison, votes: Some(10.0) }).collect()
}

fn reasons(verdict: Verdict) -> Vec<Reason> {
    match verdict {
        Verdict::Rejected { reasons } => reasons,
        Verdict::Accepted { difference } => panic!("accepted: {difference:?}"),
    }
}

fn better(by: f64) -> Skill {
    Skill { correlation: CHAMPION.correlation + by, ..NO_BETTER }
}

#[test]
fn three_thousand_photos_give_the_interval_that_was_measured_on_ava() {
    let comparison = compare(World::new(0).photos(3_000, NO_BETTER), &settings(3_000));
    let half_width = comparison.difference(Metric::Srcc).unwrap().half_width().unwrap();
    assert!((0.003..0.005).contains(&half_width), "{half_width}");
}

#[test]
fn a_better_challenger_is_accepted() {
    let verdict = verdict(1, 3_000, [better(0.04), better(0.0), better(0.0)], &settings(3_000));
    assert!(verdict.is_accepted(), "{verdict}");
    assert!(
        verdict.to_string().starts_with("accepted: SRCC on the newest labels is higher, +0.0"),
        "{verdict}"
    );
}

#[test]
fn the_champion_itself_is_rejected() {
    let same = Skill { inherited: 1.0, ..CHAMPION };
    let found = reasons(verdict(2, 3_000, [same; 3], &settings(3_000)));
    assert_eq!(found[0], Reason::Identical);
    assert!(matches!(found[1], Reason::NotBetter { set: EvaluationSet::Newest, .. }), "{found:?}");
    assert_eq!(found.len(), 2, "it is no worse either: {found:?}");
}

#[test]
fn better_on_new_labels_is_not_enough_if_worse_on_old_ones() {
    for worse in [EvaluationSet::Gold, EvaluationSet::Old] {
        let skills = EvaluationSet::ALL.map(|set| match set {
            EvaluationSet::Newest => better(0.05),
            _ if set == worse => better(-0.05),
            _ => better(0.0),
        });
        let found = reasons(verdict(3, 3_000, skills, &settings(3_000)));
        assert!(matches!(found[..], [Reason::Worse { set, .. }] if set == worse), "{found:?}");
    }
}

#[test]
fn thirty_photos_judge_nothing_however_much_better_they_look() {
    for settings in [
        GateSettings::default(),
        GateSettings { required: vec![EvaluationSet::Newest], ..GateSettings::default() },
    ] {
        let perfect = Skill { correlation: 1.0, inherited: 0.0 };
        let found = reasons(verdict(4, 30, [perfect; 3], &settings));
        for set in EvaluationSet::ALL {
            assert!(found.contains(&Reason::TooFewPhotos { set, photos: 30, needed: 3_000 }), "{found:?}");
        }
    }
    // Even where the minimum is given up, thirty photos cannot show that nothing became worse.
    let found = reasons(verdict(5, 30, [better(0.1), better(0.0), better(0.0)], &settings(10)));
    assert!(found.iter().any(|reason| matches!(reason, Reason::Worse { .. })), "{found:?}");
}

#[test]
fn copies_of_thirty_photos_are_thirty_photos() {
    let settings = settings(1_000);
    let mut world = World::new(6);
    let copied = world.photos(30, better(0.1)).map(|photos| {
        let copies =
            |index: usize| Photo { group: Some((index % 30).to_string()), ..photos[index % 30].clone() };
        (0..3_000).map(copies).collect::<Vec<_>>()
    });
    let comparison = compare(copied, &settings);
    assert_eq!((comparison.photos, comparison.groups), (3_000, 30));
    let piece = Evidence { set: EvaluationSet::Newest, comparison: &comparison, votes: None };
    assert!(reasons(judge(&[piece], &settings)).contains(&Reason::TooFewPhotos {
        set: EvaluationSet::Newest,
        photos: 30,
        needed: 1_000
    }));
}

#[test]
fn of_two_hundred_challengers_that_are_no_better_at_most_ten_are_accepted() {
    let settings = settings(400);
    let accepted = (0..200)
        .filter(|seed| {
            // Not required elsewhere, so that only the test of being better stands in their way.
            let mut world = World::new(1_000 + seed);
            let comparison = compare(world.photos(400, NO_BETTER), &settings);
            let settings = GateSettings { required: vec![EvaluationSet::Newest], ..settings.clone() };
            let piece = Evidence { set: EvaluationSet::Newest, comparison: &comparison, votes: Some(10.0) };
            judge(&[piece], &settings).is_accepted()
        })
        .count();
    assert!(accepted <= 10, "{accepted} of 200");
}

#[test]
fn a_challenger_as_good_as_the_champion_everywhere_else_is_seldom_held_back() {
    let settings = GateSettings { min_photos: 1_500, resamples: 200, ..GateSettings::default() };
    let skills = [better(0.06), better(0.0), better(0.0)];
    let accepted =
        (0..20).filter(|seed| verdict(2_000 + seed, 1_500, skills, &settings).is_accepted()).count();
    assert!(accepted >= 14, "{accepted} of 20");
}

#[test]
fn fewer_answers_with_a_score_are_an_objection() {
    let settings = settings(500);
    let mut world = World::new(7);
    let mut silent = |photos: usize| {
        let mut sides = world.photos(600, better(0.1));
        for (index, side) in sides[1].iter_mut().enumerate().take(photos) {
            *side = photo(index, side.label.scores[0], None);
        }
        compare(sides, &settings)
    };
    let of = |comparison: &Comparison, settings: &GateSettings| {
        let settings = GateSettings { required: vec![EvaluationSet::Newest], ..settings.clone() };
        judge(&[Evidence { set: EvaluationSet::Newest, comparison, votes: None }], &settings)
    };
    assert!(of(&silent(0), &settings).is_accepted());
    let few = silent(3);
    assert!(matches!(
        reasons(of(&few, &settings))[..],
        [Reason::FewerScores { set: EvaluationSet::Newest, champion: 1.0, challenger: 0.995 }]
    ));
    assert!(of(&few, &GateSettings { score_rate_margin: 0.01, ..settings.clone() }).is_accepted());
}

#[test]
fn what_was_not_evaluated_is_not_taken_for_good() {
    let settings = settings(500);
    let comparison = compare(World::new(8).photos(600, better(0.1)), &settings);
    let newest = Evidence { set: EvaluationSet::Newest, comparison: &comparison, votes: None };
    let missing = |set| Reason::NotEvaluated { set };
    assert_eq!(
        reasons(judge(&[newest], &settings)),
        [missing(EvaluationSet::Gold), missing(EvaluationSet::Old)]
    );
    let lax = GateSettings { required: vec![], ..settings.clone() };
    assert_eq!(
        reasons(judge(&[Evidence { set: EvaluationSet::Old, ..newest }], &lax)),
        [missing(EvaluationSet::Newest)]
    );
    assert!(!judge(&[], &lax).is_accepted());
}

#[test]
fn one_score_for_every_photo_is_not_measurable() {
    let settings = settings(100);
    let mut sides = World::new(9).photos(200, better(0.0));
    for (index, photo) in sides[1].iter_mut().enumerate() {
        *photo = super::tests::photo(index, photo.label.scores[0], Some(5.0));
    }
    let comparison = compare(sides, &settings);
    let piece = Evidence { set: EvaluationSet::Newest, comparison: &comparison, votes: None };
    assert!(
        reasons(judge(&[piece], &settings)).contains(&Reason::NotMeasurable { set: EvaluationSet::Newest })
    );
}

#[test]
fn a_margin_shrinks_with_the_votes_behind_a_label() {
    for (votes, measured) in
        [(1.0, 0.456), (3.0, 0.650), (5.0, 0.739), (10.0, 0.838), (20.0, 0.914), (50.0, 0.967)]
    {
        let predicted = index_of_reliability(votes);
        assert!((predicted - measured).abs() < 0.02, "{votes}: {predicted}, on AVA {measured}");
    }
    let settings = settings(1_000);
    let comparison = compare(World::new(10).photos(1_000, better(-0.0)), &settings);
    let (low, _) = comparison.difference(Metric::Srcc).unwrap().interval.unwrap();
    // A margin that just suffices for the full vote does not for labels of three.
    let settings = GateSettings { margin: -low * 1.01, ..settings };
    let worse = |votes| {
        let piece = Evidence { set: EvaluationSet::Old, comparison: &comparison, votes };
        reasons(judge(&[piece], &settings)).iter().any(|reason| matches!(reason, Reason::Worse { .. }))
    };
    assert_eq!((worse(None), worse(Some(3.0))), (false, true));
}

#[test]
fn settings_that_make_no_gate_are_refused() {
    GateSettings::default().check().unwrap();
    for settings in [
        GateSettings { margin: -0.1, ..GateSettings::default() },
        GateSettings { margin: f64::NAN, ..GateSettings::default() },
        GateSettings { confidence: 1.0, ..GateSettings::default() },
        GateSettings { confidence: 0.05, ..GateSettings::default() },
        GateSettings { resamples: 9, ..GateSettings::default() },
        GateSettings { required: vec![EvaluationSet::Old], ..GateSettings::default() },
    ] {
        let message = settings.check().unwrap_err().to_string();
        assert!(message.starts_with("gate."), "{message}");
    }
    let unknown = serde_json::from_str::<GateSettings>(r#"{"margins":0.1}"#).unwrap_err().to_string();
    assert!(unknown.contains("margins"), "{unknown}");
}

#[test]
fn verdicts_read_back_and_say_what_to_do_on_one_line() {
    let rejected = Verdict::Rejected {
        reasons: vec![
            Reason::TooFewPhotos { set: EvaluationSet::Newest, photos: 30, needed: 3_000 },
            Reason::Worse {
                set: EvaluationSet::Old,
                difference: Estimate { value: -0.05, interval: Some((-0.06, -0.04)) },
                margin: 0.01,
            },
        ],
    };
    let json = serde_json::to_string(&rejected).unwrap();
    assert_eq!(serde_json::from_str::<Verdict>(&json).unwrap(), rejected);
    assert_eq!(
        rejected.to_string(),
        "rejected: 30 independent photos of the newest labels were scored by both, and gate.min_photos is 3000; hold \
         out more labels; also, SRCC on the old domain may be lower by more than 0.0100: -0.0500 (-0.0600 to \
         -0.0400); replay more old labels, or evaluate on more photos"
    );
}
