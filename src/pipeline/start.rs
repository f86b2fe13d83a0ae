//! Taking a connector's place and finding where it stood: steps 1 to 4 and 9 of the protocol in the architecture guide.

use std::collections::{BTreeMap, HashMap, HashSet};

use headwater_connector::{Error, Identity, Intent, Position, Result, Source, SourceConnector, Table, fault};
use uuid::Uuid;

use super::{
    backfill::{self, refresh::Refresh},
    codes,
    ingest::Ingest,
    now_us, topics,
};
use crate::{
    config::closest::closest,
    log::{
        Cleanup, LogWriter, TopicSpec, TopicState, Transaction,
        checkpoint::{Checkpoint, FORMAT, POSITION_KEY, PositionRecord, STATE_KEY, StateRecord, TableBackfill, TableState},
        codes as log_codes,
        topic::InternalTopics,
    },
    mapping::{
        Encoder, Place, Routes,
        rule::{Events, OnDataError},
    },
};

/// A connector that holds its place and is open at its position.
pub struct Started {
    pub writer: Box<dyn LogWriter>,
    pub source: Box<dyn Source>,
    pub encoder: Encoder,
    pub progress: Progress,
    /// Rows whose newest event lacks columns; none if there is no topic that could name them.
    pub refresh: Option<Refresh>,
}

/// What a reset makes of a checkpoint.
pub(super) enum Rebirth {
    /// The position is given up; an intent may stand for what has to be replaced at the source.
    Anew(Option<Intent>),
    /// The position is kept, on a server with this identity.
    Elsewhere(Identity),
}

/// The checkpoint as it will be written next.
pub struct Progress {
    incarnation: Uuid,
    era: u32,
    writer: Uuid,
    /// Of the transaction that was prepared last.
    seq: u64,
    identity: Option<Identity>,
    position: Option<Position>,
    intent: Option<Intent>,
    partitions: BTreeMap<String, u32>,
    paused: Option<String>,
    topic_ids: BTreeMap<String, String>,
    /// Rows that are there already, by table.
    pub backfills: BTreeMap<String, TableBackfill>,
    internal: InternalTopics,
}

impl Progress {
    fn fresh(writer: Uuid, internal: InternalTopics) -> Self {
        let incarnation = Uuid::new_v4();
        let (partitions, topic_ids, backfills) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
        let (identity, position, intent, paused) = (None, None, None, None);
        Self {
            incarnation,
            era: 0,
            writer,
            seq: 0,
            identity,
            position,
            intent,
            partitions,
            paused,
            topic_ids,
            backfills,
            internal,
        }
    }

    fn resume(checkpoint: &Checkpoint, writer: Uuid, internal: InternalTopics) -> Self {
        let Checkpoint { position, state } = checkpoint;
        Self {
            incarnation: position.incarnation,
            era: position.era,
            writer,
            seq: position.seq,
            identity: position.identity.clone(),
            position: position.position.clone(),
            intent: state.intent.clone(),
            partitions: state.partitions.clone(),
            // Whoever starts is not paused any more; the state record that every start writes says so.
            paused: None,
            topic_ids: state.topic_ids.clone(),
            backfills: state.backfills.clone(),
            internal,
        }
    }

    /// A new life in a new era: the position is given up, or kept under another identity. Pinned counts stay, for the topics do.
    pub(super) fn reborn(old: Option<&Checkpoint>, era: u32, writer: Uuid, internal: InternalTopics, rebirth: Rebirth) -> Self {
        let mut progress = match old {
            Some(old) => Self::resume(old, writer, internal),
            None => Self::fresh(writer, internal),
        };
        (progress.era, progress.seq) = (era, 0);
        match rebirth {
            Rebirth::Anew(intent) => {
                progress.incarnation = Uuid::new_v4();
                (progress.identity, progress.position, progress.intent) = (None, None, intent);
                // Whoever begins anew takes the topics as they are now.
                progress.topic_ids.clear();
                progress.backfills.clear();
            }
            Rebirth::Elsewhere(identity) => progress.identity = Some(identity),
        }
        progress
    }

    /// Behind everything published; none before the source was prepared.
    pub fn position(&self) -> Option<&Position> {
        self.position.as_ref()
    }

    /// Which life this is.
    pub(super) fn incarnation(&self) -> Uuid {
        self.incarnation
    }

