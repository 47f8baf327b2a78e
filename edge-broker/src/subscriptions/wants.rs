//! Passing wants: what plain subscribers ask of other sites, while they are connected and for some time after.

use std::{
    collections::BTreeMap,
    sync::{Arc, Weak},
    time::Duration,
};

use bytes::Bytes;
use seaway_federation_proto::replication::{Want, WantStart};
use seaway_relay::{log::contract::Table, node::PublishError};
use sha2::{Digest, Sha256};
use tokio::sync::Mutex;

use super::filter::Filter;
use crate::{engine::Engine, limits::PASSING_WANTS_MAX};

/// Keys of passing wants in the groups' table: those that a restart must let expire.
const PREFIX: &str = "passing/";

#[derive(Debug, Default)]
struct Passing {
    subscribers: usize,
    /// Counts comings and goings, so that an expiry knows whether it is the last one.
    generation: u64,
}

/// The passing wants of this site.
#[derive(Debug)]
pub(crate) struct PassingWants<E> {
    engine: E,
    linger: Duration,
    wants: Mutex<BTreeMap<String, Passing>>,
}

/// Keeps a passing want as long as it lives, and the set time longer.
#[derive(Debug)]
pub(crate) struct KeptWant<E: Engine> {
    wants: Weak<PassingWants<E>>,
    id: String,
}

impl<E: Engine> PassingWants<E> {
    /// Takes over the passing wants of an earlier run: they expire unless somebody asks for them again.
    pub(crate) fn open(engine: E, linger: Duration) -> Arc<Self> {
        let mut wants = BTreeMap::new();
        for (key, _) in engine.scan_state(Table::Groups, PREFIX.as_bytes()) {
            if let Some(id) = std::str::from_utf8(&key).ok().and_then(|key| key.strip_prefix(PREFIX)) {
                wants.insert(id.to_owned(), Passing::default());
            }
        }
        let ids: Vec<_> = wants.keys().cloned().collect();
        let all = Arc::new(Self { engine, linger, wants: Mutex::new(wants) });
        for id in ids {
            tokio::spawn(expire(Arc::downgrade(&all), id, 0, linger));
        }
        all
    }

    /// Makes the want for a subscriber's filter, or joins the one that is there.
    pub(crate) async fn keep(self: &Arc<Self>, filter: &Filter, start: WantStart) -> Result<KeptWant<E>, PublishError> {
        let id = id_of(filter, start);
        let mut wants = self.wants.lock().await;
        if !wants.contains_key(&id) && wants.len() >= PASSING_WANTS_MAX {
            let text =
                format!("{PASSING_WANTS_MAX} subscriptions are remembered already; try again later or use a group");
            return Err(PublishError::Unavailable(text));
        }
        if !wants.contains_key(&id) {
            let key = Bytes::from(format!("{PREFIX}{id}"));
            self.engine.put_state(vec![(Table::Groups, key, Some(Bytes::new()))]).await?;
            let (pattern, origins) = (filter.pattern.clone(), filter.origins.clone());
            self.engine.put_want(Want { id: id.clone(), pattern, origins, start, registers: false }).await?;
        }
        let passing = wants.entry(id.clone()).or_default();
        passing.subscribers = passing.subscribers.saturating_add(1);
        passing.generation = passing.generation.wrapping_add(1);
        Ok(KeptWant { wants: Arc::downgrade(self), id })
    }

    async fn release(self: &Arc<Self>, id: &str) {
        let mut wants = self.wants.lock().await;
        let Some(passing) = wants.get_mut(id) else { return };
        passing.subscribers = passing.subscribers.saturating_sub(1);
        passing.generation = passing.generation.wrapping_add(1);
        if passing.subscribers == 0 {
            tokio::spawn(expire(Arc::downgrade(self), id.to_owned(), passing.generation, self.linger));
        }
    }

    async fn remove_if_idle(&self, id: &str, generation: u64) {
        let mut wants = self.wants.lock().await;
        if !wants.get(id).is_some_and(|p| p.subscribers == 0 && p.generation == generation) {
            return;
        }
        let key = Bytes::from(format!("{PREFIX}{id}"));
        let removed = match self.engine.remove_want(id).await {
            Ok(()) => self.engine.put_state(vec![(Table::Groups, key, None)]).await,
            Err(error) => Err(error),
        };
        match removed {
            Ok(()) => {
                wants.remove(id);
            }
            Err(error) => {
                tracing::warn!(want = id, %error, "a passing want could not be removed; it goes at the next start")
            }
        }
    }
}

impl<E: Engine> Drop for KeptWant<E> {
    fn drop(&mut self) {
        let (wants, id) = (self.wants.clone(), std::mem::take(&mut self.id));
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(async move {
                if let Some(wants) = wants.upgrade() {
                    wants.release(&id).await;
                }
            });
        }
    }
}

async fn expire<E: Engine>(wants: Weak<PassingWants<E>>, id: String, generation: u64, linger: Duration) {
    tokio::time::sleep(linger).await;
    if let Some(wants) = wants.upgrade() {
        wants.remove_if_idle(&id, generation).await;
    }
}

/// One id for one filter and start: subscribers that ask for the same share a want.
fn id_of(filter: &Filter, start: WantStart) -> String {
    let origins: Vec<_> = filter.origins.iter().map(|o| o.as_str()).collect();
    let text = format!("{}\n{}\n{start:?}", filter.pattern, origins.join("\n"));
    let hash: String = Sha256::digest(text.as_bytes()).iter().take(12).map(|b| format!("{b:02x}")).collect();
    format!("passing-{hash}")
}
