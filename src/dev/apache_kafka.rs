//! A real Apache Kafka: one KRaft node as a child process.

use crate::dev::child::ManagedChild;
use crate::dev::{DevError, free_port, scratch};
use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::types::RDKafkaErrorCode;
use std::fs::{self, File};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};
use tempfile::TempDir;

const PART: &str = "Apache Kafka";
/// After a SIGKILL the broker recovers its logs, which takes 13 s with small ones.
const START_DEADLINE: Duration = Duration::from_secs(120);
const STOP_PATIENCE: Duration = Duration::from_secs(20);
const ADMIN_TIMEOUT: Duration = Duration::from_secs(30);
/// Any 16 bytes in base64: what `kafka.tools.StorageTool random-uuid` prints.
const CLUSTER_ID: &str = "cm9jNG1sbG0tZGV2LWthZg";

/// One broker that is its own controller, on free loopback ports, with data in a temporary
/// folder. Transactions, fencing and `read_committed` are the real ones.
#[derive(Debug)]
pub struct ApacheKafka {
    // Dropped before the folder it works in.
    server: ManagedChild,
    bootstrap: String,
    second: Option<SecondListener>,
    libraries: PathBuf,
    folder: TempDir,
}

/// A listener for clients behind a proxy, or for those that have to prove who they are. Clients connect to
/// whatever address a broker advertises, so a proxy in front of the bootstrap address alone would see
/// nothing but their first request.
#[derive(Clone, Copy, Debug)]
struct SecondListener {
    listens: u16,
    advertises: u16,
    host: &'static str,
    protocol: &'static str,
}

impl ApacheKafka {
    /// Where `make setup` lays the jars out.
    pub fn default_libraries() -> PathBuf {
        let in_sources = Path::new(env!("CARGO_MANIFEST_DIR")).join(".deps/kafka/libs");
        if in_sources.is_dir() { in_sources } else { PathBuf::from(".deps/kafka/libs") }
    }

    /// Whether the broker's jars are in `libraries`.
    pub fn is_laid_out(libraries: &Path) -> bool {
        fs::read_dir(libraries)
            .is_ok_and(|mut jars| jars.any(|jar| jar.is_ok_and(|jar| is_broker_jar(&jar.path()))))
    }

    /// Formats a log folder and starts the broker from the jars in `libraries`: about 5 s.
    /// Blocks the thread.
    pub fn start(libraries: &Path) -> Result<Self, DevError> {
        Self::launch_first(libraries, None, "")
    }

    /// As [`Self::start`], with a second listener that sends its clients to the loopback port
    /// `advertises`, where a proxy has to forward them to [`Self::behind_proxy`]. `settings` are
    /// further lines of the broker's configuration.
    pub fn start_behind(libraries: &Path, advertises: u16, settings: &str) -> Result<Self, DevError> {
        let listens = free_port(PART)?;
        let second = SecondListener { listens, advertises, host: "127.0.0.1", protocol: "PLAINTEXT" };
        Self::launch_first(libraries, Some(second), settings)
    }

    /// As [`Self::start`], with a second listener of a security `protocol` in Kafka's words, such as
    /// `SASL_SSL`, that advertises itself as `localhost`. `settings` configure it, under the prefix
    /// `listener.name.proxied.`.
    pub fn start_secured(libraries: &Path, protocol: &'static str, settings: &str) -> Result<Self, DevError> {
        let port = free_port(PART)?;
        let second = SecondListener { listens: port, advertises: port, host: "localhost", protocol };
        Self::launch_first(libraries, Some(second), settings)
    }

    fn launch_first(
        libraries: &Path,
        second: Option<SecondListener>,
        further: &str,
    ) -> Result<Self, DevError> {
        if !Self::is_laid_out(libraries) {
            return Err(DevError::Absent {
                part: PART,
                what: "its jars in .deps/kafka/libs",
                remedy: "run `make setup` where Maven Central can be reached",
            });
        }
        let folder = scratch::folder("kafka")?;
        let client_port = free_port(PART)?;
        let controller_port = free_port(PART)?;
        let settings = settings(folder.path(), client_port, controller_port, second) + further;
        fs::write(folder.path().join("server.properties"), settings)
            .and_then(|()| fs::write(folder.path().join("log4j2.properties"), LOGGING))
            .map_err(|error| DevError::io(PART, error))?;
        format_storage(libraries, folder.path())?;
        let bootstrap = format!("127.0.0.1:{client_port}");
        let server = launch(libraries, folder.path(), &bootstrap)?;
        Ok(Self { server, bootstrap, second, libraries: libraries.to_owned(), folder })
    }

