//! From options to a connector: what a crate registers with the daemon.

use std::sync::Arc;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};

use crate::{BackfillOptions, Condition, Error, Finding, Identity, Monitor, Position, Result, Schema, Source, TableReader};

/// A kind of connector, as listed in the daemon's registry. One static per crate.
pub trait ConnectorKind: Sync {
    /// The word after `kind:`.
    fn name(&self) -> &'static str;

    /// Other words for the same.
    fn synonyms(&self) -> &'static [&'static str] {
        &[]
    }

    /// One line for lists.
    fn summary(&self) -> &'static str;

    /// JSON Schema of the options of a source, without `kind`; none if the kind has no source.
    /// Derived from the options struct: its doc comments are the reference page.
    fn source_options(&self) -> Option<schemars::Schema>;

    /// The codes of this crate, for `explain`.
    fn codes(&self) -> &'static [&'static crate::Code];

    /// Builds a source connector from options that match the schema. Touches nothing: no network, no files.
    /// All faults are reported, each with the option's path relative to `source`.
    fn source(&self, context: &SourceContext, options: serde_json::Value) -> Result<Box<dyn SourceConnector>, Vec<OptionFault>>;
}

/// What a source connector is told besides its own options.
#[derive(Clone, Debug)]
pub struct SourceContext {
    /// The connector's name in the config.
    pub connector: String,
    /// `log.prefix`: begins the names of what the connector creates at the server.
    pub prefix: String,
    /// Keys that the config asks for instead of the primary key, by `schema.table`.
    pub keys: Vec<(String, Vec<String>)>,
}

/// A fault in the options, found without touching anything.
#[derive(Debug)]
pub struct OptionFault {
    /// Path of the option below `source`, for example `url` or `tables[1]`.
    pub path: String,
    /// The error; its place is filled in by the config loader.
    pub error: Error,
}

/// A table that the options select, as the server has it now.
#[derive(Clone, Debug)]
pub struct Table {
    /// Name, columns, and the key that events will have.
    pub schema: Arc<Schema>,
    /// Rows in it, roughly; none if unknown.
    pub estimated_rows: Option<u64>,
    /// Whether it has rows that can be read; what is in the log alone has none.
    pub readable: bool,
}

/// Something that `run` would create or change at the server.
#[derive(Clone, Debug, Serialize)]
pub struct Action {
    /// `create`, `adopt`, `alter` or `keep`.
    pub verb: &'static str,
    /// `slot`, `publication` and so on.
    pub object: &'static str,
    /// Its name.
    pub name: String,
    /// The statement or setting, exact.
    pub detail: String,
}

/// What a first start is about to do at the server. It is committed to the checkpoint before it is done, so that a crash
/// between the two is told apart from a lost checkpoint (crash points C3 and C4).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Intent {
    /// Whether the server-side object is created, or one that exists is adopted. Only `create` may ever drop an orphan.
    pub mode: IntentMode,
    /// The connector's own words: object names and the state seen, enough to recognise an orphan.
    pub detail: String,
}

/// See [`Intent`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum IntentMode {
    /// Nothing was there.
    Create,
    /// A matching object was there and is used from where it stands.
    Adopt,
}

/// Where a fresh connector starts.
#[derive(Clone, Debug)]
pub struct Start {
    /// Which server this is.
    pub identity: Identity,
    /// The first position.
    pub position: Position,
}

/// What the server shows about a checkpoint that is to be given up or moved to another server.
#[derive(Debug)]
pub struct Survey {
    /// What somebody needs to see before they decide: names and values, for example which server this is and where the slot stands.
    pub facts: Vec<(&'static str, String)>,
    /// What starting anew means: a sentence that says what is lost, and the intent to begin with, where
    /// [`prepare`](SourceConnector::prepare) alone would refuse (an object of ours that cannot be used any more is replaced).
    pub anew: Result<(String, Option<Intent>)>,
    /// The identity under which the position is good on this server, if it is: the log reaches back to it and not less far.
    pub rebind: Result<Identity>,
}

/// A configured source: knows how to look at its server, prepare it, and open it at a position.
///
/// Order of calls at a start: [`verify`](Self::verify) if there is a checkpoint (before anybody is fenced); then, with the
/// writer's place taken, [`prepare`](Self::prepare) and [`create`](Self::create) on a fresh start; then [`open`](Self::open).
#[async_trait]
pub trait SourceConnector: Send + Sync {
    /// Where it connects to, without secrets, for messages.
    fn endpoint(&self) -> String;

    /// What no second connector of the config may have, with its server, for example `the replication slot NAME at HOST:PORT`.
    fn exclusive(&self) -> Option<String> {
        None
    }

    /// The tables that the options select now. Connects; changes nothing.
    ///
    /// A glob or name without match is a Config error. So is a table whose key cannot serve (see the design of keys: every key
    /// column NOT NULL, together unique, inside what the log carries of an old row); its hint is the statement that mends it.
    /// All faults of all tables come at once.
    async fn tables(&self) -> Result<Vec<Table>, Vec<Error>>;

    /// Every preflight, good and bad. Connects; changes nothing.
    /// Fails only if the server cannot be reached or asked at all.
    async fn check(&self) -> Result<Vec<Finding>>;

    /// What a start would create or change at the server; `fresh` if there is no checkpoint. Changes nothing.
    async fn plan(&self, fresh: bool) -> Result<Vec<Action>>;

    /// Compares a checkpoint's identity with the server without changing or blocking anything.
    /// Another server or database is a Config error.
    async fn verify(&self, identity: &Identity) -> Result<()>;

    /// Looks at the server and says what [`create`](Self::create) will do.
    async fn prepare(&self) -> Result<Intent>;

    /// Does what the intent says. `again` is true if the same intent was committed by an earlier start that did not get to its
    /// first position: with mode `create` an orphan may then be dropped first.
    async fn create(&self, intent: &Intent, again: bool) -> Result<Start>;

    /// Compares a checkpoint with the server for `reset`. Changes nothing. Both parts are none where no checkpoint can be read.
    async fn survey(&self, identity: Option<&Identity>, position: Option<&Position>) -> Result<Survey>;

    /// When and how hard rows that are there already are read.
    fn backfill(&self) -> BackfillOptions;

    /// Whether a row whose event lacks columns is to be read again, so that the last event of each key is whole.
    fn refreshes(&self) -> bool;

    /// A condition in the server's language, for [`ChunkRequest::filter`](crate::ChunkRequest). Values are compared as the order of their own
    /// type has it. May connect; changes nothing.
    async fn condition(&self, schema: &Schema, condition: &Condition<'_>) -> Result<String>;

    /// A session that reads tables beside the stream.
    async fn reader(&self) -> Result<Box<dyn TableReader>>;

    /// Watches a position while no source is open: before a start, after a failed one, in a pause that is older than the daemon. By default
    /// nobody does. Connects when it is asked something.
    fn monitor(&self, position: &Position) -> Option<Arc<dyn Monitor>> {
        let _ = position;
        None
    }

    /// Opens the source behind `position`. Everything that makes resuming there wrong is an error of its own:
    /// an object missing, ahead of the position, of another server or history (invariant 3).
    async fn open(&self, identity: &Identity, position: &Position) -> Result<Box<dyn Source>>;
}
