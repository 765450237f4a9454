//! What the fuzzers call, on whatever bytes: each function panics where the library breaks a promise.
//!
//! `tests/corpus.rs` runs the same functions over the kept corpus, without a fuzzer.

use roc4mllm::{
    config,
    image::{self, ImageSettings, Preprocessor},
    labels::{LabelFileError, Origin, SampleReader, SampleWriter, Scale, Vote, csv::CsvReader, label},
    model::checkpoint::Checkpoint,
    record::{
        Header,
        input::{self, ITEM_HEADER, Item},
        trace::TraceContext,
    },
};
use std::{cell::OnceCell, collections::BTreeSet, fmt::Display, fs, io::Write, path::Path};
use tempfile::TempDir;
use zip::{CompressionMethod, ZipWriter, write::SimpleFileOptions};

/// An input record's value; its first line is a header's value as well.
pub fn record(data: &[u8]) {
    let line = data.split(|&byte| byte == b'\n').next().unwrap_or_default();
    let buckets = ["photos".to_owned()];
    let plain = input::parse(Some(data), &[], &[]);
    assert_eq!(plain, input::parse(Some(data), &[], &[]), "the same bytes give the same items");
    for (headers, allowed) in [
        (vec![], &buckets[..]),
        (vec![Header::new("ce_specversion", line)], &[][..]),
        (vec![Header::new(ITEM_HEADER, "0")], &[][..]),
        (vec![Header::new(ITEM_HEADER, line)], &[][..]),
    ] {
        check_items(&input::parse(Some(data), &headers, allowed));
    }
    check_items(&plain);
    let headers = [Header::new("traceparent", line), Header::new("tracestate", data)];
    let carried = TraceContext::continue_from(&headers).headers();
    assert_eq!(TraceContext::continue_from(&carried).trace_id().len(), 32);
}

fn check_items(record: &input::ParsedRecord) {
    assert!(!record.items.is_empty(), "every record comes to something");
    let indices: BTreeSet<u32> = record.items.iter().map(|item| item.index).collect();
    assert_eq!(indices.len(), record.items.len(), "items have indices of their own");
    for item in &record.items {
        match &item.outcome {
            Ok(Item::Score(object) | Item::Delete(object)) => {
                assert!((1..=1024).contains(&object.key.len()), "S3 has no such key");
                assert!(!object.key.contains('\0'), "Postgres stores no such key");
            }
            Ok(Item::Skip(_)) => {}
            Err(bad) => {
                assert!(bad.error.message.len() <= 512, "the message has its limit");
                one_line(&bad.error.message);
            }
        }
    }
}

/// A `model.safetensors`.
pub fn safetensors(data: &[u8]) {
    open_checkpoint("model.safetensors", data);
}

/// A `model.safetensors.index.json` beside one shard.
pub fn shards(data: &[u8]) {
    with_folder(|folder| {
        put(folder, "model-00001-of-00001.safetensors", SHARD);
        put(folder, "model.safetensors.index.json", data);
        open(folder);
        remove(folder, "model.safetensors.index.json");
        remove(folder, "model-00001-of-00001.safetensors");
    });
}

/// A `pytorch_model.bin`: a zip file as it is, or the pickle within one.
pub fn pickle(data: &[u8]) {
    if data.starts_with(b"PK") {
        return open_checkpoint("pytorch_model.bin", data);
    }
    let zipped = zipped(data).unwrap_or_default();
    open_checkpoint("pytorch_model.bin", &zipped);
}

/// An image file, decoded within narrow limits and brought to the model's input.
pub fn image(data: &[u8]) {
    let settings = ImageSettings {
        max_bytes: 1 << 20,
        max_pixels: 1 << 18,
        max_alloc_bytes: 4 << 20,
        ..ImageSettings::default()
    };
    let size = image::dimensions(data, &settings);
    let decoded = image::decode(data, &settings);
    if let Err(error) = &decoded {
        one_line(error);
    }
    let pixels = decoded.map(|image| (image.width(), image.height()));
    if let (Ok((width, height)), Ok(pixels)) = (&size, &pixels) {
        // A TIFF may be turned.
        assert!(*pixels == (*width, *height) || *pixels == (*height, *width), "{pixels:?} of {size:?}");
    }
    if let Ok(small) = image::thumbnail(data, &settings, 32) {
        let (width, height) = image::dimensions(&small, &settings).expect("a thumbnail is an image");
        assert!(width.max(height) <= 32);
    }
    PREPROCESSOR.with(|preprocessor| {
        let preprocessor = preprocessor.get_or_init(small_preprocessor);
        let edge = preprocessor.image_size();
        let mut values = vec![f32::NAN; 3 * edge * edge];
        let read = preprocessor.read(data, &settings, &mut values);
        assert_eq!(read.is_ok(), pixels.is_ok(), "what decodes can be preprocessed");
        if read.is_ok() {
            assert!(values.iter().all(|value| value.is_finite()), "every pixel value is written");
        }
    });
}

