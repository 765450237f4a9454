//! Questions from many tasks, asked together.

use crate::store::error::StoreError;
use std::{future::Future, sync::Arc};
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

/// What is there, if anything. Of a batch that fails, every asker gets the error: each of them would have met
/// it, and what counts failures is to notice a broken Postgres as soon as if each had asked alone.
pub type LookedUp<Found> = Result<Option<Found>, Arc<StoreError>>;

/// A key to look up, and whom to tell what is there.
#[derive(Debug)]
pub struct LookUp<Key, Found> {
    pub key: Key,
    /// Dropped without a word at shutdown.
    pub reply: oneshot::Sender<LookedUp<Found>>,
}

/// Looks up what is asked in batches of at most `limit`. A batch is what came while the last one was under
/// way, so that nobody waits for company: a lone question is asked at once, and a thousand cost as few round
/// trips as Postgres is slow.
///
/// `look_up` gives an answer a key, in order. Ends when every sender is gone, or when `shutdown` fires.
pub async fn look_up_batches<Key, Found, F>(
    look_up: impl Fn(Vec<Key>) -> F,
    limit: usize,
    mut requests: mpsc::Receiver<LookUp<Key, Found>>,
    shutdown: CancellationToken,
) where
    F: Future<Output = Result<Vec<Option<Found>>, StoreError>>,
{
    let mut batch = Vec::new();
    let answering = async {
        while requests.recv_many(&mut batch, limit.max(1)).await > 0 {
            let (keys, replies): (Vec<_>, Vec<_>) =
                batch.drain(..).map(|LookUp { key, reply }| (key, reply)).unzip();
            // An asker that went away belongs to a partition that did.
            match look_up(keys).await {
                Ok(found) => {
                    for (reply, found) in replies.into_iter().zip(found) {
                        let _gone = reply.send(Ok(found));
                    }
                }
                Err(error) => {
                    let mut askers = replies;
                    // Who asked meanwhile has waited for the same server, and would wait as long once more before
                    // what counts failures saw any of them.
                    if matches!(error, StoreError::Unreachable { .. }) {
                        askers
                            .extend(std::iter::from_fn(|| requests.try_recv().ok()).map(|asked| asked.reply));
                    }
                    tracing::warn!(%error, rows = askers.len(), "looking up rows failed; they are asked for again");
                    let error = Arc::new(error);
                    for asker in askers {
                        let _gone = asker.send(Err(Arc::clone(&error)));
                    }
                }
            }
        }
    };
    let _ended = shutdown.run_until_cancelled(answering).await;
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Mutex;

    fn ask(number: u32) -> (LookUp<u32, u32>, oneshot::Receiver<LookedUp<u32>>) {
        let (reply, answer) = oneshot::channel();
        (LookUp { key: number, reply }, answer)
    }

    #[tokio::test]
    async fn what_waits_is_asked_together_and_everyone_gets_their_own_answer() {
        let (sender, requests) = mpsc::channel(10);
        let mut answers = Vec::new();
        for number in 0..5 {
            let (request, answer) = ask(number);
            sender.send(request).await.unwrap();
            answers.push(answer);
        }
        drop(sender);
        let asked = Mutex::new(Vec::new());
        let look_up = |keys: Vec<u32>| {
            asked.lock().unwrap().push(keys.len());
            async move { Ok(keys.into_iter().map(|key| (key != 3).then_some(key * 10)).collect()) }
        };
        look_up_batches(look_up, 3, requests, CancellationToken::new()).await;
        assert_eq!(*asked.lock().unwrap(), [3, 2]);
        let mut found = Vec::new();
        for answer in answers {
            found.push(answer.await.unwrap().unwrap());
        }
        assert_eq!(found, [Some(0), Some(10), Some(20), None, Some(40)]);
    }

    #[tokio::test]
    async fn who_asks_while_nobody_can_be_reached_is_told_at_once() {
        let (sender, requests) = mpsc::channel(10);
        let mut answers = Vec::new();
        for number in 0..5 {
            let (request, answer) = ask(number);
            sender.send(request).await.unwrap();
            answers.push(answer);
        }
        drop(sender);
        let asked = Mutex::new(0);
        let failing = |_| {
            *asked.lock().unwrap() += 1;
            async { Err(StoreError::Unreachable { server: "s".into(), reason: "refused".into() }) }
        };
        look_up_batches(failing, 2, requests, CancellationToken::new()).await;
        assert_eq!(*asked.lock().unwrap(), 1);
        for answer in answers {
            assert!(answer.await.unwrap().is_err());
        }
    }

    #[tokio::test]
    async fn a_failure_is_told_to_everyone_and_a_shutdown_to_nobody() {
        let (sender, requests) = mpsc::channel(10);
        let (first, second) = (ask(1), ask(2));
        sender.send(first.0).await.unwrap();
        sender.send(second.0).await.unwrap();
        let failing = |_| async { Err(StoreError::TimedOut { server: "s".into(), after_ms: 1 }) };
        let stop = CancellationToken::new();
        let task = tokio::spawn(look_up_batches(failing, 10, requests, stop.clone()));
        for answer in [first.1, second.1] {
            assert!(matches!(answer.await.unwrap().unwrap_err().as_ref(), StoreError::TimedOut { .. }));
        }
        stop.cancel();
        task.await.unwrap();
        assert!(sender.send(ask(3).0).await.is_err(), "nobody answers any more");
    }
}
