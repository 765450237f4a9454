//! The `score` command as a process: what it writes, in which order, and how it ends.

use safetensors::SafeTensors;
use serde::Deserialize;
use serde_json::Value;
use std::{
    collections::{BTreeMap, BTreeSet},
    env,
    ffi::OsStr,
    fs,
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
};

/// How close a score in f32 is to the reference's.
const TOLERANCE: f64 = 1e-4;

#[derive(Deserialize)]
struct Generated {
    precision: u8,
    assess: BTreeMap<String, Answer>,
}

#[derive(Deserialize)]
struct Answer {
    text: String,
    generated_ids: Vec<u32>,
    scores: Vec<GoldenScore>,
}

#[derive(Deserialize)]
struct GoldenScore {
    score: f64,
    probs: Vec<f64>,
}

fn golden(name: &str) -> PathBuf {
    let folder = env::var_os("ROC4MLLM_GOLDEN")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/golden"), PathBuf::from);
    let path = folder.join(name);
    assert!(path.exists(), "{}: no such golden file", path.display());
    path
}

fn answers() -> Generated {
    let path = golden("generate_f32.json");
    let answers: Generated = serde_json::from_slice(&fs::read(&path).unwrap())
        .unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    assert!(!answers.assess.is_empty(), "{}: no answers", path.display());
    answers
}

/// The question of the golden `assess` prompt.
fn question() -> String {
    let path = golden("prompts.json");
    let prompts: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    let text = prompts["assess"]["prompt"].as_str().and_then(|text| text.split_once("<|image|>"));
    let question = text.and_then(|(_, rest)| rest.rsplit_once(" ASSISTANT:"));
    question.unwrap_or_else(|| panic!("{}: assess: no question", path.display())).0.to_owned()
}

/// Images whose preprocessing the reference garbles or refuses: its answers are not ours.
fn garbled() -> BTreeSet<String> {
    let bytes = fs::read(golden("pixel_values_sane.safetensors")).unwrap();
    SafeTensors::deserialize(&bytes).unwrap().names().into_iter().map(str::to_owned).collect()
}

/// The golden images, sorted by name.
fn images() -> Vec<PathBuf> {
    let entries = fs::read_dir(golden("images")).unwrap();
    let mut files: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
    files.sort();
    assert!(!files.is_empty(), "{}: empty", golden("images").display());
    files
}

fn command() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_roc4mllm"));
    command.arg("score");
    for (name, _) in env::vars().filter(|(name, _)| name.starts_with("AWS_")) {
        command.env_remove(name);
    }
    command
}

