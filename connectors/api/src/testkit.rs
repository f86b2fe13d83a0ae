//! The suite that every source passes against a real server.
//!
//! A connector's test implements [`Rig`] and [`Bench`] and calls the scenarios, one test each. A scenario gets a bench of its own:
//! a fresh database with a table `items (id bigint primary key, name text, big text)` that is selected, and a table `other`
//! that is not. Scenarios panic with what was promised and not kept.

use std::{
    cmp::Ordering,
    time::{Duration, Instant},
};

use async_trait::async_trait;

use crate::{Batch, Identity, IntentMode, Kind, Limits, Op, Position, Result, Source, SourceConnector, Value};

/// Makes benches.
#[async_trait]
pub trait Rig: Send + Sync {
    /// A fresh database with both tables, empty.
    async fn bench(&self) -> Box<dyn Bench>;
}

/// A fresh database and a connector for it.
#[async_trait]
pub trait Bench: Send + Sync {
    /// A connector that selects `items` only; each time the same one, as after a restart of the daemon.
    fn connector(&self) -> Box<dyn SourceConnector>;

    /// Runs the statements in one transaction, and commits it or rolls it back.
    async fn run(&self, statements: &[Statement], end: End);

    /// Where the server's own mark stands, before which it may forget its log, compared with a position; none if it keeps no mark.
    async fn forgets_before(&self, position: &Position) -> Option<Ordering>;
}

/// How a transaction ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// It happened.
    Commit,
    /// It never happened.
    Rollback,
}

/// One statement of a workload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Statement {
    /// A row of `items` with this id and name, and no `big`.
    Insert(i64, &'static str),
    /// Rows with ids from the first to before the second number, by one statement.
    InsertRange(i64, i64),
    /// A row whose `big` has so many characters that do not compress.
    InsertBig(i64, usize),
    /// Gives a row a name.
    Rename(i64, &'static str),
    /// Gives a row another id.
    Rekey(i64, i64),
    /// Removes a row.
    Delete(i64),
    /// A row in the table that is not selected.
    InsertOther,
}

use Statement::{Delete, Insert, InsertBig, InsertOther, InsertRange, Rekey, Rename};

/// One change in a form that can be compared.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    /// Id of the transaction.
    pub transaction: String,
    /// Ordinal of its raw message.
    pub ordinal: u64,
    /// What happened.
    pub op: Op,
    /// The row before, as far as it is there.
    pub before: Option<Vec<String>>,
    /// The row after.
    pub after: Option<Vec<String>>,
}

impl Seen {
    /// The id of the row: the new one if there is one.
    pub fn id(&self) -> &str {
        self.after.as_ref().or(self.before.as_ref()).map_or("", |row| row[0].as_str())
    }
}

/// A row's value as text; unchanged and NULL are words that no value is.
fn show(value: Value<'_>) -> String {
    match value {
        Value::Null => "<null>".to_owned(),
        Value::Unchanged => "<unchanged>".to_owned(),
        Value::Bool(value) => value.to_string(),
        Value::Int(value) => value.to_string(),
        Value::Uint(value) => value.to_string(),
        Value::Text(text) | Value::Json(text) => text.to_owned(),
        Value::Bytes(bytes) | Value::Invalid(bytes) => format!("{bytes:?}"),
    }
}

fn show_batch(batch: &Batch) -> Vec<Seen> {
    let row = |row| batch.values(row).map(show).collect::<Vec<_>>();
    let seen = batch.changes().iter().map(|change| Seen {
        transaction: batch.transaction_id(&batch.transactions()[change.transaction as usize]).to_owned(),
        ordinal: change.ordinal,
        op: change.op,
        before: change.before.row().map(row),
        after: change.after.map(row),
    });
    seen.collect()
}

/// Longest wait for anything.
const PATIENCE: Duration = Duration::from_secs(30);

/// Every wait for the log is short, so that a scenario notices soon what is wrong.
fn limits(max_changes: usize) -> Limits {
    Limits { max_changes, max_wait: Duration::from_millis(200), ..Limits::default() }
}

