//! Topics as the checkpoint remembers them. One that vanished or was made anew holds less than its readers believe, and writing on
//! would hide that (K8, C22).

use std::collections::BTreeMap;

use headwater_connector::{Error, Result};

use crate::log::{Log, TopicState, codes, topic::InternalTopics};

/// Refuses a topic that is not the one that the checkpoint knows under its name. Ids are compared where the log has them.
pub(super) fn refuse_changed(known: &BTreeMap<String, String>, topic: &str, now: Option<&TopicState>) -> Result<()> {
    let Some(id) = known.get(topic).filter(|id| !id.is_empty()) else { return Ok(()) };
    match now {
        None => Err(Error::new(&codes::TOPIC_DELETED, "a topic that the checkpoint knows is gone, with everything in it")
            .at("topic", topic)
            .hint("Find out who deleted it; run `headwater explain HW1205` for how to go on.")),
        Some(now) if !now.id.is_empty() && now.id != *id => {
            let what = format!("the topic was made anew: the checkpoint knows id {id}, and it has id {}", now.id);
            Err(Error::new(&codes::TOPIC_RECREATED, what)
                .at("topic", topic)
                .hint("Find out what became of the old topic; run `headwater explain HW1206` for how to go on."))
        }
        Some(_) => Ok(()),
    }
}

/// Refuses to take a connector without a checkpoint for a new one if it has published before: schemas travel in the same
/// transactions as checkpoints, so schemas without a checkpoint mean that the checkpoint was lost (C22).
pub(super) async fn refuse_lost_checkpoint(log: &dyn Log, internal: &InternalTopics) -> Result<()> {
    if log.peek_records(&internal.schema).await?.is_empty() {
        return Ok(());
    }
    // Between our look at the checkpoint and this one, another writer may have fenced us and published both.
    if !log.last_records(&internal.checkpoint).await?.is_empty() {
        return Err(Error::new(&codes::COMMIT_IN_DOUBT, "another writer published while this one started")
            .at("topic", &internal.checkpoint)
            .hint("Wait: headwater reads the checkpoint to learn whether another instance took over."));
    }
    Err(Error::new(&codes::CHECKPOINT_LOST, "the connector has published, but its checkpoint is gone")
        .at("topic", &internal.checkpoint)
        .hint("Do not start it anew by accident: run `headwater explain HW1207` for how to go on."))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_topic_that_is_known_passes() {
        let known = BTreeMap::from([("a".to_owned(), "1".to_owned()), ("old".to_owned(), String::new())]);
        let state = |id: &str| TopicState { name: "a".into(), partitions: 1, id: id.into() };
        refuse_changed(&known, "a", Some(&state("1"))).unwrap();
        refuse_changed(&known, "a", Some(&state(""))).unwrap();
        refuse_changed(&known, "old", None).unwrap();
        refuse_changed(&known, "new", None).unwrap();
        assert_eq!(refuse_changed(&known, "a", None).unwrap_err().code().id, codes::TOPIC_DELETED.id);
        assert_eq!(refuse_changed(&known, "a", Some(&state("2"))).unwrap_err().code().id, codes::TOPIC_RECREATED.id);
    }
}
