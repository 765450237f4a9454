//! The binary's configuration and usage errors: what they say and how they exit.

use std::{
    io::Write,
    process::{Command, Output},
};

fn roc4mllm(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_roc4mllm"));
    command.args(arguments);
    // Settings of whoever runs the tests must not reach in.
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("ROC4MLLM__")) {
        command.env_remove(name);
    }
    command
}

fn run(command: &mut Command) -> Output {
    command.output().expect("the binary starts")
}

/// The one line on standard error, after the exit code was checked.
fn refusal(output: &Output, code: i32) -> String {
    let message = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(code), "{message}");
    assert_eq!(message.lines().count(), 1, "one line: {message}");
    message
}

fn file(content: &str) -> tempfile::NamedTempFile {
    let mut file = tempfile::NamedTempFile::new().expect("a temporary file");
    file.write_all(content.as_bytes()).expect("written");
    file
}

#[test]
fn an_unknown_key_is_named_with_its_place_and_the_nearest_valid_one() {
    let file = file("[kafka]\ngruop = \"g\"\n");
    let path = file.path().to_str().expect("UTF-8");
    let message = refusal(&run(&mut roc4mllm(&["check-config", "-c", path])), 2);
    assert!(message.contains(path) && message.contains("`kafka.gruop`"), "{message}");
    assert!(message.contains("did you mean `kafka.group`?"), "{message}");

    let message = refusal(&run(roc4mllm(&["check-config"]).env("ROC4MLLM__S3__BUKETS", "a")), 2);
    assert!(message.contains("ROC4MLLM__S3__BUKETS") && message.contains("`s3.buckets`"), "{message}");

    let message = refusal(&run(&mut roc4mllm(&["worker", "--set", "modell.device=cpu"])), 2);
    assert!(message.contains("`modell`") && message.contains("`model`"), "{message}");
}

#[test]
fn a_broken_or_missing_file_is_named() {
    let file = file("[kafka\n");
    let path = file.path().to_str().expect("UTF-8");
    let message = refusal(&run(&mut roc4mllm(&["worker", "-c", path])), 2);
    assert!(message.contains(path) && message.contains("TOML"), "{message}");
    let message = refusal(&run(&mut roc4mllm(&["worker", "-c", "no-such.toml"])), 2);
    assert!(message.contains("no-such.toml"), "{message}");
}

#[test]
fn a_value_of_the_wrong_type_is_named() {
    let message = refusal(&run(&mut roc4mllm(&["worker", "--set", "inference.batch_size=many"])), 2);
    assert!(message.contains("inference.batch_size"), "{message}");
    let message = refusal(&run(&mut roc4mllm(&["worker", "--set", "http.listen=nowhere"])), 2);
    assert!(message.contains("write `:8080`"), "{message}");
}

#[test]
fn a_required_key_is_asked_for() {
    let message = refusal(&run(&mut roc4mllm(&["worker", "--set", "s3.buckets=[]"])), 2);
    assert!(message.contains("s3.buckets"), "{message}");
    let message = refusal(
        &run(&mut roc4mllm(&["worker", "--set", "s3.buckets=a", "--set", "kafka.output_topic=uploads"])),
        2,
    );
    assert!(message.contains("loop"), "{message}");
}

#[test]
fn later_sources_win_and_secrets_are_redacted() {
    let file = file("[kafka]\ngroup = \"file\"\n[postgres]\nurl = \"postgres://u:hush@db/x\"\n");
    let path = file.path().to_str().expect("UTF-8");
    let output = run(roc4mllm(&[
        "check-config",
        "-c",
        path,
        "--set",
        "s3.buckets=[\"b\"]",
        "--set",
        "model.checkpoint=/c",
    ])
    .env("ROC4MLLM__KAFKA__GROUP", "environment")
    .env("ROC4MLLM__KAFKA__INPUT_TOPICS", "one,two"));
    let shown = String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(shown.contains("group = \"environment\""), "{shown}");
    assert!(shown.contains("one, two"), "{shown}");
    assert!(!shown.contains("hush"), "{shown}");
    let flagged = run(roc4mllm(&["check-config", "-c", path, "--set", "kafka.group=flag"])
        .env("ROC4MLLM__KAFKA__GROUP", "environment"));
    assert!(String::from_utf8_lossy(&flagged.stdout).contains("group = \"flag\""));
}

#[test]
fn a_secret_may_look_like_anything() {
    for secret in ["0123456789", "1e5", "true", "[a, b]", "{a = 1}", "\"quoted\""] {
        let mut checked =
            roc4mllm(&["check-config", "--set", "s3.buckets=a", "--set", "model.checkpoint=/c"]);
        checked.args(["--set", "postgres.url=postgres://db/x", "--set"]);
        let output = run(checked
            .arg(format!("kafka.tls.key_password={secret}"))
            .env("ROC4MLLM__KAFKA__SASL__PASSWORD", secret));
        assert_eq!(output.status.code(), Some(0), "{secret}: {}", String::from_utf8_lossy(&output.stderr));
        let shown = String::from_utf8_lossy(&output.stdout);
        for line in ["password = \"[redacted]\"", "key_password = \"[redacted]\""] {
            assert!(shown.lines().any(|shown| shown == line), "{secret}: {shown}");
        }
    }
    let file = file("[kafka.sasl]\npassword = 4711\n");
    let path = file.path().to_str().expect("UTF-8");
    let message = refusal(&run(&mut roc4mllm(&["check-config", "-c", path])), 2);
    assert!(message.contains("kafka.sasl.password") && message.contains("quotes"), "{message}");
    assert!(!message.contains("4711"), "{message}");
}