/// A source with what it handed out so far.
struct Reader {
    source: Box<dyn Source>,
    seen: Vec<Seen>,
    /// Every position with changes, and how many changes came before it.
    stops: Vec<(Position, usize)>,
}

impl Reader {
    /// Opens, and tries again while the server still holds on to the last session.
    async fn open(connector: &dyn SourceConnector, identity: &Identity, position: &Position) -> Self {
        let deadline = Instant::now() + PATIENCE;
        loop {
            match connector.open(identity, position).await {
                Ok(source) => return Self { source, seen: Vec::new(), stops: Vec::new() },
                Err(error) if error.kind() == Kind::Retry && Instant::now() < deadline => {
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
                Err(error) => panic!("open at {position}: {error}"),
            }
        }
    }

    async fn batch(&mut self, max_changes: usize) -> Result<Batch> {
        let mut batch = Batch::default();
        self.source.next_batch(&mut batch, &limits(max_changes)).await?;
        if !batch.changes().is_empty() {
            self.seen.extend(show_batch(&batch));
            let position = batch.position().expect("a batch with changes has a position").clone();
            self.stops.push((position, self.seen.len()));
        }
        Ok(batch)
    }

    /// Reads until so many changes are there, and fails if more come with them.
    async fn read(&mut self, count: usize, max_changes: usize) {
        let deadline = Instant::now() + PATIENCE;
        while self.seen.len() < count {
            self.batch(max_changes).await.unwrap_or_else(|error| panic!("{error}"));
            assert!(Instant::now() < deadline, "{} of {count} changes came: {:?}", self.seen.len(), self.seen);
        }
        assert_eq!(self.seen.len(), count, "more changes came than were made: {:?}", self.seen);
    }

    /// Fails if anything more comes within a moment.
    async fn nothing_more(&mut self) {
        let before = self.seen.len();
        for _ in 0..3 {
            self.batch(usize::MAX).await.unwrap_or_else(|error| panic!("{error}"));
        }
        assert_eq!(self.seen.len(), before, "changes came twice or from nowhere: {:?}", &self.seen[before..]);
    }

    fn last_position(&self) -> Position {
        self.stops.last().expect("something was read").0.clone()
    }
}

/// A bench whose connector made its first start.
struct Started {
    bench: Box<dyn Bench>,
    connector: Box<dyn SourceConnector>,
    identity: Identity,
    first: Position,
}

impl Started {
    async fn new(rig: &dyn Rig) -> Self {
        let bench = rig.bench().await;
        let connector = bench.connector();
        let intent = connector.prepare().await.unwrap_or_else(|error| panic!("prepare: {error}"));
        assert_eq!(intent.mode, IntentMode::Create, "nothing was there");
        let start = connector.create(&intent, false).await.unwrap_or_else(|error| panic!("create: {error}"));
        Self { bench, connector, identity: start.identity, first: start.position }
    }

    async fn commit(&self, statements: &[Statement]) {
        self.bench.run(statements, End::Commit).await;
    }

