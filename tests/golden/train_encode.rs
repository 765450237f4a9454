//! `preprocess_tests.json`: conversations as ids and labels.

use crate::{
    support::json,
    training::{checkpoint, pad},
};
use roc4mllm::{labels::Turn, model::tokenizer::Tokenizer, train::encode::encode};
use serde::Deserialize;

const FILE: &str = "preprocess_tests.json";

#[derive(Deserialize)]
struct Case {
    name: String,
    conversations: Vec<Turn>,
    has_image: bool,
    #[serde(flatten)]
    outcome: Outcome,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Outcome {
    Encoded {
        input_ids: Vec<i64>,
        labels: Vec<i64>,
        /// What the reference prints.
        printed: String,
    },
    Refused {
        error: String,
    },
}

#[test]
fn golden_train_conversations() {
    let tokenizer = Tokenizer::open(&checkpoint()).unwrap();
    let cases: Vec<Case> = json(FILE);
    assert!(!cases.is_empty(), "{FILE}: no cases");
    for Case { name, conversations, has_image, outcome } in cases {
        let encoded = encode(&conversations, has_image, &tokenizer, pad());
        match (outcome, encoded) {
            (Outcome::Encoded { input_ids, labels, printed }, Ok(encoded)) => {
                assert_eq!(encoded.ids, input_ids, "{FILE}: {name}: input_ids");
                assert_eq!(encoded.labels, labels, "{FILE}: {name}: labels");
                let warning = encoded.mismatch.map_or_else(String::new, |mismatch| {
                    format!(
                        "WARNING: tokenization mismatch: {} vs. {}. (ignored)\n",
                        mismatch.counted, mismatch.total
                    )
                });
                assert_eq!(warning, printed, "{FILE}: {name}: printed");
            }
            (Outcome::Refused { error }, Err(refusal)) => {
                // A KeyError names the role, an AssertionError nothing.
                let role = error.split('\'').nth(1).unwrap_or_default();
                let refusal = refusal.to_string();
                assert!(refusal.contains(role), "{FILE}: {name}: `{refusal}`, not {error}");
                assert!(error.contains("Error: "), "{FILE}: {name}: {error} is no error");
            }
            (Outcome::Refused { error }, Ok(_)) => panic!("{FILE}: {name}: no error, but {error}"),
            (Outcome::Encoded { .. }, Err(error)) => panic!("{FILE}: {name}: {error}"),
        }
    }
}
