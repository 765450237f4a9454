//! Two notifications for one upload are worked on once: the second waits for the first.

use crate::object::ScoreId;
use std::{
    collections::{HashMap, hash_map::Entry},
    sync::{Arc, Mutex},
};
use tokio::sync::watch;

/// The ids being scored now.
#[derive(Clone, Default)]
pub struct InFlight {
    waiting: Arc<Mutex<HashMap<ScoreId, watch::Receiver<()>>>>,
}

/// What a caller is to do about an id.
pub enum Claim {
    /// Work on it; the id is free again when the lead drops.
    Lead(Lead),
    /// Someone else is at it: wait, then look whether a row is there now.
    Follow(Follow),
}

/// The sole right to work on one id.
pub struct Lead {
    id: ScoreId,
    home: InFlight,
    _done: watch::Sender<()>,
}

/// Waits for the leader's end, whatever it was.
pub struct Follow {
    done: watch::Receiver<()>,
}

impl InFlight {
    pub fn claim(&self, id: ScoreId) -> Claim {
        match self.lock().entry(id) {
            Entry::Occupied(leader) => Claim::Follow(Follow { done: leader.get().clone() }),
            Entry::Vacant(vacant) => {
                let (done, waiting) = watch::channel(());
                vacant.insert(waiting);
                Claim::Lead(Lead { id, home: self.clone(), _done: done })
            }
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<ScoreId, watch::Receiver<()>>> {
        self.waiting.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

impl Follow {
    pub async fn leader_done(mut self) {
        // Nothing is ever sent: the channel only closes.
        while self.done.changed().await.is_ok() {}
    }
}

impl Drop for Lead {
    fn drop(&mut self) {
        self.home.lock().remove(&self.id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
