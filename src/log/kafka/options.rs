//! What the config may say about Kafka, and what of it cannot work.

use std::{collections::BTreeMap, net::IpAddr, path::PathBuf};

use headwater_connector::{Error, Secret};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::codes;

/// Options of the Kafka log.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Options {
    /// Brokers to begin with, as `host:port`; the others are found through them.
    pub bootstrap_servers: Vec<String>,
    /// How to connect and log in.
    #[serde(default)]
    pub security: Box<Security>,
    /// Replicas of topics that are created; by default what the brokers are set to (`default.replication.factor`).
    #[serde(default)]
    #[schemars(range(min = 1, max = 32767))]
    pub replication_factor: Option<i16>,
    /// How long the brokers wait for a transaction of a process that is gone before they abort it, in seconds; readers
    /// cannot pass an open transaction. At most what the brokers allow (`transaction.max.timeout.ms`, by default 900).
    #[serde(default = "transaction_timeout_seconds")]
    #[schemars(range(min = 10, max = 3600))]
    pub transaction_timeout_seconds: u32,
    /// How records are compressed.
    #[serde(default)]
    pub compression: Compression,
    /// Further settings of the Kafka client (librdkafka), by their own names. Those that exactly-once delivery rests on are refused.
    #[serde(default)]
    pub properties: BTreeMap<String, String>,
}

const fn transaction_timeout_seconds() -> u32 {
    60
}

/// How records are compressed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Compression {
    /// Not at all.
    None,
    /// Smaller than lz4, much more work.
    Gzip,
    /// Like lz4.
    Snappy,
    /// The least work.
    #[default]
    Lz4,
    /// Smaller than lz4, more work.
    Zstd,
}

impl Compression {
    /// The client's word for it.
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Gzip => "gzip",
            Self::Snappy => "snappy",
            Self::Lz4 => "lz4",
            Self::Zstd => "zstd",
        }
    }
}

/// How to connect and log in.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Security {
    /// By default plaintext on loopback and TLS elsewhere, with SASL if `sasl` is given. Off loopback, plaintext must be
    /// asked for in so many words.
    #[serde(default)]
    pub protocol: Option<Protocol>,
    /// The login.
    #[serde(default)]
    pub sasl: Option<Sasl>,
    /// Certificate authorities that the brokers' certificates are checked against; by default those of the system.
    #[serde(default)]
    #[schemars(extend("x-path" = true))]
    pub ca_file: Option<PathBuf>,
    /// Certificate of this client, PEM.
    #[serde(default)]
    #[schemars(extend("x-path" = true))]
    pub certificate_file: Option<PathBuf>,
    /// Private key of this client, PEM.
    #[serde(default)]
    #[schemars(extend("x-path" = true))]
    pub key_file: Option<PathBuf>,
    /// Password of the private key.
    #[serde(default)]
    pub key_password: Option<Secret>,
}

/// The protocol of the brokers' port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Protocol {
    /// No encryption, no login.
    Plaintext,
    /// TLS.
    Ssl,
    /// A login without encryption.
    SaslPlaintext,
    /// A login over TLS.
    SaslSsl,
}

impl Protocol {
    /// The client's word for it.
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Plaintext => "plaintext",
            Self::Ssl => "ssl",
            Self::SaslPlaintext => "sasl_plaintext",
            Self::SaslSsl => "sasl_ssl",
        }
    }

    /// Whether the connection is encrypted.
    pub(super) const fn is_encrypted(self) -> bool {
        matches!(self, Self::Ssl | Self::SaslSsl)
    }

    const fn has_login(self) -> bool {
        matches!(self, Self::SaslPlaintext | Self::SaslSsl)
    }
}

/// The login.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Sasl {
    /// How we prove who we are.
    pub mechanism: Mechanism,
    /// The user; not for oauthbearer.
    #[serde(default)]
    pub username: Option<String>,
    /// The password; not for oauthbearer.
    #[serde(default)]
    pub password: Option<Secret>,
    /// The bearer token, for oauthbearer only. It is read again whenever the client needs one, so point it at a file that is
    /// kept fresh: `{file: PATH}`.
    #[serde(default)]
    pub token: Option<Secret>,
}

/// How we prove who we are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Mechanism {
    /// The password is sent as it is: only over TLS.
    Plain,
    /// SCRAM with SHA-256.
    #[serde(rename = "scram-sha-256")]
    ScramSha256,
    /// SCRAM with SHA-512.
    #[serde(rename = "scram-sha-512")]
    ScramSha512,
    /// A bearer token instead of a password: only over TLS.
    Oauthbearer,
}