    /// `host:port` for `bootstrap.servers`; stays the same over [`Self::restart`].
    pub fn bootstrap(&self) -> &str {
        &self.bootstrap
    }

    /// Where a proxy forwards to, if the broker was started with [`Self::start_behind`].
    pub fn behind_proxy(&self) -> Option<SocketAddr> {
        self.second.map(|second| (Ipv4Addr::LOCALHOST, second.listens).into())
    }

    /// The port of the second listener, if there is one.
    pub fn second_port(&self) -> Option<u16> {
        self.second.map(|second| second.listens)
    }

    /// SIGTERM: the broker flushes its logs and leaves.
    pub fn stop(&mut self) -> Result<(), DevError> {
        self.server.stop(libc::SIGTERM, STOP_PATIENCE)
    }

    /// SIGKILL.
    pub fn kill(&mut self) -> Result<(), DevError> {
        self.server.kill()
    }

    /// Starts the broker again, after [`Self::stop`] or [`Self::kill`], with its data.
    pub fn restart(&mut self) -> Result<(), DevError> {
        self.stop()?;
        self.server = launch(&self.libraries, self.folder.path(), &self.bootstrap)?;
        Ok(())
    }

    /// Creates a topic and waits until its partitions have leaders.
    pub async fn create_topic(&self, topic: &str, partitions: i32) -> Result<(), DevError> {
        create_topic(&self.bootstrap, topic, partitions).await
    }
}

/// Creates `topic` through the admin API of the cluster at `bootstrap`.
pub async fn create_topic(bootstrap: &str, topic: &str, partitions: i32) -> Result<(), DevError> {
    let failed = |reason: String| DevError::Start {
        part: PART,
        reason: format!("topic {topic} was not created at {bootstrap}: {reason}"),
    };
    let admin: AdminClient<DefaultClientContext> = ClientConfig::new()
        .set("bootstrap.servers", bootstrap)
        .create()
        .map_err(|error| failed(error.to_string()))?;
    let new = NewTopic::new(topic, partitions, TopicReplication::Fixed(1));
    let options =
        AdminOptions::new().operation_timeout(Some(ADMIN_TIMEOUT)).request_timeout(Some(ADMIN_TIMEOUT));
    let results = admin.create_topics([&new], &options).await.map_err(|error| failed(error.to_string()))?;
    for result in results {
        match result {
            Ok(_) | Err((_, RDKafkaErrorCode::TopicAlreadyExists)) => {}
            Err((_, code)) => return Err(failed(code.to_string())),
        }
    }
    Ok(())
}

fn is_broker_jar(path: &Path) -> bool {
    path.file_name().and_then(|name| name.to_str()).is_some_and(|name| name.starts_with("kafka_2.13-"))
}

fn settings(folder: &Path, client_port: u16, controller_port: u16, second: Option<SecondListener>) -> String {
    let listens = second.map(|second| format!(",PROXIED://127.0.0.1:{}", second.listens)).unwrap_or_default();
    let advertises =
        second.map(|second| format!(",PROXIED://{}:{}", second.host, second.advertises)).unwrap_or_default();
    let protocol = second.map_or("PLAINTEXT", |second| second.protocol);
    format!(
        "process.roles=broker,controller
node.id=1
controller.quorum.voters=1@127.0.0.1:{controller_port}
controller.listener.names=CONTROLLER
listeners=CLIENT://127.0.0.1:{client_port},CONTROLLER://127.0.0.1:{controller_port}{listens}
advertised.listeners=CLIENT://127.0.0.1:{client_port}{advertises}
inter.broker.listener.name=CLIENT
listener.security.protocol.map=CLIENT:PLAINTEXT,CONTROLLER:PLAINTEXT,PROXIED:{protocol}
log.dirs={}
offsets.topic.replication.factor=1
offsets.topic.num.partitions=4
transaction.state.log.replication.factor=1
transaction.state.log.num.partitions=4
transaction.state.log.min.isr=1
share.coordinator.state.topic.replication.factor=1
share.coordinator.state.topic.min.isr=1
share.coordinator.state.topic.num.partitions=1
group.initial.rebalance.delay.ms=0
auto.create.topics.enable=false
num.network.threads=2
num.io.threads=4
num.recovery.threads.per.data.dir=1
log.cleaner.dedupe.buffer.size=2097152
",
        folder.join("data").display()
    )
}

