//! Beginning anew, or going on with another server: never by itself, only for somebody who has seen what it means.

use std::collections::BTreeMap;

use headwater_connector::{Error, Identity, Position, Result, Survey};
use serde::Serialize;
use uuid::Uuid;

use super::{
    codes,
    ingest::Ingest,
    now_text, now_us,
    start::{Progress, Rebirth, commit_checkpoint_in, in_doubt},
};
use crate::log::{
    Cleanup, StoredRecord, TopicSpec, Transaction,
    checkpoint::{Checkpoint, POSITION_KEY, STATE_KEY},
    topic::InternalTopics,
};

/// What there is, and what a reset would make of it.
#[derive(Debug)]
pub struct Evidence {
    /// What must be named to confirm: the incarnation, `none` where there is no checkpoint, `unreadable` where it cannot be read.
    pub incarnation: String,
    /// Resets so far.
    pub era: u32,
    /// Where it stands, if it ever got anywhere.
    pub position: Option<Position>,
    /// The source as it was verified.
    pub identity: Option<Identity>,
    /// Why the checkpoint cannot be read.
    pub fault: Option<Error>,
    /// What the server says.
    pub survey: Survey,
}

/// What is to be done, by whom and why, as it will stand in the audit topic.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Request {
    /// Keep the position and take the server as it is now.
    pub rebind: bool,
    /// The incarnation that the evidence showed.
    pub incarnation: String,
    /// Who asked: the operating system's user.
    pub user: String,
    /// Where: the host's name.
    pub host: String,
    /// Why, in the operator's words.
    pub reason: String,
}

/// One audit record.
#[derive(Serialize)]
struct Audit<'a> {
    at: String,
    action: &'static str,
    version: &'static str,
    #[serde(flatten)]
    request: &'a Request,
    from: State<'a>,
    to: State<'a>,
    facts: BTreeMap<&'static str, &'a str>,
}

#[derive(Serialize)]
struct State<'a> {
    incarnation: String,
    era: u32,
    position: Option<&'a Position>,
    identity: Option<&'a Identity>,
}

/// Looks at the checkpoint and at the server. Changes and fences nothing.
pub async fn evidence(ingest: &Ingest) -> Result<Evidence> {
    let internal = InternalTopics::new(&ingest.prefix, &ingest.name);
    let records = ingest.log.peek_records(&internal.checkpoint).await?;
    look(ingest, &internal, &records).await.map(|(evidence, _)| evidence)
}

async fn look(ingest: &Ingest, internal: &InternalTopics, records: &[StoredRecord]) -> Result<(Evidence, Option<Checkpoint>)> {
    let (incarnation, checkpoint, fault) = match Checkpoint::decode(&internal.checkpoint, records) {
        Ok(Some(checkpoint)) => (checkpoint.position.incarnation.to_string(), Some(checkpoint), None),
        Ok(None) => ("none".to_owned(), None, None),
        Err(error) => ("unreadable".to_owned(), None, Some(error)),
    };
    // An era that nobody can read any more must still not be used twice: the audit topic knows the last one.
    let audited = last_era(&ingest.log.peek_records(&internal.audit).await?);
    let at = checkpoint.as_ref().map(|checkpoint| &checkpoint.position);
    let (identity, position) = (at.and_then(|at| at.identity.clone()), at.and_then(|at| at.position.clone()));
    let survey = ingest.connector.survey(identity.as_ref(), position.as_ref()).await?;
    let era = at.map_or(audited, |at| at.era.max(audited));
    Ok((Evidence { incarnation, era, position, identity, fault, survey }, checkpoint))
}

fn last_era(audit: &[StoredRecord]) -> u32 {
    #[derive(serde::Deserialize)]
    struct Key {
        audit: u32,
    }
    audit.iter().filter_map(|record| serde_json::from_slice::<Key>(&record.key).ok()).map(|key| key.audit).max().unwrap_or(0)
}