    /// Where the next log transaction will stand.
    pub fn next_place(&self) -> Place {
        Place { era: self.era, seq: self.seq + 1 }
    }

    /// Ends a log transaction with its checkpoint: the state if it changed, and the position, last.
    pub fn finish(&mut self, position: Option<&Position>, tables: Option<&BTreeMap<String, TableState>>, out: &mut Transaction) {
        self.seq += u64::from(!fault::variant("sequence-stands-still"));
        if let Some(position) = position {
            self.position = Some(position.clone());
        }
        let topic = out.topic_index(&self.internal.checkpoint);
        let counts = counts(out);
        let timestamp_ms = now_us() / 1000;
        let mut push = |key: &str, json: String| {
            let key = out.write(|bytes| bytes.extend_from_slice(key.as_bytes()));
            let value = out.write(|bytes| bytes.extend_from_slice(json.as_bytes()));
            out.push_record(topic, 0, timestamp_ms, key, Some(value));
        };
        if let Some(tables) = tables {
            push(STATE_KEY, json(&self.state(tables)));
        }
        push(POSITION_KEY, json(&self.position_record(counts)));
    }

    fn state(&self, tables: &BTreeMap<String, TableState>) -> StateRecord {
        StateRecord {
            format: FORMAT,
            incarnation: self.incarnation,
            intent: self.intent.clone(),
            partitions: self.partitions.clone(),
            tables: tables.clone(),
            paused: self.paused.clone(),
            topic_ids: self.topic_ids.clone(),
            backfills: self.backfills.clone(),
        }
    }

    fn position_record(&self, counts: BTreeMap<String, BTreeMap<u32, u64>>) -> PositionRecord {
        PositionRecord {
            format: FORMAT,
            incarnation: self.incarnation,
            era: self.era,
            writer: self.writer,
            seq: self.seq,
            identity: self.identity.clone(),
            position: self.position.clone(),
            counts,
        }
    }
}

fn json<T: serde::Serialize>(record: &T) -> String {
    serde_json::to_string(record).expect("checkpoint records are plain data with text keys")
}

/// Records of the transaction so far, by topic and partition.
fn counts(out: &Transaction) -> BTreeMap<String, BTreeMap<u32, u64>> {
    let mut by_place: HashMap<(u32, u32), u64> = HashMap::new();
    for record in out.records() {
        *by_place.entry((record.topic, record.partition)).or_default() += 1;
    }
    let mut counts: BTreeMap<String, BTreeMap<u32, u64>> = BTreeMap::new();
    for ((topic, partition), count) in by_place {
        counts.entry(out.topics()[topic as usize].to_string()).or_default().insert(partition, count);
    }
    counts
}

