use super::*;
use crate::{
    evaluate::{BootstrapSettings, Label, Outcome, Photo, Reason, gate::EvaluationSet},
    fault::{ErrorCode, ItemError, Stage},
    score::{ModelVersion, ScoreValue},
};
use std::fs;

fn photo(index: usize, score: f64, distributions: bool) -> Photo {
    let bin = |score: f64| -> Vec<f64> {
        (0..10).map(|bin| (1.0 - (f64::from(bin) + 1.0 - score).abs() / 3.0).max(0.01)).collect()
    };
    let label = 2.0 + (index * 37 % 100) as f64 / 16.0;
    let distribution: Vec<f32> = bin(score).iter().map(|share| *share as f32).collect();
    let total: f32 = distribution.iter().sum();
    let value =
        ScoreValue::from_distribution(distribution.iter().map(|share| share / total).collect(), 1.0, 10.0);
    Photo {
        image: format!("<i>{index}</i>.jpg"),
        group: None,
        label: Label {
            scores: vec![label],
            distributions: if distributions { vec![bin(label)] } else { Vec::new() },
        },
        outcome: Outcome::Scored { scores: vec![ScoreValue { score, ..value }] },
    }
}

fn evaluation(version: &str, noise: f64, distributions: bool) -> Evaluation {
    let mut photos: Vec<Photo> = (0..120)
        .map(|index| {
            let error = ((index * 7919 % 101) as f64 / 50.0 - 1.0) * noise;
            photo(index, 2.0 + (index * 37 % 100) as f64 / 16.0 + error, distributions)
        })
        .collect();
    let error = ItemError::new(
        ErrorCode::ImageTruncated,
        Stage::Decode,
        "<i>7</i>.jpg: <b>ends</b> early; re-export it",
    );
    photos[7].outcome = Outcome::Rejected { error };
    let model = ModelVersion { model: "m".into(), version: version.into(), preprocess_revision: 1 };
    Evaluation::measure(
        model,
        (1.0, 10.0),
        photos,
        &BootstrapSettings { resamples: 50, ..Default::default() },
    )
}

fn page(report: &EvaluationReport<'_>) -> String {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("report.html");
    write(&path, report).unwrap();
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "no partial file is left");
    fs::read_to_string(path).unwrap()
}

fn report<'a>(sets: Vec<SetReport<'a>>, verdict: Option<&'a Verdict>) -> EvaluationReport<'a> {
    EvaluationReport {
        title: "Scores & labels".into(),
        note: Some("<script>".into()),
        verdict,
        sets,
        settings: vec![("labels".into(), "<a>.csv".into())],
        written_at: OffsetDateTime::UNIX_EPOCH,
        elapsed: Some(Duration::from_secs(75)),
    }
}

fn set<'a>(
    evaluation: &'a Evaluation,
    against: Option<Against<'a>>,
    thumbnails: &'a Thumbnails,
) -> SetReport<'a> {
    SetReport { name: "gold set".into(), evaluation, against, thumbnails }
}

/// The number in an attribute of the page's `index`th worst mistake.
fn cards(page: &str) -> Vec<&str> {
    page.split("<li class=\"card\">").skip(1).map(|rest| rest.split("</li>").next().unwrap()).collect()
}

#[test]
fn a_page_shows_metrics_charts_and_the_worst_mistakes_in_order() {
    let evaluation = evaluation("1", 1.0, true);
    let worst = evaluation.worst(WORST);
    let thumbnails = Thumbnails::from([(worst[1].image.clone(), vec![0xff, 0xd8, 0xff])]);
    let page = page(&report(vec![set(&evaluation, None, &thumbnails)], None));
    for (metric, estimate) in &evaluation.attributes[0].metrics {
        assert!(page.contains(metric.name()), "{metric}");
        assert!(
            page.contains(&format!("{:.3}", (estimate.value * 1e3).trunc() / 1e3)),
            "{metric}: {estimate:?}"
        );
    }
    assert_eq!(page.matches("<svg class=\"plot\"").count(), 3, "scatter, residuals, calibration");
    let cards = cards(&page);
    assert_eq!(cards.len(), WORST);
    for (card, photo) in cards.iter().zip(&worst) {
        assert!(card.contains(&format!("{:+.2}", photo.residual(0).unwrap())), "{card}");
        assert!(card.contains("<path class=\"outline\""), "the raters' distribution");
    }
    assert!(cards[1].contains("src=\"data:image/jpeg;base64,/9j/") && cards[0].contains("no preview"));
    assert!(page.contains("re-export it"), "photos without a score are listed");
}

#[test]
fn whatever_a_name_holds_stays_text_and_nothing_is_loaded() {
    let evaluation = evaluation("</dd><script>", 1.0, false);
    let reasons = vec![Reason::NotEvaluated { set: EvaluationSet::Gold }];
    let verdict = Verdict::Rejected { reasons };
    let thumbnails = Thumbnails::new();
    let page = page(&report(vec![set(&evaluation, None, &thumbnails)], Some(&verdict)));
    assert!(
        !page.contains("<i>") && !page.contains("<b>") && !page.contains("<script") && !page.contains("<a>")
    );
    assert!(
        page.contains("&lt;i&gt;")
            && page.contains("script-src &#39;none&#39;") | page.contains("script-src 'none'")
    );
    assert!(!page.contains("http:") && !page.contains("https:"));
    assert!(page.contains("no evaluation on the gold set"), "the verdict's reasons");
    assert!(page.contains("raters' spread is not known") || page.contains("raters&#39; spread is not known"));
}

#[test]
fn a_challenger_stands_beside_the_champion_in_every_part() {
    let (champion, challenger) = (evaluation("old", 1.5, true), evaluation("new", 0.8, true));
    let comparison = Comparison::of(&champion, &challenger, &BootstrapSettings::default()).unwrap();
    let against = Against { champion: &champion, comparison: &comparison };
    let thumbnails = Thumbnails::new();
    let sets = vec![set(&challenger, Some(against), &thumbnails), set(&challenger, None, &thumbnails)];
    let page = page(&report(sets, None));
    let first = page.split("id=\"set-1\"").next().unwrap();
    assert_eq!(first.matches("<svg class=\"plot\"").count(), 4, "two scatters, residuals, calibration");
    assert_eq!(first.matches("<svg class=\"interval").count(), comparison.metrics.len());
    assert!(first.contains("class=\"interval good\""), "the challenger is better");
    assert_eq!(first.matches("The champion predicted").count(), WORST);
    assert!(page.contains("href=\"#set-1\"") && page.contains("m old") && page.contains("m new"));
}

#[test]
fn a_set_of_nothing_is_a_page_all_the_same() {
    let model = ModelVersion { model: "m".into(), version: "v".into(), preprocess_revision: 1 };
    let empty = Evaluation::measure(model, (1.0, 10.0), Vec::new(), &BootstrapSettings::default());
    let thumbnails = Thumbnails::new();
    let page = page(&report(vec![set(&empty, None, &thumbnails)], None));
    assert!(!page.contains("NaN") && !page.contains("inf"), "{page}");
}