impl Sasl {
    /// A login is a token, or a name with a password.
    fn faults(&self, fault: &mut impl FnMut(&str, &str, &str)) {
        let bearer = self.mechanism == Mechanism::Oauthbearer;
        let parts = [
            ("log.security.sasl.username", self.username.is_some(), !bearer),
            ("log.security.sasl.password", self.password.is_some(), !bearer),
            ("log.security.sasl.token", self.token.is_some(), bearer),
        ];
        for (option, given, needed) in parts {
            if needed && !given {
                fault(option, "it is missing", "Give it: oauthbearer takes a token, other mechanisms username and password.");
            } else if given && !needed {
                fault(
                    option,
                    "it would not be used",
                    "Remove it: oauthbearer takes a token, other mechanisms username and password.",
                );
            }
        }
    }
}

impl Mechanism {
    /// The client's word for it.
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Plain => "PLAIN",
            Self::ScramSha256 => "SCRAM-SHA-256",
            Self::ScramSha512 => "SCRAM-SHA-512",
            Self::Oauthbearer => "OAUTHBEARER",
        }
    }
}

/// Client settings that exactly-once delivery rests on.
const PROMISED: &[&str] = &[
    "acks",
    "allow.auto.create.topics",
    "auto.offset.reset",
    "batch.size",
    "delivery.report.only.error",
    "delivery.timeout.ms",
    "enable.auto.commit",
    "enable.auto.offset.store",
    "enable.gapless.guarantee",
    "enable.idempotence",
    "enable.partition.eof",
    "group.id",
    "isolation.level",
    "log.connection.close",
    "max.in.flight",
    "max.in.flight.requests.per.connection",
    "message.max.bytes",
    "message.send.max.retries",
    "message.timeout.ms",
    "partitioner",
    "queue.strategy",
    "request.required.acks",
    "request.timeout.ms",
    "retries",
    "socket.timeout.ms",
    "transactional.id",
];

/// Client settings that have an option of their own.
const OWN_OPTION: &[(&str, &str)] = &[
    ("bootstrap.servers", "log.bootstrap_servers"),
    ("compression.codec", "log.compression"),
    ("compression.type", "log.compression"),
    ("metadata.broker.list", "log.bootstrap_servers"),
    ("sasl.mechanism", "log.security.sasl.mechanism"),
    ("sasl.mechanisms", "log.security.sasl.mechanism"),
    ("sasl.oauthbearer.config", "log.security.sasl.token"),
    ("sasl.oauthbearer.method", "log.security.sasl.token"),
    ("sasl.password", "log.security.sasl.password"),
    ("sasl.username", "log.security.sasl.username"),
    ("security.protocol", "log.security.protocol"),
    ("ssl.ca.location", "log.security.ca_file"),
    ("ssl.certificate.location", "log.security.certificate_file"),
    ("ssl.key.location", "log.security.key_file"),
    ("ssl.key.password", "log.security.key_password"),
    ("ssl.key.pem", "log.security.key_file"),
    ("transaction.timeout.ms", "log.transaction_timeout_seconds"),
];

impl Options {
    /// Everything that is wrong with the options as they are written, each with the option's path.
    pub fn faults(&self) -> Vec<Error> {
        let mut faults = Vec::new();
        let mut fault = |option: &str, what: &str, hint: &str| {
            faults.push(Error::new(&codes::BAD_OPTION, what).at("option", option).hint(hint));
        };
        if self.bootstrap_servers.is_empty() {
            fault("log.bootstrap_servers", "no broker is named", "Name at least one broker as HOST:PORT.");
        }
        for server in &self.bootstrap_servers {
            if split(server).is_none() {
                fault("log.bootstrap_servers", &format!("{server:?} is not an address"), "Write brokers as HOST:PORT.");
            }
        }
        if !(10..=3600).contains(&self.transaction_timeout_seconds) {
            let what = format!("{} is out of range", self.transaction_timeout_seconds);
            fault("log.transaction_timeout_seconds", &what, "Choose 10 to 3600 seconds.");
        }
        if self.replication_factor.is_some_and(|replicas| replicas < 1) {
            let hint = "Choose 1 or more, or remove the option for what the brokers are set to.";
            fault("log.replication_factor", "a topic needs a replica", hint);
        }
        self.security_faults(&mut fault);
        for key in self.properties.keys() {
            let option = format!("log.properties.{key}");
            if PROMISED.contains(&key.as_str()) {
                let hint = "Remove the entry: exactly-once delivery rests on this setting.";
                fault(&option, &format!("{key} cannot be changed"), hint);
            } else if let Some((_, own)) = OWN_OPTION.iter().find(|(name, _)| name == key) {
                fault(&option, &format!("{key} has an option of its own"), &format!("Set {own} instead."));
            }
        }
        faults
    }

