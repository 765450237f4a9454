//! Checkpoint folders: what is wrong with bad ones, what loading costs, and conversion.

mod support {
    pub mod synthetic_checkpoint;
}

use roc4mllm::model::{
    checkpoint::{
        Checkpoint, CheckpointError, ConvertArgs, Format, Role, TensorProblem, convert, inspect, verify,
    },
    device::{Dtype, Quantize, has_bf16_instructions},
    packing::Packing,
    tokenizer::Tokenizer,
};
use serde_json::{Value, json};
use std::{
    collections::BTreeMap,
    fs,
    io::{Read, Write},
    mem::MaybeUninit,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    ptr,
};
use support::synthetic_checkpoint;
use tch::{Kind, Tensor};
use tempfile::TempDir;

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/golden").join(name)
}

/// A copy that a test can damage.
fn copy_of(name: &str) -> TempDir {
    let copy = tempfile::tempdir().unwrap();
    for entry in fs::read_dir(fixture(name)).unwrap() {
        let source = entry.unwrap().path();
        fs::copy(&source, copy.path().join(source.file_name().unwrap())).unwrap();
    }
    copy
}

/// Rewrites `model.safetensors` after `change`.
fn change_tensors(folder: &Path, change: impl FnOnce(&mut BTreeMap<String, Tensor>)) {
    let path = folder.join("model.safetensors");
    let mut tensors = Tensor::read_safetensors(&path).unwrap().into_iter().collect();
    change(&mut tensors);
    let tensors: Vec<_> = tensors.iter().collect();
    Tensor::write_safetensors(&tensors, &path).unwrap();
}

fn change_json(path: &Path, change: impl FnOnce(&mut Value)) {
    let mut value = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
    change(&mut value);
    fs::write(path, value.to_string()).unwrap();
}

fn open_error(folder: &Path) -> CheckpointError {
    match Checkpoint::open(folder) {
        Err(error) => {
            let message = error.to_string();
            assert!(!message.contains('\n') && message.contains("; "), "one line with a remedy: {message}");
            error
        }
        Ok(_) => panic!("{} opens", folder.display()),
    }
}

#[track_caller]
fn assert_says(error: &CheckpointError, parts: &[&str]) {
    let message = error.to_string();
    for part in parts {
        assert!(message.contains(part), "no `{part}` in: {message}");
    }
}

#[test]
fn a_missing_folder_is_named() {
    assert_says(&open_error(Path::new("/no/such/checkpoint")), &["/no/such/checkpoint: is no folder"]);
}

#[test]
fn a_folder_without_weights_is_named() {
    let folder = copy_of("ckpt_safetensors");
    fs::remove_file(folder.path().join("model.safetensors")).unwrap();
    assert_says(&open_error(folder.path()), &["holds no weights", "pytorch_model.bin"]);
}

#[test]
fn a_folder_without_config_is_named() {
    let folder = copy_of("ckpt_safetensors");
    fs::remove_file(folder.path().join("config.json")).unwrap();
    assert_says(&open_error(folder.path()), &["config.json: can't be read"]);
}

#[test]
fn an_impossible_config_field_is_named() {
    let folder = copy_of("ckpt_bin");
    change_json(&folder.path().join("config.json"), |config| config["num_attention_heads"] = json!(7));
    assert_says(&open_error(folder.path()), &["config.json", "`num_attention_heads` is 7"]);
}

#[test]
fn a_missing_tensor_is_named() {
    let folder = copy_of("ckpt_safetensors");
    change_tensors(folder.path(), |tensors| {
        tensors.remove("model.layers.1.self_attn.v_proj.multiway.1.weight");
        tensors.remove("model.norm.weight");
    });
    let error = open_error(folder.path());
    assert_says(&error, &["v_proj.multiway.1.weight` is missing", "shape [48, 48]", "one more like it"]);
}

