//! Text to token ids and back, as the LLaMA tokenizer of transformers 4.31 does it (`use_fast=False`,
//! `legacy=True`).
//!
//! SentencePiece knows only the plain vocabulary. The tokens added to it, and the special ones, are
//! cut out of the text first, and each stretch between them is encoded as a text of its own.

mod special;

use super::fields::ConfigError;
use kitoken::{Kitoken, SpecialTokenKind};
use sentencepiece_model::{ModelType, SentencePieceModel, Type};
use special::{SpecialTokens, read_added_tokens};
use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fs,
    path::{Path, PathBuf},
};

/// The tokenizer of a checkpoint folder.
#[derive(Debug)]
pub struct Tokenizer {
    encoder: Kitoken,
    pieces: Vec<Piece>,
    ids: HashMap<String, u32>,
    /// `added_tokens.json`, by text and by id.
    added: BTreeMap<String, u32>,
    added_texts: BTreeMap<u32, String>,
    special_ids: BTreeSet<u32>,
    special_texts: BTreeSet<String>,
    splits: Vec<SplitToken>,
    bos: u32,
    eos: u32,
    unknown: u32,
    pad: Option<u32>,
    add_bos: bool,
    add_eos: bool,
    /// What SentencePiece writes for the unknown piece.
    unknown_surface: String,
    /// Whether a text's first `▁` is the one that encoding put there.
    strips_first_space: bool,
}

#[derive(Debug)]
struct Piece {
    text: String,
    kind: Type,
}

/// A token that is cut out of a text before SentencePiece sees it.
#[derive(Debug)]
struct SplitToken {
    text: String,
    id: u32,
    /// White space around it belongs to it and disappears.
    strips: bool,
}

/// A tokenizer that can't be used, or a text or id that it can't convert.
#[derive(Debug, thiserror::Error)]
pub enum TokenizerError {
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error("{}: {problem}; fetch the file of the checkpoint's own tokenizer", .path.display())]
    Model { path: PathBuf, problem: String },
    #[error(
        "token id {id} is outside the tokenizer's {size} tokens; tokenizer and weights must be of the same checkpoint"
    )]
    UnknownId { id: u32, size: usize },
    #[error("the text can't be tokenized ({0}); shorten or change it")]
    Text(String),
}

impl TokenizerError {
    /// Neither a tokenizer nor a prompt changes by asking again.
    pub fn disposition(&self) -> crate::fault::Disposition {
        crate::fault::Disposition::Stop
    }
}

/// `▁`, which stands for a space in pieces.
const SPACE: char = '\u{2581}';

