//! The options of a source, and what they mean.

use headwater_connector::{BackfillOptions, Error, Names, OptionFault, Secret, Selection, SourceContext};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

pub use crate::server::{Server, server};

use crate::codes::BAD_OPTION;

/// Options of a MySQL or MariaDB source.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Options {
    /// Where the server is: `mysql://USER@HOST:PORT/?PARAMETERS`; `mariadb://` is the same.
    ///
    /// Parameters: `sslmode` (`disable`, `require`, `verify-ca`, `verify-full`; default `verify-full`, and on loopback TLS without
    /// verification if the server has it), `sslrootcert`, `sslcert`, `sslkey` (PEM files, read again at every connection),
    /// `server_public_key` (PEM file, for `caching_sha2_password` without TLS: a copy of the server's `public_key.pem`; one that the server
    /// sends is never used), `connect_timeout` (seconds, default 10).
    pub url: String,
    /// Password of the user.
    #[serde(default)]
    pub password: Option<Secret>,
    /// Tables to read, as `database.table`; `*` stands for any characters, and what begins with `!` is left out.
    pub tables: Names,
    /// The number under which the connector is a replica of the server; nobody else may have it. Default: made of `log.prefix` and the
    /// connector's name.
    #[serde(default)]
    #[schemars(range(min = 1))]
    pub server_id: Option<u32>,
    /// What a `TRUNCATE` of a selected table does.
    #[serde(default)]
    pub on_truncate: OnTruncate,
    /// What a partition of a selected table does that is dropped or truncated, or that becomes a table of its own.
    #[serde(default)]
    pub on_partition_drop: OnPartitionDrop,
    /// What happens to a date with a zero as year, month or day, which is none of the calendar.
    #[serde(default)]
    pub zero_dates: ZeroDates,
    /// The largest event, and the largest compressed transaction when unpacked, in bytes; default 268435456. It is memory that the connector
    /// may need at once.
    #[serde(default)]
    #[schemars(range(min = 1048576, max = 1073741824))]
    pub max_event_bytes: Option<u32>,
    /// Whether tables are accepted whose rows the server changes by foreign keys without writing it to the binlog.
    #[serde(default)]
    pub accept_cascades: bool,
    /// Whether rows that are in a table already are read when it is captured for the first time, and how hard the server may be worked for it.
    #[serde(default)]
    pub backfill: BackfillOptions,
}

/// See [`Options::on_truncate`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum OnTruncate {
    /// The connector stops before it.
    #[default]
    Stop,
    /// An event of its own tells readers that all rows of the table are gone.
    Event,
}

/// See [`Options::on_partition_drop`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum OnPartitionDrop {
    /// The connector stops before it.
    #[default]
    Stop,
    /// The connector goes on. The binlog does not say which rows were in it, so they stay in the topic: right for those who keep the topic
    /// longer than the table.
    Ignore,
}

/// See [`Options::zero_dates`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum ZeroDates {
    /// It keeps the server's text, for example `0000-00-00`. Nothing is lost, and no table stops the stream that has served for years.
    #[default]
    Text,
    /// It becomes NULL, and cannot be told from one any more. In the columns of a key the connector stops before it.
    Null,
    /// The connector stops before it.
    Stop,
}

/// The options with their meaning resolved.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Where and how to connect.
    pub server: Server,
    /// What is captured.
    pub tables: Selection,
    /// Keys from the config, by `database.table`.
    pub keys: Vec<(String, Vec<String>)>,
    /// As a replica of the server.
    pub server_id: u32,
    /// As a replica of the server: the same for the same connector, so that the server ends what a dead predecessor left.
    pub replica_uuid: String,
    /// See [`Options`].
    pub on_truncate: OnTruncate,
    /// See [`Options`].
    pub on_partition_drop: OnPartitionDrop,
    /// See [`Options`].
    pub zero_dates: ZeroDates,
    /// See [`Options`].
    pub max_event_bytes: usize,
    /// See [`Options`].
    pub accept_cascades: bool,
    /// See [`Options`].
    pub backfill: BackfillOptions,
}

impl Settings {
    /// Whether the options select a table.
    pub fn selects(&self, database: &str, table: &str) -> bool {
        self.tables.selects(database, table)
    }

    /// The key that the config asks for.
    pub fn key_of(&self, table: &str) -> Option<&[String]> {
        self.keys.iter().find(|(name, _)| name == table).map(|(_, columns)| columns.as_slice())
    }
}

