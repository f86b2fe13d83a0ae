//! PostgreSQL as a source: logical replication with the built-in `pgoutput` plugin.
//!
//! What the database must be set up with (`headwater check` looks at each and prints the statement that mends it):
//!
//! - version 13 or newer (16 for a standby), `wal_level = logical`, a free replication slot and a free WAL sender;
//! - a role with `REPLICATION` and a SCRAM-SHA-256 password, admitted by `pg_hba.conf`;
//! - the publication: the role owns the tables and may create it, or the owner created it (then it is adopted);
//! - a primary key, or a replica identity that holds the configured key, for each table.
//!
//! In reading order:
//!
//! 1. `config`, `server`: the options and the url. `codes`, `error`: what can go wrong, and from SQLSTATE to kind.
//! 2. `connection`, `tls`, `wire`: sessions with pinned settings. `catalog`, `types`: what SQL tells.
//! 3. `connector`, `slot`, `creation`, `publication`, `standby`, `check`: look, prepare, create, verify, open.
//! 4. `stream`: the socket task. `pgoutput`, `decoder`, `relation`, `message`, `decode`, `array`: from bytes to rows, without IO.
//! 5. `source`, `position`, `monitor`, `watch`: batches, where they end, how far the server is ahead, and what the stream does not tell.
//! 6. `reader`, `keys`, `gate`, `snapshot`: rows that are there already, in the order of their keys, and which transactions they show.

mod array;
mod catalog;
mod check;
mod codes;
mod config;
mod connection;
mod connector;
mod creation;
mod decode;
mod decoder;
mod drift;
mod error;
mod gate;
mod keys;
mod message;
mod monitor;
mod pgoutput;
mod position;
mod publication;
mod reader;
mod rebind;
mod relation;
mod replica;
mod server;
mod session;
mod slot;
mod snapshot;
mod source;
mod standby;
mod stream;
mod tls;
mod types;
mod watch;
mod wire;

pub use session::Session;

use headwater_connector::{Code, ConnectorKind, OptionFault, SourceConnector, SourceContext};

/// The kind that the daemon's registry lists.
pub static POSTGRES: Postgres = Postgres;

/// See [`POSTGRES`].
#[derive(Debug)]
pub struct Postgres;

impl ConnectorKind for Postgres {
    fn name(&self) -> &'static str {
        "postgres"
    }

    fn synonyms(&self) -> &'static [&'static str] {
        &["postgresql"]
    }

    fn summary(&self) -> &'static str {
        "PostgreSQL 13 and newer, by logical replication"
    }

    fn source_options(&self) -> Option<schemars::Schema> {
        Some(schemars::schema_for!(config::Options))
    }

    fn codes(&self) -> &'static [&'static Code] {
        codes::ALL
    }

    fn source(&self, context: &SourceContext, options: serde_json::Value) -> Result<Box<dyn SourceConnector>, Vec<OptionFault>> {
        let settings = config::resolve(context, options)?;
        Ok(Box::new(connector::PostgresConnector::new(settings)))
    }
}
