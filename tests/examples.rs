//! The examples in docs/examples: their configurations load, their files agree with each other, and the
//! roles of the Postgres one can do what they are for and no more.

use roc4mllm::{
    config,
    dev::Postgres,
    fault::{ErrorCode, ItemError, Stage},
    object::{ObjectRef, ScoreId},
    score::{ItemStatus, ModelVersion},
    secret::Secret,
    store::{PostgresSettings, ScoreRow, Store},
};
use sqlx::{AssertSqlSafe, Connection, PgConnection};
use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::Command,
};
use url::Url;
use uuid::Uuid;
use yaml_rust2::{Yaml, YamlLoader};

fn examples() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/examples")
}

fn files(extension: &str) -> Vec<PathBuf> {
    let mut files: Vec<PathBuf> = walkdir::WalkDir::new(examples())
        .into_iter()
        .map(|entry| entry.expect("a file").into_path())
        .filter(|path| path.extension().is_some_and(|found| found == extension))
        .collect();
    files.sort();
    files
}

fn documents(path: &Path) -> Vec<Yaml> {
    let text = fs::read_to_string(path).expect("UTF-8");
    YamlLoader::load_from_str(&text).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

#[test]
fn every_configuration_is_accepted() {
    let configurations = files("toml");
    assert_eq!(configurations.len(), 3, "{configurations:?}");
    for path in configurations {
        let output = Command::new(env!("CARGO_BIN_EXE_roc4mllm"))
            .args(["check-config", "--config"])
            .arg(&path)
            .env("ROC4MLLM__POSTGRES__URL", "postgres://worker:hush@postgres/photos")
            .output()
            .expect("it starts");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{}: {said}", path.display());
        assert!(!fs::read_to_string(&path).expect("UTF-8").contains("password ="), "{}", path.display());
    }
}

#[test]
fn every_topic_that_a_worker_names_is_made() {
    let settings = |folder: &str| {
        config::load(Some(&examples().join(folder).join("worker.toml")), &[]).expect("a configuration").kafka
    };
    let strimzi = documents(&examples().join("strimzi/kafka.yaml"));
    let named = |kind: &str| -> BTreeSet<String> {
        let of_kind = strimzi.iter().filter(|document| document["kind"].as_str() == Some(kind));
        of_kind.map(|document| document["metadata"]["name"].as_str().expect("a name").to_owned()).collect()
    };
    let kafka = settings("strimzi");
    let topics: BTreeSet<String> =
        kafka.required_topics().iter().map(|(_, topic)| (*topic).to_owned()).collect();
    assert_eq!(named("KafkaTopic"), topics);
    assert!(named("KafkaUser").contains(&kafka.sasl.username));
    let worker = strimzi.iter().find(|document| {
        document["kind"].as_str() == Some("KafkaUser")
            && document["metadata"]["name"].as_str() == Some("roc4mllm")
    });
    let rights =
        worker.expect("the worker's user")["spec"]["authorization"]["acls"].as_vec().expect("a list");
    let may = |kind: &str, name: &str, operation: &str| {
        rights.iter().any(|right| {
            let resource = &right["resource"];
            let operations = right["operations"].as_vec().expect("operations");
            resource["type"].as_str() == Some(kind)
                && resource["name"].as_str() == Some(name)
                && operations.iter().any(|found| found.as_str() == Some(operation))
        })
    };
    for topic in kafka.consumed_topics() {
        assert!(may("topic", topic, "Read"), "{topic}");
        assert!(!may("topic", topic, "Write"), "{topic} is only read by a worker");
    }
    for topic in [&kafka.output_topic, &kafka.dead_letter_topic] {
        assert!(may("topic", topic, "Write"), "{topic}");
    }
    assert!(may("group", &kafka.group, "Read") && may("transactionalId", &kafka.group, "Write"));

    let compose = documents(&examples().join("minio-redpanda/compose.yaml"));
    let services = &compose[0]["services"];
    let making = services["topics"]["command"][0].as_str().expect("a command");
    let kafka = settings("minio-redpanda");
    for (_, topic) in kafka.required_topics() {
        assert!(making.split_whitespace().any(|word| word == topic), "{topic} is not in: {making}");
    }
    let notified = services["minio"]["environment"]["MINIO_NOTIFY_KAFKA_TOPIC_ROC4MLLM"].as_str();
    assert_eq!(notified, kafka.input_topics.first().map(String::as_str));
    let image = services["worker"]["image"].as_str().expect("an image");
    assert_eq!(image, format!("roc4mllm:{}", env!("CARGO_PKG_VERSION")));
    for (name, service) in services.as_hash().expect("services") {
        let image = service["image"].as_str().expect("an image");
        let tag = image.rsplit('/').next().and_then(|name| name.split_once(':')).map(|(_, tag)| tag);
        assert!(tag.is_some_and(|tag| tag != "latest"), "{name:?}: {image} is pinned to nothing");
    }
}

async fn run(url: &str, statement: &str) -> Result<(), sqlx::Error> {
    let mut connection = PgConnection::connect(url).await?;
    sqlx::raw_sql(AssertSqlSafe(statement.to_owned())).execute(&mut connection).await?;
    connection.close().await
}

/// The scripts as an administrator of a managed Postgres would run them, who is no superuser.
#[tokio::test]
async fn each_role_can_do_what_it_is_for() {
    let server = tokio::task::spawn_blocking(Postgres::start).await.expect("a thread").expect("a Postgres");
    let address = |role: &str, database: &str| {
        let mut url = Url::parse(&server.url()).expect("an address");
        url.set_username(role).expect("a role");
        url.set_password(Some("hush")).expect("a password");
        url.set_path(database);
        String::from(url)
    };
    for statement in
        ["CREATE ROLE provider LOGIN CREATEROLE PASSWORD 'hush'", "CREATE DATABASE photos OWNER provider"]
    {
        run(&server.url(), statement).await.expect(statement);
    }
    let provider = address("provider", "photos");
    let script =
        |name: &str| fs::read_to_string(examples().join("managed-postgres").join(name)).expect("a script");
    run(&provider, &script("roles.sql")).await.expect("roles.sql");
    for role in ["roc4mllm_migrate", "roc4mllm_worker", "roc4mllm_read"] {
        run(&provider, &format!("ALTER ROLE {role} PASSWORD 'hush'")).await.expect(role);
    }
    let (owner, worker, reader) = (
        address("roc4mllm_migrate", "photos"),
        address("roc4mllm_worker", "photos"),
        address("roc4mllm_read", "photos"),
    );
    run(&owner, &script("grants.sql")).await.expect("grants.sql");

    let store = async |url: &str| {
        let settings = PostgresSettings { url: Secret::from(url), ..PostgresSettings::default() };
        Store::connect(&settings).await.expect("a connection")
    };
    let refused = store(&worker).await.migrate().await.expect_err("the worker's role owns no schema");
    assert!(refused.to_string().contains("grant"), "{refused}");
    store(&owner).await.migrate().await.expect("a schema");

    let model = ModelVersion { model: "m".into(), version: "v".into(), preprocess_revision: 1 };
    let error = ItemError::new(ErrorCode::DecodeFailed, Stage::Decode, "a.jpg: no image; re-upload it");
    let row = ScoreRow::unscored(
        ScoreId(Uuid::new_v4()),
        Some(ObjectRef::new("photos", "a.jpg")),
        &model,
        ItemStatus::Rejected,
        Some(error),
        None,
    );
    let working = store(&worker).await;
    working.upsert(std::slice::from_ref(&row)).await.expect("a row");
    assert_eq!(working.lookup(&[row.id]).await.expect("rows").len(), 1);
    assert!(working.champion().await.expect("an answer").is_none());
    for statement in [
        "LOCK TABLE model_versions IN SHARE ROW EXCLUSIVE MODE",
        "SELECT nextval('votes_ingested')",
        "DELETE FROM shadow_pairs",
    ] {
        run(&worker, &format!("BEGIN; {statement}; COMMIT")).await.expect(statement);
    }
    // A table of a later release.
    run(&owner, "CREATE TABLE later (n int)").await.expect("a table");
    run(&worker, "INSERT INTO later VALUES (1)").await.expect("rights on later tables");
    for statement in [
        "DROP TABLE scores",
        "TRUNCATE scores",
        "ALTER TABLE scores ADD COLUMN more int",
        "CREATE TABLE roc4mllm.own (n int)",
        "CREATE SCHEMA own",
        "CREATE ROLE own",
        "COPY scores TO PROGRAM 'true'",
    ] {
        let error = run(&worker, statement).await.expect_err(statement).to_string();
        assert!(error.contains("permission denied") || error.contains("must be "), "{statement}: {error}");
    }
    run(&reader, "SELECT count(*) FROM scores").await.expect("a reader reads");
    for statement in
        ["DELETE FROM scores", "INSERT INTO later VALUES (1)", "SELECT nextval('votes_ingested')"]
    {
        run(&reader, statement).await.expect_err(statement);
    }
    let postgres = address("roc4mllm_worker", "postgres");
    run(&postgres, "SELECT 1").await.expect("the server's own database is not this one's business");
}
