//! The options of a source, and what they mean.

use headwater_connector::{BackfillOptions, Error, Names, OptionFault, Secret, Selection, SourceContext};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub use crate::server::{Server, SslMode, server};

use crate::{
    codes::BAD_OPTION,
    server::{Target, closest},
};

/// Options of a PostgreSQL source.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Options {
    /// Where the database is: `postgres://USER@HOST:PORT/DATABASE?PARAMETERS`. Several servers of one cluster are separated by
    /// commas, `postgres://USER@HOST:PORT,HOST:PORT/DATABASE`, and tried in their order.
    ///
    /// Parameters: `sslmode` (`disable`, `require`, `verify-ca`, `verify-full`; default `verify-full`, and `disable` if all hosts
    /// are loopback or unix sockets), `sslrootcert`, `sslcert`, `sslkey` (PEM files, read again at every connection),
    /// `channel_binding` (`require`, `prefer`, `disable`; default `require` with TLS and a password), `target_session_attrs`
    /// (`any`, `read-write`, `primary`, `standby`, `read-only`, `prefer-standby`; default `primary` with several hosts, else
    /// `any`), `host` and `port` (lists in place of those in front, a directory stands for a unix socket),
    /// `application_name`, `connect_timeout` (seconds for each host, default 10).
    pub url: String,
    /// Password of the user.
    #[serde(default)]
    pub password: Option<Secret>,
    /// Tables to read, as `schema.table`; `*` stands for any characters, and what begins with `!` is left out.
    pub tables: Names,
    /// Name of the replication slot; default `<log.prefix>_<connector>`.
    #[serde(default)]
    pub slot: Option<String>,
    /// Name of the publication; default `<log.prefix>_<connector>`.
    #[serde(default)]
    pub publication: Option<String>,
    /// Whether standbys keep a copy of the slot, so that it survives a failover; default: wherever the server can (17 and newer).
    #[serde(default)]
    pub failover: Option<bool>,
    /// What a `TRUNCATE` of a selected table does.
    #[serde(default)]
    pub on_truncate: OnTruncate,
    /// What happens to large values that an update did not touch, which the log does not carry.
    #[serde(default)]
    pub large_values: LargeValues,
    /// Whether rows that are there already are read, and how hard the server may be worked: `initial` (default), `never`, or a map with
    /// `mode` and limits.
    #[serde(default)]
    pub backfill: BackfillOptions,
    /// A standby of the server to read the rows that are there already from, so that the primary does not feel it; changes still come
    /// from `url`. In the form of `url`, and with the same `password` unless it has one of its own; of several hosts only standbys will
    /// do. Default: rows are read where changes come from.
    #[serde(default)]
    pub backfill_url: Option<String>,
    /// Prefixes of logical messages (`pg_logical_emit_message`) that become events, as rows of a table `hw.message`; `*` stands for any
    /// characters. By default none. PostgreSQL 14 or newer.
    #[serde(default)]
    pub messages: Option<Names>,
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

/// See [`Options::large_values`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum LargeValues {
    /// They are absent from the event and named in its header `hw.absent`; soon afterwards the row is read and published whole.
    #[default]
    Refresh,
    /// They are absent from the event and named in its header `hw.absent`, and that is all.
    Absent,
    /// Every event is complete; each table must have REPLICA IDENTITY FULL.
    Full,
}

/// The options with their meaning resolved.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Where and how to connect.
    pub server: Server,
    /// What is captured.
    pub tables: Selection,
    /// Keys from the config, by `schema.table`.
    pub keys: Vec<(String, Vec<String>)>,
    /// Name of the slot.
    pub slot: String,
    /// Name of the publication.
    pub publication: String,
    /// See [`Options`].
    pub failover: Option<bool>,
    /// See [`Options`].
    pub on_truncate: OnTruncate,
    /// See [`Options`].
    pub large_values: LargeValues,
    /// See [`Options`].
    pub backfill: BackfillOptions,
    /// Where rows that are there already are read, if not at `server`.
    pub reader: Option<Server>,
    /// Patterns of prefixes; none if messages are not read.
    pub messages: Vec<String>,
}

