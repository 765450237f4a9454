//! The photos' way through the worker: uploaded, announced, and each output waited for.

use super::{
    Demo, DemoError,
    outputs::OutputReader,
    photos::{self, Found},
    servers::INPUT_TOPIC,
};
use crate::{
    record::output::OutputRecord,
    score::ItemStatus,
    score_command::progress::Progress,
    store::{PostgresSettings, Store},
};
use futures_util::{StreamExt, stream};
use std::{
    collections::HashSet,
    net::SocketAddr,
    pin::pin,
    time::{Duration, Instant},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::Semaphore,
    time::Interval,
};

/// Notifications that wait for an output, so that the mock drops none: it keeps 5 MiB a partition.
const OUTSTANDING: usize = 256;
/// Files read and uploaded at once.
const UPLOADS: usize = 8;
/// Once every row is stored, outputs that take longer than this have been lost.
const OUTPUT_PATIENCE: Duration = Duration::from_secs(30);

/// What scoring came to.
pub(super) struct Scoring {
    pub found: Found,
    pub outputs: Vec<OutputRecord>,
    pub elapsed: Duration,
}

impl Demo<'_> {
    /// As [`score`](Self::score); then keeps the worker's metrics where they were asked for.
    pub(super) async fn score_and_scrape(
        &self,
        found: Found,
        postgres: &PostgresSettings,
        reader: &mut OutputReader,
        progress: &mut Progress,
    ) -> Result<Scoring, DemoError> {
        let scoring = self.score(found, postgres, reader, progress).await?;
        if let Some(path) = &self.args.metrics {
            let metrics = measured(self.servers.http()).await;
            metrics.and_then(|text| std::fs::write(path, text)).map_err(|source| DemoError::Unwritable {
                option: "--metrics",
                path: path.clone(),
                source,
            })?;
        }
        Ok(scoring)
    }

    /// Uploads and announces the photos, and waits for an output for each.
    pub(super) async fn score(
        &self,
        found: Found,
        postgres: &PostgresSettings,
        reader: &mut OutputReader,
        progress: &mut Progress,
    ) -> Result<Scoring, DemoError> {
        wait_until_ready(self.servers.http()).await;
        let store = Store::connect(postgres).await?;
        progress.begin();
        let permits = Semaphore::new(OUTSTANDING);
        let mut uploading = pin!(self.upload(found, &permits));
        let mut uploaded: Option<Found> = None;
        let (mut seen, mut outputs) = (HashSet::new(), Vec::new());
        let mut last = Instant::now();
        let found = loop {
            if let Some(found) = uploaded.take_if(|found| seen.len() >= found.photos.len()) {
                break found;
            }
            tokio::select! {
                done = &mut uploading, if uploaded.is_none() => uploaded = Some(done?),
                output = reader.next() => {
                    // Without one the reader has failed, and says why when it is finished.
                    let Some(output) = output else { break uploaded.take().unwrap_or_default() };
                    last = Instant::now();
                    if seen.insert(output.id) {
                        permits.add_permits(1);
                        progress.advance(output.status == ItemStatus::Scored);
                    }
                    outputs.push(output);
                }
                () = tokio::time::sleep(Duration::from_secs(5)) => {
                    let Some(found) = &uploaded else { continue };
                    let rows: u64 = store.count().await?.values().sum();
                    if rows >= found.photos.len() as u64 && last.elapsed() >= OUTPUT_PATIENCE {
                        break uploaded.take().unwrap_or_default();
                    }
                }
            }
        };
        store.close().await;
        Ok(Scoring { found, outputs, elapsed: progress.elapsed() })
    }

    /// When the next photo may be uploaded, where there is a pace to keep.
    fn ticks(&self) -> Option<Interval> {
        self.args.pace.map(|pace| tokio::time::interval(Duration::from_secs_f64(1.0 / pace)))
    }

    /// Uploads and announces what can be read; the rest joins what is unreadable.
    async fn upload(&self, found: Found, permits: &Semaphore) -> Result<Found, DemoError> {
        let client = self.servers.s3_client();
        let producer = self.servers.producer()?;
        let (client, producer) = (&client, &producer);
        let Found { photos, unreadable } = found;
        let mut uploaded = Found { photos: Vec::with_capacity(photos.len()), unreadable };
        let paced = stream::unfold(
            (photos.into_iter().zip(1_u64..), self.ticks()),
            |(mut rest, mut ticks)| async move {
                let next = rest.next()?;
                if let Some(ticks) = &mut ticks {
                    ticks.tick().await;
                }
                Some((next, (rest, ticks)))
            },
        );
        let uploads = paced
            .map(|(photo, sequence)| async move {
                // Given back by the output. It is only ever closed with this future.
                if let Ok(permit) = permits.acquire().await {
                    permit.forget();
                }
                match photos::upload(client, &photo, sequence).await? {
                    Ok(notification) => {
                        photos::announce(producer, INPUT_TOPIC, &photo, &notification).await?;
                        Ok::<_, DemoError>(Ok(photo))
                    }
                    Err(reason) => {
                        permits.add_permits(1);
                        Ok(Err((photo.image, reason)))
                    }
                }
            })
            .buffered(UPLOADS);
        let mut uploads = pin!(uploads);
        while let Some(upload) = uploads.next().await {
            match upload? {
                Ok(photo) => uploaded.photos.push(photo),
                Err(unreadable) => uploaded.unreadable.push(unreadable),
            }
        }
        Ok(uploaded)
    }
}

/// Until `/readyz` says so. A worker that will never be ready ends by itself.
async fn wait_until_ready(address: SocketAddr) {
    while !is_ready(address).await.unwrap_or(false) {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

async fn is_ready(address: SocketAddr) -> std::io::Result<bool> {
    Ok(ask(address, "/readyz").await?.split(' ').nth(1) == Some("200"))
}

/// The worker's metrics, once they say how far behind it is: that is looked up every few seconds.
async fn measured(address: SocketAddr) -> std::io::Result<String> {
    let asked = Instant::now();
    loop {
        let answer = ask(address, "/metrics").await?;
        let (_, body) = answer.split_once("\r\n\r\n").unwrap_or_default();
        if body.contains("roc4mllm_lag_records{") || asked.elapsed() >= OUTPUT_PATIENCE {
            return Ok(body.to_owned());
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

/// The answer to a GET, head and body. The server sends short answers whole, not in chunks.
pub(super) async fn ask(address: SocketAddr, path: &str) -> std::io::Result<String> {
    let mut stream = TcpStream::connect(address).await?;
    let request = format!("GET {path} HTTP/1.1\r\nHost: worker\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    Ok(answer)
}