/// Only trouble is worth a line; it goes to the file whose end errors quote.
const LOGGING: &str = "rootLogger.level=WARN
rootLogger.appenderRef.console.ref=console
appender.console.type=Console
appender.console.name=console
appender.console.layout.type=PatternLayout
appender.console.layout.pattern=%d %p %m (%c)%n
";

fn java(libraries: &Path, folder: &Path) -> Command {
    let home = std::env::var_os("JAVA_HOME").map(|home| Path::new(&home).join("bin/java"));
    let program = home.filter(|java| java.is_file()).unwrap_or_else(|| PathBuf::from("java"));
    let mut command = Command::new(program);
    command.args(["-Xmx512m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-cp"]);
    command.arg(libraries.join("*"));
    command.arg(format!("-Dlog4j2.configurationFile={}", folder.join("log4j2.properties").display()));
    command.env_remove("JAVA_TOOL_OPTIONS").current_dir(folder).stdin(Stdio::null());
    command
}

fn format_storage(libraries: &Path, folder: &Path) -> Result<(), DevError> {
    let mut command = java(libraries, folder);
    command.args(["kafka.tools.StorageTool", "format", "-t", CLUSTER_ID, "-c", "server.properties"]);
    let output = command.output().map_err(|error| match error.kind() {
        std::io::ErrorKind::NotFound => DevError::Absent {
            part: PART,
            what: "java",
            remedy: "run `make setup`, or install a Java 17 runtime such as openjdk-17-jre-headless",
        },
        _ => DevError::io(PART, error),
    })?;
    if !output.status.success() {
        let reason = String::from_utf8_lossy(&output.stderr).trim().replace('\n', " ");
        return Err(DevError::Start { part: PART, reason: format!("StorageTool failed: {reason}") });
    }
    Ok(())
}

fn launch(libraries: &Path, folder: &Path, bootstrap: &str) -> Result<ManagedChild, DevError> {
    let log_path = folder.join("log");
    let log = File::create(&log_path).map_err(|error| DevError::io(PART, error))?;
    let errors = log.try_clone().map_err(|error| DevError::io(PART, error))?;
    let mut command = java(libraries, folder);
    command.args(["kafka.Kafka", "server.properties"]).stdout(log).stderr(errors);
    let mut server = ManagedChild::spawn(PART, command, libc::SIGKILL)?;
    let deadline = Instant::now() + START_DEADLINE;
    loop {
        let ended = server.exit_status()?;
        if ended.is_none() && answers(bootstrap) {
            return Ok(server);
        }
        if ended.is_some() || Instant::now() > deadline {
            let log = fs::read_to_string(&log_path).unwrap_or_default();
            let last = log.lines().rev().find(|line| !line.is_empty()).unwrap_or("no log");
            let reason = match ended {
                Some(status) => format!("it ended with {status}: {last}"),
                None => format!("not ready after {START_DEADLINE:?}: {last}"),
            };
            return Err(DevError::Start { part: PART, reason });
        }
        thread::sleep(Duration::from_millis(50));
    }
}

/// Whether the broker serves metadata, which it does only once it is unfenced; an open port is
/// some hundred milliseconds too early.
fn answers(bootstrap: &str) -> bool {
    if std::net::TcpStream::connect(bootstrap).is_err() {
        return false;
    }
    let client: Result<BaseConsumer, _> =
        ClientConfig::new().set("bootstrap.servers", bootstrap).set("log_level", "0").create();
    client.is_ok_and(|client| {
        client
            .fetch_metadata(None, Duration::from_secs(5))
            .is_ok_and(|metadata| !metadata.brokers().is_empty())
    })
}