/// Resolves the options; all faults in one go.
pub fn resolve(context: &SourceContext, options: serde_json::Value) -> Result<Settings, Vec<OptionFault>> {
    let options: Options = match serde_json::from_value(options) {
        Ok(options) => options,
        Err(error) => {
            return Err(vec![fault("", error.to_string(), "Correct the option; `headwater connectors postgres` lists all.")]);
        }
    };
    let mut faults = Vec::new();
    let (tables, wrong) = Selection::parse(&options.tables, "schema", "public");
    faults.extend(wrong.into_iter().map(|[path, what, hint]| fault(path, what, hint)));
    first(&options.backfill, &tables, &mut faults);
    let default_name = default_name(context);
    let mut name = |path: &str, given: Option<&String>| match given {
        None => default_name.clone(),
        Some(name) => {
            check_name(path, name, &mut faults);
            name.clone()
        }
    };
    let slot = name("slot", options.slot.as_ref());
    let publication = match options.publication {
        // Publications are ordinary identifiers: any text that the server can hold, quoted.
        Some(name) if !name.is_empty() && name.len() <= 63 && !name.contains('\0') => name,
        Some(name) => {
            faults.push(fault("publication", "a publication has 1 to 63 bytes", "Choose a shorter name for the publication."));
            name
        }
        None => default_name,
    };
    let reader = options.backfill_url.as_deref().and_then(|url| reader(context, url, options.password.clone(), &mut faults));
    let server = server(context, &options.url, options.password, &mut faults);
    match server {
        Some(server) if faults.is_empty() => Ok(Settings {
            server,
            tables,
            keys: context.keys.clone(),
            slot,
            publication,
            failover: options.failover,
            on_truncate: options.on_truncate,
            large_values: options.large_values,
            backfill: options.backfill,
            reader,
            messages: match options.messages {
                None => Vec::new(),
                Some(Names::Many(prefixes)) => prefixes,
                Some(Names::One(prefix)) => vec![prefix],
            },
        }),
        _ => Err(faults),
    }
}

pub fn fault(path: impl Into<String>, what: impl Into<String>, hint: impl Into<String>) -> OptionFault {
    OptionFault { path: path.into(), error: Error::new(&BAD_OPTION, what).hint(hint) }
}

/// The server of `backfill_url`. Of several hosts only standbys will do.
fn reader(context: &SourceContext, url: &str, password: Option<Secret>, faults: &mut Vec<OptionFault>) -> Option<Server> {
    let mut found = Vec::new();
    let mut reader = server(context, url, None, &mut found);
    if let Some(server) = &mut reader {
        server.password = server.password.take().or(password);
        if server.hosts.len() > 1 && server.target == Target::Primary {
            server.target = Target::Standby;
        }
    }
    faults.extend(found.into_iter().map(|fault| OptionFault { path: "backfill_url".into(), ..fault }));
    reader
}

/// What no pattern selects cannot be read first. Whether what a pattern selects is there, only the server can tell.
fn first(backfill: &BackfillOptions, tables: &Selection, faults: &mut Vec<OptionFault>) {
    let names: Vec<&str> = tables.names().collect();
    for (at, name) in backfill.unknown_first(|name| tables.selects_name(name)) {
        let hint = match names.as_slice() {
            [] => "Name a table that `tables` selects, as schema.table.".to_owned(),
            names => format!("Did you mean {}? Name a table that `tables` selects.", closest(name, names)),
        };
        faults.push(fault(format!("backfill.first[{at}]"), format!("{name:?} is not a captured table"), hint));
    }
}

/// `<prefix>_<connector>` in the characters that a slot name may have.
fn default_name(context: &SourceContext) -> String {
    let text = format!("{}_{}", context.prefix, context.connector).to_lowercase();
    let text: String = text.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '_' }).collect();
    text[..text.len().min(63)].to_owned()
}