    async fn open(&self, position: &Position) -> Reader {
        Reader::open(&*self.connector, &self.identity, position).await
    }
}

/// A fresh start leaves an intent, creates what it said, and streams what is committed from then on.
pub async fn fresh_start(rig: &dyn Rig) {
    let started = Started::new(rig).await;
    let tables = started.connector.tables().await.unwrap_or_else(|errors| panic!("{errors:?}"));
    assert_eq!(tables.len(), 1, "only items is selected");
    assert_eq!(tables[0].schema.key_names(), ["id"]);
    started.connector.verify(&started.identity).await.unwrap_or_else(|error| panic!("verify: {error}"));
    let mut reader = started.open(&started.first).await;
    started.commit(&[Insert(1, "a"), Insert(2, "é\"\\\n")]).await;
    reader.read(2, 100).await;
    let [one, two] = &reader.seen[..] else { unreachable!("two were read") };
    assert_eq!((one.op, one.ordinal, one.id(), two.ordinal), (Op::Insert, 0, "1", 1));
    assert_eq!(two.after.as_deref().unwrap(), ["2", "é\"\\\n", "<null>"]);
    assert_eq!(one.transaction, two.transaction);
    reader.source.close().await.unwrap_or_else(|error| panic!("close: {error}"));
}

/// An interrupted first start can be done again: what it left behind is dropped or adopted, never tripped over.
pub async fn interrupted_start(rig: &dyn Rig) {
    let bench = rig.bench().await;
    let connector = bench.connector();
    let intent = connector.prepare().await.unwrap_or_else(|error| panic!("prepare: {error}"));
    connector.create(&intent, false).await.unwrap_or_else(|error| panic!("create: {error}"));
    // The position was never committed: the intent is all that the next start knows (C4).
    let start = bench.connector().create(&intent, true).await.unwrap_or_else(|error| panic!("create again: {error}"));
    let mut reader = Reader::open(&*connector, &start.identity, &start.position).await;
    bench.run(&[Insert(1, "a")], End::Commit).await;
    reader.read(1, 100).await;
}

/// What is committed comes whole, in order and once; what is rolled back never.
pub async fn whole_in_order_once(rig: &dyn Rig) {
    let started = Started::new(rig).await;
    let mut reader = started.open(&started.first).await;
    started.commit(&[Insert(1, "a"), InsertOther, Insert(2, "b")]).await;
    started.bench.run(&[Insert(3, "never"), Delete(1)], End::Rollback).await;
    started.commit(&[InsertOther]).await;
    started.commit(&[Rename(1, "c"), Delete(2)]).await;
    started.commit(&[InsertRange(10, 15)]).await;
    reader.read(9, 100).await;
    reader.nothing_more().await;
    let told: Vec<(Op, &str)> = reader.seen.iter().map(|seen| (seen.op, seen.id())).collect();
    let mut wanted = vec![(Op::Insert, "1"), (Op::Insert, "2"), (Op::Update, "1"), (Op::Delete, "2")];
    wanted.extend(["10", "11", "12", "13", "14"].map(|id| (Op::Insert, id)));
    assert_eq!(told, wanted);
    for pair in reader.seen.windows(2) {
        let same = pair[0].transaction == pair[1].transaction;
        assert!(!same || pair[0].ordinal < pair[1].ordinal, "ordinals of one transaction ascend: {pair:?}");
    }
}

/// Reopening at each position gives exactly the rest, with the same transactions and ordinals.
pub async fn reopen_at_every_position(rig: &dyn Rig) {
    let started = Started::new(rig).await;
    for id in 0..6 {
        started.commit(&[Insert(id, "a"), InsertOther, Rename(id, "b")]).await;
    }
    started.commit(&[Rekey(0, 100), Delete(1)]).await;
    let mut whole = started.open(&started.first).await;
    whole.read(14, 1).await;
    rest_is_exact(&started, whole).await;
}

/// A transaction larger than the limits is cut; reopening at every cut gives exactly the rest.
pub async fn cut_a_large_transaction(rig: &dyn Rig) {
    let started = Started::new(rig).await;
    started.commit(&[Insert(1, "before")]).await;
    started.commit(&[InsertRange(10, 100), InsertOther, Rename(10, "x"), Rekey(11, 1000)]).await;
    started.commit(&[Insert(2, "behind")]).await;
    let mut whole = started.open(&started.first).await;
    whole.read(94, 20).await;
    assert!(whole.stops.len() >= 5, "the transaction was cut: {:?}", whole.stops);
    rest_is_exact(&started, whole).await;
}

async fn rest_is_exact(started: &Started, whole: Reader) {
    let Reader { source, seen, stops } = whole;
    // Dropped without a word, as by a crash.
    drop(source);
    for (position, count) in &stops {
        let mut again = started.open(position).await;
        again.read(seen.len() - count, 7).await;
        assert_eq!(again.seen, seen[*count..], "reopened at {position}");
        again.nothing_more().await;
        again.source.close().await.unwrap_or_else(|error| panic!("close: {error}"));
    }
}

/// Traffic of no interest moves the position on, and lag is 0 before that already.
pub async fn idle_progress(rig: &dyn Rig) {
    let started = Started::new(rig).await;
    let mut reader = started.open(&started.first).await;
    started.commit(&[Insert(1, "a")]).await;
    reader.read(1, 100).await;
    let committed = reader.last_position();
    started.commit(&[InsertOther]).await;
    let monitor = reader.source.monitor();
    let deadline = Instant::now() + PATIENCE;
    let (mut progress, mut lag) = (None, u64::MAX);
    while progress.is_none() || lag > 0 {
        assert!(Instant::now() < deadline, "progress {progress:?}, lag {lag}");
        let asking = async { monitor.lag_bytes(&committed).await.unwrap_or_else(|error| panic!("{error}")) };
        let (batch, now) = tokio::join!(reader.batch(100), asking);
        lag = lag.min(now);
        progress = progress.or(batch.unwrap_or_else(|error| panic!("{error}")).position().cloned());
    }
    assert_eq!(reader.seen.len(), 1, "progress brings no changes");
    drop(reader);
    let mut again = started.open(&progress.expect("the loop waited for it")).await;
    started.commit(&[Insert(2, "b")]).await;
    again.read(1, 100).await;
    assert_eq!(again.seen[0].id(), "2");
    let behind = again.source.monitor().lag_bytes(&committed).await.unwrap_or_else(|error| panic!("{error}"));
    assert!(behind > 0, "a change that is not committed in the log is lag");
}

/// The server may forget what was acked, and nothing else (invariant I1).
pub async fn ack_lets_the_server_forget(rig: &dyn Rig) {
    let started = Started::new(rig).await;
    let mut reader = started.open(&started.first).await;
    for id in 0..3 {
        started.commit(&[Insert(id, "a")]).await;
        reader.read(id as usize + 1, 100).await;
        let position = reader.last_position();
        tokio::time::sleep(Duration::from_millis(300)).await;
        let Some(before) = started.bench.forgets_before(&position).await else { return };
        assert_eq!(before, Ordering::Less, "nothing was acked yet");
        reader.source.ack(&position).await.unwrap_or_else(|error| panic!("ack: {error}"));
        let deadline = Instant::now() + PATIENCE;
        while started.bench.forgets_before(&position).await != Some(Ordering::Equal) {
            assert!(Instant::now() < deadline, "the ack of {position} did not reach the server");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

/// Old keys, deletes and unchanged large values carry what the contract says.
pub async fn images_of_rows(rig: &dyn Rig) {
    let started = Started::new(rig).await;
    let mut reader = started.open(&started.first).await;
    started.commit(&[InsertBig(1, 20_000)]).await;
    started.commit(&[Rename(1, "named")]).await;
    started.commit(&[Rekey(1, 2)]).await;
    started.commit(&[Delete(2)]).await;
    reader.read(4, 100).await;
    let [insert, rename, rekey, delete] = &reader.seen[..] else { unreachable!("four were read") };
    let big = insert.after.as_ref().map(|row| row[2].clone()).unwrap_or_default();
    assert_eq!(big.len(), 20_000);
    for (update, id) in [(rename, "1"), (rekey, "2")] {
        let after = update.after.as_ref().expect("an update has a row after it");
        assert_eq!((after[0].as_str(), after[1].as_str()), (id, "named"));
        assert!(after[2] == "<unchanged>" || after[2] == big, "an unchanged value is unchanged or there, never NULL");
    }
    assert_eq!(rekey.before.as_ref().map(|row| row[0].as_str()), Some("1"), "a changed key comes with the old one");
    assert_eq!((delete.op, delete.after.is_none()), (Op::Delete, true));
    let before = delete.before.as_ref().expect("a delete has a row before it");
    assert_eq!(before[0], "2");
    assert_ne!(before[1], "<null>", "a column that the log does not carry is unchanged, not NULL");
}
