//! OS threads that turn encoded bytes into pixel values in a leased slot.

use super::{
    engine::Engine,
    metrics::InferenceMetrics,
    permits::Budget,
    queue::{Asker, Work},
    reply::{Reply, ScoreFailure, Step},
    runner::panic_message,
    settings::InferenceSettings,
    slot::Slot,
};
use crate::{
    failpoint,
    fault::{ErrorCode, ItemError, Stage},
    image::{self, ImageError, ImageSettings, Preprocessor},
};
use bytes::Bytes;
use std::{
    io,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc, Mutex, MutexGuard,
        mpsc::{self, Receiver, Sender},
    },
    thread::{self, JoinHandle},
    time::Instant,
};

/// One image to decode.
pub struct Job {
    /// What messages call the image.
    pub name: Arc<str>,
    /// The file.
    pub bytes: Bytes,
    pub reply: Reply,
}

/// Decodes, preprocesses straight into a slot and hands the slot to the engine.
///
/// Every thread holds one image at a time; the pixels that all of them hold decoded are bounded, and
/// are bought before decoding with what the header says. The callers bound the jobs that wait.
pub struct DecodePool {
    jobs: Mutex<Option<Sender<Job>>>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

/// What the threads share.
struct Reader {
    images: ImageSettings,
    preprocessor: Preprocessor,
    pixels: Budget,
    engine: Arc<Engine>,
    metrics: Arc<InferenceMetrics>,
}

impl DecodePool {
    /// # Errors
    /// When the operating system gives no thread.
    pub fn start(
        engine: Arc<Engine>,
        preprocessor: Preprocessor,
        images: ImageSettings,
        settings: &InferenceSettings,
    ) -> io::Result<Self> {
        let (sender, receiver) = mpsc::channel();
        let receiver = Arc::new(Mutex::new(receiver));
        let metrics = Arc::clone(engine.metrics());
        let pixels = Budget::new(settings.decoded_megapixels.saturating_mul(1_000_000).max(1));
        let reader = Arc::new(Reader { images, preprocessor, pixels, engine, metrics });
        let threads = (0..settings.decode_thread_count())
            .map(|index| {
                let (receiver, reader) = (Arc::clone(&receiver), Arc::clone(&reader));
                thread::Builder::new().name(format!("decode-{index}")).spawn(move || {
                    while let Some(job) = next(&receiver) {
                        reader.work(job);
                    }
                })
            })
            .collect::<io::Result<_>>()?;
        Ok(Self { jobs: Mutex::new(Some(sender)), threads: Mutex::new(threads) })
    }

    /// Queues a job; its reply is always answered or dropped.
    pub fn submit(&self, job: Job) {
        if let Some(jobs) = lock(&self.jobs).as_ref() {
            // Without a thread left to take it the job is dropped, and so is its reply.
            let _ = jobs.send(job);
        }
    }

    /// Takes no more jobs, finishes those that wait, and ends the threads. Blocks.
    pub fn shut_down(&self) {
        drop(lock(&self.jobs).take());
        let threads = std::mem::take(&mut *lock(&self.threads));
        for thread in threads {
            // A panic is contained where it arises.
            let _ = thread.join();
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

/// The next job; `None` once the pool takes no more and none waits.
fn next(receiver: &Mutex<Receiver<Job>>) -> Option<Job> {
    lock(receiver).recv().ok()
}

impl Reader {
    fn work(&self, Job { name, bytes, reply }: Job) {
        if reply.is_abandoned() {
            return;
        }
        let read = catch_unwind(AssertUnwindSafe(|| self.read(&name, &bytes)))
            .unwrap_or_else(|payload| Err(broken_off(&name, &panic_message(payload.as_ref()))));
        // What comes next may wait for the model, and the file is not needed for it.
        drop(bytes);
        match read {
            Ok((slot, width, height)) => {
                failpoint::reach("decoded");
                self.metrics.decoded.add(1);
                reply.reached(Step::Waiting);
                self.engine.submit(Work { slot, asker: Asker { name, width, height, reply } });
            }
            Err(error) => {
                self.metrics.undecodable.add(1);
                let version = Arc::clone(&self.engine.info().version);
                reply.send(Err(ScoreFailure::Rejected { error, version }));
            }
        }
    }

    /// A slot with the pixel values, and the image's width and height.
    fn read(&self, name: &str, bytes: &[u8]) -> Result<(Slot, u32, u32), ItemError> {
        let reject = |error: ImageError| error.item_error(name);
        let (width, height) = image::dimensions(bytes, &self.images).map_err(reject)?;
        let _bought = self.pixels.acquire(u64::from(width) * u64::from(height));
        let mut slot = self.engine.slots().lease();
        let start = Instant::now();
        let read = self.preprocessor.read(bytes, &self.images, slot.values_mut());
        self.metrics.decode_busy.add(start.elapsed());
        let (width, height) = read.map_err(reject)?;
        Ok((slot, width, height))
    }
}

/// A panic is the image's fault, not the thread's end.
fn broken_off(name: &str, reason: &str) -> ItemError {
    ItemError::new(
        ErrorCode::DecodeFailed,
        Stage::Decode,
        format!("{name}: preprocessing broke off ({reason}); re-export the image"),
    )
}
