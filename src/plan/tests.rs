use super::*;
use args::PlanArgs;
use clap::Parser;
use serde_json::Value;

#[derive(Parser)]
struct Command {
    #[command(flatten)]
    args: PlanArgs,
}

/// The dimensions of the published checkpoint: LLaMA-2-7B, ViT-L/14 at 448 px, 64 queries, 101 new tokens.
fn published() -> String {
    concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/plan/config.json").to_owned()
}

fn plan(more: &[&str]) -> Result<(Value, String), PlanError> {
    let checkpoint = published();
    let of = |format: &str| {
        let line = ["plan", "--checkpoint", &checkpoint, "--format", format];
        let args = Command::try_parse_from(line.into_iter().chain(more.iter().copied())).unwrap().args;
        let mut out = Vec::new();
        run(&args, &mut out).map(|()| String::from_utf8(out).unwrap())
    };
    Ok((serde_json::from_str(&of("json")?).unwrap(), of("human")?))
}

fn number(value: &Value, pointer: &str) -> f64 {
    value.pointer(pointer).and_then(Value::as_f64).unwrap_or_else(|| panic!("{pointer} in {value:#}"))
}

#[test]
fn an_image_takes_at_most_2_tflop_at_the_published_dimensions() {
    let (plan, text) = plan(&["--gpu", "h100"]).unwrap();
    let total = number(&plan, "/work/total");
    assert!(total <= 2.00e12, "{total}");
    // Not for the wrong reason: each part by hand, in multiplications and additions.
    let near =
        |found: f64, expected: f64| assert!((found / expected - 1.0).abs() < 1e-3, "{found} {expected}");
    let layer = 1025.0 * 12.0 * 1024.0 * 1024.0 + 2.0 * 1025.0 * 1025.0 * 1024.0;
    near(number(&plan, "/work/vision/linear") + number(&plan, "/work/vision/attention"), 2.0 * 24.0 * layer);
    let (square, inner) = (4096.0 * 4096.0, 4096.0 * 11008.0);
    let language = 31.0 * 96.0 * (4.0 * square + 3.0 * inner)
        + 96.0 * 2.0 * square
        + 14.0 * (2.0 * square + 3.0 * inner);
    near(number(&plan, "/work/language/linear"), 2.0 * language);
    assert_eq!(plan["passes"], serde_json::json!([{"cached": 35, "new": 96, "read": 14, "logits": 14}]));
    // The reference: 118 positions and 13 more, each through every layer and to logits.
    let reference = number(&plan, "/reference/total");
    assert!((2.45e12..2.52e12).contains(&reference), "{reference}");
    assert!(text.contains("total") && text.contains("96 new positions behind 35"), "{text}");
}

#[test]
fn weights_and_caches_have_their_bytes() {
    let (plan, _) = plan(&["--gpu", "h100"]).unwrap();
    let parameters: f64 = ["vision", "abstractor", "language"]
        .iter()
        .map(|part| number(&plan, &format!("/parameters/{part}")))
        .sum();
    let bytes = |kind: &str| -> f64 {
        ["vision", "abstractor", "language"]
            .iter()
            .map(|part| number(&plan, &format!("/weights/{kind}/{part}")))
            .sum()
    };
    assert_eq!(bytes("f32"), 4.0 * parameters);
    assert_eq!(bytes("bf16"), 2.0 * parameters);
    // All but embeddings, head and abstractor are a byte.
    assert!((0.5..0.56).contains(&(bytes("int8") / bytes("bf16"))), "{}", bytes("int8") / bytes("bf16"));
    // 32 layers, keys and values of 4096, 132 positions, two bytes.
    assert_eq!(number(&plan, "/image/kv_cache"), 32.0 * 2.0 * 4096.0 * 132.0 * 2.0);
}

#[test]
fn a_device_is_bound_by_what_it_lacks() {
    let (h100, text) = plan(&["--gpu", "h100"]).unwrap();
    assert_eq!(h100["estimate"]["bound"], "compute");
    assert!(number(&h100, "/estimate/largest_batch") > 50.0);
    assert!(text.contains("NVIDIA H100 SXM5: 80 GB, 3350 GB/s, 989 TFLOP/s"), "{text}");
    assert!(text.contains("bound by compute"), "{text}");
    assert_eq!(h100["estimate"]["batches"][0]["bound"], "bandwidth");

    let (small, text) = plan(&["--gpu", "rtx4090", "--device-memory", "12GB"]).unwrap();
    assert_eq!(
        (number(&small, "/estimate/largest_batch"), &small["estimate"]["bound"]),
        (0.0, &"memory".into())
    );
    assert!(text.contains("NVIDIA GeForce RTX 4090, changed: 12 GB") && text.contains("don't fit"), "{text}");
    let (fits, _) = plan(&["--gpu", "rtx4090", "--device-memory", "12GB", "--weights", "int8"]).unwrap();
    assert!(number(&fits, "/estimate/largest_batch") > 1.0, "{fits:#}");

    let own = ["--device-memory", "64GiB", "--bandwidth", "40GB/s", "--flops", "0.37TFLOP/s"];
    let (own, _) = plan(&own).unwrap();
    let rate = number(&own, "/estimate/batches/0/at_most_images_per_second");
    assert!((0.13..0.19).contains(&rate), "{rate}");
}

#[test]
fn what_cannot_be_planned_is_said_so() {
    let error = plan(&["--gpu", "l4", "--suffix", "4000"]).unwrap_err();
    assert!(error.to_string().contains("--suffix"), "{error}");
    assert_eq!(error.exit_code(), 2);
    assert!(Command::try_parse_from(["plan", "--checkpoint", "x", "--flops", "1T"]).is_err());
    assert!(
        Command::try_parse_from(["plan", "--checkpoint", "x", "--gpu", "l4", "--efficiency", "0"]).is_err()
    );
    let args =
        Command::try_parse_from(["plan", "--checkpoint", "/no/such/folder", "--gpu", "l4"]).unwrap().args;
    let error = run(&args, &mut Vec::new()).unwrap_err();
    assert!(error.to_string().contains("/no/such/folder") && error.exit_code() == 2, "{error}");
}
