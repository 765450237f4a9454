//! Everything that a run of the binary lets out, and the search for what must not be in it.

use base64::{Engine, engine::general_purpose::STANDARD_NO_PAD};
use std::collections::{BTreeSet, VecDeque};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

/// A secret by what it is for.
pub struct Canary {
    pub of: &'static str,
    pub value: &'static str,
}

/// Texts, each with where it came from.
#[derive(Default)]
pub struct Emissions(Vec<(String, String)>);

impl Emissions {
    pub fn add(&mut self, origin: impl Into<String>, text: impl Into<String>) {
        self.0.push((origin.into(), text.into()));
    }

    /// The text whose origin begins with `origin`, all of them joined.
    pub fn of(&self, origin: &str) -> String {
        let texts = self.0.iter().filter(|(from, _)| from.starts_with(origin));
        texts.map(|(_, text)| text.as_str()).collect::<Vec<_>>().join("\n")
    }

    /// Where a canary shows, as it is or encoded, with the line it shows in.
    pub fn leaks(&self, canaries: &[Canary]) -> Vec<String> {
        let mut leaks = Vec::new();
        for (origin, text) in &self.0 {
            for line in text.lines() {
                for canary in canaries {
                    if forms(canary.value).iter().any(|form| contains(line, form)) {
                        leaks.push(format!("{} in {origin}: {line}", canary.of));
                    }
                }
            }
        }
        leaks
    }
}

fn contains(line: &str, form: &str) -> bool {
    line.contains(form) || line.to_lowercase().contains(&form.to_lowercase())
}

/// A secret as it is, and in base64 at each of the three places that it may begin at.
fn forms(secret: &str) -> Vec<String> {
    let mut forms = vec![secret.to_owned()];
    for before in 0..3 {
        let text: String = "\0".repeat(before) + secret;
        let encoded = STANDARD_NO_PAD.encode(&text);
        // Characters that also depend on the bytes before or behind say nothing.
        let (first, last) = ((before * 8).div_ceil(6), text.len() * 8 / 6);
        forms.push(encoded[first..last].to_owned());
    }
    forms
}

/// Every page that the server at `port` has: the known ones, and what they name in turn.
pub async fn pages(port: u16) -> Vec<(String, String)> {
    let known = ["/", "/healthz", "/readyz", "/metrics", "/v1/score", "/openapi.json", "/nowhere?a=b"];
    let mut waiting: VecDeque<String> = known.map(str::to_owned).into();
    let mut seen: BTreeSet<String> = waiting.iter().cloned().collect();
    let mut pages = Vec::new();
    while let Some(path) = waiting.pop_front() {
        let answer = get(port, &path).await.unwrap_or_else(|error| error.to_string());
        for quoted in answer.split(['"', '\'', '`', '(']).filter(|text| text.starts_with('/')) {
            let path = quoted.split([')', '$', '{', '<', ' ']).next().unwrap_or_default().to_owned();
            if path.len() > 1 && !path.starts_with("//") && seen.len() < 200 && seen.insert(path.clone()) {
                waiting.push_back(path);
            }
        }
        pages.push((path, answer));
    }
    pages
}

async fn get(port: u16, path: &str) -> std::io::Result<String> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).await?;
    let request = format!("GET {path} HTTP/1.1\r\nHost: worker\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut answer = Vec::new();
    // A stream of events never ends by itself.
    let reading = stream.read_to_end(&mut answer);
    let _ = tokio::time::timeout(std::time::Duration::from_secs(10), reading).await;
    Ok(String::from_utf8_lossy(&answer).into_owned())
}

#[test]
fn a_leak_is_found_in_every_form() {
    let canary = [Canary { of: "a password", value: "S3cr3t+Canary" }];
    let encoded = |text: &str| base64::engine::general_purpose::STANDARD.encode(text);
    for line in [
        "password=S3cr3t+Canary".to_owned(),
        "PASSWORD=S3CR3T+CANARY".to_owned(),
        encoded("S3cr3t+Canary"),
        format!("authorization: Basic {}", encoded("user:S3cr3t+Canary")),
        encoded("\0worker\0S3cr3t+Canary and more"),
    ] {
        let mut emissions = Emissions::default();
        emissions.add("a log", format!("first\n{line}\nlast"));
        assert_eq!(emissions.leaks(&canary).len(), 1, "{line}");
    }
    let mut emissions = Emissions::default();
    emissions.add("a log", "password=[redacted]");
    assert!(emissions.leaks(&canary).is_empty());
}
