//! A server or a network that does not keep to the protocol: every answer of a real server is recorded once, and comes again
//! changed, cut and in pieces. Nothing of it panics, hangs, or takes memory that was only claimed.

#[path = "support/relay.rs"]
mod relay;
mod support;

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::{Duration, Instant},
};

use headwater_connector::{Batch, Error, Kind, Limits, Position, SourceConnector, Start};
use proptest::{prelude::*, test_runner::TestRunner};
use relay::{Filter, Relay, same};
use serde_json::json;
use support::{Postgres, begin, connector, shared};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    time::timeout,
};

/// Longer than any limit of the client: what takes this long hangs.
const HANG: Duration = Duration::from_secs(200);

/// What a real server sent, connection by connection, while a source opened and read.
struct Recording {
    connections: Vec<Vec<u8>>,
    database: String,
    start: Start,
    rows: usize,
}

fn source_of(port: u16, database: &str) -> Box<dyn SourceConnector> {
    let url = format!("postgres://postgres@127.0.0.1:{port}/{database}?connect_timeout=30");
    connector(&url, json!({ "on_truncate": "event", "messages": "*" }))
}

/// Opens and reads until so many changes came, or an error.
async fn read(connector: &dyn SourceConnector, start: &Start, rows: usize) -> Result<usize, Error> {
    let mut source = connector.open(&start.identity, &start.position).await?;
    let mut seen = 0;
    while seen < rows {
        let mut batch = Batch::default();
        source.next_batch(&mut batch, &Limits { max_wait: Duration::from_millis(100), ..Limits::default() }).await?;
        seen += batch.changes().len();
    }
    source.close().await?;
    Ok(seen)
}

async fn record() -> Recording {
    let database = shared().database();
    shared().sql(
        &database,
        "CREATE TYPE mood AS ENUM ('well', 'ill'); CREATE TABLE t (id int PRIMARY KEY, a text, n numeric(10, 2), m mood, xs int[]);
         ALTER TABLE t ALTER a SET STORAGE EXTERNAL",
    );
    let start = begin(&*source_of(shared().port, &database)).await;
    shared().sql(
        &database,
        "INSERT INTO t SELECT i, repeat('x', i * 200), i / 3.0, 'well', ARRAY[i, NULL] FROM generate_series(1, 20) i;
         UPDATE t SET m = 'ill' WHERE id > 15; UPDATE t SET id = 100 WHERE id = 1; DELETE FROM t WHERE id < 5;
         SELECT pg_logical_emit_message(true, 'x', 'y'), pg_logical_emit_message(false, 'x', 'y'); UPDATE t SET n = 1 WHERE id = 7; TRUNCATE t",
    );
    let heard = Arc::new(Mutex::new(Vec::<Vec<u8>>::new()));
    let listening = Arc::clone(&heard);
    let relay = Relay::with(&[shared().port], move |at| {
        listening.lock().unwrap().push(Vec::new());
        let listening = Arc::clone(&listening);
        let down: Filter = Box::new(move |bytes| {
            listening.lock().unwrap()[at].extend_from_slice(bytes);
            bytes.to_vec()
        });
        (same(), down)
    })
    .await;
    // Twenty inserts, five and one and one updates, three deletes, two messages and the truncate. The table is described once, so that the
    // sessions are the same whatever arrives together.
    let rows = read(&*source_of(relay.port, &database), &start, 33).await.expect("a real server");
    assert_eq!(rows, 33);
    let mut connections = heard.lock().unwrap().clone();
    // The end of the copy was said in answer to the client's.
    let end = starts(&connections[0]).into_iter().find(|at| connections[0][*at] == b'c').expect("a polite end");
    connections[0].truncate(end);
    assert!(connections.len() >= 3, "the stream, and SQL before and within it");
    Recording { connections, database, start, rows }
}

/// How a replayed connection ends.
#[derive(Clone, Copy, Debug, PartialEq)]
enum End {
    /// It stays open until the client leaves.
    Stay,
    /// FIN
    Close,
    /// RST
    Reset,
}

