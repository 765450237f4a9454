//! A checkpoint of any size.

use serde_json::{Value, json};
use std::{
    fs::{self, File},
    io::{BufWriter, Write},
    path::Path,
};

/// Writes a sound checkpoint of about `bytes` in bfloat16 with made-up weights.
pub fn write(folder: &Path, bytes: u64) {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/golden/ckpt_safetensors");
    for name in [
        "tokenizer.model",
        "added_tokens.json",
        "special_tokens_map.json",
        "tokenizer_config.json",
        "preprocessor_config.json",
    ] {
        fs::copy(source.join(name), folder.join(name)).unwrap();
    }
    let mut config: Value = serde_json::from_slice(&fs::read(source.join("config.json")).unwrap()).unwrap();
    let (width, intermediate) = (1024, 2816);
    for (field, value) in
        [("hidden_size", width), ("intermediate_size", intermediate), ("num_attention_heads", 16)]
    {
        config[field] = json!(value);
    }
    config["num_key_value_heads"] = json!(16);
    let layer = 2 * (6 * width * width + 3 * width * intermediate);
    config["num_hidden_layers"] = json!(bytes / layer);
    config["torch_dtype"] = json!("bfloat16");
    fs::write(folder.join("config.json"), config.to_string()).unwrap();

    let parsed = roc4mllm::model::config::ModelConfig::read(folder).unwrap();
    let mut header = serde_json::Map::new();
    let mut end = 0;
    for (name, tensor) in roc4mllm::model::checkpoint::expected_tensors(&parsed) {
        let start = end;
        end += 2 * tensor.shape.iter().product::<i64>();
        header.insert(name, json!({"dtype": "BF16", "shape": tensor.shape, "data_offsets": [start, end]}));
    }
    let mut header = Value::Object(header).to_string();
    header.push_str(&" ".repeat(header.len().next_multiple_of(8) - header.len()));
    let mut file = BufWriter::new(File::create(folder.join("model.safetensors")).unwrap());
    file.write_all(&(header.len() as u64).to_le_bytes()).unwrap();
    file.write_all(header.as_bytes()).unwrap();
    // Small finite numbers: the high byte of a bfloat16 near 0.02.
    let block: Vec<u8> = (0..1_u32 << 20)
        .map(|i| if i % 2 == 0 { (i.wrapping_mul(2_654_435_761) >> 24) as u8 } else { 0x3c })
        .collect();
    let mut left = end as usize;
    while left > 0 {
        let count = left.min(block.len());
        file.write_all(&block[..count]).unwrap();
        left -= count;
    }
    file.flush().unwrap();
}
