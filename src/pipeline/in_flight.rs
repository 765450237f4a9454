//! What two tasks need at once is worked on once: the second waits for the first.

use std::{
    collections::{HashMap, hash_map::Entry},
    hash::Hash,
    sync::{Arc, Mutex},
};
use tokio::sync::watch;

/// The keys being worked on now.
#[derive(Clone)]
pub struct InFlight<Key> {
    waiting: Arc<Mutex<HashMap<Key, watch::Receiver<()>>>>,
}

impl<Key> Default for InFlight<Key> {
    fn default() -> Self {
        Self { waiting: Arc::default() }
    }
}

/// What a caller is to do about a key.
pub enum Claim<Key: Clone + Eq + Hash> {
    /// Work on it; the key is free again when the lead drops.
    Lead(Lead<Key>),
    /// Someone else is at it: wait, then look whether it is done.
    Follow(Follow),
}

/// The sole right to work on one key.
pub struct Lead<Key: Clone + Eq + Hash> {
    key: Key,
    home: InFlight<Key>,
    _done: watch::Sender<()>,
}

/// Waits for the leader's end, whatever it was.
pub struct Follow {
    done: watch::Receiver<()>,
}

impl<Key: Clone + Eq + Hash> InFlight<Key> {
    pub fn claim(&self, key: Key) -> Claim<Key> {
        match self.lock().entry(key.clone()) {
            Entry::Occupied(leader) => Claim::Follow(Follow { done: leader.get().clone() }),
            Entry::Vacant(vacant) => {
                let (done, waiting) = watch::channel(());
                vacant.insert(waiting);
                Claim::Lead(Lead { key, home: self.clone(), _done: done })
            }
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<Key, watch::Receiver<()>>> {
        self.waiting.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

impl Follow {
    pub async fn leader_done(mut self) {
        // Nothing is ever sent: the channel only closes.
        while self.done.changed().await.is_ok() {}
    }
}

impl<Key: Clone + Eq + Hash> Drop for Lead<Key> {
    fn drop(&mut self) {
        self.home.lock().remove(&self.key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::object::ScoreId;

    #[tokio::test]
    async fn a_follower_leads_after_its_leader() {
        let in_flight = InFlight::default();
        let id = ScoreId::of_position("t", 0, 0, 0);
        let Claim::Lead(lead) = in_flight.claim(id) else { panic!("nobody else is at it") };
        let Claim::Follow(follow) = in_flight.claim(id) else { panic!("the lead is held") };
        assert!(matches!(in_flight.claim(ScoreId::of_position("t", 0, 1, 0)), Claim::Lead(_)));
        let follower = tokio::spawn(follow.leader_done());
        tokio::task::yield_now().await;
        assert!(!follower.is_finished());
        drop(lead);
        follower.await.unwrap();
        assert!(matches!(in_flight.claim(id), Claim::Lead(_)));
    }
}
