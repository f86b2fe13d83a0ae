//! The one writer of a connector: a transactional producer that is thrown away at the first doubt.

use std::{
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use async_trait::async_trait;
use headwater_connector::{Error, Kind, Result, codes as shared, fault};
use rdkafka::{
    error::{KafkaError, KafkaResult, RDKafkaErrorCode},
    message::{Header, OwnedHeaders},
    producer::{BaseRecord, Producer, ThreadedProducer},
};

use super::{
    Inner, admin,
    client::{OffThread, blocking, stop_early},
    codes,
    config::{self, HEADER_OVERHEAD_BYTES, RECORD_OVERHEAD_BYTES, Watch},
    error, ffi,
};
use crate::log::{LogWriter, Record, Transaction, codes as log, topic::transactional_id};

type Client = ThreadedProducer<Watch>;

/// Added to the transaction timeout for ending what an older writer left.
const INIT_MARGIN: Duration = Duration::from_secs(30);

/// One look at whether everything sent has been answered.
const FLUSH: Duration = Duration::from_millis(20);

/// One look at whether the commit has been answered.
const COMMIT: Duration = Duration::from_millis(500);

/// How long an abort may take; it is a courtesy to readers, who else wait until the transaction times out.
const ABORT: Duration = Duration::from_secs(5);

/// How often a running writer looks whether its topics are still the same. A client cannot tell a topic that was deleted and made
/// anew between two of its requests, and would go on in the new one.
const VERIFY_EVERY: Duration = Duration::from_secs(10);

/// How long that look may take; if the brokers are in trouble, the commit tells.
const VERIFY: Duration = Duration::from_secs(2);

/// Producers that are tried before the supervisor takes over.
const TRIES: u32 = 3;

/// Fences the older writers of a connector and takes their place.
pub(super) async fn open(inner: &Arc<Inner>, connector: &str) -> Result<Box<dyn LogWriter>> {
    let limits = admin::refresh_limits(inner).await?;
    let mut id = transactional_id(&inner.prefix, connector);
    if fault::variant("skip-fencing") {
        id.push_str(&uuid::Uuid::new_v4().to_string());
    }
    // A batch is one request to a topic, so it must fit the topic with the lowest limit that may be written to.
    let batch_bytes = config::batch_bytes(limits.values().copied().min());
    let producer = producer(inner, &id, batch_bytes).await?;
    let verified = Instant::now();
    Ok(Box::new(KafkaWriter { inner: Arc::clone(inner), id, batch_bytes, producer: Some(producer), doubt: None, verified }))
}

async fn producer(inner: &Arc<Inner>, id: &str, batch_bytes: u64) -> Result<OffThread<Client>> {
    let (inner, id) = (Arc::clone(inner), id.to_owned());
    blocking(move || {
        let deadline = Instant::now() + Duration::from_secs(inner.options.transaction_timeout_seconds.into()) + INIT_MARGIN;
        let mut tries = 0;
        loop {
            tries += 1;
            match initialized(&inner, &id, batch_bytes, deadline) {
                // Two that start at once fence each other while they do (K6), and any other doubt needs a new producer too (K1).
                Err(failed) if tries < TRIES && is_doubt(&failed) && Instant::now() < deadline => {
                    tracing::debug!(%failed, tries, "the writer is tried again with a new producer");
                }
                result => return result,
            }
        }
    })
    .await
}

/// Whether an error leaves open what the brokers did; with nobody reachable there is nothing to try again at once.
fn is_doubt(failed: &Error) -> bool {
    match failed.kind() {
        Kind::Fenced => true,
        Kind::Retry => failed.code().id != shared::UNREACHABLE.id,
        Kind::Config | Kind::Environment | Kind::Data | Kind::Lost | Kind::Bug => false,
    }
}

fn initialized(inner: &Inner, id: &str, batch_bytes: u64, deadline: Instant) -> Result<OffThread<Client>> {
    const WHAT: &str = "the writer cannot be opened";
    let made: KafkaResult<Client> =
        config::producer(&inner.options, id, batch_bytes)?.create_with_context(Watch::of(&inner.options));
    let client = OffThread::new(made.map_err(|cause| error::not_made(&cause))?);
    Watch::admit(client.client())?;
    let began = Instant::now();
    fault::point_with("C2", || drop(client.init_transactions(Duration::from_millis(1))));
    loop {
        // The call goes on in the background when its time is up, and the next one joins it.
        let cause = match client.init_transactions(Duration::from_millis(500)) {
            Ok(()) => return Ok(client),
            Err(cause) => cause,
        };
        let code = error::code_of(&cause);
        let failed = if code.is_none_or(|code| !error::passes(code)) {
            error::from_client(&cause, WHAT, &codes::NO_ANSWER)
        } else if let Err(failed) = stop_early(client.client(), began, WHAT) {
            failed
        } else if Instant::now() >= deadline {
            error::gave_up(client.client().context(), WHAT, &cause, &codes::NO_ANSWER)
        } else {
            continue;
        };
        // This producer must be gone before another takes its id: a late answer to it would fence the other (K6).
        drop(client.into_inner());
        return Err(failed.at("transactional id", id));
    }
}

/// The writer.
struct KafkaWriter {
    inner: Arc<Inner>,
    id: String,
    /// The `batch.size` of the producer.
    batch_bytes: u64,
    /// None after an error.
    producer: Option<OffThread<Client>>,
    /// Why the producer must not be used again although its last commit succeeded.
    doubt: Option<Doubt>,
    /// When the topics were last seen to be the same.
    verified: Instant,
}

/// A client that speaks this version of the transaction protocol may have repeated the request that ended a transaction; the
/// repeated one may still be on its way and would then end the *next* transaction in its middle (K2). Only a new epoch cuts it
/// off. The writer must not take one by itself: it would fence a rival that took over meanwhile, without having read what the
/// rival wrote. So the next commit fails, and the caller opens a new writer and reads the checkpoint, as after any other doubt.
#[derive(Clone, Copy, Debug)]
enum Doubt {
    Slow(Duration),
    Disturbed,
}

/// What a commit that succeeded gives back.
struct Committed {
    client: OffThread<Client>,
    transaction: Transaction,
    doubt: Option<Doubt>,
}

#[async_trait]
impl LogWriter for KafkaWriter {
    async fn commit(&mut self, transaction: Transaction) -> Result<Transaction> {
        let client = self
            .producer
            .take()
            .ok_or_else(|| Error::new(&shared::INVARIANT, "a writer was used after an error").at("transactional id", &self.id))?;
        if let Some(doubt) = self.doubt {
            let what = match doubt {
                Doubt::Slow(took) => format!("the last commit took {} ms, so the writer is replaced", took.as_millis()),
                Doubt::Disturbed => "a connection broke during the last commit, so the writer is replaced".into(),
            };
            return Err(Error::new(&codes::RECYCLE, what).at("transactional id", &self.id));
        }
        if self.verified.elapsed() >= VERIFY_EVERY {
            self.verify(&transaction).await?;
            self.verified = Instant::now();
        }
        self.prepare(&transaction).await?;
        let (id, options) = (self.id.clone(), &self.inner.options);
        let timeout = Duration::from_secs(options.transaction_timeout_seconds.into());
        let slow = Duration::from_millis(config::request_timeout_ms(options) / 2);
        let committed = blocking(move || match committed(&client, &transaction, timeout, slow) {
            Ok(doubt) => Ok(Committed { client, transaction, doubt }),
            Err(failed) => {
                discard(client);
                Err(failed.at("transactional id", id))
            }
        });
        let Committed { client, transaction, doubt } = committed.await?;
        self.producer = Some(client);
        self.doubt = doubt;
        Ok(transaction)
    }

    async fn close(self: Box<Self>) {
        // No transaction is open between commits: there is nothing a successor would wait for.
        drop(self);
    }
}

impl KafkaWriter {
    /// Refuses to go on into a topic that took the place of one that was written to before (K8).
    async fn verify(&self, transaction: &Transaction) -> Result<()> {
        let known: Vec<(String, String)> = {
            let ids = self.inner.ids.lock().expect("no panic while held");
            let known = |topic: &Arc<str>| ids.get_key_value(&**topic).map(|(name, id)| (name.clone(), id.clone()));
            transaction.topics().iter().filter_map(known).filter(|(_, id)| !id.is_empty()).collect()
        };
        let (probe, names) = (self.inner.probe()?, known.clone());
        let asked = blocking(move || {
            let names: Vec<&str> = names.iter().map(|(name, _)| name.as_str()).collect();
            probe.describe(&names, VERIFY)
        });
        let now = match asked.await {
            Ok(now) => now,
            Err(failed) => {
                tracing::debug!(%failed, "the topics could not be looked at");
                return Ok(());
            }
        };
        for ((topic, id), now) in known.iter().zip(now) {
            if let Some(code) = now.error.filter(|code| !error::passes(*code)) {
                return Err(error::from_code(code, "a topic cannot be written to any more", &codes::NO_ANSWER).at("topic", topic));
            }
            if !now.id.is_empty() && now.id != *id {
                let what = format!("the topic was made anew while it was written to: it had id {id}, and now has id {}", now.id);
                return Err(Error::new(&log::TOPIC_RECREATED, what)
                    .at("topic", topic)
                    .hint("Find out what became of the old topic; run `headwater explain HW1206` for how to go on."));
            }
        }
        Ok(())
    }

    /// Refuses a transaction with a record that is too large (K7), before anything is sent.
    async fn prepare(&self, transaction: &Transaction) -> Result<()> {
        let unknown: Vec<&str> = {
            let limits = self.inner.limits.lock().expect("no panic while held");
            transaction.topics().iter().map(|topic| &**topic).filter(|topic| !limits.contains_key(*topic)).collect()
        };
        if !unknown.is_empty() {
            admin::settings(&self.inner, &unknown).await?;
        }
        let limits: Vec<u64> = {
            let known = self.inner.limits.lock().expect("no panic while held");
            transaction.topics().iter().map(|topic| known.get(&**topic).copied().unwrap_or(u64::MAX)).collect()
        };
        if let Some((record, size)) = first_too_large(transaction, &limits) {
            let topic = &transaction.topics()[record.topic as usize];
            let limit = limits[record.topic as usize];
            let setting = format!("max.message.bytes={}", size.next_power_of_two());
            return Err(Error::new(&codes::RECORD_TOO_LARGE, format!("a record has {size} bytes; its topic allows {limit}"))
                .at("topic", topic)
                .hint(format!("Run `{}`, or exclude the large column.", self.inner.alter_command(topic, &setting))));
        }
        if limits.iter().any(|limit| *limit < self.batch_bytes) {
            // The batch size of a producer is fixed; the next one knows the limit.
            return Err(Error::new(
                &codes::RECYCLE,
                "a new topic allows less than the writer sends at once, so the writer is replaced",
            ));
        }
        Ok(())
    }
}

/// The first record that its topic would refuse, and its size in a batch of its own without compression.
fn first_too_large<'a>(transaction: &'a Transaction, limits: &[u64]) -> Option<(&'a Record, u64)> {
    transaction.records().iter().find_map(|record| {
        let bytes = |span| transaction.bytes(span).len() as u64;
        let headers = transaction.headers(record).iter();
        let headers: u64 = headers.map(|header| header.name.len() as u64 + bytes(header.value) + HEADER_OVERHEAD_BYTES).sum();
        let size = RECORD_OVERHEAD_BYTES + bytes(record.key) + record.value.map_or(0, bytes) + headers;
        (size > limits[record.topic as usize]).then_some((record, size))
    })
}

