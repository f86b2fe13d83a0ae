//! The client's settings, and what its threads report.

use std::{
    collections::BTreeMap,
    sync::{
        Mutex, OnceLock,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use headwater_connector::{Error, Result, Secret};
use rdkafka::{
    ClientContext,
    client::{Client, OAuthToken},
    config::{ClientConfig, RDKafkaLogLevel},
    consumer::ConsumerContext,
    error::{KafkaError, RDKafkaErrorCode},
    message::Message,
    producer::{DeliveryResult, ProducerContext},
};
use tracing::{debug, warn};

use super::{Options, codes, error, ffi, token, versions};

pub(super) use super::token::Token;

/// The client's queue holds a copy of what is being sent; beyond this the sender waits, so memory stays bounded.
const QUEUE_KBYTES: u32 = 128 * 1024;

/// Records of one request to a broker, before compression.
const BATCH_BYTES: u64 = 1_000_000;

/// What a record costs in a batch of its own beside key, value and headers: 61 bytes for the batch, 36 for its numbers.
pub(super) const RECORD_OVERHEAD_BYTES: u64 = 97;

/// What a header costs beside name and value.
pub(super) const HEADER_OVERHEAD_BYTES: u64 = 10;

/// Which records a consumer sees, and which end of a partition it is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Isolation {
    Committed,
    Uncommitted,
}

/// Settings that every client has.
pub(super) fn base(options: &Options) -> Result<ClientConfig> {
    let mut config = ClientConfig::new();
    for (key, value) in &options.properties {
        config.set(key, value);
    }
    let defaults = [
        ("client.id", "headwater"),
        // A broker that comes back is used again soon.
        ("reconnect.backoff.max.ms", "2000"),
        ("enable.ssl.certificate.verification", "true"),
        ("ssl.endpoint.identification.algorithm", "https"),
    ];
    for (key, value) in defaults {
        if config.get(key).is_none() {
            config.set(key, value);
        }
    }
    config.set("bootstrap.servers", options.bootstrap_servers.join(","));
    // A connection that breaks during a commit must be reported (K2); the client leaves idle ones out by itself.
    config.set("log.connection.close", "true");
    // Topics are created by us, with the settings they need, or not at all.
    config.set("allow.auto.create.topics", "false");
    config.set("socket.timeout.ms", request_timeout_ms(options).to_string());
    config.set("security.protocol", options.protocol().name());
    security(options, &mut config)?;
    config.set_log_level(RDKafkaLogLevel::Info);
    Ok(config)
}

fn security(options: &Options, config: &mut ClientConfig) -> Result<()> {
    let security = &options.security;
    if options.protocol().is_encrypted() {
        match &security.ca_file {
            Some(file) => config.set("ssl.ca.location", file.to_string_lossy()),
            // Our OpenSSL is linked in and knows no directory of the system: the client looks at the usual places.
            None => config.set("ssl.ca.location", "probe"),
        };
    }
    if let Some(file) = &security.certificate_file {
        config.set("ssl.certificate.location", file.to_string_lossy());
    }
    if let Some(file) = &security.key_file {
        config.set("ssl.key.location", file.to_string_lossy());
    }
    if let Some(password) = &security.key_password {
        config.set("ssl.key.password", password.reveal()?.as_str());
    }
    if let Some(sasl) = &security.sasl {
        config.set("sasl.mechanism", sasl.mechanism.name());
        if let Some(username) = &sasl.username {
            config.set("sasl.username", username);
        }
        if let Some(password) = &sasl.password {
            config.set("sasl.password", password.reveal()?.as_str());
        }
    }
    Ok(())
}

/// How long one request to a broker may take. Well below the transaction timeout: a broker that hangs must not cost the transaction
/// (K3).
pub(super) fn request_timeout_ms(options: &Options) -> u64 {
    (u64::from(options.transaction_timeout_seconds) * 1000 / 2).min(30_000)
}

/// Settings of the writer.
pub(super) fn producer(options: &Options, transactional_id: &str, batch_bytes: u64) -> Result<ClientConfig> {
    let mut config = base(options)?;
    let timeout = (u64::from(options.transaction_timeout_seconds) * 1000).to_string();
    if config.get("queue.buffering.max.kbytes").is_none() {
        config.set("queue.buffering.max.kbytes", QUEUE_KBYTES.to_string());
    }
    if config.get("queue.buffering.max.messages").is_none() {
        // Bytes are the limit, not records.
        config.set("queue.buffering.max.messages", "0");
    }
    config
        .set("transactional.id", transactional_id)
        .set("transaction.timeout.ms", &timeout)
        .set("message.timeout.ms", &timeout)
        .set("request.timeout.ms", request_timeout_ms(options).to_string())
        .set("batch.size", batch_bytes.to_string())
        .set("enable.idempotence", "true")
        .set("acks", "all")
        .set("compression.type", options.compression.name())
        // The limit that counts is the topic's, and it is checked before anything is sent.
        .set("message.max.bytes", "1000000000")
        // A report per record would cost more than the record; silence means success.
        .set("delivery.report.only.error", "true");
    Ok(config)
}

/// The `batch.size` for topics of which the lowest `max.message.bytes` is given: the brokers hold it against whole batches.
pub(super) fn batch_bytes(lowest_limit: Option<u64>) -> u64 {
    BATCH_BYTES.min(lowest_limit.unwrap_or(BATCH_BYTES))
}

/// Settings of a client that asks about topics and offsets.
pub(super) fn consumer(options: &Options, isolation: Isolation) -> Result<ClientConfig> {
    let mut config = base(options)?;
    let isolation = match isolation {
        Isolation::Committed => "read_committed",
        Isolation::Uncommitted => "read_uncommitted",
    };
    config.set("isolation.level", isolation).set("enable.auto.commit", "false");
    Ok(config)
}

/// Settings of a client that reads records.
pub(super) fn reader(options: &Options, prefix: &str) -> Result<ClientConfig> {
    let mut config = consumer(options, Isolation::Committed)?;
    let defaults = [
        // The reader is never far ahead of who reads: memory stays small.
        ("queued.max.messages.kbytes", "16384"),
        // With a full queue the client would else pause for a second.
        ("fetch.queue.backoff.ms", "10"),
        ("fetch.error.backoff.ms", "100"),
    ];
    for (key, value) in defaults {
        if config.get(key).is_none() {
            config.set(key, value);
        }
    }
    config
        // The client wants a group to assign partitions; it is never joined and holds no offsets.
        .set("group.id", format!("{prefix}.reader"))
        .set("enable.auto.offset.store", "false")
        .set("enable.partition.eof", "true")
        // Records that vanished before they were read must be an error, not a gap.
        .set("auto.offset.reset", "error");
    Ok(config)
}

/// What a client's threads report: the last error, how often a connection failed, and the first record that was not delivered.
#[derive(Debug, Default)]
pub(super) struct Watch {
    last: Mutex<Option<(RDKafkaErrorCode, String)>>,
    all_down: AtomicBool,
    network_errors: AtomicU64,
    undelivered: OnceLock<(RDKafkaErrorCode, String)>,
    token: Option<Secret>,
    /// The newest version of each request that a broker understands, where the client was asked to tell.
    versions: Mutex<BTreeMap<i16, i16>>,
}

impl Watch {
    /// For a client with these options.
    pub(super) fn of(options: &Options) -> Self {
        let token = options.security.sasl.as_ref().and_then(|sasl| sasl.token.clone());
        Self { token, ..Self::default() }
    }

    /// Gives a new client its first token. It would ask by itself, but not every kind of client is listened to.
    pub(super) fn admit(client: &Client<Self>) -> Result<()> {
        let Some(secret) = &client.context().token else { return Ok(()) };
        let set = ffi::set_token(client, &token::read(secret)?);
        set.map_err(|reason| {
            Error::new(&codes::LOGIN_FAILED, "the token cannot be used")
                .at("option", "log.security.sasl.token")
                .hint("Check that the option points to a token for these brokers.")
                .caused_by(reason)
        })
    }

    /// The last error and its reason.
    pub(super) fn last(&self) -> Option<(RDKafkaErrorCode, String)> {
        self.last.lock().expect("no panic while held").clone()
    }

    /// Forgets the last error, so that the next one belongs to the call that begins.
    pub(super) fn forget(&self) {
        self.all_down.store(false, Ordering::Release);
        *self.last.lock().expect("no panic while held") = None;
    }

    /// Whether no broker could be reached at some time since [`forget`](Self::forget).
    pub(super) fn all_down(&self) -> bool {
        self.all_down.load(Ordering::Acquire)
    }

    /// Connections that failed or broke so far.
    pub(super) fn network_errors(&self) -> u64 {
        self.network_errors.load(Ordering::Acquire)
    }

    /// The newest version of each request that the brokers understand, as far as the client told.
    pub(super) fn versions(&self) -> BTreeMap<i16, i16> {
        self.versions.lock().expect("no panic while held").clone()
    }

    /// The first record that could not be delivered: why, and its topic.
    pub(super) fn undelivered(&self) -> Option<(RDKafkaErrorCode, &str)> {
        self.undelivered.get().map(|(code, topic)| (*code, topic.as_str()))
    }
}

impl ClientContext for Watch {
    const ENABLE_REFRESH_OAUTH_TOKEN: bool = true;

    fn generate_oauth_token(&self, _: Option<&str>) -> std::result::Result<OAuthToken, Box<dyn std::error::Error>> {
        let secret = self.token.as_ref().ok_or("there is no token")?;
        let Token { value, principal, expires_ms } = token::read(secret).map_err(|failed| failed.what())?;
        Ok(OAuthToken { token: value.to_string(), principal_name: principal, lifetime_ms: expires_ms })
    }

    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        if facility == "APIVERSION" {
            self.versions.lock().expect("no panic while held").extend(versions::parse(message));
        }
        // What matters comes back as an error as well; as a warning here it would be told twice.
        if matches!(level, RDKafkaLogLevel::Emerg | RDKafkaLogLevel::Alert | RDKafkaLogLevel::Critical) {
            warn!(facility, message, "kafka client");
        } else {
            debug!(facility, message, "kafka client");
        }
    }

    fn error(&self, error: KafkaError, reason: &str) {
        let code = match error::code_of(&error).unwrap_or(RDKafkaErrorCode::Fail) {
            // In TLS 1.3 a broker refuses our certificate after the handshake, which the client reports as a broken connection.
            code if error::is_network(code) && reason.contains("SSL alert") => RDKafkaErrorCode::SSL,
            // A client that renews its login twice within a second, as with a token of which little is left, is told this. The
            // connection breaks and the next one logs in as usual, so it is no refusal.
            _ if reason.contains("not valid in current SASL state") => RDKafkaErrorCode::BrokerTransportFailure,
            code => code,
        };
        debug!(?code, reason, "kafka client error");
        if error::is_network(code) {
            self.network_errors.fetch_add(1, Ordering::AcqRel);
        }
        if code == RDKafkaErrorCode::AllBrokersDown {
            self.all_down.store(true, Ordering::Release);
        }
        let mut last = self.last.lock().expect("no panic while held");
        // "All brokers are down" follows the reason why and must not hide it.
        let hides = code == RDKafkaErrorCode::AllBrokersDown && last.is_some();
        if !hides {
            *last = Some((code, reason.to_owned()));
        }
    }

    fn stats_raw(&self, _: &[u8]) {}
}

impl ProducerContext for Watch {
    type DeliveryOpaque = ();

    fn delivery(&self, result: &DeliveryResult<'_>, (): ()) {
        if let Err((error, message)) = result {
            let code = error::code_of(error).unwrap_or(RDKafkaErrorCode::Fail);
            let _ = self.undelivered.set((code, message.topic().to_owned()));
        }
    }
}

impl ConsumerContext for Watch {}