/// `score` with the golden checkpoint.
fn score<A: AsRef<OsStr>>(arguments: impl IntoIterator<Item = A>) -> Output {
    let mut command = command();
    command.arg("--checkpoint").arg(golden("ckpt_safetensors")).args(["--dtype", "f32"]).args(arguments);
    command.output().unwrap()
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

#[track_caller]
fn assert_exit(output: &Output, code: i32) {
    assert_eq!(output.status.code(), Some(code), "standard error: {}", text(&output.stderr));
}

fn lines(output: &Output) -> Vec<Value> {
    text(&output.stdout).lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn stem(image: &str) -> &str {
    Path::new(image).file_stem().unwrap().to_str().unwrap()
}

/// Text with every number replaced by `#`: numbers are held to the scores' tolerance instead.
fn without_numbers(text: &str) -> String {
    let words = text.split(' ').map(|word| if word.parse::<f64>().is_ok() { "#" } else { word });
    words.collect::<Vec<_>>().join(" ")
}

fn numbers(value: &Value) -> Vec<f64> {
    value.as_array().unwrap().iter().map(|number| number.as_f64().unwrap()).collect()
}

fn assert_near(place: &str, found: f64, expected: f64) {
    assert!((found - expected).abs() <= TOLERANCE, "{place}: {found}, golden {expected}");
}

#[test]
fn golden_scores_of_a_folder_in_json_lines() {
    let answers = answers();
    let (precision, question) = (answers.precision.to_string(), question());
    let folder = golden("images");
    let options = ["--format", "jsonl", "--precision", &precision, "--prompt", &question].map(OsStr::new);
    let output = score(options.into_iter().chain([folder.as_os_str()]));
    let lines = lines(&output);
    let rejected = lines.iter().any(|line| line["status"] == "rejected");
    assert_exit(&output, if rejected { 3 } else { 0 });
    let all_have_scores = answers.assess.values().all(|answer| !answer.scores.is_empty());
    let names: Vec<_> = lines.iter().map(|line| PathBuf::from(line["image"].as_str().unwrap())).collect();
    assert_eq!(names, images(), "every image once, in order");
    let garbled = garbled();
    let mut compared = 0;
    for line in &lines {
        let image = line["image"].as_str().unwrap();
        let place = format!("generate_f32.json: assess/{}", stem(image));
        let golden = match answers.assess.get(stem(image)) {
            _ if garbled.contains(stem(image)) => None,
            None => panic!("{place}: missing"),
            found => found,
        };
        let scored =
            golden.map_or(all_have_scores || line["status"] == "scored", |golden| !golden.scores.is_empty());
        if !scored {
            assert_eq!(
                (&line["status"], &line["error"]["code"]),
                (&"rejected".into(), &"no_score_token".into()),
                "{place}"
            );
            compared += 1;
            continue;
        }
        assert_eq!(line["status"], "scored", "{image}");
        assert_eq!(line["score"], line["scores"][0], "{image}");
        assert!(!line["model_version"].as_str().unwrap().is_empty(), "{image}");
        let Some(golden) = golden else { continue };
        assert_eq!(line["tokens"], serde_json::json!(golden.generated_ids), "{place}: ids");
        let passes = line["forwards"].as_u64().unwrap();
        let verified = line["decode"] == "verified";
        assert_eq!(passes == 1, verified, "{place}: {passes} forwards, {}", line["decode"]);
        assert!(passes <= golden.generated_ids.len() as u64, "{place}: {passes} forwards");
        let scores = numbers(&line["scores"]);
        let distributions = line["distributions"].as_array().unwrap();
        assert_eq!(scores.len(), golden.scores.len(), "{place}: scores");
        assert_eq!(distributions.len(), golden.scores.len(), "{place}: distributions");
        for ((score, distribution), expected) in scores.iter().zip(distributions).zip(&golden.scores) {
            assert_near(&place, *score, expected.score);
            let distribution = numbers(distribution);
            assert_eq!(distribution.len(), expected.probs.len(), "{place}: bins");
            for (found, expected) in distribution.iter().zip(&expected.probs) {
                assert_near(&place, *found, *expected);
            }
        }
        if golden.scores.len() == 1 {
            let found = line["text"].as_str().unwrap();
            assert_eq!(without_numbers(found), without_numbers(&golden.text), "{place}: text");
        }
        compared += 1;
    }
    assert!(compared > 0, "pixel_values_sane.safetensors: leaves no image to compare");
}

#[test]
fn batches_of_any_size_give_the_same_scores_in_the_order_of_the_arguments() {
    let mut files = images();
    files.reverse();
    let run = |size: &'static str| {
        let options = ["--format", "jsonl", "--batch-size", size].map(OsStr::new);
        let output = score(options.into_iter().chain(files.iter().map(|file| file.as_os_str())));
        assert_exit(&output, 0);
        lines(&output)
    };
    let (alone, together) = (run("1"), run("5"));
    for ((file, alone), together) in files.iter().zip(&alone).zip(&together) {
        let name = file.to_str().unwrap();
        assert_eq!((alone["image"].as_str(), together["image"].as_str()), (Some(name), Some(name)));
        assert_near(name, together["score"].as_f64().unwrap(), alone["score"].as_f64().unwrap());
        assert_eq!(alone["tokens"], together["tokens"], "{name}");
    }
    assert_eq!((alone.len(), together.len()), (files.len(), files.len()));
}

/// A folder of files that are no photos, between two copies of one that is.
/// A photograph of smooth waves, as JPEG and as PNG.
fn waves(folder: &Path, width: usize, height: usize) -> [PathBuf; 2] {
    let wave = |x: usize, y: usize, speed: f64| {
        128.0 + 90.0 * (x as f64 * speed).sin() * (y as f64 * speed / 2.0).cos()
    };
    let pixels: Vec<u8> = (0..width * height)
        .flat_map(|index| [0.11, 0.07, 0.03].map(|speed| wave(index % width, index / width, speed) as u8))
        .collect();
    let image = turbojpeg::Image {
        pixels: pixels.as_slice(),
        width,
        pitch: width * 3,
        height,
        format: turbojpeg::PixelFormat::RGB,
    };
    let jpeg = turbojpeg::compress(image, 90, turbojpeg::Subsamp::Sub2x2).unwrap();
    let [jpeg_file, png_file] = ["waves.jpg", "waves.png"].map(|name| folder.join(name));
    fs::write(&jpeg_file, &*jpeg).unwrap();
    let image = image::RgbImage::from_raw(width as u32, height as u32, pixels).unwrap();
    image.save(&png_file).unwrap();
    [jpeg_file, png_file]
}

/// A large JPEG's score moves a little, under a version of its own; nothing else's does.
#[test]
fn fast_preprocessing_says_so_and_moves_the_scores_of_large_jpegs_alone() {
    let folder = tempfile::tempdir().unwrap();
    let [large, png] = waves(folder.path(), 1200, 900);
    let small_folder = tempfile::tempdir().unwrap();
    let [small, _] = waves(small_folder.path(), 120, 90);
    let run = |mode: &'static str| {
        // One at a time, since a batch moves the last digits of a score.
        let options = ["--format", "jsonl", "--batch-size", "1", "--preprocess", mode].map(OsStr::new);
        let files = [&large, &png, &small].map(|file| file.as_os_str());
        let output = score(options.into_iter().chain(files));
        assert_exit(&output, 0);
        lines(&output)
    };
    let (exact, fast) = (run("exact"), run("fast"));
    for (exact, fast) in exact.iter().zip(&fast) {
        let version = |line: &Value| line["model_version"].as_str().unwrap().to_owned();
        assert_eq!(version(fast), version(exact) + "+fast");
    }
    let apart =
        |index: usize| (numbers(&exact[index]["scores"])[0] - numbers(&fast[index]["scores"])[0]).abs();
    for (index, what) in [(1, "a PNG"), (2, "a JPEG that is not large")] {
        // The last digits differ with whether an answer was generated or verified, and which photograph
        // comes first, and so gives the draft, is chance.
        assert!(apart(index) <= 1e-6, "{what}: {} apart", apart(index));
    }
    assert!(apart(0) > 1e-5, "decoded at full size: {} apart", apart(0));
    // Of nine points from the worst to the best; 0.0007 was seen, and at most 0.0021 over 27 photographs.
    assert!(apart(0) <= 0.005, "{} apart", apart(0));
}

