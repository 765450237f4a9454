//! What `docs/observability.md` says of log fields is what the sources have.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

const MACROS: [&str; 7] = ["error!", "warn!", "info!", "debug!", "trace!", "info_span!", "debug_span!"];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Every Rust source of the release: the embedded stack logs for its own tests.
fn sources(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).expect("a folder of sources") {
        let path = entry.expect("an entry").path();
        if path.is_dir() && !path.ends_with("src/dev") {
            sources(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

/// The arguments of a macro call whose text begins behind its opening parenthesis.
fn arguments(text: &str) -> Vec<String> {
    let (mut arguments, mut argument, mut depth, mut quoted) = (Vec::new(), String::new(), 0, false);
    let mut characters = text.chars();
    while let Some(character) = characters.next() {
        if quoted {
            quoted = character != '"';
            if character == '\\' {
                characters.next();
            }
        } else {
            match character {
                '"' => quoted = true,
                '(' | '[' | '{' => depth += 1,
                ')' | ']' | '}' if depth == 0 => break,
                ')' | ']' | '}' => depth -= 1,
                ',' if depth == 0 => {
                    arguments.push(std::mem::take(&mut argument).trim().to_owned());
                    continue;
                }
                _ => {}
            }
        }
        argument.push(character);
    }
    arguments.push(argument.trim().to_owned());
    arguments
}

/// The field that an argument names: `name = value`, `%name` or `name`.
fn field(argument: &str) -> Option<&str> {
    let bare = argument.trim_start_matches(['%', '?']);
    let end = bare.find(|character: char| !character.is_alphanumeric() && !"_.".contains(character));
    let (name, rest) = bare.split_at(end.unwrap_or(bare.len()));
    let rest = rest.trim_start();
    let names = rest.is_empty() || (rest.starts_with('=') && !rest.starts_with("=="));
    (names && name.starts_with(|first: char| first.is_ascii_lowercase())).then_some(name)
}

/// Fields by name, each with a file that has it.
fn logged() -> BTreeMap<String, PathBuf> {
    let (mut files, mut fields) = (Vec::new(), BTreeMap::new());
    sources(&root().join("src"), &mut files);
    for file in files {
        let text = fs::read_to_string(&file).expect("a source");
        for (start, _) in text.match_indices("tracing::") {
            let call = &text[start + "tracing::".len()..];
            let Some(name) = MACROS.iter().find(|name| call.starts_with(**name)) else { continue };
            let behind = call[name.len()..].trim_start().strip_prefix('(').expect("a call");
            let arguments = arguments(behind);
            // A span's name comes first; an event's message comes last, and its arguments after that.
            let spanned = name.ends_with("span!");
            let named = arguments.iter().skip(usize::from(spanned));
            let named = named.take_while(|argument| !argument.starts_with('"'));
            for name in named.filter_map(|argument| field(argument)) {
                fields.entry(name.to_owned()).or_insert_with(|| file.clone());
            }
        }
    }
    fields
}

/// The first column of the table that the page has under a heading.
fn documented(heading: &str) -> BTreeSet<String> {
    let page = fs::read_to_string(root().join("docs/observability.md")).expect("the page");
    let section = page.split("\n## ").find(|section| section.starts_with(heading)).expect(heading).to_owned();
    let rows = section.lines().filter_map(|line| line.strip_prefix("| `")?.split_once('`'));
    rows.map(|(name, _)| name.to_owned()).collect()
}

#[test]
fn every_log_field_is_documented_and_none_is_made_up() {
    let (logged, documented) = (logged(), documented("Logs"));
    let missing: Vec<_> = logged.iter().filter(|(name, _)| !documented.contains(*name)).collect();
    assert!(missing.is_empty(), "add to the table of log fields in docs/observability.md: {missing:?}");
    let made_up: Vec<_> = documented.iter().filter(|name| !logged.contains_key(*name)).collect();
    assert!(made_up.is_empty(), "no log line has these fields of docs/observability.md: {made_up:?}");
}

/// JSON lines have their own meaning for these names; a field of that name would be there twice.
#[test]
fn no_field_is_in_the_way_of_those_that_every_line_has() {
    let logged = logged();
    for reserved in ["timestamp", "level", "target", "message", "span", "spans_list", "name"] {
        assert!(!logged.contains_key(reserved), "{reserved} is a field in {:?}", logged[reserved]);
    }
}

#[test]
fn the_reader_of_sources_finds_what_there_is() {
    let text = r#"code = %error.code, reason, ?pause, a.b, topics = ?list.iter().map(|x| (x, 1)), "said {}", x == y)"#;
    let found: Vec<String> = arguments(text);
    let named: Vec<&str> = found.iter().filter_map(|argument| field(argument)).collect();
    assert_eq!(named, ["code", "reason", "pause", "a.b", "topics"]);
    assert!(logged().len() > 40, "{:?}", logged().keys());
}