#[test]
fn a_tensor_too_many_is_named() {
    let folder = copy_of("ckpt_safetensors");
    change_tensors(folder.path(), |tensors| {
        tensors.insert(
            "model.layers.3.mlp.up_proj.weight".into(),
            Tensor::zeros([96, 48], (Kind::Float, tch::Device::Cpu)),
        );
    });
    let error = open_error(folder.path());
    assert_says(&error, &["model.safetensors", "`model.layers.3.mlp.up_proj.weight`", "has no place"]);
}

#[test]
fn a_tensor_of_another_shape_is_named() {
    let folder = copy_of("ckpt_bin");
    change_json(&folder.path().join("config.json"), |config| config["vocab_size"] = json!(612));
    let error = open_error(folder.path());
    assert_says(
        &error,
        &["pytorch_model-00005-of-00005.bin", "`lm_head.weight` has shape [611, 48]", "[612, 48]"],
    );
    let CheckpointError::Tensor { problem: TensorProblem::Shape { expected, found }, others, .. } = error
    else {
        panic!("another error");
    };
    assert_eq!((expected, found, others), (vec![612, 48], vec![611, 48], 1));
}

#[test]
fn a_tensor_of_another_type_is_named() {
    let folder = copy_of("ckpt_safetensors");
    change_tensors(folder.path(), |tensors| {
        let doubled = tensors["model.norm.weight"].to_kind(Kind::Double);
        tensors.insert("model.norm.weight".into(), doubled);
    });
    assert_says(
        &open_error(folder.path()),
        &["`model.norm.weight` is stored as F64", "; convert the weights"],
    );
}

#[test]
fn constants_and_the_unused_weight_may_be_absent() {
    let folder = copy_of("ckpt_safetensors");
    change_tensors(folder.path(), |tensors| {
        tensors.retain(|name, _| {
            !["inv_freq", "q_pos_embed", "k_pos_embed", "learned_weight"]
                .iter()
                .any(|end| name.ends_with(end))
        });
    });
    let checkpoint = Checkpoint::open(folder.path()).unwrap();
    let weights = checkpoint.expected().values().filter(|tensor| tensor.role == Role::Parameter).count();
    assert_eq!(checkpoint.tensors().unwrap().len(), weights);
    checkpoint.finish().unwrap();
}

#[test]
fn a_weight_that_no_network_took_is_named() {
    let checkpoint = Checkpoint::open(&fixture("ckpt_safetensors")).unwrap();
    let tensor = checkpoint.tensor("lm_head.weight", &[611, 48]).unwrap();
    assert_eq!(tensor.size(), [611, 48]);
    let error = checkpoint.finish().unwrap_err();
    assert_says(&error, &["`model.embed_tokens.weight`", "more like it"]);
    assert_says(&checkpoint.tensor("lm_head.weight", &[48, 611]).unwrap_err(), &["has shape [611, 48]"]);
    assert_says(&checkpoint.tensor("lm_head.bias", &[611]).unwrap_err(), &["`lm_head.bias` is missing"]);
}

#[test]
fn corrupt_and_truncated_files_are_named() {
    for (name, file) in [
        ("ckpt_safetensors", "model.safetensors"),
        ("ckpt_safetensors_sharded", "model-00002-of-00003.safetensors"),
        ("ckpt_bin", "pytorch_model-00003-of-00005.bin"),
    ] {
        let folder = copy_of(name);
        let path = folder.path().join(file);
        let whole = fs::read(&path).unwrap();
        let page = b"<!DOCTYPE html><html><body>Not found</body></html>".to_vec();
        for damaged in [whole[..whole.len() / 2].to_vec(), whole[..whole.len() - 1].to_vec(), page, vec![]] {
            fs::write(&path, &damaged).unwrap();
            assert_says(&open_error(folder.path()), &[file, "fetch it again"]);
        }
    }
}

#[test]
fn a_missing_shard_is_named() {
    let folder = copy_of("ckpt_bin_bf16");
    fs::remove_file(folder.path().join("pytorch_model-00002-of-00003.bin")).unwrap();
    assert_says(&open_error(folder.path()), &["pytorch_model-00002-of-00003.bin: is missing"]);
}

