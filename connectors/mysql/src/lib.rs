//! MySQL and MariaDB as a source: the binlog, read as a replica does.
//!
//! What the server must be set up with (`headwater check` looks at each and prints the statement that mends it):
//!
//! - MySQL 8.0 or MariaDB 10.6, or newer; which of them it is is found out;
//! - `log_bin`, `binlog_format = ROW`, `binlog_row_image = FULL`, `binlog_row_metadata = FULL`, and on MySQL `gtid_mode = ON`;
//! - a user with REPLICATION SLAVE, REPLICATION CLIENT (MariaDB: BINLOG MONITOR) and SELECT on the tables;
//! - a primary key, or a unique index over columns that are NOT NULL, for each table.
//!
//! In reading order:
//!
//! 1. `config`, `server`: the options and the url. `codes`, `error`, `stops`: what can go wrong, and from the server's numbers to kind.
//! 2. `connection`, `tls`, `wire`: sessions with pinned settings. `catalog`, `inspect`: what SQL tells.
//! 3. `connector`, `check`, `grants`, `engines`, `retention`: look, prepare, create, verify, open.
//! 4. `dump`, `stream`: what the server is asked for, and the socket task. `binlog`, `payload`, `table_map`, `rows`, `statement`: from bytes to events, without IO.
//! 5. `types`, `relation`, `decode`, `number`, `temporal`, `document`, `charset`: from events to rows. `decoder`: the state between them.
//! 6. `reader`, `keys`, `cells`, `snapshot`, `trail`, `gate`: rows that are there already, chunk by chunk.
//! 7. `source`, `gtid`, `position`, `monitor`: batches, where they end, and how far the server is ahead.

#[cfg(test)]
mod arbitrary;
mod binlog;
mod catalog;
mod cells;
mod charset;
mod check;
mod codes;
mod config;
mod connection;
mod connector;
mod decode;
mod decoder;
mod document;
mod drift;
mod dump;
mod engines;
mod error;
#[cfg(test)]
mod garbage;
mod gate;
mod grants;
mod gtid;
mod history;
mod inspect;
mod keys;
mod monitor;
mod number;
mod omitted;
mod patch;
mod payload;
mod position;
mod reader;
mod relation;
mod replica;
mod retention;
mod rows;
mod server;
mod session;
mod snapshot;
mod source;
mod statement;
mod stops;
mod stream;
mod table_map;
mod temporal;
mod tls;
mod trail;
mod types;
mod wire;
mod xid;

pub use session::Session;

use headwater_connector::{Code, ConnectorKind, OptionFault, SourceConnector, SourceContext};

/// The kind that the daemon's registry lists.
pub static MYSQL: Mysql = Mysql;

/// See [`MYSQL`].
#[derive(Debug)]
pub struct Mysql;

impl ConnectorKind for Mysql {
    fn name(&self) -> &'static str {
        "mysql"
    }

    fn synonyms(&self) -> &'static [&'static str] {
        &["mariadb"]
    }

    fn summary(&self) -> &'static str {
        "MySQL 8.0 and MariaDB 10.6 and newer, by their binlog"
    }

    fn source_options(&self) -> Option<schemars::Schema> {
        Some(schemars::schema_for!(config::Options))
    }

    fn codes(&self) -> &'static [&'static Code] {
        codes::ALL
    }

    fn source(&self, context: &SourceContext, options: serde_json::Value) -> Result<Box<dyn SourceConnector>, Vec<OptionFault>> {
        let settings = config::resolve(context, options)?;
        Ok(Box::new(connector::MysqlConnector::new(settings)))
    }
}
