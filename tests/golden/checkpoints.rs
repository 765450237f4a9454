//! The `ckpt_*` folders: one model in every layout and type.

use crate::support::{assert_same, checkpoint_folders, file_name, folder, json, stated_dtype, tensors};
use roc4mllm::model::checkpoint::{Checkpoint, Role};
use std::{collections::BTreeMap, path::PathBuf};
use tch::{Kind, Tensor};

/// Every tensor of a checkpoint, with its role.
type Contents = BTreeMap<String, (Role, Tensor)>;

/// All checkpoint folders and what they hold.
fn opened() -> Vec<(PathBuf, Contents)> {
    let open = |path: PathBuf| {
        let checkpoint = Checkpoint::open(&path).unwrap();
        let tensors = checkpoint.tensors().unwrap();
        checkpoint.finish().unwrap();
        let with_role = |(name, tensor)| {
            let role = checkpoint.expected()[&name].role;
            (name, (role, tensor))
        };
        (path, tensors.into_iter().map(with_role).collect())
    };
    checkpoint_folders().into_iter().map(open).collect()
}

#[test]
fn golden_checkpoints_hold_the_same_tensors() {
    let folders = opened();
    let is_f32 = |path: &PathBuf| stated_dtype(path) == "float32";
    let (reference, expected) =
        folders.iter().find(|(path, _)| is_f32(path)).expect("a golden set has a float32 checkpoint");
    for (path, found) in &folders {
        let name = file_name(path);
        assert!(found.keys().eq(expected.keys()), "{name}: other tensors than in {}", file_name(reference));
        for (tensor_name, (role, tensor)) in found {
            let full = &expected[tensor_name].1;
            let stated = match stated_dtype(path).as_str() {
                "float32" => Kind::Float,
                "bfloat16" => Kind::BFloat16,
                "float16" => Kind::Half,
                other => panic!("{name}/config.json: torch_dtype {other}"),
            };
            // Buffers may keep their own type in a smaller checkpoint; their values are rounded.
            let rounded = full.to_kind(stated);
            let expected = if *role == Role::Buffer { rounded.to_kind(tensor.kind()) } else { rounded };
            let files = format!("{name} against {}", file_name(reference));
            assert_same(&files, tensor_name, tensor, &expected);
        }
    }
}

#[test]
fn golden_checkpoints_have_the_same_settings() {
    let folders = checkpoint_folders();
    let settings = |path: &PathBuf| {
        let mut files = BTreeMap::new();
        for entry in std::fs::read_dir(path).unwrap() {
            let file = entry.unwrap().path();
            let name = file_name(&file);
            let is_index = name.ends_with(".index.json");
            if name == "tokenizer.model" {
                files.insert(name, format!("{:?}", std::fs::read(&file).unwrap()));
            } else if name.ends_with(".json") && !is_index {
                let mut value: serde_json::Value = json(&format!("{}/{name}", file_name(path)));
                // The type is the one thing in which the folders are meant to differ.
                value.as_object_mut().and_then(|object| object.remove("torch_dtype"));
                files.insert(name, value.to_string());
            }
        }
        files
    };
    let expected = settings(&folders[0]);
    for path in &folders[1..] {
        for (name, found) in settings(path) {
            let (path, first) = (path.display(), folders[0].display());
            assert_eq!(Some(&found), expected.get(&name), "{path}/{name} against {first}/{name}");
        }
    }
}

#[test]
fn golden_checkpoints_agree_with_torch() {
    // torch's own copying reader, for the folders that have a single safetensors file.
    let mut compared = 0;
    for (path, found) in opened() {
        let file = format!("{}/model.safetensors", file_name(&path));
        if !folder().join(&file).exists() {
            continue;
        }
        let expected = tensors(&file);
        // A tied head may be left out of the file.
        let found: Vec<_> = found
            .iter()
            .filter(|(name, (role, _))| *role != Role::Tied || expected.contains_key(*name))
            .collect();
        assert!(found.iter().map(|(name, _)| *name).eq(expected.keys()), "{file}: names");
        for (name, (_, tensor)) in found {
            assert_same(&file, name, tensor, &expected[name]);
        }
        compared += 1;
    }
    assert!(compared > 0, "{}: no ckpt_* folder has a model.safetensors", folder().display());
}

#[test]
fn golden_checkpoints_share_a_digest_only_with_their_copies() {
    let copy = tempfile::tempdir().unwrap();
    let mut versions = BTreeMap::new();
    for path in checkpoint_folders() {
        let digest = Checkpoint::open(&path).unwrap().digest().unwrap();
        let target = copy.path().join(file_name(&path));
        std::fs::create_dir(&target).unwrap();
        for entry in std::fs::read_dir(&path).unwrap() {
            let source = entry.unwrap().path();
            std::fs::copy(&source, target.join(source.file_name().unwrap())).unwrap();
        }
        assert_eq!(Checkpoint::open(&target).unwrap().digest().unwrap(), digest, "{}", path.display());
        let other = versions.insert(digest.version, path.clone());
        assert_eq!(other, None, "{}", path.display());
    }
}