impl Tokenizer {
    /// Reads `tokenizer.model` and, where they exist, `added_tokens.json`, `special_tokens_map.json`
    /// and `tokenizer_config.json` in `folder`.
    ///
    /// # Errors
    /// [`TokenizerError`] naming the file.
    pub fn open(folder: &Path) -> Result<Self, TokenizerError> {
        let path = folder.join("tokenizer.model");
        let error = |problem: String| TokenizerError::Model { path: path.clone(), problem };
        let bytes = fs::read(&path).map_err(|source| error(format!("can't be read ({source})")))?;
        let model = SentencePieceModel::from_slice(&bytes)
            .map_err(|source| error(format!("isn't a SentencePiece model ({source})")))?;
        let trainer = model.trainer().cloned().unwrap_or_default();
        if trainer.model_type() != ModelType::Bpe {
            return Err(error("isn't a BPE model, as LLaMA's tokenizers are".into()));
        }
        let normalizer = model.normalizer().cloned().unwrap_or_default();
        let pieces: Vec<Piece> = model
            .pieces()
            .iter()
            .map(|piece| Piece { text: piece.piece().to_owned(), kind: piece.r#type() })
            .collect();
        if !pieces.iter().any(|piece| piece.kind == Type::Normal) {
            return Err(error("has an empty vocabulary".into()));
        }
        let strips_first_space = normalizer.add_dummy_prefix() || normalizer.remove_extra_whitespaces();
        let encoder = Kitoken::from_sentencepiece_model(model)
            .map_err(|source| error(format!("can't be used ({source})")))?;
        let mut ids = HashMap::new();
        for (piece, id) in pieces.iter().zip(0_u32..) {
            ids.entry(piece.text.clone()).or_insert(id);
        }
        let added = read_added_tokens(folder)?;
        let unknown = pieces
            .iter()
            .zip(0_u32..)
            .find_map(|(piece, id)| (piece.kind == Type::Unknown).then_some(id))
            .unwrap_or(0);
        let special = SpecialTokens::read(folder)?;
        let id_of = |text: &str| added.get(text).or_else(|| ids.get(text)).copied();
        let required = |text: &Option<String>, name: &str| {
            let text = text.as_deref().unwrap_or_default();
            id_of(text).ok_or_else(|| error(format!("has no {name} token `{text}`")))
        };
        let bos = required(&special.bos, "begin-of-sequence")?;
        let eos = required(&special.eos, "end-of-sequence")?;

        let pad = special.pad.as_deref().and_then(id_of);
        let special_ids = special.texts.keys().filter_map(|text| id_of(text)).collect();
        let mut splits: Vec<SplitToken> = Vec::new();
        for text in special.texts.keys().chain(added.keys()).filter(|text| !text.is_empty()) {
            let Some(id) = id_of(text) else { continue };
            if !splits.iter().any(|split| split.text == *text) {
                let strips = special.texts.get(text).copied().unwrap_or(true);
                splits.push(SplitToken { text: text.clone(), id, strips });
            }
        }
        // Where several match at one place, the longest is meant.
        splits.sort_by_key(|split| std::cmp::Reverse(split.text.len()));
        Ok(Self {
            encoder,
            added_texts: added.iter().map(|(text, id)| (*id, text.clone())).collect(),
            special_ids,
            special_texts: special.texts.into_keys().collect(),
            splits,
            bos,
            eos,
            unknown,
            pad,
            add_bos: special.add_bos,
            add_eos: special.add_eos,
            unknown_surface: trainer.unk_surface().to_owned(),
            strips_first_space,
            pieces,
            ids,
            added,
        })
    }

    /// Number of tokens, added ones included.
    pub fn len(&self) -> usize {
        self.pieces.len() + self.added.len()
    }

    /// Never true: a tokenizer without a vocabulary isn't opened.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub fn bos(&self) -> u32 {
        self.bos
    }

    pub fn eos(&self) -> u32 {
        self.eos
    }

    /// The id of the unknown piece.
    pub fn unknown(&self) -> u32 {
        self.unknown
    }

    /// The padding token that the tokenizer's files name; generation pads with the one that the
    /// model's configuration names.
    pub fn pad(&self) -> Option<u32> {
        self.pad
    }

    /// The id of exactly this token.
    pub fn id(&self, token: &str) -> Option<u32> {
        self.added.get(token).or_else(|| self.ids.get(token)).copied()
    }

    /// The token of an id, as the vocabulary writes it.
    pub fn token(&self, id: u32) -> Option<&str> {
        match self.added_texts.get(&id) {
            Some(text) => Some(text),
            None => self.pieces.get(id as usize).map(|piece| piece.text.as_str()),
        }
    }

    /// Ids of special tokens (begin, end, unknown, padding and whatever else the files list), which
    /// [`Self::decode`] leaves out on request.
    pub fn special_ids(&self) -> &BTreeSet<u32> {
        &self.special_ids
    }

    /// Token ids of a text, begin token first.
    ///
    /// # Errors
    /// [`TokenizerError::Text`] when SentencePiece finds no pieces for it.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>, TokenizerError> {
        let mut ids = Vec::from_iter(self.add_bos.then_some(self.bos));
        for segment in self.split(text) {
            match segment {
                Segment::Token(id) => ids.push(id),
                Segment::Text("") => {}
                Segment::Text(text) => ids.extend(self.encode_plain(text)?),
            }
        }
        ids.extend(self.add_eos.then_some(self.eos));
        Ok(ids)
    }

    /// SentencePiece's own encoding: a run of characters that it doesn't know is one unknown piece.
    fn encode_plain(&self, text: &str) -> Result<Vec<u32>, TokenizerError> {
        let encoded = self.encoder.encode(text, &[SpecialTokenKind::Priority][..]);
        let mut ids = encoded.map_err(|source| TokenizerError::Text(source.to_string()))?;
        ids.dedup_by(|next, previous| next == previous && *next == self.unknown);
        Ok(ids)
    }

    /// The text of token ids, with or without the special tokens.
    ///
    /// # Errors
    /// [`TokenizerError::UnknownId`] for an id that no token has.
    pub fn decode(&self, ids: &[u32], skip_special: bool) -> Result<String, TokenizerError> {
        let mut parts = Vec::new();
        let mut run = Vec::new();
        for &id in ids {
            if skip_special && self.special_ids.contains(&id) {
                continue;
            }
            if let Some(added) = self.added_texts.get(&id) {
                if !run.is_empty() {
                    parts.push(self.decode_run(&std::mem::take(&mut run)));
                }
                parts.push(added.clone());
            } else if (id as usize) < self.pieces.len() {
                run.push(id);
            } else {
                return Err(TokenizerError::UnknownId { id, size: self.len() });
            }
        }
        if !run.is_empty() {
            parts.push(self.decode_run(&run));
        }
        Ok(parts.join(" "))
    }