#[test]
fn an_index_that_lies_is_named() {
    let folder = copy_of("ckpt_safetensors_sharded");
    let index = folder.path().join("model.safetensors.index.json");
    change_json(&index, |index| {
        index["weight_map"]["model.norm.weight"] = json!("model-00001-of-00003.safetensors");
    });
    assert_says(&open_error(folder.path()), &["model.safetensors.index.json", "`model.norm.weight`"]);
    change_json(&index, |index| index["weight_map"]["model.norm.weight"] = json!("../elsewhere.safetensors"));
    assert_says(&open_error(folder.path()), &["../elsewhere.safetensors", "no file name"]);
    // A message is one line, whatever a file says.
    change_json(&index, |index| index["weight_map"]["model.norm.weight"] = json!("model\nnorm.safetensors"));
    assert_says(&open_error(folder.path()), &["model\\nnorm.safetensors", "no file name"]);
    change_json(&index, |index| index["weight_map"] = json!({"a\nb": "model-00001-of-00003.safetensors"}));
    assert_says(&open_error(folder.path()), &["a\\nb"]);
    change_json(&index, |index| index["weight_map"] = json!([1]));
    assert_says(&open_error(folder.path()), &["no object `weight_map`"]);
}

#[test]
fn the_older_torch_format_says_how_to_convert_it() {
    let folder = copy_of("ckpt_safetensors");
    fs::remove_file(folder.path().join("model.safetensors")).unwrap();
    let magic = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.";
    fs::write(folder.path().join("pytorch_model.bin"), magic).unwrap();
    assert_says(&open_error(folder.path()), &["pytorch_model.bin", "before 1.6", "torch.save(torch.load("]);
}

/// Writes `pytorch_model.bin` anew with its pickle changed.
fn change_pickle(folder: &Path, change: impl FnOnce(&mut Vec<u8>)) {
    let path = folder.join("pytorch_model.bin");
    let mut archive = zip::ZipArchive::new(fs::File::open(&path).unwrap()).unwrap();
    let mut records = BTreeMap::new();
    for position in 0..archive.len() {
        let mut record = archive.by_index(position).unwrap();
        let mut bytes = Vec::new();
        record.read_to_end(&mut bytes).unwrap();
        records.insert(record.name().unwrap().into_owned(), bytes);
    }
    change(records.iter_mut().find(|(name, _)| name.ends_with("/data.pkl")).unwrap().1);
    let mut archive = zip::ZipWriter::new(fs::File::create(&path).unwrap());
    let stored = zip::write::SimpleFileOptions::default().compression_method(zip::CompressionMethod::Stored);
    for (name, bytes) in records {
        archive.start_file(name, stored).unwrap();
        archive.write_all(&bytes).unwrap();
    }
    archive.finish().unwrap();
}

#[test]
fn a_pickle_may_hold_more_than_weights_but_not_something_else() {
    let folder = tempfile::tempdir().unwrap();
    let source = fixture("ckpt_bin");
    let weights = |name: &str| {
        let target = folder.path().join(name);
        convert(&ConvertArgs { format: Format::TorchZip, ..args(&source, &target) }).unwrap();
        target
    };
    let with_numbers = weights("numbers");
    change_pickle(&with_numbers, |pickle| {
        assert_eq!(pickle.pop(), Some(b'.'));
        // An integer of 80 bits and a list.
        pickle.extend(b"X\x04\0\0\0seed\x8a\x0a\x01\x02\x03\x04\x05\x06\x07\x08\x09\x0as");
        pickle.extend(b"X\x05\0\0\0steps](K\x01K\x02es.");
    });
    assert_same_tensors(&source, &with_numbers);

    let foreign: [(&str, &[u8], &str); 3] = [
        ("arguments", b"\x80\x02cargparse\nNamespace\n)\x81.", "holds a `argparse.Namespace`"),
        ("wrapped", b"\x80\x02}X\x0a\0\0\0state_dict}s.", "`state_dict` in it is a dictionary of its own"),
        ("list", b"\x80\x02].", "no dictionary of tensors"),
    ];
    for (name, pickle, problem) in foreign {
        let folder = weights(name);
        change_pickle(&folder, |whole| *whole = pickle.to_vec());
        let expected = ["pytorch_model.bin", problem, "torch.save(model.state_dict(), path)"];
        assert_says(&open_error(&folder), &expected);
    }
}