/// Takes the connector's place: looks without fencing, fences, reads the truth, verifies the source, opens it.
pub async fn start(ingest: &Ingest) -> Result<Started> {
    let internal = InternalTopics::new(&ingest.prefix, &ingest.name);
    // A foreign identity or a rival is found before anybody is fenced (step 2).
    let peeked = ingest.log.peek_records(&internal.checkpoint).await?;
    let peeked = Checkpoint::decode(&internal.checkpoint, &peeked)?;
    if let Some(checkpoint) = &peeked {
        ingest.refuse_rival(checkpoint)?;
        ingest.status.standing(checkpoint.position.position.as_ref(), &*ingest.connector);
        refuse_paused(ingest, checkpoint)?;
        if let Some(identity) = &checkpoint.position.identity {
            ingest.connector.verify(identity).await?;
        }
    }
    let (known, pinned) = peeked.map(|peeked| (peeked.state.topic_ids, peeked.state.partitions)).unwrap_or_default();
    let routes = claimed(ingest, &pinned).await?;
    let (states, existed) = ensure_topics(ingest, &internal, &routes, &known).await?;

    fault::point("C1");
    let mut writer = ingest.log.open_writer(&ingest.name).await.map_err(in_doubt)?;
    // Only now is the checkpoint the truth: nobody else can write it any more.
    let records = ingest.log.last_records(&internal.checkpoint).await?;
    let checkpoint = Checkpoint::decode(&internal.checkpoint, &records)?;
    if checkpoint.is_none() {
        topics::refuse_lost_checkpoint(&*ingest.log, &internal).await?;
    }
    let mut progress = match &checkpoint {
        Some(checkpoint) => Progress::resume(checkpoint, ingest.writer, internal.clone()),
        None => Progress::fresh(ingest.writer, internal.clone()),
    };
    let tables = checkpoint.map(|checkpoint| checkpoint.state.tables).unwrap_or_default();
    for state in &states {
        topics::refuse_changed(&progress.topic_ids, &state.name, Some(state))?;
        progress.topic_ids.insert(state.name.clone(), state.id.clone());
    }
    pin(ingest, &mut progress, &states)?;
    // Before there is a position, so that a crash in between does not make the first start look like a later one.
    let is_first_start = progress.position.is_none();
    let mode = ingest.connector.backfill().mode;
    let place = progress.next_place();
    backfill::enlist(&mut progress.backfills, mode, &routes, &existed, (is_first_start, place));
    commit_checkpoint(&mut *writer, &mut progress, None, Some(&tables)).await?;
    ingest.own();

    if progress.position.is_none() {
        create(ingest, &mut *writer, &mut progress, &tables).await?;
    }
    let (Some(identity), Some(position)) = (&progress.identity, &progress.position) else {
        return Err(Error::new(&headwater_connector::codes::INVARIANT, "a started connector has no position"));
    };
    let source = match ingest.connector.open(identity, position).await {
        Ok(source) => source,
        Err(error) => return Err(blame(ingest, &internal, error).await?),
    };
    ingest.status.streaming(position, source.monitor(), &progress.backfills);
    if let Some(found) = source.identity() {
        // Positions from here on belong to the timeline that was found, and are compared with it at the next start.
        progress.identity = Some(found.clone());
    }
    let dead_letters = ingest.events.on_data_error == OnDataError::DeadLetter;
    // The topic is there once a row has lacked columns.
    let refreshes = states.iter().any(|state| state.name == internal.refresh);
    let pending = if refreshes { ingest.log.last_records(&internal.refresh).await? } else { Vec::new() };
    let topics = (dead_letters, refreshes);
    let encoder = Encoder::new(&ingest.name, routes, internal, progress.partitions.clone(), tables, topics);
    let refresh = match refreshes {
        true => Some(Refresh::load(&pending, |table| Some((encoder.topic_of(table)?, encoder.schema_of(table)?)))?),
        false => None,
    };
    Ok(Started { writer, source, encoder, progress, refresh })
}

/// A pause outlives the daemon: nobody is fenced and the source is not asked until somebody resumes the connector.
fn refuse_paused(ingest: &Ingest, checkpoint: &Checkpoint) -> Result<()> {
    match &checkpoint.state.paused {
        Some(since) if !ingest.is_resumed() => Err(Error::new(&codes::PAUSED, format!("the connector is paused since {since}"))
            .at("connector", &ingest.name)
            .hint(format!("Run `headwater resume {}`.", ingest.name))),
        _ => Ok(()),
    }
}

/// Leaves the pause in the checkpoint, so that the next daemon keeps it. Does nothing if the connector never had a checkpoint.
pub async fn record_pause(ingest: &Ingest, since: String) -> Result<()> {
    let internal = InternalTopics::new(&ingest.prefix, &ingest.name);
    let Some(checkpoint) = Checkpoint::decode(&internal.checkpoint, &ingest.log.peek_records(&internal.checkpoint).await?)?
    else {
        return Ok(());
    };
    ingest.refuse_rival(&checkpoint)?;
    let mut writer = ingest.log.open_writer(&ingest.name).await.map_err(in_doubt)?;
    let records = ingest.log.last_records(&internal.checkpoint).await?;
    if let Some(checkpoint) = Checkpoint::decode(&internal.checkpoint, &records)? {
        let mut progress = Progress::resume(&checkpoint, ingest.writer, internal);
        progress.intent.clone_from(&checkpoint.state.intent);
        progress.paused = Some(since);
        commit_checkpoint(&mut *writer, &mut progress, None, Some(&checkpoint.state.tables)).await?;
        ingest.own();
    }
    writer.close().await;
    Ok(())
}

/// A source that has moved on without us looks as if somebody had tampered with it: a rival that took over between our look at
/// the checkpoint and our look at the slot has confirmed more than we know of. Then the fault is ours, and nothing is lost.
async fn blame(ingest: &Ingest, internal: &InternalTopics, error: Error) -> Result<Error> {
    if error.kind() == headwater_connector::Kind::Lost {
        let records = ingest.log.last_records(&internal.checkpoint).await?;
        if let Some(checkpoint) = Checkpoint::decode(&internal.checkpoint, &records)? {
            ingest.refuse_rival(&checkpoint)?;
        }
    }
    Ok(error)
}