    fn security_faults(&self, fault: &mut impl FnMut(&str, &str, &str)) {
        let Security { sasl, certificate_file, key_file, .. } = &*self.security;
        let protocol = self.protocol();
        if protocol.has_login() && sasl.is_none() {
            let hint = "Give log.security.sasl, or choose plaintext or ssl.";
            fault("log.security.protocol", "a login is demanded but not given", hint);
        }
        if sasl.is_some() && !protocol.has_login() {
            let hint = "Choose sasl_ssl or sasl_plaintext, or remove log.security.sasl.";
            fault("log.security.protocol", "the login would not be used", hint);
        }
        let clear = |sasl: &Sasl| matches!(sasl.mechanism, Mechanism::Plain | Mechanism::Oauthbearer);
        if sasl.as_ref().is_some_and(clear) && protocol == Protocol::SaslPlaintext && !self.is_loopback() {
            let hint = "Use sasl_ssl, or a SCRAM mechanism.";
            fault("log.security.sasl.mechanism", "the password or token would cross the network in clear text", hint);
        }
        if let Some(sasl) = sasl {
            sasl.faults(fault);
        }
        if certificate_file.is_some() != key_file.is_some() {
            let hint = "Give both certificate_file and key_file, or neither.";
            fault("log.security", "a client certificate needs its key", hint);
        }
    }

    /// The protocol that is used.
    pub(super) fn protocol(&self) -> Protocol {
        self.security.protocol.unwrap_or(match (self.is_loopback(), self.security.sasl.is_some()) {
            (true, false) => Protocol::Plaintext,
            (true, true) => Protocol::SaslPlaintext,
            (false, false) => Protocol::Ssl,
            (false, true) => Protocol::SaslSsl,
        })
    }

    /// Whether all brokers to begin with are on this machine.
    pub(super) fn is_loopback(&self) -> bool {
        self.bootstrap_servers.iter().all(|server| {
            let host = split(server).map_or("", |(host, _)| host);
            host == "localhost" || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
        })
    }
}

/// Host and port; an IPv6 address is in brackets.
fn split(server: &str) -> Option<(&str, u16)> {
    let (host, port) = server.rsplit_once(':')?;
    let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    if host.is_empty() || host.contains(char::is_whitespace) {
        return None;
    }
    Some((host, port.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(json: &str) -> Options {
        serde_json::from_str(json).unwrap()
    }

    #[test]
    fn plaintext_is_the_default_on_loopback_only() {
        let local = options(r#"{"bootstrap_servers":["localhost:9092","127.0.0.1:9093","[::1]:9094"]}"#);
        assert_eq!(local.protocol(), Protocol::Plaintext);
        assert!(local.faults().is_empty());
        let remote = options(r#"{"bootstrap_servers":["localhost:9092","kafka.internal:9092"]}"#);
        assert_eq!(remote.protocol(), Protocol::Ssl);
    }

    #[test]
    fn settings_that_exactly_once_rests_on_are_refused_by_name() {
        for key in PROMISED {
            let faults = options(&format!(r#"{{"bootstrap_servers":["b:1"],"properties":{{"{key}":"x"}}}}"#)).faults();
            assert_eq!(faults.len(), 1, "{key}");
            assert!(faults[0].to_string().contains(&format!("log.properties.{key}")), "{}", faults[0]);
        }
        let faults = options(r#"{"bootstrap_servers":["b:1"],"properties":{"sasl.password":"hunter2"}}"#).faults();
        assert!(faults[0].to_string().contains("log.security.sasl.password"));
        assert!(!faults[0].to_string().contains("hunter2"));
    }

    #[test]
    fn all_faults_are_reported_at_once() {
        let bad = options(
            r#"{"bootstrap_servers":["no-port"],"transaction_timeout_seconds":0,"replication_factor":0,
                "security":{"protocol":"sasl_ssl","key_file":"k.pem"}}"#,
        );
        assert_eq!(bad.faults().len(), 5, "{:?}", bad.faults());
    }

    #[test]
    fn a_password_in_clear_text_does_not_leave_the_machine() {
        let sasl = r#""sasl":{"mechanism":"plain","username":"u","password":{"env":"P"}}"#;
        let clear = format!(r#"{{"bootstrap_servers":["b:1"],"security":{{"protocol":"sasl_plaintext",{sasl}}}}}"#);
        assert_eq!(options(&clear).faults().len(), 1);
        let encrypted = format!(r#"{{"bootstrap_servers":["b:1"],"security":{{{sasl}}}}}"#);
        assert!(options(&encrypted).faults().is_empty());
    }
}
