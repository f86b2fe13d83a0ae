//! Which connector writes which topic, over all connectors of the daemon.

use std::{
    collections::BTreeMap,
    sync::{Mutex, MutexGuard, PoisonError},
};

use headwater_connector::{Error, Result};

use super::codes;
use crate::{
    log::{Log, checkpoint::Checkpoint, topic::InternalTopics},
    mapping::{
        Routes,
        route::{Route, collision_key},
    },
};

/// The topics of the connectors that run, each with its owner.
#[derive(Debug, Default)]
pub struct Claims(Mutex<BTreeMap<String, String>>);

impl Claims {
    fn owners(&self) -> MutexGuard<'_, BTreeMap<String, String>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives the topics of a connector that has ended back.
    pub fn release(&self, connector: &str) {
        self.owners().retain(|_, owner| owner != connector);
    }

    /// A copy without these connectors, to try what they would claim next.
    pub fn without(&self, connectors: &[&str]) -> Self {
        let mut owners = self.owners().clone();
        owners.retain(|_, owner| !connectors.contains(&owner.as_str()));
        Self(Mutex::new(owners))
    }

    /// Takes the topics for a connector; a topic of another one is a Config error. Names that Kafka holds to collide count as one.
    pub fn claim(&self, connector: &str, routes: &Routes) -> Result<()> {
        let mut owners = self.owners();
        for route in routes.iter() {
            let owner = owners.entry(collision_key(&route.topic)).or_insert_with(|| connector.to_owned());
            if owner != connector {
                return Err(taken(owner, route));
            }
        }
        Ok(())
    }

    /// Refuses topics that are not pinned by the connector itself and that one of the `others` has written to, also while that one
    /// is paused, stopped or starts later: whoever comes new finds another topic. A connector that runs claims what it still writes.
    pub async fn refuse_owned(
        &self,
        log: &dyn Log,
        prefix: &str,
        others: &[String],
        (routes, pinned): (&Routes, &BTreeMap<String, u32>),
    ) -> Result<()> {
        if routes.iter().all(|route| pinned.contains_key(&route.topic)) {
            return Ok(());
        }
        for other in others {
            if self.owners().values().any(|owner| owner == other) {
                continue;
            }
            let topic = InternalTopics::new(prefix, other).checkpoint;
            // One that cannot be read is a matter of its own connector.
            let Ok(Some(checkpoint)) = Checkpoint::decode(&topic, &log.peek_records(&topic).await?) else { continue };
            let theirs: Vec<String> = checkpoint.state.partitions.keys().map(|topic| collision_key(topic)).collect();
            let is_new = |route: &&Route| !pinned.contains_key(&route.topic);
            if let Some(route) = routes.iter().filter(is_new).find(|route| theirs.contains(&collision_key(&route.topic))) {
                return Err(taken(other, route));
            }
        }
        Ok(())
    }
}

fn taken(owner: &str, route: &Route) -> Error {
    Error::new(&codes::TOPIC_TAKEN, format!("the connector {owner:?} writes to this topic already"))
        .at("topic", &route.topic)
        .at("table", &route.table)
        .hint("Put {connector} into `events.topic`, or name the entities apart.")
}