/// The first start: an intent before anything is created at the source, the first position after it (crash points C3 and C4).
async fn create(
    ingest: &Ingest,
    writer: &mut dyn LogWriter,
    progress: &mut Progress,
    tables: &BTreeMap<String, TableState>,
) -> Result<()> {
    let again = progress.intent.is_some();
    let intent = match progress.intent.take() {
        Some(intent) => intent,
        None => ingest.connector.prepare().await?,
    };
    progress.intent = Some(intent.clone());
    // Also an intent that is known is committed again: it proves that nobody took our place before an orphan is dropped.
    commit_checkpoint(writer, progress, None, Some(tables)).await?;
    fault::point("C3");
    let start = ingest.connector.create(&intent, again).await?;
    fault::point("C4");
    progress.identity = Some(start.identity);
    progress.intent = None;
    commit_checkpoint(writer, progress, Some(&start.position), Some(tables)).await
}

async fn commit_checkpoint(
    writer: &mut dyn LogWriter,
    progress: &mut Progress,
    position: Option<&Position>,
    tables: Option<&BTreeMap<String, TableState>>,
) -> Result<()> {
    commit_checkpoint_in(writer, progress, position, tables, Transaction::default()).await
}

/// A checkpoint behind records that go into the same transaction.
pub(super) async fn commit_checkpoint_in(
    writer: &mut dyn LogWriter,
    progress: &mut Progress,
    position: Option<&Position>,
    tables: Option<&BTreeMap<String, TableState>>,
    mut out: Transaction,
) -> Result<()> {
    progress.finish(position, tables, &mut out);
    writer.commit(out).await.map(drop).map_err(in_doubt)
}

/// A log that refuses a writer may have been told so by a rival or by a timeout; the checkpoint tells, at the next start (step 7).
pub fn in_doubt(error: Error) -> Error {
    if error.kind() != headwater_connector::Kind::Fenced {
        return error;
    }
    Error::new(&log_codes::COMMIT_IN_DOUBT, "the log refused this writer")
        .hint("Wait: headwater reads the checkpoint to learn whether another instance took over.")
        .caused_by(error)
}

/// The routes of the tables that are there now.
pub async fn routes(ingest: &Ingest) -> Result<Routes> {
    let tables = ingest.connector.tables().await.map_err(gather)?;
    routes_of(&ingest.name, &*ingest.connector, &ingest.events, &tables).map_err(gather)
}

/// The routes, whose topics nobody else may have from now on.
async fn claimed(ingest: &Ingest, pinned: &BTreeMap<String, u32>) -> Result<Routes> {
    let routes = routes(ingest).await?;
    ingest.claims.refuse_owned(&*ingest.log, &ingest.prefix, &ingest.others, (&routes, pinned)).await?;
    ingest.claims.claim(&ingest.name, &routes)?;
    Ok(routes)
}

/// The routes of these tables, or everything that is wrong with what the config says of them.
pub(super) fn routes_of(
    name: &str,
    connector: &dyn SourceConnector,
    events: &Events,
    tables: &[Table],
) -> Result<Routes, Vec<Error>> {
    let routes = Routes::new(name, events, tables);
    let known = || tables.iter().filter(|table| table.readable).map(|table| table.schema.table.as_str());
    let options = connector.backfill();
    let unknown = options.unknown_first(|first| known().any(|table| table == first)).map(|(at, first)| {
        Error::new(&codes::FIRST_UNKNOWN, format!("{first:?} is to be read first and is not captured"))
            .at("option", format!("connectors.{name}.source.backfill.first[{at}]"))
            .hint(match closest(first, known()) {
                Some(close) => format!("Did you mean {close}? Write {close}."),
                None => "Name a table that the connector captures; `headwater plan` lists them.".to_owned(),
            })
    });
    let unknown: Vec<Error> = unknown.collect();
    match routes {
        Ok(routes) if unknown.is_empty() => Ok(routes),
        routes => Err(routes.err().unwrap_or_default().into_iter().chain(unknown).collect()),
    }
}