fn broken_folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let photo = images().into_iter().find(|path| path.extension() == Some("jpg".as_ref())).unwrap();
    let photo = fs::read(photo).unwrap();
    let place = |name: &str| folder.path().join(name);
    fs::write(place("a good.jpg"), &photo).unwrap();
    fs::write(place("b empty.png"), "").unwrap();
    fs::write(place("c page.jpg"), "<!DOCTYPE html><html><body>404</body></html>").unwrap();
    fs::write(place("d cut.jpg"), &photo[..photo.len() / 2]).unwrap();
    fs::write(place("e bomb.png"), png_header(60_000, 60_000)).unwrap();
    fs::write(place("f <img src=x onerror=alert(1)>.jpg"), &photo).unwrap();
    fs::write(place("notes.txt"), "not an image").unwrap();
    fs::write(place(".hidden.jpg"), &photo).unwrap();
    folder
}

/// The start of a PNG that claims this size: header and an empty chunk of pixels.
fn png_header(width: u32, height: u32) -> Vec<u8> {
    let mut header = Vec::new();
    header.extend(width.to_be_bytes());
    header.extend(height.to_be_bytes());
    header.extend([8, 2, 0, 0, 0]);
    let mut bytes = b"\x89PNG\r\n\x1a\n".to_vec();
    for (kind, data) in [(b"IHDR", &header[..]), (b"IDAT", &[])] {
        bytes.extend((data.len() as u32).to_be_bytes());
        let chunk = [&kind[..], data].concat();
        bytes.extend(&chunk);
        bytes.extend(crc32(&chunk).to_be_bytes());
    }
    bytes
}

fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| (crc >> 1) ^ if crc & 1 == 1 { 0xedb8_8320 } else { 0 })
    })
}