    /// Plain pieces with special tokens between them: those are written out, with a space before
    /// each that doesn't stand first or follow another.
    fn decode_run(&self, ids: &[u32]) -> String {
        let mut text = String::new();
        let mut plain = Vec::new();
        let mut follows_special = false;
        for (position, &id) in ids.iter().enumerate() {
            let piece = &self.pieces[id as usize].text;
            if self.special_texts.contains(piece) {
                if !follows_special && position != 0 {
                    text.push(' ');
                }
                text.push_str(&self.decode_pieces(&std::mem::take(&mut plain)));
                text.push_str(piece);
                follows_special = true;
            } else {
                plain.push(id);
                follows_special = false;
            }
        }
        text.push_str(&self.decode_pieces(&plain));
        text
    }

    /// SentencePiece's own decoding.
    fn decode_pieces(&self, ids: &[u32]) -> String {
        let mut text = String::new();
        let mut bytes = Vec::new();
        let mut at_start = true;
        let mut space_taken = false;
        for &id in ids {
            let piece = &self.pieces[id as usize];
            if let (Type::Byte, Some(byte)) = (piece.kind, byte_of(&piece.text)) {
                bytes.push(byte);
                continue;
            }
            push_bytes(&mut text, &std::mem::take(&mut bytes));
            if space_taken || !text.is_empty() {
                at_start = false;
            }
            space_taken = false;
            match piece.kind {
                Type::Control => {}
                Type::Unknown => text.push_str(&self.unknown_surface),
                _ => {
                    let mut plain = piece.text.as_str();
                    if at_start
                        && self.strips_first_space
                        && let Some(rest) = plain.strip_prefix(SPACE)
                    {
                        plain = rest;
                        space_taken = true;
                    }
                    text.extend(plain.chars().map(|c| if c == SPACE { ' ' } else { c }));
                }
            }
        }
        push_bytes(&mut text, &bytes);
        text
    }

    /// Cuts a text at the tokens that SentencePiece must not see, and strips white space around
    /// those that take it.
    fn split<'a>(&self, text: &'a str) -> Vec<Segment<'a>> {
        let mut segments = Vec::new();
        let mut start = 0;
        let mut strip_next = false;
        let mut position = 0;
        while position < text.len() {
            let rest = &text[position..];
            let Some(found) = self.splits.iter().find(|split| rest.starts_with(&split.text)) else {
                position += rest.chars().next().map_or(1, char::len_utf8);
                continue;
            };
            let mut before = &text[start..position];
            if strip_next {
                before = before.trim_start_matches(is_python_space);
            }
            if found.strips {
                before = before.trim_end_matches(is_python_space);
            }
            segments.extend([Segment::Text(before), Segment::Token(found.id)]);
            strip_next = found.strips;
            position += found.text.len();
            start = position;
        }
        let last = &text[start..];
        segments.push(Segment::Text(if strip_next {
            last.trim_start_matches(is_python_space)
        } else {
            last
        }));
        segments
    }
}

enum Segment<'a> {
    Text(&'a str),
    Token(u32),
}

/// What Python's `str.strip` removes: Unicode white space and four separator controls.
pub(crate) fn is_python_space(character: char) -> bool {
    character.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&character)
}

/// The byte of a piece such as `<0x0A>`.
fn byte_of(piece: &str) -> Option<u8> {
    u8::from_str_radix(piece.strip_prefix("<0x")?.strip_suffix('>')?, 16).ok()
}

/// Appends bytes as UTF-8; each byte that belongs to no character becomes one replacement character.
fn push_bytes(text: &mut String, mut bytes: &[u8]) {
    while !bytes.is_empty() {
        let character = (1..=bytes.len().min(4)).find_map(|length| {
            let (start, rest) = bytes.split_at(length);
            std::str::from_utf8(start).ok().map(|valid| (valid, rest))
        });
        match character {
            Some((valid, rest)) => {
                text.push_str(valid);
                bytes = rest;
            }
            None => {
                text.push(char::REPLACEMENT_CHARACTER);
                bytes = &bytes[1..];
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_that_are_no_characters_are_replaced_one_by_one() {
        let text = |bytes: &[u8]| {
            let mut text = String::new();
            push_bytes(&mut text, bytes);
            text
        };
        assert_eq!(text("日本".as_bytes()), "日本");
        assert_eq!(text(&[0xe6, 0x97]), "\u{fffd}\u{fffd}");
        assert_eq!(text(&[b'a', 0xff, 0xc3, 0xa9]), "a\u{fffd}é");
        assert_eq!(text(&[0xed, 0xa0, 0x80]), "\u{fffd}\u{fffd}\u{fffd}");
    }

    #[test]
    fn a_folder_without_a_tokenizer_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let message = Tokenizer::open(folder.path()).unwrap_err().to_string();
        assert!(message.contains("tokenizer.model: can't be read"), "{message}");
        fs::write(folder.path().join("tokenizer.model"), b"<html>").unwrap();
        let message = Tokenizer::open(folder.path()).unwrap_err().to_string();
        assert!(message.contains("tokenizer.model: "), "{message}");
        fs::write(folder.path().join("tokenizer.model"), b"").unwrap();
        assert!(Tokenizer::open(folder.path()).is_err());
    }
}