/// Several faults as one error: the first, with the number of the others.
pub(super) fn gather(mut errors: Vec<Error>) -> Error {
    if errors.is_empty() {
        return Error::new(&headwater_connector::codes::INVARIANT, "a failure without an error");
    }
    let others = errors.len() - 1;
    let first = errors.swap_remove(0);
    if others == 0 { first } else { first.at("and", format!("{others} more faults, which `headwater check` lists")) }
}

/// The topics that a connector needs; the two words say whether it has one for dead letters and one for rows that are to be refreshed.
pub fn topic_specs(
    internal: &InternalTopics,
    routes: &Routes,
    partitions: Option<u32>,
    (dead_letters, refreshes): (bool, bool),
) -> Vec<TopicSpec> {
    let spec = |name: &str, partitions, cleanup| TopicSpec { name: name.to_owned(), partitions, cleanup };
    let mut specs =
        vec![spec(&internal.checkpoint, Some(1), Cleanup::Compact), spec(&internal.schema, Some(1), Cleanup::Compact)];
    if dead_letters {
        specs.push(spec(&internal.dead, Some(1), Cleanup::Delete));
    }
    if refreshes {
        specs.push(spec(&internal.refresh, Some(1), Cleanup::Compact));
    }
    specs.extend(routes.iter().map(|route| spec(&route.topic, partitions, Cleanup::Compact)));
    specs
}

/// Whether rows are refreshed, and one has ever lacked columns.
async fn wants_refresh(ingest: &Ingest, internal: &InternalTopics) -> Result<bool> {
    let exists = || async { Ok(ingest.log.topics(std::slice::from_ref(&internal.refresh)).await?.iter().any(Option::is_some)) };
    Ok(ingest.connector.refreshes() && (ingest.wants_refresh() || exists().await?))
}

/// The topics, and which of them were there before.
async fn ensure_topics(
    ingest: &Ingest,
    internal: &InternalTopics,
    routes: &Routes,
    known: &BTreeMap<String, String>,
) -> Result<(Vec<TopicState>, HashSet<String>)> {
    let dead_letters = ingest.events.on_data_error == OnDataError::DeadLetter;
    let mut specs =
        topic_specs(internal, routes, ingest.events.partitions, (dead_letters, wants_refresh(ingest, internal).await?));
    // What exists is adopted here and compared with what is pinned later, so that a grown topic keeps its old hashing (K9).
    let names: Vec<String> = specs.iter().map(|spec| spec.name.clone()).collect();
    let exist = ingest.log.topics(&names).await?;
    for (spec, exists) in specs.iter_mut().zip(&exist) {
        // A topic that is gone must not be created again in silence.
        topics::refuse_changed(known, &spec.name, exists.as_ref())?;
        if let (Some(state), true) = (exists, routes.iter().any(|route| route.topic == spec.name)) {
            spec.partitions = ingest.events.partitions.filter(|count| *count == state.partitions);
        }
    }
    let existed = names.into_iter().zip(exist).filter_map(|(name, state)| state.map(|_| name)).collect();
    Ok((ingest.log.ensure_topics(&specs).await?, existed))
}

/// Pins the partition counts of topics that have none yet, and holds the others to what is pinned (K9).
fn pin(ingest: &Ingest, progress: &mut Progress, states: &[TopicState]) -> Result<()> {
    for TopicState { name: topic, partitions: actual, .. } in states {
        let InternalTopics { checkpoint, schema, dead, refresh, .. } = &progress.internal;
        if [checkpoint, schema, dead, refresh].contains(&topic) {
            continue;
        }
        let pinned = *progress.partitions.entry(topic.clone()).or_insert(ingest.events.partitions.unwrap_or(*actual));
        if *actual < pinned {
            return Err(Error::new(&codes::PARTITIONS_PINNED, format!("the topic has {actual} partitions, {pinned} are needed"))
                .at("topic", topic)
                .hint(format!(
                    "Give the topic {pinned} partitions, or set `events.partitions` to {actual} before the first start."
                )));
        }
        if let Some(wanted) = ingest.events.partitions.filter(|wanted| *wanted != pinned) {
            return Err(Error::new(
                &codes::PARTITIONS_CHANGED,
                format!("the config says {wanted} partitions, the checkpoint has pinned {pinned}"),
            )
            .at("topic", topic)
            .hint(format!("Set `events.partitions` back to {pinned}, or remove it.")));
        }
    }
    Ok(())
}