#[test]
fn broken_files_are_rejected_in_their_place_and_the_exit_code_says_so() {
    let folder = broken_folder();
    let output = score(["--format", "jsonl", folder.path().to_str().unwrap()]);
    assert_exit(&output, 3);
    let outcomes: Vec<_> = lines(&output)
        .iter()
        .map(|line| {
            let name = Path::new(line["image"].as_str().unwrap()).file_name().unwrap().to_owned();
            let outcome = line["error"]["code"].as_str().or(line["status"].as_str()).unwrap().to_owned();
            if line["status"] == "rejected" {
                let message = line["error"]["message"].as_str().unwrap();
                assert!(message.starts_with(line["image"].as_str().unwrap()), "{message}");
                assert_eq!(line["error"]["stage"], "decode");
                assert_eq!(line.as_object().unwrap().len(), 3, "{line}");
            }
            (name.into_string().unwrap(), outcome)
        })
        .collect();
    let expected = [
        ("a good.jpg", "scored"),
        ("b empty.png", "image_truncated"),
        ("c page.jpg", "unsupported"),
        ("d cut.jpg", "image_truncated"),
        ("e bomb.png", "too_many_pixels"),
        ("f <img src=x onerror=alert(1)>.jpg", "scored"),
    ];
    assert_eq!(outcomes, expected.map(|(name, outcome)| (name.to_owned(), outcome.to_owned())));
}

#[test]
fn a_file_that_was_named_is_tried_whatever_its_name() {
    let folder = broken_folder();
    let output = score(["--format", "jsonl", folder.path().join("notes.txt").to_str().unwrap()]);
    assert_exit(&output, 3);
    assert_eq!(lines(&output)[0]["error"]["code"], "unsupported");
}

#[test]
fn what_cannot_be_begun_exits_with_2_and_names_the_reason() {
    let empty = tempfile::tempdir().unwrap();
    fs::write(empty.path().join("notes.txt"), "no image").unwrap();
    let (empty, image) = (empty.path().to_str().unwrap(), images().swap_remove(0));
    let image = image.to_str().unwrap();
    for (arguments, named) in [
        (vec![empty], empty),
        (vec![image, "/no/such/photo.jpg"], "/no/such/photo.jpg"),
        (vec!["-"], "-"),
        (vec!["s3:///photo.jpg"], "s3:///photo.jpg"),
        (vec![image, "--device", "gpu"], "gpu"),
        (vec![image, "--batch-size", "0"], "--batch-size"),
    ] {
        let output = score(&arguments);
        assert_exit(&output, 2);
        assert!(output.stdout.is_empty(), "{arguments:?}: {}", text(&output.stdout));
        let error = text(&output.stderr);
        assert!(error.contains(named), "{arguments:?}: {error}");
    }
    for checkpoint in ["/no/such/checkpoint", empty] {
        let output = command().args(["--checkpoint", checkpoint, image]).output().unwrap();
        assert_exit(&output, 2);
        assert!(text(&output.stderr).contains(checkpoint), "{}", text(&output.stderr));
    }
}

#[test]
fn a_report_that_cannot_be_written_is_found_out_before_any_work() {
    let image = images().swap_remove(0);
    let output = score(["--report", "/no/such/folder/report.html", image.to_str().unwrap()]);
    assert_exit(&output, 1);
    assert!(output.stdout.is_empty());
    assert!(text(&output.stderr).contains("/no/such/folder/report.html"), "{}", text(&output.stderr));
}