#[test]
fn an_adapter_alone_says_how_to_merge_it() {
    let folder = copy_of("ckpt_safetensors");
    fs::rename(folder.path().join("model.safetensors"), folder.path().join("adapter_model.safetensors"))
        .unwrap();
    fs::write(folder.path().join("adapter_config.json"), "{}").unwrap();
    assert_says(&open_error(folder.path()), &["holds an adapter", "merge_and_unload"]);
}

#[test]
fn a_missing_tokenizer_is_named() {
    let folder = copy_of("ckpt_safetensors");
    fs::remove_file(folder.path().join("tokenizer.model")).unwrap();
    let message = Tokenizer::open(folder.path()).unwrap_err().to_string();
    assert!(message.contains("tokenizer.model: can't be read"), "{message}");
}

#[test]
fn too_little_memory_is_refused_before_loading() {
    let checkpoint = Checkpoint::open(&fixture("ckpt_bin_bf16")).unwrap();
    let bytes = |kind| checkpoint.weight_bytes(kind, Quantize::None);
    assert_eq!(bytes(Kind::Float), 2 * bytes(Kind::BFloat16));
    let quantized = checkpoint.weight_bytes(Kind::BFloat16, Quantize::Int8);
    assert!(quantized < bytes(Kind::BFloat16) && 2 * quantized > bytes(Kind::BFloat16), "{quantized}");
    checkpoint.check_memory(Kind::Float, Quantize::None, tch::Device::Cpu, 0).unwrap();
    let error = checkpoint.check_memory(Kind::Float, Quantize::None, tch::Device::Cpu, 1 << 60).unwrap_err();
    assert_says(&error, &["ckpt_bin_bf16: loading needs 1073741824.00 GiB", "is available", "free memory"]);
}

#[test]
fn tensors_are_the_file_until_they_are_written_to() {
    let folder = copy_of("ckpt_safetensors");
    let path = folder.path().join("model.safetensors");
    let before = fs::read(&path).unwrap();
    let checkpoint = Checkpoint::open(folder.path()).unwrap();
    let mut tensor = checkpoint.tensor("model.norm.weight", &[48]).unwrap();
    let same = checkpoint.tensor("model.norm.weight", &[48]).unwrap();
    assert_eq!(tensor.data_ptr(), same.data_ptr(), "two handles to one map");
    // The map outlives the checkpoint that made it.
    drop(checkpoint);
    let _ = tensor.fill_(7.0);
    assert!(same.eq(7.0).all().int64_value(&[]) == 1);
    assert!(fs::read(&path).unwrap() == before, "the file has changed");
}

#[test]
fn mapped_tensors_can_be_trained() {
    let checkpoint = Checkpoint::open(&fixture("ckpt_safetensors")).unwrap();
    let mut first = checkpoint.tensor("model.norm.weight", &[48]).unwrap().set_requires_grad(true);
    let mut second =
        checkpoint.tensor("model.visual_abstractor.visual_fc.bias", &[48]).unwrap().set_requires_grad(true);
    let loss = (&first * &second).sum(Kind::Float);
    loss.backward();
    assert!(first.grad().equal(&second.detach()), "gradient of a product");
    // Each tensor is autograd's own: updating one must not spoil the graph of another.
    let squared = (&first * &first).sum(Kind::Float);
    tch::no_grad(|| drop(second.g_add_scalar_(1.0)));
    first.zero_grad();
    squared.backward();
    assert!(first.grad().allclose(&(first.detach() * 2.0), 1e-6, 1e-6, false));
}

