use super::*;
use serde_json::{Value, json};
use std::fs;

fn valid() -> Value {
    json!({
        "model_type": "mplug_owl2", "vocab_size": 50, "hidden_size": 16, "intermediate_size": 24,
        "num_hidden_layers": 2, "num_attention_heads": 4,
        "score_id": 45, "img_token_num": 4, "num_tokens": 4, "min_score": 0, "max_score": 5.5,
        "visual_config": {
            "visual_model": {
                "hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 1,
                "num_attention_heads": 2, "image_size": 28, "patch_size": 14,
            },
            "visual_abstractor": {
                "hidden_size": 8, "encoder_hidden_size": 8, "intermediate_size": 12,
                "num_hidden_layers": 1, "num_attention_heads": 2, "num_learnable_queries": 3, "grid_size": 2,
            },
        },
    })
}

fn read(config: &Value, generation: Option<Value>) -> Result<ModelConfig, ConfigError> {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
    if let Some(generation) = generation {
        fs::write(folder.path().join("generation_config.json"), generation.to_string()).unwrap();
    }
    ModelConfig::read(folder.path())
}

#[test]
fn absent_fields_have_the_reference_s_defaults() {
    let config = read(&valid(), None).unwrap();
    assert_eq!(config.language.num_key_value_heads, 4);
    assert_eq!((config.language.rope_theta, config.language.rms_norm_eps), (10_000.0, 1e-6));
    assert_eq!(config.language.rope_scaling, None);
    assert_eq!(config.special, SpecialTokens { bos: 1, eos: vec![2], pad: 2 });
    assert_eq!((config.vision.positions(), config.image_positions()), (5, 4));
    assert_eq!(config.score.map(|score| (score.min_score, score.max_score)), Some((0.0, 5.5)));
}

#[test]
fn each_impossible_field_is_named() {
    let rows = [
        ("/vocab_size", Value::Null, "`vocab_size` is missing"),
        ("/hidden_size", json!(0), "`hidden_size` must be an integer from 1"),
        ("/hidden_size", json!("16"), "but is \"16\""),
        ("/hidden_size", json!(1_u64 << 63), "`hidden_size`"),
        ("/hidden_size", json!(20), "`num_attention_heads` is 4"),
        ("/num_hidden_layers", json!(2.5), "`num_hidden_layers`"),
        ("/num_hidden_layers", json!(1_000_000), "`num_hidden_layers`"),
        ("/num_key_value_heads", json!(3), "`num_key_value_heads` is 3"),
        ("/rms_norm_eps", json!(-1.0), "`rms_norm_eps` must be above 0"),
        ("/rope_scaling", json!({"type": "yarn", "factor": 2.0}), "`rope_scaling.type`"),
        ("/rope_scaling", json!({"type": "linear", "factor": 0.5}), "`rope_scaling.factor`"),
        ("/hidden_act", json!("gelu"), "`hidden_act` is `gelu`"),
        ("/eos_token_id", json!([]), "`eos_token_id`"),
        ("/eos_token_id", json!(50), "`eos_token_id` is 50, outside the vocabulary"),
        ("/score_id", json!(50), "`score_id` is 50, outside the vocabulary"),
        ("/num_tokens", json!(5), "`num_tokens` is 5 and `img_token_num` 4"),
        ("/max_score", json!(0), "`min_score` is 0, not below"),
        ("/min_score", Value::Null, "`min_score` is missing"),
        ("/visual_config", Value::Null, "`visual_config` is missing"),
        ("/visual_config/visual_model", json!([]), "`visual_config.visual_model` must be an object"),
        ("/visual_config/visual_model/patch_size", json!(29), "`visual_config.visual_model.patch_size`"),
        ("/visual_config/visual_model/num_attention_heads", json!(3), "visual_model.num_attention_heads`"),
        ("/visual_config/visual_abstractor/grid_size", json!(3), "visual_abstractor.grid_size` is 3"),
        ("/visual_config/visual_abstractor/encoder_hidden_size", json!(4), "encoder_hidden_size` is 4"),
    ];
    for (place, value, expected) in rows {
        let mut config = valid();
        match config.pointer_mut(place) {
            Some(field) => *field = value,
            None => config[&place[1..]] = value,
        }
        let message = read(&config, None).unwrap_err().to_string();
        assert!(message.contains(expected), "{place}: {message}");
        assert!(message.contains("/config.json: ") && message.contains("; compare"), "{message}");
    }
}

#[test]
fn a_file_that_is_no_object_is_named() {
    let message = read(&json!("text"), None).unwrap_err().to_string();
    assert!(message.contains("/config.json: isn't a JSON object"), "{message}");
}

#[test]
fn generation_settings_win_only_if_written_by_hand() {
    let mut config = valid();
    config["pad_token_id"] = json!(0);
    let generation = |derived: bool| json!({"_from_model_config": derived, "eos_token_id": [2, 7]});
    let special = read(&config, Some(generation(true))).unwrap().special;
    assert_eq!(special, SpecialTokens { bos: 1, eos: vec![2], pad: 0 });
    let special = read(&config, Some(generation(false))).unwrap().special;
    assert_eq!(special, SpecialTokens { bos: 1, eos: vec![2, 7], pad: 2 });
}