#[test]
fn csv_and_table_say_what_json_lines_say() {
    let folder = broken_folder();
    let folder = folder.path().to_str().unwrap();
    let run = |format: &str| {
        let output = score(["--format", format, folder]);
        assert_exit(&output, 3);
        output
    };
    let lines = lines(&run("jsonl"));
    let csv = run("csv");
    let mut reader = csv::Reader::from_reader(&csv.stdout[..]);
    let rows: Vec<BTreeMap<String, String>> = reader.deserialize().map(Result::unwrap).collect();
    assert_eq!(rows.len(), lines.len());
    let table = run("table");
    let table: Vec<_> = text(&table.stdout).lines().collect();
    assert_eq!(table.len(), lines.len() + 1, "a header and a line an image");
    let column = table[0].find("IMAGE").unwrap();
    for ((line, row), shown) in lines.iter().zip(&rows).zip(&table[1..]) {
        let image = line["image"].as_str().unwrap();
        assert_eq!((row["image"].as_str(), Some(row["status"].as_str())), (image, line["status"].as_str()));
        assert!(shown[column..].starts_with(image), "{shown}");
        match line["score"].as_f64() {
            Some(score) => {
                assert_near(image, row["score"].parse().unwrap(), score);
                assert_eq!(row["text"], line["text"].as_str().unwrap());
                assert_eq!(row["model_version"], line["model_version"].as_str().unwrap());
                let word = shown.split_whitespace().next().unwrap();
                assert_eq!(word.split_once('.').unwrap().1.len(), 4, "{shown}");
                assert!((word.parse::<f64>().unwrap() - score).abs() <= 5e-5 + TOLERANCE, "{shown}");
            }
            None => {
                assert_eq!(row["error_code"], line["error"]["code"].as_str().unwrap());
                assert_eq!(row["error_message"], line["error"]["message"].as_str().unwrap());
                let reason = row["error_message"].strip_prefix(image).unwrap().trim_start_matches(": ");
                assert!(shown.starts_with("rejected") && shown.ends_with(reason), "{shown}");
            }
        }
    }
}