fn args(from: &Path, to: &Path) -> ConvertArgs {
    ConvertArgs {
        from: from.to_owned(),
        to: to.to_owned(),
        format: Format::Safetensors,
        dtype: Dtype::Auto,
        max_file_bytes: None,
    }
}

fn assert_same_tensors(one: &Path, other: &Path) {
    let (one, other) = (Checkpoint::open(one).unwrap(), Checkpoint::open(other).unwrap());
    let (expected, found) = (one.tensors().unwrap(), other.tensors().unwrap());
    assert!(expected.keys().eq(found.keys()));
    for (name, tensor) in &found {
        assert_eq!(tensor.kind(), expected[name].kind(), "{name}");
        assert!(tensor.equal(&expected[name]), "{name}");
    }
}

#[test]
fn conversion_there_and_back_changes_nothing() {
    let target = tempfile::tempdir().unwrap();
    let source = fixture("ckpt_bin_bf16");
    let single = target.path().join("single");
    let converted = convert(&args(&source, &single)).unwrap();
    assert_eq!(converted.weight_files, [single.join("model.safetensors")]);
    assert_same_tensors(&source, &single);

    let sharded = target.path().join("sharded");
    let options =
        ConvertArgs { format: Format::TorchZip, max_file_bytes: Some(100_000), ..args(&single, &sharded) };
    let converted = convert(&options).unwrap();
    assert!(converted.weight_files.len() > 2, "{converted:?}");
    assert_same_tensors(&source, &sharded);
    let index: Value =
        serde_json::from_slice(&fs::read(sharded.join("pytorch_model.bin.index.json")).unwrap()).unwrap();
    assert_eq!(index["metadata"]["total_size"], json!(converted.weight_bytes));
    for name in ["config.json", "tokenizer.model", "added_tokens.json", "preprocessor_config.json"] {
        assert_eq!(fs::read(sharded.join(name)).unwrap(), fs::read(source.join(name)).unwrap(), "{name}");
    }
    let message = convert(&options).unwrap_err().to_string();
    assert!(message.contains("exists already"), "{message}");
}

#[test]
fn conversion_to_a_smaller_type_rounds_weights_and_keeps_constants() {
    let target = tempfile::tempdir().unwrap();
    let source = fixture("ckpt_safetensors");
    let small = target.path().join("small");
    convert(&ConvertArgs { dtype: Dtype::Bf16, ..args(&source, &small) }).unwrap();
    let (full, small) = (Checkpoint::open(&source).unwrap(), Checkpoint::open(&small).unwrap());
    assert_eq!((full.stored_kind(), small.stored_kind()), (Kind::Float, Kind::BFloat16));
    let full = full.tensors().unwrap();
    for (name, tensor) in small.tensors().unwrap() {
        let rounded = match small.expected()[&name].role {
            Role::Buffer => full[&name].shallow_clone(),
            _ => full[&name].to_kind(Kind::BFloat16),
        };
        assert_eq!(tensor.kind(), rounded.kind(), "{name}");
        assert!(tensor.equal(&rounded), "{name}");
    }
    let config: Value =
        serde_json::from_slice(&fs::read(small.folder().join("config.json")).unwrap()).unwrap();
    assert_eq!(config["torch_dtype"], "bfloat16");
}

#[test]
fn a_weight_too_large_for_the_type_stops_conversion_and_leaves_nothing() {
    let source = copy_of("ckpt_safetensors");
    change_tensors(source.path(), |tensors| {
        let large = &tensors["model.norm.weight"] * 1e6;
        tensors.insert("model.norm.weight".into(), large);
    });
    let target = tempfile::tempdir().unwrap();
    let options = ConvertArgs { dtype: Dtype::F16, ..args(source.path(), &target.path().join("half")) };
    let message = convert(&options).unwrap_err().to_string();
    assert!(message.contains("`model.norm.weight`") && message.contains("F16"), "{message}");
    assert_eq!(fs::read_dir(target.path()).unwrap().count(), 0);
}

