use super::*;
use crate::{
    fault::{ErrorCode, Stage},
    report::check,
};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use std::fs;

fn meta() -> ReportMeta {
    ReportMeta {
        title: "Scores of <one> & two".into(),
        model: ModelVersion {
            model: "mplug_owl2".into(),
            version: "sha256:abc".into(),
            preprocess_revision: 1,
        },
        score_range: (1.0, 10.0),
        settings: vec![("prompt".into(), "</dd><script>x()</script>".into())],
        note: None,
        written_at: OffsetDateTime::UNIX_EPOCH,
        elapsed: Some(Duration::from_secs(75)),
    }
}

fn scored(image: &str, bin: usize) -> Entry {
    let mut distribution = vec![0.0; 10];
    distribution[bin] = 1.0;
    Entry {
        image: image.into(),
        size: Some((400, 300)),
        thumbnail: Some(vec![0xff, 0xd8, 0xff]),
        outcome: Ok(EntryScore {
            scores: vec![ScoreValue::from_distribution(distribution, 1.0, 10.0)],
            text: "The rate is <b>high</b> .".into(),
        }),
    }
}

fn rejected(image: &str) -> Entry {
    let message = format!("{image}: JPEG ends early; re-export or re-upload it");
    let error = ItemError::new(ErrorCode::ImageTruncated, Stage::Decode, message);
    Entry { image: image.into(), size: None, thumbnail: None, outcome: Err(error) }
}

fn page(entries: Vec<Entry>) -> String {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("report.html");
    write(&path, &meta(), entries).unwrap();
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "no partial file is left");
    fs::read_to_string(path).unwrap()
}

#[test]
fn whatever_a_name_holds_stays_text() {
    let page =
        page(vec![scored("<img onerror=alert(1)>.jpg", 4), rejected("\"><script>alert(2)</script>.png")]);
    assert!(page.contains("&lt;img onerror=alert(1)&gt;.jpg"));
    assert!(page.contains("alt=\"&lt;img onerror"));
    assert!(page.contains("&lt;b&gt;high&lt;/b&gt;"));
    assert!(!page.contains("<img onerror") && !page.contains("<b>high"));
    assert_eq!(page.matches("<script").count(), 1, "the page's own");
}

#[test]
fn the_gallery_is_sorted_by_score_then_name() {
    let page = page(vec![scored("low", 1), scored("b-high", 8), rejected("broken"), scored("a-high", 8)]);
    let at = |name: &str| page.find(&format!("alt=\"{name}\"")).unwrap();
    assert!(at("a-high") < at("b-high") && at("b-high") < at("low"));
    assert!(page.contains("JPEG ends early</p><p class=\"remedy\">re-export or re-upload it"));
}

#[test]
fn nothing_is_loaded_from_elsewhere() {
    let page = page(vec![scored("a.jpg", 3)]);
    assert!(!page.contains("http://") && !page.contains("https://") && !page.contains("//cdn"));
    assert!(page.contains("default-src 'none'"));
}

#[test]
fn the_policy_allows_the_pages_own_style_and_script() {
    use sha2::{Digest, Sha256};
    let page = page(vec![scored("a.jpg", 3)]);
    for tag in ["style", "script"] {
        let start = page.find(&format!("<{tag}>")).unwrap() + tag.len() + 2;
        let end = page.find(&format!("</{tag}>")).unwrap();
        let hash = STANDARD.encode(Sha256::digest(&page[start..end]));
        assert!(
            page.contains(&format!("{tag}-src &#39;sha256-{hash}"))
                || page.contains(&format!("{tag}-src 'sha256-{hash}"))
        );
    }
}

#[test]
fn a_page_of_rejections_only_has_no_gallery() {
    let page = page(vec![rejected("a.jpg")]);
    assert!(!page.contains("id=\"gallery\"") && page.contains("Rejected"));
}

#[test]
fn a_place_that_takes_no_file_is_found_out_first() {
    assert!(check(Path::new("/no/such/folder/report.html")).is_err());
    assert!(check(Path::new("/")).is_err());
    let folder = tempfile::tempdir().unwrap();
    check(&folder.path().join("report.html")).unwrap();
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
}