/// The reference that users copy from says what the code does.
#[test]
fn the_shipped_configuration_is_the_default_one() {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("config/worker.toml");
    let shipped = roc4mllm::config::load(Some(&path), &[]).expect("config/worker.toml loads");
    let shown = |config| roc4mllm::config::render(&config).expect("TOML");
    assert_eq!(shown(shipped), shown(roc4mllm::config::Config::default()));
}

/// So does the one of retraining, in every key that is its own.
#[test]
fn the_shipped_configuration_of_retraining_is_the_default_one_and_whole() {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("config/retrain.toml");
    let shipped = roc4mllm::config::load(Some(&path), &[]).expect("config/retrain.toml loads");
    let shown = roc4mllm::config::render(&shipped).expect("TOML");
    let default = roc4mllm::config::render(&roc4mllm::config::Config::default()).expect("TOML");
    assert_eq!(shown, default);
    let text = std::fs::read_to_string(path).expect("the file");
    for section in ["retrain", "train", "split", "gate"] {
        assert!(text.contains(&format!("\n[{section}]\n")), "{section}");
        let keys = default.split_once(&format!("[{section}]\n")).expect("the section").1;
        let keys = keys.lines().take_while(|line| !line.starts_with('['));
        for key in keys.filter_map(|line| line.split_once(" = ")).map(|(key, _)| key) {
            assert!(text.contains(&format!("\n{key} = ")), "{section}.{key} is not in the file");
        }
    }
}

#[test]
fn retraining_asks_for_what_it_needs() {
    let mut arguments = vec!["retrain"];
    for (setting, missing) in [
        ("postgres.url=postgres://127.0.0.1:1/x", "postgres.url"),
        ("s3.buckets=[\"b\"]", "s3.buckets"),
        ("registry.publish_to=s3://b/models", "registry.publish_to"),
    ] {
        let message = refusal(&run(&mut roc4mllm(&arguments)), 2);
        assert!(message.contains(missing), "{message}");
        arguments.extend(["--set", setting]);
    }
    for (setting, key) in [
        ("retrain.lease_ms=1", "retrain.lease_ms"),
        ("split.holdout=0", "split.holdout"),
        ("gate.required=[\"gold\"]", "gate.required"),
        ("train.learning_rate=0", "learning-rate"),
    ] {
        let arguments = [&arguments[..], &["--set", setting]].concat();
        let message = refusal(&run(&mut roc4mllm(&arguments)), 2);
        assert!(message.contains(key), "{message}");
    }
    let message = refusal(&run(&mut roc4mllm(&arguments)), 69);
    assert!(message.contains("127.0.0.1:1"), "{message}");
}

#[test]
fn a_probe_names_each_dependency_that_does_not_answer() {
    let output = run(&mut roc4mllm(&[
        "check-config",
        "--probe",
        "--set",
        "kafka.brokers=127.0.0.1:1",
        "--set",
        "s3.buckets=[\"b\"]",
        "--set",
        "s3.endpoint=http://127.0.0.1:1",
        "--set",
        "s3.access_key_id=a",
        "--set",
        "s3.secret_access_key=b",
        "--set",
        "postgres.url=postgres://u:hush@127.0.0.1:1/x",
        "--set",
        "model.checkpoint=/no-such-checkpoint",
        "--set",
        "pipeline.start_timeout_ms=3000",
    ]));
    let shown = String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(69), "{shown}");
    let failures: Vec<&str> =
        shown.lines().filter(|line| line.starts_with("# ") && !line.contains(": ok")).collect();
    for name in ["Kafka", "S3", "Postgres", "checkpoint"] {
        assert!(failures.iter().filter(|line| line.contains(name)).count() >= 2, "{name}: {shown}");
    }
    assert!(!shown.contains("hush"), "{shown}");
    // Not at every attempt to connect.
    let logged = String::from_utf8_lossy(&output.stderr);
    assert!(logged.matches("brokers are down").count() <= 1, "{logged}");
}

#[test]
fn an_error_that_names_its_cause_says_it_once() {
    let unreachable = ["models", "list", "--set", "postgres.url=postgres://127.0.0.1:1/x"];
    let message = refusal(&run(&mut roc4mllm(&unreachable)), 69);
    assert_eq!(message.matches("is unreachable").count(), 1, "{message}");
}

#[test]
fn a_missing_checkpoint_is_named() {
    let message = refusal(&run(&mut roc4mllm(&["checkpoint", "inspect", "/no-such-checkpoint"])), 2);
    assert!(message.contains("/no-such-checkpoint"), "{message}");
}

#[test]
fn a_plan_is_made_of_config_json_alone() {
    let config = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/plan/config.json");
    let output = run(&mut roc4mllm(&["plan", "--checkpoint", config, "--gpu", "h100"]));
    let text = String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(text.contains("NVIDIA H100 SXM5") && text.contains("largest batch"), "{text}");
    let message = refusal(&run(&mut roc4mllm(&["plan", "--checkpoint", "/no-such", "--gpu", "h100"])), 2);
    assert!(message.contains("/no-such"), "{message}");
}