/// A record of the labels topic, a file of samples, and one of CSV.
pub fn labels(data: &[u8]) {
    let now = time::OffsetDateTime::UNIX_EPOCH + time::Duration::days(20_000);
    match Vote::from_record(data, Some(now), &Scale::PAPER, now) {
        Ok(vote) => assert_eq!(vote.check(&Scale::PAPER, now), Ok(()), "what is read is right"),
        Err(refusal) => one_line(&refusal),
    }
    let mut writer = SampleWriter::new(Vec::new());
    let mut samples = Vec::new();
    for sample in SampleReader::new("fuzz", data).checked(Scale::PAPER) {
        match sample {
            Ok(sample) => {
                writer.write(&sample).expect("memory can be written to");
                samples.push(sample);
            }
            Err(error) => refused(&error, data),
        }
    }
    let written = writer.finish().expect("memory can be written to");
    let again = SampleReader::new("fuzz", &written[..]).checked(Scale::PAPER);
    let again: Vec<_> = again.map(|sample| sample.expect("what was written can be read")).collect();
    assert_eq!(again.len(), samples.len());
    let origin = Origin {
        bucket: Some("photos".into()),
        prefix: String::new(),
        buckets: Vec::new(),
        rater: "fuzz".into(),
        labelled_at: now,
    };
    for (mut sample, again) in samples.into_iter().zip(again) {
        sample.line = again.line;
        assert_eq!(sample, again, "what was written is what is read");
        match label::votes(sample, &origin, &Scale::PAPER) {
            Ok(votes) => assert!(!votes.is_empty(), "a sample that is right is somebody's vote"),
            Err(refusal) => one_line(&refusal),
        }
    }
    match CsvReader::new("fuzz", data, Scale::PAPER) {
        Ok(reader) => {
            for label in reader {
                match label {
                    Ok(label) => assert_eq!(label.opinion.check(&Scale::PAPER), Ok(())),
                    Err(error) => refused(&error, data),
                }
            }
        }
        Err(error) => one_line(&error),
    }
}

fn refused(error: &LabelFileError, data: &[u8]) {
    one_line(error);
    if let LabelFileError::Refused { line, .. } = error {
        let lines = data.iter().filter(|byte| matches!(byte, b'\n' | b'\r')).count() + 1;
        assert!((1..=lines).contains(line), "line {line} of {lines}");
    }
}

/// A configuration file, and the value of a flag.
pub fn config(data: &[u8]) {
    with_folder(|folder| {
        put(folder, "worker.toml", data);
        match config::load(Some(&folder.join("worker.toml")), &[]) {
            Ok(config) => {
                if let Err(error) = config.check() {
                    one_line(&error);
                }
                let rendered = config::render(&config).expect("what was read can be printed");
                put(folder, "worker.toml", rendered.as_bytes());
                let again = config::load(Some(&folder.join("worker.toml")), &[]);
                assert_eq!(config::render(&again.expect("what was printed can be read")), Ok(rendered));
            }
            Err(error) => one_line(&error),
        }
        remove(folder, "worker.toml");
    });
    if let Ok(text) = std::str::from_utf8(data)
        && let Err(error) = config::load(None, &[("kafka.group".into(), text.into())])
    {
        one_line(&error);
    }
}

fn one_line(message: &impl Display) {
    let message = message.to_string();
    assert!(!message.is_empty() && !message.contains('\n'), "a message is one line: {message:?}");
}

fn open_checkpoint(name: &str, data: &[u8]) {
    with_folder(|folder| {
        put(folder, name, data);
        open(folder);
        remove(folder, name);
    });
}

fn open(folder: &Path) {
    if let Err(error) = Checkpoint::open(folder) {
        one_line(&error);
    }
}

thread_local! {
    static FOLDER: OnceCell<TempDir> = const { OnceCell::new() };
    static PREPROCESSOR: OnceCell<Preprocessor> = const { OnceCell::new() };
}

/// This thread's folder with the files that a checkpoint needs besides its weights.
fn with_folder(work: impl FnOnce(&Path)) {
    FOLDER.with(|folder| {
        let folder = folder.get_or_init(|| {
            let folder = tempfile::tempdir().expect("there is room for a temporary folder");
            put(folder.path(), "config.json", CONFIG);
            put(folder.path(), "preprocessor_config.json", PREPROCESSOR_CONFIG);
            folder
        });
        work(folder.path());
    });
}

fn put(folder: &Path, name: &str, data: &[u8]) {
    fs::write(folder.join(name), data).expect("a temporary file can be written");
}

fn remove(folder: &Path, name: &str) {
    fs::remove_file(folder.join(name)).expect("a temporary file can be removed");
}

fn small_preprocessor() -> Preprocessor {
    let mut opened = None;
    with_folder(|folder| opened = Some(Preprocessor::open(folder)));
    opened.and_then(Result::ok).expect("the preprocessor's configuration is right")
}

/// A pickle as `torch.save` files it, beside the storage of six numbers.
fn zipped(pickle: &[u8]) -> zip::result::ZipResult<Vec<u8>> {
    let mut zip = ZipWriter::new(std::io::Cursor::new(Vec::new()));
    let options = SimpleFileOptions::default().compression_method(CompressionMethod::Stored);
    for (name, content) in [("archive/data.pkl", pickle), ("archive/data/0", &[0; 24])] {
        zip.start_file(name, options)?;
        zip.write_all(content)?;
    }
    Ok(zip.finish()?.into_inner())
}

const CONFIG: &[u8] = include_bytes!("../../tests/fixtures/golden/base_safetensors/config.json");
const PREPROCESSOR_CONFIG: &[u8] =
    include_bytes!("../../tests/fixtures/golden/base_safetensors/preprocessor_config.json");
/// One tensor of two numbers.
const SHARD: &[u8] =
    b"\x36\0\0\0\0\0\0\0{\"w\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8]}}\0\0\0\0\0\0\0\0";