fn check_name(path: &str, name: &str, faults: &mut Vec<OptionFault>) {
    let fine = (1..=63).contains(&name.len())
        && name.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_');
    if !fine {
        faults.push(fault(path, format!("{name:?} is not a slot name"), "Use 1 to 63 of the characters a-z, 0-9 and _."));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn context() -> SourceContext {
        SourceContext { connector: "Shop-1".into(), prefix: "headwater".into(), keys: Vec::new() }
    }

    fn with_url(url: &str) -> Result<Settings, Vec<OptionFault>> {
        resolve(&context(), json!({ "url": url, "tables": ["public.orders"] }))
    }

    fn hints(url: &str) -> String {
        with_url(url).unwrap_err().iter().map(|fault| fault.error.to_string()).collect()
    }

    #[test]
    fn three_keys_are_enough() {
        let settings =
            resolve(&context(), json!({ "url": "postgres://hw@db.internal/shop", "tables": "public.orders" })).unwrap();
        assert_eq!((settings.slot.as_str(), settings.publication.as_str()), ("headwater_shop_1", "headwater_shop_1"));
        assert_eq!(settings.server.endpoint(), "db.internal:5432/shop");
        assert_eq!(settings.server.ssl_mode, SslMode::VerifyFull);
        assert_eq!(settings.server.application_name, "headwater/Shop-1");
    }

    #[test]
    fn loopback_and_sockets_need_no_tls() {
        for url in
            ["postgres://hw@127.0.0.1/d", "postgres://hw@localhost/d", "postgres://hw@[::1]/d", "postgres://hw@/d?host=/tmp"]
        {
            assert_eq!(with_url(url).unwrap().server.ssl_mode, SslMode::Disable, "{url}");
        }
        assert_eq!(with_url("postgres://hw@localhost/d?sslmode=verify-full").unwrap().server.ssl_mode, SslMode::VerifyFull);
        assert_eq!(with_url("postgres://hw@[::1]:7/d").unwrap().server.endpoint(), "[::1]:7/d");
    }

    #[test]
    fn faults_name_what_was_meant_and_never_the_password() {
        assert!(hints("postgres://hw@h/d?sslmod=require").contains("Did you mean sslmode?"));
        assert!(hints("postgres://hw@h/d?sslmode=prefer").contains("verify-full"));
        assert!(hints("postgres://hw@h/d?options=-cx%3D1").contains("not supported"));
        assert!(hints("mysql://hw@h/d").contains("postgres://"));
        for url in ["postgres://hw:hunter2@h:x/d", "postgres://:hunter2@/d", "mysql://hw:hunter2@h/d"] {
            assert!(!hints(url).contains("hunter2"), "{url}");
        }
    }

    #[test]
    fn all_faults_come_at_once() {
        let options = json!({ "url": "postgres://h/d", "tables": ["orders", "a.b"], "slot": "Bad-Name" });
        let paths: Vec<String> = resolve(&context(), options).unwrap_err().into_iter().map(|fault| fault.path).collect();
        assert_eq!(paths, ["tables[0]", "slot", "url"]);
    }

    #[test]
    fn the_reader_has_faults_and_a_password_of_its_own() {
        let with = |reader: &str| {
            resolve(&context(), json!({ "url": "postgres://hw:mine@h/d", "backfill_url": reader, "tables": ["public.orders"] }))
        };
        let reader = |url: &str| with(url).unwrap().reader.unwrap();
        let password = |server: &Server| server.password.as_ref().map(|secret| secret.reveal().unwrap().to_string());
        assert_eq!(password(&reader("postgres://hw:its@s/d")).as_deref(), Some("its"));
        assert!(!format!("{:?}", with("postgres://hw:hunter2@s/d").unwrap()).contains("hunter2"));
        assert_eq!(reader("postgres://hw@a,b/d").target, Target::Standby);
        let faults = with("postgres://hw:hunter2@s:x/d").unwrap_err();
        assert_eq!(faults.iter().map(|fault| fault.path.as_str()).collect::<Vec<_>>(), ["backfill_url"]);
        assert!(!faults[0].error.to_string().contains("hunter2"));
        let settings = resolve(
            &context(),
            json!({ "url": "postgres://hw@h/d", "password": "both", "backfill_url": "postgres://hw@s/d", "tables": ["public.orders"] }),
        );
        assert_eq!(password(&settings.unwrap().reader.unwrap()).as_deref(), Some("both"));
    }

    #[test]
    fn what_is_to_be_read_first_is_selected() {
        let faults = |first: serde_json::Value| {
            let options =
                json!({ "url": "postgres://hw@h/d", "tables": ["public.orders", "log.*"], "backfill": { "first": first } });
            let faults = resolve(&context(), options).err().unwrap_or_default();
            faults.into_iter().map(|fault| (fault.path, fault.error.hint_text().to_owned())).collect::<Vec<_>>()
        };
        assert_eq!(faults(json!(["log.a", "public.orders"])), []);
        let found = faults(json!(["public.orders", "public.ordesr", "orders"]));
        assert_eq!(found.iter().map(|(path, _)| path.as_str()).collect::<Vec<_>>(), ["backfill.first[1]", "backfill.first[2]"]);
        assert!(found.iter().all(|(_, hint)| hint.starts_with("Did you mean public.orders?")), "{found:?}");
    }

    #[test]
    fn a_password_in_the_url_is_decoded_and_hidden() {
        let settings = with_url("postgres://hw:p%40ss@h/d").unwrap();
        assert_eq!(settings.server.password.as_ref().unwrap().reveal().unwrap().as_str(), "p@ss");
        assert!(!format!("{settings:?}").contains("p@ss"));
    }
}