#[test]
fn converted_files_load_in_torch_itself() {
    let target = tempfile::tempdir().unwrap();
    let expected = Checkpoint::open(&fixture("ckpt_safetensors")).unwrap().tensors().unwrap();
    let compare = |tensors: Vec<(String, Tensor)>| {
        assert_eq!(tensors.len(), expected.len());
        for (name, tensor) in tensors {
            assert!(tensor.equal(&expected[&name]), "{name}");
        }
    };
    let source = fixture("ckpt_bin");
    convert(&args(&source, &target.path().join("one"))).unwrap();
    compare(Tensor::read_safetensors(target.path().join("one/model.safetensors")).unwrap());
    convert(&ConvertArgs { format: Format::TorchZip, ..args(&source, &target.path().join("two")) }).unwrap();
    compare(Tensor::loadz_multi(target.path().join("two/pytorch_model.bin")).unwrap());
}

#[test]
fn inspection_reports_every_problem_at_once() {
    let folder = copy_of("ckpt_safetensors");
    change_tensors(folder.path(), |tensors| {
        tensors.remove("model.norm.weight");
        tensors.insert("stray".into(), Tensor::from(0_f32));
    });
    let report = inspect(folder.path()).unwrap();
    let names: Vec<_> = report.problems.iter().map(|problem| problem.name.as_str()).collect();
    assert_eq!(names, ["model.norm.weight", "stray"]);
    let text = report.to_string();
    assert!(
        text.contains("model.norm.weight is missing") && text.contains("loading       not tried"),
        "{text}"
    );
}

#[test]
fn inspection_finds_weights_that_are_not_finite() {
    let folder = copy_of("ckpt_safetensors");
    change_tensors(folder.path(), |tensors| {
        let broken = tensors["model.norm.weight"].copy();
        let _ = broken.get(3).fill_(f64::NAN);
        tensors.insert("model.norm.weight".into(), broken);
    });
    assert_eq!(inspect(folder.path()).unwrap().non_finite, ["model.norm.weight"]);
    assert_eq!(inspect(&fixture("ckpt_bin")).unwrap().non_finite, [""; 0]);
}

#[test]
fn another_checkpoint_than_the_expected_one_is_refused() {
    let folder = fixture("ckpt_bin");
    let version = inspect(&folder).unwrap().digest.version;
    for whole_or_beginning in [&version[..], &version[.."sha256:".len() + 12]] {
        assert_eq!(verify(&folder, whole_or_beginning).unwrap(), version);
    }
    let other = format!("sha256:{}", "0".repeat(64));
    for expected in [&other[..], &version["sha256:".len()..], &version[.."sha256:".len() + 11], "sha256:", ""]
    {
        let error = verify(&folder, expected).unwrap_err();
        assert!(matches!(error, CheckpointError::Version { .. }), "{error}");
    }
    let run = |expected: &str| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_roc4mllm"));
        command.args(["checkpoint", "verify", "--expect", expected]).arg(&folder).output().unwrap()
    };
    assert_eq!(run(&version).status.code(), Some(0));
    let refused = run(&other);
    let message = String::from_utf8_lossy(&refused.stderr);
    assert_eq!(refused.status.code(), Some(2), "{message}");
    assert!(message.contains(&version) && message.contains(&other), "{message}");
}