/// Does it: fences every writer, looks again, and commits the new checkpoint together with its audit record.
///
/// The incarnation must be the one that the evidence showed: what was decided on must be what is there. Returns the new
/// incarnation and era.
pub async fn reset(ingest: &Ingest, request: &Request) -> Result<(Uuid, u32)> {
    let internal = InternalTopics::new(&ingest.prefix, &ingest.name);
    // Whoever confirms something else is refused before anybody is fenced.
    let peeked = ingest.log.peek_records(&internal.checkpoint).await?;
    confirm(&look(ingest, &internal, &peeked).await?.0, request)?;
    let spec = |name: &str| TopicSpec { name: name.to_owned(), partitions: Some(1), cleanup: Cleanup::Compact };
    ingest.log.ensure_topics(&[spec(&internal.checkpoint), spec(&internal.audit)]).await?;
    let mut writer = ingest.log.open_writer(&ingest.name).await.map_err(in_doubt)?;
    let records = ingest.log.last_records(&internal.checkpoint).await?;
    let (evidence, checkpoint) = look(ingest, &internal, &records).await?;
    confirm(&evidence, request)?;
    let era = evidence.era + 1;
    let Evidence { survey: Survey { facts, anew, rebind }, incarnation, position, identity, .. } = evidence;
    let rebirth = if request.rebind { Rebirth::Elsewhere(rebind?) } else { Rebirth::Anew(anew?.1) };
    let from = State { incarnation, era: era - 1, position: position.as_ref(), identity: identity.as_ref() };
    let (kept, elsewhere) = match &rebirth {
        Rebirth::Anew(_) => (None, None),
        Rebirth::Elsewhere(identity) => (position.as_ref(), Some(identity.clone())),
    };
    let mut progress = Progress::reborn(checkpoint.as_ref(), era, ingest.writer, internal.clone(), rebirth);
    let to = State { incarnation: progress.incarnation().to_string(), era, position: kept, identity: elsewhere.as_ref() };
    let audit = Audit {
        at: now_text(),
        action: if request.rebind { "rebind" } else { "reset" },
        version: env!("CARGO_PKG_VERSION"),
        request,
        from,
        to,
        facts: facts.iter().map(|(name, value)| (*name, value.as_str())).collect(),
    };
    let mut out = Transaction::default();
    write_audit(&internal, era, &audit, &mut out);
    bury_strangers(&internal, &records, &mut out);
    // Whoever begins anew takes the tables as they are now, keys and schemas included.
    let tables = checkpoint.filter(|_| request.rebind).map(|checkpoint| checkpoint.state.tables).unwrap_or_default();
    commit_checkpoint_in(&mut *writer, &mut progress, None, Some(&tables), out).await?;
    writer.close().await;
    Ok((progress.incarnation(), era))
}

fn confirm(evidence: &Evidence, request: &Request) -> Result<()> {
    if evidence.incarnation == request.incarnation {
        return Ok(());
    }
    Err(Error::new(&codes::OTHER_INCARNATION, format!("the connector's incarnation is {}", evidence.incarnation))
        .at("named", &request.incarnation)
        .hint("Look at the evidence again: run the command without --incarnation."))
}

fn write_audit(internal: &InternalTopics, era: u32, audit: &Audit, out: &mut Transaction) {
    let topic = out.topic_index(&internal.audit);
    let value = serde_json::to_string(audit).expect("an audit record is plain data with text keys");
    // Keyed by the era, so that every one of them stays in the compacted topic.
    let key = out.write(|bytes| bytes.extend_from_slice(format!("{{\"audit\":{era}}}").as_bytes()));
    let value = out.write(|bytes| bytes.extend_from_slice(value.as_bytes()));
    out.push_record(topic, 0, now_us() / 1000, key, Some(value));
}

/// What headwater did not write would make the new checkpoint unreadable as well.
fn bury_strangers(internal: &InternalTopics, records: &[StoredRecord], out: &mut Transaction) {
    let known = [POSITION_KEY.as_bytes(), STATE_KEY.as_bytes()];
    for record in records.iter().filter(|record| !known.contains(&record.key.as_slice())) {
        let topic = out.topic_index(&internal.checkpoint);
        let key = out.write(|bytes| bytes.extend_from_slice(&record.key));
        out.push_record(topic, 0, now_us() / 1000, key, None);
    }
}
