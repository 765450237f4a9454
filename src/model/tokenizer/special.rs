//! The files beside `tokenizer.model`: tokens added to the vocabulary, and which tokens are special.

use crate::model::fields::{ConfigError, Fields, read_object};
use serde_json::Value;
use std::{collections::BTreeMap, path::Path};

/// `added_tokens.json`: the tokens that the vocabulary was grown by; none where there is no such file.
pub(super) fn read_added_tokens(folder: &Path) -> Result<BTreeMap<String, u32>, ConfigError> {
    let file = folder.join("added_tokens.json");
    if !file.exists() {
        return Ok(BTreeMap::new());
    }
    let id = |(text, id): (String, Value)| match id.as_u64().and_then(|id| u32::try_from(id).ok()) {
        Some(id) => Ok((text, id)),
        None => Err(ConfigError { file: file.clone(), problem: format!("`{text}` has the id {id}") }),
    };
    read_object(&file)?.into_iter().map(id).collect()
}

/// What `special_tokens_map.json` and `tokenizer_config.json` say.
pub(super) struct SpecialTokens {
    pub bos: Option<String>,
    pub eos: Option<String>,
    pub pad: Option<String>,
    /// Each special token and whether it takes the white space around it.
    pub texts: BTreeMap<String, bool>,
    pub add_bos: bool,
    pub add_eos: bool,
}

const ROLES: [&str; 7] =
    ["bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token", "mask_token"];

impl SpecialTokens {
    pub fn read(folder: &Path) -> Result<Self, ConfigError> {
        let map_file = folder.join("special_tokens_map.json");
        let config_file = folder.join("tokenizer_config.json");
        let read = |file: &Path| if file.exists() { read_object(file) } else { Ok(serde_json::Map::new()) };
        let (map, config) = (read(&map_file)?, read(&config_file)?);
        let map_fields = Fields::new(&map_file, "", &map);
        let config_fields = Fields::new(&config_file, "", &config);
        if !config_fields.flag("legacy", true)? {
            return Err(
                config_fields.error("legacy", "is false, but only the legacy rules are followed here")
            );
        }

        let mut texts = BTreeMap::new();
        let mut insert = |text: &str, strips: bool| {
            // A token listed twice takes no white space if either entry says so.
            let entry = texts.entry(text.to_owned()).or_insert(strips);
            *entry = *entry && strips;
        };
        let mut of_role = BTreeMap::new();
        for role in ROLES {
            let token = match (map_fields.value(role), config_fields.value(role)) {
                // A bare text in the map stays one, and bare texts take the white space around them;
                // one in the tokenizer's own settings is made a token that doesn't.
                (Some(value), _) => Some(special_token(&map_fields, role, value, true)?),
                (None, Some(value)) => Some(special_token(&config_fields, role, value, false)?),
                (None, None) => match role {
                    "bos_token" => Some(("<s>".to_owned(), false)),
                    "eos_token" => Some(("</s>".to_owned(), false)),
                    "unk_token" => Some(("<unk>".to_owned(), false)),
                    _ => None,
                },
            };
            if let Some((text, strips)) = token {
                insert(&text, strips);
                of_role.insert(role, text);
            }
        }
        for fields in [map_fields, config_fields] {
            let further = fields.value("additional_special_tokens").and_then(Value::as_array);
            for value in further.into_iter().flatten() {
                let (text, strips) = special_token(&fields, "additional_special_tokens", value, true)?;
                insert(&text, strips);
            }
        }
        Ok(Self {
            bos: of_role.remove("bos_token"),
            eos: of_role.remove("eos_token"),
            pad: of_role.remove("pad_token"),
            texts,
            add_bos: config_fields.flag("add_bos_token", true)?,
            add_eos: config_fields.flag("add_eos_token", false)?,
        })
    }
}

/// A special token's text, and whether it takes the white space around it.
fn special_token(
    fields: &Fields<'_>,
    name: &str,
    value: &Value,
    bare_strips: bool,
) -> Result<(String, bool), ConfigError> {
    match value {
        Value::String(text) => Ok((text.clone(), bare_strips)),
        Value::Object(token) => {
            let content = token.get("content").and_then(Value::as_str);
            let content = content.ok_or_else(|| fields.error(name, "has no text `content`"))?;
            let takes = |side: &str| token.get(side).and_then(Value::as_bool).unwrap_or(false);
            if takes("lstrip") != takes("rstrip") {
                return Err(fields.error(name, "takes white space on one side only, which isn't supported"));
            }
            Ok((content.to_owned(), takes("lstrip")))
        }
        _ => Err(fields.error(name, "must be a text or an object with one")),
    }
}