#[test]
fn weights_are_packed_where_it_costs_nothing_or_is_asked_for() {
    let packs = |folder: &str, packing: Packing, kind, quantize, activations| {
        let checkpoint = Checkpoint::open(&fixture(folder)).unwrap();
        packing.resolve(&checkpoint, kind, tch::Device::Cpu, quantize, activations)
    };
    let (f32, bf16, none) = (Kind::Float, Kind::BFloat16, Quantize::None);
    for folder in ["ckpt_safetensors", "ckpt_bin_bf16"] {
        for kind in [f32, bf16] {
            assert!(packs(folder, Packing::Always, kind, none, 0));
            assert!(!packs(folder, Packing::Never, kind, none, 0));
            assert!(!packs(folder, Packing::Always, kind, Quantize::W8a8, 0));
        }
        assert!(!packs(folder, Packing::Auto, f32, none, 0));
        // Only what has to be converted is worth it whatever memory there is.
        for (activations, packed) in [(0, true), (1 << 60, folder == "ckpt_safetensors")] {
            let expected = packed && has_bf16_instructions();
            assert_eq!(packs(folder, Packing::Auto, bf16, none, activations), expected, "{folder}");
        }
    }
}

/// Scores one picture, which a made-up checkpoint cannot, and gives what it said and the most memory that the
/// process has had, in bytes.
#[expect(clippy::zombie_processes, reason = "wait4 waits for it, and says how much memory it took")]
fn score_once(checkpoint: &Path, options: &[&str]) -> (String, f64) {
    let mut child = Command::new(env!("CARGO_BIN_EXE_roc4mllm"))
        .args(["score", "--checkpoint"])
        .arg(checkpoint)
        .args(options)
        .arg(fixture("images").join("01_square_rgb.png"))
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut said = String::new();
    child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
    let mut usage = MaybeUninit::<libc::rusage>::zeroed();
    let id = i32::try_from(child.id()).unwrap();
    // SAFETY: nobody else waits for this child, and there is a place for the answer.
    let waited = unsafe { libc::wait4(id, ptr::null_mut(), 0, usage.as_mut_ptr()) };
    assert_eq!(waited, id);
    // SAFETY: numbers alone, of which any are valid.
    (said, unsafe { usage.assume_init() }.ru_maxrss as f64 * 1024.0)
}

#[test]
fn copied_weights_are_in_memory_once() {
    let folder = tempfile::tempdir().unwrap();
    synthetic_checkpoint::write(folder.path(), 1 << 30);
    let on_disk = fs::metadata(folder.path().join("model.safetensors")).unwrap().len() as f64;
    // The prompt takes 66; a made-up model's answer goes on for as long as there is room.
    let path = folder.path().join("config.json");
    let mut config: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    config["max_position_embeddings"] = json!(70);
    fs::write(&path, config.to_string()).unwrap();
    let twice = 2.0 * on_disk;
    for (dtype, pack, size) in
        [("bf16", "never", on_disk), ("bf16", "always", on_disk), ("f32", "never", twice)]
    {
        let (said, peak) = score_once(folder.path(), &["--dtype", dtype, "--pack", pack]);
        assert!(peak > size, "{dtype}, pack {pack}: {peak} for {size}: {said}");
        assert!(peak < 1.1 * size + 400e6, "{dtype}, pack {pack}: {peak} for {size}: {said}");
    }
}

#[test]
fn loading_holds_no_second_copy_in_memory() {
    let folder = tempfile::tempdir().unwrap();
    synthetic_checkpoint::write(folder.path(), 2 << 30);
    // The real command in a process of its own, whose peak is that of nothing else.
    let output = Command::new(env!("CARGO_BIN_EXE_roc4mllm"))
        .args(["checkpoint", "inspect"])
        .arg(folder.path())
        .output()
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
    let number_after = |label: &str| -> f64 {
        let (_, rest) = text.split_once(label).unwrap_or_else(|| panic!("no `{label}` in:\n{text}"));
        rest.split_whitespace().next().unwrap().parse().unwrap()
    };
    let on_disk = fs::metadata(folder.path().join("model.safetensors")).unwrap().len() as f64;
    let peak = number_after("loading       peak ");
    assert!(on_disk > 2e9 && peak >= 0.9 * on_disk, "measured nothing: {text}");
    assert!(peak <= 1.1 * on_disk + 200e6, "{peak} for {on_disk} on disk:\n{text}");
}