/// Sends and commits; blocks. `Ok` means durable and visible, perhaps with a doubt about what is still on its way.
fn committed(client: &Client, transaction: &Transaction, timeout: Duration, slow: Duration) -> Result<Option<Doubt>> {
    let deadline = Instant::now() + timeout;
    let watch = client.client().context();
    watch.forget();
    let errors = watch.network_errors();
    client.begin_transaction().map_err(|cause| failed(client, &cause))?;
    fault::point("C5");
    for (number, record) in transaction.records().iter().enumerate() {
        send(client, transaction, record, deadline)?;
        if number == transaction.records().len() / 2 {
            fault::point_with("C6", || {
                let _ = ffi::flush(client.client(), deadline.saturating_duration_since(Instant::now()));
            });
        }
    }
    while !ffi::flush(client.client(), FLUSH) {
        still_good(client, deadline)?;
    }
    // The client counts a record as answered only after its report has been handed over, so nothing is missed here.
    still_good(client, deadline)?;
    fault::point("C7");
    if transaction.changes_a_schema() {
        fault::point("C25");
    }
    fault::point_with("C9", || drop(client.commit_transaction(Duration::from_millis(1))));
    let began = Instant::now();
    // The call goes on in the background when its time is up, and the next one joins it.
    while let Err(cause) = client.commit_transaction(COMMIT) {
        let waits = error::code_of(&cause).is_some_and(|code| code == RDKafkaErrorCode::OperationTimedOut);
        if !waits {
            return Err(failed(client, &cause));
        }
        still_good(client, deadline)?;
    }
    fault::point("C8");
    let took = began.elapsed();
    if took > slow {
        return Ok(Some(Doubt::Slow(took)));
    }
    let disturbed = watch.network_errors() != errors;
    Ok(disturbed.then_some(Doubt::Disturbed))
}