#[test]
fn a_reader_that_leaves_early_ends_the_command_quietly() {
    let many: Vec<_> = images().into_iter().cycle().take(400).collect();
    let mut child = command()
        .arg("--checkpoint")
        .arg(golden("ckpt_safetensors"))
        .args(["--format", "jsonl", "--batch-size", "4"])
        .args(many)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut first = String::new();
    let mut reader = BufReader::with_capacity(64, child.stdout.take().unwrap());
    reader.read_line(&mut first).unwrap();
    drop(reader);
    let output = child.wait_with_output().unwrap();
    assert!(first.starts_with(r#"{"image":"#), "{first}");
    assert_exit(&output, 0);
    let errors: Vec<_> = text(&output.stderr).lines().filter(|line| !line.contains("INFO")).collect();
    assert!(errors.is_empty(), "{errors:?}");
}

/// The page's tags are closed in the order they were opened; what holds no markup is passed over.
fn assert_well_formed(page: &str) {
    const VOID: [&str; 4] = ["!DOCTYPE", "img", "input", "meta"];
    let mut open = Vec::new();
    let mut rest = page;
    while let Some(start) = rest.find('<') {
        rest = &rest[start + 1..];
        let name: &str = rest.split(['>', ' ', '\n']).next().unwrap();
        match name.strip_prefix('/') {
            Some(name) => assert_eq!(open.pop(), Some(name), "closed out of order"),
            None if VOID.contains(&name) => {}
            None => {
                open.push(name);
                if ["script", "style"].contains(&name) {
                    rest = &rest[rest.find(&format!("</{name}")).unwrap()..];
                    continue;
                }
            }
        }
        // Quoted values hold `<` and `>` as entities, so the next `>` ends the tag.
        rest = &rest[rest.find('>').unwrap() + 1..];
    }
    assert_eq!(open, [""; 0], "left open");
}

/// The thumbnails of a page, decoded.
fn thumbnails(page: &str) -> Vec<Vec<u8>> {
    use base64::{Engine, engine::general_purpose::STANDARD};
    let addresses = page.split("data:image/jpeg;base64,").skip(1);
    addresses.map(|rest| STANDARD.decode(rest.split('"').next().unwrap()).unwrap()).collect()
}

/// Width and height that a JPEG's frame header states.
fn jpeg_size(jpeg: &[u8]) -> (u16, u16) {
    let mut at = 2;
    loop {
        let (marker, length) = (jpeg[at + 1], usize::from(u16::from_be_bytes([jpeg[at + 2], jpeg[at + 3]])));
        if (0xc0..=0xc2).contains(&marker) {
            let number = |at: usize| u16::from_be_bytes([jpeg[at], jpeg[at + 1]]);
            return (number(at + 7), number(at + 5));
        }
        at += 2 + length;
    }
}

#[test]
fn the_report_is_one_page_that_shows_everything_and_loads_nothing() {
    let broken = broken_folder();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("report.html");
    let images_folder = golden("images");
    let output = score([
        "--report".as_ref(),
        path.as_os_str(),
        "--format".as_ref(),
        "jsonl".as_ref(),
        images_folder.as_os_str(),
        broken.path().as_os_str(),
    ]);
    assert_exit(&output, 3);
    let page = fs::read_to_string(&path).unwrap();
    assert_well_formed(&page);
    assert!(!page.contains("http:") && !page.contains("https:"), "an address in the page");
    assert!(!page.contains("<img src=x") && page.contains("&lt;img src=x onerror=alert(1)&gt;"));

    let lines = lines(&output);
    let scored: Vec<_> = lines.iter().filter(|line| line["status"] == "scored").collect();
    assert_eq!(page.matches("<li class=\"card\"").count(), scored.len());
    let shown: Vec<f64> = page
        .split("data-score=\"")
        .skip(1)
        .map(|rest| rest.split('"').next().unwrap().parse().unwrap())
        .collect();
    assert!(shown.is_sorted_by(|one, next| one >= next), "best first: {shown:?}");
    for line in lines.iter().filter(|line| line["status"] == "rejected") {
        let reason = line["error"]["message"].as_str().unwrap().rsplit_once("; ").unwrap().1;
        assert!(page.contains(reason), "{reason}");
    }

    let thumbnails = thumbnails(&page);
    assert_eq!(thumbnails.len(), scored.len());
    for jpeg in &thumbnails {
        assert!(!jpeg.windows(4).any(|bytes| bytes == b"Exif"), "a thumbnail keeps its EXIF");
    }
}

#[test]
fn golden_images_with_an_orientation_are_upright_in_the_report() {
    let path = golden("images.json");
    let described: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    let answers = answers();
    // The report shows what was scored.
    let shown = |image: &Value| {
        let answer = answers.assess.get(stem(image["file"].as_str().unwrap()));
        answer.is_none_or(|answer| !answer.scores.is_empty())
    };
    let turned: Vec<_> = described["images"]
        .as_array()
        .unwrap_or_else(|| panic!("{}: no images", path.display()))
        .iter()
        .filter(|image| image["exif_orientation"].as_u64().is_some_and(|value| (5..=8).contains(&value)))
        .filter(|image| shown(image))
        .collect();
    let folder = tempfile::tempdir().unwrap();
    for image in turned {
        let report = folder.path().join("report.html");
        let file = golden("images").join(image["file"].as_str().unwrap());
        assert_exit(&score(["--report".as_ref(), report.as_os_str(), file.as_os_str()]), 0);
        let (width, height) = jpeg_size(&thumbnails(&fs::read_to_string(&report).unwrap())[0]);
        let lies = |width: u64, height: u64| width.cmp(&height);
        assert_eq!(
            lies(width.into(), height.into()),
            lies(image["height"].as_u64().unwrap(), image["width"].as_u64().unwrap()),
            "{}: {width}x{height}",
            image["file"]
        );
    }
}

#[cfg(feature = "dev")]
#[test]
fn an_s3_prefix_scores_as_its_files_do() {
    use roc4mllm::dev::S3Server;
    let root = tempfile::tempdir().unwrap();
    let server = S3Server::start(root.path()).unwrap();
    let bucket = server.create_bucket("photos").unwrap();
    let album = bucket.join("album 1/é");
    fs::create_dir_all(&album).unwrap();
    for image in images().iter().take(4) {
        fs::copy(image, album.join(image.file_name().unwrap())).unwrap();
    }
    fs::write(album.join("notes.txt"), "no image").unwrap();
    fs::write(album.join("zero.jpg"), "").unwrap();
    let output = command()
        .arg("--checkpoint")
        .arg(golden("ckpt_safetensors"))
        .args(["--dtype", "f32", "--format", "jsonl", "s3://photos/album 1/"])
        .env("AWS_ENDPOINT_URL", server.endpoint())
        .env("AWS_ACCESS_KEY_ID", S3Server::ACCESS_KEY)
        .env("AWS_SECRET_ACCESS_KEY", S3Server::SECRET_KEY)
        .output()
        .unwrap();
    assert_exit(&output, 3);
    let (remote, local) =
        (lines(&output), lines(&score(["--format".as_ref(), "jsonl".as_ref(), album.as_os_str()])));
    assert_eq!((remote.len(), local.len()), (5, 5));
    for (remote, local) in remote.iter().zip(&local) {
        let file = Path::new(local["image"].as_str().unwrap()).file_name().unwrap().to_str().unwrap();
        assert_eq!(remote["image"].as_str().unwrap(), format!("s3://photos/album 1/é/{file}"));
        assert_eq!(remote["status"], local["status"]);
        if let Some(score) = local["score"].as_f64() {
            assert_near(file, remote["score"].as_f64().unwrap(), score);
        }
    }
    let nothing = command()
        .arg("--checkpoint")
        .arg(golden("ckpt_safetensors"))
        .arg("s3://photos/album 2/")
        .env("AWS_ENDPOINT_URL", server.endpoint())
        .env("AWS_ACCESS_KEY_ID", S3Server::ACCESS_KEY)
        .env("AWS_SECRET_ACCESS_KEY", S3Server::SECRET_KEY)
        .output()
        .unwrap();
    assert_exit(&nothing, 2);
    assert!(text(&nothing.stderr).contains("s3://photos/album 2/"), "{}", text(&nothing.stderr));
}

/// A machine whose GPU could not be used must not score on its CPU instead, whatever it is built for.
#[test]
fn a_gpu_that_is_not_there_ends_the_command_and_says_why() {
    let output = score([OsStr::new("--device"), OsStr::new("cuda:77"), golden("images").as_os_str()]);
    assert_exit(&output, 2);
    let message = text(&output.stderr);
    let reason = match tch::utils::has_cudart() {
        true => "nvidia-smi",
        false => "make libtorch CUDA=1",
    };
    assert!(message.contains("cuda:77") && message.contains(reason), "{message}");
    assert!(output.stdout.is_empty(), "{}", text(&output.stdout));
}

#[test]
fn packed_weights_give_the_same_scores_under_the_same_version() {
    let folder = golden("images");
    let of = |pack: &str| {
        let options = ["--format", "jsonl", "--pack", pack].map(OsStr::new);
        lines(&score(options.into_iter().chain([folder.as_os_str()])))
    };
    let (mapped, packed) = (of("never"), of("always"));
    assert_eq!(mapped.len(), packed.len());
    let mut scored = 0;
    for (one, other) in mapped.iter().zip(&packed) {
        for field in ["image", "status", "tokens", "model_version"] {
            assert_eq!(one[field], other[field], "{}: {field}", one["image"]);
        }
        if let (Some(one), Some(other)) = (one["score"].as_f64(), other["score"].as_f64()) {
            assert!((one - other).abs() < 1e-4, "{one}, {other}");
            scored += 1;
        }
    }
    assert!(scored > 0);
}

#[test]
fn quantized_scores_are_near_and_say_how_they_were_computed() {
    let folder = golden("images");
    let of = |quantize: &str| {
        let options = ["--format", "jsonl", "--quantize", quantize].map(OsStr::new);
        let output = score(options.into_iter().chain([folder.as_os_str()]));
        lines(&output)
    };
    let exact = of("none");
    let range = score_range();
    for quantize in ["w8a8", "int8"] {
        let (mut scored, mut moved) = (0, 0);
        for (one, other) in exact.iter().zip(of(quantize)) {
            assert_eq!(one["image"], other["image"]);
            let (Some(one_score), Some(score)) = (one["score"].as_f64(), other["score"].as_f64()) else {
                continue;
            };
            let version = one["model_version"].as_str().unwrap();
            assert_eq!(other["model_version"], format!("{version}+{quantize}"));
            assert!((score - one_score).abs() < 0.1 * range, "{}: {score}, not {one_score}", one["image"]);
            scored += 1;
            moved += usize::from(score != one_score);
        }
        assert!(scored > 0 && moved > 0, "{quantize}: {moved} of {scored} moved");
    }
}

/// The checkpoint's highest score less its lowest.
fn score_range() -> f64 {
    let config: Value =
        serde_json::from_slice(&fs::read(golden("ckpt_safetensors/config.json")).unwrap()).unwrap();
    let number = |key: &str| config[key].as_f64().unwrap_or_else(|| panic!("config.json: {key}"));
    number("max_score") - number("min_score")
}
