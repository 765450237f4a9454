//! `tokenizer_tests.json`: the legacy slow LLaMA tokenizer's ids and texts.

use crate::support::{checkpoint_folders, json};
use roc4mllm::model::{prompt::encode_with_images, tokenizer::Tokenizer};
use serde::Deserialize;
use std::collections::{BTreeMap, BTreeSet};

const FILE: &str = "tokenizer_tests.json";

#[derive(Deserialize)]
struct Golden {
    vocab_size: usize,
    total: usize,
    bos: u32,
    eos: u32,
    unk: u32,
    pad: Option<u32>,
    legacy: bool,
    all_special_ids: Vec<u32>,
    added: BTreeMap<String, u32>,
    pieces: Vec<String>,
    encode: Vec<Encoded>,
    decode: Vec<Decoded>,
}

#[derive(Deserialize)]
struct Encoded {
    text: String,
    ids: Vec<u32>,
    image_token_ids: Vec<i64>,
    tokens: Vec<String>,
}

#[derive(Deserialize)]
struct Decoded {
    ids: Vec<u32>,
    skip: String,
    keep: String,
}

/// The golden file, and the tokenizer of every checkpoint it holds for.
fn golden() -> (Golden, Vec<Tokenizer>) {
    let golden: Golden = json(FILE);
    let tokenizers = checkpoint_folders().iter().map(|folder| Tokenizer::open(folder).unwrap()).collect();
    (golden, tokenizers)
}

#[test]
fn golden_tokenizer_vocabulary() {
    let (golden, tokenizers) = golden();
    for tokenizer in tokenizers {
        assert_eq!(golden.pieces.len(), golden.vocab_size, "{FILE}: pieces");
        assert_eq!(tokenizer.len(), golden.total, "{FILE}: total");
        assert_eq!(tokenizer.bos(), golden.bos, "{FILE}: bos");
        assert_eq!(tokenizer.eos(), golden.eos, "{FILE}: eos");
        assert_eq!(tokenizer.unknown(), golden.unk, "{FILE}: unk");
        assert_eq!(tokenizer.pad(), golden.pad, "{FILE}: pad");
        for (id, piece) in (0..).zip(&golden.pieces) {
            assert_eq!(tokenizer.token(id), Some(piece.as_str()), "{FILE}: piece {id}");
        }
        assert_eq!(golden.total, golden.vocab_size + golden.added.len(), "{FILE}: added");
        for (text, id) in &golden.added {
            assert_eq!(tokenizer.id(text), Some(*id), "{FILE}: added token {text}");
            assert_eq!(tokenizer.token(*id), Some(text.as_str()), "{FILE}: added token {text}");
        }
        // The file lists an id once for each role it has.
        let special: BTreeSet<u32> = golden.all_special_ids.iter().copied().collect();
        assert_eq!(tokenizer.special_ids(), &special, "{FILE}: all_special_ids");
        let roles = [Some(golden.bos), Some(golden.eos), Some(golden.unk), golden.pad];
        assert_eq!(
            golden.all_special_ids,
            roles.into_iter().flatten().collect::<Vec<_>>(),
            "{FILE}: all_special_ids"
        );
        assert!(golden.legacy, "{FILE}: legacy: only the legacy rules are implemented");
    }
}

#[test]
fn golden_tokenizer_encode() {
    let (golden, tokenizers) = golden();
    assert!(!golden.encode.is_empty(), "{FILE}: encode is empty");
    for tokenizer in tokenizers {
        for case in &golden.encode {
            let ids = tokenizer.encode(&case.text).unwrap();
            assert_eq!(ids, case.ids, "{FILE}: ids of {:?}", case.text);
            let with_images = encode_with_images(&case.text, &tokenizer).unwrap();
            assert_eq!(with_images, case.image_token_ids, "{FILE}: image_token_ids of {:?}", case.text);
            let tokens: Vec<_> = ids[1..].iter().map(|&id| tokenizer.token(id).unwrap()).collect();
            assert_eq!(tokens, case.tokens, "{FILE}: tokens of {:?}", case.text);
        }
    }
}

#[test]
fn golden_tokenizer_decode() {
    let (golden, tokenizers) = golden();
    assert!(!golden.decode.is_empty(), "{FILE}: decode is empty");
    for tokenizer in tokenizers {
        for case in &golden.decode {
            let decode = |skip| tokenizer.decode(&case.ids, skip).unwrap();
            assert_eq!(decode(true), case.skip, "{FILE}: {:?} without special tokens", case.ids);
            assert_eq!(decode(false), case.keep, "{FILE}: {:?} with special tokens", case.ids);
        }
    }
}