/// Queues one record. Every error but a full queue ends the transaction: one that is refused here does not poison it, and the
/// commit would succeed without the record.
fn send(client: &Client, transaction: &Transaction, record: &Record, deadline: Instant) -> Result<()> {
    let topic = &*transaction.topics()[record.topic as usize];
    let headers = transaction.headers(record);
    // The key is never null, which a compacted topic would refuse (K10).
    let mut message = BaseRecord::<[u8], [u8]>::to(topic)
        .partition(record.partition as i32)
        // The client takes 0 for "now".
        .timestamp(record.timestamp_ms.max(1))
        .key(transaction.bytes(record.key));
    if let Some(value) = record.value {
        message = message.payload(transaction.bytes(value));
    }
    if !headers.is_empty() {
        let owned = headers.iter().fold(OwnedHeaders::new_with_capacity(headers.len()), |owned, header| {
            owned.insert(Header { key: header.name, value: Some(transaction.bytes(header.value)) })
        });
        message = message.headers(owned);
    }
    loop {
        match client.send(message) {
            Ok(()) => return Ok(()),
            Err(_) if fault::variant("ignore-a-send-error") => return Ok(()),
            Err((KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull), back)) => {
                still_good(client, deadline)?;
                let _ = ffi::flush(client.client(), FLUSH);
                message = back;
            }
            Err((cause, _)) => return Err(failed(client, &cause).at("topic", topic)),
        }
    }
}