/// Resolves the options; all faults in one go.
pub fn resolve(context: &SourceContext, options: serde_json::Value) -> Result<Settings, Vec<OptionFault>> {
    let options: Options = match serde_json::from_value(options) {
        Ok(options) => options,
        Err(error) => {
            return Err(vec![fault("", error.to_string(), "Correct the option; `headwater connectors mysql` lists all.")]);
        }
    };
    let mut faults = Vec::new();
    let (tables, wrong) = Selection::parse(&options.tables, "database", "shop");
    faults.extend(wrong.into_iter().map(|[path, what, hint]| fault(path, what, hint)));
    if options.server_id == Some(0) {
        faults.push(fault("server_id", "0 is no server id", "Use a number from 1 to 4294967295 that nobody else has."));
    }
    let max_event_bytes = options.max_event_bytes.unwrap_or(256 << 20);
    if !(1 << 20..=1 << 30).contains(&max_event_bytes) {
        faults.push(fault("max_event_bytes", "the limit is out of range", "Use a number from 1048576 to 1073741824."));
    }
    for (at, name) in options.backfill.unknown_first(|name| tables.selects_name(name)) {
        let hint = "Name a table that `tables` selects, as database.table.";
        faults.push(fault(format!("backfill.first[{at}]"), format!("{name:?} is not a captured table"), hint));
    }
    let server = server(&options.url, options.password, &mut faults);
    let digest = Sha256::digest(format!("{}/{}", context.prefix, context.connector));
    // Far from the small numbers that people choose.
    let own_id = u32::from_be_bytes([digest[16], digest[17], digest[18], digest[19]]) | 1 << 30;
    // MariaDB tells replicas apart by the number, MySQL by the uuid: who chose another number is another replica for both.
    let replica = options.server_id.map(|id| Sha256::digest(format!("{}/{}/{id}", context.prefix, context.connector)));
    match server {
        Some(server) if faults.is_empty() => Ok(Settings {
            server,
            tables,
            keys: context.keys.clone(),
            server_id: options.server_id.unwrap_or(own_id),
            replica_uuid: uuid(&replica.unwrap_or(digest)),
            on_truncate: options.on_truncate,
            on_partition_drop: options.on_partition_drop,
            zero_dates: options.zero_dates,
            max_event_bytes: max_event_bytes as usize,
            accept_cascades: options.accept_cascades,
            backfill: options.backfill,
        }),
        _ => Err(faults),
    }
}

fn uuid(bytes: &[u8]) -> String {
    let hex: String = bytes[..16].iter().map(|byte| format!("{byte:02x}")).collect();
    format!("{}-{}-{}-{}-{}", &hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..])
}

pub fn fault(path: impl Into<String>, what: impl Into<String>, hint: impl Into<String>) -> OptionFault {
    OptionFault { path: path.into(), error: Error::new(&BAD_OPTION, what).hint(hint) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::server::SslMode;
    use serde_json::json;

    fn context(connector: &str) -> SourceContext {
        SourceContext { connector: connector.into(), prefix: "headwater".into(), keys: Vec::new() }
    }

    fn with_url(url: &str) -> Result<Settings, Vec<OptionFault>> {
        resolve(&context("shop"), json!({ "url": url, "tables": ["shop.orders"] }))
    }

    #[test]
    fn few_keys_are_enough() {
        let settings = with_url("mysql://hw@db.internal").unwrap();
        assert_eq!((settings.server.endpoint().as_str(), settings.server.ssl_mode), ("db.internal:3306", SslMode::VerifyFull));
        assert_eq!(with_url("mariadb://hw@127.0.0.1:7/x").unwrap().server.ssl_mode, SslMode::Offered);
        assert!(settings.server_id > 1 << 29);
    }

    #[test]
    fn connectors_have_different_ids_that_stay_the_same() {
        let of = |name| resolve(&context(name), json!({ "url": "mysql://a@h", "tables": "a.b" })).unwrap();
        assert_ne!((of("a").server_id, of("a").replica_uuid), (of("b").server_id, of("b").replica_uuid));
        assert_eq!((of("a").server_id, of("a").replica_uuid), (of("a").server_id, of("a").replica_uuid));
    }

    #[test]
    fn whoever_chose_another_number_is_another_replica() {
        let of = |id| resolve(&context("shop"), json!({ "url": "mysql://a@h", "tables": "a.b", "server_id": id })).unwrap();
        assert_eq!((of(7).server_id, of(7).replica_uuid), (7, of(7).replica_uuid));
        assert_ne!(of(7).replica_uuid, of(8).replica_uuid);
        assert_ne!(of(7).replica_uuid, with_url("mysql://a@h").unwrap().replica_uuid);
    }

    #[test]
    fn all_faults_come_at_once_and_never_the_password() {
        let options = json!({ "url": "mysql://:hunter2@h:x/d", "tables": ["orders", "a.b"], "server_id": 0, "max_event_bytes": 1,
                "backfill": { "first": ["a.b", "a.c"] } });
        let faults = resolve(&context("shop"), options).unwrap_err();
        let paths: Vec<&str> = faults.iter().map(|fault| fault.path.as_str()).collect();
        assert_eq!(paths, ["tables[0]", "server_id", "max_event_bytes", "backfill.first[1]", "url"]);
        let said: String = faults.iter().map(|fault| fault.error.to_string()).collect();
        assert!(!said.contains("hunter2"), "{said}");
    }
}