/// Plays a recording to whoever connects, in pieces of so many bytes.
async fn replay(connections: Vec<Vec<u8>>, piece: usize, end: End) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        for bytes in connections {
            let Ok((socket, _)) = listener.accept().await else { return };
            tokio::spawn(play(socket, bytes, piece, end));
        }
    });
    port
}

async fn play(mut socket: TcpStream, bytes: Vec<u8>, piece: usize, end: End) {
    socket.set_nodelay(true).unwrap();
    let mut sink = [0; 4096];
    // The client speaks first.
    if !matches!(socket.read(&mut sink).await, Ok(1..)) {
        return;
    }
    for piece in bytes.chunks(piece) {
        if socket.write_all(piece).await.is_err() {
            return;
        }
    }
    if end != End::Stay {
        // Some are to come as far as the end.
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    match end {
        End::Stay => while matches!(socket.read(&mut sink).await, Ok(1..)) {},
        End::Close => {
            let _ = socket.shutdown().await;
            while matches!(socket.read(&mut sink).await, Ok(1..)) {}
        }
        End::Reset => socket2::SockRef::from(&socket).set_linger(Some(Duration::ZERO)).unwrap(),
    }
}

/// The numbers below `count` in their order, and then with each two neighbours changed; the first one stays.
fn orders(count: usize) -> Vec<Vec<usize>> {
    let recorded: Vec<usize> = (0..count).collect();
    let swapped = (1..count.saturating_sub(1)).map(|at| {
        let mut order = recorded.clone();
        order.swap(at, at + 1);
        order
    });
    std::iter::once(recorded.clone()).chain(swapped).collect()
}

/// What reading the replayed connections comes to.
///
/// The watch and the stream's first look-up connect at the same time, in either order: the orders are tried until what came is
/// `expected`, and the last outcome is returned.
async fn read_replayed(
    recording: &Recording,
    connections: &[Vec<u8>],
    (piece, end): (usize, End),
    expected: impl Fn(&Result<usize, Error>) -> bool,
) -> Result<usize, Error> {
    let mut orders = orders(connections.len()).into_iter().take(8);
    loop {
        let order = orders.next().expect("an order");
        let port = replay(order.iter().map(|at| connections[*at].clone()).collect(), piece, end).await;
        let connector = source_of(port, &recording.database);
        let outcome = timeout(HANG, read(&*connector, &recording.start, recording.rows)).await.expect("no hang");
        if expected(&outcome) || orders.len() == 0 {
            return outcome;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_answers_in_single_bytes_mean_the_same() {
    let recording = record().await;
    for piece in [1, 7, 1 << 20] {
        let seen = read_replayed(&recording, &recording.connections, (piece, End::Stay), Result::is_ok).await;
        assert_eq!(seen.map_err(|error| error.to_string()), Ok(recording.rows), "in pieces of {piece}");
    }
}

/// A change to one recorded connection.
#[derive(Clone, Debug)]
enum Fault {
    /// One byte anywhere gets another value.
    Byte(u8),
    /// Bytes are put in anywhere.
    Insert(Vec<u8>),
    /// The rest is missing.
    Cut,
    /// A message claims another length.
    Length(u32),
    /// A message has another tag.
    Tag(u8),
    /// A message claims another number of columns, or whatever stands there.
    Count(u16),
    /// A field in a message claims another length.
    Field(i32),
    /// A message is missing.
    Lose,
    /// A message comes twice.
    Repeat,
    /// All of a message is noise, of the right length.
    Noise(u64),
}

fn fault() -> impl Strategy<Value = Fault> {
    let length =
        prop_oneof![Just(0), Just(3), Just(4), Just(5), Just(1 << 30), Just(i32::MAX as u32), Just(u32::MAX), any::<u32>()];
    let field = prop_oneof![Just(-1), Just(-2), Just(i32::MIN), Just(i32::MAX), Just(1 << 30), any::<i32>()];
    prop_oneof![
        any::<u8>().prop_map(Fault::Byte),
        prop::collection::vec(any::<u8>(), 1..40).prop_map(Fault::Insert),
        Just(Fault::Cut),
        length.prop_map(Fault::Length),
        prop::sample::select(b"RSKZDTCENIWvdcHABGst\x00\xff".to_vec()).prop_map(Fault::Tag),
        prop_oneof![Just(u16::MAX), Just(0), any::<u16>()].prop_map(Fault::Count),
        field.prop_map(Fault::Field),
        Just(Fault::Lose),
        Just(Fault::Repeat),
        any::<u64>().prop_map(Fault::Noise),
    ]
}

/// Where the messages of a recorded connection begin.
fn starts(bytes: &[u8]) -> Vec<usize> {
    let mut found = Vec::new();
    let mut at = 0;
    while let Some(head) = bytes.get(at..at + 5) {
        found.push(at);
        at += u32::from_be_bytes([head[1], head[2], head[3], head[4]]) as usize + 1;
    }
    found
}

fn spoil(bytes: &mut Vec<u8>, fault: &Fault, place: usize) {
    let starts = starts(bytes);
    let which = place % starts.len();
    // Where another fault struck before, a message may claim to be shorter than its head.
    let from = starts[which];
    let to = starts.get(which + 1).copied().unwrap_or(bytes.len()).clamp(from + 5, bytes.len());
    let anywhere = place % bytes.len();
    match fault {
        Fault::Byte(value) => bytes[anywhere] = *value,
        Fault::Insert(noise) => drop(bytes.splice(anywhere..anywhere, noise.iter().copied())),
        Fault::Cut => bytes.truncate(anywhere),
        Fault::Length(length) => bytes[from + 1..from + 5].copy_from_slice(&length.to_be_bytes()),
        Fault::Tag(tag) => bytes[from] = *tag,
        // In a replication message the plugin's begins 25 bytes later, and its counts behind a tag and an id.
        Fault::Count(count) => overwrite(&mut bytes[from + 5..to], &[0, 31], &count.to_be_bytes(), place),
        Fault::Field(length) => overwrite(&mut bytes[from + 5..to], &[2, 34, 27], &length.to_be_bytes(), place),
        Fault::Lose => drop(bytes.drain(from..to)),
        Fault::Repeat => {
            let copy = bytes[from..to].to_vec();
            drop(bytes.splice(to..to, copy));
        }
        Fault::Noise(seed) => {
            let mut state = seed | 1;
            for byte in &mut bytes[from + 5..to] {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                *byte = (state >> 56) as u8;
            }
        }
    }
}

fn overwrite(body: &mut [u8], offsets: &[usize], value: &[u8], place: usize) {
    let fits = offsets.iter().filter(|offset| **offset + value.len() <= body.len());
    let fits: Vec<usize> = fits.copied().collect();
    if !fits.is_empty() {
        let at = fits[place % fits.len()];
        body[at..at + value.len()].copy_from_slice(value);
    }
}

/// Counts panics on this thread, also of tasks whose end nobody waits for.
fn panics() -> Arc<AtomicUsize> {
    let count = Arc::new(AtomicUsize::new(0));
    let (counting, before) = (Arc::clone(&count), std::panic::take_hook());
    let thread = std::thread::current().id();
    std::panic::set_hook(Box::new(move |info| {
        if std::thread::current().id() == thread {
            counting.fetch_add(1, SeqCst);
        }
        before(info);
    }));
    count
}

/// The most memory that this process ever had, in bytes.
fn peak_memory() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("Linux");
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).expect("a peak");
    line.split_whitespace().nth(1).and_then(|kib| kib.parse::<u64>().ok()).expect("a number") * 1024
}

#[test]
fn spoilt_answers_end_in_errors() {
    let runtime = || tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let recording = runtime().block_on(record());
    let panics = panics();
    let before = peak_memory();
    let outcomes = Mutex::new(std::collections::BTreeMap::<String, usize>::new());
    let cases = std::env::var("PROPTEST_CASES").ok().and_then(|cases| cases.parse().ok()).unwrap_or(400);
    let mut runner = TestRunner::new(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(cases) });
    let strategy = (
        prop::collection::vec((fault(), any::<prop::sample::Index>(), any::<usize>()), 1..3),
        prop::sample::select(vec![1 << 20, 1 << 20, 1400, 13]),
        prop::sample::select(vec![End::Close, End::Close, End::Reset]),
    );
    let result = runner.run(&strategy, |(faults, piece, end)| {
        let mut connections = recording.connections.clone();
        for (fault, which, place) in &faults {
            // The stream deserves as much attention as all SQL together.
            let which = if place % 2 == 0 { 0 } else { which.index(connections.len()) };
            if starts(&connections[which]).is_empty() {
                continue;
            }
            spoil(&mut connections[which], fault, place / 2);
        }
        let outcome = runtime().block_on(async {
            let port = replay(connections, piece, end).await;
            timeout(HANG, read(&*source_of(port, &recording.database), &recording.start, recording.rows)).await
        });
        let outcome = outcome.map_err(|_| TestCaseError::fail("it hangs"))?;
        prop_assert_eq!(panics.load(SeqCst), 0, "a panic somewhere");
        let code = outcome.map_or_else(|error| error.code().id.to_owned(), |_| "read to the end".to_owned());
        *outcomes.lock().unwrap().entry(code).or_default() += 1;
        Ok(())
    });
    result.unwrap_or_else(|error| panic!("{error}"));
    let outcomes = outcomes.into_inner().unwrap();
    println!("{outcomes:?}");
    // Torn connections, nonsense in the stream, and changes that do no harm all occur, or the faults do not reach what they should.
    for code in ["HW0003", "HW2026", "read to the end"] {
        assert!(outcomes.contains_key(code), "{code} never came: {outcomes:?}");
    }
    let grown = peak_memory().saturating_sub(before);
    assert!(grown < 128 << 20, "lengths that were only claimed took {grown} bytes");
}

/// `0/15D7000` or the number in the middle of a position's text.
fn base(position: &Position) -> u64 {
    lsn(position.as_str().split(':').nth(1).expect("version:base"))
}

fn lsn(text: &str) -> u64 {
    let (high, low) = text.split_once('/').expect("an LSN");
    u64::from_str_radix(high, 16).expect("hex") << 32 | u64::from_str_radix(low, 16).expect("hex")
}

/// After each row of a transaction, a keepalive from far ahead that wants an answer.
fn eager_keepalives() -> Filter {
    relay::messages(|mut message| {
        if message[0] == b'd' && message.get(5) == Some(&b'w') && message.get(30) == Some(&b'I') {
            let mut keepalive = vec![b'd', 0, 0, 0, 22, b'k'];
            keepalive.extend((u64::MAX / 4).to_be_bytes());
            keepalive.extend([0; 8]);
            keepalive.push(1);
            message.extend(keepalive);
        }
        message
    })
}

/// Notes the position that each status update of the client confirms as flushed.
fn confirmations(noted: Arc<Mutex<Vec<u64>>>) -> Filter {
    let mut parse = relay::messages(move |message| {
        if message[0] == b'd' && message.get(5) == Some(&b'r') {
            let flushed = message[14..22].try_into().expect("eight bytes");
            noted.lock().unwrap().push(u64::from_be_bytes(flushed));
        }
        message
    });
    let mut first = true;
    // The startup message has no tag.
    Box::new(move |bytes| if std::mem::take(&mut first) { bytes.to_vec() } else { parse(bytes) })
}

#[tokio::test(flavor = "multi_thread")]
async fn a_keepalive_from_far_ahead_inside_a_transaction_is_no_progress() {
    let database = shared().database();
    shared().sql(&database, "CREATE TABLE t (id int PRIMARY KEY)");
    let noted = Arc::new(Mutex::new(Vec::new()));
    let notes = Arc::clone(&noted);
    let relay = Relay::with(&[shared().port], move |_| (confirmations(Arc::clone(&notes)), eager_keepalives())).await;
    let start = begin(&*source_of(shared().port, &database)).await;
    let lying = source_of(relay.port, &database);
    let mut source = lying.open(&start.identity, &start.position).await.unwrap();
    shared().sql(&database, "INSERT INTO t SELECT generate_series(1, 50); INSERT INTO t SELECT generate_series(51, 100)");
    let mut positions = Vec::new();
    let mut seen = 0;
    while seen < 100 {
        let mut batch = Batch::default();
        let limits = Limits { max_wait: Duration::from_millis(200), max_changes: 7, ..Limits::default() };
        source.next_batch(&mut batch, &limits).await.unwrap();
        seen += batch.changes().len();
        let Some(position) = batch.position().cloned() else { continue };
        source.ack(&position).await.unwrap();
        positions.push(position);
    }
    source.close().await.unwrap();
    let now = lsn(&shared().sql(&database, "SELECT pg_current_wal_lsn()"));
    for position in &positions {
        assert!(base(position) <= now, "{} is behind the end of the log {now:x}", position.as_str());
    }
    assert!(positions.len() >= 14, "slices of seven: {}", positions.len());
    let noted = noted.lock().unwrap().clone();
    assert!(noted.len() > 2, "each keepalive asked for an answer: {noted:?}");
    for flushed in &noted {
        let known = *flushed == base(&start.position) || positions.iter().any(|position| base(position) == *flushed);
        assert!(known, "{flushed:x} was confirmed, and no batch ended there");
    }
    // From any slice on, the rest comes once and nothing is missing.
    let last = positions.last().expect("positions");
    shared().sql(&database, "INSERT INTO t VALUES (101)");
    let rest = Start { identity: start.identity.clone(), position: last.clone() };
    assert_eq!(read(&*source_of(shared().port, &database), &rest, 1).await.unwrap(), 1);
}

/// Twelve times its own timeout the log stalls: as one minute is to five seconds.
const SENDER_TIMEOUT_S: u32 = 2;
const STALL_S: u32 = 12 * SENDER_TIMEOUT_S;

#[tokio::test(flavor = "multi_thread")]
async fn a_log_that_stalls_for_many_timeouts_does_not_end_the_stream() {
    let server = Postgres::start(&[&format!("wal_sender_timeout={SENDER_TIMEOUT_S}s")], "");
    server.sql("postgres", "CREATE TABLE t (id int PRIMARY KEY, a text)");
    let connector = connector(&server.url("postgres"), json!({ "tables": "public.t" }));
    let start = begin(&*connector).await;
    let mut source = connector.open(&start.identity, &start.position).await.unwrap();
    // Far more than every buffer in between holds, so that the reader stands still in the middle of it.
    server.sql("postgres", "INSERT INTO t SELECT i, repeat('x', 10000) FROM generate_series(1, 6000) i");
    let mut first = Batch::default();
    while first.changes().is_empty() {
        source.next_batch(&mut first, &Limits { max_changes: 10, ..Limits::default() }).await.unwrap();
    }
    let sender = || server.sql("postgres", "SELECT pid FROM pg_stat_replication");
    let pid = sender();
    let deadline = Instant::now() + Duration::from_secs(240);
    let still = format!("SELECT count(*) FROM pg_stat_replication WHERE reply_time > backend_start + interval '{STALL_S} s'");
    while server.sql("postgres", &still) == "0" {
        assert_eq!(sender(), pid, "the server ended the stream");
        assert!(Instant::now() < deadline, "no status arrived in all that time");
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
    let mut seen = first.changes().len();
    while seen < 6000 {
        let mut batch = Batch::default();
        source.next_batch(&mut batch, &Limits::default()).await.unwrap();
        seen += batch.changes().len();
    }
    assert_eq!((seen, sender()), (6000, pid));
    source.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_is_reset_within_a_frame_is_tried_again() {
    let recording = record().await;
    let stream = &recording.connections[0];
    let begins = starts(stream);
    let middle = begins[begins.len() - 5] + 7;
    for end in [End::Close, End::Reset] {
        let mut connections = recording.connections.clone();
        connections[0].truncate(middle);
        let torn = |outcome: &Result<usize, Error>| outcome.as_ref().is_err_and(|error| error.code().id == "HW0003");
        let error = read_replayed(&recording, &connections, (1 << 20, end), torn).await.expect_err("cut");
        assert_eq!((error.code().id, error.kind()), ("HW0003", Kind::Retry), "{end:?}: {error}");
    }
}