/// Fails if a record was not delivered, if no broker is left, or if the time is up.
fn still_good(client: &Client, deadline: Instant) -> Result<()> {
    let watch = client.client().context();
    if let Some((code, topic)) = watch.undelivered() {
        let cause = KafkaError::MessageProduction(code);
        return Err(failed(client, &cause).at("topic", topic));
    }
    if watch.all_down() {
        // Even if the client got through in the end, the writer would have to be replaced (K2): there is nothing to wait for.
        let reason = watch.last().map_or_else(String::new, |(_, reason)| reason);
        return Err(
            Error::new(&log::COMMIT_IN_DOUBT, "the connection to all brokers broke during a transaction").caused_by(reason)
        );
    }
    if Instant::now() >= deadline {
        return Err(failed(client, &KafkaError::Flush(RDKafkaErrorCode::OperationTimedOut)));
    }
    Ok(())
}

/// The error of a transaction that may or may not have happened.
fn failed(client: &Client, cause: &KafkaError) -> Error {
    const WHAT: &str = "a transaction failed";
    // A fatal error comes first and is the reason for the others, which only say that there was one (K4).
    if let Some((code, reason)) = client.client().fatal_error() {
        return error::from_code(code, WHAT, &log::COMMIT_IN_DOUBT).caused_by(reason);
    }
    // Once a transaction has failed, the client throws away what is queued, and the first record that was thrown away is all that
    // its reports tell. Asked to begin another transaction, which it cannot, it gives the reason.
    let purged = matches!(error::code_of(cause), Some(RDKafkaErrorCode::PurgeQueue | RDKafkaErrorCode::PurgeInflight));
    if purged
        && let Err(reason) = client.begin_transaction()
        && error::code_of(&reason) != Some(RDKafkaErrorCode::State)
    {
        return error::from_client(&reason, WHAT, &log::COMMIT_IN_DOUBT);
    }
    error::from_client(cause, WHAT, &log::COMMIT_IN_DOUBT)
}

/// Drops a producer whose transaction failed, on a thread of its own. The abort spares readers the wait for the timeout; if a
/// successor was faster, or the abort itself fails, nothing is lost: the next writer ends what is left (K5).
fn discard(client: OffThread<Client>) {
    let abort = move || {
        if client.client().fatal_error().is_none() {
            let _ = client.abort_transaction(ABORT);
        }
        drop(client.into_inner());
    };
    let _ = thread::Builder::new().name("kafka abort".into()).spawn(abort);
}
